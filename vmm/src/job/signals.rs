//! Signals that a job hears, instead of what they do by themselves.

use crate::error::Error;
use crate::run::signals::is_ignored;
use crate::run::terminal;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are the command's, the first time.
pub const PASSED: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// What a process learns of its place among the jobs of a terminal that it gives to a command. One in the background
/// that writes there, or sets it up (SIGTTOU), is not stopped: its guest would be.
const JOBS: [Signal; 3] = [Signal::SIGCONT, Signal::SIGTSTP, Signal::SIGTTOU];

/// Has signals that are a command's wait for the loop, and with a terminal those of jobs.
///
/// # Errors
/// [`Error::System`].
pub fn take_signals(has_terminal: bool) -> Result<SignalFd, Error> {
    let jobs: &[Signal] = if has_terminal { &JOBS } else { &[] };
    // One in the background that reads gets an error instead of being stopped.
    let always = PASSED.into_iter().chain([Signal::SIGWINCH, Signal::SIGTTIN]);
    let all = always.chain(jobs.iter().copied());
    let signals: SigSet = all.filter(|signal| !is_ignored(*signal)).collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    terminal::install_handlers().map_err(Error::system("cannot install signal handlers"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))
}

/// Stops the process, as the signal by default does.
pub fn stop() {
    if let Err(error) = nix::sys::signal::raise(Signal::SIGSTOP) {
        log::warn!("cannot stop: {error}");
    }
}
