//! Such locks in memory made here.

use super::*;
use crate::lock::LockLayout;
use crate::made::{self, BASE, INT, Made, POINTER, compound};

/// What types a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// As until 5.14.
    Old,
    /// As from 6.6 on.
    New,
    /// The same for real time.
    RealTime,
}

fn types(kernel: Kernel) -> Types {
    let mut types = made::types();
    let node = [("__rb_parent_color", POINTER, 0), ("rb_right", POINTER, 8), ("rb_left", POINTER, 16)];
    compound(&mut types, "rb_node", 24, &node); // 5
    compound(&mut types, "rb_root", 8, &[("rb_node", POINTER, 0)]); // 6
    compound(&mut types, "rb_root_cached", 16, &[("rb_root", 6, 0), ("rb_leftmost", POINTER, 8)]); // 7
    let lock = if kernel == Kernel::Old { "rt_mutex" } else { "rt_mutex_base" };
    compound(&mut types, lock, 32, &[("wait_lock", INT, 0), ("waiters", 7, 8), ("owner", POINTER, 24)]); // 8
    compound(&mut types, "rt_waiter_node", 40, &[("entry", 5, 0), ("prio", INT, 24)]); // 9
    let (name, of) = if kernel == Kernel::Old { ("tree_entry", 5) } else { ("tree", 9) };
    compound(
        &mut types,
        "rt_mutex_waiter",
        96,
        &[(name, of, 0), ("task", POINTER, 80), ("lock", POINTER, 88)],
    ); // 10
    compound(&mut types, "task_struct", 64, &[("pi_blocked_on", POINTER, 16)]); // 11
    compound(&mut types, "rwbase_rt", 40, &[("readers", INT, 0), ("rtmutex", 8, 8)]); // 12
    if kernel == Kernel::RealTime {
        compound(&mut types, "mutex", 32, &[("rtmutex", 8, 0)]);
        compound(&mut types, "rw_semaphore", 40, &[("rwbase", 12, 0)]);
        compound(&mut types, "spinlock", 32, &[("lock", 8, 0)]);
    } else {
        compound(&mut types, "mutex", 8, &[("owner", POINTER, 0)]);
    }
    compound(&mut types, "thread_union", 0x400, &[]);
    types
}

const LOCK: u64 = BASE + 0x3000;

fn task(number: u64) -> u64 {
    BASE + 0x40 * number
}

fn stack_of(task: u64) -> Option<Range<u64>> {
    let number = task.checked_sub(BASE).filter(|at| at % 0x40 == 0)? / 0x40;
    let begin = BASE + 0x1000 + number * 0x400;
    (number < 4).then(|| begin..begin + 0x400)
}

fn waiter(number: u64) -> u64 {
    stack_of(task(number)).unwrap().start + 0x300
}

/// Tasks 1 to 3 wait for a lock that task 0 has: 1 is the root of the tree, the others are below it.
fn memory() -> Made {
    let made = Made::new(0x8000);
    for number in 1..4 {
        made.put(task(number) + 16, waiter(number));
        made.put(waiter(number), if number == 1 { 1 } else { waiter(1) });
        made.put(waiter(number) + 80, task(number));
        made.put(waiter(number) + 88, LOCK);
    }
    made.put(waiter(1) + 8, waiter(3));
    made.put(waiter(1) + 16, waiter(2));
    made.put(LOCK + 8, waiter(1));
    made.put(LOCK + 24, task(0) | 1);
    made
}

fn find(made: &Made, kernel: Kernel, number: u64, functions: &[&str]) -> Option<Wait> {
    let (layout, read) = (LockLayout::new(&types(kernel)), made.read());
    let reader = Reader::new(&read);
    assert!(!layout.is_blocked(task(0), &reader));
    let sp = stack_of(task(number)).unwrap().start + 0x100;
    layout.blocked((task(number), sp), functions.iter().copied(), &stack_of, &reader)
}

#[test]
fn who_waits_is_in_the_locks_tree() {
    let made = memory();
    for kernel in [Kernel::Old, Kernel::New, Kernel::RealTime] {
        for number in 1..4 {
            let holder = Holder::Task(task(0));
            let expected =
                Wait { task: task(number), lock: LOCK, kind: LockKind::RtMutex, holder, spins: false };
            assert_eq!(find(&made, kernel, number, &["schedule", "rt_mutex_slowlock"]), Some(expected));
        }
        assert_eq!(find(&made, kernel, 0, &[]), None);
    }
    // Another kernel's locks are not made of it, whatever its functions are called.
    assert_eq!(find(&made, Kernel::New, 1, &["mutex_lock"]).unwrap().kind, LockKind::RtMutex);
}

#[test]
fn all_locks_of_a_real_time_kernel_are_made_of_it() {
    let made = memory();
    let kind =
        |functions: &[&str]| find(&made, Kernel::RealTime, 2, functions).map(|it| (it.kind, LOCK - it.lock));
    assert_eq!(kind(&["rtlock_slowlock_locked", "rt_spin_lock"]), Some((LockKind::SleepingSpinlock, 0)));
    assert_eq!(kind(&["rt_mutex_slowlock.constprop.0", "mutex_lock"]), Some((LockKind::Mutex, 0)));
    assert_eq!(kind(&["__rwbase_read_lock", "down_read"]), Some((LockKind::Read, 8)));
    assert_eq!(kind(&["rwbase_write_lock", "down_write"]), Some((LockKind::Write, 8)));
    // These types have no rwlock_t.
    assert_eq!(kind(&["rt_read_lock"]), Some((LockKind::RtMutex, 0)));
    let layout = LockLayout::new(&types(Kernel::RealTime));
    assert!(layout.waits_for_readers(["schedule", "rwbase_write_lock"].into_iter()));
    assert!(!layout.waits_for_readers(["schedule", "down_read"].into_iter()));
    assert!(!LockLayout::new(&types(Kernel::New)).waits_for_readers(["down_write"].into_iter()));
}

#[test]
fn who_has_it_is_the_owner_or_readers() {
    let made = memory();
    let holder = |functions: &[&str]| find(&made, Kernel::RealTime, 1, functions).map(|it| it.holder);
    made.put(LOCK + 24, 1);
    assert_eq!(holder(&[]), Some(Holder::Nobody));
    made.put(LOCK + 24, BASE + 0x11);
    assert_eq!(holder(&[]), Some(Holder::Unknown(BASE + 0x10)));
    made.put(LOCK + 24, 0x1000);
    assert_eq!(holder(&[]), None);
    made.put(LOCK + 24, task(0));
    made.put(LOCK - 8, WRITER_BIAS);
    assert_eq!(holder(&["down_read"]), Some(Holder::Task(task(0))));
    made.put(LOCK - 8, 2);
    assert_eq!(holder(&["down_write"]), Some(Holder::Readers));
}

#[test]
fn what_does_not_fit_is_no_wait() {
    type Change = fn(&Made);
    let changes: [(&str, Change); 8] = [
        ("it does not wait", |it| it.put(task(2) + 16, 0)),
        ("another's stack", |it| it.put(task(2) + 16, waiter(3))),
        ("below what is in use", |it| it.put(task(2) + 16, stack_of(task(2)).unwrap().start + 0x80)),
        ("another's waiter", |it| it.put(waiter(2) + 80, task(3))),
        ("a lock that has no such tree", |it| it.put(waiter(2) + 88, LOCK + 0x100)),
        ("another root", |it| it.put(LOCK + 8, waiter(2))),
        ("a parent that does not lead to it", |it| it.put(waiter(1) + 16, 0)),
        ("nodes that lead round and round", |it| {
            it.put(waiter(2), waiter(2));
            it.put(waiter(2) + 8, waiter(2));
        }),
    ];
    for (what, change) in changes {
        let made = memory();
        change(&made);
        assert_eq!(find(&made, Kernel::RealTime, 2, &[]), None, "{what}");
    }
    // Memory that is not there.
    let made = memory();
    made.put(waiter(2), 0x1000);
    assert_eq!(find(&made, Kernel::RealTime, 2, &[]), None);
}
