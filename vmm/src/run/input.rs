//! What is typed, and the terminal that it is typed at.
//!
//! A terminal is read as long as it is the process's, whatever the guest does with what is typed: the
//! monitor's own keys are to work when the guest hangs. So what such a guest leaves is kept up to a bound,
//! and dropped behind it. Pipes and pseudo-terminals have no such keys: what the guest does not take stays
//! there.

use super::escape::{Escape, HELP, Key};
use super::events::{Running, drain, watch};
use super::foreground::Foreground;
use crate::logging;
use crate::outcome::{Outcome, StoppedBy};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

/// Input that is read ahead of the guest, bytes; more waits where it comes from.
const INPUT_AHEAD: usize = 4096;
/// Typed bytes that wait for the guest at most; more is dropped.
const MOST_TYPED: usize = 64 << 10;

/// How many of `count` typed bytes are kept, if `waiting` wait already.
fn room(waiting: usize, count: usize) -> usize {
    count.min(MOST_TYPED.saturating_sub(waiting))
}

/// Console input goes to the guest.
pub struct Input {
    running: Rc<Running>,
    input: File,
    is_pty: bool,
    /// For a terminal.
    foreground: Option<Rc<Foreground>>,
    escape: Escape,
    is_watched: bool,
    /// What is dropped has been told, since the guest last took all there was.
    told_drop: bool,
}

impl Input {
    pub fn new(
        running: &Rc<Running>,
        input: OwnedFd,
        is_pty: bool,
        foreground: Option<Rc<Foreground>>,
    ) -> Input {
        let (running, input) = (Rc::clone(running), File::from(input));
        Input {
            running,
            input,
            is_pty,
            foreground,
            escape: Escape::default(),
            is_watched: false,
            told_drop: false,
        }
    }

    fn watch_input(&mut self, ops: &mut EventOps) {
        if self.is_watched {
            return;
        }
        // A pseudo-terminal whose other end is closed hangs up all the time; edges tell when
        // that changes.
        let set = if self.is_pty { EventSet::IN | EventSet::EDGE_TRIGGERED } else { EventSet::IN };
        self.is_watched = watch(ops, self.input.as_raw_fd(), set);
    }

    fn ignore_input(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.is_watched)
            && let Err(error) = ops.remove(Events::empty(&self.input))
        {
            log::error!("cannot stop watching the console: {error:?}");
        }
    }

    /// Whether input may be read: what is typed at a terminal in whose background we are is not ours.
    fn look_for_terminal(&mut self, ops: &mut EventOps) -> bool {
        let is_ours = self.foreground.as_ref().is_none_or(|foreground| foreground.take());
        match is_ours {
            true => self.watch_input(ops),
            false => self.ignore_input(ops),
        }
        is_ours
    }

    fn read(&mut self, ops: &mut EventOps) {
        let mut buffer = [0; INPUT_AHEAD];
        loop {
            let is_ours = self.foreground.as_ref().is_none_or(|foreground| foreground.is_ours());
            if !is_ours {
                self.look_for_terminal(ops);
                return;
            }
            let count = match self.input.read(&mut buffer) {
                // The end of a pipe or of Ctrl-D on an idle terminal; the guest goes on.
                Ok(0) => return self.ignore_input(ops),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody has the other end of the pseudo-terminal open.
                Err(error) if self.is_pty && error.raw_os_error() == Some(libc::EIO) => return,
                Err(error) => {
                    // It may have become somebody else's meanwhile.
                    if self.foreground.is_some() && !self.look_for_terminal(ops) {
                        return;
                    }
                    log::warn!("the console cannot be read any more: {error}");
                    return self.ignore_input(ops);
                }
            };
            if self.foreground.is_some() {
                return self.type_to_guest(&buffer[..count]);
            }
            let waiting = self.running.guest.input(&buffer[..count]);
            if waiting > 0 {
                return self.ignore_input(ops);
            }
            if !self.is_pty {
                return;
            }
        }
    }

    /// Looks for the monitor's keys, and passes the rest on as far as there is room.
    fn type_to_guest(&mut self, bytes: &[u8]) {
        let (typed, keys) = self.escape.filter(bytes);
        for key in keys {
            match key {
                Key::Quit => self.running.end(Outcome::Stopped(StoppedBy::Console)),
                Key::Help => logging::print(&format!("\n{HELP}\n")),
                Key::Kernels(_) => log::warn!("only a guest of `vmm run` has somebody to press it"),
            }
        }
        let waiting = self.running.guest.input(&[]);
        let kept = room(waiting, typed.len());
        self.running.guest.input(&typed[..kept]);
        if kept < typed.len() && !std::mem::replace(&mut self.told_drop, true) {
            log::warn!("what is typed is dropped: the guest does not read it (Ctrl-A x ends the guest)");
        }
    }
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.running.guest.input_wanted().as_raw_fd(), EventSet::IN);
        if let Some(foreground) = &self.foreground {
            watch(ops, foreground.timer(), EventSet::IN);
        }
        self.look_for_terminal(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.running.guest.input_wanted().as_raw_fd() {
            drain(self.running.guest.input_wanted());
            self.told_drop = false;
            if self.foreground.is_none() {
                self.watch_input(ops);
            }
        } else if self.foreground.as_ref().is_some_and(|foreground| foreground.timer() == events.fd()) {
            // Setting the timer anew takes its count.
            self.look_for_terminal(ops);
        } else {
            self.read(ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_input_is_kept_up_to_its_bound() {
        assert_eq!(room(0, 10), 10);
        assert_eq!(room(MOST_TYPED - 4, 10), 4);
        assert_eq!((room(MOST_TYPED, 10), room(MOST_TYPED + 1, 10)), (0, 0));
    }
}
