//! Locks in memory made here.

use super::*;
use crate::made::{self, BASE, INT, LIST, Made, POINTER, compound};
use crate::types::{Shape, TypeId};

fn types() -> Types {
    let mut types = made::types();
    let waiter = [("list", LIST, 0), ("task", POINTER, 16)];
    for name in ["mutex_waiter", "rwsem_waiter", "semaphore_waiter"] {
        compound(&mut types, name, 24, &waiter);
    }
    compound(
        &mut types,
        "mutex",
        32,
        &[("owner", POINTER, 0), ("wait_lock", INT, 8), ("wait_list", LIST, 16)],
    );
    let members =
        [("count", POINTER, 0), ("owner", POINTER, 8), ("wait_lock", INT, 16), ("wait_list", LIST, 24)];
    compound(&mut types, "rw_semaphore", 40, &members);
    compound(&mut types, "semaphore", 24, &[("count", INT, 4), ("wait_list", LIST, 8)]);
    types.add("", Shape::Array(TypeId(POINTER), 0x80));
    let stack = u32::try_from(types.count() - 1).unwrap();
    compound(&mut types, "thread_union", 0x400, &[("stack", stack, 0)]);
    types
}

/// Stacks, one behind the other, of tasks that are in front of them; behind all, locks.
const STACK: u64 = 0x400;
const TASKS: u64 = 4;
const LOCKS: u64 = BASE + 0x4000;

fn task(number: u64) -> u64 {
    BASE + number * 0x40
}

fn stack_of(task: u64) -> Option<Range<u64>> {
    let number = task.checked_sub(BASE).filter(|at| at % 0x40 == 0)? / 0x40;
    let begin = BASE + 0x1000 + number * STACK;
    (number < TASKS).then(|| begin..begin + STACK)
}

/// Where a task's waiter is, of which the list is first.
fn waiter(number: u64) -> u64 {
    stack_of(task(number)).unwrap().start + 0x300
}

struct Kernel(Made);

impl Kernel {
    fn new() -> Kernel {
        Kernel(Made::new(0x8000))
    }

    /// Some tasks wait for a lock, whose list is at `list`.
    fn wait(&self, list: u64, tasks: &[u64]) {
        tasks.iter().for_each(|number| self.0.put(waiter(*number) + 16, task(*number)));
        let nodes: Vec<u64> = std::iter::once(list).chain(tasks.iter().map(|it| waiter(*it))).collect();
        self.0.ring(&nodes);
    }

    fn find(&self, number: u64, kind: LockKind) -> Option<Wait> {
        let read = self.0.read();
        let sp = stack_of(task(number)).unwrap().start + 0x100;
        let reader = Reader::new(&read);
        LockLayout::new(&types()).wait((task(number), sp), kind, &stack_of, &mut Seen::default(), &reader)
    }
}

#[test]
fn a_mutex_is_found_by_its_waiters_and_tells_its_owner() {
    let kernel = Kernel::new();
    kernel.wait(LOCKS + 16, &[1, 2, 3]);
    // The waiters' flag, and behind the lock another's owner, as if the head were a waiter.
    kernel.0.put(LOCKS, task(0) | 1);
    kernel.0.put(LOCKS + 32, task(2));
    for number in [1, 2, 3] {
        let wanted = Wait {
            task: task(number),
            lock: LOCKS,
            kind: LockKind::Mutex,
            holder: Holder::Task(task(0)),
            spins: false,
        };
        assert_eq!(kernel.find(number, LockKind::Mutex), Some(wanted));
    }
    assert_eq!(kernel.find(0, LockKind::Mutex), None);
    // Handed over to who waits, and has not been woken yet: that is no deadlock.
    for word in [4, task(1) | 5] {
        kernel.0.put(LOCKS, word);
        assert_eq!(kernel.find(1, LockKind::Mutex).unwrap().holder, Holder::Nobody);
    }
    kernel.0.put(LOCKS, task(1) | 1);
    assert_eq!(circles(&[kernel.find(1, LockKind::Mutex).unwrap()]), [vec![task(1)]]);
    assert_eq!(circles(&[kernel.find(1, LockKind::WoundWait).unwrap()]), [] as [Vec<u64>; 0]);
    // One that is in no list of tasks is told of; a word that leads nowhere is no mutex's.
    kernel.0.put(LOCKS, LOCKS + 0x800);
    assert_eq!(kernel.find(1, LockKind::Mutex).unwrap().holder, Holder::Unknown(LOCKS + 0x800));
    kernel.0.put(LOCKS, 0x1234_5670);
    assert_eq!(kernel.find(1, LockKind::Mutex), None);
}

#[test]
fn who_reads_is_not_told_and_who_writes_is() {
    let kernel = Kernel::new();
    kernel.wait(LOCKS + 24, &[1]);
    kernel.0.put(LOCKS + 8, task(3));
    assert_eq!(kernel.find(1, LockKind::Read).unwrap().holder, Holder::Task(task(3)));
    kernel.0.put(LOCKS + 8, task(3) | 1);
    kernel.0.put(LOCKS, 0x102);
    assert_eq!(kernel.find(1, LockKind::Write).unwrap().holder, Holder::Readers);
    // The last of them has gone, and left its mark.
    kernel.0.put(LOCKS, 2);
    assert_eq!(kernel.find(1, LockKind::Write).unwrap().holder, Holder::Nobody);
    // Before 5.3: two readers and who waits; and only that.
    for (count, expected) in
        [(0xffff_ffff_0000_0002, Holder::Readers), (0xffff_ffff_0000_0000, Holder::Untold)]
    {
        kernel.0.put(LOCKS, count);
        assert_eq!(kernel.find(1, LockKind::Write).unwrap().holder, expected);
    }
    for unknown in [u64::MAX, u64::MAX - 1] {
        kernel.0.put(LOCKS + 8, unknown);
        assert_eq!(kernel.find(1, LockKind::Write).unwrap().holder, Holder::Untold);
    }
    kernel.wait(LOCKS + 0x108, &[2]);
    let wanted = Wait {
        task: task(2),
        lock: LOCKS + 0x100,
        kind: LockKind::Semaphore,
        holder: Holder::Untold,
        spins: false,
    };
    assert_eq!(kernel.find(2, LockKind::Semaphore), Some(wanted));
}

/// What a stack has from before, and lists that lie.
#[test]
fn what_is_not_linked_both_ways_is_no_waiter() {
    let kernel = Kernel::new();
    kernel.wait(LOCKS + 16, &[1]);
    kernel.0.put(LOCKS, task(0));
    // One that has its own address where a task would be, in front of the real one.
    kernel.0.put(waiter(1) - 0x80 + 16, task(1));
    assert_eq!(kernel.find(1, LockKind::Mutex).unwrap().lock, LOCKS);
    // Nothing is at the head, or two.
    let (one, two) = (LOCKS + 16, LOCKS + 0x116);
    kernel.0.ring(&[one, waiter(1), two]);
    assert_eq!(kernel.find(1, LockKind::Mutex), None);
    kernel.0.put(waiter(2) + 16, task(2));
    kernel.0.ring(&[waiter(1), waiter(2)]);
    assert_eq!(kernel.find(1, LockKind::Mutex), None);
    // It leads out of memory; and round without its beginning.
    kernel.0.put(waiter(1), 0x10);
    assert_eq!(kernel.find(1, LockKind::Mutex), None);
    kernel.wait(LOCKS + 16, &[1, 2]);
    kernel.0.put(waiter(2), waiter(2));
    kernel.0.put(waiter(2) + 8, waiter(2));
    assert_eq!(kernel.find(1, LockKind::Mutex), None);
    // Types that have none of it.
    let read = kernel.0.read();
    let none = LockLayout::new(&made::types());
    let mut seen = Seen::default();
    assert_eq!(none.wait((task(1), BASE), LockKind::Mutex, &stack_of, &mut seen, &Reader::new(&read)), None);
}

#[test]
fn a_ring_is_gone_round_once_however_many_wait_in_it() {
    let kernel = Kernel::new();
    kernel.wait(LOCKS + 16, &[1, 2, 3]);
    kernel.0.put(LOCKS, task(0) | 1);
    let (read, layout, mut seen) = (kernel.0.read(), LockLayout::new(&types()), Seen::default());
    for number in [1, 2, 3, 1] {
        let sp = stack_of(task(number)).unwrap().start;
        let found =
            layout.wait((task(number), sp), LockKind::Mutex, &stack_of, &mut seen, &Reader::new(&read));
        assert!(found.is_some());
    }
    assert_eq!((seen.left, seen.is_full()), (MOST_WAITERS - 4, false));
    let sp = stack_of(task(1)).unwrap().start;
    let mut full = Seen { left: 2, ..Seen::default() };
    let found = layout.wait((task(1), sp), LockKind::Mutex, &stack_of, &mut full, &Reader::new(&read));
    assert_eq!((found, full.is_full()), (None, true));
}

#[test]
fn functions_tell_what_is_waited_for() {
    for (name, kind) in [
        ("__mutex_lock.constprop.0", Some(LockKind::Mutex)),
        ("__mutex_lock_slowpath", Some(LockKind::Mutex)),
        ("__ww_mutex_lock.constprop.0", Some(LockKind::WoundWait)),
        ("rwsem_down_read_slowpath", Some(LockKind::Read)),
        ("rwsem_down_write_slowpath", Some(LockKind::Write)),
        ("rwsem_down_read_failed_killable", Some(LockKind::Read)),
        ("rwsem_down_write_failed", Some(LockKind::Write)),
        ("__rwsem_down_write_failed_common", Some(LockKind::Write)),
        ("call_rwsem_down_write_failed", None),
        ("__down_common", Some(LockKind::Semaphore)),
        ("__down", Some(LockKind::Semaphore)),
        ("__down_read", None),
        ("native_queued_spin_lock_slowpath", Some(LockKind::Spinlock)),
        ("__mutex_locked", None),
        ("schedule", None),
    ] {
        assert_eq!(LockKind::of_function(name), kind, "{name}");
    }
}

#[test]
fn a_spinlocks_word_tells_who_waits() {
    for waited in [0x0101, 6 << 18 | 1, 6 << 18 | 0x0101, 6 << 18 | 3] {
        assert!(is_waited_for(waited), "{waited:#x}");
    }
    for other in [0, 1, 3, 0x100, 6 << 18, 6 << 18 | 0x0100, 0x0102, 6 << 18 | 2] {
        assert!(!is_waited_for(other), "{other:#x}");
    }
}

#[test]
fn circles_are_found_once() {
    let wait = |task, holder| Wait { task, lock: 0, kind: LockKind::Mutex, holder, spins: false };
    let to = Holder::Task;
    assert_eq!(circles(&[]), [] as [Vec<u64>; 0]);
    assert_eq!(circles(&[wait(1, to(2)), wait(2, to(3)), wait(4, Holder::Readers)]), [] as [Vec<u64>; 0]);
    // 1 leads to a circle that it is no part of.
    let waits = [wait(1, to(2)), wait(2, to(3)), wait(3, to(2)), wait(5, to(5)), wait(6, to(1))];
    assert_eq!(circles(&waits), [vec![2, 3], vec![5]]);
}

/// Types in which locks have a queue of those that spin.
fn types_with_queues() -> Types {
    let mut types = made::types();
    compound(&mut types, "mutex_waiter", 24, &[("list", LIST, 0), ("task", POINTER, 16)]);
    let members = [("owner", POINTER, 0), ("wait_lock", INT, 8), ("osq", INT, 12), ("wait_list", LIST, 16)];
    compound(&mut types, "mutex", 32, &members);
    types
}

#[test]
fn a_spinner_has_the_lock_of_a_running_task() {
    let kernel = Kernel::new();
    let lock = |number: u64, owner: u64, queue: u64| {
        let at = LOCKS + 0x40 * number;
        kernel.0.put(at, owner);
        kernel.0.put(at + 8, queue << 32);
        kernel.0.ring(&[at + 16]);
        at
    };
    let (good, own, asleep) = (lock(0, task(0) | 1, 1), lock(1, task(1), 1), lock(2, task(2), 1));
    let (no_queue, no_owner, torn) = (lock(3, task(0), 0), lock(4, 0, 1), lock(5, task(0), 1));
    kernel.0.put(torn + 24, 0x1000);
    let second = lock(6, task(0), 1);
    let spun_for = |kind, words: &[u64]| {
        let read = kernel.0.read();
        let runs = |it: u64| [task(0), task(1)].contains(&it);
        let layout = LockLayout::new(&types_with_queues());
        layout.spun_for(task(1), kind, words, &runs, &Reader::new(&read))
    };
    let words = [0, good, own, asleep, no_queue, no_owner, torn, good, 0x1000, good + 1];
    let expected =
        Wait { task: task(1), lock: good, kind: LockKind::Mutex, holder: Holder::Task(task(0)), spins: true };
    assert_eq!(spun_for(LockKind::Mutex, &words), Some(expected));
    // Which of two is not known; and these types have no others.
    assert_eq!(spun_for(LockKind::Mutex, &[good, second]), None);
    assert_eq!(spun_for(LockKind::Mutex, &[own, asleep, no_queue]), None);
    assert_eq!(spun_for(LockKind::Write, &words), None);
    assert_eq!(spun_for(LockKind::Semaphore, &words), None);
    // Others that sleep for it are linked.
    kernel.wait(good + 16, &[2, 3]);
    assert_eq!(spun_for(LockKind::Mutex, &words), Some(expected));
}

/// A read-write semaphore that readers have names one that may be gone: it is no owner, even if it runs.
#[test]
fn a_spinner_that_readers_keep_waits_for_no_task() {
    let kernel = Kernel::new();
    let mut types = made::types();
    compound(&mut types, "rwsem_waiter", 24, &[("list", LIST, 0), ("task", POINTER, 16)]);
    let members = [("owner", POINTER, 0), ("osq", INT, 12), ("wait_list", LIST, 16), ("count", POINTER, 32)];
    compound(&mut types, "rw_semaphore", 40, &members);
    let layout = LockLayout::new(&types);
    kernel.0.put(LOCKS + 8, 1 << 32);
    kernel.0.ring(&[LOCKS + 16]);
    let holder = |owner: u64| {
        kernel.0.put(LOCKS, owner);
        let (read, runs) = (kernel.0.read(), |it: u64| [task(0), task(1)].contains(&it));
        let wait = layout.spun_for(task(1), LockKind::Write, &[LOCKS], &runs, &Reader::new(&read));
        wait.map(|wait| wait.holder)
    };
    assert_eq!(holder(task(0)), Some(Holder::Task(task(0))));
    assert_eq!(holder(task(0) | 1), Some(Holder::Readers));
    // Its own mark, from when it had it to read; and nobody's.
    assert_eq!([holder(task(1) | 1), holder(1)], [Some(Holder::Readers); 2]);
    assert_eq!(holder(task(1)), None);
}

#[test]
fn functions_spin_before_they_sleep() {
    for name in ["mutex_spin_on_owner", "osq_lock", "rwsem_spin_on_owner.part.0", "rwsem_optimistic_spin"] {
        assert!(LockKind::is_spun_for_in(name), "{name}");
    }
    for name in ["__mutex_lock", "osq_locked", "", "schedule"] {
        assert!(!LockKind::is_spun_for_in(name), "{name}");
    }
}
