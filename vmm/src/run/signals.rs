//! Signals that the event loop waits for.

use super::config::RunConfig;
use super::console::ConsoleKind;
use super::terminal;
use crate::error::Error;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::{self, IsTerminal};

/// Signals that end a guest in order.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// What a process learns of its place among the jobs of a terminal, and of the terminal's size. One in the background
/// that reads (SIGTTIN) gets an error instead of being stopped.
const JOBS: [Signal; 4] = [Signal::SIGCONT, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGWINCH];

/// Has the signals that matter wait for the event loop, on this thread and every one that is made later.
pub fn take(config: &RunConfig) -> Result<SignalFd, Error> {
    let is_terminal = config.console == ConsoleKind::Stdio && io::stdin().is_terminal();
    let jobs: &[Signal] = if is_terminal { &JOBS } else { &[] };
    let signals: SigSet = ENDING.iter().chain(jobs).copied().filter(|signal| !is_ignored(*signal)).collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    terminal::install_handlers().map_err(Error::system("cannot install signal handlers"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))
}

/// Whether whoever has started this process has it ignore a signal, as nohup(1) and a shell's `&` do: one that is waited for
/// would come all the same (signal(7)).
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all of it may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action it only fills in this one (sigaction(2)).
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether a signal ends the guest.
pub fn is_ending(number: u32) -> bool {
    i32::try_from(number).is_ok_and(|number| ENDING.iter().any(|signal| *signal as i32 == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stays_so() {
        // Rust's programs ignore it from their start on; nobody has said anything of the other one.
        assert!(is_ignored(Signal::SIGPIPE) && !is_ignored(Signal::SIGUSR2));
    }
}
