//! Who waits for which lock: of the locks that one sleeps for, by what whoever sleeps has left on its own stack.
//!
//! A kernel keeps no list of its locks. Who sleeps for one is linked to it, though, by a waiter on its stack, which names
//! its task; so both are checked, the waiter by its task and the list by the lock at its head.
//!
//! Source: Linux, `kernel/locking/mutex.h` (`struct mutex_waiter`), `kernel/locking/mutex.c` and `rwsem.c` (what the
//! owner's lowest bits are), `kernel/locking/semaphore.c`, `include/asm-generic/qspinlock_types.h`.

use crate::reader::{NotThere, Reader};
use crate::types::{Field, Types};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What kind of lock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `struct mutex`.
    Mutex,
    /// `struct rw_semaphore`, by who wants to read.
    Read,
    /// The same, by who wants to write.
    Write,
    /// `struct semaphore`, which nobody owns.
    Semaphore,
    /// A spinlock, for which a processor waits.
    Spinlock,
}

impl LockKind {
    /// In words, what is waited for.
    pub fn words(self) -> &'static str {
        match self {
            LockKind::Mutex => "mutex",
            LockKind::Read => "rw_semaphore, to read,",
            LockKind::Write => "rw_semaphore, to write,",
            LockKind::Semaphore => "semaphore",
            LockKind::Spinlock => "spinlock",
        }
    }

    /// The lock that a function sleeps for, or spins for.
    pub fn of_function(name: &str) -> Option<LockKind> {
        const FUNCTIONS: &[(&str, LockKind)] = &[
            ("__mutex_lock", LockKind::Mutex),
            ("__ww_mutex_lock", LockKind::Mutex),
            ("rwsem_down_read_slowpath", LockKind::Read),
            ("rwsem_down_write_slowpath", LockKind::Write),
            ("__down", LockKind::Semaphore),
        ];
        if name.contains("queued_spin_lock_slowpath") {
            return Some(LockKind::Spinlock);
        }
        // A compiler may have made a function of a part of one, and added to its name: `.constprop.0`.
        let is_of = |begin: &str| {
            name.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
        };
        // `__down_read` and `__down_write` are of the others, which sleep in functions of their own.
        let is_other = name.starts_with("__down_read") || name.starts_with("__down_write");
        FUNCTIONS.iter().find(|(begin, _)| is_of(begin)).map(|(_, kind)| *kind).filter(|_| !is_other)
    }
}

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A task, by where its `struct task_struct` is.
    Task(u64),
    /// Readers, of whom the lock does not tell who they are.
    Readers,
    /// Nobody just now: it is about to be handed over.
    Nobody,
    /// The lock does not tell.
    Untold,
}

/// A task that waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Where the task's `struct task_struct` is.
    pub task: u64,
    /// Where the lock is.
    pub lock: u64,
    /// What it is.
    pub kind: LockKind,
    /// Who has it.
    pub holder: Holder,
}

/// How one kind of lock is made, and what waits for it.
#[derive(Clone, Copy, Debug)]
struct One {
    /// Of what waits: its link, and whose it is.
    link: Field,
    task: Field,
    /// Of the lock: the list of those, and who has it.
    list: Field,
    owner: Option<Field>,
}

impl One {
    fn new(types: &Types, waiter: &str, lock: &str) -> Option<One> {
        let field = |tag, path| types.field(types.tagged(tag)?, path);
        Some(One {
            link: field(waiter, "list")?,
            task: field(waiter, "task")?,
            list: field(lock, "wait_list")?,
            owner: field(lock, "owner"),
        })
    }
}

/// How a kernel's locks are made.
#[derive(Clone, Copy, Debug)]
pub struct LockLayout {
    mutex: Option<One>,
    read_write: Option<One>,
    semaphore: Option<One>,
    stack_size: u64,
}

/// Bytes of a kernel's stack, where its types do not say; of those that do, at most so many times as many.
const STACK: u64 = 16 << 10;
const MOST_STACKS: u64 = 8;
/// Who waits for one lock, at most, as far as it is looked at.
const MOST_WAITERS: usize = 1 << 16;
/// `MUTEX_FLAGS`.
const MUTEX_FLAGS: u64 = 7;
/// `RWSEM_READER_OWNED`, and all of an owner's bits that are none of its address: two, before 5.2 and from 5.8 on; three
/// between.
const READERS: u64 = 1;
const READ_WRITE_FLAGS: u64 = 7;

impl LockLayout {
    /// By the kernel's types. A kind of lock that these do not have is never found (a real-time kernel's mutexes are
    /// something else).
    pub fn new(types: &Types) -> LockLayout {
        let stack = types.tagged("thread_union").and_then(|id| types.size(id));
        LockLayout {
            mutex: One::new(types, "mutex_waiter", "mutex"),
            read_write: One::new(types, "rwsem_waiter", "rw_semaphore"),
            semaphore: One::new(types, "semaphore_waiter", "semaphore"),
            stack_size: stack.filter(|size| (1..=MOST_STACKS * STACK).contains(size)).unwrap_or(STACK),
        }
    }

    /// The stack that begins at an address.
    pub fn stack(&self, begin: u64) -> Range<u64> {
        begin..begin.saturating_add(self.stack_size)
    }

    /// What a task waits for that sleeps in a function of `kind`, with its stack in use from `sp` on. `stack_of` tells of
    /// any task where its stack is, by where its `struct task_struct` is; `None` for what is no task.
    pub fn wait(
        &self,
        task: u64,
        sp: u64,
        kind: LockKind,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        reader: &Reader<'_>,
    ) -> Option<Wait> {
        let one = match kind {
            LockKind::Mutex => self.mutex?,
            LockKind::Read | LockKind::Write => self.read_write?,
            LockKind::Semaphore => self.semaphore?,
            LockKind::Spinlock => return None,
        };
        let stack = stack_of(task)?;
        let sp = sp.checked_next_multiple_of(8)?.max(stack.start);
        let mut bytes = vec![0; usize::try_from(stack.end.checked_sub(sp)?).ok()?];
        let good = reader.some(sp, &mut bytes);
        let words = bytes[..good].chunks_exact(8).map(|word| {
            // A chunk has eight bytes.
            u64::from_le_bytes(word.try_into().unwrap_or_default())
        });
        // Somebody else's waiter may lie there from before: what is linked counts.
        (sp..).step_by(8).zip(words).filter(|(_, word)| *word == task).find_map(|(at, _)| {
            let waiter = at.wrapping_sub(one.task.at);
            let lock = self.lock(&one, waiter, stack_of, reader).ok().flatten()?;
            let holder = holder(kind, &one, lock, stack_of, reader)?;
            Some(Wait { task, lock, kind, holder })
        })
    }

    /// The lock that a waiter is linked to: what in the ring is on no task's stack.
    fn lock(
        &self,
        one: &One,
        waiter: u64,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        reader: &Reader<'_>,
    ) -> Result<Option<u64>, NotThere> {
        let is_waiter = |link: u64| {
            let of = reader.field(link.wrapping_sub(one.link.at), one.task);
            of.ok().and_then(stack_of).is_some_and(|stack| stack.contains(&link))
        };
        let first = waiter.wrapping_add(one.link.at);
        let (mut at, mut head) = (first, None);
        for _ in 0..MOST_WAITERS {
            let next = reader.address(at)?;
            if reader.address(next.wrapping_add(8))? != at {
                return Ok(None);
            }
            if next == first {
                return Ok(head.map(|head: u64| head.wrapping_sub(one.list.at)));
            }
            if !is_waiter(next) && head.replace(next).is_some() {
                return Ok(None);
            }
            at = next;
        }
        Ok(None)
    }
}

/// Who has a lock; `None` for what is none.
fn holder(
    kind: LockKind,
    one: &One,
    lock: u64,
    stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
    reader: &Reader<'_>,
) -> Option<Holder> {
    let Some(owner) = one.owner else { return Some(Holder::Untold) };
    let owner = reader.field(lock, owner).ok()?;
    let flags = match kind {
        LockKind::Mutex => MUTEX_FLAGS,
        LockKind::Read | LockKind::Write if owner & READERS != 0 => return Some(Holder::Readers),
        LockKind::Read | LockKind::Write => READ_WRITE_FLAGS,
        LockKind::Semaphore | LockKind::Spinlock => return Some(Holder::Untold),
    };
    match owner & !flags {
        0 => Some(Holder::Nobody),
        task => stack_of(task).map(|_| Holder::Task(task)),
    }
}

/// Whether a spinlock's word is one that this processor, of Linux's number, waits for: somebody has it, and it is the
/// last who has queued, or somebody waits first in line. For what `queued_spin_lock_slowpath` is about.
pub fn spins_for(word: u32, processor: u32) -> bool {
    let (is_locked, is_pending, tail) = (word & 0xff == 1, word >> 8 & 0xff == 1, word >> 18);
    is_locked && if tail == 0 { is_pending } else { tail == processor.saturating_add(1) }
}

/// The circles in who waits for whom: tasks, each of which waits for what the next one has, and the last for what the first
/// has.
pub fn circles(waits: &[Wait]) -> Vec<Vec<u64>> {
    let next: HashMap<u64, u64> = waits
        .iter()
        .filter_map(|wait| match wait.holder {
            Holder::Task(holder) => Some((wait.task, holder)),
            _ => None,
        })
        .collect();
    let (mut done, mut found) = (HashSet::new(), Vec::new());
    for wait in waits {
        let (mut way, mut at) = (Vec::new(), wait.task);
        while done.insert(at) {
            way.push(at);
            match next.get(&at) {
                Some(holder) => at = *holder,
                None => break,
            }
        }
        if next.contains_key(&at)
            && let Some(begin) = way.iter().position(|task| *task == at)
        {
            found.push(way.split_off(begin));
        }
    }
    found
}

#[cfg(test)]
mod tests;
