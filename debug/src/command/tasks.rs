//! `ps`: the tasks of a Linux kernel in the guest, by what the kernel has in its own memory.

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::VmCoreInfo;
use crate::linux::mm::Memory;
use crate::linux::task::{Task, Tasks};
use crate::reply::{Arguments, Command, Flag, Json, Refusal, Reply, Value, hex, json};
use crate::view::{Location, Stacks, View};
use arch::words::counted;
use std::collections::HashMap;
use std::fmt;

/// `ps`.
pub const PS: Command =
    Command::new("ps", "", "the kernel's tasks: number, parent, state, processor, name, and where it sleeps")
        .flags(&[
            Flag { name: MEMORY, short: Some("-m"), value: None, what: "the memory of each, in KiB" },
            Flag { name: KERNEL, short: None, value: None, what: "the kernel's own tasks" },
            Flag { name: USER, short: None, value: None, what: "tasks that are not the kernel's own" },
            Flag {
                name: PROCESSES,
                short: None,
                value: None,
                what: "one line for a process, with the number of its threads",
            },
        ]);

const MEMORY: &str = "--memory";
const KERNEL: &str = "--kernel";
const USER: &str = "--user";
const PROCESSES: &str = "--processes";

/// What is to be told of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ps {
    /// The memory of each.
    pub memory: bool,
    /// The kernel's own (`true`), or others; without it, all.
    pub of_kernel: Option<bool>,
    /// One for each process.
    pub processes: bool,
}

impl Ps {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Ps, Refusal> {
        arguments.none()?;
        let of_kernel = match (arguments.has(KERNEL), arguments.has(USER)) {
            (true, true) => {
                return Err(Refusal::Usage("no task is of both kinds: without a word, all are told".into()));
            }
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        Ok(Ps { memory: arguments.has(MEMORY), of_kernel, processes: arguments.has(PROCESSES) })
    }

    /// Looks at them.
    ///
    /// # Errors
    /// [`Refusal::NotThere`] without a kernel that is known, or tasks; [`Refusal::Cancelled`].
    pub fn run(&self, view: &View<'_>) -> Result<Listed, Refusal> {
        of_kernel(view, |info| {
            let Tasks { all, mut remarks } = view.kernel_tasks(info)?;
            let tasks = self.chosen(all);
            let memory = if self.memory { memory_of(&tasks, view, info)? } else { HashMap::new() };
            let memory = |task: &Task| memory.get(&task.mm).copied().filter(|_| !task.is_of_kernel);
            let has_none = |task: &Task| !task.is_of_kernel && task.mm != 0 && memory(task).is_none();
            let unread = tasks.iter().filter(|(task, _)| self.memory && has_none(task)).count();
            if unread > 0 {
                remarks.push(format!("the memory of {} cannot be read", counted(unread as u64, "task")));
            }
            // A kernel that nobody can unwind has tasks as well.
            let stacks = Stacks::new(*view, info).ok();
            let listed = (0..).zip(tasks).map(|(index, (task, threads))| OneTask {
                memory: memory(&task),
                sleeps_in: stacks
                    .as_ref()
                    .filter(|_| index < MOST_LOOKED_AT)
                    .and_then(|it| it.sleeps_in(&task)),
                threads: (task.pid == task.tgid).then_some(threads),
                task,
            });
            Ok(Listed { tasks: listed.collect(), asked: *self, remarks })
        })
    }

    /// Those that are wanted, each with how many its process has.
    fn chosen(&self, all: Vec<Task>) -> Vec<(Task, usize)> {
        let mut threads: HashMap<u32, usize> = HashMap::new();
        all.iter().for_each(|task| *threads.entry(task.tgid).or_default() += 1);
        all.into_iter()
            .filter(|task| self.of_kernel.is_none_or(|of_kernel| of_kernel == task.is_of_kernel))
            .filter(|task| !self.processes || task.pid == task.tgid)
            .map(|task| {
                let threads = threads.get(&task.tgid).copied().unwrap_or(1);
                (task, threads)
            })
            .collect()
    }
}

/// The memory of their processes, by where it is described.
fn memory_of(
    tasks: &[(Task, usize)],
    view: &View<'_>,
    info: &VmCoreInfo,
) -> Result<HashMap<u64, ProcessMemory>, String> {
    let page = info.page_size().ok_or("the kernel does not say how large its pages are")?;
    // The kernel's own may have somebody's for a while.
    let all = tasks.iter().filter(|(task, _)| !task.is_of_kernel).map(|(task, _)| task.mm);
    let found = view.kernel_memory(info, all)?;
    Ok(found.into_iter().map(|(mm, memory)| (mm, ProcessMemory::new(memory, page))).collect())
}

/// A task, and what is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTask {
    /// It.
    pub task: Task,
    /// Where it sleeps, if that is known.
    pub sleeps_in: Option<Location>,
    /// Of a process's first task, how many it has, that one among them.
    pub threads: Option<usize>,
    /// Its process's memory, if that was asked for and it has some.
    pub memory: Option<ProcessMemory>,
}

/// The memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Mapped, KiB.
    pub mapped: u64,
    /// In RAM, KiB.
    pub resident: u64,
    /// What processors have counted and not yet added is in that.
    pub is_exact: bool,
}

impl ProcessMemory {
    /// Of pages of so many bytes.
    pub fn new(memory: Memory, page: u64) -> ProcessMemory {
        let kib = |pages: u64| pages.saturating_mul(page) / 1024;
        let Memory { mapped, resident, is_exact } = memory;
        ProcessMemory { mapped: kib(mapped), resident: kib(resident), is_exact }
    }
}

/// Tasks, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Them.
    pub tasks: Vec<OneTask>,
    /// What was asked.
    pub asked: Ps,
    /// What could not be had, a line each.
    pub remarks: Vec<String>,
}

/// Tasks of which it is looked where they sleep, at most: a guest may have more than there is time for.
const MOST_LOOKED_AT: usize = 10_000;

/// What may not be known.
fn known(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}

/// A name as `ps` has it: the kernel's own in brackets.
pub(crate) fn name(task: &Task) -> String {
    if task.is_of_kernel { format!("[{}]", task.comm) } else { task.comm.clone() }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} {:>7} {:>7} S {:>3} {:<18} ", "PID", "PROCESS", "PARENT", "CPU", "TASK")?;
        if self.asked.memory {
            write!(f, "{:>10} {:>10} ", "VSZ", "RSS")?;
        }
        if self.asked.processes {
            write!(f, "{:>7} ", "THREADS")?;
        }
        writeln!(f, "NAME")?;
        for OneTask { task, sleeps_in, threads, memory } in &self.tasks {
            let Task { address, pid, tgid, .. } = task;
            let (parent, cpu, state) = (known(task.parent), known(task.cpu), task.state.letter());
            let name = name(task);
            write!(f, "{pid:>7} {tgid:>7} {parent:>7} {state} {cpu:>3} {address:#018x} ")?;
            if self.asked.memory {
                let of = |part: fn(ProcessMemory) -> u64| known(memory.map(part));
                write!(f, "{:>10} {:>10} ", of(|it| it.mapped), of(|it| it.resident))?;
            }
            if self.asked.processes {
                write!(f, "{:>7} ", known(*threads))?;
            }
            match sleeps_in {
                Some(place) => writeln!(f, "{name:<16} in {}", place.symbol)?,
                None if task.is_on_cpu == Some(true) => writeln!(f, "{name} (on it)")?,
                None => writeln!(f, "{name}")?,
            }
        }
        Ok(())
    }
}

impl Value for Listed {
    fn json(&self) -> Json {
        let memory = |it: ProcessMemory| json!({ "mapped_kib": it.mapped, "resident_kib": it.resident, "exact": it.is_exact });
        let task = |OneTask { task, sleeps_in, threads, memory: of }: &OneTask| {
            json!({
                "pid": task.pid, "process": task.tgid, "parent": task.parent, "name": task.comm,
                "state": task.state.letter().to_string(), "cpu": task.cpu, "on_cpu": task.is_on_cpu,
                "of_kernel": task.is_of_kernel, "task": hex(task.address),
                "sleeps_in": sleeps_in.as_ref().map(|place| place.symbol.as_str()),
                "threads": threads, "memory": of.map(memory),
            })
        };
        json!({ "tasks": self.tasks.iter().map(task).collect::<Vec<_>>(), "remarks": self.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.remarks.is_empty()).then(|| self.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    Ok(Box::new(Ps::parse(arguments)?.run(&operator.view())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::task::TaskState;

    fn tasks() -> [Task; 3] {
        let init = Task {
            address: 0xffff_8880_0010_0000,
            pid: 1,
            tgid: 1,
            parent: Some(0),
            comm: "init".into(),
            state: TaskState::Sleeping,
            cpu: Some(1),
            is_on_cpu: Some(false),
            is_of_kernel: false,
            mm: 0xffff_8880_0020_0000,
        };
        let worker = Task {
            pid: 12,
            tgid: 12,
            parent: None,
            comm: "kworker/0:1".into(),
            state: TaskState::Running,
            cpu: None,
            is_on_cpu: Some(true),
            is_of_kernel: true,
            mm: 0,
            ..init.clone()
        };
        let thread = Task { pid: 2, ..init.clone() };
        [init, thread, worker]
    }

    fn listed(asked: Ps) -> Listed {
        let place = Location { symbol: "do_wait".into(), offset: 0x5d, module: None };
        let memory = ProcessMemory::new(Memory { mapped: 1000, resident: 530, is_exact: false }, 4096);
        let one = |(task, threads): (Task, usize)| OneTask {
            sleeps_in: (task.pid == 1).then(|| place.clone()),
            threads: (task.pid == task.tgid).then_some(threads),
            memory: (task.mm != 0).then_some(memory),
            task,
        };
        let remarks = ["the list breaks off", "a task is left out"].map(String::from).to_vec();
        Listed { tasks: asked.chosen(tasks().to_vec()).into_iter().map(one).collect(), asked, remarks }
    }

    #[test]
    fn tasks_in_words_and_as_json() {
        let found = listed(Ps::default());
        let expected = "    PID PROCESS  PARENT S CPU TASK               NAME\n\
                        \x20     1       1       0 S   1 0xffff888000100000 init             in do_wait\n\
                        \x20     2       1       0 S   1 0xffff888000100000 init\n\
                        \x20    12      12       - R   - 0xffff888000100000 [kworker/0:1] (on it)\n";
        assert_eq!(found.to_string(), expected);
        assert_eq!(found.shortfall().as_deref(), Some("the list breaks off; a task is left out"));
        assert_eq!(Listed::default().shortfall(), None);
        let json = found.json();
        assert_eq!(json["tasks"][2]["name"], "kworker/0:1");
        assert_eq!(json["tasks"][2]["cpu"], Json::Null);
        assert_eq!(
            (&json["tasks"][0]["sleeps_in"], &json["tasks"][2]["sleeps_in"]),
            (&json!("do_wait"), &Json::Null)
        );
        assert_eq!((&json["tasks"][0]["threads"], &json["tasks"][1]["threads"]), (&json!(2), &Json::Null));
        let memory = json!({ "mapped_kib": 4000, "resident_kib": 2120, "exact": false });
        assert_eq!((&json["tasks"][0]["memory"], &json["tasks"][2]["memory"]), (&memory, &Json::Null));
        assert_eq!(json["remarks"][0], "the list breaks off");
    }

    #[test]
    fn processes_with_their_memory_and_threads() {
        let found = listed(Ps { memory: true, of_kernel: None, processes: true });
        let expected = "    PID PROCESS  PARENT S CPU TASK                      VSZ        RSS THREADS NAME\n\
            \x20     1       1       0 S   1 0xffff888000100000       4000       2120       2 init             in do_wait\n\
            \x20    12      12       - R   - 0xffff888000100000          -          -       1 [kworker/0:1] (on it)\n";
        assert_eq!(found.to_string(), expected);
    }

    #[test]
    fn tasks_of_one_kind() {
        let pids = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ps = Arguments::new(&PS, &words).and_then(|arguments| Ps::parse(&arguments))?;
            Ok(ps.chosen(tasks().to_vec()).iter().map(|(task, _)| task.pid).collect::<Vec<_>>())
        };
        for (line, expected) in [
            ("", &[1, 2, 12][..]),
            ("-m", &[1, 2, 12]),
            ("--kernel", &[12]),
            ("--user", &[1, 2]),
            ("--user --processes", &[1]),
        ] {
            assert_eq!(pids(line), Ok(expected.to_vec()), "{line}");
        }
        for line in ["--user --kernel", "1", "--threads"] {
            assert!(matches!(pids(line), Err(Refusal::Usage(_))), "{line}");
        }
    }

    #[test]
    fn what_a_guest_says_of_its_memory_may_be_anything() {
        let memory = ProcessMemory::new(Memory { mapped: u64::MAX, resident: 1, is_exact: true }, 65536);
        assert_eq!((memory.mapped, memory.resident), (u64::MAX / 1024, 64));
    }
}
