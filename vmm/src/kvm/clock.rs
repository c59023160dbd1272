//! The guest's time, as KVM keeps it: taken when the guest is held, and put back when it goes on.
//!
//! What counts the guest's time (the time-stamp counter, kvm-clock, timers of interrupt controllers; the
//! virtual counter and what compares with it) goes on in the host's time while no vCPU runs. So when the
//! guest has been held, the time that it has not seen is taken out of all of them, before a vCPU enters
//! it again. [`crate::guest_clock`] says when.

use super::error::KvmError;
use super::native::clock as native;
use super::vcpu::Vcpu;
use kvm_ioctls::VmFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// Whoever raises an interrupt has this lock for reading, so that none is raised while an interrupt
/// controller's state is read, changed and written: it would be lost.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<RwLock<()>>);

impl Lines {
    /// To be kept while an interrupt is raised.
    pub(super) fn raise(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something while no interrupt is raised from here.
    #[cfg_attr(
        target_arch = "aarch64",
        allow(dead_code, reason = "its controllers' timers are the counter's")
    )]
    pub(super) fn keep_still<R>(&self, what: impl FnOnce() -> R) -> R {
        let _still = self.0.write().unwrap_or_else(PoisonError::into_inner);
        what()
    }
}

/// The time of a machine's guest.
#[derive(Debug)]
pub struct VmClock {
    fd: Arc<VmFd>,
    lines: Lines,
    counter: native::Counter,
}

/// What the machine's clocks and timers said when they were taken.
#[derive(Debug)]
pub struct FrozenVm(native::FrozenVm);

/// What a vCPU's said.
#[derive(Debug)]
pub struct FrozenVcpu(native::FrozenVcpu);

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
        native::freeze_vm(&self.fd).map(FrozenVm)
    }

    /// Puts it back; `owed` is the time that had been held before it was taken.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn thaw(&self, frozen: &FrozenVm, owed: Duration, counts: bool) -> Result<(), KvmError> {
        native::thaw_vm(&self.fd, &self.counter, &frozen.0, owed, counts)
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
        native::freeze_vcpu(self.descriptor(), counts).map(FrozenVcpu)
    }

    /// How far its counter has come since it was taken and for `owed` before, which is how far those of
    /// all vCPUs go back; 0 where it is the machine's.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn cycles_since(&self, frozen: &FrozenVcpu, owed: Duration) -> Result<Cycles, KvmError> {
        native::cycles_since(self.descriptor(), &frozen.0, owed).map(Cycles)
    }

    /// Puts the vCPU's time back: its counter by `back`, then what compares with it. `owed` is as for
    /// [`VmClock::thaw`].
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn thaw_time(
        &self,
        frozen: &FrozenVcpu,
        back: Option<Cycles>,
        owed: Duration,
        lines: &Lines,
    ) -> Result<(), KvmError> {
        native::thaw_vcpu(self.descriptor(), &frozen.0, back.map(|Cycles(cycles)| cycles), owed, lines)
    }
}
