//! Who waits for which lock: of the locks that one sleeps for, by what whoever sleeps has left on its own stack.
//!
//! A kernel keeps no list of its locks. Who sleeps for one is linked to it, though, by a waiter on its stack, which names
//! its task; so both are checked, the waiter by its task and the list by the lock at its head. Who spins for one that others
//! sleep for, as its owner runs, is not linked to it, but has it in its registers or on its stack.
//!
//! Source: Linux, `kernel/locking/mutex.h` (`struct mutex_waiter`), `kernel/locking/mutex.c` and `rwsem.c` (what the
//! owner's lowest bits are), `kernel/locking/semaphore.c`, `include/asm-generic/qspinlock_types.h`.

mod real_time;

use crate::reader::Reader;
use crate::types::{Field, Types};
use real_time::RealTime;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What kind of lock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `struct mutex`.
    Mutex,
    /// `struct ww_mutex`, which the kernel takes in any order: circles are broken by it.
    WoundWait,
    /// `struct rw_semaphore`, by who wants to read.
    Read,
    /// The same, by who wants to write.
    Write,
    /// `struct semaphore`, which nobody owns.
    Semaphore,
    /// A spinlock, for which a processor waits.
    Spinlock,
    /// `struct rt_mutex`.
    RtMutex,
    /// A spinlock of a real-time kernel's, for which one sleeps.
    SleepingSpinlock,
    /// `rwlock_t` of a real-time kernel's, by who wants to read.
    ReadLock,
    /// The same, by who wants to write.
    WriteLock,
}

impl LockKind {
    /// In words, what is waited for.
    pub fn words(self) -> &'static str {
        match self {
            LockKind::Mutex => "mutex",
            LockKind::WoundWait => "ww_mutex",
            LockKind::Read => "rw_semaphore, to read,",
            LockKind::Write => "rw_semaphore, to write,",
            LockKind::Semaphore => "semaphore",
            LockKind::Spinlock | LockKind::SleepingSpinlock => "spinlock",
            LockKind::RtMutex => "rt_mutex",
            LockKind::ReadLock => "rwlock, to read,",
            LockKind::WriteLock => "rwlock, to write,",
        }
    }

    /// Whether a function spins for a lock that others sleep for, as long as its owner runs: one that is called by those
    /// that sleep.
    pub fn is_spun_for_in(name: &str) -> bool {
        let name = name.split('.').next().unwrap_or_default();
        ["mutex_spin_on_owner", "rwsem_spin_on_owner", "rwsem_optimistic_spin", "osq_lock"].contains(&name)
    }

    /// The lock that a function sleeps for, or spins for.
    pub fn of_function(name: &str) -> Option<LockKind> {
        const FUNCTIONS: &[(&str, LockKind)] = &[
            ("__mutex_lock", LockKind::Mutex),
            ("__ww_mutex_lock", LockKind::WoundWait),
            ("rwsem_down_read_slowpath", LockKind::Read),
            ("rwsem_down_write_slowpath", LockKind::Write),
            // Until 5.2.
            ("rwsem_down_read_failed", LockKind::Read),
            ("__rwsem_down_read_failed_common", LockKind::Read),
            ("rwsem_down_write_failed", LockKind::Write),
            ("__rwsem_down_write_failed_common", LockKind::Write),
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
    /// Somebody who is no task that is known, where one's `struct task_struct` would be: one that has ended, or a list of
    /// tasks is not whole.
    Unknown(u64),
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
    /// It does not sleep, but is on a processor and spins.
    pub spins: bool,
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
    /// Of a read-write semaphore: how many have it.
    count: Option<Field>,
    /// The queue of those that spin for it.
    queue: Option<Field>,
}

impl One {
    fn new(types: &Types, waiter: &str, lock: &str) -> Option<One> {
        let field = |tag, path| types.field(types.tagged(tag)?, path);
        Some(One {
            link: field(waiter, "list")?,
            task: field(waiter, "task")?,
            list: field(lock, "wait_list")?,
            owner: field(lock, "owner"),
            count: field(lock, "count"),
            queue: field(lock, "osq"),
        })
    }
}

/// How a kernel's locks are made.
#[derive(Clone, Copy, Debug)]
pub struct LockLayout {
    mutex: Option<One>,
    read_write: Option<One>,
    semaphore: Option<One>,
    real_time: Option<RealTime>,
    stack_size: u64,
}

/// Bytes of a kernel's stack, where its types do not say; of those that do, at most so many times as many.
const STACK: u64 = 16 << 10;
const MOST_STACKS: u64 = 8;
/// Links that are looked at for all locks, at most.
const MOST_WAITERS: usize = 1 << 18;
/// `MUTEX_FLAGS`, and of these `MUTEX_FLAG_PICKUP`: it was handed over, and whoever it is for has not been woken.
const MUTEX_FLAGS: u64 = 7;
const MUTEX_PICKUP: u64 = 4;
/// Of a read-write semaphore's count, from 5.3 on: what is below the readers.
const BELOW_READERS: u64 = 0xff;
/// `RWSEM_ACTIVE_MASK`, before 5.3.
const ACTIVE_MASK: u64 = 0xffff_ffff;
/// `RWSEM_READER_OWNED`, and all of an owner's bits that are none of its address: two, before 5.2 and from 5.8 on; three
/// between.
const READERS: u64 = 1;
/// `RWSEM_OWNER_UNKNOWN`, -1 and later -2: somebody has it who has gone on without it, as one that freezes a file system.
const OWNERS_UNKNOWN: [u64; 2] = [u64::MAX, u64::MAX - 1];
const READ_WRITE_FLAGS: u64 = 7;

impl LockLayout {
    /// By the kernel's types. A kind of lock that these do not have is never found.
    pub fn new(types: &Types) -> LockLayout {
        let stack = types.tagged("thread_union").and_then(|id| types.size(id));
        LockLayout {
            mutex: One::new(types, "mutex_waiter", "mutex"),
            read_write: One::new(types, "rwsem_waiter", "rw_semaphore"),
            semaphore: One::new(types, "semaphore_waiter", "semaphore"),
            real_time: RealTime::new(types),
            stack_size: stack.filter(|size| (1..=MOST_STACKS * STACK).contains(size)).unwrap_or(STACK),
        }
    }

    /// The stack that begins at an address.
    pub fn stack(&self, begin: u64) -> Range<u64> {
        begin..begin.saturating_add(self.stack_size)
    }

    /// What a task waits for that sleeps in a function of `kind`, with its stack in use from `sp` on. `stack_of` tells of
    /// any task where its stack is, by where its `struct task_struct` is; `None` for what is no task. What was found before
    /// is in `seen`, which is to be of the same moment.
    pub fn wait(
        &self,
        (task, sp): (u64, u64),
        kind: LockKind,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        seen: &mut Seen,
        reader: &Reader<'_>,
    ) -> Option<Wait> {
        let one = match kind {
            LockKind::Mutex | LockKind::WoundWait => self.mutex?,
            LockKind::Read | LockKind::Write => self.read_write?,
            LockKind::Semaphore => self.semaphore?,
            _ => return None,
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
            let lock = seen.lock(&one, waiter, stack_of, reader)?;
            let holder = holder(kind, &one, lock, stack_of, reader)?;
            Some(Wait { task, lock, kind, holder, spins: false })
        })
    }

    /// Whether a task says itself that it waits for a lock that lends priority, as those of real-time kernels do.
    pub fn is_blocked(&self, task: u64, reader: &Reader<'_>) -> bool {
        let waiter = self.real_time.and_then(|it| it.blocked_on(task, reader));
        waiter.is_some_and(|waiter| waiter != 0)
    }

    /// What such a task waits for, of which the stack is in use from `sp` on. `functions` are those that it is in, the
    /// innermost first, and `stack_of` is as for [`Self::wait`].
    pub fn blocked<'a>(
        &self,
        (task, sp): (u64, u64),
        functions: impl Iterator<Item = &'a str>,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        reader: &Reader<'_>,
    ) -> Option<Wait> {
        let kind = functions.filter_map(LockKind::of_real_time_function).next();
        self.real_time?.wait((task, sp), kind, stack_of, reader)
    }

    /// Whether a task waits in one of these functions for the readers of a real-time kernel's lock to go, of which nothing
    /// tells which lock that is.
    pub fn waits_for_readers<'a>(&self, mut functions: impl Iterator<Item = &'a str>) -> bool {
        let is_writer = |name: &str| {
            let kind = LockKind::of_real_time_function(name);
            matches!(kind, Some(LockKind::Write | LockKind::WriteLock))
                || name.starts_with("rwbase_write_lock")
        };
        self.real_time.is_some_and(|it| it.is_everywhere()) && functions.any(is_writer)
    }

    /// What a task spins for that is on a processor, in a function that sleeps for locks of `kind`: the only one of `words`,
    /// what is in registers and on its stack, at which there is such a lock that a running task has, or readers, and for which
    /// somebody spins. `runs` tells whether a task is on a processor, by where its `struct task_struct` is.
    pub fn spun_for(
        &self,
        task: u64,
        kind: LockKind,
        words: &[u64],
        runs: &dyn Fn(u64) -> bool,
        reader: &Reader<'_>,
    ) -> Option<Wait> {
        let (one, flags, readers) = match kind {
            LockKind::Mutex | LockKind::WoundWait => (self.mutex?, MUTEX_FLAGS, 0),
            LockKind::Read | LockKind::Write => (self.read_write?, READ_WRITE_FLAGS, READERS),
            _ => return None,
        };
        let (owner, queue) = (one.owner?, one.queue?);
        let is_linked = |list: u64| {
            // Those that sleep for it, if any do.
            let leads = |there: u64, back: u64| {
                reader.address(there).and_then(|next| reader.address(next.wrapping_add(back)))
            };
            leads(list, 8) == Ok(list) && leads(list.wrapping_add(8), 0) == Ok(list)
        };
        let holder = |lock: &u64| {
            let (lock, word) = (*lock, reader.field(*lock, owner).ok()?);
            // Of several readers it has the last one that came, which may be gone, be the one that waits, or have ended.
            let (is_readers, owner) = (word & readers != 0, word & !flags);
            let is_owner = is_readers || owner != task && runs(owner);
            let is_one = is_owner && reader.field(lock, queue).ok()? != 0;
            let holder = if is_readers { Holder::Readers } else { Holder::Task(owner) };
            (is_one && is_linked(lock.wrapping_add(one.list.at))).then_some((lock, holder))
        };
        let mut places: Vec<u64> = words.iter().copied().filter(|word| word.is_multiple_of(8)).collect();
        places.sort_unstable();
        places.dedup();
        let mut found = places.iter().filter_map(holder);
        match (found.next(), found.next()) {
            (Some((lock, holder)), None) => Some(Wait { task, lock, kind, holder, spins: true }),
            _ => None,
        }
    }
}

/// What has been found of locks: to which each waiter is linked, and how much was looked at for that. Many wait for one, and
/// memory may lie.
#[derive(Clone, Debug)]
pub struct Seen {
    locks: HashMap<u64, Option<u64>>,
    left: usize,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { locks: HashMap::new(), left: MOST_WAITERS }
    }
}

impl Seen {
    /// Whether there was too much to look at.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The lock that a waiter is linked to: what in the ring is on no task's stack.
    fn lock(
        &mut self,
        one: &One,
        waiter: u64,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        reader: &Reader<'_>,
    ) -> Option<u64> {
        let first = waiter.wrapping_add(one.link.at);
        if let Some(known) = self.locks.get(&first) {
            return *known;
        }
        let (mut ring, mut heads) = (Vec::new(), Vec::new());
        let is_whole = self.walk(first, reader, |link| {
            let of = reader.field(link.wrapping_sub(one.link.at), one.task);
            match of.ok().and_then(stack_of).is_some_and(|stack| stack.contains(&link)) {
                true => ring.push(link),
                false => heads.push(link),
            }
        });
        let lock = match heads[..] {
            [head] if is_whole => Some(head.wrapping_sub(one.list.at)),
            _ => None,
        };
        self.locks.extend(ring.into_iter().map(|link| (link, lock)));
        self.locks.insert(first, lock);
        lock
    }

    /// Goes round a ring; whether it is one.
    fn walk(&mut self, first: u64, reader: &Reader<'_>, mut visit: impl FnMut(u64)) -> bool {
        let mut at = first;
        while let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            visit(at);
            let Ok(next) = reader.address(at) else { return false };
            if reader.address(next.wrapping_add(8)) != Ok(at) {
                return false;
            }
            if next == first {
                return true;
            }
            at = next;
        }
        false
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
    if matches!(kind, LockKind::Read | LockKind::Write) && OWNERS_UNKNOWN.contains(&owner) {
        return Some(Holder::Untold);
    }
    let has_readers = || {
        match one.count.and_then(|count| reader.field(lock, count).ok()) {
            // Before 5.3 it is negative where somebody waits, and who has it is counted in the lower half.
            Some(count) if count >> 63 != 0 => (count & ACTIVE_MASK != 0).then_some(true),
            Some(count) => Some(count & !BELOW_READERS != 0),
            None => Some(true),
        }
    };
    let flags = match kind {
        LockKind::Mutex | LockKind::WoundWait if owner & MUTEX_PICKUP != 0 => return Some(Holder::Nobody),
        LockKind::Mutex | LockKind::WoundWait => MUTEX_FLAGS,
        // The last reader's mark stays when that has gone.
        LockKind::Read | LockKind::Write if owner & READERS != 0 => {
            return Some(match has_readers() {
                Some(true) => Holder::Readers,
                Some(false) => Holder::Nobody,
                None => Holder::Untold,
            });
        }
        LockKind::Read | LockKind::Write => READ_WRITE_FLAGS,
        _ => return Some(Holder::Untold),
    };
    match owner & !flags {
        0 => Some(Holder::Nobody),
        task if stack_of(task).is_some() => Some(Holder::Task(task)),
        // A word that leads nowhere is no owner, and this no lock.
        task => reader.address(task).is_ok().then_some(Holder::Unknown(task)),
    }
}

/// `_Q_LOCKED_VAL`, and `_Q_SLOW_VAL` of a kernel that knows that its processors are virtual, where whoever is first in line
/// has halted (`kernel/locking/qspinlock_paravirt.h`).
const LOCKED: u32 = 1;
const SLOW: u32 = 3;

/// Whether a spinlock's word is one that processors wait for: somebody has it, and others wait, first in line or in the
/// queue behind.
pub fn is_waited_for(word: u32) -> bool {
    matches!(word & 0xff, LOCKED | SLOW) && word & !0xff != 0
}

/// The circles in who waits for whom: tasks, each of which waits for what the next one has, and the last for what the first
/// has.
pub fn circles(waits: &[Wait]) -> Vec<Vec<u64>> {
    let next: HashMap<u64, u64> = waits
        .iter()
        .filter_map(|wait| match wait.holder {
            _ if wait.kind == LockKind::WoundWait => None,
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
