//! `vmm monitor`: a command of gdb's `monitor` that looks at a guest, from a shell.

use super::candidates::commands;
use super::named_guest::NamedGuest;
use crate::control::protocol::{MonitorLine, Request};

/// Look at a guest that runs, by a command as gdb's monitor has it: why, ps, bt, locks, dmesg, regs, read
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
    /// The command and its words; without one, what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, add = commands())]
    command: Vec<String>,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let (line, json) = (args.command.join(" "), args.json);
    args.guest.ask(Ok(Request::Monitor(MonitorLine { line, json })))
}
