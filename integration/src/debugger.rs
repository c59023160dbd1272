//! gdb, on the machine that runs the tests, with a script's commands.

use crate::artifacts::Kernel;
use crate::cases::Case;
use crate::cases::gdb::{Program, Script};
use crate::guests;
use crate::process::{Process, Wiring};
use arch::Isa;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long all of a script may take.
const LIMIT: Duration = Duration::from_secs(150);

/// Runs a case's debugger against `socket`, which may not be there yet. What it prints is kept
/// in `folder`, with the commands if it `echoes` them.
///
/// # Errors
/// What it printed instead of what it should.
pub fn run(
    isa: Isa,
    case: &Case,
    script: &Script,
    socket: &Path,
    folder: &Path,
    echoes: bool,
) -> Result<(), String> {
    let commands = folder.join("commands.gdb");
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(|error| error.to_string());
    let program = match script.program {
        Program::Guest(name) => {
            let guest = guests::find(isa.name(), name, false).ok_or("there is no such guest")?;
            let path = folder.join(format!("{name}.elf"));
            write(&path, guest.bytes)?;
            path
        }
        Program::Debian(series) => Kernel::new(isa, series).vmlinux(),
    };
    let text = format!(
        "set pagination off\nset confirm off\nset width 0\nset remotetimeout 100\nset print frame-arguments none\n\
         file {}\n{}target remote {}\n{}",
        program.display(),
        if echoes { "set trace-commands on\n" } else { "" },
        socket.display(),
        (script.commands)(isa)
    );
    write(&commands, text.as_bytes())?;
    let deadline = Instant::now() + LIMIT;
    while !socket.exists() {
        if Instant::now() >= deadline {
            return Err("there is no socket to connect to".into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    // What the target says goes to gdb's standard error; a person sees both in one order.
    let mut command = Command::new("sh");
    command.args(["-c", "exec gdb-multiarch -nx -batch -x \"$0\" 2>&1"]).arg(&commands);
    let mut gdb = Process::start("gdb", command, Wiring::Pipes).map_err(|error| format!("gdb: {error}"))?;
    gdb.close_input();
    let ended = gdb.wait_status(LIMIT);
    let output = gdb.output.text();
    write(&folder.join("gdb.log"), output.as_bytes())?;
    ended?;
    let mut rest = output.as_str();
    for text in (script.prints)(isa) {
        match rest.find(&text) {
            Some(at) => rest = &rest[at + text.len()..],
            None => {
                return Err(format!("{}: gdb does not print {text:?}; all of it:\n{output}", case.name));
            }
        }
    }
    Ok(())
}
