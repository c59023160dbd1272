//! Contexts: what can be told apart of a guest, as a tree, and what they have in common, as groups.

#[cfg(feature = "linux")]
use std::collections::HashMap;
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
    /// An address space of tasks of the guest's Linux kernel, by where its `struct mm_struct` is.
    AddressSpace(u64),
    /// A task, by its number: of a thread, the thread's.
    Task(u32),
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
    /// planted in it, their kind and the kernel that they run; each has translation tables of its own. Tasks share those of
    /// their address space.
    const fn stands_for(self, group: Group) -> bool {
        match self {
            Kind::Machine => true,
            Kind::Vcpu(_) | Kind::AddressSpace(_) => matches!(group, Group::Process),
            Kind::Task(_) => false,
        }
    }
}

/// One context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// What it is told by.
    pub id: Id,
    /// What it is a part of; `None` of the root. A task that begins another program (`execve(2)`) goes over to another
    /// address space.
    pub parent: Option<Id>,
    /// What it is.
    pub kind: Kind,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Machine => f.write_str("machine"),
            Kind::Vcpu(number) => write!(f, "vCPU {number}"),
            Kind::AddressSpace(at) => write!(f, "address space {at:#x}"),
            Kind::Task(pid) => write!(f, "task {pid}"),
        }
    }
}

/// All contexts of a guest. It may have any number of levels.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// In the order of their ids; a parent comes before its children.
    contexts: Vec<Context>,
    next: u64,
    #[cfg(feature = "linux")]
    tasks: HashMap<TaskKey, Id>,
}

/// What a task is known by.
#[cfg(feature = "linux")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TaskKey {
    pub pid: u32,
    /// Where its `struct task_struct` is.
    pub address: u64,
    /// When it began, in the kernel's own time: numbers and memory are used again.
    pub began: u64,
    /// Where its `struct mm_struct` is; 0 of the kernel's own.
    pub mm: u64,
}

#[cfg(feature = "linux")]
impl TaskKey {
    /// The same, whatever program it is at.
    fn itself(self) -> TaskKey {
        TaskKey { mm: 0, ..self }
    }
}

/// What has become of a tree.
#[cfg(feature = "linux")]
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Of each task, in the order that was given.
    pub ids: Vec<Id>,
    /// What is new; parents first.
    pub created: Vec<Context>,
    /// What is not there any more; parts first.
    pub disposed: Vec<Id>,
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
        let at = self.contexts.binary_search_by_key(&id, |context| context.id).ok()?;
        self.contexts.get(at)
    }

    /// These are the tasks now, each once: known ones keep their contexts, and so do address spaces that one of their tasks is
    /// still in.
    #[cfg(feature = "linux")]
    pub(super) fn set_tasks(&mut self, tasks: &[TaskKey]) -> Changes {
        let before = std::mem::take(&mut self.tasks);
        let root = self.root();
        let mut spaces: HashMap<u64, Id> = HashMap::new();
        for key in tasks.iter().filter(|key| key.mm != 0) {
            let known = before.get(&key.itself()).and_then(|id| self.get(*id)).and_then(|it| it.parent);
            if let Some(space) = known.and_then(|space| self.get(space))
                && space.kind == Kind::AddressSpace(key.mm)
            {
                spaces.insert(key.mm, space.id);
            }
        }
        let first = self.next;
        let mut changes = Changes::default();
        for key in tasks {
            let parent = match key.mm {
                0 => root,
                mm => *spaces.entry(mm).or_insert_with(|| self.add(Some(root), Kind::AddressSpace(mm))),
            };
            let known = before.get(&key.itself()).copied();
            let id = known.unwrap_or_else(|| self.add(Some(parent), Kind::Task(key.pid)));
            if let Ok(at) = self.contexts.binary_search_by_key(&id, |context| context.id) {
                self.contexts[at].parent = Some(parent);
            }
            self.tasks.insert(key.itself(), id);
            changes.ids.push(id);
        }
        let tasks: std::collections::HashSet<Id> = changes.ids.iter().copied().collect();
        let spaces: std::collections::HashSet<Id> = spaces.into_values().collect();
        let is_gone = |context: &Context| match context.kind {
            Kind::Machine | Kind::Vcpu(_) => false,
            Kind::AddressSpace(_) => !spaces.contains(&context.id),
            Kind::Task(_) => !tasks.contains(&context.id),
        };
        let mut gone: Vec<&Context> = self.contexts.iter().filter(|context| is_gone(context)).collect();
        gone.sort_by_key(|context| !matches!(context.kind, Kind::Task(_)));
        changes.disposed = gone.into_iter().map(|context| context.id).collect();
        self.contexts.retain(|context| !is_gone(context));
        changes.created = self.contexts.iter().filter(|context| context.id.0 >= first).cloned().collect();
        changes
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
                _ => context = self.get(context.parent?)?,
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
