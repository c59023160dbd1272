//! Who waits for which lock of the guest's Linux kernel: tasks that sleep, and processors that spin.

use super::stack::{Location, Stacks};
use crate::linux::lock::{self, Holder, LockKind, LockLayout, Seen, Wait};
use crate::linux::module::Module;
use crate::linux::task::{Task, TaskState};
use arch::register::Bank;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

/// Frames from the innermost on among which the function is that puts to sleep for a lock.
const NEAR: usize = 12;
/// How far from the kernel's code modules and their data are, bytes at most (x86: the last 2 GiB; aarch64: 2 GiB around
/// the kernel).
const MODULES_REACH: u64 = 2 << 30;

/// Who waits for which lock, and who is about to and of whom that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Those that were found.
    pub found: Vec<Wait>,
    /// How many more are in functions that wait for locks.
    pub others: usize,
    /// There was too much to look at.
    pub is_cut: bool,
}

impl Stacks<'_> {
    /// Who of some tasks waits for which lock. In memory that lies, not more than it says. What a spinning processor waits
    /// for is told where one of its registers has a lock's address.
    pub fn waits(&self, tasks: &[Task]) -> Waits {
        let layout = LockLayout::new(self.types());
        let stacks: HashMap<u64, Range<u64>> = tasks
            .iter()
            .filter_map(|task| {
                let begin = self.of_task_struct(task, "stack").ok().filter(|begin| *begin != 0)?;
                Some((task.address, layout.stack(begin)))
            })
            .collect();
        let (stack_of, seen) = (|task: u64| stacks.get(&task).cloned(), RefCell::new(Seen::default()));
        let mut waits = Waits::default();
        for task in tasks.iter().take_while(|_| self.view().cancel.check().is_ok()) {
            let Some((kind, sp)) = self.lock_function(task) else { continue };
            let wait = match kind {
                LockKind::Spinlock => task.cpu.and_then(|cpu| self.spins_for(cpu)).map(|lock| Wait {
                    task: task.address,
                    lock,
                    kind,
                    holder: Holder::Untold,
                }),
                _ => self.find(|reader| {
                    layout.wait((task.address, sp), kind, &stack_of, &mut seen.borrow_mut(), reader)
                }),
            };
            match wait {
                Some(wait) => waits.found.push(wait),
                None => waits.others += 1,
            }
        }
        waits.is_cut = seen.borrow().is_full();
        waits
    }

    /// The kind of lock that a task waits for by the functions that it is in, and its stack pointer.
    fn lock_function(&self, task: &Task) -> Option<(LockKind, u64)> {
        let is_on = task.is_on_cpu == Some(true);
        if !is_on && matches!(task.state, TaskState::Running | TaskState::New | TaskState::Zombie) {
            return None;
        }
        let stack = self.of_task(task).ok()?;
        let near = stack.frames.iter().take(NEAR);
        let kind = near
            .filter_map(|frame| self.location(frame))
            .find_map(|place| LockKind::of_function(&place.symbol).filter(|_| place.module.is_none()))?;
        // One that is on a processor spins, or is about to sleep, or was woken.
        (is_on == (kind == LockKind::Spinlock)).then_some((kind, stack.frames.first()?.sp))
    }

    /// The lock that a vCPU of Linux's number spins for: the only one that its registers have.
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
        let nearest = |module: &Module| {
            let symbols = self.modules().symbols(module)?;
            let (symbol, size) = symbols.at(address)?;
            let offset = address - symbol.address;
            (offset < size.min(module.size)).then(|| named(symbol.name, offset, Some(module.name.clone())))
        };
        self.modules().all().iter().filter_map(nearest).min_by_key(|place| place.offset)
    }
}
