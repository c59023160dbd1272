//! What `make bench` measures, run inside a nest: one monitor, with the same kernel and the
//! same userspace as the other. Times are from the start of the monitor's process.
//!
//! Each sample has a nest of its own. The emulator keeps translations of a guest that has
//! ended, and every write of the next guest to the memory it got back pays for them: on
//! aarch64 a second guest in the same nest took four times as long to boot, whatever monitor
//! ran it (docs/testing.md).

pub mod calls;
pub mod debugging;
pub mod dumps;
pub mod job;
pub mod linux;
pub mod names;

use crate::context::{Check, Context};
use crate::process::{Process, Wiring};
use arch::Isa;
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
            command = qemu_command(
                c,
                match c.isa {
                    Isa::X86_64 => "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on",
                    Isa::Aarch64 => "virt,gic-version=3",
                },
            );
            if c.isa == Isa::X86_64 {
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
            }
            command.args(["-append", cmdline]).arg("-kernel").arg(kernel);
            if let Some(initrd) = initrd {
                command.arg("-initrd").arg(initrd);
            }
        }
    }
    command
}

/// Debian's QEMU with KVM and this machine, a guest of [`GUEST_MEMORY`] and its console, and nothing else.
fn qemu_command(c: &Context, machine: &str) -> Command {
    let mut command = with_its_libraries(c, "qemu");
    let cpu = match c.isa {
        // A software KVM does not take the MSR that goes with the flag.
        Isa::X86_64 => "host,-arch-capabilities",
        Isa::Aarch64 => "host",
    };
    command.args(["-M", machine, "-accel", "kvm", "-cpu", cpu, "-m", &GUEST_MEMORY.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-L").arg(c.files.join("peer/share"));
    command
}

/// A program of the peer's.
fn with_its_libraries(c: &Context, program: &str) -> Command {
    let peer = c.files.join("peer");
    let (libraries, loader) = (peer.join("lib"), loader(c.isa));
    let mut command = Command::new(libraries.join(loader));
    command.arg("--library-path").arg(&libraries).arg(peer.join(program));
    command
}

/// What starts the peer's programs with libraries of their own.
fn loader(isa: Isa) -> &'static str {
    match isa {
        Isa::X86_64 => "ld-linux-x86-64.so.2",
        Isa::Aarch64 => "ld-linux-aarch64.so.1",
    }
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

/// The one in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
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
