//! gdb, on the machine that runs the tests, with a script's commands.

use crate::artifacts::Kernel;
use crate::cases::Case;
use crate::cases::gdb::{Program, Script, Tool};
use crate::context::Length;
use crate::guests;
use crate::process::{Process, Wiring};
use arch::Isa;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long all of a script may take, and a long run in full.
const LIMIT: Duration = Duration::from_secs(150);
const SOAK_LIMIT: Duration = Duration::from_secs(3600);

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
    let commands = folder.join("commands");
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(|error| error.to_string());
    let program = match script.program {
        Program::Guest(name) | Program::Flat(name) => {
            let is_flat = matches!(script.program, Program::Flat(_));
            let guest = guests::find(isa.name(), name, is_flat).ok_or("there is no such guest")?;
            let path = folder.join(format!("{name}.elf"));
            write(&path, guest.bytes)?;
            path
        }
        Program::Monitor => {
            let guest = guests::find(isa.name(), "monitor", false).ok_or("there is no such guest")?;
            let path = folder.join("monitor.elf");
            write(&path, guest.bytes)?;
            path
        }
        Program::Debian(series) => Kernel::new(isa, series).vmlinux(),
    };
    let text = match script.tool {
        Tool::Gdb => gdb_commands(script, isa, &program, socket, echoes),
        Tool::Lldb => lldb_commands(script, isa, &program, socket),
    };
    write(&commands, text.as_bytes())?;
    let limit = match Length::of_environment() {
        Length::Full { .. } if case.name.starts_with("long_") => SOAK_LIMIT,
        _ => LIMIT,
    };
    let deadline = Instant::now() + limit;
    while !socket.exists() {
        if Instant::now() >= deadline {
            return Err("there is no socket to connect to".into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    // What the target says goes to gdb's standard error; a person sees both in one order. lldb
    // takes Python from the environment and complains where it is another one than its own.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        match script.tool {
            Tool::Gdb => "exec gdb-multiarch -nx -batch -x \"$0\" 2>&1",
            Tool::Lldb => "PATH=/usr/bin:/bin exec lldb --batch --no-lldbinit -s \"$0\" 2>&1",
        },
    ]);
    command.arg(&commands).env_remove("PYTHONHOME").env_remove("PYTHONPATH");
    let mut gdb = Process::start("debugger", command, Wiring::Pipes)
        .map_err(|error| format!("the debugger: {error}"))?;
    gdb.close_input();
    let ended = gdb.wait_status(limit);
    let output = gdb.output.text();
    write(&folder.join("debugger.log"), output.as_bytes())?;
    ended?;
    let mut rest = output.as_str();
    for text in (script.prints)(isa) {
        match rest.find(&text) {
            Some(at) => rest = &rest[at + text.len()..],
            None => {
                return Err(format!(
                    "{}: the debugger does not print {text:?}; all of it:\n{output}",
                    case.name
                ));
            }
        }
    }
    Ok(())
}

fn gdb_commands(script: &Script, isa: Isa, program: &Path, socket: &Path, echoes: bool) -> String {
    let mut text = String::from(
        "set pagination off\nset confirm off\nset width 0\nset remotetimeout 100\n\
         set print frame-arguments none\n",
    );
    text.push_str(&format!("file {}\n", program.display()));
    let socket = socket.display();
    // For scripts that attach again.
    text.push_str(&format!("python import time; socket = '{socket}'\n"));
    if let Program::Debian(series) = script.program {
        let helpers = Kernel::new(isa, series).gdb_helpers();
        text.push_str(&format!("python helpers = '{}'\n", helpers.display()));
        text.push_str("python linked = int(gdb.parse_and_eval('(unsigned long)&linux_banner'))\n");
    }
    if echoes {
        text.push_str("set trace-commands on\n");
    }
    text.push_str(&format!("target remote {socket}\n{}", (script.commands)(isa)));
    text
}

fn lldb_commands(script: &Script, isa: Isa, program: &Path, socket: &Path) -> String {
    format!(
        "settings set plugin.process.gdb-remote.packet-timeout 100\n\
         target create {}\n\
         process connect --plugin gdb-remote unix-connect://{}\n{}",
        program.display(),
        socket.display(),
        (script.commands)(isa).replace("{socket}", &socket.display().to_string())
    )
}
