//! What the event loop waits for, and what it does then: the guest's end, signals, time, the control socket.

use super::foreground::Foreground;
use super::signals;
use crate::control::server::ControlSocket;
use crate::machine::Guest;
use crate::outcome::{Outcome, StoppedBy};
use arch::End;
use debug::gdb::accept::Pause;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signalfd::SignalFd;
use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// What the subscribers share: the guest, and what is to become of it.
pub struct Running {
    pub guest: Guest,
    pub verdict: RefCell<Option<Outcome>>,
}

impl Running {
    /// The first verdict stands; but a guest that resets itself may begin again, so what ends the run comes
    /// before that. It was heard of once, and is not in the next machine.
    pub fn end(&self, outcome: Outcome) {
        let mut verdict = self.verdict.borrow_mut();
        if matches!(*verdict, None | Some(Outcome::Ended(End::Reset))) {
            *verdict = Some(outcome);
        }
    }

    /// Tells the guest the terminal's size.
    pub fn tell_size(&self, foreground: &Foreground) {
        if let Some(size) = foreground.size() {
            self.guest.set_console_size(size);
        }
    }
}

/// Adds a descriptor to the loop. All of them are new there, so failure is the system's.
pub fn watch(ops: &mut EventOps, fd: RawFd, set: EventSet) -> bool {
    match ops.add(Events::new_raw(fd, set)) {
        Ok(()) => true,
        Err(error) => {
            log::error!("cannot watch descriptor {fd}: {error:?}");
            false
        }
    }
}

/// A vCPU says how the guest ended.
pub struct GuestEnd {
    pub running: Rc<Running>,
}

impl MutEventSubscriber for GuestEnd {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.running.guest.wake().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        drain(self.running.guest.wake());
        if let Some(outcome) = self.running.guest.outcome() {
            self.running.end(outcome);
        }
    }
}

/// `vmm dump` and its like want something.
pub struct Clients {
    pub running: Rc<Running>,
    pub control: Rc<ControlSocket>,
    pub pause: Pause,
    /// When those that wait are looked at again.
    pub again: TimerFd,
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.again.as_raw_fd(), EventSet::IN);
        watch(ops, self.control.listener().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let listener = self.control.listener().as_raw_fd();
        if events.fd() == self.again.as_raw_fd() {
            // This takes its count.
            if let Err(error) = self.again.clear() {
                log::error!("cannot clear a timer: {error}");
            }
            watch(ops, listener, EventSet::IN);
            return;
        }
        let Err(error) = self.control.serve(&self.running.guest, &mut self.pause) else { return };
        log::warn!("a client of the control socket cannot be accepted: {error}");
        let left = self.pause.left(Instant::now()).unwrap_or_default();
        if let Err(error) = self.again.reset(left.max(Duration::from_millis(1)), None) {
            log::error!("cannot wait for clients of the control socket: {error}");
        }
        if let Err(error) = ops.remove(Events::empty_raw(listener)) {
            log::error!("cannot stop watching the control socket: {error:?}");
        }
    }
}

/// Signals end the guest, or tell of the terminal.
pub struct Signals {
    pub running: Rc<Running>,
    pub signals: Arc<SignalFd>,
    pub foreground: Option<Rc<Foreground>>,
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.signals.as_fd().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            match &self.foreground {
                _ if signals::is_ending(signal.ssi_signo) => {
                    self.running.end(Outcome::Stopped(StoppedBy::Signal(number)))
                }
                Some(foreground) if number == libc::SIGTSTP => foreground.stop(),
                Some(foreground) if number == libc::SIGWINCH => self.running.tell_size(foreground),
                Some(foreground) => {
                    foreground.look_soon();
                    // It may have changed while the process was stopped.
                    if number == libc::SIGCONT {
                        self.running.tell_size(foreground);
                    }
                }
                None => {}
            }
        }
    }
}

/// `--timeout`.
pub struct Timeout {
    pub running: Rc<Running>,
    pub timer: Rc<RefCell<TimerFd>>,
}

impl MutEventSubscriber for Timeout {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.timer.borrow().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.running.end(Outcome::Timeout);
    }
}

/// Takes an event's count. It is non-blocking, and another reader there is none.
pub fn drain(event: &EventFd) {
    if let Err(error) = event.read() {
        log::debug!("an event was gone: {error}");
    }
}
