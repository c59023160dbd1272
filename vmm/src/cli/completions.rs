//! `vmm completions`: what a shell completes at the Tab key: options and values from the definition of the command line, and
//! names of guests that run. The shell's script ([`script`]) calls the program back with `VMM_COMPLETE` set,
//! and is so small that it need not be made anew with each version.

use super::stdout;
use crate::outcome;
use clap_complete::env::{CompleteEnv, Shells};
use std::io;

/// Print what a shell reads to complete at the Tab key: options, values, names of guests; for example
/// source <(vmm completions bash) in ~/.bashrc
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Prints the script; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    match script(args.shell) {
        Ok(script) => stdout::print(&script, 0),
        Err(error) => {
            log::error!("{error}");
            outcome::USAGE
        }
    }
}

/// The variable of the environment by which a shell's script asks for candidates.
const VARIABLE: &str = "VMM_COMPLETE";

/// Answers a shell that asks for candidates: the exit code. `None` when none asks. To be called before there
/// are threads, as it takes `VMM_COMPLETE` out of the environment.
pub fn answer() -> Option<u8> {
    std::env::var_os(VARIABLE)?;
    let asked = CompleteEnv::with_factory(super::definition)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref());
    match asked {
        Ok(true) => Some(0),
        Ok(false) => None,
        Err(error) => {
            // What cannot be said on standard error cannot be said.
            drop(error.print());
            Some(outcome::USAGE)
        }
    }
}

/// The script that a shell reads.
///
/// # Errors
/// When there is none for the shell.
pub fn script(shell: clap_complete::Shell) -> io::Result<String> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer =
        shells.completer(&name).ok_or_else(|| io::Error::other(format!("no script for {name}")))?;
    let mut text = Vec::new();
    completer.write_registration(VARIABLE, "vmm", "vmm", "vmm", &mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}
