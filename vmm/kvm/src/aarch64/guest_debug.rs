//! Guest debugging on aarch64: `KVM_SET_GUEST_DEBUG`, and exceptions given back to the guest.

use super::{core_register, get, system_register};
use crate::error::{KvmError, ioctl};
use arch::aarch64::exception_entry::{After, Before, Features, take};
use debug::arming::{Arming, DebugRegisters};
use debug::machine::Activity;
use debug::trap::Injection;
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// KVM has no way to keep interrupts out of steps here.
pub fn blocks_interrupts(_: &Kvm) -> bool {
    false
}

/// Breakpoint and watchpoint registers that KVM gives to debuggers.
pub fn registers(kvm_fd: &Kvm) -> (usize, usize) {
    let count = |capability| usize::try_from(kvm_fd.check_extension_int(capability)).unwrap_or(0);
    (count(Cap::DebugHwBps), count(Cap::DebugHwWps))
}

fn flags(arming: &Arming) -> kvm::kvm_guest_debug {
    let mut debug = kvm::kvm_guest_debug::default();
    if arming.is_off() {
        return debug;
    }
    debug.control = kvm::KVM_GUESTDBG_ENABLE;
    if arming.step {
        debug.control |= kvm::KVM_GUESTDBG_SINGLESTEP;
    }
    if arming.software {
        debug.control |= kvm::KVM_GUESTDBG_USE_SW_BP;
    }
    if let DebugRegisters::Aarch64 { breakpoints, watchpoints } = &arming.registers
        && !arming.registers.is_empty()
    {
        debug.control |= kvm::KVM_GUESTDBG_USE_HW;
        let arch = &mut debug.arch;
        for (index, pair) in breakpoints.iter().enumerate().take(arch.dbg_bcr.len()) {
            (arch.dbg_bcr[index], arch.dbg_bvr[index]) = (pair.control, pair.value);
        }
        for (index, pair) in watchpoints.iter().enumerate().take(arch.dbg_wcr.len()) {
            (arch.dbg_wcr[index], arch.dbg_wvr[index]) = (pair.control, pair.value);
        }
    }
    debug
}

/// `KVM_SET_GUEST_DEBUG`.
pub fn set(vcpu: &VcpuFd, arming: &Arming) -> Result<(), KvmError> {
    vcpu.set_guest_debug(&flags(arming)).map_err(ioctl("KVM_SET_GUEST_DEBUG"))
}

/// Enters the guest's exception vector by hand (`arch::aarch64::exception_entry`).
pub fn inject(vcpu: &VcpuFd, injection: &Injection, _: &Arming) -> Result<(), KvmError> {
    let Injection::Aarch64 { exception, far } = *injection else {
        return Err(KvmError::Missing("the other architecture's exceptions"));
    };
    const PSTATE: u64 = core_register(33 * 8);
    const ELR_EL1: u64 = core_register(35 * 8);
    const SPSR_EL1: u64 = core_register(36 * 8);
    const VBAR_EL1: u64 = system_register(3, 0, 12, 0, 0);
    const SCTLR_EL1: u64 = system_register(3, 0, 1, 0, 0);
    const ESR_EL1: u64 = system_register(3, 0, 5, 2, 0);
    const FAR_EL1: u64 = system_register(3, 0, 6, 0, 0);
    const ID_AA64PFR1_EL1: u64 = system_register(3, 0, 0, 4, 1);
    const ID_AA64MMFR1_EL1: u64 = system_register(3, 0, 0, 7, 1);
    let read = |id| get(vcpu, id).map_err(ioctl("KVM_GET_ONE_REG"));
    let before = Before {
        pc: read(super::PC)?,
        pstate: read(PSTATE)?,
        vbar: read(VBAR_EL1)?,
        sctlr: read(SCTLR_EL1)?,
        features: Features::new(read(ID_AA64PFR1_EL1)?, read(ID_AA64MMFR1_EL1)?),
    };
    let After { pc, pstate, spsr, elr, esr, far } = take(exception, far, &before);
    let mut values =
        vec![(SPSR_EL1, spsr), (ELR_EL1, elr), (ESR_EL1, esr), (PSTATE, pstate), (super::PC, pc)];
    values.extend(far.map(|far| (FAR_EL1, far)));
    for (id, value) in values {
        vcpu.set_one_reg(id, &value.to_le_bytes()).map_err(ioctl("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}

/// Exceptions are entered by hand, so none waits.
pub fn has_exception(_: &VcpuFd) -> bool {
    false
}

/// Not needed here: see `arch::aarch64::step`.
pub fn shadow_interrupts(_: &VcpuFd) -> Result<(), KvmError> {
    Ok(())
}

/// Makes instructions that were written to guest memory, `length` bytes from `place` of this
/// process's mapping, visible to instruction fetches (Arm ARM (DDI 0487), "Cache maintenance
/// requirements": clean to the point of unification, invalidate, synchronize).
pub fn code_changed(place: *const u8, length: usize) {
    /// The smallest line that a processor may have.
    const LINE: usize = 16;
    if length == 0 {
        return;
    }
    let start = place as usize & !(LINE - 1);
    let lines = (start..place as usize + length).step_by(LINE);
    for line in lines.clone() {
        // SAFETY: the line lies in guest memory that is mapped; cleaning changes no contents.
        unsafe { std::arch::asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers.
    unsafe { std::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in lines {
        // SAFETY: as above.
        unsafe { std::arch::asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: barriers.
    unsafe { std::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// `KVM_SET_MP_STATE`.
pub fn set_runnable(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let runnable = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(ioctl("KVM_SET_MP_STATE"))
}

/// `KVM_GET_MP_STATE`. KVM does not tell a vCPU that waits in `WFI` from one that runs.
pub fn activity(vcpu: &VcpuFd) -> Activity {
    match vcpu.get_mp_state().map(|state| state.mp_state) {
        Ok(kvm::KVM_MP_STATE_STOPPED) => Activity::NotStarted,
        Ok(kvm::KVM_MP_STATE_HALTED) => Activity::Halted,
        _ => Activity::Running,
    }
}

/// Makes an external data abort pending, for the access that the vCPU has just left the guest for (KVM API,
/// `KVM_SET_VCPU_EVENTS`, `KVM_CAP_ARM_INJECT_EXT_DABT`).
pub fn abort_access(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut events = kvm::kvm_vcpu_events::default();
    events.exception.ext_dabt_pending = 1;
    vcpu.set_vcpu_events(&events).map_err(ioctl("KVM_SET_VCPU_EVENTS for an external abort"))
}

/// There is no such interrupt.
pub fn nmi(_: &VcpuFd) -> Result<(), KvmError> {
    Err(KvmError::Missing("non-maskable interrupts on aarch64"))
}
