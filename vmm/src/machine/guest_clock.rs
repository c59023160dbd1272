//! The guest's time stands still while the guest is held.
//!
//! [`Vcpus`] says when all vCPUs are out of the guest and when they may enter it
//! again; [`Timekeeper`] takes the clocks and timers then and puts them back, by
//! [`kvm::clock`]. The real-time clocks of the machine (CMOS, PL031) stay wall clocks.
//!
//! A debugger's row of steps holds the guest thousands of times a second, for microseconds. So what is
//! short is only added up, and taken out once [`SHORTEST`] has gathered, in a row of steps [`LONG`]; and the clocks are
//! taken when the guest has stood still for that, by whoever waits ([`Timekeeper::settle`]).
//!
//! The guest never sees its time go back: what has gathered when it may look at the time again stays with it.
//! Linux takes a clock of few bits that goes back by a tick for one that has gone all round (4.7 s with the ACPI
//! timer), and puts its own timers off by as much.

use crate::machine::hypercalls::family::Timers;
use debug::live::times::{Stay, Times};
use debug::live::vcpus::{Monitor, Vcpus};
use kvm::clock::{Cycles, FrozenVcpu, FrozenVm, Stood, VmClock};
use kvm::{KvmError, Vcpu};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What becomes of the guest's time while the guest is held: by a debugger, for a dump, by
/// [`Guest::pause`](crate::machine::Guest::pause).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestClock {
    /// It stands still, as far as the host can.
    #[default]
    Stop,
    /// It runs on.
    Run,
}

/// Less time than this is not taken out of the guest's: it gathers while the guest does not look.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// A guest that has stood still for so long in one go is not being stepped by a program: its clocks are taken. Else
/// they go back by a difference when it runs, which costs less. In a row of steps, which do not look at the time, less
/// than this is not taken out either: where KVM is nested in an emulation the five calls for the clocks cost as much as
/// the rest of a step. It is a tick of Linux's at its usual rate.
const LONG: Duration = Duration::from_millis(4);

/// So many stays in which nothing but steps was done are a row: a debugger that passes a breakpoint takes one.
const ROW: u32 = 2;

/// What all vCPUs' being out of the guest is known by.
#[derive(Debug, Default)]
struct Standstill {
    /// When the last vCPU had left it; `None` while the guest may run.
    since: Option<Instant>,
    /// For how long it stood still before, without having its time put back and without having looked at it
    /// since.
    owed: Duration,
    /// In how many stays before it nothing was done but steps that do not look at the time.
    stepped: u32,
    /// When it was let go last.
    released: Option<Instant>,
    frozen: Option<Frozen>,
}

impl Standstill {
    /// It has begun, by `now`, after these stays, one of each vCPU, where all are known.
    fn begin(&mut self, stays: Option<&[Stay]>, now: Instant) {
        let (Some(stays), Some(released)) = (stays, self.released.take()) else {
            // Whether somebody has looked is not known.
            (self.owed, self.stepped) = (Duration::ZERO, 0);
            self.since = Some(now);
            return;
        };
        // Those that stood still all the time say nothing of this stay; if all did, there was none.
        let stays = || stays.iter().filter(|stay| stay.entered >= released);
        let first = stays().map(|stay| stay.entered).min().unwrap_or(now);
        let last = stays().map(|stay| stay.left).max().map_or(now, |last| last.min(now));
        (self.owed, self.stepped) = match stays().any(|stay| stay.looked) {
            true => (Duration::ZERO, 0),
            false => {
                let row = u32::from(stays().next().is_some());
                (self.owed + first.saturating_duration_since(released), self.stepped.saturating_add(row))
            }
        };
        self.since = Some(last);
    }

    /// Less than this is not taken out.
    fn shortest(&self) -> Duration {
        if self.stepped >= ROW { LONG } else { SHORTEST }
    }
}

/// The guest's time, taken.
#[derive(Debug)]
struct Frozen {
    vm: Option<FrozenVm>,
    vcpus: Vec<Option<FrozenVcpu>>,
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
    /// Locked by whoever holds the guest or lets it go; never by vCPUs' threads.
    still: Mutex<Standstill>,
}

impl Timekeeper {
    /// For a machine whose guest has not run yet.
    pub fn new(mode: GuestClock, clock: VmClock, timers: Option<Arc<Timers>>) -> Timekeeper {
        Timekeeper { mode, clock, timers, failures: Arc::default(), still: Mutex::default() }
    }

    fn still(&self) -> MutexGuard<'_, Standstill> {
        self.still.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn begin<'a>(&self, times: impl Iterator<Item = &'a Times>) {
        let stays: Option<Vec<_>> = times.map(Times::stay).collect();
        self.still().begin(stays.as_deref(), Instant::now());
    }

    /// Takes the guest's time, if it has stood still for long enough; else, how long until then.
    pub fn settle(&self, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) -> Option<Duration> {
        let mut still = self.still();
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
    pub fn freeze_now(&self, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) {
        let mut still = self.still();
        if still.frozen.is_none() && still.since.is_some() && self.mode == GuestClock::Stop {
            still.frozen = Some(self.freeze(vcpus));
        }
    }

    /// The guest is about to run: its time is put back.
    pub fn end(&self, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) {
        // What passes from here on until a vCPU enters the guest is looked at the next time.
        let mut still = self.still();
        still.released = self.put_back(&mut still, vcpus).or_else(|| Some(Instant::now()));
    }

    /// From when the guest's time goes on, if it was put back.
    fn put_back(&self, still: &mut Standstill, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) -> Option<Instant> {
        let since = still.since.take()?;
        if self.mode == GuestClock::Run {
            still.owed = Duration::ZERO;
            return None;
        }
        let stood = Stood { since, owed: std::mem::take(&mut still.owed) };
        let frozen = match still.frozen.take() {
            Some(frozen) => frozen,
            None if since.elapsed() + stood.owed < still.shortest() => {
                still.owed = since.elapsed() + stood.owed;
                return None;
            }
            None if self.clock.can_shift() => return Some(self.shift(stood, vcpus)),
            None => self.freeze(vcpus),
        };
        Some(self.thaw(frozen, stood, vcpus))
    }

    /// Has all clocks go back by what has gathered, at once: a row of steps pays for it once in [`LONG`].
    fn shift(&self, stood: Stood, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) -> Instant {
        let counts = counts();
        Timekeeper::tell_whether_it_counts();
        let restart = Instant::now();
        let owed = restart.saturating_duration_since(stood.since) + stood.owed;
        self.failures.told(self.clock.shift(owed, counts));
        let (lines, failures) = (self.clock.lines().clone(), Arc::clone(&self.failures));
        // Each before it enters the guest: a step does not wait for other vCPUs.
        vcpus.post_each(move |vcpu| {
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
        if let Err(seen) = kvm::probe::holds_counter()
            && !IS_TOLD.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "this host's KVM does not hold a guest's counter, which runs on while the guest is held: {seen}"
            );
        }
    }

    fn freeze(&self, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) -> Frozen {
        let counts = counts();
        Timekeeper::tell_whether_it_counts();
        if let Some(timers) = &self.timers {
            timers.hold();
        }
        let mut taken = Vec::new();
        for (id, frozen) in vcpus.for_each(move |vcpu| (vcpu.id() as usize, vcpu.freeze_time(counts))) {
            if taken.len() <= id {
                taken.resize_with(id + 1, || None);
            }
            taken[id] = self.failures.told(frozen);
        }
        Frozen { vm: self.failures.told(self.clock.freeze()), vcpus: taken }
    }

    /// Puts back what was taken; from when the guest's time goes on.
    fn thaw(&self, frozen: Frozen, stood: Stood, vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>) -> Instant {
        let counts = counts();
        let Frozen { vm, vcpus: taken } = frozen;
        let taken = Arc::new(taken);
        let back = counts.then(|| self.back(&taken, stood, vcpus)).flatten();
        let (back, restart) = back.map_or((None, None), |(cycles, at)| (Some(cycles), Some(at)));
        let thawed =
            vm.as_ref().and_then(|vm| self.failures.told(self.clock.thaw(vm, &stood, restart, counts)));
        let restart = thawed.or(restart).unwrap_or_else(Instant::now);
        let lines = self.clock.lines().clone();
        let results = vcpus.for_each(move |vcpu| match taken.get(vcpu.id() as usize) {
            Some(Some(frozen)) => vcpu.thaw_time(frozen, back, &stood, &lines),
            _ => Ok(()),
        });
        for result in results {
            self.failures.told(result);
        }
        if let Some(vm) = &vm {
            self.failures.told(self.clock.start_timers(vm, &stood, restart));
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
        vcpus: &Vcpus<impl Monitor<Vcpu = Vcpu>>,
    ) -> Option<(Cycles, Instant)> {
        let taken = Arc::clone(taken);
        let first = vcpus.for_each(move |vcpu| match taken.first() {
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
    kvm::probe::holds_counter().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_may_have_seen_stays_with_it() {
        let start = Instant::now();
        let at = |us: u64| start + Duration::from_micros(us);
        let stay =
            |entered: u64, left: u64, looked: bool| Stay { entered: at(entered), left: at(left), looked };
        let mut still = Standstill::default();
        // Let go at 0, in the guest from 10 to 20 for a step: the way to it is owed.
        let mut held = |released: u64, stays: &[Stay], now: u64| {
            still.released = Some(at(released));
            still.begin(Some(stays), at(now));
            let since = still.since.take().unwrap();
            still.owed += at(now).saturating_duration_since(since);
            (since, still.owed.as_micros())
        };
        assert_eq!(held(0, &[stay(10, 20, false)], 50), (at(20), 40));
        // Another vCPU, that has run before all of this, has seen nothing since.
        assert_eq!(held(50, &[stay(60, 70, false), stay(0, 9, true)], 100), (at(70), 80));
        // One looks at the time: what has gathered before, and the way to it, it has seen pass.
        assert_eq!(held(100, &[stay(110, 120, false), stay(115, 130, true)], 150), (at(130), 20));
        assert_eq!(held(150, &[], 160), (at(160), 30));
        // Nobody knows.
        still.released = None;
        still.begin(None, at(200));
        assert_eq!((still.since, still.owed), (Some(at(200)), Duration::ZERO));
    }

    #[test]
    fn only_in_a_row_of_steps_more_gathers() {
        let start = Instant::now();
        let mut still = Standstill::default();
        let mut after = |stays: &[bool]| {
            let stays: Vec<_> =
                stays.iter().map(|looked| Stay { entered: start, left: start, looked: *looked }).collect();
            still.released = Some(start);
            still.begin(Some(&stays), start);
            still.shortest()
        };
        // A debugger passes a breakpoint by one step, and the guest runs.
        for looked in [true, false, true, false] {
            assert_eq!(after(&[looked]), SHORTEST);
        }
        assert_eq!(after(&[false]), LONG);
        // It was let go, and held again before anybody ran.
        assert_eq!(after(&[]), LONG);
        assert_eq!(after(&[false, true]), SHORTEST);
        assert_eq!(after(&[]), SHORTEST);
        assert_eq!(after(&[]), SHORTEST);
    }
}
