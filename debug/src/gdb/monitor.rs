//! `monitor` commands: what gdb's user asks the stub itself.

use super::description::Described;
use super::qemu;
use super::regions::{self, Page};
use super::session::{Client, Session};
use crate::breakpoint::{Breakpoint, NOT_MAPPED, NOT_RAM, Place};
use crate::cancel::Cancelled;
use crate::disassemble::LONGEST_INSTRUCTION;
use crate::dump::described::Scope;
use crate::dump::destination::Destination;
use crate::dump::write::{self, Target};
use crate::dump::{self, Unplanted};
use crate::memory::{self, Space};
use crate::report::Report;
use crate::target::{Command, Control, Machine, Memory, SoftwareBreakpoints};
use arch::paging::{Mapping, Permissions, Regime, Step};
use arch::register::{Bank, Group};
use arch::{GuestVirt, Isa};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

const COMMANDS: &[Command] = &[
    Command { name: "help", usage: "[COMMAND]", what: "this list, or what one command does" },
    Command {
        name: "regs",
        usage: "[GROUP]",
        what: "registers: general segment system float vector debug, or all",
    },
    Command {
        name: "translate",
        usage: "ADDRESS",
        what: "the page walk for an address, entry by entry; 0x1000, 4096, $rsp and $rsp+0x10 are addresses",
    },
    Command { name: "map", usage: "[ADDRESS [LENGTH]]", what: "ranges that are mapped, with permissions" },
    Command { name: "mem", usage: "", what: "the guest's RAM" },
    Command { name: "physical", usage: "[on|off]", what: "whether addresses are guest-physical" },
    Command { name: "exits", usage: "", what: "exits of each vCPU, by reason" },
    Command { name: "breakpoints", usage: "", what: "each breakpoint: kind, place, hits, and why this kind" },
    Command {
        name: "description",
        usage: "[auto|x86-64|i386|i8086]",
        what: "what a debugger that attaches next is told the processor is",
    },
    Command { name: "linux", usage: "", what: "the guest's Linux kernel: release, where it is mapped" },
    Command { name: "dmesg", usage: "[LINES]", what: "the kernel's log, or its last lines" },
    Command {
        name: "dump",
        usage: "PATH",
        what: "write a core of the guest, a new file on the host that it runs on, below the folder that vmm was started in (or --dump-dir); PATH.gz and PATH.zst compress",
    },
    Command {
        name: "info",
        usage: "mem|tlb|registers [-a]",
        what: "what is mapped, entries of page tables, registers: as QEMU's monitor prints them",
    },
    Command {
        name: "step-interrupts",
        usage: "[on|off]",
        what: "whether a step may fall into an interrupt handler",
    },
    Command { name: "nmi", usage: "", what: "raise a non-maskable interrupt on the current vCPU" },
    Command { name: "host", usage: "", what: "what the host can do, and what takes the place of the rest" },
    Command {
        name: "allow-load",
        usage: "[on|off]",
        what: "whether gdb may write a program over the kernel that runs",
    },
    Command { name: "reset", usage: "", what: "have the guest begin again, held at its first instruction" },
    Command { name: "quit", usage: "", what: "end the guest" },
];

/// Runs a command; what it says, lines with their ends.
pub fn run<M: Machine>(session: &mut Session<M>, line: &str) -> String {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or("help");
    let arguments: Vec<&str> = words.collect();
    let all = || COMMANDS.iter().chain(session.machine.commands());
    let mut matching = all().filter(|command| command.name.starts_with(name));
    let command = match all().find(|command| command.name == name) {
        Some(command) => command,
        None => match (matching.next(), matching.next()) {
            (Some(command), None) => command,
            (None, _) => {
                let hint = nearest(name, all().map(|command| command.name));
                return format!("there is no command '{name}'{hint}; see 'monitor help'\n");
            }
            (Some(first), Some(second)) => {
                return format!("'{name}' may be {} or {}\n", first.name, second.name);
            }
        },
    };
    match serve(session, command.name, &arguments) {
        Ok(text) => text,
        // One that takes nothing has not been used wrongly.
        Err(text) if command.usage.is_empty() && arguments.is_empty() => format!("{text}\n"),
        Err(text) => format!("{text}\nusage: monitor {} {}\n", command.name, command.usage),
    }
}

/// The name that somebody may have meant, in words; nothing where none is near.
fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> String {
    /// Names that are less alike than this are others.
    const ALIKE: f64 = 0.75;
    let alike = names.map(|known| (strsim::jaro_winkler(name, known), known));
    match alike.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((how, known)) if how >= ALIKE => format!(": do you mean '{known}'?"),
        _ => String::new(),
    }
}

fn serve<M: Machine>(session: &mut Session<M>, name: &str, arguments: &[&str]) -> Result<String, String> {
    match name {
        "regs" => registers(session, arguments),
        "translate" => translate(session, arguments),
        "map" => map(session, arguments),
        "mem" => Ok(ram(session)),
        "physical" => {
            if let Some(on) = switch(arguments)? {
                session.is_physical = on;
            }
            Ok(format!("addresses are guest-{}\n", if session.is_physical { "physical" } else { "virtual" }))
        }
        "exits" => Ok(exits(session)),
        "breakpoints" => Ok(breakpoints(session)),
        "description" => {
            if let [name] = arguments {
                let described = (session.isa() == Isa::X86_64).then(|| Described::from_name(name)).flatten();
                session.described = match (*name, described) {
                    ("auto", _) => None,
                    (_, Some(described)) => Some(described),
                    _ => return Err(format!("'{name}' is none that this target is")),
                };
            }
            Ok(format!("a debugger that attaches is told: {}\n", session.describes().name(session.isa())))
        }
        "info" => qemu::info(session, arguments),
        "linux" => linux(session).map_err(broken_off),
        "dmesg" => dmesg(session, arguments),
        "dump" => dump(session, arguments),
        "step-interrupts" => {
            let mut state = session.engine.state();
            if let Some(on) = switch(arguments)? {
                state.step_interrupts = on;
            }
            let text = if state.step_interrupts { "may fall" } else { "do not fall" };
            Ok(format!("steps {text} into interrupt handlers\n"))
        }
        "nmi" => control(session, Control::Nmi(session.current), "the interrupt is pending"),
        "reset" => reset(session),
        "quit" if !session.machine.can_run() => {
            session.is_done = true;
            Ok("the dump is closed\n".into())
        }
        "quit" => control(session, Control::Quit, "the guest ends"),
        "allow-load" => {
            if let Some(on) = switch(arguments)? {
                session.allows_load = on;
            }
            let text = if session.allows_load { "may" } else { "may not" };
            Ok(format!("gdb {text} write a program over the kernel that runs\n"))
        }
        "host" => Ok(host(session)),
        "help" => help(session.machine.commands(), arguments),
        name => session.machine.run_command(name, arguments),
    }
}

fn broken_off(cancelled: Cancelled) -> String {
    cancelled.to_string()
}

fn switch(arguments: &[&str]) -> Result<Option<bool>, String> {
    match arguments {
        [] => Ok(None),
        ["on"] => Ok(Some(true)),
        ["off"] => Ok(Some(false)),
        _ => Err("write on or off".into()),
    }
}

fn control<M: Machine>(session: &mut Session<M>, control: Control, done: &str) -> Result<String, String> {
    session.machine.control(control).map_err(|error| error.to_string())?;
    Ok(format!("{done}\n"))
}

/// The guest begins again.
fn reset<M: Machine>(session: &mut Session<M>) -> Result<String, String> {
    session.restart().map_err(|error| error.to_string())?;
    let mut text = "the guest is at its first instruction again\n".to_string();
    text.push_str(&session.take_words().unwrap_or_default());
    if session.client == Client::Gdb {
        text.push_str(
            "gdb shows the registers that it knows: 'maintenance flush register-cache' has it ask\n",
        );
    }
    Ok(text)
}

/// Parses a number as a person writes it: `0x1000` or `4096`.
///
/// # Errors
/// How it is written.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not a number: write 0x1000 or 4096"))
}

/// Appends a line.
macro_rules! line {
    ($text:expr, $($argument:tt)*) => {{
        // Writing to a String cannot fail.
        writeln!($text, $($argument)*).ok();
    }};
}

fn help(more: &[Command], arguments: &[&str]) -> Result<String, String> {
    let all = || COMMANDS.iter().chain(more);
    let mut text = String::new();
    match arguments {
        [] => {
            for Command { name, usage, what } in all() {
                line!(text, "  {:36} {what}", format!("{name} {usage}"));
            }
        }
        [name] => {
            let command = all().find(|command| command.name == *name);
            let Command { name, usage, what } = command.ok_or_else(|| {
                let hint = nearest(name, all().map(|command| command.name));
                format!("there is no command '{name}'{hint}")
            })?;
            line!(text, "monitor {name} {usage}\n  {what}");
        }
        _ => return Err("help is for one command at a time".into()),
    }
    Ok(text)
}

/// Reads an address as a person writes it: a number, a register of the current vCPU (`$rsp`, `rsp`), or one with a
/// number added or taken away.
fn address<M: Machine>(session: &Session<M>, text: &str) -> Result<u64, String> {
    let at = text.find(['+', '-']).filter(|at| *at > 0).unwrap_or(text.len());
    let (base, offset) = text.split_at(at);
    let base = match number(base) {
        Ok(value) => value,
        Err(_) => register(session, base.strip_prefix('$').unwrap_or(base)).map_err(|why| {
            format!(
                "'{base}' is no number (0x1000, 4096) and {why}; of a symbol, gdb has the address: \
                 eval \"monitor translate %p\", &jiffies"
            )
        })?,
    };
    match offset.split_at_checked(1) {
        None => Ok(base),
        Some(("-", rest)) => Ok(base.wrapping_sub(number(rest)?)),
        Some((_, rest)) => Ok(base.wrapping_add(number(rest)?)),
    }
}

fn register<M: Machine>(session: &Session<M>, name: &str) -> Result<u64, String> {
    let isa = session.isa();
    let known = || arch::register::table(isa).iter().map(|row| row.name);
    let name = match (isa, name) {
        (Isa::X86_64, "pc") => "rip",
        (Isa::X86_64, "sp") => "rsp",
        (_, name) => name,
    };
    let Some(row) = known().position(|known| known.eq_ignore_ascii_case(name)) else {
        return Err(format!("no register{}", nearest(name, known())));
    };
    let file = session.machine.registers(session.current, &Bank::ALL).map_err(|error| error.to_string())?;
    file.get_row(row).ok_or_else(|| format!("register {name} has no value of 64 bits"))
}

fn registers<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    let groups: Vec<Group> = match arguments {
        [] => vec![Group::General, Group::Segment, Group::System],
        ["all"] => Group::ALL.to_vec(),
        [name] => {
            let group = Group::ALL.into_iter().find(|group| group.name() == *name);
            vec![group.ok_or_else(|| format!("there is no group '{name}'"))?]
        }
        _ => return Err("only one group of registers is shown at a time".into()),
    };
    let vcpu = session.current;
    let file = session.machine.registers(vcpu, &Bank::ALL).map_err(|error| error.to_string())?;
    let mut code = vec![0; LONGEST_INSTRUCTION];
    let count = file.pc().map_or(0, |pc| session.read(vcpu, pc, &mut code));
    let mut text = Report { vcpu, registers: &file, code: &code[..count] }.text_of(&groups);
    text.push('\n');
    Ok(text)
}

fn translate<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    let [text] = arguments else { return Err("write one address".into()) };
    let address = GuestVirt(address(session, text)?);
    let (regime, whose) = session.current_tables().map_err(|fault| fault.to_string())?;
    Ok(whose + &walk_text(&regime, session.machine.memory(), address))
}

/// A page walk in words, a line for each entry.
pub fn walk_text(regime: &Regime, memory: &dyn Memory, address: GuestVirt) -> String {
    let mut text = String::new();
    line!(text, "{}", regime.describe());
    let result = regime.walk(memory, address, |Step { name, at, value }| {
        line!(text, "  {name:8} at {at:#014x}: {value:#018x}");
    });
    if let Ok(Mapping { address: place, page_size, permissions }) = result {
        line!(text, "{address:#x} is at {place:#x}, {} page, {permissions}", size(page_size));
    }
    // Also where a page is mapped that is not there.
    if let Some(why) = memory::why_not(memory, &Space::Virtual(*regime), address) {
        line!(text, "{why}");
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

/// Lines that one `monitor map` prints.
const MOST_LINES: usize = 512;

/// A range of addresses with the same permissions.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    permissions: Permissions,
}

fn map<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    let (regime, whose) = session.current_tables().map_err(|fault| fault.to_string())?;
    let between = match arguments {
        [] => (0, u64::MAX),
        [start] => (address(session, start)?, u64::MAX),
        [start, length] => {
            let start = address(session, start)?;
            (start, start.saturating_add(number(length)?.saturating_sub(1)))
        }
        _ => return Err("write an address and a length at most".into()),
    };
    let mut text = whose;
    line!(text, "{}", regime.describe());
    if !regime.is_on() {
        return Ok(text + &ram(session));
    }
    let mut ranges: Vec<Range> = Vec::new();
    let walked = regions::pages(session, &regime, between, &mut |Page { start, last, mapping, .. }| {
        let permissions = mapping.permissions;
        match ranges.last_mut() {
            Some(range) if range.permissions == permissions && range.end.checked_add(1) == Some(start) => {
                range.end = last;
            }
            _ => ranges.push(Range { start, end: last, permissions }),
        }
        if ranges.len() > MOST_LINES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    walked.map_err(broken_off)?;
    ranges.iter().take(MOST_LINES).for_each(|range| push_range(&mut text, range));
    if ranges.len() > MOST_LINES {
        line!(text, "(and more; give an address to start from)");
    }
    Ok(text)
}

fn push_range(text: &mut String, range: &Range) {
    let Range { start, end, permissions } = range;
    let length = (end - start).checked_add(1).map_or_else(|| "16 EiB".into(), size);
    line!(text, "{start:#018x}-{end:#018x} {permissions} {length}");
}

fn ram<M: Machine>(session: &Session<M>) -> String {
    let mut text = String::new();
    for range in session.machine.memory().ranges() {
        line!(text, "{:#014x}-{:#014x} {}", range.start, range.end().0 - 1, size(range.size));
    }
    text
}

fn exits<M: Machine>(session: &Session<M>) -> String {
    let mut text = String::new();
    for (vcpu, counts) in session.machine.exits().iter().enumerate() {
        let parts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        line!(text, "vCPU {vcpu}: {}", if parts.is_empty() { "none".into() } else { parts.join(", ") });
    }
    text
}

fn breakpoints<M: Machine>(session: &Session<M>) -> String {
    let mut text = String::new();
    // Reasons are those of now, which the engine knows under the same lock.
    let (inserted, former): (Vec<(Breakpoint, bool)>, Vec<Breakpoint>) = {
        let state = session.engine.state();
        let inserted = state.table.entries().map(|(id, it)| (it.clone(), state.is_guarded(id)));
        (inserted.collect(), state.table.former().cloned().collect())
    };
    for (breakpoint, is_guarded) in &inserted {
        let place = place(session, breakpoint, *is_guarded);
        line!(text, "{}", one_breakpoint(breakpoint, &place, ""));
    }
    for breakpoint in &former {
        let place = place(session, breakpoint, false);
        line!(text, "{}", one_breakpoint(breakpoint, &place, " (not inserted now)"));
    }
    for ((kind, address, _), why) in session.refused() {
        line!(text, "{} at {address:#x}: refused, because {why}", kind.name());
    }
    if text.is_empty() {
        line!(text, "there is none");
    }
    text
}

fn one_breakpoint(breakpoint: &Breakpoint, place: &str, note: &str) -> String {
    let length = breakpoint.kind.access().map_or(String::new(), |_| format!(", {} bytes", breakpoint.length));
    let conditions = if breakpoint.conditions.is_empty() { "" } else { ", conditional" };
    let (kind, address, hits) = (breakpoint.kind.name(), breakpoint.address, breakpoint.hits);
    format!("{kind} at {address:#x}{length}: {place}{conditions}; hits: {hits}{note}")
}

/// How a breakpoint is noticed, in words.
fn place<M: Machine>(session: &Session<M>, breakpoint: &Breakpoint, is_guarded: bool) -> String {
    match breakpoint.place {
        Place::Planted(place) if is_guarded => format!(
            "instruction planted at {place:#x}, and a debug register, because its code is still to come"
        ),
        Place::Planted(place) => format!("instruction planted at {place:#x}"),
        Place::Register => "debug register".into(),
        // What it waited for may have come.
        Place::Fallback(NOT_MAPPED | NOT_RAM) => match session.place(breakpoint.kind, breakpoint.address) {
            Place::Fallback(why) => format!("debug register, because {why}"),
            _ => "debug register, until the guest runs on: then an instruction is planted".into(),
        },
        Place::Fallback(why) => format!("debug register, because {why}"),
        Place::NotExecutable { vector: None } => "debug register, because its page cannot be executed".into(),
        Place::NotExecutable { vector: Some(vector) } => format!(
            "debug register, and one on the vector at {vector:#x}, because its page cannot be executed"
        ),
    }
}

fn linux<M: Machine>(session: &Session<M>) -> Result<String, Cancelled> {
    let mut text = String::new();
    let known = session.kernel(Scope::Everything)?;
    match &known.info {
        Some(info) => {
            line!(text, "release: {}", info.release());
            if let Some(slide) = info.slide() {
                line!(text, "moved by {slide:#x} from where it was linked");
                if slide != 0 && session.isa() == Isa::X86_64 && info.has_per_cpu_at_zero() {
                    // qOffsets moves all sections alike, and per-CPU variables have not moved.
                    line!(text, "its per-CPU variables have not moved; for them, load symbols by hand:");
                    line!(text, "  symbol-file");
                    line!(text, "  add-symbol-file vmlinux -o {slide:#x} -s .data..percpu 0");
                }
            }
        }
        None => line!(text, "no Linux kernel has described itself in memory (yet)"),
    }
    match session.kernel_text() {
        Some(address) => line!(text, "mapped from {address:#x} on"),
        None => line!(text, "not mapped where a kernel would be (yet)"),
    }
    for remark in &known.remarks {
        line!(text, "{remark}");
    }
    Ok(text)
}

fn dmesg<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    let most = match arguments {
        [] => usize::MAX,
        [count] => usize::try_from(number(count)?).unwrap_or(usize::MAX),
        _ => return Err("write how many lines are wanted, or nothing".into()),
    };
    let known = session.kernel(Scope::Running).map_err(broken_off)?;
    let Some(info) = &known.info else {
        let mut text = String::from("no Linux kernel has described itself in memory (yet)\n");
        for remark in &known.remarks {
            line!(text, "{remark}");
        }
        return Ok(text);
    };
    Ok(match session.kernel_log(info, most) {
        Ok(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
        Err(error) => {
            session.cancel.check().map_err(broken_off)?;
            format!("{error}\n")
        }
    })
}

fn dump<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    let [path] = arguments else { return Err("write one path".into()) };
    // Whoever may debug the guest may not take away the host's files, nor put one anywhere.
    let destination =
        Destination::below(&session.dump_folder, Path::new(path)).map_err(|error| error.to_string())?;
    let cpus = dump::cpus(&session.machine).map_err(|error| error.to_string())?;
    let state = session.engine.state();
    let unmask = |address, bytes: &mut [u8]| state.table.unmask(address, bytes);
    let memory = Unplanted { memory: session.machine.memory(), unmask: &unmask };
    let target = Target { isa: session.isa(), cpus: &cpus, memory: &memory };
    let written = write::to_destination(&target, &destination, &mut |_| match session.cancel.check() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    written.map(|summary| format!("{path}: {summary}\n")).map_err(|error| error.to_string())
}

fn host<M: Machine>(session: &Session<M>) -> String {
    let host = session.machine.host();
    let mut text = String::new();
    line!(
        text,
        "breakpoint instructions: {}",
        match host.software {
            SoftwareBreakpoints::Trapped => "trapped by KVM",
            SoftwareBreakpoints::EmulationFailure => "seen as an instruction that KVM cannot emulate",
            SoftwareBreakpoints::None => "not seen; debug registers take their place",
        }
    );
    line!(text, "single step: {}", if host.single_step { "yes" } else { "no" });
    line!(text, "breakpoint registers: {}", host.breakpoints);
    line!(
        text,
        "watchpoint registers: {}{}",
        host.watchpoints,
        if host.watchpoints == 0 { " (gdb's software watchpoints work, slowly)" } else { "" }
    );
    line!(
        text,
        "interrupts during a step: {}",
        if host.blocks_interrupts { "kept out by KVM" } else { "masked by us" }
    );
    let space = match session.space(session.current) {
        Space::Virtual(regime) => regime.describe(),
        Space::Physical => "addresses are guest-physical".into(),
    };
    line!(text, "translation: {space}");
    text
}
