//! The terminal of a guest's console, which is the process's only while it is in the foreground.

use super::terminal::{self, RawMode};
use crate::machine::TerminalSize;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;
use vmm_sys_util::timerfd::TimerFd;

/// How often a process in the background looks whether it is in the foreground.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The terminal, and whether it is the process's.
#[derive(Debug)]
pub struct Foreground {
    raw: RawMode,
    /// When that is looked at again.
    again: RefCell<TimerFd>,
}

impl Foreground {
    pub fn new(raw: RawMode) -> io::Result<Foreground> {
        let again = RefCell::new(TimerFd::new().map_err(io::Error::from)?);
        Ok(Foreground { raw, again })
    }

    pub fn timer(&self) -> RawFd {
        self.again.borrow().as_raw_fd()
    }

    /// Has [`Input`](super::input::Input) look again: soon, now and then, or no more.
    fn set(&self, first: Duration, then: Option<Duration>) {
        let mut again = self.again.borrow_mut();
        let result = if first.is_zero() { again.clear() } else { again.reset(first, then) };
        if let Err(error) = result {
            log::error!("cannot look for the terminal: {error}");
        }
    }

    /// The process was stopped and goes on, or something else may have changed whose terminal it is.
    pub fn look_soon(&self) {
        self.set(Duration::from_nanos(1), None);
    }

    /// Stops the process as the default action of SIGTSTP does, with the terminal given back.
    pub fn stop(&self) {
        terminal::restore();
        if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP) {
            log::warn!("cannot stop: {error}");
        }
        self.look_soon();
    }

    /// The terminal's size, if it knows.
    pub fn size(&self) -> Option<TerminalSize> {
        self.raw.size()
    }

    /// Whether the terminal is ours just now.
    pub fn is_ours(&self) -> bool {
        self.raw.is_ours()
    }

    /// Takes the terminal if it is ours; else looks again later. Whether it is.
    pub fn take(&self) -> bool {
        let taken = self.raw.take();
        match &taken {
            Ok(true) => self.set(Duration::ZERO, None),
            Ok(false) => self.set(LOOK_AGAIN, Some(LOOK_AGAIN)),
            Err(error) => {
                log::warn!("the terminal cannot be set up, and is not read any more: {error}");
                self.set(Duration::ZERO, None);
            }
        }
        taken.unwrap_or(false)
    }
}
