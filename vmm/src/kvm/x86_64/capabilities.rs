//! What KVM on x86_64 says that it can do, and how its guest debugging is set up for a try.

use crate::kvm::{Capability, DebugProbe, Host};
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, VmFd};

/// The capabilities that `vmm check` lists.
pub fn capabilities(host: &Host, _vm: &VmFd) -> Vec<Capability> {
    let kvm = host.kvm();
    let flag = |key, title, capability| {
        let works = kvm.check_extension(capability);
        Capability { key, title, works, detail: String::new() }
    };
    let bits = |key, title, number: u32| {
        let value = kvm.check_extension_raw(u64::from(number));
        Capability { key, title, works: value > 0, detail: format!("{value:#x}") }
    };
    vec![
        flag("tsc_deadline", "TSC-deadline timer", Cap::TscDeadlineTimer),
        flag("irqfd", "interrupts by eventfd", Cap::Irqfd),
        bits(
            "guest_debug_flags",
            "guest debug flags (KVM_CAP_SET_GUEST_DEBUG2)",
            kvm::KVM_CAP_SET_GUEST_DEBUG2,
        ),
        bits("user_space_msr", "MSR exits (KVM_CAP_X86_USER_SPACE_MSR)", kvm::KVM_CAP_X86_USER_SPACE_MSR),
        bits("xen_hvm", "Xen hypercalls (KVM_CAP_XEN_HVM)", kvm::KVM_CAP_XEN_HVM),
    ]
}

/// `KVM_SET_GUEST_DEBUG` for one probe. Intel SDM vol. 3, "Debug Control Register (DR7)":
/// global enable of breakpoint 0 is bit 1, its condition bits 16 and 17, its length 18 and 19.
pub fn guest_debug(probe: DebugProbe) -> kvm::kvm_guest_debug {
    const DR7_FIXED_1: u64 = 1 << 10;
    const DR7_G0: u64 = 1 << 1;
    const DR7_RW0_WRITE: u64 = 0b01 << 16;
    const DR7_LEN0_4: u64 = 0b11 << 18;
    let mut debug = kvm::kvm_guest_debug { control: kvm::KVM_GUESTDBG_ENABLE, ..Default::default() };
    match probe {
        DebugProbe::SingleStep => debug.control |= kvm::KVM_GUESTDBG_SINGLESTEP,
        DebugProbe::SoftwareBreakpoint => debug.control |= kvm::KVM_GUESTDBG_USE_SW_BP,
        DebugProbe::HardwareBreakpoint(address) => {
            debug.control |= kvm::KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = address;
            debug.arch.debugreg[7] = DR7_FIXED_1 | DR7_G0;
        }
        DebugProbe::Watchpoint(address) => {
            debug.control |= kvm::KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = address;
            debug.arch.debugreg[7] = DR7_FIXED_1 | DR7_G0 | DR7_RW0_WRITE | DR7_LEN0_4;
        }
    }
    debug
}
