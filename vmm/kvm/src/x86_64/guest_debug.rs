//! Guest debugging on x86: `KVM_SET_GUEST_DEBUG`, and exceptions given back to the guest.

use crate::error::{KvmError, ioctl};
use arch::x86::debug_registers::{DR6_FIXED, dr7};
use debug::arming::{Arming, DebugRegisters};
use debug::machine::Activity;
use debug::trap::Injection;
use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VcpuFd};

/// Whether KVM keeps interrupts out of steps by itself.
pub fn blocks_interrupts(kvm_fd: &Kvm) -> bool {
    let flags = kvm_fd.check_extension_raw(u64::from(kvm::KVM_CAP_SET_GUEST_DEBUG2));
    u32::try_from(flags).is_ok_and(|flags| flags & kvm::KVM_GUESTDBG_BLOCKIRQ != 0)
}

/// Breakpoint and watchpoint registers: all x86 processors have four, for both.
pub fn registers(_: &Kvm) -> (usize, usize) {
    (arch::x86::debug_registers::COUNT, arch::x86::debug_registers::COUNT)
}

/// The flags and registers of an arming.
fn flags(arming: &Arming) -> kvm::kvm_guest_debug {
    let mut debug = kvm::kvm_guest_debug::default();
    if arming.is_off() {
        return debug;
    }
    debug.control = kvm::KVM_GUESTDBG_ENABLE;
    if arming.step {
        debug.control |= kvm::KVM_GUESTDBG_SINGLESTEP;
    }
    if arming.block_interrupts {
        debug.control |= kvm::KVM_GUESTDBG_BLOCKIRQ;
    }
    if arming.software {
        debug.control |= kvm::KVM_GUESTDBG_USE_SW_BP;
    }
    if let DebugRegisters::X86(slots) = &arming.registers
        && !arming.registers.is_empty()
    {
        debug.control |= kvm::KVM_GUESTDBG_USE_HW_BP;
        for (place, slot) in debug.arch.debugreg.iter_mut().zip(slots) {
            *place = slot.map_or(0, |slot| slot.address);
        }
        debug.arch.debugreg[7] = dr7(slots);
    }
    debug
}

/// `KVM_SET_GUEST_DEBUG`. A KVM without `KVM_GUESTDBG_BLOCKIRQ` refuses the flag; then it is
/// asked for without.
pub fn set(vcpu: &VcpuFd, arming: &Arming) -> Result<(), KvmError> {
    set_flags(vcpu, flags(arming))
}

fn set_flags(vcpu: &VcpuFd, mut debug: kvm::kvm_guest_debug) -> Result<(), KvmError> {
    let first = vcpu.set_guest_debug(&debug);
    if first.is_err() && debug.control & kvm::KVM_GUESTDBG_BLOCKIRQ != 0 {
        debug.control &= !kvm::KVM_GUESTDBG_BLOCKIRQ;
        return vcpu.set_guest_debug(&debug).map_err(ioctl("KVM_SET_GUEST_DEBUG"));
    }
    first.map_err(ioctl("KVM_SET_GUEST_DEBUG"))
}

/// `RFLAGS.RF`: the instruction at RIP is executed once in spite of its breakpoint.
const RFLAGS_RF: u64 = 1 << 16;

/// Queues #BP or #DB for the guest. `DR6` is the guest's own and must hold what the
/// exception says when its handler reads it.
pub fn inject(vcpu: &VcpuFd, injection: &Injection, arming: &Arming) -> Result<(), KvmError> {
    let mut debug = flags(arming);
    match *injection {
        Injection::Breakpoint => {
            debug.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_INJECT_BP;
        }
        Injection::Debug { dr6, is_fault, skip } => {
            let mut registers = vcpu.get_debug_regs().map_err(ioctl("KVM_GET_DEBUGREGS"))?;
            // B0 to B3 are replaced, the others accumulate (Intel SDM vol. 3, "Debug Status
            // Register (DR6)").
            registers.dr6 = registers.dr6 & !0xf | DR6_FIXED | dr6;
            vcpu.set_debug_regs(&registers).map_err(ioctl("KVM_SET_DEBUGREGS"))?;
            if skip > 0 || is_fault {
                let mut regs = vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?;
                regs.rip = regs.rip.wrapping_add(skip);
                regs.rflags |= if is_fault { RFLAGS_RF } else { 0 };
                vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))?;
            }
            debug.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_INJECT_DB;
        }
        Injection::Aarch64 { .. } => return Err(KvmError::Missing("the other architecture's exceptions")),
    }
    set_flags(vcpu, debug)
}

/// Whether an exception waits to be delivered when the guest is entered (`KVM_GET_VCPU_EVENTS`).
pub fn has_exception(vcpu: &VcpuFd) -> bool {
    let events = vcpu.get_vcpu_events();
    events.is_ok_and(|events| events.exception.injected != 0 || events.exception.pending != 0)
}

/// Blocks interrupts for one instruction, as `STI` does.
pub fn shadow_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut events = vcpu.get_vcpu_events().map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
    events.interrupt.shadow = u8::try_from(kvm::KVM_X86_SHADOW_INT_STI).unwrap_or(0);
    events.flags = kvm::KVM_VCPUEVENT_VALID_SHADOW;
    vcpu.set_vcpu_events(&events).map_err(ioctl("KVM_SET_VCPU_EVENTS"))
}

/// Nothing to do: x86 processors see new instructions when they enter the guest (Intel SDM
/// vol. 3, "Self-Modifying Code").
pub fn code_changed(_: *const u8, _: usize) {}

/// `KVM_SET_MP_STATE`.
pub fn set_runnable(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let runnable = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(ioctl("KVM_SET_MP_STATE"))
}

/// `KVM_GET_MP_STATE`.
pub fn activity(vcpu: &VcpuFd) -> Activity {
    match vcpu.get_mp_state().map(|state| state.mp_state) {
        Ok(kvm::KVM_MP_STATE_HALTED) => Activity::Halted,
        Ok(kvm::KVM_MP_STATE_UNINITIALIZED | kvm::KVM_MP_STATE_INIT_RECEIVED) => Activity::NotStarted,
        _ => Activity::Running,
    }
}

/// Only aarch64 has accesses that the hardware does not describe.
pub fn abort_access(_: &VcpuFd) -> Result<(), KvmError> {
    Err(KvmError::Missing("external aborts on x86"))
}

/// `KVM_NMI`.
pub fn nmi(vcpu: &VcpuFd) -> Result<(), KvmError> {
    vcpu.nmi().map_err(ioctl("KVM_NMI"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Isa;
    use arch::x86::debug_registers::{Condition, Slot};

    #[test]
    fn flags_follow_the_arming() {
        assert_eq!(flags(&Arming::off(Isa::X86_64)).control, 0);
        let mut arming = Arming { step: true, block_interrupts: true, ..Arming::off(Isa::X86_64) };
        let step = kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_SINGLESTEP | kvm::KVM_GUESTDBG_BLOCKIRQ;
        assert_eq!(flags(&arming).control, step);
        (arming.step, arming.block_interrupts) = (false, false);
        arming.software = true;
        assert_eq!(flags(&arming).control, kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_USE_SW_BP);
        let slot = Slot { address: 0x1234, condition: Condition::Execute, length: 1 };
        arming.registers = DebugRegisters::X86([None, Some(slot), None, None]);
        let debug = flags(&arming);
        assert_ne!(debug.control & kvm::KVM_GUESTDBG_USE_HW_BP, 0);
        assert_eq!((debug.arch.debugreg[1], debug.arch.debugreg[7]), (0x1234, 0x608));
    }
}
