//! Tasks in memory made here.

use super::*;
use crate::made::{self, BASE, CHAR, INT, LIST, Made, POINTER, compound};
use crate::types::Shape;
use std::convert::Infallible;

/// `struct task_struct` and what it has, as small as it can be.
fn types() -> Types {
    let mut types = made::types();
    types.add("", Shape::Array(TypeId(CHAR), 16)); // 5
    compound(&mut types, "thread_info", 8, &[("flags", INT, 0), ("cpu", INT, 4)]); // 6
    compound(&mut types, "signal_struct", 32, &[("thread_head", LIST, 16)]); // 7
    let members = [
        ("thread_info", 6, 0),
        ("__state", INT, 8),
        ("on_cpu", INT, 12),
        ("flags", INT, 16),
        ("exit_state", INT, 20),
        ("pid", INT, 24),
        ("tgid", INT, 28),
        ("tasks", LIST, 32),
        ("thread_node", LIST, 48),
        ("real_parent", POINTER, 64),
        ("signal", POINTER, 72),
        ("mm", POINTER, 80),
        ("comm", 5, 88),
    ];
    compound(&mut types, "task_struct", 104, &members);
    types
}

/// Memory with tasks in it.
struct Kernel(Made);

impl std::ops::Deref for Kernel {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.0
    }
}

/// Each task has so much, and its process's signals behind it.
const EACH: u64 = 0x100;

impl Kernel {
    /// Processes by their numbers and names, each with so many more threads.
    fn new(processes: &[(u32, &str, u32)]) -> Kernel {
        let kernel = Kernel(Made::new(0x10000));
        let mut next = BASE;
        let mut make = |pid: u32, tgid: u32, name: &str| {
            let at = next;
            next += EACH;
            kernel.put(at + 24, u64::from(tgid) << 32 | u64::from(pid));
            kernel.put(at + 64, BASE);
            kernel.text(at + 88, name);
            at
        };
        let mut leaders = Vec::new();
        for (pid, name, threads) in processes {
            let leader = make(*pid, *pid, name);
            let signal = leader + 0x80;
            let others = (1..=*threads).map(|number| make(pid + number, *pid, "thread"));
            let all: Vec<u64> = std::iter::once(leader).chain(others).collect();
            all.iter().for_each(|task| kernel.put(task + 72, signal));
            let nodes: Vec<u64> =
                std::iter::once(signal + 16).chain(all.iter().map(|task| task + 48)).collect();
            kernel.ring(&nodes);
            leaders.push(leader + 32);
        }
        kernel.ring(&leaders);
        kernel
    }

    fn tasks(&self) -> Tasks {
        self.tasks_by(&TaskLayout::new(&types()).unwrap())
    }

    fn tasks_by(&self, layout: &TaskLayout) -> Tasks {
        let (mut rounds, read) = (0, self.read());
        let mut go_on = || {
            rounds += 1;
            assert!(rounds < 10_000, "it has no end");
            Ok::<(), Infallible>(())
        };
        let Ok(tasks) = layout.tasks(BASE, &Reader::new(&read), &mut go_on);
        tasks.unwrap()
    }

    fn pids(&self) -> Vec<u32> {
        self.tasks().all.iter().map(|task| task.pid).collect()
    }
}

const PROCESSES: &[(u32, &str, u32)] =
    &[(0, "swapper/0", 0), (1, "init", 2), (50, "kthreadd", 0), (60, "last", 1)];

#[test]
fn processes_and_their_threads() {
    let kernel = Kernel::new(PROCESSES);
    let tasks = kernel.tasks();
    assert_eq!(tasks.remarks, [] as [&str; 0]);
    let all: Vec<_> = tasks.all.iter().map(|task| (task.pid, task.tgid, task.comm.as_str())).collect();
    let wanted = [
        (0, 0, "swapper/0"),
        (1, 1, "init"),
        (2, 1, "thread"),
        (3, 1, "thread"),
        (50, 50, "kthreadd"),
        (60, 60, "last"),
        (61, 60, "thread"),
    ];
    assert_eq!(all, wanted);
    assert_eq!(tasks.all[1].parent, Some(0));
}

/// From any task one is found that is in the list of all, but for tasks that are in none and whose parents are in none.
#[test]
fn the_list_is_found_by_any_task() {
    let members = [
        ("__state", INT, 8),
        ("flags", INT, 16),
        ("exit_state", INT, 20),
        ("pid", INT, 24),
        ("tgid", INT, 28),
        ("tasks", LIST, 32),
        ("real_parent", POINTER, 64),
        ("signal", POINTER, 72),
        ("mm", POINTER, 80),
        ("comm", 5, 88),
        ("group_leader", POINTER, 112),
    ];
    let mut types = made::types();
    types.add("", Shape::Array(TypeId(CHAR), 16)); // 5
    compound(&mut types, "task_struct", 120, &members);
    let layout = TaskLayout::new(&types).unwrap();
    let kernel = Kernel::new(PROCESSES);
    let at = |index: u64| BASE + index * EACH;
    // swapper/0, init with two threads, kthreadd, last with one.
    for (task, leader) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 5), (6, 5)] {
        kernel.put(at(task) + 112, at(leader));
    }
    let read = kernel.read();
    let listed = |task: u64| layout.listed(task, &Reader::new(&read));
    assert_eq!([0, 1, 3, 6].map(|index| listed(at(index))), [0, 1, 1, 5].map(|index| Some(at(index))));
    // What another processor idles in has the list's words of what it is a copy of.
    let idle = at(20);
    for offset in [32, 40] {
        kernel.put(idle + offset, at(0) + 32);
    }
    kernel.put(idle + 112, idle);
    kernel.put(idle + 64, at(2));
    assert_eq!(listed(idle), Some(at(1)));
    kernel.put(idle + 64, idle);
    assert_eq!((listed(idle), listed(BASE - 0x1000), layout_without_leaders(&kernel)), (None, None, None));
}

/// Kernels whose types do not tell of it.
fn layout_without_leaders(kernel: &Kernel) -> Option<u64> {
    let read = kernel.read();
    TaskLayout::new(&types()).unwrap().listed(BASE, &Reader::new(&read))
}

#[test]
fn a_task_is_read_as_it_is() {
    let kernel = Kernel::new(&[(0, "swapper/0", 0), (7, "a\u{1b}[2Jb", 0)]);
    let task = BASE + EACH;
    kernel.put(task, 3 << 32);
    kernel.put(task + 8, 1 << 32 | 0x402);
    kernel.put(task + 16, OF_KERNEL);
    kernel.put(task + 64, 0);
    kernel.put(task + 80, 0x1234);
    let wanted = Task {
        address: task,
        pid: 7,
        tgid: 7,
        parent: None,
        comm: "a\u{fffd}[2Jb".into(),
        state: TaskState::Idle,
        cpu: Some(3),
        is_on_cpu: Some(true),
        is_of_kernel: true,
        mm: 0x1234,
    };
    assert_eq!(kernel.tasks().all[1], wanted);
    // A name without an end, which has as many bytes as there are.
    (88..104).for_each(|at| kernel.byte(task + at, b'x'));
    assert_eq!(kernel.tasks().all[1].comm, "x".repeat(16));
}

#[test]
fn what_is_broken_is_told_and_the_rest_is_there() {
    let leader = |index: u64| BASE + index * EACH + 32;
    // The list leads nowhere behind the first: the others are found from its end.
    let kernel = Kernel::new(PROCESSES);
    kernel.put(leader(0), 0);
    assert_eq!(kernel.tasks().remarks.len(), 1);
    assert_eq!(kernel.pids(), [0, 60, 61, 50, 1, 2, 3]);
    // It leads back to one that was there.
    let kernel = Kernel::new(PROCESSES);
    kernel.put(leader(4), leader(1));
    assert_eq!(kernel.pids().len(), 7);
    assert_eq!(kernel.tasks().remarks.len(), 1);
    // Broken both ways: what is in the middle is gone.
    let kernel = Kernel::new(PROCESSES);
    kernel.put(leader(1), 1);
    kernel.put(leader(5) + 8, 1);
    assert_eq!(kernel.pids(), [0, 1, 2, 3, 60, 61]);
    // A process's list of threads that ends in what is not there.
    let kernel = Kernel::new(PROCESSES);
    kernel.put(BASE + EACH + 72, 0x1000);
    assert_eq!(kernel.pids(), [0, 1, 50, 60, 61]);
    assert_eq!(kernel.tasks().remarks.len(), 1);
    // The types know of no threads.
    let kernel = Kernel::new(PROCESSES);
    let layout = TaskLayout { thread_head: None, ..TaskLayout::new(&types()).unwrap() };
    let found = kernel.tasks_by(&layout);
    assert_eq!((found.all.len(), found.remarks.len()), (4, 1));
}

/// The processes of a list have that same list for their threads.
#[test]
fn what_leads_round_and_round_is_gone_through_for_so_long() {
    const COUNT: usize = 3000;
    let kernel = Kernel(Made::new(0x20000));
    let (first, nodes) = (BASE + 0x1000, BASE + 0x2000);
    // So close to each other that where one has its signals' address there is another's link.
    let others = (nodes..).step_by(16).take(COUNT);
    kernel.ring(&std::iter::once(first + 32).chain(others).collect::<Vec<_>>());
    kernel.put(first + 72, nodes);
    let layout = TaskLayout::new(&types()).unwrap();
    let (mut rounds, read) = (0, kernel.read());
    let mut go_on = || {
        rounds += 1;
        assert!(rounds < MOST_MEMBERS + 4 * COUNT, "it has no end");
        Ok::<(), Infallible>(())
    };
    let Ok(tasks) = layout.tasks(first, &Reader::new(&read), &mut go_on);
    let tasks = tasks.unwrap();
    assert!(rounds > MOST_MEMBERS, "{rounds} rounds are no attack");
    assert!(tasks.remarks.last().unwrap().contains("there may be more"), "{:?}", tasks.remarks);
    let places: HashSet<u64> = tasks.all.iter().map(|task| task.address).collect();
    assert_eq!(places.len(), tasks.all.len(), "some are there twice");
}

#[test]
fn without_types_it_says_which() {
    let lacks = TaskLayout::new(&Types::new(8)).unwrap_err();
    assert_eq!(lacks.to_string(), "the kernel's types do not have struct task_struct");
    let layout = TaskLayout::new(&types()).unwrap();
    let nothing = |_: u64, _: &mut [u8]| 0;
    let Ok(found) = layout.tasks(BASE, &Reader::new(&nothing), &mut || Ok::<(), Infallible>(()));
    assert!(matches!(found, Err(TaskError::NotThere(_))), "{found:?}");
}

#[test]
fn who_breaks_off_is_obeyed() {
    let kernel = Kernel::new(PROCESSES);
    let read = kernel.read();
    let layout = TaskLayout::new(&types()).unwrap();
    assert_eq!(layout.tasks(BASE, &Reader::new(&read), &mut || Err("enough")), Err("enough"));
}

#[test]
fn states_are_those_that_the_kernel_tells() {
    for (state, exit, letter) in [
        (0, 0, 'R'),
        (0x200, 0, 'R'),
        (0x800, 0, 'R'),
        (1, 0, 'S'),
        (0x2001, 0, 'S'),
        (2, 0, 'D'),
        (0x102, 0, 'D'),
        (0x1000, 0, 'D'),
        (0x8000, 0, 'D'),
        (0x402, 0, 'I'),
        (0x2402, 0, 'I'),
        (0x104, 0, 'T'),
        (8, 0, 't'),
        (0x40, 0, 'P'),
        (0x80, 0x20, 'Z'),
        (0x80, 0x10, 'X'),
        (0x80, 0, 'X'),
        (3, 0, 'D'),
        (0x80, 0x30, 'Z'),
        (0x208, 0, 't'),
    ] {
        assert_eq!(TaskState::new(state, exit).letter(), letter, "{state:#x}, {exit:#x}");
    }
    assert_eq!(TaskState::new(0x800, 0), TaskState::New);
}
