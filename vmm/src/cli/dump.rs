//! `vmm dump`: has a guest write a core of itself, to a file that this makes, puts on disk and names.

use super::named_guest::NamedGuest;
use super::values;
use crate::control::client::ask_with;
use crate::control::protocol::{Request, Response};
use crate::outcome;
use clap::builder::ValueParser;
use debug::dump::write::destination::Destination;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf, absolute};

/// Write a core of a guest that runs
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The file; .gz and .zst compress
    #[arg(value_parser = ValueParser::new(values::dump_path))]
    path: PathBuf,
}

/// What would end this process, and leave a part of a dump.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    match dump(args) {
        Ok(answer) => args.guest.tell(answer),
        Err(text) => {
            log::error!("{text}");
            outcome::FILE
        }
    }
}

/// Has it written. What the guest, or the way to it, answers.
fn dump(args: &Args) -> Result<io::Result<Response>, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    // What it calls the file is for the guest's words, and its process is in a folder of its own.
    let path = absolute(&args.path).map_err(|error| words(&error))?;
    let signals = take_signals().map_err(|error| words(&error))?;
    let destination = Destination::anywhere(&path).map_err(|error| words(&error))?;
    let (partial, file) = destination.create().map_err(|error| words(&error))?;
    let answer = args.guest.ask_of(|guest| {
        // Words, which JSON can have.
        let request = Request::Dump { path: path.to_string_lossy().into_owned().into() };
        ask_with(guest, &request, Some(file.as_fd()), Some(signals.as_fd()))
    });
    match answer {
        Ok(Response::Done(text)) => {
            partial.keep(&file).map_err(|error| words(&error))?;
            Ok(Ok(Response::Done(text)))
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            drop(partial);
            Err(end(&signals, &path))
        }
        answer => Ok(answer),
    }
}

fn take_signals() -> nix::Result<SignalFd> {
    let signals: SigSet = ENDING.into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Ends as the signal would have ended it that has come; what is left to say if it does not.
fn end(signals: &SignalFd, path: &Path) -> String {
    let number = signals.read_signal().ok().flatten().and_then(|came| i32::try_from(came.ssi_signo).ok());
    if let Some(signal) = number.and_then(|number| Signal::try_from(number).ok()) {
        let all: SigSet = ENDING.into_iter().collect();
        raise(signal).and_then(|()| all.thread_unblock()).ok();
    }
    format!("the dump to {} was broken off", path.display())
}
