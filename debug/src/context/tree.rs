//! Contexts: what can be told apart of a guest, as a tree, and what they have in common, as groups.

use std::fmt;

/// What a context is told by. None is given twice, and a context keeps its own when the guest begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {}", self.0)
    }
}

/// What a context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The whole guest.
    Machine,
    /// A vCPU, by its number.
    Vcpu(u32),
}

/// What contexts have in common. For each group and each context, one context stands for the group
/// ([`Debuggee::group`](super::Debuggee::group)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// What must stand still together for memory to be stable.
    Stop,
    /// What shares breakpoints.
    Breakpoint,
    /// What stops together: when one stops, so do the others, and resuming one resumes them.
    Intercept,
    /// What shares an address space.
    Process,
    /// What is of the same kind of CPU: registers, instructions.
    Cpu,
    /// What shares symbols.
    Symbols,
}

impl Group {
    /// All of them.
    pub const ALL: [Group; 6] =
        [Group::Stop, Group::Breakpoint, Group::Intercept, Group::Process, Group::Cpu, Group::Symbols];
}

impl Kind {
    /// Whether a context of this kind stands for a group of those below it and of itself. vCPUs share RAM, what is
    /// planted in it, their kind and the kernel that they run; each has translation tables of its own.
    const fn stands_for(self, group: Group) -> bool {
        match self {
            Kind::Machine => true,
            Kind::Vcpu(_) => matches!(group, Group::Process),
        }
    }
}

/// One context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// What it is told by.
    pub id: Id,
    /// What it is a part of; `None` of the root.
    pub parent: Option<Id>,
    /// What it is.
    pub kind: Kind,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Machine => f.write_str("machine"),
            Kind::Vcpu(number) => write!(f, "vCPU {number}"),
        }
    }
}

/// All contexts of a guest. It may have any number of levels.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// In the order of their ids; a parent comes before its children.
    contexts: Vec<Context>,
    next: u64,
}

impl Tree {
    /// A machine with vCPUs.
    pub fn of_machine(vcpus: u32) -> Tree {
        let mut tree = Tree::default();
        let machine = tree.add(None, Kind::Machine);
        for vcpu in 0..vcpus {
            tree.add(Some(machine), Kind::Vcpu(vcpu));
        }
        tree
    }

    /// Adds a context; its id.
    fn add(&mut self, parent: Option<Id>, kind: Kind) -> Id {
        let id = Id(self.next);
        self.next += 1;
        self.contexts.push(Context { id, parent, kind });
        id
    }

    /// All contexts, each behind the one that it is a part of.
    pub fn iter(&self) -> impl Iterator<Item = &Context> {
        self.contexts.iter()
    }

    /// The one that is no part of another.
    pub fn root(&self) -> Id {
        self.contexts.first().map_or(Id(0), |context| context.id)
    }

    /// A context by its id.
    pub fn get(&self, id: Id) -> Option<&Context> {
        self.contexts.iter().find(|context| context.id == id)
    }

    /// The contexts that are parts of one, in order.
    pub fn children(&self, id: Id) -> Vec<Id> {
        let parts = self.contexts.iter().filter(|context| context.parent == Some(id));
        parts.map(|context| context.id).collect()
    }

    /// The context that stands for a group that a context is in: the nearest one above it, or itself.
    pub fn group(&self, id: Id, group: Group) -> Option<Id> {
        let mut context = self.get(id)?;
        while !context.kind.stands_for(group) {
            context = self.get(context.parent?)?;
        }
        Some(context.id)
    }

    /// The context of a vCPU.
    pub fn vcpu(&self, number: u32) -> Option<Id> {
        self.contexts.iter().find(|context| context.kind == Kind::Vcpu(number)).map(|context| context.id)
    }

    /// The vCPU that a context is on: itself, or the nearest one above it.
    pub fn vcpu_of(&self, id: Id) -> Option<u32> {
        let mut context = self.get(id)?;
        loop {
            match context.kind {
                Kind::Vcpu(number) => return Some(number),
                Kind::Machine => context = self.get(context.parent?)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_machine() {
        let tree = Tree::of_machine(3);
        let root = tree.root();
        let vcpus = tree.children(root);
        assert_eq!(vcpus.len(), 3);
        assert_eq!(tree.get(root).map(|root| (root.parent, root.kind)), Some((None, Kind::Machine)));
        for (number, vcpu) in (0..).zip(vcpus) {
            assert_eq!(tree.get(vcpu).map(|it| (it.parent, it.kind)), Some((Some(root), Kind::Vcpu(number))));
            assert_eq!((tree.vcpu(number), tree.vcpu_of(vcpu)), (Some(vcpu), Some(number)));
            assert!(tree.children(vcpu).is_empty());
            for group in Group::ALL {
                let stands_for = if group == Group::Process { vcpu } else { root };
                assert_eq!(tree.group(vcpu, group), Some(stands_for), "{group:?}");
                assert_eq!(tree.group(root, group), Some(root), "{group:?}");
            }
        }
        assert_eq!((tree.vcpu(3), tree.vcpu_of(root)), (None, None));
        assert_eq!((tree.get(Id(99)), tree.group(Id(99), Group::Stop)), (None, None));
    }

    /// As there will be with tasks.
    #[test]
    fn more_levels_than_two() {
        let mut tree = Tree::of_machine(2);
        let (root, parent) = (tree.root(), tree.vcpu(1).unwrap());
        let below = tree.add(Some(parent), Kind::Vcpu(7));
        let further = tree.add(Some(below), Kind::Machine);
        assert_eq!(tree.children(parent), [below]);
        assert_eq!(
            (tree.group(below, Group::Stop), tree.group(below, Group::Process)),
            (Some(root), Some(below))
        );
        assert_eq!(tree.vcpu_of(further), Some(7));
        assert_eq!(tree.iter().count(), 5);
    }
}
