//! When a vCPU was in the guest, as its thread notes it: what passes between a word to it and its entry is not the
//! guest's time, and neither is what passes between its exit and our hearing of it. Whoever keeps the guest's time
//! (it stands still while the guest is held) asks for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What an entry to the guest is to its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A single step of an instruction that does not look at the time.
    Step,
    /// Anything else.
    Run,
}

/// What a single step takes of the guest's time at most, ns; the rest is the host's way into the guest and out of
/// it, which takes half a millisecond where KVM is nested in an emulation. A step that looks at the time takes
/// what passes, so that no later look is at an earlier time.
const STEP: u64 = 20_000;

/// When a vCPU was in the guest last, written by its thread.
#[derive(Debug)]
pub struct Times {
    start: Instant,
    /// Nanoseconds since then.
    entered: AtomicU64,
    /// When it came out of its last step, as long as that is the last that it did; else 0.
    stepped: AtomicU64,
    /// Steps since it entered, as long as it did nothing else; else [`RAN`].
    steps: AtomicU64,
    left: AtomicU64,
}

/// More than steps since it entered the guest.
const RAN: u64 = u64::MAX;

impl Default for Times {
    fn default() -> Times {
        let [entered, stepped, steps, left] = [0, 0, 0, 1].map(AtomicU64::new);
        Times { start: Instant::now(), entered, stepped, steps, left }
    }
}

impl Times {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The vCPU is about to enter the guest.
    pub fn enter(&self, entry: Entry) {
        // Only its own thread writes them.
        if self.left.load(Ordering::Relaxed) > self.entered.load(Ordering::Relaxed) {
            self.steps.store(0, Ordering::Relaxed);
            self.entered.store(self.now().max(self.left.load(Ordering::Relaxed)), Ordering::Release);
        }
        if self.stepped.load(Ordering::Relaxed) != 0 {
            self.stepped.store(0, Ordering::Relaxed);
        }
        let steps = self.steps.load(Ordering::Relaxed);
        if steps != RAN {
            self.steps.store(if entry == Entry::Step { steps + 1 } else { RAN }, Ordering::Relaxed);
        }
    }

    /// It has come out of a single step, and may stay out.
    pub fn step(&self) {
        self.stepped.store(self.now(), Ordering::Relaxed);
    }

    /// It does not enter the guest before somebody says so.
    pub fn leave(&self) {
        let entered = self.entered.load(Ordering::Relaxed);
        if self.left.load(Ordering::Relaxed) <= entered {
            let left = match self.stepped.load(Ordering::Relaxed) {
                0 => self.now(),
                stepped => stepped,
            };
            let left = match self.steps.load(Ordering::Relaxed) {
                RAN => left,
                steps => left.min(entered.saturating_add(steps.saturating_mul(STEP))),
            };
            self.left.store(left.max(entered + 1), Ordering::Release);
        }
    }

    /// From when to when, if that is over.
    pub fn stay(&self) -> Option<(Instant, Instant)> {
        let (left, entered) = (self.left.load(Ordering::Acquire), self.entered.load(Ordering::Acquire));
        let at = |nanoseconds| self.start + Duration::from_nanos(nanoseconds);
        (left > entered).then(|| (at(entered), at(left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stay_is_from_entry_to_exit() {
        let times = Times::default();
        times.enter(Entry::Run);
        assert_eq!(times.stay(), None);
        times.leave();
        let (entered, left) = times.stay().unwrap();
        assert!(entered < left);
        // Being told to stay out changes nothing.
        times.leave();
        assert_eq!(times.stay(), Some((entered, left)));
        times.enter(Entry::Run);
        assert_eq!(times.stay(), None);
    }

    #[test]
    fn a_stay_ends_with_its_last_step() {
        let times = Times::default();
        times.enter(Entry::Step);
        times.step();
        let stepped = times.now();
        std::thread::sleep(Duration::from_millis(1));
        times.leave();
        assert!(times.stay().unwrap().1 <= times.start + Duration::from_nanos(stepped));
        // One that ran on after a step is in the guest until it leaves.
        times.enter(Entry::Run);
        times.step();
        times.enter(Entry::Run);
        std::thread::sleep(Duration::from_millis(1));
        let running = times.now();
        times.leave();
        assert!(times.stay().unwrap().1 >= times.start + Duration::from_nanos(running));
    }

    #[test]
    fn the_way_of_a_step_into_the_guest_is_not_its_time() {
        let stay = |entries: &[Entry]| {
            let times = Times::default();
            for entry in entries {
                times.enter(*entry);
                std::thread::sleep(Duration::from_micros(200));
                if *entry == Entry::Step {
                    times.step();
                }
            }
            times.leave();
            let (entered, left) = times.stay().unwrap();
            left - entered
        };
        let step = Duration::from_nanos(STEP);
        assert_eq!(stay(&[Entry::Step]), step);
        assert_eq!(stay(&[Entry::Step; 3]), 3 * step);
        // What has run, or looked at the time, has had all of it.
        assert!(stay(&[Entry::Run, Entry::Step]) > 10 * step);
        assert!(stay(&[Entry::Step, Entry::Run, Entry::Step]) > 20 * step);
        // But for another stay's.
        let times = Times::default();
        for entry in [Entry::Run, Entry::Step] {
            times.enter(entry);
            std::thread::sleep(Duration::from_micros(200));
            times.leave();
        }
        let (entered, left) = times.stay().unwrap();
        assert_eq!(left - entered, step);
    }
}
