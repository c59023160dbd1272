//! The guest's time, as KVM keeps it: taken when the guest is held, and put back when it goes on.
//!
//! What counts the guest's time (the time-stamp counter, kvm-clock, timers of interrupt controllers; the
//! virtual counter and what compares with it) goes on in the host's time while no vCPU runs. So when the
//! guest has been held, the time that it has not seen is taken out of all of them, before a vCPU enters
//! it again. Whoever runs the vCPUs says when.

pub use super::lines::Lines;

use super::error::KvmError;
use super::native::clock as native;
use super::vcpu::Vcpu;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time of a machine's guest.
#[derive(Debug)]
pub struct VmClock {
    fd: Arc<VmFd>,
    lines: Lines,
    counter: native::Counter,
}

/// Since when the guest has stood still, and for how long it had before without having its time put back.
#[derive(Clone, Copy, Debug)]
pub struct Stood {
    /// When its last vCPU left it.
    pub since: Instant,
    /// The time that is owed from before.
    pub owed: Duration,
}

impl Stood {
    /// What is owed at a moment.
    fn at(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.since) + self.owed
    }
}

/// What the machine's clocks and timers said when they were taken.
#[derive(Debug)]
pub struct FrozenVm(native::FrozenVm, Instant);

/// What a vCPU's said.
#[derive(Debug)]
pub struct FrozenVcpu(native::FrozenVcpu, Instant);

/// How far a vCPU's counter has to go back, in its own units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cycles(pub u64);

impl VmClock {
    pub(super) fn new(fd: Arc<VmFd>, lines: Lines, counter: native::Counter) -> VmClock {
        VmClock { fd, lines, counter }
    }

    /// What of the guest's time this host can hold, in words; `counts` is whether its counter is.
    pub fn what(counts: bool) -> &'static str {
        native::what(counts)
    }

    /// Takes what is the machine's. No vCPU is in the guest from here to [`Self::thaw`].
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn freeze(&self) -> Result<FrozenVm, KvmError> {
        let frozen = native::freeze_vm(&self.fd)?;
        Ok(FrozenVm(frozen, Instant::now()))
    }

    /// Puts it back, so that it goes on from `restart`, or from now if that is `None`; from when it does. Where
    /// the counter is the machine's, it is always from now.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn thaw(
        &self,
        frozen: &FrozenVm,
        stood: &Stood,
        restart: Option<Instant>,
        counts: bool,
    ) -> Result<Instant, KvmError> {
        let owed = stood.at(frozen.1);
        let now = Instant::now();
        let restart = restart.unwrap_or(now);
        let late = now.saturating_duration_since(restart);
        native::thaw_vm(&self.fd, &self.counter, &frozen.0, owed.saturating_sub(late), counts)?;
        Ok(restart)
    }

    /// Sets going what raises interrupts by itself, when everything else has been put back, so that the guest's time goes
    /// on from `restart`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn start_timers(&self, frozen: &FrozenVm, stood: &Stood, restart: Instant) -> Result<(), KvmError> {
        let stopped = (frozen.1, stood.at(frozen.1), restart);
        native::start_timers(&self.fd, &self.counter, &frozen.0, stopped, &self.lines)
    }

    /// Whether what was held for a short time can be put back without having been taken.
    pub fn can_shift(&self) -> bool {
        native::can_shift(&self.counter)
    }

    /// Has the machine's clocks go back by `owed`. No vCPU is in the guest.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn shift(&self, owed: Duration, counts: bool) -> Result<(), KvmError> {
        native::shift_vm(&self.fd, &self.counter, owed, counts)
    }

    /// What raises interrupts while this is done.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }
}

impl Vcpu {
    /// Takes what is the vCPU's, and disarms its timer where that would go off meanwhile. `counts` is
    /// whether the guest's counter can be held.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn freeze_time(&self, counts: bool) -> Result<FrozenVcpu, KvmError> {
        let frozen = native::freeze_vcpu(self.descriptor(), counts)?;
        Ok(FrozenVcpu(frozen, Instant::now()))
    }

    /// How far its counter has come since the guest stood still, which is how far those of all vCPUs go
    /// back, and when that was so; `None` where the counter is the machine's.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn cycles_since(
        &self,
        frozen: &FrozenVcpu,
        stood: &Stood,
    ) -> Result<Option<(Cycles, Instant)>, KvmError> {
        let cycles = native::cycles_since(self.descriptor(), &frozen.0, stood.at(frozen.1))?;
        Ok(cycles.map(|cycles| (Cycles(cycles), Instant::now())))
    }

    /// Has the vCPU's time go back by `owed`, that of all vCPUs alike, without its having been taken.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn shift_time(&self, owed: Duration, counts: bool, lines: &Lines) -> Result<(), KvmError> {
        native::shift_vcpu(self.descriptor(), owed, counts, lines)
    }

    /// Puts the vCPU's time back: its counter by `back`, then what compares with it.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn thaw_time(
        &self,
        frozen: &FrozenVcpu,
        back: Option<Cycles>,
        stood: &Stood,
        lines: &Lines,
    ) -> Result<(), KvmError> {
        let (back, owed) = (back.map(|Cycles(cycles)| cycles), stood.at(frozen.1));
        native::thaw_vcpu(self.descriptor(), &frozen.0, back, owed, lines)
    }
}
