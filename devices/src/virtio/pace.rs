//! When devices' threads may work: not while the guest is held.
//!
//! Whoever holds a guest wants its memory to stay as it is, too: for a dump, a snapshot, a person's look. A thread works
//! in pieces, each with leave ([`Pace::enter`]); whoever holds the guest waits for those that are begun, and no other
//! begins until the guest is let go.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What touches the guest's RAM outside of devices' threads: the host's kernel, for a device.
pub trait Outside: Send + Sync {
    /// The guest is held: it stands still when this returns. It may be told so twice.
    fn rest(&self);

    /// The guest is let go.
    fn go_on(&self);
}

#[derive(Default)]
struct State {
    outside: Vec<Weak<dyn Outside>>,
    is_held: bool,
    /// How many pieces of work are begun and not done.
    working: usize,
    /// How many threads wait until the guest is let go: a wake-up of nobody is a system call all the same.
    waiting: usize,
    /// Since when it is held.
    held_since: Option<Instant>,
    /// How long it was held, all in all.
    rested: Duration,
}

/// Leave to work, for all threads of a machine's devices.
#[derive(Clone, Default)]
pub struct Pace(Arc<(Mutex<State>, Condvar)>);

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").finish_non_exhaustive()
    }
}

/// Leave, as long as it is kept.
#[derive(Debug)]
pub struct Leave<'a> {
    pace: &'a Pace,
    /// How long the guest was held before, all in all.
    pub rested: Duration,
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the guest is not held; leave for one piece of work, or none if whoever asks `is_over` by then
    /// ([`Self::end`]). For devices' threads alone: a vCPU that waited here would keep whoever holds the guest.
    pub fn enter(&self, is_over: &AtomicBool) -> Option<Leave<'_>> {
        let mut state = self.state();
        while state.is_held && !is_over.load(Ordering::SeqCst) {
            state.waiting += 1;
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if is_over.load(Ordering::SeqCst) {
            return None;
        }
        state.working += 1;
        Some(Leave { pace: self, rested: state.rested })
    }

    /// Whoever has this flag gets no leave any more, and waits for none.
    pub fn end(&self, is_over: &AtomicBool) {
        let state = self.state();
        is_over.store(true, Ordering::SeqCst);
        drop(state);
        self.0.1.notify_all();
    }

    /// From now on this rests while the guest is held, as long as it is there.
    pub fn attach(&self, outside: Weak<dyn Outside>) {
        let mut state = self.state();
        state.outside.retain(|outside| outside.strong_count() > 0);
        state.outside.push(outside.clone());
        let is_held = state.is_held;
        drop(state);
        if let Some(outside) = outside.upgrade().filter(|_| is_held) {
            outside.rest();
        }
    }

    fn outside(&self) -> Vec<Arc<dyn Outside>> {
        self.state().outside.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whoever holds guests and lets them go does one after the other: this and [`Self::release`] are not called at once.
    ///
    /// From now on no work is begun; waits for what has begun, so long at most. Whether none is being done: a disk of
    /// the host's may keep somebody for longer.
    pub fn hold(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state();
        state.is_held = true;
        state.held_since.get_or_insert_with(Instant::now);
        let mut is_quiet = true;
        while state.working > 0 && is_quiet {
            match until.checked_duration_since(Instant::now()) {
                Some(left) => {
                    (state, _) = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                }
                None => is_quiet = false,
            }
        }
        drop(state);
        self.outside().iter().for_each(|outside| outside.rest());
        is_quiet
    }

    /// How long the guest was held before it was let go last, all in all.
    pub fn rested(&self) -> Duration {
        self.state().rested
    }

    /// Work may be begun again.
    pub fn release(&self) {
        let mut state = self.state();
        state.is_held = false;
        let since = state.held_since.take();
        state.rested += since.map_or(Duration::ZERO, |since| since.elapsed());
        let has_waiting = state.waiting > 0;
        drop(state);
        self.outside().iter().for_each(|outside| outside.go_on());
        if has_waiting {
            self.0.1.notify_all();
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.pace.state();
        state.working -= 1;
        if state.working == 0 && state.is_held {
            self.pace.0.1.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn no_work_while_the_guest_is_held() {
        let pace = Pace::default();
        assert!(pace.hold(Duration::ZERO));
        let (sender, begun) = channel();
        let worker = {
            let pace = pace.clone();
            thread::spawn(move || {
                let leave = pace.enter(&AtomicBool::default());
                sender.send(()).unwrap();
                drop(leave);
            })
        };
        assert!(begun.recv_timeout(Duration::from_millis(20)).is_err());
        pace.release();
        begun.recv().unwrap();
        worker.join().unwrap();
    }

    #[test]
    fn what_is_begun_is_waited_for() {
        let pace = Pace::default();
        let no = AtomicBool::default();
        let leave = pace.enter(&no);
        assert!(!pace.hold(Duration::from_millis(1)));
        pace.release();
        let holder = {
            let pace = pace.clone();
            thread::spawn(move || pace.hold(Duration::from_secs(60)))
        };
        while !pace.state().is_held {
            thread::yield_now();
        }
        drop(leave);
        assert!(holder.join().unwrap());
    }

    #[test]
    fn it_says_how_long_there_was_no_work() {
        let (pace, no) = (Pace::default(), AtomicBool::default());
        assert_eq!(pace.enter(&no).unwrap().rested, Duration::ZERO);
        let begin = Instant::now();
        pace.hold(Duration::ZERO);
        // Whoever holds it already holds it for as long.
        pace.hold(Duration::ZERO);
        let held = Instant::now();
        while held.elapsed() < Duration::from_millis(2) {}
        let least = held.elapsed();
        pace.release();
        let rested = pace.enter(&no).unwrap().rested;
        assert!(least <= rested && rested <= begin.elapsed(), "{least:?} {rested:?}");
        pace.release();
        assert_eq!(pace.enter(&no).unwrap().rested, rested);
    }

    #[test]
    fn whoever_is_to_end_waits_no_longer() {
        let (pace, is_over) = (Pace::default(), Arc::new(AtomicBool::new(false)));
        pace.hold(Duration::ZERO);
        let worker = {
            let (pace, is_over) = (pace.clone(), Arc::clone(&is_over));
            thread::spawn(move || pace.enter(&is_over).is_none())
        };
        pace.end(&is_over);
        assert!(worker.join().unwrap());
    }
}
