//! The guest's timers by Xen's interface, and interrupts that have to be lowered again.

use crate::machine::guest_ram::GuestRam;
use arch::GuestPhys;
use devices::hypercall::xen::Xen;
use devices::ram::Ram;
use devices::{guest_log, tell};
use kvm::{Interrupter, KvmError, XenEvents};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What the guest's time is counted by, from about its start.
#[derive(Clone, Debug)]
pub enum Clock {
    /// KVM's clock, where KVM tells guests the time.
    Kvm(XenEvents),
    /// The host's, less the time for which the guest was held.
    Since(Instant, Held),
}

/// For how long the guest was held so far.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<AtomicU64>);

impl Clock {
    /// Nanoseconds since its start.
    fn now(&self) -> u64 {
        match self {
            // It was read when it was chosen, and nothing takes it away.
            Clock::Kvm(events) => events.now().unwrap_or(0),
            Clock::Since(start, Held(held)) => {
                let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                elapsed.saturating_sub(held.load(Ordering::Acquire))
            }
        }
    }

    /// The guest has been held. KVM's own clock is put back by whoever held it.
    fn go_back(&self, lost: Duration) {
        if let Clock::Since(_, Held(held)) = self {
            held.fetch_add(u64::try_from(lost.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
        }
    }
}

/// An interrupt that is up until the guest has seen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub vcpu: u32,
    pub number: u32,
    /// The byte that the guest clears then, guest-physical.
    pub pending: u64,
}

/// When a line that has just been raised is looked at: until then, a guest that has seen to it is
/// interrupted for nothing.
const FIRST_LOOK: Duration = Duration::from_micros(50);
/// How often a line is looked at that the guest leaves up.
const LAST_LOOKS: Duration = Duration::from_millis(10);

/// A line that is up, and when it is looked at. The time between two looks doubles: a guest is interrupted
/// for nothing no longer than it took to see to the line, and one that leaves it up, which it may for ever,
/// has it looked at rarely. Raising a line that is up does not begin this anew.
#[derive(Clone, Copy, Debug)]
struct Raised {
    line: Line,
    next: Instant,
    between: Duration,
}

impl Raised {
    fn new(line: Line, now: Instant) -> Raised {
        Raised { line, next: now + FIRST_LOOK, between: FIRST_LOOK }
    }

    /// The line is up still.
    fn look_later(&mut self, now: Instant) {
        self.between = (self.between * 2).min(LAST_LOOKS);
        self.next = now + self.between;
    }
}

/// The guest's timers, one for each vCPU, and the thread that waits for them; it also lowers
/// interrupts.
#[derive(Debug)]
pub struct Timers {
    clock: Clock,
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Debug)]
struct TimerState {
    /// Nanoseconds since the start.
    at: Vec<Option<u64>>,
    /// Interrupts that are up.
    lines: Vec<Raised>,
    /// The guest is held: nothing expires.
    is_held: bool,
    stopped: bool,
}

impl TimerState {
    /// Looks at lines whose time has come, and lowers those that the guest has seen to.
    fn lower(&mut self, ram: &GuestRam, interrupter: &Interrupter, now: Instant) {
        self.lines.retain_mut(|raised| {
            if raised.next > now {
                return true;
            }
            let (line, mut pending) = (raised.line, [0]);
            let is_up = ram.read(GuestPhys(line.pending), &mut pending) == 1 && pending[0] != 0;
            raised.look_later(now);
            if !is_up && let Err(error) = interrupter.interrupt(line.vcpu, line.number, false) {
                tell!(Warn, "an interrupt of vCPU {} stays up: {error}", line.vcpu);
            }
            is_up
        });
    }
}

impl Timers {
    pub fn new(vcpus: u32, clock: Clock) -> Timers {
        let state =
            TimerState { at: vec![None; vcpus as usize], lines: Vec::new(), is_held: false, stopped: false };
        Timers { clock, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Nanoseconds since the machine started.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    fn state(&self) -> MutexGuard<'_, TimerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a vCPU's timer.
    pub fn set(&self, vcpu: u32, at: Option<u64>) {
        if let Some(timer) = self.state().at.get_mut(vcpu as usize) {
            *timer = at;
        }
        self.changed.notify_one();
    }

    /// Raises an interrupt, and sees that it is lowered again. The lock is held meanwhile, or it could
    /// be lowered on account of the one before.
    pub fn raise(&self, interrupter: &Interrupter, line: Line) -> Result<(), KvmError> {
        let mut state = self.state();
        interrupter.interrupt(line.vcpu, line.number, true)?;
        if Interrupter::ARE_LEVELS {
            let is_new = state.lines.iter().all(|raised| raised.line != line);
            if is_new {
                state.lines.push(Raised::new(line, Instant::now()));
            }
            drop(state);
            if is_new {
                self.changed.notify_one();
            }
        }
        Ok(())
    }

    /// The guest is held: no timer expires until it is let go.
    pub fn hold(&self) {
        self.state().is_held = true;
    }

    /// The guest goes on, and has lost this time.
    pub fn release(&self, lost: Duration) {
        let mut state = self.state();
        self.clock.go_back(lost);
        state.is_held = false;
        drop(state);
        self.changed.notify_one();
    }

    /// Has [`Self::run`] return.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_one();
    }

    /// Waits for timers until it is told to stop.
    pub fn run(&self, xen: &Weak<Xen>, ram: &GuestRam, interrupter: &Interrupter) {
        let mut state = self.state();
        while !state.stopped {
            state.lower(ram, interrupter, Instant::now());
            if guest_log::has_words() {
                drop(state);
                guest_log::deliver();
                state = self.state();
                continue;
            }
            let now = self.now();
            let is_held = state.is_held;
            let due = state.at.iter().position(|at| at.is_some_and(|at| at <= now && !is_held));
            if let Some(vcpu) = due {
                state.at[vcpu] = None;
                drop(state);
                if let (Some(xen), Ok(vcpu)) = (xen.upgrade(), u32::try_from(vcpu)) {
                    xen.expire(vcpu);
                }
                guest_log::deliver();
                state = self.state();
                continue;
            }
            // One that is held is told when it goes on.
            let next = state.at.iter().flatten().min().filter(|_| !is_held);
            // Without a timer it waits to be told.
            let mut wait = next.map_or(Duration::from_secs(3600), |at| Duration::from_nanos(at - now));
            if let Some(look) = state.lines.iter().map(|raised| raised.next).min() {
                wait = wait.min(look.saturating_duration_since(Instant::now()));
            }
            state = match self.changed.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_see_the_time_for_which_it_was_held() {
        let timers = Timers::new(1, Clock::Since(Instant::now(), Held::default()));
        timers.hold();
        assert!(timers.state().is_held);
        timers.release(Duration::from_secs(3600));
        // A clock never shows less than 0.
        assert!(!timers.state().is_held && timers.now() == 0);
        let clock = Clock::Since(Instant::now() - Duration::from_secs(10), Held::default());
        clock.go_back(Duration::from_secs(4));
        clock.go_back(Duration::from_secs(5));
        let seconds = clock.now() / 1_000_000_000;
        assert!((1..60).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_line_that_a_guest_leaves_up_is_looked_at_rarely() {
        let start = Instant::now();
        let mut raised = Raised::new(Line { vcpu: 0, number: 31, pending: 0 }, start);
        let mut looks = Vec::new();
        while raised.next < start + Duration::from_secs(1) {
            looks.push(raised.next - start);
            let now = raised.next;
            raised.look_later(now);
        }
        assert!(looks.len() < 120, "{} looks a second", looks.len());
        // One that is seen to is lowered before as long again is over.
        for seen_to in [10, 60, 500, 3000].map(Duration::from_micros) {
            let lowered = looks.iter().find(|look| **look >= seen_to).unwrap();
            assert!(*lowered <= 2 * seen_to + 2 * FIRST_LOOK, "{seen_to:?} {lowered:?}");
        }
    }
}
