//! What `make bench` measures, run inside a nest: one monitor, with the same kernel and the
//! same userspace as the other. Times are from the start of the monitor's process.
//!
//! Each sample has a nest of its own. The emulator keeps translations of a guest that has
//! ended, and every write of the next guest to the memory it got back pays for them: on
//! aarch64 a second guest in the same nest took four times as long to boot, whatever monitor
//! ran it (docs/testing.md).

use crate::context::{Check, Context};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use arch::Isa;
use debug::gdb::packet::{frame, from_hex};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Memory of the guests, MiB.
pub const GUEST_MEMORY: u64 = 256;
/// How often each figure is taken.
pub const RUNS: usize = 5;

/// One monitor's figures of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// To the byte that a guest's first instructions send to the console, ms.
    pub first_instruction: f64,
    /// To the first byte on the console, with the kernel's messages on, ms.
    pub first_line: f64,
    /// To the first thing that the first process does, `quiet`, ms.
    pub init: f64,
    /// Resident memory beyond the guest's, KiB.
    pub rss: f64,
}

/// A monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// Ours.
    Vmm,
    /// Debian's QEMU with KVM: microvm on x86_64, virt on aarch64.
    Qemu,
}

fn command(c: &Context, monitor: Monitor, kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Command {
    let mut command;
    match monitor {
        Monitor::Vmm => {
            command = Command::new(&c.vmm);
            command.args(["--memory", &format!("{GUEST_MEMORY}M"), "--cmdline", cmdline]);
            command.arg("--kernel").arg(kernel);
            if let Some(initrd) = initrd {
                command.arg("--initrd").arg(initrd);
            }
        }
        Monitor::Qemu => {
            command = Command::new("/peer/lib/loader");
            command.args(["--library-path", "/peer/lib", "/peer/qemu"]);
            match c.isa {
                Isa::X86_64 => {
                    command.args(["-M", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on"]);
                    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
                }
                Isa::Aarch64 => {
                    command.args(["-M", "virt,gic-version=3"]);
                }
            }
            command.args(["-accel", "kvm", "-cpu", "host", "-m", &GUEST_MEMORY.to_string()]);
            command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
            command.args(["-serial", "stdio", "-L", "/peer/share", "-append", cmdline]);
            command.arg("-kernel").arg(kernel);
            if let Some(initrd) = initrd {
                command.arg("-initrd").arg(initrd);
            }
        }
    }
    command
}

/// The console argument of the kernel: QEMU's virt machine has a PL011.
fn console(c: &Context, monitor: Monitor) -> &'static str {
    match (c.isa, monitor) {
        (Isa::Aarch64, Monitor::Qemu) => "console=ttyAMA0",
        _ => "console=ttyS0",
    }
}

fn start(monitor: Monitor, command: Command) -> Result<(Process, Instant), String> {
    let begin = Instant::now();
    let process = Process::start(&format!("{monitor:?}"), command, Wiring::Pipes);
    process.map(|process| (process, begin)).map_err(|error| format!("{monitor:?}: {error}"))
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// Measures a monitor once.
///
/// # Errors
/// When it does not do what it should.
pub fn once(c: &Context, monitor: Monitor) -> Result<Figures, String> {
    let limit = Duration::from_secs(120);
    let console = console(c, monitor);
    let mut figures = Figures::default();

    let guest = c.guest("first_byte", false)?;
    let (mut process, begin) = start(monitor, command(c, monitor, &guest, None, console))?;
    process.expect("!", limit)?;
    figures.first_instruction = milliseconds(begin);
    drop(process);

    let (kernel, initrd) = (c.kernel("6.12"), c.initrd());
    let line = format!("{console} quiet vmm.run=idle");
    let (mut process, begin) = start(monitor, command(c, monitor, &kernel, Some(&initrd), &line))?;
    process.expect("guest: init", limit)?;
    figures.init = milliseconds(begin);
    process.expect("guest: up", limit)?;
    figures.rss = rss_beyond_guest(process.id())?;
    drop(process);

    let line = format!("{console} vmm.run=poweroff");
    let (mut process, begin) = start(monitor, command(c, monitor, &kernel, Some(&initrd), &line))?;
    process.expect("Linux version", limit)?;
    figures.first_line = milliseconds(begin);
    Ok(figures)
}

/// Resident memory of a process without the mapping that is the guest's RAM, KiB.
///
/// # Errors
/// When the process cannot be looked at.
pub fn rss_beyond_guest(pid: u32) -> Result<f64, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).map_err(|error| error.to_string())?;
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let (mut total, mut size) = (0, 0);
    for line in text.lines() {
        if line.starts_with("Size:") {
            size = number(line).unwrap_or(0);
        } else if line.starts_with("Rss:") && size < GUEST_MEMORY << 10 {
            total += number(line).unwrap_or(0);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(total as f64)
}

/// Measures `vmm` once; the figures are a line of the report.
///
/// # Errors
/// As [`once`].
pub fn vmm(c: &mut Context) -> Check {
    keep(c, Monitor::Vmm)
}

/// Measures QEMU once.
///
/// # Errors
/// As [`once`].
pub fn qemu(c: &mut Context) -> Check {
    keep(c, Monitor::Qemu)
}

fn keep(c: &mut Context, monitor: Monitor) -> Check {
    let Figures { first_instruction, first_line, init, rss } = once(c, monitor)?;
    c.kept.push(("figures".into(), format!("{first_instruction} {first_line} {init} {rss}").into_bytes()));
    Ok(())
}

/// How fast a monitor's gdb server is, by a client of the bare protocol on the same machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DebugFigures {
    /// Single steps a second.
    pub steps: f64,
    /// Hits a second of a breakpoint whose condition is false: with bytecode in the stub where
    /// the stub takes it, else as gdb does it, without gdb's own time.
    pub hits: f64,
    /// A range step of ten thousand instructions, ms; where the stub has none, as many single
    /// steps.
    pub range: f64,
    /// Memory read, MB a second.
    pub memory: f64,
}

/// How long each figure is measured, about.
const DEBUG_TIME: Duration = Duration::from_secs(2);
/// Instructions of a range step.
const RANGE: u32 = 10_000;

fn rate(begin: Instant, count: u32) -> f64 {
    f64::from(count) / begin.elapsed().as_secs_f64()
}

/// Measures a monitor's gdb server once.
///
/// # Errors
/// When it does not do what it should.
pub fn debug_once(c: &Context, monitor: Monitor) -> Result<DebugFigures, String> {
    let limit = Duration::from_secs(60);
    let (guest, socket) = (c.guest("loop", false)?, c.work.join(format!("{monitor:?}.sock")));
    let mut command = command(c, monitor, &guest, None, "");
    match monitor {
        Monitor::Vmm => command.arg("--gdb").arg(format!("unix:{}", socket.display())),
        Monitor::Qemu => {
            command.arg("-S").arg("-gdb").arg(format!("unix:{},server=on,wait=off", socket.display()))
        }
    };
    let (process, _) = start(monitor, command)?;
    let mut client = Client::attach(&socket, limit)?;
    let mut figures = DebugFigures::default();
    let step = "vCont;s:p1.1";
    // Into the loop, and everything warm.
    for _ in 0..20 {
        client.expect(step, "T*")?;
    }
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < DEBUG_TIME {
        client.expect(step, "T*")?;
        count += 1;
    }
    figures.steps = rate(begin, count);

    let begin = Instant::now();
    match monitor {
        Monitor::Vmm => {
            // All of the guest: it goes on until it is interrupted, two instructions a count.
            let range = match c.isa {
                Isa::X86_64 => "100000,100100",
                Isa::Aarch64 => "40200000,40200100",
            };
            let before = little_endian(&client.ask("p0")?)?;
            let begin = Instant::now();
            client.send(&frame(format!("vCont;r{range}:p1.1").as_bytes()))?;
            std::thread::park_timeout(DEBUG_TIME);
            client.interrupt()?;
            let after = little_endian(&client.ask("p0")?)?;
            let done = after.wrapping_sub(before).max(1) * 2;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let each = begin.elapsed().as_secs_f64() / done as f64;
            figures.range = each * f64::from(RANGE) * 1000.0;
        }
        Monitor::Qemu => {
            for _ in 0..1000 {
                client.expect(step, "T*")?;
            }
            figures.range = milliseconds(begin) * f64::from(RANGE) / 1000.0;
        }
    }

    figures.hits = hits(c, &mut client, monitor)?;

    let size = 1u64 << 20;
    let base = match c.isa {
        Isa::X86_64 => 0x20_0000u64,
        Isa::Aarch64 => 0x4100_0000,
    };
    // The largest packet that the server takes.
    let piece: u64 = if monitor == Monitor::Vmm { 0x8000 } else { 0x7f0 };
    let (begin, mut bytes) = (Instant::now(), 0u32);
    while begin.elapsed() < DEBUG_TIME {
        let at = base + u64::from(bytes) % (size - piece);
        let reply = client.ask(&format!("m{at:x},{piece:x}"))?;
        if reply.len() as u64 != piece * 2 {
            return Err(format!("{} digits of memory", reply.len()));
        }
        bytes += u32::try_from(piece).unwrap_or(0);
    }
    figures.memory = rate(begin, bytes) / 1e6;
    drop(process);
    Ok(figures)
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
            std::thread::park_timeout(DEBUG_TIME);
            client.interrupt()?;
            let elapsed = begin.elapsed().as_secs_f64();
            let after = little_endian(&client.ask("p0")?)?;
            client.expect(&format!("z0,{again:x},{kind}"), "OK")?;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            Ok(after.wrapping_sub(before) as f64 / elapsed)
        }
        Monitor::Qemu => {
            let (insert, remove) = (format!("Z0,{again:x},{kind}"), format!("z0,{again:x},{kind}"));
            let (begin, mut count) = (Instant::now(), 0);
            client.expect(&insert, "OK")?;
            while begin.elapsed() < DEBUG_TIME {
                client.run()?;
                client.reply()?;
                // gdb takes its breakpoints out, looks, steps off, and puts them back.
                client.expect(&remove, "OK")?;
                client.ask("g")?;
                client.expect("vCont;s:p1.1", "T*")?;
                client.expect(&insert, "OK")?;
                count += 1;
            }
            client.expect(&remove, "OK")?;
            Ok(rate(begin, count))
        }
    }
}

/// Measures `vmm`'s gdb server once.
///
/// # Errors
/// As [`debug_once`].
pub fn vmm_debug(c: &mut Context) -> Check {
    keep_debug(c, Monitor::Vmm)
}

/// Measures QEMU's gdb server once.
///
/// # Errors
/// As [`debug_once`].
pub fn qemu_debug(c: &mut Context) -> Check {
    keep_debug(c, Monitor::Qemu)
}

fn keep_debug(c: &mut Context, monitor: Monitor) -> Check {
    let DebugFigures { steps, hits, range, memory } = debug_once(c, monitor)?;
    c.kept.push(("figures".into(), format!("{steps} {hits} {range} {memory}").into_bytes()));
    Ok(())
}
