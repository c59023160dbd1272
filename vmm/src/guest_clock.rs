//! The guest's time stands still while the guest is held.
//!
//! [`Vcpus`](crate::vcpus::Vcpus) says when all vCPUs are out of the guest and when they may enter it
//! again ([`Standstill`]); [`Timekeeper`] takes the clocks and timers then and puts them back, by
//! [`crate::kvm::clock`]. The real-time clocks of the machine (CMOS, PL031) stay wall clocks.
//!
//! A debugger's row of steps holds the guest thousands of times a second, for microseconds. So what is
//! short is only added up, and taken out once [`SHORTEST`] has gathered; and the clocks are taken when
//! the guest has stood still for 4 ms, by whoever waits ([`Vcpus::settle`](crate::vcpus::Vcpus)).

use crate::config::GuestClock;
use crate::hypercalls::Timers;
use crate::kvm::clock::{Cycles, FrozenVcpu, FrozenVm, Stood, VmClock};
use crate::kvm::{KvmError, Vcpu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Less time than this is not taken out of the guest's.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// A guest that has stood still for so long in one go is not being stepped by a program, or is where each step takes
/// long: its clocks are taken. Else they go back by a difference when it runs, which costs less.
const LONG: Duration = Duration::from_millis(4);

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

/// When a vCPU was in the guest last, written by its thread: what passes between a word to it and its entry is
/// not the guest's time, and neither is what passes between its exit and our hearing of it.
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
    fn stay(&self) -> Option<(Instant, Instant)> {
        let (left, entered) = (self.left.load(Ordering::Acquire), self.entered.load(Ordering::Acquire));
        let at = |nanoseconds| self.start + Duration::from_nanos(nanoseconds);
        (left > entered).then(|| (at(entered), at(left)))
    }
}

/// What all vCPUs' being out of the guest is known by. Changed under one lock, which vCPUs' threads never
/// take.
#[derive(Debug, Default)]
pub struct Standstill {
    /// Those who hold the guest.
    pub holders: usize,
    /// When the last vCPU had left it; `None` while the guest may run.
    since: Option<Instant>,
    /// For how long it stood still before, without having its time put back.
    owed: Duration,
    /// When it was let go last.
    released: Option<Instant>,
    frozen: Option<Frozen>,
}

/// The guest's time, taken.
#[derive(Debug)]
struct Frozen {
    vm: Option<FrozenVm>,
    vcpus: Vec<Option<FrozenVcpu>>,
}

/// What has each vCPU's thread do something: the vCPUs, to whom this module is below.
pub trait Threads {
    /// Calls `call` on each vCPU's thread; what the vCPUs' threads that are there answer.
    fn each<R: Send + 'static>(&self, call: impl Fn(&mut Vcpu) -> R + Send + Sync + 'static) -> Vec<R>;

    /// Has `call` be called on each vCPU's thread before it enters the guest again, without waiting for it.
    fn post(&self, call: impl Fn(&mut Vcpu) + Send + Sync + 'static);
}

/// Keeps a guest's time.
#[derive(Debug)]
pub struct Timekeeper {
    mode: GuestClock,
    clock: VmClock,
    /// Of the guest by Xen's interface.
    timers: Option<Arc<Timers>>,
    /// Something was refused.
    failures: Arc<Failures>,
}

impl Timekeeper {
    /// For a machine whose guest has not run yet.
    pub fn new(mode: GuestClock, clock: VmClock, timers: Option<Arc<Timers>>) -> Timekeeper {
        Timekeeper { mode, clock, timers, failures: Arc::default() }
    }

    /// What is in force, in words.
    pub fn in_words(&self) -> String {
        match self.mode {
            GuestClock::Run => "the guest's time runs on while it is held (--guest-clock run)".into(),
            GuestClock::Stop => {
                let what = VmClock::what(counts());
                let failed =
                    if self.failures.0.load(Ordering::Relaxed) { "; KVM has refused a part" } else { "" };
                format!("the guest's time stands still while it is held: {what}{failed}")
            }
        }
    }

    /// The guest stands still: since the last of its vCPUs has left it, as far as they have said.
    pub fn begin<'a>(&self, still: &mut Standstill, times: impl Iterator<Item = &'a Times>) {
        let now = Instant::now();
        let stays: Option<Vec<_>> = times.map(Times::stay).collect();
        let (Some(stays), Some(released)) = (stays, still.released.take()) else {
            still.since = Some(now);
            return;
        };
        // Those that stood still all the time say nothing of this stay; if all did, there was none.
        let stays: Vec<_> = stays.into_iter().filter(|(entered, _)| *entered >= released).collect();
        let first = stays.iter().map(|(entered, _)| *entered).min().unwrap_or(now);
        let last = stays.iter().map(|(_, left)| *left).max().map_or(now, |last| last.min(now));
        still.owed += first.saturating_duration_since(released);
        still.since = Some(last);
    }

    /// Takes the guest's time, if it has stood still for long enough; else, how long until then.
    pub fn settle(&self, still: &mut Standstill, vcpus: &impl Threads) -> Option<Duration> {
        if still.frozen.is_some() || self.mode == GuestClock::Run {
            return None;
        }
        let held = still.since?.elapsed();
        if held < LONG {
            return Some(LONG.saturating_sub(held));
        }
        still.frozen = Some(self.freeze(vcpus));
        None
    }

    /// Takes the guest's time now: the guest will be held for a while.
    pub fn freeze_now(&self, still: &mut Standstill, vcpus: &impl Threads) {
        if still.frozen.is_none() && still.since.is_some() && self.mode == GuestClock::Stop {
            still.frozen = Some(self.freeze(vcpus));
        }
    }

    /// The guest is about to run: its time is put back.
    pub fn end(&self, still: &mut Standstill, vcpus: &impl Threads) {
        // What passes from here on until a vCPU enters the guest is looked at the next time.
        still.released = self.put_back(still, vcpus).or_else(|| Some(Instant::now()));
    }

    /// From when the guest's time goes on, if it was put back.
    fn put_back(&self, still: &mut Standstill, vcpus: &impl Threads) -> Option<Instant> {
        let since = still.since.take()?;
        if self.mode == GuestClock::Run {
            still.owed = Duration::ZERO;
            return None;
        }
        let stood = Stood { since, owed: std::mem::take(&mut still.owed) };
        let frozen = match still.frozen.take() {
            Some(frozen) => frozen,
            None if since.elapsed() + stood.owed < SHORTEST => {
                still.owed = since.elapsed() + stood.owed;
                return None;
            }
            None if self.clock.can_shift() => return Some(self.shift(stood, vcpus)),
            None => self.freeze(vcpus),
        };
        Some(self.thaw(frozen, stood, vcpus))
    }

    /// Has all clocks go back by what has gathered, at once: a row of steps pays for it each millisecond.
    fn shift(&self, stood: Stood, vcpus: &impl Threads) -> Instant {
        let counts = counts();
        Timekeeper::tell_whether_it_counts();
        let restart = Instant::now();
        let owed = restart.saturating_duration_since(stood.since) + stood.owed;
        self.failures.told(self.clock.shift(owed, counts));
        let (lines, failures) = (self.clock.lines().clone(), Arc::clone(&self.failures));
        // Each before it enters the guest: a step does not wait for other vCPUs.
        vcpus.post(move |vcpu| {
            failures.told(vcpu.shift_time(owed, counts, &lines));
        });
        if let Some(timers) = self.timers.as_ref().filter(|_| counts) {
            timers.release(owed);
        }
        restart
    }

    /// Says once that the host cannot hold the guest's counter.
    fn tell_whether_it_counts() {
        static IS_TOLD: AtomicBool = AtomicBool::new(false);
        if let Err(seen) = crate::check::holds_counter()
            && !IS_TOLD.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "this host's KVM does not hold a guest's counter, which runs on while the guest is held: {seen}"
            );
        }
    }

    fn freeze(&self, vcpus: &impl Threads) -> Frozen {
        let counts = counts();
        Timekeeper::tell_whether_it_counts();
        if let Some(timers) = &self.timers {
            timers.hold();
        }
        let mut taken = Vec::new();
        for (id, frozen) in vcpus.each(move |vcpu| (vcpu.id() as usize, vcpu.freeze_time(counts))) {
            if taken.len() <= id {
                taken.resize_with(id + 1, || None);
            }
            taken[id] = self.failures.told(frozen);
        }
        Frozen { vm: self.failures.told(self.clock.freeze()), vcpus: taken }
    }

    /// Puts back what was taken; from when the guest's time goes on.
    fn thaw(&self, frozen: Frozen, stood: Stood, vcpus: &impl Threads) -> Instant {
        let counts = counts();
        let Frozen { vm, vcpus: taken } = frozen;
        let taken = Arc::new(taken);
        let back = counts.then(|| self.back(&taken, stood, vcpus)).flatten();
        let (back, restart) = back.map_or((None, None), |(cycles, at)| (Some(cycles), Some(at)));
        let thawed =
            vm.as_ref().and_then(|vm| self.failures.told(self.clock.thaw(vm, &stood, restart, counts)));
        let restart = thawed.or(restart).unwrap_or_else(Instant::now);
        let lines = self.clock.lines().clone();
        let results = vcpus.each(move |vcpu| match taken.get(vcpu.id() as usize) {
            Some(Some(frozen)) => vcpu.thaw_time(frozen, back, &stood, &lines),
            _ => Ok(()),
        });
        for result in results {
            self.failures.told(result);
        }
        if let Some(vm) = &vm {
            self.failures.told(self.clock.start_timers(vm, &stood));
        }
        if let Some(timers) = &self.timers {
            let lost = restart.saturating_duration_since(stood.since) + stood.owed;
            timers.release(if counts { lost } else { Duration::ZERO });
        }
        restart
    }

    /// How far all counters go back, and when: what the first vCPU's says, so that they stay alike.
    fn back(
        &self,
        taken: &Arc<Vec<Option<FrozenVcpu>>>,
        stood: Stood,
        vcpus: &impl Threads,
    ) -> Option<(Cycles, Instant)> {
        let taken = Arc::clone(taken);
        let first = vcpus.each(move |vcpu| match taken.first() {
            Some(Some(frozen)) if vcpu.id() == 0 => Some(vcpu.cycles_since(frozen, &stood)),
            _ => None,
        });
        first.into_iter().flatten().next().and_then(|cycles| self.failures.told(cycles)).flatten()
    }
}

/// Whether KVM has refused something, which is said once.
#[derive(Debug, Default)]
struct Failures(AtomicBool);

impl Failures {
    fn told<T>(&self, result: Result<T, KvmError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.0.swap(true, Ordering::Relaxed) {
                    log::warn!("a part of the guest's time runs on while it is held: {error}");
                }
                None
            }
        }
    }
}

/// Whether this host can hold a guest's counter, found by trying it once.
fn counts() -> bool {
    crate::check::holds_counter().is_ok()
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
