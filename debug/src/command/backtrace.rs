//! `bt`: the stacks of a Linux kernel in the guest, by what the kernel has in its own memory.

use super::address::count;
use super::kernel::of_kernel;
use super::names::Names;
use super::oops;
use super::operator::Operator;
use super::tasks::name;
use crate::linux::task::Task;
use crate::linux::unwind::{self, Stack, StackEnd};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::symbols::{Frame as Line, LoadedModule, Moved, SymbolFile};
use crate::view::{Location, Stacks, View};
use std::collections::HashMap;
use std::fmt;

/// `bt`.
pub const BT: Command = Command::new(
    "bt",
    "[PID|vcpuN|all]",
    "the kernel's stack: of the vCPU that is looked through, of a task, of another vCPU, of all tasks",
)
.words(&["all"]);

/// Frames that are told of all tasks, at most: a guest may make more of both than there is memory for.
const MOST_FRAMES: usize = 1 << 18;

/// Frames that are alike and follow each other, as many as are told one by one.
const MOST_ALIKE: usize = 3;

/// Whose stacks are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The vCPU's that is looked through, or another's.
    Vcpu(Option<u32>),
    /// A task's.
    Task(u32),
    /// All tasks'.
    All,
}

impl Whose {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Whose, Refusal> {
        let number = |text| {
            let number = count(text)?;
            u32::try_from(number)
                .map_err(|_| Refusal::Usage(format!("'{text}' is no vCPU's number, nor a task's")))
        };
        match arguments.words()[..] {
            [] => Ok(Whose::Vcpu(None)),
            ["all"] => Ok(Whose::All),
            [one] => match one.strip_prefix("vcpu") {
                Some(vcpu) => Ok(Whose::Vcpu(Some(number(vcpu)?))),
                None => Ok(Whose::Task(number(one)?)),
            },
            _ => Err(Refusal::Usage("write a task's number, a vCPU's (vcpu1), or all".into())),
        }
    }
}

/// A frame, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub pc: u64,
    /// Nothing was called there: a processor is there, or was interrupted there.
    pub is_exact: bool,
    /// The kernel's unwind tables do not lead to it: it was found by a frame pointer, or leads from one that was.
    pub is_guessed: bool,
    /// Where that is.
    pub place: Option<Location>,
    /// The source lines, the innermost first, if somebody knows them.
    pub lines: Vec<Line>,
}

/// A stack, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The task's number and name, of a task.
    pub task: Option<(u32, String)>,
    /// The vCPU's number, of a vCPU.
    pub vcpu: Option<u32>,
    /// The innermost first; none, and in words why.
    pub frames: Result<Vec<Frame>, String>,
    /// What is behind the last.
    pub end: StackEnd,
}

/// Stacks, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Each of them.
    pub all: Vec<Trace>,
    /// What of them could not be had, a line each.
    pub remarks: Vec<String>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.pc)?;
        if self.is_guessed {
            f.write_str(" ?")?;
        }
        if let Some(place) = &self.place {
            write!(f, " {place}")?;
        }
        let at = |line: &Line| {
            let number = line.line.map_or_else(String::new, |number| format!(":{number}"));
            format!("{}{number}", line.file.as_deref().unwrap_or("?"))
        };
        match self.lines.as_slice() {
            [] => Ok(()),
            [line] => write!(f, " at {}", at(line)),
            lines => lines.iter().try_for_each(|line| {
                let function = line.function.as_deref().unwrap_or("?");
                write!(f, "\n                         {function} at {}", at(line))
            }),
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.task, self.vcpu) {
            (Some((pid, name)), _) => writeln!(f, "task {pid} {name}:")?,
            (None, Some(vcpu)) => writeln!(f, "vCPU {vcpu}:")?,
            (None, None) => {}
        }
        write!(f, "{}", self.without_head())
    }
}

/// A stack without the line that says whose it is.
#[derive(Debug)]
pub(super) struct WithoutHead<'a>(&'a Trace);

impl Trace {
    pub(super) fn without_head(&self) -> WithoutHead<'_> {
        WithoutHead(self)
    }

    /// Whether one of its frames is in a function of the kernel's own.
    pub(super) fn is_in(&self, function: &str) -> bool {
        let is_it = |place: &Location| place.module.is_none() && place.symbol == function;
        self.frames.iter().flatten().any(|frame| frame.place.as_ref().is_some_and(is_it))
    }

    /// As JSON.
    pub(super) fn json(&self) -> Json {
        let line = |it: &Line| json!({ "function": it.function, "file": it.file, "line": it.line });
        let frame = |it: &Frame| {
            let place = it.place.as_ref();
            json!({
                "pc": hex(it.pc), "exact": it.is_exact, "guessed": it.is_guessed, "function": place.map(|it| it.symbol.as_str()),
                "offset": place.map(|it| it.offset), "module": place.and_then(|it| it.module.as_deref()),
                "lines": it.lines.iter().map(line).collect::<Vec<_>>(),
            })
        };
        let (user, lost) = match &self.end {
            StackEnd::Bottom => (None, None),
            StackEnd::User(pc) => (Some(hex(*pc)), None),
            StackEnd::Lost(why) => (None, Some(why.as_str())),
        };
        json!({
            "pid": self.task.as_ref().map(|(pid, _)| pid), "name": self.task.as_ref().map(|(_, name)| name),
            "vcpu": self.vcpu, "user": user, "lost": self.frames.as_ref().err().map_or(lost, |why| Some(why)),
            "frames": self.frames.iter().flatten().map(frame).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for WithoutHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = match &self.0.frames {
            Ok(frames) => frames,
            Err(why) => return writeln!(f, "  {why}"),
        };
        let mut number = 0;
        while let Some(frame) = frames.get(number) {
            if number > 0 && frame.is_exact {
                writeln!(f, "  interrupted at")?;
            }
            writeln!(f, "  #{number:<3} {frame}")?;
            // What calls itself for ever is told once.
            let alike = frames[number..].iter().take_while(|other| *other == frame).count();
            number += if alike > MOST_ALIKE { alike } else { 1 };
            if alike > MOST_ALIKE {
                writeln!(f, "  ... {} more like it", alike - 1)?;
            }
        }
        match &self.0.end {
            StackEnd::Bottom => Ok(()),
            StackEnd::User(pc) => writeln!(f, "  in user space at {pc:#x}"),
            StackEnd::Lost(why) => writeln!(f, "  and no further: {why}"),
        }
    }
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.iter().try_for_each(|trace| write!(f, "{trace}"))
    }
}

impl Value for Traces {
    fn json(&self) -> Json {
        json!({ "stacks": self.all.iter().map(Trace::json).collect::<Vec<_>>(), "remarks": self.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.remarks.is_empty()).then(|| self.remarks.join("; "))
    }
}

/// Source lines, as far as a file has them.
pub(super) struct Lines {
    names: Option<Names>,
    /// The kernel's file, where there is no doubt that it is this kernel's: its frames are not as harmless as a line that is
    /// another one's.
    file: Option<Moved>,
    /// Where modules' files are looked for, and what was found, by where modules' `struct module` is.
    files: SymbolFile,
    modules: HashMap<u64, Option<LoadedModule>>,
    /// Why there are none, or not all; a line each. Of a file that nobody has named nothing is said.
    remarks: Vec<String>,
}

/// Modules of which files are read for one answer, at most: which ones these are is up to the guest.
const MOST_MODULES: usize = 16;

impl Lines {
    /// By the file that the operator has named, if one fits.
    ///
    /// # Errors
    /// [`Refusal::Cancelled`].
    pub fn of(operator: &dyn Operator) -> Result<Lines, Refusal> {
        let mut remarks = Vec::new();
        let names = match Names::of(operator) {
            Ok(names) => names.ok(),
            Err(Refusal::NotThere(why)) => {
                if is_named(operator.symbols()) {
                    remarks.push(format!("no source lines: {why}"));
                }
                None
            }
            Err(refusal) => return Err(refusal),
        };
        let doubt = names.as_ref().map_or(Ok(None), |names| names.doubt(operator))?;
        let file = names.as_ref().and_then(Names::file).filter(|_| doubt.is_none()).cloned();
        remarks.extend(doubt);
        let files = operator.symbols().cloned().unwrap_or_default();
        Ok(Lines { names, file, files, modules: HashMap::new(), remarks })
    }

    /// The kernel's file, if there is no doubt of it.
    pub fn file(&self) -> Option<Moved> {
        self.file.clone()
    }

    /// Adds to a line of the kernel's log where in the source it is that it names.
    pub fn decode(&self, line: &mut String) {
        if let Some(names) = &self.names {
            oops::decode(line, names);
        }
    }

    /// Adds a stack's, as far as somebody wants them still.
    pub fn add(&mut self, view: &View<'_>, stacks: &Stacks<'_>, trace: &mut Trace) {
        for frame in trace.frames.iter_mut().flatten().take_while(|_| view.cancel.check().is_ok()) {
            let code =
                unwind::Frame { pc: frame.pc, sp: 0, is_exact: frame.is_exact, is_guessed: false }.code();
            frame.lines = match frame.place.as_ref().is_some_and(|place| place.module.is_some()) {
                true => self.in_module(stacks, code),
                false => self.at(code),
            };
        }
    }

    /// What there was to say so far.
    pub fn take_remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    /// Those of an address in a module, by a file of its build, if there is one. What is in the way of a module's is told
    /// once.
    fn in_module(&mut self, stacks: &Stacks<'_>, pc: u64) -> Vec<Line> {
        let Some(address) = stacks.module(pc) else { return Vec::new() };
        if self.modules.len() >= MOST_MODULES && !self.modules.contains_key(&address) {
            return Vec::new();
        }
        let files = &self.files;
        let found = self.modules.entry(address).or_insert_with(|| {
            let (id, sections) = stacks.build(pc)?;
            Some(files.module(&id)?.loaded(sections))
        });
        match found.as_ref().map_or(Ok(Vec::new()), |module| module.frames(pc)) {
            Ok(lines) => lines,
            // It was found by itself.
            Err(_) => {
                *found = None;
                Vec::new()
            }
        }
    }

    /// Those of an address. What is in the way of one of them is in the way of the others, and told once.
    fn at(&mut self, pc: u64) -> Vec<Line> {
        match self.names.as_ref().map_or(Ok(Vec::new()), |names| names.frames(pc)) {
            Ok(lines) => lines,
            Err(why) => {
                if is_named(Some(&self.files)) {
                    self.remarks.push(format!("no source lines: {why}"));
                }
                self.names = None;
                Vec::new()
            }
        }
    }
}

/// Whether somebody has named the file, and wants to hear of what it lacks.
fn is_named(file: Option<&SymbolFile>) -> bool {
    matches!(file, Some(SymbolFile::Named(_)))
}

/// Words a stack, with source lines.
fn trace(view: &View<'_>, stacks: &Stacks<'_>, lines: &mut Lines, stack: Result<Stack, String>) -> Trace {
    let mut trace = without_lines(stacks, stack);
    lines.add(view, stacks, &mut trace);
    trace
}

/// Words a stack.
pub(super) fn without_lines(stacks: &Stacks<'_>, stack: Result<Stack, String>) -> Trace {
    let (frames, end) = match stack {
        Ok(Stack { frames, end }) => (Ok(frames), end),
        Err(why) => (Err(why), StackEnd::Bottom),
    };
    let frames = frames.map(|frames| {
        let one = |frame: &unwind::Frame| {
            let unwind::Frame { pc, is_exact, is_guessed, .. } = *frame;
            Frame { pc, is_exact, is_guessed, place: stacks.location(frame), lines: Vec::new() }
        };
        frames.iter().map(one).collect()
    });
    Trace { task: None, vcpu: None, frames, end }
}

fn traces(view: View<'_>, mut lines: Lines, whose: Whose) -> Result<Traces, Refusal> {
    of_kernel(&view, |info| {
        let stacks = Stacks::new(view, info)?.by_file(lines.file());
        let mut of_task = |task: &Task| Trace {
            task: Some((task.pid, name(task))),
            ..trace(&view, &stacks, &mut lines, stacks.of_task(task))
        };
        let mut found = Traces { all: Vec::new(), remarks: stacks.remarks().to_vec() };
        match whose {
            Whose::Vcpu(vcpu) => {
                let vcpu = vcpu.unwrap_or(view.vcpu);
                let trace = trace(&view, &stacks, &mut lines, stacks.of_vcpu(vcpu));
                found.all.push(Trace { vcpu: Some(vcpu), ..trace });
            }
            Whose::Task(pid) => {
                let tasks = view.kernel_tasks(info)?;
                found.all = tasks.all.iter().filter(|task| task.pid == pid).map(of_task).collect();
                if found.all.is_empty() {
                    return Err(format!("there is no task {pid}"));
                }
            }
            Whose::All => {
                let tasks = view.kernel_tasks(info)?;
                found.remarks.extend(tasks.remarks);
                let mut left = MOST_FRAMES;
                for task in tasks.all.iter().take_while(|_| view.cancel.check().is_ok()) {
                    let trace = of_task(task);
                    let Some(rest) = left.checked_sub(trace.frames.as_ref().map_or(1, Vec::len).max(1))
                    else {
                        let told = found.all.len();
                        found.remarks.push(format!(
                            "the stacks of {told} tasks have so many frames that no more are told"
                        ));
                        break;
                    };
                    left = rest;
                    found.all.push(trace);
                }
            }
        }
        found.remarks.extend(lines.remarks);
        Ok(found)
    })
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let whose = Whose::parse(arguments)?;
    let lines = Lines::of(operator)?;
    Ok(Box::new(traces(operator.view(), lines, whose)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(pc: u64, is_exact: bool, function: &str, module: Option<&str>) -> Frame {
        let place = Location { symbol: function.into(), offset: 0x10, module: module.map(String::from) };
        Frame { pc, is_exact, is_guessed: false, place: Some(place), lines: Vec::new() }
    }

    fn line(function: &str, line: u32) -> Line {
        let file = Some("kernel/sched/core.c".to_string());
        Line { function: Some(function.into()), file, line: Some(line), column: None }
    }

    #[test]
    fn stacks_in_words_and_as_json() {
        let mut called = frame(0xffff_ffff_8100_0010, false, "schedule", None);
        called.lines = vec![line("inner", 7), line("schedule", 9)];
        let mut interrupted = frame(0xffff_ffff_c000_0010, true, "work", Some("virtio_net"));
        interrupted.lines = vec![line("work", 5)];
        let nowhere = Frame {
            pc: 0xffff_ffff_0000_0000,
            is_exact: false,
            is_guessed: true,
            place: None,
            lines: Vec::new(),
        };
        let first = Trace {
            task: Some((12, "[kworker/0:1]".into())),
            vcpu: None,
            frames: Ok(vec![called, interrupted, nowhere]),
            end: StackEnd::Lost("nothing tells".into()),
        };
        let user =
            Trace { task: None, vcpu: Some(1), frames: Ok(Vec::new()), end: StackEnd::User(0x40_1000) };
        let not = Trace { task: Some((1, "init".into())), frames: Err("not there".into()), ..user.clone() };
        let traces = Traces { all: vec![first, user, not], remarks: vec!["a list is broken".into()] };
        let expected = "task 12 [kworker/0:1]:\n\
                        \x20 #0   0xffffffff81000010 schedule+0x10\n\
                        \x20                        inner at kernel/sched/core.c:7\n\
                        \x20                        schedule at kernel/sched/core.c:9\n\
                        \x20 interrupted at\n\
                        \x20 #1   0xffffffffc0000010 work+0x10 [virtio_net] at kernel/sched/core.c:5\n\
                        \x20 #2   0xffffffff00000000 ?\n\
                        \x20 and no further: nothing tells\n\
                        vCPU 1:\n\
                        \x20 in user space at 0x401000\n\
                        task 1 init:\n\
                        \x20 not there\n";
        assert_eq!(traces.to_string(), expected);
        let again = frame(0xffff_ffff_c000_0020, false, "recurses", None);
        let end = frame(0xffff_ffff_c000_0030, false, "begins", None);
        let frames = [vec![again; 5], vec![end.clone(); 3]].concat();
        let deep = Trace { task: None, vcpu: None, frames: Ok(frames), end: StackEnd::Bottom };
        let expected = "\x20 #0   0xffffffffc0000020 recurses+0x10\n\
                        \x20 ... 4 more like it\n\
                        \x20 #5   0xffffffffc0000030 begins+0x10\n\
                        \x20 #6   0xffffffffc0000030 begins+0x10\n\
                        \x20 #7   0xffffffffc0000030 begins+0x10\n";
        assert_eq!(deep.to_string(), expected);
        assert_eq!(traces.shortfall().as_deref(), Some("a list is broken"));
        let json = traces.json();
        let first = &json["stacks"][0];
        assert_eq!(
            (&first["pid"], &first["lost"], &first["user"]),
            (&json!(12), &json!("nothing tells"), &Json::Null)
        );
        assert_eq!(
            (&first["frames"][1]["module"], &first["frames"][1]["exact"]),
            (&json!("virtio_net"), &json!(true))
        );
        assert_eq!(first["frames"][2]["function"], Json::Null);
        assert_eq!((&json["stacks"][1]["user"], &json["stacks"][1]["vcpu"]), (&json!("0x401000"), &json!(1)));
        assert_eq!(json["stacks"][2]["lost"], "not there");
    }

    #[test]
    fn whose_is_read_as_it_is_written() {
        let parse = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Arguments::new(&BT, &words).and_then(|arguments| Whose::parse(&arguments))
        };
        assert_eq!(parse("").unwrap(), Whose::Vcpu(None));
        assert_eq!(parse("vcpu1").unwrap(), Whose::Vcpu(Some(1)));
        assert_eq!(parse("17").unwrap(), Whose::Task(17));
        assert_eq!(parse("all").unwrap(), Whose::All);
        for wrong in ["vcpu", "vcpux", "1 2", "-1", "0x100000000", "nobody"] {
            assert!(matches!(parse(wrong), Err(Refusal::Usage(_))), "{wrong}");
        }
    }
}
