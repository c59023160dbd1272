//! How fast the gdb servers are, by a client of the bare protocol on the same machine, and
//! what being debugged costs a guest.

pub mod echo;

use super::{Monitor, command, milliseconds, start};
use crate::context::{Check, Context};
use crate::process::Process;
use crate::rsp::Client;
use arch::Isa;
use debug::gdb::packet::{frame, from_hex};
use kvm::probe::BareSteps;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// One monitor's figures of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Single steps a second.
    pub steps: f64,
    /// Hits a second of a breakpoint whose condition is false: with bytecode in the stub where
    /// the stub takes it, else as gdb does it, without gdb's own time.
    pub hits: f64,
    /// A range step of 100,000 instructions, ms; where the stub has none, as many single steps.
    /// Both are taken from as much as fits into the time.
    pub range: f64,
    /// Memory read, MB a second, with the largest packet that gdb would send: `x` where the
    /// server has it, else `m`.
    pub memory: f64,
    /// A guest's work with a debugger attached and nothing planted, against the same without:
    /// how much longer, in percent. For QEMU, which has no such option, against `-S` and `-gdb`
    /// left out.
    pub attached: f64,
    /// Single steps a second of a loop of the bare ioctls, without any monitor.
    pub bare: f64,
    /// Single steps a second of such a loop behind a port that answers as a stub does and knows nothing else: an
    /// echo that looks for a packet before it sleeps, and a bare step, each measured alone.
    pub sum: f64,
    /// The same done: single steps a second of a process that answers packets and does a bare step for each, on one
    /// thread. What there is to be had.
    pub least: f64,
}

impl Figures {
    /// As a line of a report.
    pub fn line(&self) -> String {
        let Figures { steps, hits, range, memory, attached, bare, sum, least } = self;
        format!("{steps} {hits} {range} {memory} {attached} {bare} {sum} {least}")
    }
}

/// How long each figure is measured, about.
const TIME: Duration = Duration::from_secs(2);
/// Instructions of a range step.
const RANGE: u32 = 100_000;
/// How often the guest does its work with and without a debugger.
const WORKS: usize = 5;

fn rate(begin: Instant, count: u32) -> f64 {
    f64::from(count) / begin.elapsed().as_secs_f64()
}

/// Where the monitor listens for gdb, and the command with the option for it.
fn debugged(c: &Context, monitor: Monitor, mut command: Command) -> (PathBuf, Command) {
    let socket = c.work.join(format!("{monitor:?}.sock"));
    match monitor {
        Monitor::Vmm => command.arg("--gdb").arg(format!("unix:{}", socket.display())),
        Monitor::Qemu => {
            command.arg("-S").arg("-gdb").arg(format!("unix:{},server=on,wait=off", socket.display()))
        }
    };
    (socket, command)
}

/// Measures a monitor's gdb server once.
///
/// # Errors
/// When it does not do what it should.
pub fn once(c: &Context, monitor: Monitor) -> Result<Figures, String> {
    let guest = c.guest("loop", false)?;
    let (socket, command) = debugged(c, monitor, command(c, monitor, &guest, None, ""));
    let (process, _) = start(monitor, command)?;
    let mut client = Client::attach(&socket, Duration::from_secs(60))?;
    // QEMU starts in its firmware.
    let (again, kind) = (loop_address(c.isa), kind(c.isa));
    client.expect(&format!("Z1,{again:x},{kind}"), "OK")?;
    client.run()?;
    client.reply()?;
    client.expect(&format!("z1,{again:x},{kind}"), "OK")?;
    let mut figures = interleaved(c, &mut client)?;
    figures.range = match monitor {
        Monitor::Vmm => range(c.isa, &mut client)?,
        Monitor::Qemu => f64::from(RANGE) * 1000.0 / figures.steps,
    };
    figures.hits = hits(c, &mut client, monitor)?;
    figures.memory = memory(c.isa, &mut client, monitor)?;
    drop(process);
    figures.attached = attached(c, monitor)?;
    Ok(figures)
}

/// Steps of the stub, of the bare ioctls, and of an echo, in turns.
fn interleaved(c: &Context, client: &mut Client) -> Result<Figures, String> {
    const TURNS: u32 = 4;
    let mut echo = Client::attach(&echo::serve(&c.work.join("echo.sock"))?, Duration::from_secs(60))?;
    let socket = c.work.join("steps.sock");
    let least_process = echo::serve_steps(&socket)?;
    let why = |error: String| format!("a bare step: {error}: {}", least_process.errors.text());
    let mut stepping = Client::attach(&socket, Duration::from_secs(60)).map_err(why)?;
    let (mut through, mut bare, mut echoed, mut least) = (0.0, 0.0, 0.0, 0.0);
    for _ in 0..TURNS {
        through += steps(client, TIME / TURNS)?;
        bare += BareSteps::rate(TIME / TURNS)?;
        echoed += steps(&mut echo, TIME / TURNS)?;
        least += steps(&mut stepping, TIME / TURNS).map_err(why)?;
    }
    let mean = |sum: f64| sum / f64::from(TURNS);
    let (bare, echoed) = (mean(bare), mean(echoed));
    let sum = 1.0 / (1.0 / echoed + 1.0 / bare);
    Ok(Figures { steps: mean(through), bare, sum, least: mean(least), ..Figures::default() })
}

const STEP: &str = "vCont;s:p1.1";

fn steps(client: &mut Client, time: Duration) -> Result<f64, String> {
    // Everything warm.
    for _ in 0..20 {
        client.expect(STEP, "T*")?;
    }
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < time {
        client.expect(STEP, "T*")?;
        count += 1;
    }
    Ok(rate(begin, count))
}

/// The range is all of the guest: it goes on until it is interrupted, two instructions a count.
fn range(isa: Isa, client: &mut Client) -> Result<f64, String> {
    let range = match isa {
        Isa::X86_64 => "100000,100100",
        Isa::Aarch64 => "40200000,40200100",
    };
    let before = little_endian(&client.ask("p0")?)?;
    let begin = Instant::now();
    client.send(&frame(format!("vCont;r{range}:p1.1").as_bytes()))?;
    std::thread::park_timeout(TIME);
    client.interrupt()?;
    let after = little_endian(&client.ask("p0")?)?;
    let done = after.wrapping_sub(before).max(1) * 2;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = begin.elapsed().as_secs_f64() / done as f64;
    Ok(each * f64::from(RANGE) * 1000.0)
}

fn memory(isa: Isa, client: &mut Client, monitor: Monitor) -> Result<f64, String> {
    let size = 1u64 << 20;
    let base = match isa {
        Isa::X86_64 => 0x20_0000u64,
        Isa::Aarch64 => 0x4100_0000,
    };
    // The largest piece that the server takes, in gdb's newest way of asking for it.
    let (packet, piece): (_, u64) = match monitor {
        Monitor::Vmm => ('x', 0xf000),
        Monitor::Qemu => ('m', 0x7f0),
    };
    let (begin, mut bytes) = (Instant::now(), 0);
    while begin.elapsed() < TIME {
        let at = base + bytes % (size - piece);
        let got = client.ask_length(&format!("{packet}{at:x},{piece:x}"))? as u64;
        let expected = if packet == 'x' { piece + 1 } else { piece * 2 };
        if got != expected {
            return Err(format!("{got} bytes of reply instead of {expected}"));
        }
        bytes += piece;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(bytes as f64 / begin.elapsed().as_secs_f64() / 1e6)
}

/// The loop's first instruction.
fn loop_address(isa: Isa) -> u64 {
    match isa {
        Isa::X86_64 => 0x10_0002,
        Isa::Aarch64 => 0x4020_0004,
    }
}

/// What gdb calls the kind of a breakpoint.
fn kind(isa: Isa) -> u32 {
    if isa == Isa::X86_64 { 1 } else { 4 }
}

/// The bytecode of "register == value".
fn condition(register: u8, value: u64) -> String {
    let code = format!("2600{register:02x}25{value:016x}1327");
    format!("X{:x},{code}", code.len() / 2)
}

fn little_endian(text: &str) -> Result<u64, String> {
    let bytes = from_hex(text.as_bytes()).filter(|bytes| bytes.len() == 8);
    let bytes: [u8; 8] =
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(format!("a register is {text}"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Hits a second of a breakpoint in the loop whose condition is never true.
fn hits(c: &Context, client: &mut Client, monitor: Monitor) -> Result<f64, String> {
    let (again, kind) = (loop_address(c.isa), kind(c.isa));
    match monitor {
        Monitor::Vmm => {
            let before = little_endian(&client.ask("p0")?)?;
            client.expect(&format!("Z0,{again:x},{kind};{}", condition(0, u64::MAX)), "OK")?;
            let begin = Instant::now();
            client.run()?;
            std::thread::park_timeout(TIME);
            client.interrupt()?;
            let elapsed = begin.elapsed().as_secs_f64();
            let after = little_endian(&client.ask("p0")?)?;
            client.expect(&format!("z0,{again:x},{kind}"), "OK")?;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            Ok(after.wrapping_sub(before) as f64 / elapsed)
        }
        Monitor::Qemu => {
            // QEMU does not see a planted instruction that a software KVM fails to emulate; its
            // user would take a hardware breakpoint.
            let way = if c.in_nest { 0 } else { 1 };
            let (insert, remove) = (format!("Z{way},{again:x},{kind}"), format!("z{way},{again:x},{kind}"));
            let (begin, mut count) = (Instant::now(), 0);
            client.expect(&insert, "OK")?;
            while begin.elapsed() < TIME {
                client.run()?;
                client.reply()?;
                // gdb takes its breakpoints out, looks, steps off, and puts them back.
                client.expect(&remove, "OK")?;
                client.ask("g")?;
                client.expect(STEP, "T*")?;
                client.expect(&insert, "OK")?;
                count += 1;
            }
            client.expect(&remove, "OK")?;
            Ok(rate(begin, count))
        }
    }
}

/// How much longer a guest's work takes with a debugger attached, percent: the fastest of each.
fn attached(c: &Context, monitor: Monitor) -> Result<f64, String> {
    let guest = c.guest("work", false)?;
    let limit = Duration::from_secs(60);
    let time = |process: &mut Process| -> Result<f64, String> {
        process.expect("a", limit)?;
        let begin = Instant::now();
        process.expect("b", limit)?;
        Ok(milliseconds(begin))
    };
    let (mut alone, mut watched) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..WORKS {
        let (mut process, _) = start(monitor, command(c, monitor, &guest, None, ""))?;
        alone = alone.min(time(&mut process)?);
        drop(process);
        let (socket, command) = debugged(c, monitor, command(c, monitor, &guest, None, ""));
        let (mut process, _) = start(monitor, command)?;
        let mut client = Client::attach(&socket, limit)?;
        client.run()?;
        watched = watched.min(time(&mut process)?);
    }
    Ok((watched / alone - 1.0) * 100.0)
}

/// Measures `vmm`'s gdb server once.
///
/// # Errors
/// As [`once`].
pub fn vmm(c: &mut Context) -> Check {
    keep(c, Monitor::Vmm)
}

/// Measures QEMU's gdb server once.
///
/// # Errors
/// As [`once`].
pub fn qemu(c: &mut Context) -> Check {
    keep(c, Monitor::Qemu)
}

fn keep(c: &mut Context, monitor: Monitor) -> Check {
    let figures = once(c, monitor)?;
    c.kept.push(("figures".into(), figures.line().into_bytes()));
    Ok(())
}

/// From the start of gdb, with a kernel's symbols, to its first prompt, ms; without `socket` the
/// same without a target.
///
/// # Errors
/// When gdb does not get there.
pub fn to_prompt(symbols: &std::path::Path, socket: Option<&std::path::Path>) -> Result<f64, String> {
    let mut command = Command::new("gdb-multiarch");
    command.args(["-nx", "-batch", "-ex", "set pagination off", "-ex"]);
    command.arg(format!("file {}", symbols.display()));
    if let Some(socket) = socket {
        command.arg("-ex").arg(format!("target remote {}", socket.display()));
        command.args(["-ex", "p $pc"]);
    }
    let begin = Instant::now();
    let output = command.output().map_err(|error| format!("gdb: {error}"))?;
    let elapsed = milliseconds(begin);
    let text = String::from_utf8_lossy(&output.stdout);
    if socket.is_some() && !text.contains("$1 = ") {
        return Err(format!("gdb does not attach: {text}{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(elapsed)
}

/// Starts a monitor that waits for gdb with a Debian kernel, and times gdb's way to its prompt.
///
/// # Errors
/// When it does not get there.
pub fn attach(c: &Context, monitor: Monitor, symbols: &std::path::Path) -> Result<f64, String> {
    let (socket, command) = debugged(c, monitor, command(c, monitor, &c.kernel("6.12"), None, ""));
    let (process, _) = start(monitor, command)?;
    wait_for(&socket);
    let time = to_prompt(symbols, Some(&socket));
    drop(process);
    time
}

/// What a person with stock gdb sees: hits a second of a breakpoint whose condition is false, and
/// `next` over a loop of 100,000 instructions, ms. QEMU's are taken from fewer, in proportion.
///
/// # Errors
/// When gdb does not do what it should.
pub fn with_gdb(c: &Context, monitor: Monitor) -> Result<(f64, f64), String> {
    let (hits, turns) = match monitor {
        Monitor::Vmm => (100_000, RANGE / 3),
        Monitor::Qemu => (1000, RANGE / 300),
    };
    let place = format!("*{:#x}", loop_address(c.isa));
    let stop = |monitor| if monitor == Monitor::Qemu { "hbreak" } else { "break" };
    let (counter, result) = match c.isa {
        Isa::X86_64 => ("$rcx", "$rax"),
        Isa::Aarch64 => ("$x2", "$x0"),
    };
    let seconds = gdb_time(
        c,
        monitor,
        "loop",
        &place,
        &[&format!("set var {result} = 0"), &format!("{} {place} if {result} == {hits}", stop(monitor))],
        "continue",
    )?;
    let rate = f64::from(hits) / seconds;
    let seconds = gdb_time(c, monitor, "next", "*&body", &[&format!("set var {counter} = {turns}")], "next")?;
    Ok((rate, seconds * 1000.0 * f64::from(RANGE) / f64::from(turns * 3)))
}

/// Starts a guest, has gdb run to `place` and do `before`, and times one command, s.
fn gdb_time(
    c: &Context,
    monitor: Monitor,
    guest: &str,
    place: &str,
    before: &[&str],
    timed: &str,
) -> Result<f64, String> {
    let guest = c.guest(guest, false)?;
    let (socket, command) = debugged(c, monitor, command(c, monitor, &guest, None, ""));
    // A socket of an earlier guest would be taken for this one's.
    std::fs::remove_file(&socket).ok();
    let (process, _) = start(monitor, command)?;
    wait_for(&socket);
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]);
    gdb.arg(&guest).arg("-ex").arg(format!("target remote {}", socket.display()));
    gdb.arg("-ex").arg(format!("hbreak {place}")).args(["-ex", "continue", "-ex", "delete"]);
    for command in before {
        gdb.args(["-ex", command]);
    }
    gdb.args(["-ex", "python import time; begin = time.time()", "-ex", timed]);
    gdb.args(["-ex", "python print('seconds', time.time() - begin)", "-ex", "kill"]);
    let output = gdb.output().map_err(|error| format!("gdb: {error}"))?;
    drop(process);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("seconds ")?.parse().ok())
        .ok_or_else(|| format!("gdb: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Waits for a monitor's socket: a client that came first would let the guest run when it went.
fn wait_for(socket: &std::path::Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() && Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
