//! A kernel's tasks: processes and their threads.
//!
//! Source: Linux, `include/linux/sched.h` (`struct task_struct`), `include/linux/sched/signal.h` (`thread_head`).

use crate::list::{Ring, remark};
use crate::name;
use crate::reader::{NotThere, Reader};
use crate::types::{Field, TypeId, Types};
use std::collections::HashSet;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It runs, or would if a processor were free.
    Running,
    /// It was made, and has not run yet.
    New,
    /// It sleeps, and signals wake it.
    Sleeping,
    /// It sleeps, and nothing but what it waits for wakes it.
    Uninterruptible,
    /// It sleeps likewise and counts for nothing, as workers of the kernel's that have nothing to do.
    Idle,
    /// It was stopped.
    Stopped,
    /// A debugger within the guest has stopped it.
    Traced,
    /// It has ended, and its parent has not asked how.
    Zombie,
    /// It has ended.
    Dead,
    /// A thread of the kernel's that was parked.
    Parked,
}

impl TaskState {
    /// By `__state` (before 5.14 `state`) and `exit_state`, of which the numbers hold from 4.14 on, as the kernel tells
    /// them to user space (`task_state_index`), and two more: one that has not run yet, and one that is about to end. One
    /// that the freezer has, or that waits for a lock as real-time kernels make them, counts as uninterruptible; of
    /// several states the last one in the kernel's order does.
    fn new(state: u32, exit: u32) -> TaskState {
        const NEW: u32 = 0x800;
        const IDLE: u32 = 0x400 | 2;
        const RTLOCK_WAIT_OR_FROZEN: u32 = 0x1000 | 0x8000;
        const DEAD: u32 = 0x80;
        if state & IDLE == IDLE {
            return TaskState::Idle;
        }
        if state & RTLOCK_WAIT_OR_FROZEN != 0 {
            return TaskState::Uninterruptible;
        }
        let reported = (state | exit) & 0x7f;
        match reported.checked_ilog2() {
            None if state == NEW => TaskState::New,
            None if state == DEAD => TaskState::Dead,
            None => TaskState::Running,
            Some(0) => TaskState::Sleeping,
            Some(1) => TaskState::Uninterruptible,
            Some(2) => TaskState::Stopped,
            Some(3) => TaskState::Traced,
            Some(4) => TaskState::Dead,
            Some(5) => TaskState::Zombie,
            Some(_) => TaskState::Parked,
        }
    }

    /// As `ps(1)` and `/proc/PID/stat` have it.
    pub fn letter(self) -> char {
        match self {
            TaskState::Running | TaskState::New => 'R',
            TaskState::Sleeping => 'S',
            TaskState::Uninterruptible => 'D',
            TaskState::Idle => 'I',
            TaskState::Stopped => 'T',
            TaskState::Traced => 't',
            TaskState::Zombie => 'Z',
            TaskState::Dead => 'X',
            TaskState::Parked => 'P',
        }
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Where its `struct task_struct` is.
    pub address: u64,
    /// Its number: of a thread, the thread's.
    pub pid: u32,
    /// The number of its process.
    pub tgid: u32,
    /// The number of its parent's process.
    pub parent: Option<u32>,
    /// Its name, which may do nothing to a terminal.
    pub comm: String,
    /// What it does.
    pub state: TaskState,
    /// The processor that it is on, or was last.
    pub cpu: Option<u32>,
    /// It is in a processor just now.
    pub is_on_cpu: Option<bool>,
    /// It is one of the kernel's own.
    pub is_of_kernel: bool,
    /// Where its `struct mm_struct` is; 0 of the kernel's own.
    pub mm: u64,
}

/// Tasks that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Each process's first task, and behind it its others.
    pub all: Vec<Task>,
    /// What of them could not be had, a line each.
    pub remarks: Vec<String>,
}

/// The task that is on a processor, by Linux's number of it. Of the tasks that idle all but one are in no list.
pub fn on(tasks: &[Task], cpu: u32) -> Option<&Task> {
    tasks.iter().find(|task| task.is_on_cpu == Some(true) && task.cpu == Some(cpu) && task.pid != 0)
}

/// Goes through a kernel's lists of tasks.
struct Walk<'a> {
    layout: &'a TaskLayout,
    reader: &'a Reader<'a>,
    found: Tasks,
    /// Where those are that were found.
    seen: HashSet<u64>,
    /// Members of lists that it has come by.
    members: usize,
}

/// Why no tasks are found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The kernel's types have no such member.
    #[error("the kernel's types do not have {0}")]
    Lacks(String),
    /// Not even the first one is there.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

/// Tasks that are listed at most. Linux may have more (`PID_MAX_LIMIT`), and guests that have anything like as many have
/// more memory than is gone through here.
const MOST: usize = 1 << 17;
/// Members of lists that are gone through at most, those that are no tasks among them.
const MOST_MEMBERS: usize = 1 << 20;
/// `PF_KTHREAD`.
const OF_KERNEL: u64 = 0x20_0000;

/// How the kernel's tasks are made.
#[derive(Debug)]
pub struct TaskLayout {
    tasks: Field,
    /// Of `struct signal_struct` and of tasks: all threads of a process.
    thread_head: Option<Field>,
    thread_node: Option<Field>,
    signal: Field,
    pid: Field,
    tgid: Field,
    real_parent: Field,
    group_leader: Option<Field>,
    comm: Field,
    state: Field,
    exit_state: Field,
    cpu: Option<Field>,
    on_cpu: Option<Field>,
    flags: Field,
    mm: Field,
}

impl TaskLayout {
    /// By the kernel's types.
    ///
    /// # Errors
    /// [`TaskError::Lacks`].
    pub fn new(types: &Types) -> Result<TaskLayout, TaskError> {
        let of = |tag: &str| types.tagged(tag).ok_or_else(|| TaskError::Lacks(format!("struct {tag}")));
        let (task, signals) = (of("task_struct")?, types.tagged("signal_struct"));
        let field = |of: TypeId, path: &str| types.field(of, path);
        let must = |path: &str| {
            field(task, path).ok_or_else(|| TaskError::Lacks(format!("struct task_struct's {path}")))
        };
        Ok(TaskLayout {
            tasks: must("tasks")?,
            thread_head: signals.and_then(|it| field(it, "thread_head")),
            thread_node: field(task, "thread_node"),
            signal: must("signal")?,
            pid: must("pid")?,
            tgid: must("tgid")?,
            real_parent: must("real_parent")?,
            group_leader: field(task, "group_leader"),
            comm: must("comm")?,
            // From 5.14 on with underscores.
            state: must("__state").or_else(|_| must("state"))?,
            exit_state: must("exit_state")?,
            // On x86 from 5.16 on as on others; before, the task's own.
            cpu: field(task, "thread_info.cpu").or_else(|| field(task, "cpu")),
            on_cpu: field(task, "on_cpu"),
            flags: must("flags")?,
            mm: must("mm")?,
        })
    }

    /// Reads one task.
    ///
    /// # Errors
    /// [`NotThere`].
    pub fn task(&self, address: u64, reader: &Reader<'_>) -> Result<Task, NotThere> {
        let number = |field: Field| reader.field(address, field);
        // What is larger is none of these numbers.
        let small = |field: Field| number(field).map(|value| u32::try_from(value & 0xffff_ffff).unwrap_or(0));
        let parent = number(self.real_parent)?;
        Ok(Task {
            address,
            pid: small(self.pid)?,
            tgid: small(self.tgid)?,
            parent: match parent {
                0 => None,
                parent => {
                    let tgid = reader.field(parent, self.tgid);
                    tgid.ok().and_then(|tgid| u32::try_from(tgid).ok())
                }
            },
            comm: name::read(reader, address, self.comm)?,
            state: TaskState::new(small(self.state)?, small(self.exit_state)?),
            cpu: self.cpu.map(small).transpose()?,
            is_on_cpu: self.on_cpu.map(small).transpose()?.map(|on| on != 0),
            is_of_kernel: number(self.flags)? & OF_KERNEL != 0,
            mm: number(self.mm)?,
        })
    }

    /// A first task of a process that is in the list of all ([`Self::tasks`]), by any task: its process's, or its parent's, as
    /// the tasks in which processors but the first one idle are in none. `None` where neither is in it.
    pub fn listed(&self, task: u64, reader: &Reader<'_>) -> Option<u64> {
        let leader = |task: u64| self.group_leader.and_then(|leader| reader.field(task, leader).ok());
        let is_listed = |task: &u64| {
            let node = task.wrapping_add(self.tasks.at);
            // `next` is in front of `prev`, which leads back.
            let next = reader.address(node).ok().filter(|next| *next != node);
            next.is_some_and(|next| reader.address(next.wrapping_add(8)) == Ok(node))
        };
        let parent = reader.field(task, self.real_parent).ok().and_then(leader);
        [leader(task), parent].into_iter().flatten().find(is_listed)
    }

    /// All tasks, by the list that any first task of a process is in. `go_on` is asked for each, as there may be many.
    ///
    /// # Errors
    /// [`TaskError`] where not even the first one is there; in words ([`Tasks::remarks`]), what of others cannot be had.
    pub fn tasks<E>(
        &self,
        first: u64,
        reader: &Reader<'_>,
        go_on: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Result<Tasks, TaskError>, E> {
        let (found, seen) = (Tasks::default(), HashSet::from([first]));
        let mut walk = Walk { layout: self, reader, found, seen, members: 0 };
        match self.task(first, reader) {
            Ok(task) => walk.found.all.push(task),
            Err(error) => return Ok(Err(error.into())),
        }
        if self.thread_head.is_none() || self.thread_node.is_none() {
            walk.remark("the kernel's types do not tell of threads: processes only".into());
        }
        walk.threads(first, go_on)?;
        let mut leaders = Ring::new(first.wrapping_add(self.tasks.at));
        while let Some(node) = walk.next(&mut leaders, go_on)? {
            let leader = node.wrapping_sub(self.tasks.at);
            walk.add(leader);
            walk.threads(leader, go_on)?;
        }
        if walk.is_full() {
            walk.found.remarks.push(format!("there may be more than {} tasks", walk.found.all.len()));
        }
        Ok(Ok(walk.found))
    }
}

impl Walk<'_> {
    fn remark(&mut self, text: String) {
        remark(&mut self.found.remarks, text);
    }

    /// Whether there were as many as are gone through.
    fn is_full(&self) -> bool {
        self.members >= MOST_MEMBERS || self.found.all.len() >= MOST
    }

    /// The next member of a list, unless there were too many. Where nobody wants more, nothing was read, and what looks
    /// broken for that is not told.
    fn next<E>(
        &mut self,
        ring: &mut Ring,
        go_on: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Option<u64>, E> {
        let next = if self.is_full() { None } else { ring.next(self.reader, &mut self.found.remarks) };
        go_on()?;
        self.members += usize::from(next.is_some());
        Ok(next)
    }

    /// Takes a task that was not there yet.
    fn add(&mut self, address: u64) {
        if !self.seen.insert(address) {
            return;
        }
        match self.layout.task(address, self.reader) {
            Ok(task) => self.found.all.push(task),
            Err(error) => self.remark(format!("a task is left out: {error}")),
        }
    }

    /// The threads of a process but its first.
    fn threads<E>(&mut self, leader: u64, go_on: &mut dyn FnMut() -> Result<(), E>) -> Result<(), E> {
        let (Some(head), Some(node)) = (self.layout.thread_head, self.layout.thread_node) else {
            return Ok(());
        };
        let signal = match self.reader.address(leader.wrapping_add(self.layout.signal.at)) {
            // One that has ended has none any more.
            Ok(0) => return Ok(()),
            Ok(signal) => signal,
            Err(error) => {
                self.remark(format!("the threads of a process are left out: {error}"));
                return Ok(());
            }
        };
        let mut ring = Ring::new(signal.wrapping_add(head.at));
        while let Some(at) = self.next(&mut ring, go_on)? {
            self.add(at.wrapping_sub(node.at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
