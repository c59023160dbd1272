//! What KVM on x86_64 says that it can do, and how its guest debugging is set up for a try.

use crate::Capability;
use kvm_bindings as bindings;
use kvm_ioctls::{Cap, Kvm, VmFd};

/// The capabilities that `vmm check` lists.
pub fn capabilities(kvm: &Kvm, _vm: &VmFd) -> Vec<Capability> {
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
            bindings::KVM_CAP_SET_GUEST_DEBUG2,
        ),
        bits(
            "user_space_msr",
            "MSR exits (KVM_CAP_X86_USER_SPACE_MSR)",
            bindings::KVM_CAP_X86_USER_SPACE_MSR,
        ),
        bits("xen_hvm", "Xen hypercalls (KVM_CAP_XEN_HVM)", bindings::KVM_CAP_XEN_HVM),
    ]
}
