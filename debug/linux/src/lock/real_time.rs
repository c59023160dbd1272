//! Locks that lend priority: `rt_mutex`, as the kernel has it for programs' mutexes, and of which a real-time kernel
//! (`CONFIG_PREEMPT_RT`) makes all others that one sleeps for, spinlocks among them.
//!
//! A task says itself what it waits with (`pi_blocked_on`), and that of which lock. Both are checked: the waiter is on the
//! task's stack and names it, and the lock's tree has the waiter.
//!
//! Source: Linux, `kernel/locking/rtmutex_common.h` (`struct rt_mutex_waiter`, from 6.6 on with `struct rt_waiter_node`),
//! `include/linux/rtmutex.h` (until 5.14 `struct rt_mutex`), `kernel/locking/rwbase_rt.c`, `include/linux/rwbase_rt.h`
//! (`WRITER_BIAS`), `include/linux/rbtree_types.h`.

use super::{Holder, LockKind, Wait};
use crate::reader::Reader;
use crate::types::{Field, Types};
use std::ops::Range;

/// Nodes between one and the root of a tree, at most: one that deep would have more than there are addresses.
const MOST_DEEP: usize = 128;
/// What of a node's parent is its colour.
const COLOUR: u64 = 3;
/// `RT_MUTEX_HAS_WAITERS`.
const HAS_WAITERS: u64 = 1;
/// How many readers have a lock that a writer has.
const WRITER_BIAS: u64 = 1 << 30;

/// How a kernel has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RealTime {
    blocked_on: Field,
    node: Field,
    task: Field,
    lock: Field,
    parent: Field,
    left: Field,
    right: Field,
    root: Field,
    owner: Field,
    /// All other locks are made of it: where it is in them.
    made_of: Option<MadeOf>,
}

/// Where locks of a real-time kernel have what they are made of.
#[derive(Clone, Copy, Debug)]
struct MadeOf {
    mutex: u64,
    read_write: Option<OfReaders>,
    spinlock: Option<u64>,
    lock_of_readers: Option<OfReaders>,
}

/// The same of one that readers may have: how many have it, and what it is made of.
#[derive(Clone, Copy, Debug)]
struct OfReaders {
    readers: Field,
    base: u64,
}

impl RealTime {
    /// By the kernel's types.
    pub fn new(types: &Types) -> Option<RealTime> {
        let field = |tag, path| types.field(types.tagged(tag)?, path);
        let of_lock = |path| field("rt_mutex_base", path).or_else(|| field("rt_mutex", path));
        let waiter = |path| field("rt_mutex_waiter", path);
        let of_readers = |of| {
            let base = types.part(of, "rwbase.rtmutex")?.offset()?;
            Some(OfReaders { readers: types.field(of, "rwbase.readers")?, base })
        };
        let offset = |tag, path| types.part(types.tagged(tag)?, path)?.offset();
        Some(RealTime {
            blocked_on: field("task_struct", "pi_blocked_on")?,
            node: waiter("tree.entry").or_else(|| waiter("tree_entry"))?,
            task: waiter("task")?,
            lock: waiter("lock")?,
            parent: field("rb_node", "__rb_parent_color")?,
            left: field("rb_node", "rb_left")?,
            right: field("rb_node", "rb_right")?,
            root: of_lock("waiters.rb_root.rb_node")?,
            owner: of_lock("owner")?,
            made_of: offset("mutex", "rtmutex").map(|mutex| MadeOf {
                mutex,
                read_write: types.tagged("rw_semaphore").and_then(of_readers),
                spinlock: offset("spinlock", "lock"),
                lock_of_readers: types.named("rwlock_t").and_then(of_readers),
            }),
        })
    }

    /// Whether all locks are made of it.
    pub fn is_everywhere(&self) -> bool {
        self.made_of.is_some()
    }

    /// Where what a task waits with is; 0 of one that does not.
    pub fn blocked_on(&self, task: u64, reader: &Reader<'_>) -> Option<u64> {
        reader.field(task, self.blocked_on).ok()
    }

    /// What a task waits for, whose stack is in use from `sp` on. `kind` is by the functions that it is in.
    pub fn wait(
        &self,
        (task, sp): (u64, u64),
        kind: Option<LockKind>,
        stack_of: &dyn Fn(u64) -> Option<Range<u64>>,
        reader: &Reader<'_>,
    ) -> Option<Wait> {
        let waiter = self.blocked_on(task, reader)?;
        let is_own = waiter >= sp && stack_of(task)?.contains(&waiter) && waiter.is_multiple_of(8);
        let base = reader.field(waiter, self.lock).ok().filter(|_| is_own)?;
        (reader.field(waiter, self.task) == Ok(task)).then_some(())?;
        self.is_in_tree(base, waiter.wrapping_add(self.node.at), reader).then_some(())?;
        let (kind, lock, readers) = self.lock(kind, base);
        let readers = readers.map(|readers| reader.field(lock, readers)).transpose().ok()?;
        let holder = match reader.field(base, self.owner).ok()? & !HAS_WAITERS {
            // A writer that waits for the readers to go has what it is made of.
            _ if readers.is_some_and(|readers| readers & (WRITER_BIAS - 1) != 0) => Holder::Readers,
            0 => Holder::Nobody,
            owner if stack_of(owner).is_some() => Holder::Task(owner),
            owner => reader.address(owner).is_ok().then_some(Holder::Unknown(owner))?,
        };
        Some(Wait { task, lock, kind, holder, spins: false })
    }

    /// The lock that is made of this one, and where its readers are counted.
    fn lock(&self, kind: Option<LockKind>, base: u64) -> (LockKind, u64, Option<Field>) {
        let plain = (LockKind::RtMutex, base, None);
        let Some((made_of, kind)) = self.made_of.zip(kind) else { return plain };
        let found = match kind {
            LockKind::Mutex | LockKind::WoundWait => Some((made_of.mutex, None)),
            LockKind::Read | LockKind::Write => made_of.read_write.map(|it| (it.base, Some(it.readers))),
            LockKind::ReadLock | LockKind::WriteLock => {
                made_of.lock_of_readers.map(|it| (it.base, Some(it.readers)))
            }
            LockKind::SleepingSpinlock => made_of.spinlock.map(|at| (at, None)),
            LockKind::RtMutex | LockKind::Semaphore | LockKind::Spinlock => None,
        };
        found.map_or(plain, |(at, readers)| (kind, base.wrapping_sub(at), readers))
    }

    /// Whether a lock's tree has a node: each is what the one above it leads to.
    fn is_in_tree(&self, base: u64, node: u64, reader: &Reader<'_>) -> bool {
        let mut at = node;
        for _ in 0..MOST_DEEP {
            let parent = reader.field(at, self.parent).map(|word| word & !COLOUR);
            match parent {
                Ok(0) => return reader.field(base, self.root) == Ok(at),
                Ok(parent) => {
                    let leads = |side| reader.field(parent, side) == Ok(at);
                    if !leads(self.left) && !leads(self.right) {
                        return false;
                    }
                    at = parent;
                }
                Err(_) => return false,
            }
        }
        false
    }
}

impl LockKind {
    /// The lock that a function of a real-time kernel waits for.
    pub(super) fn of_real_time_function(name: &str) -> Option<LockKind> {
        const FUNCTIONS: &[(&str, LockKind)] = &[
            ("rt_spin_lock", LockKind::SleepingSpinlock),
            ("rt_read_lock", LockKind::ReadLock),
            ("rt_write_lock", LockKind::WriteLock),
            ("ww_mutex_lock", LockKind::WoundWait),
            ("mutex_lock", LockKind::Mutex),
            ("_mutex_lock", LockKind::Mutex),
            ("__mutex_lock", LockKind::Mutex),
            ("down_read", LockKind::Read),
            ("__down_read", LockKind::Read),
            ("down_write", LockKind::Write),
            ("__down_write", LockKind::Write),
        ];
        let is_of = |begin: &str| {
            name.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
        };
        FUNCTIONS.iter().find(|(begin, _)| is_of(begin)).map(|(_, kind)| *kind)
    }
}

#[cfg(test)]
mod tests;
