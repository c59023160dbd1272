//! What dumps cost: written by us and by QEMU of the same guest, on this machine's own KVM; then opened.

use super::{Monitor, command};
use crate::artifacts::Kernel;
use crate::context::Context;
use crate::process::{Process, Wiring};
use crate::qemu_cores::Qmp;
use arch::GuestVirt;
use debug::dump;
use debug::dump::core::Core;
use debug::machine::Machine;
use debug::source::OnDisk;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memory of the guest, MiB, of which it uses 200.
pub const MEMORY_MIB: u32 = 2048;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Page walks that are timed.
const WALKS: u32 = 2_000_000;

/// MiB of a kernel's file that a guest has in its memory when compression is timed.
pub const CONTENT_MIB: u32 = 128;

/// One round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Milliseconds that a dump takes, whoever asks for it included.
    pub written: f64,
    /// MiB on disk.
    pub size: f64,
}

/// Has a monitor dump its guest, once.
///
/// # Errors
/// When it does not.
pub fn once(c: &Context, monitor: Monitor, path: &Path) -> Result<Figures, String> {
    let guest = c.guest("fill", false)?;
    let mut command = command(c, monitor, &guest, None, "");
    let qmp = c.work.join("qmp.sock");
    match monitor {
        // clap takes an option once.
        Monitor::Vmm => {
            command = Command::new(&c.vmm);
            command
                .args(["--name", "bench-dumps", "--memory", &format!("{MEMORY_MIB}M"), "--kernel"])
                .arg(&guest)
        }
        Monitor::Qemu => command
            .args(["-m", &MEMORY_MIB.to_string(), "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display())),
    };
    // One that was there would be replaced, which takes time of its own.
    fs::remove_file(path).ok();
    let mut process = Process::start("monitor", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    process.expect("b", LIMIT)?;
    let begin;
    match monitor {
        Monitor::Vmm => {
            begin = Instant::now();
            ask(c, "bench-dumps", path)?;
        }
        Monitor::Qemu => {
            let mut control = Qmp::connect(&qmp)?;
            begin = Instant::now();
            let arguments = json!({ "protocol": format!("file:{}", path.display()), "paging": false });
            control.ask("dump-guest-memory", &arguments)?;
        }
    }
    let written = begin.elapsed().as_secs_f64() * 1000.0;
    let blocks = fs::metadata(path).map_err(|error| error.to_string())?.blocks();
    #[allow(clippy::cast_precision_loss, reason = "sizes of files are far below that")]
    let size = (blocks * 512) as f64 / f64::from(1 << 20);
    Ok(Figures { written, size })
}

/// Milliseconds that a dump to a file of this name takes of a guest that has a part of its kernel's
/// file, symbols and all, in its memory; by one processor or by all.
///
/// # Errors
/// When it cannot be made.
pub fn packed(c: &Context, name: &str, by_all: bool) -> Result<f64, String> {
    let failed = |error: io::Error| error.to_string();
    let content = c.work.join("content");
    if !content.exists() {
        let vmlinux = File::open(Kernel::new(c.isa, "6.12").vmlinux()).map_err(failed)?;
        let mut part = File::create(&content).map_err(failed)?;
        io::copy(&mut vmlinux.take(u64::from(CONTENT_MIB) << 20), &mut part).map_err(failed)?;
    }
    let path = c.work.join(name);
    fs::remove_file(&path).ok();
    let mut command = Command::new(if by_all { Path::new("env") } else { Path::new("taskset") });
    command.args(if by_all { &[][..] } else { &["--cpu-list", "0"] }).arg(&c.vmm);
    command.args(["--name", "bench-packed", "--memory", "512M", "--kernel"]).arg(c.guest("fill", false)?);
    command.arg("--initrd").arg(&content);
    let mut process = Process::start("monitor", command, Wiring::Pipes).map_err(failed)?;
    process.expect("b", LIMIT)?;
    let begin = Instant::now();
    ask(c, "bench-packed", &path)?;
    let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
    fs::remove_file(&path).map_err(failed)?;
    Ok(elapsed)
}

/// `vmm dump`.
fn ask(c: &Context, name: &str, path: &Path) -> Result<(), String> {
    let done = Command::new(&c.vmm).args(["dump", name]).arg(path).output();
    let done = done.map_err(|error| error.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

/// Milliseconds from the start of `vmm core --gdb` to the end of a gdb that has asked where the guest was.
///
/// # Errors
/// When that does not come.
pub fn to_prompt(c: &Context, path: &Path) -> Result<f64, String> {
    let socket = c.work.join("core.sock");
    let begin = Instant::now();
    let mut command = Command::new(&c.vmm);
    command.arg("core").arg(path).arg("--gdb").arg(format!("unix:{}", socket.display()));
    let mut server = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    while !socket.exists() && !server.has_ended() && begin.elapsed() < LIMIT {
        std::thread::yield_now();
    }
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-ex"]).arg(format!("target remote {}", socket.display()));
    let said = gdb.args(["-ex", "p $pc", "-ex", "kill"]).output().map_err(|error| error.to_string())?;
    let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
    server.wait(LIMIT)?;
    let text = String::from_utf8_lossy(&said.stdout);
    if text.contains("$1 = ") { Ok(elapsed) } else { Err(format!("gdb does not tell where it was: {text}")) }
}

/// Page walks a second in a dump of a guest whose paging is on, at addresses all over its memory.
///
/// # Errors
/// When it cannot be made or opened.
pub fn walks(c: &Context, path: &Path) -> Result<f64, String> {
    let guest = c.guest("spin", false)?;
    let mut command = Command::new(&c.vmm);
    command.args(["--name", "bench-walks", "--memory", &format!("{MEMORY_MIB}M"), "--kernel"]).arg(&guest);
    let mut process = Process::start("monitor", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let begin = Instant::now();
    while ask(c, "bench-walks", path).is_err() {
        if process.has_ended() || begin.elapsed() > LIMIT {
            return Err("there is no dump to walk in".into());
        }
    }
    let source = File::open(path).and_then(OnDisk::new).map_err(|error| error.to_string())?;
    let contents = dump::open(Arc::new(source)).map_err(|error| error.to_string())?;
    let core = Core::new(contents, false).map_err(|error| error.to_string())?;
    let regime = core.regime(0).map_err(|error| error.to_string())?;
    let size = u64::from(MEMORY_MIB) << 20;
    let (mut at, mut steps) = (0u64, 0u32);
    let begin = Instant::now();
    for _ in 0..WALKS {
        at = (at + 0x9e37_79b9_7f4a_7000) % size;
        regime.walk(core.memory(), GuestVirt(at), |_| steps += 1).map_err(|fault| fault.to_string())?;
    }
    let rate = f64::from(WALKS) / begin.elapsed().as_secs_f64();
    if steps >= 2 * WALKS { Ok(rate) } else { Err("its paging is off".into()) }
}
