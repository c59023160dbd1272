//! Who waits for which lock of the guest's Linux kernel: tasks that sleep, and processors that spin.

use super::stack::{Location, Stacks};
use crate::linux::lock::{self, Holder, LockKind, LockLayout, Seen, Wait};
use crate::linux::reader::Reader;
use crate::linux::task::{Task, TaskState};
use crate::linux::unwind::Stack;
use crate::machine::Activity;
use arch::register::Bank;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Frames from the innermost on among which the function is that puts to sleep for a lock.
const NEAR: usize = 12;
/// How far from the kernel's code modules and their data are, bytes at most (x86: the last 2 GiB; aarch64: 2 GiB around
/// the kernel).
const MODULES_REACH: u64 = 2 << 30;

/// Frames that are looked at of all stacks, at most.
const MOST_FRAMES: usize = 1 << 20;
/// Bytes of a stack that are looked through for a lock that somebody spins for.
const MOST_BYTES: u64 = 2048;

/// Who waits for which lock, and who is about to and of whom that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Those that were found.
    pub found: Vec<Wait>,
    /// The tasks that processors idle in, of those that were found, which are in no list: where each `struct task_struct` is,
    /// and its name.
    pub idle: Vec<(u64, String)>,
    /// How many more are in functions that wait for locks.
    pub others: usize,
    /// There was too much to look at.
    pub is_cut: bool,
}

/// A stack of somebody who may wait, by the functions that it is in.
struct Near {
    /// The innermost first; those of modules have none.
    names: Vec<String>,
    /// The stack pointer in each, and behind the last one.
    stack: Vec<u64>,
}

impl Near {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The kind of lock that its functions wait for, and which of them does.
    fn waits_for(&self) -> Option<(LockKind, usize)> {
        let kinds = self.names().map(LockKind::of_function).enumerate();
        kinds.filter_map(|(at, kind)| Some((kind?, at))).next()
    }

    /// The stack of those up to one.
    fn up_to(&self, at: usize) -> Option<Range<u64>> {
        let begin = *self.stack.first()?;
        let end = *self.stack.get(at + 1)?;
        (begin <= end).then(|| begin..end.min(begin.saturating_add(MOST_BYTES)))
    }
}

/// What waits are looked for with.
struct Looks<'a> {
    layout: LockLayout,
    stack_of: &'a dyn Fn(u64) -> Option<Range<u64>>,
    runs: &'a dyn Fn(u64) -> bool,
    seen: RefCell<Seen>,
    /// Frames that may be looked at still.
    frames: Cell<usize>,
}

impl Looks<'_> {
    /// Whether there was too much to look at.
    fn is_cut(&self) -> bool {
        self.frames.get() == 0 || self.seen.borrow().is_full()
    }

    /// A stack has been looked at.
    fn took(&self, stack: &Stack) {
        self.frames.set(self.frames.get().saturating_sub(stack.frames.len().max(1)));
    }
}

impl Stacks<'_> {
    /// Who of some tasks waits for which lock. In memory that lies, not more than it says. What a spinning processor waits
    /// for is told where one of its registers has a lock's address.
    pub fn waits(&self, tasks: &[Task]) -> Waits {
        let layout = LockLayout::new(self.types());
        let stacks: HashMap<u64, Range<u64>> = tasks
            .iter()
            .take_while(|_| self.view().cancel.check().is_ok())
            .filter_map(|task| {
                let begin = self.of_task_struct(task, "stack").ok().filter(|begin| *begin != 0)?;
                Some((task.address, layout.stack(begin)))
            })
            .collect();
        let is_on = |task: &&Task| task.is_on_cpu == Some(true);
        let on: HashSet<u64> = tasks.iter().filter(is_on).map(|task| task.address).collect();
        let (stack_of, runs) = (|task: u64| stacks.get(&task).cloned(), |task: u64| on.contains(&task));
        let (seen, frames) = (RefCell::default(), Cell::new(MOST_FRAMES));
        let looks = Looks { layout, stack_of: &stack_of, runs: &runs, seen, frames };
        let mut waits = Waits::default();
        let goes_on = || looks.frames.get() > 0 && self.view().cancel.check().is_ok();
        for task in tasks.iter().take_while(|_| goes_on()) {
            match self.wait(task, &looks) {
                Some(Some(wait)) => waits.found.push(wait),
                Some(None) => waits.others += 1,
                None => {}
            }
        }
        self.idle_waits(&looks, &mut waits);
        waits.is_cut = looks.is_cut();
        waits
    }

    /// What a task waits for; `None` of one that waits for no lock, and within, where it is not known for which.
    fn wait(&self, task: &Task, looks: &Looks<'_>) -> Option<Option<Wait>> {
        let is_on = task.is_on_cpu == Some(true);
        if !is_on && matches!(task.state, TaskState::Running | TaskState::New | TaskState::Zombie) {
            return None;
        }
        let stack = self.of_task(task).ok()?;
        looks.took(&stack);
        let near = self.near(&stack)?;
        let at = (task.address, *near.stack.first()?);
        // One that lends priority may spin for it, as its owner runs, and says so itself all the same.
        if self.find(|reader| Some(looks.layout.is_blocked(task.address, reader))) == Some(true) {
            let wait = self.find(|reader| looks.layout.blocked(at, near.names(), looks.stack_of, reader));
            return Some(wait.map(|wait| Wait { spins: is_on, ..wait }));
        }
        if is_on {
            return self.spins(task, &near, looks);
        }
        if looks.layout.waits_for_readers(near.names()) {
            return Some(None);
        }
        let (kind, _) = near.waits_for().filter(|(kind, _)| *kind != LockKind::Spinlock)?;
        let wait = |reader: &Reader<'_>| {
            looks.layout.wait(at, kind, looks.stack_of, &mut looks.seen.borrow_mut(), reader)
        };
        Some(self.find(wait))
    }

    /// What a task spins for that is on a processor. One that sleeps for locks in functions that spin first does neither
    /// outside of these: it is about to sleep, or was woken.
    fn spins(&self, task: &Task, near: &Near, looks: &Looks<'_>) -> Option<Option<Wait>> {
        let (kind, at) = near.waits_for()?;
        let vcpu = self.vcpu_at(task).or(task.cpu);
        if kind == LockKind::Spinlock {
            let lock = vcpu.and_then(|vcpu| self.spins_for(vcpu));
            return Some(lock.map(|lock| spinlock(task.address, lock)));
        }
        near.names().take(at).find(|name| LockKind::is_spun_for_in(name))?;
        let words = vcpu.zip(near.up_to(at)).map(|(vcpu, stack)| self.words(vcpu, stack)).unwrap_or_default();
        Some(self.find(|reader| looks.layout.spun_for(task.address, kind, &words, looks.runs, reader)))
    }

    /// What a vCPU has in its registers, and what is on a stack.
    fn words(&self, vcpu: u32, stack: Range<u64>) -> Vec<u64> {
        let registers = self.view().machine.registers(vcpu, &[Bank::General]);
        let mut words: Vec<u64> =
            registers.map(|file| file.iter().map(|(_, value)| value).collect()).unwrap_or_default();
        let begin = stack.start.next_multiple_of(8);
        let size = usize::try_from(stack.end.saturating_sub(begin)).unwrap_or(0);
        let found = self.find(|reader| {
            let mut bytes = vec![0; size];
            reader.bytes(begin, &mut bytes).ok().map(|()| bytes)
        });
        let bytes = found.unwrap_or_default();
        words.extend(bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes));
        words
    }

    /// What processors spin for that idle, and were interrupted there.
    fn idle_waits(&self, looks: &Looks<'_>, waits: &mut Waits) {
        let Ok(current) = self.view().kernel_current(self.info()) else { return };
        let goes_on = || looks.frames.get() > 0 && self.view().cancel.check().is_ok();
        for vcpu in (0..self.view().machine.vcpus()).take_while(|_| goes_on()) {
            if self.view().machine.activity(vcpu) == Activity::NotStarted {
                continue;
            }
            let running = self.view().task_on(self.info(), &current, vcpu);
            let Some(running) = running.ok().filter(|running| running.pid == 0) else { continue };
            let Ok(stack) = self.of_vcpu(vcpu) else { continue };
            looks.took(&stack);
            let near = self.near(&stack);
            let kind = near.and_then(|near| near.waits_for()).map(|(kind, _)| kind);
            // The first processor's is in the list.
            let is_known = waits.found.iter().any(|wait| wait.task == running.address);
            if kind != Some(LockKind::Spinlock) || is_known {
                continue;
            }
            match self.spins_for(vcpu) {
                Some(lock) => {
                    waits.found.push(spinlock(running.address, lock));
                    waits.idle.push((running.address, running.comm));
                }
                None => waits.others += 1,
            }
        }
    }

    /// The innermost functions of a stack.
    fn near(&self, stack: &Stack) -> Option<Near> {
        let near = stack.frames.iter().take(NEAR);
        let name = |frame| {
            let place = self.location(frame).filter(|place| place.module.is_none());
            place.map(|place| place.symbol).unwrap_or_default()
        };
        let sps = stack.frames.iter().take(NEAR + 1).map(|frame| frame.sp).collect();
        (!stack.frames.is_empty()).then(|| Near { names: near.map(name).collect(), stack: sps })
    }

    /// The lock that a vCPU spins for: the only one that its registers have.
    fn spins_for(&self, vcpu: u32) -> Option<u64> {
        let file = self.view().machine.registers(vcpu, &[Bank::General]).ok()?;
        let is_waited_for = |address: &u64| {
            let word = self.find(|reader| reader.number(*address, 4).ok());
            word.and_then(|word| u32::try_from(word).ok()).is_some_and(lock::is_waited_for)
        };
        let mut found: Vec<u64> = file.iter().map(|(_, value)| value).filter(|at| at % 4 == 0).collect();
        found.sort_unstable();
        found.dedup();
        found.retain(is_waited_for);
        match found[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The variable that is at an address, of the kernel or of a module.
    pub fn variable(&self, address: u64) -> Option<Location> {
        let symbols = self.symbols();
        let text = symbols.address("_text").or_else(|| symbols.address("_stext"))?;
        if text.abs_diff(address) > MODULES_REACH {
            return None;
        }
        let named = |name: &str, offset, module| Location { symbol: name.into(), offset, module };
        let own = symbols.address("_end").filter(|end| (text..*end).contains(&address));
        if own.is_some() {
            let (symbol, _) = symbols.at(address)?;
            return Some(named(symbol.name, address - symbol.address, None));
        }
        self.modules().variable_at(address, |module, _, symbol, _| {
            named(symbol.name, address - symbol.address, Some(module.name.clone()))
        })
    }
}

/// Who spins for a spinlock, which does not tell who has it.
fn spinlock(task: u64, lock: u64) -> Wait {
    Wait { task, lock, kind: LockKind::Spinlock, holder: Holder::Untold, spins: true }
}
