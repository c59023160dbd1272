//! `why`: a page on a Linux kernel in the guest that hangs or has crashed: what each processor is at, who sleeps and is
//! not woken, who waits for which lock, and what the log has last.

use super::backtrace::{Lines, Trace, without_lines};
use super::kernel::with_kernel;
use super::locks::{Locks, locks};
use super::oops;
use super::operator::Operator;
use super::tasks::name;
use crate::linux::VmCoreInfo;
use crate::linux::log::Wanted;
use crate::linux::task::{Task, TaskState, Tasks};
use crate::linux::trouble;
use crate::machine::Activity;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, json};
use crate::view::{OnVcpu, Stacks, View};
use arch::Isa;
use arch::register::Bank;
use std::fmt;

/// `why`.
pub const WHY: Command = Command::new(
    "why",
    "",
    "a page on a kernel that hangs or has crashed: processors, who sleeps in state D, locks, the log's end",
);

/// Lines of the log that are looked through for trouble.
const LOOKED_THROUGH: usize = 5_000;
/// The last ones, which are told in any case...
const LAST: usize = 20;
/// ...and with what came before them since the first that tells of trouble, at most.
const MOST_LINES: usize = 80;
/// Frames that are told of all vCPUs together, at most: a dump may have thousands of them.
const MOST_FRAMES: usize = 1 << 16;
/// Stacks that are told of tasks that sleep, at most.
const MOST_ASLEEP: usize = 20;

/// A vCPU, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its number, and by that Linux's.
    pub vcpu: u32,
    /// The number and the name of the task that it is with; `None` where nobody tells.
    pub task: Option<(u32, String)>,
    /// When it began with that task, ns of the kernel's clock, which the log's times are of.
    pub since: Option<u64>,
    /// The guest has started it.
    pub is_started: bool,
    /// It has nothing to do, and waits for an interrupt.
    pub is_idle: bool,
    /// It takes interrupts; `None` where its registers are not known. One that idles may wait with them off.
    pub takes_interrupts: Option<bool>,
    /// Its stack.
    pub trace: Trace,
}

/// A task that sleeps and that no signal wakes, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// When it ran last, ns of the kernel's clock.
    pub since: Option<u64>,
    /// Whose it is, and its stack.
    pub trace: Trace,
}

/// The page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The kernel's release.
    pub release: String,
    /// Lines of the log that tell of trouble, the oldest first.
    pub troubles: Vec<String>,
    /// Each vCPU.
    pub processors: Vec<Processor>,
    /// The tasks that sleep so, up to a number.
    pub asleep: Vec<Asleep>,
    /// How many more there are.
    pub more_asleep: usize,
    /// Who waits for which lock.
    pub locks: Locks,
    /// The end of the log, the oldest line first.
    pub log: Vec<String>,
    /// What of all this could not be had, a line each.
    pub remarks: Vec<String>,
}

/// A time as the log has it.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1000 % 1_000_000)
    }
}

impl Why {
    /// Whether the log says that the kernel has panicked.
    pub fn has_panicked(&self) -> bool {
        self.troubles.iter().any(|line| trouble::is_panic(line))
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: ", self.vcpu)?;
        if !self.is_started {
            return writeln!(f, "not started");
        }
        match &self.task {
            Some((pid, name)) => write!(f, "task {pid} {name}")?,
            None => f.write_str("an unknown task")?,
        }
        if let Some(since) = self.since {
            write!(f, " since {}", Seconds(since))?;
        }
        writeln!(
            f,
            "{}",
            match self.takes_interrupts {
                _ if self.is_idle => ", idle",
                Some(true) => ", interrupts on",
                Some(false) => ", interrupts OFF",
                None => "",
            }
        )?;
        write!(f, "{}", self.trace.without_head())
    }
}

/// The page without the end of the log, for whoever has told that.
#[derive(Debug)]
pub struct WithoutLog<'a>(&'a Why);

impl Why {
    /// The page without the end of the log, for whoever has told that.
    pub fn without_log(&self) -> WithoutLog<'_> {
        WithoutLog(self)
    }

    /// What could not be had, lines with their ends, for whoever prints the page by itself.
    pub fn notes(&self) -> String {
        self.remarks.iter().map(|remark| format!("({remark})\n")).collect()
    }

    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.release)?;
        match self.troubles.as_slice() {
            [] => writeln!(f, "its log tells of no trouble")?,
            troubles => {
                writeln!(f, "its log tells of trouble:")?;
                troubles.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            }
        }
        Ok(())
    }

    fn body(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.processors.iter().try_for_each(|processor| write!(f, "{processor}"))?;
        if !self.asleep.is_empty() {
            writeln!(f, "\nasleep, and woken by no signal (state D):")?;
        }
        for Asleep { since, trace } in &self.asleep {
            match (&trace.task, since) {
                (Some((pid, name)), Some(since)) => {
                    writeln!(f, "task {pid} {name}, ran last at {}:", Seconds(*since))?;
                    write!(f, "{}", trace.without_head())?;
                }
                _ => write!(f, "{trace}")?,
            }
        }
        if self.more_asleep > 0 {
            writeln!(f, "and {} more, which 'ps' lists", self.more_asleep)?;
        }
        if !self.locks.waiting.is_empty() {
            write!(f, "\n{}", self.locks)?;
        }
        Ok(())
    }
}

impl fmt::Display for WithoutLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.body(f)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        writeln!(f)?;
        self.body(f)?;
        writeln!(f, "\nthe end of its log:")?;
        self.log.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl Value for Why {
    fn json(&self) -> Json {
        let processor = |it: &Processor| {
            let (pid, name) = it.task.as_ref().map_or((None, None), |(pid, name)| (Some(pid), Some(name)));
            json!({
                "vcpu": it.vcpu, "pid": pid, "name": name, "since_ns": it.since, "started": it.is_started,
                "idle": it.is_idle,
                "interrupts": it.takes_interrupts, "stack": it.trace.json(),
            })
        };
        let asleep = |it: &Asleep| json!({ "since_ns": it.since, "stack": it.trace.json() });
        json!({
            "release": self.release, "panicked": self.has_panicked(), "troubles": self.troubles,
            "vcpus": self.processors.iter().map(processor).collect::<Vec<_>>(),
            "asleep": self.asleep.iter().map(asleep).collect::<Vec<_>>(), "more_asleep": self.more_asleep,
            "locks": self.locks.json(), "log": self.log, "remarks": self.remarks,
        })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.remarks.is_empty()).then(|| self.remarks.join("; "))
    }
}

/// Whether a vCPU takes interrupts (x86: IF, Intel SDM vol. 1, 3.4.3.3; aarch64: PSTATE.I, Arm ARM D1.4). A kernel that
/// masks by priority instead (pseudo-NMI) looks as if it took them.
fn takes_interrupts(view: &View<'_>, vcpu: u32) -> Option<bool> {
    let file = view.machine.registers(vcpu, &[Bank::General]).ok()?;
    match view.isa() {
        Isa::X86_64 => file.get("eflags").map(|flags| flags & 1 << 9 != 0),
        Isa::Aarch64 => file.get("cpsr").map(|flags| flags & 1 << 7 == 0),
    }
}

fn processor(
    (view, info): (&View<'_>, &VmCoreInfo),
    stacks: &Stacks<'_>,
    tasks: &[Task],
    vcpu: u32,
) -> Processor {
    let trace = without_lines(stacks, stacks.of_vcpu(vcpu));
    let is_idle = trace.is_in("do_idle");
    let (task, since) = match view.on_vcpu(info, tasks, vcpu) {
        Some(OnVcpu::Task(task)) => (Some((task.pid, name(task))), stacks.began(task)),
        Some(OnVcpu::Unlisted(pid, name)) => (Some((pid, name)), None),
        Some(OnVcpu::Idle(name)) => (Some((0, format!("[{name}]"))), None),
        None => (is_idle.then(|| (0, format!("[swapper/{vcpu}]"))), None),
    };
    // Whoever idles and was interrupted has something to do.
    let is_interrupted = trace.frames.iter().flatten().skip(1).any(|frame| frame.is_exact);
    // A halted processor of x86 is known to be so; one of aarch64 waits within its hypervisor, and looks as if it ran.
    let activity = view.machine.activity(vcpu);
    let is_awake = view.isa() == Isa::X86_64 && activity == Activity::Running;
    let is_idle = is_idle && !is_interrupted && !is_awake;
    let is_started = activity != Activity::NotStarted;
    Processor {
        vcpu,
        task,
        since,
        is_started,
        is_idle,
        takes_interrupts: takes_interrupts(view, vcpu),
        trace,
    }
}

/// The page, as far as there is time for it.
fn page(view: View<'_>, lines: &mut Lines, info: &VmCoreInfo) -> Why {
    let mut remarks = Vec::new();
    let mut log = match view.kernel_log(info, &Wanted::last(LOOKED_THROUGH)) {
        Ok(log) => log.lines(),
        Err(error) => {
            remarks.push(error.to_string());
            Vec::new()
        }
    };
    let troubles = oops::troubles(&log);
    let told = troubles.first().map_or(LAST, |first| (log.len() - first).clamp(LAST, MOST_LINES));
    let troubles = troubles.into_iter().map(|at| oops::short(&log[at]).to_string()).collect();
    let log = log.split_off(log.len().saturating_sub(told));
    let log = log.iter().map(|line| oops::short(line).to_string()).collect();
    let mut found = Why {
        release: info.release().into(),
        troubles,
        processors: Vec::new(),
        asleep: Vec::new(),
        more_asleep: 0,
        locks: Locks::default(),
        log,
        remarks,
    };
    // What has overwritten the one may have left the other.
    let stacks = match Stacks::new(view, info) {
        Ok(stacks) => stacks.by_file(lines.file()),
        Err(why) => {
            found.remarks.push(why);
            add_lines(&view, lines, None, &mut found);
            return found;
        }
    };
    let tasks = view.kernel_tasks(info).unwrap_or_else(|why| Tasks { all: Vec::new(), remarks: vec![why] });
    found.remarks.extend(tasks.remarks);
    let mut left = MOST_FRAMES;
    for vcpu in (0..view.machine.vcpus()).take_while(|_| view.cancel.check().is_ok()) {
        let processor = processor((&view, info), &stacks, &tasks.all, vcpu);
        let frames = processor.trace.frames.as_ref().map_or(1, Vec::len).max(1);
        let Some(rest) = left.checked_sub(frames) else {
            let told = found.processors.len();
            found
                .remarks
                .push(format!("the stacks of {told} vCPUs have so many frames that no more are told"));
            break;
        };
        left = rest;
        found.processors.push(processor);
    }
    let is_asleep = |task: &&Task| task.state == TaskState::Uninterruptible && task.is_on_cpu != Some(true);
    let mut asleep = tasks.all.iter().filter(is_asleep);
    for task in asleep.by_ref().take(MOST_ASLEEP) {
        let trace = without_lines(&stacks, stacks.of_task(task));
        let trace = Trace { task: Some((task.pid, name(task))), ..trace };
        found.asleep.push(Asleep { since: stacks.ran_last(task), trace });
    }
    found.more_asleep = asleep.count();
    found.locks = locks(&stacks, &tasks.all);
    found.remarks.append(&mut found.locks.remarks);
    add_lines(&view, lines, Some(&stacks), &mut found);
    found
}

/// Adds source lines to what there is by now. They come last, as the first one of a kernel with all its debug information
/// takes seconds, and a page without them is better than none.
fn add_lines(view: &View<'_>, lines: &mut Lines, stacks: Option<&Stacks<'_>>, found: &mut Why) {
    if view.cancel.check().is_err() {
        found.remarks.push("it was broken off: there may be more".into());
    } else {
        found.log.iter_mut().for_each(|line| lines.decode(line));
        if let Some(stacks) = stacks {
            let processors = found.processors.iter_mut().map(|processor| &mut processor.trace);
            let asleep = found.asleep.iter_mut().map(|asleep| &mut asleep.trace);
            processors.chain(asleep).for_each(|trace| lines.add(view, stacks, trace));
        }
    }
    found.remarks.append(&mut lines.take_remarks());
}

impl Why {
    /// Looks at it all. What is broken off in the middle has a remark of that.
    ///
    /// # Errors
    /// [`Refusal::NotThere`] without a kernel that is known; [`Refusal::Cancelled`], before there is anything to tell.
    pub fn of(operator: &dyn Operator) -> Result<Why, Refusal> {
        let mut lines = Lines::of(operator)?;
        let view = operator.view();
        with_kernel(&view, |info| page(view, &mut lines, info))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Box::new(Why::of(operator)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::backtrace::Frame;
    use crate::command::locks::{HeldBy, Waiting, Who};
    use crate::linux::lock::LockKind;
    use crate::linux::unwind::StackEnd;
    use crate::view::Location;

    fn stack(symbol: &str, task: Option<(u32, String)>) -> Trace {
        let place = Location { symbol: symbol.into(), offset: 8, module: None };
        let (is_exact, is_guessed) = (true, false);
        let frame = Frame { pc: 0xffff_0008, is_exact, is_guessed, place: Some(place), lines: Vec::new() };
        Trace { task, vcpu: None, frames: Ok(vec![frame]), end: StackEnd::Bottom }
    }

    fn page() -> Why {
        let task = (7, "[spin]".to_string());
        let spins = Processor {
            vcpu: 1,
            task: Some(task.clone()),
            since: Some(4_017_952_999),
            is_started: true,
            is_idle: false,
            takes_interrupts: Some(false),
            trace: stack("spins", None),
        };
        let idle = Processor {
            vcpu: 0,
            task: Some((0, "[swapper/0]".into())),
            since: None,
            is_started: true,
            is_idle: true,
            takes_interrupts: Some(false),
            trace: stack("cpu_do_idle", None),
        };
        let who = Who { pid: 7, name: task.1.clone(), sleeps_in: None };
        let waiting = Waiting {
            who,
            kind: LockKind::Spinlock,
            lock: 0xffff_1000,
            variable: None,
            held_by: HeldBy::Untold,
            spins: true,
        };
        let sleeper = stack("sleeps", Some((8, "[sleep]".into())));
        Why {
            release: "6.12".into(),
            troubles: vec!["[    1.0] Kernel panic - not syncing: why".into()],
            processors: vec![idle, spins],
            asleep: vec![
                Asleep { since: Some(1_000), trace: sleeper.clone() },
                Asleep { since: None, trace: sleeper },
            ],
            more_asleep: 3,
            locks: Locks { waiting: vec![waiting], ..Locks::default() },
            log: vec!["[    1.0] Kernel panic - not syncing: why".into()],
            remarks: vec!["a list is broken".into()],
        }
    }

    #[test]
    fn a_page_in_words_and_as_json() {
        let why = page();
        let expected = "Linux 6.12\n\
                        its log tells of trouble:\n\
                        \x20 [    1.0] Kernel panic - not syncing: why\n\
                        \n\
                        vCPU 0: task 0 [swapper/0], idle\n\
                        \x20 #0   0x00000000ffff0008 cpu_do_idle+0x8\n\
                        vCPU 1: task 7 [spin] since 4.017952, interrupts OFF\n\
                        \x20 #0   0x00000000ffff0008 spins+0x8\n\
                        \n\
                        asleep, and woken by no signal (state D):\n\
                        task 8 [sleep], ran last at 0.000001:\n\
                        \x20 #0   0x00000000ffff0008 sleeps+0x8\n\
                        task 8 [sleep]:\n\
                        \x20 #0   0x00000000ffff0008 sleeps+0x8\n\
                        and 3 more, which 'ps' lists\n\
                        \n\
                        task 7 [spin] spins for the spinlock at 0xffff1000; it does not tell who has it\n\
                        \n\
                        the end of its log:\n\
                        \x20 [    1.0] Kernel panic - not syncing: why\n";
        assert_eq!(why.to_string(), expected);
        let middle = expected.split_once("\n\n").unwrap().1.split("\nthe end of").next().unwrap();
        assert_eq!(why.without_log().to_string(), middle);
        assert_eq!(why.shortfall().as_deref(), Some("a list is broken"));
        assert_eq!(why.notes(), "(a list is broken)\n");
        let json = why.json();
        assert_eq!((&json["panicked"], &json["more_asleep"]), (&json!(true), &json!(3)));
        assert_eq!(
            (&json["vcpus"][1]["since_ns"], &json["vcpus"][1]["interrupts"]),
            (&json!(4_017_952_999u64), &json!(false))
        );
        assert_eq!(json["asleep"][0]["stack"]["frames"][0]["function"], "sleeps");
        assert_eq!(json["locks"]["waiting"][0]["held_by"], "untold");
        let calm =
            Why { troubles: Vec::new(), processors: Vec::new(), asleep: Vec::new(), more_asleep: 0, ..why };
        let calm = Why { locks: Locks::default(), log: Vec::new(), ..calm };
        assert_eq!(calm.to_string(), "Linux 6.12\nits log tells of no trouble\n\n\nthe end of its log:\n");
        assert!(!calm.has_panicked());
    }
}
