//! `vmm monitor`: commands of gdb's `monitor` that look at a guest, from a shell.

mod prompt;

use super::candidates::commands;
use super::named_guest::{NamedGuest, tell};
use crate::control::client::ask;
use crate::control::protocol::{MonitorLine, Request};
use std::io::{self, IsTerminal};

/// Look at a guest that runs, by commands as gdb's monitor has them: why, ps, bt, locks, dmesg, regs, read
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
    /// The command and its words (help shows what there is); without one, a prompt, or the lines of standard input
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, add = commands())]
    command: Vec<String>,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let guest = args.guest.name();
    match args.command[..] {
        [] if io::stdin().is_terminal() => prompt::at_terminal(guest, args.json),
        [] => prompt::of_script(guest, args.json, io::stdin().lock()),
        _ => ask_line(guest, &args.command.join(" "), args.json),
    }
}

/// Has a line carried out, and tells the answer; the exit code.
fn ask_line(guest: &str, line: &str, json: bool) -> u8 {
    tell(guest, ask(guest, &Request::Monitor(MonitorLine { line: line.into(), json })))
}
