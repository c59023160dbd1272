//! An aarch64 guest's time: the counter, which all of its clocks and timers compare with.
//!
//! `KVM_ARM_SET_COUNTER_OFFSET` (Linux 6.4) moves the virtual and the physical counter of all vCPUs and
//! their timers together, while none of them runs. Older hosts have the virtual counter as a register
//! (KVM API, `KVM_REG_ARM_TIMER_CNT`), which moves that of all vCPUs.

use super::{get, system_register};
use crate::error::{KvmError, ioctl};
use crate::lines::Lines;
use kvm_bindings as kvm;
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_ARM_SET_COUNTER_OFFSET, 0xae, 0xb5, kvm::kvm_arm_counter_offset);

/// `KVM_REG_ARM_TIMER_CNT`, which by a mistake that has become ABI has the encoding of `CNTV_CVAL_EL0`
/// (KVM API, "KVM_SET_ONE_REG").
const TIMER_CNT: u64 = system_register(3, 3, 14, 3, 2);

/// The offset between the host's counter and the guest's, if this host lets it be set.
#[derive(Debug)]
pub struct Counter(Mutex<Option<u64>>);

/// The host's counter when the guest was held.
#[derive(Debug)]
pub struct FrozenVm {
    host: u64,
}

/// The guest's counter then, where the host has no offset.
#[derive(Debug)]
pub struct FrozenVcpu {
    counter: u64,
}

/// In words.
pub fn what(counts: bool) -> &'static str {
    if counts { "the counter and its timers" } else { "nothing: the counter runs on" }
}

/// `CNTVCT_EL0`, of the host.
fn host_counter() -> u64 {
    let count: u64;
    // SAFETY: Linux lets user space read it; the barrier keeps the read from being done early.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nostack, nomem, preserves_flags));
    }
    count
}

/// `CNTFRQ_EL0`, Hz: of the host, and of its guests.
fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: Linux lets user space read it.
    unsafe {
        std::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nostack, nomem, preserves_flags));
    }
    frequency
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(frequency()) / 1_000_000_000).unwrap_or(0)
}

fn set_offset(vm: &VmFd, offset: u64) -> Result<(), KvmError> {
    /// How often it is tried while somebody asks a vCPU something: KVM takes no offset then.
    const TRIES: u32 = 1000;
    let offset = kvm::kvm_arm_counter_offset { counter_offset: offset, reserved: 0 };
    for _ in 0..TRIES {
        // SAFETY: the ioctl reads the structure, which lives through the call.
        if unsafe { ioctl_with_ref(vm, KVM_ARM_SET_COUNTER_OFFSET(), &offset) } == 0 {
            return Ok(());
        }
        if kvm_ioctls::Error::last().errno() != libc::EBUSY {
            break;
        }
        std::thread::yield_now();
    }
    Err(ioctl("KVM_ARM_SET_COUNTER_OFFSET")(kvm_ioctls::Error::last()))
}

impl Counter {
    /// Has a new guest's counters begin at 0, as KVM has the virtual one, so that they can be moved by a
    /// difference later.
    pub fn begin(vm: &VmFd) -> Counter {
        let offset = host_counter();
        Counter(Mutex::new(set_offset(vm, offset).ok().map(|()| offset)))
    }
}

/// Reads the host's counter.
pub fn freeze_vm(_: &VmFd) -> Result<FrozenVm, KvmError> {
    Ok(FrozenVm { host: host_counter() })
}

/// Moves the guest's counters back by what has passed.
pub fn thaw_vm(
    vm: &VmFd,
    counter: &Counter,
    frozen: &FrozenVm,
    owed: Duration,
    counts: bool,
) -> Result<(), KvmError> {
    let mut offset = counter.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(old) = offset.filter(|_| counts) else { return Ok(()) };
    let new = old.wrapping_add(host_counter().wrapping_sub(frozen.host)).wrapping_add(ticks(owed));
    set_offset(vm, new)?;
    *offset = Some(new);
    Ok(())
}

/// It has no timers but the counter's.
pub fn start_timers(
    _: &VmFd,
    _: &Counter,
    _: &FrozenVm,
    _: (Instant, Duration, Instant),
    _: &Lines,
) -> Result<(), KvmError> {
    Ok(())
}

/// Whether the counters can be put back by a difference, without having been taken.
pub fn can_shift(counter: &Counter) -> bool {
    counter.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// The guest's counters go back by `owed`.
pub fn shift_vm(vm: &VmFd, counter: &Counter, owed: Duration, counts: bool) -> Result<(), KvmError> {
    let mut offset = counter.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(old) = offset.filter(|_| counts) else { return Ok(()) };
    let new = old.wrapping_add(ticks(owed));
    set_offset(vm, new)?;
    *offset = Some(new);
    Ok(())
}

/// They are the machine's.
pub fn shift_vcpu(_: &VcpuFd, _: Duration, _: bool, _: &Lines) -> Result<(), KvmError> {
    Ok(())
}

/// Reads the guest's counter.
pub fn freeze_vcpu(vcpu: &VcpuFd, _: bool) -> Result<FrozenVcpu, KvmError> {
    Ok(FrozenVcpu { counter: get(vcpu, TIMER_CNT).map_err(ioctl("KVM_GET_ONE_REG TIMER_CNT"))? })
}

/// The counter is the machine's.
pub fn cycles_since(_: &VcpuFd, _: &FrozenVcpu, _: Duration) -> Result<Option<u64>, KvmError> {
    Ok(None)
}

/// Where the host has no offset, the register is written; else KVM ignores that.
pub fn thaw_vcpu(
    vcpu: &VcpuFd,
    frozen: &FrozenVcpu,
    _: Option<u64>,
    owed: Duration,
    _: &Lines,
) -> Result<(), KvmError> {
    let count = frozen.counter.wrapping_sub(ticks(owed));
    vcpu.set_one_reg(TIMER_CNT, &count.to_le_bytes()).map(drop).map_err(ioctl("KVM_SET_ONE_REG TIMER_CNT"))
}
