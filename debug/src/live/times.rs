//! When a vCPU was in the guest, as its thread notes it: what passes between a word to it and its entry is not the
//! guest's time, and neither is what passes between its exit and our hearing of it. Whoever keeps the guest's time
//! (it stands still while the guest is held) asks for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// A vCPU's last stay in the guest, which is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// When it entered the guest.
    pub entered: Instant,
    /// When it had left it, as far as the guest's time goes.
    pub left: Instant,
    /// It may have looked at the time: it did more than single steps of instructions that do not.
    pub looked: bool,
}

/// When a vCPU was in the guest last, written by its thread.
#[derive(Debug)]
pub struct Times {
    start: Instant,
    /// Nanoseconds since then.
    entered: AtomicU64,
    /// What it entered for last may look at the time.
    looks: AtomicBool,
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
        Times { start: Instant::now(), entered, looks: AtomicBool::new(false), stepped, steps, left }
    }
}

impl Times {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The vCPU is about to enter the guest.
    pub fn enter(&self, entry: Entry) {
        self.enter_at(entry, || self.now());
    }

    fn enter_at(&self, entry: Entry, now: impl FnOnce() -> u64) {
        // Only its own thread writes them.
        if self.left.load(Ordering::Relaxed) > self.entered.load(Ordering::Relaxed) {
            self.steps.store(0, Ordering::Relaxed);
            self.entered.store(now().max(self.left.load(Ordering::Relaxed)), Ordering::Release);
        }
        if self.stepped.load(Ordering::Relaxed) != 0 {
            self.stepped.store(0, Ordering::Relaxed);
        }
        self.looks.store(entry == Entry::Run, Ordering::Relaxed);
        let steps = self.steps.load(Ordering::Relaxed);
        if steps != RAN {
            self.steps.store(if entry == Entry::Step { steps + 1 } else { RAN }, Ordering::Relaxed);
        }
    }

    /// It has come out of a single step, and may stay out. One that looks at the time may get that from a device, which
    /// is asked from here on: it lasts until it is known that the vCPU stays out.
    pub fn step(&self) {
        self.step_at(self.now());
    }

    fn step_at(&self, now: u64) {
        if !self.looks.load(Ordering::Relaxed) {
            self.stepped.store(now, Ordering::Relaxed);
        }
    }

    /// It does not enter the guest before somebody says so.
    pub fn leave(&self) {
        self.leave_at(|| self.now());
    }

    fn leave_at(&self, now: impl FnOnce() -> u64) {
        let entered = self.entered.load(Ordering::Relaxed);
        if self.left.load(Ordering::Relaxed) <= entered {
            let left = match self.stepped.load(Ordering::Relaxed) {
                0 => now(),
                stepped => stepped,
            };
            let left = match self.steps.load(Ordering::Relaxed) {
                RAN => left,
                steps => left.min(entered.saturating_add(steps.saturating_mul(STEP))),
            };
            self.left.store(left.max(entered + 1), Ordering::Release);
        }
    }

    /// The last stay, if it is over.
    pub fn stay(&self) -> Option<Stay> {
        let (left, entered) = (self.left.load(Ordering::Acquire), self.entered.load(Ordering::Acquire));
        let at = |nanoseconds| self.start + Duration::from_nanos(nanoseconds);
        let looked = self.steps.load(Ordering::Relaxed) == RAN;
        (left > entered).then(|| Stay { entered: at(entered), left: at(left), looked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last stay, from and to: nanoseconds.
    fn stay(times: &Times) -> Option<(u64, u64)> {
        let since = |at: Instant| u64::try_from((at - times.start).as_nanos()).unwrap();
        times.stay().map(|stay| (since(stay.entered), since(stay.left)))
    }

    #[test]
    fn a_stay_is_from_entry_to_exit() {
        let times = Times::default();
        times.enter_at(Entry::Run, || 1000);
        assert_eq!(stay(&times), None);
        times.leave_at(|| 5000);
        assert_eq!(stay(&times), Some((1000, 5000)));
        // Being told to stay out changes nothing.
        times.leave_at(|| 9000);
        assert_eq!(stay(&times), Some((1000, 5000)));
        times.enter(Entry::Run);
        assert_eq!(stay(&times), None);
    }

    #[test]
    fn a_stay_ends_with_its_last_step() {
        let times = Times::default();
        times.enter_at(Entry::Step, || 1000);
        times.step_at(3000);
        times.leave_at(|| 1_000_000);
        assert_eq!(stay(&times), Some((1000, 3000)));
        // One that ran on after a step is in the guest until it leaves.
        times.enter_at(Entry::Run, || 2_000_000);
        times.step_at(2_001_000);
        times.enter_at(Entry::Run, || 2_002_000);
        times.leave_at(|| 3_000_000);
        assert_eq!(stay(&times), Some((2_000_000, 3_000_000)));
        // A step that looks at the time may be told it by a device behind its exit.
        times.enter_at(Entry::Run, || 4_000_000);
        times.step_at(4_001_000);
        times.leave_at(|| 4_002_000);
        assert_eq!(stay(&times), Some((4_000_000, 4_002_000)));
    }

    #[test]
    fn the_way_of_a_step_into_the_guest_is_not_its_time() {
        const LONG: u64 = 10 * STEP;
        let length = |entries: &[Entry]| {
            let (times, mut now) = (Times::default(), 1000);
            for entry in entries {
                times.enter_at(*entry, || now);
                now += LONG;
                if *entry == Entry::Step {
                    times.step_at(now);
                }
            }
            times.leave_at(|| now);
            stay(&times).map(|(entered, left)| left - entered)
        };
        assert_eq!(length(&[Entry::Step]), Some(STEP));
        assert_eq!(length(&[Entry::Step; 3]), Some(3 * STEP));
        // What has run, or looked at the time, has had all of it.
        let looked = |entries: &[Entry]| {
            let times = Times::default();
            entries.iter().for_each(|entry| times.enter_at(*entry, || 1000));
            times.leave_at(|| 2000);
            times.stay().map(|stay| stay.looked)
        };
        assert_eq!((looked(&[Entry::Step; 2]), looked(&[Entry::Run])), (Some(false), Some(true)));
        assert_eq!(looked(&[Entry::Step, Entry::Run, Entry::Step]), Some(true));
        assert_eq!(length(&[Entry::Run, Entry::Step]), Some(2 * LONG));
        assert_eq!(length(&[Entry::Step, Entry::Run, Entry::Step]), Some(3 * LONG));
        // But for another stay's.
        let times = Times::default();
        for (entry, at) in [(Entry::Run, 1000), (Entry::Step, 1000 + 2 * LONG)] {
            times.enter_at(entry, || at);
            times.leave_at(|| at + LONG);
        }
        assert_eq!(stay(&times).map(|(entered, left)| left - entered), Some(STEP));
    }
}
