//! What KVM on aarch64 says that it can do, and how its guest debugging is set up for a try.

use crate::Capability;
use kvm_bindings as bindings;
use kvm_ioctls::{Cap, Kvm, VmFd};

/// `KVM_ARM_VM_SMCCC_FILTER` (KVM documentation, "Generic vm interface").
const KVM_ARM_VM_SMCCC_CTRL: u32 = 0;
const KVM_ARM_VM_SMCCC_FILTER: u64 = 0;

/// The capabilities that `vmm check` lists.
pub fn capabilities(kvm: &Kvm, vm: &VmFd) -> Vec<Capability> {
    let flag = |key, title, capability| {
        let works = kvm.check_extension(capability);
        Capability { key, title, works, detail: String::new() }
    };
    let number = |key, title, capability| {
        let value = kvm.check_extension_int(capability);
        Capability { key, title, works: value > 0, detail: value.to_string() }
    };
    let gic = |key, title, kind| Capability {
        key,
        title,
        works: super::try_device(vm, kind),
        detail: String::new(),
    };
    let filter = bindings::kvm_device_attr {
        group: KVM_ARM_VM_SMCCC_CTRL,
        attr: KVM_ARM_VM_SMCCC_FILTER,
        addr: 0,
        flags: 0,
    };
    vec![
        gic("gic_v3", "GICv3", bindings::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3),
        gic("gic_v2", "GICv2", bindings::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2),
        number("ipa_bits", "guest-physical address bits", Cap::ArmVmIPASize),
        number("hardware_breakpoints", "hardware breakpoints", Cap::DebugHwBps),
        number("hardware_watchpoints", "hardware watchpoints", Cap::DebugHwWps),
        flag("sve", "Scalable Vector Extension", Cap::ArmSve),
        flag("pointer_authentication", "pointer authentication", Cap::ArmPtrAuthAddress),
        Capability {
            key: "smccc_filter",
            title: "SMCCC filter",
            works: vm.has_device_attr(&filter).is_ok(),
            detail: String::new(),
        },
    ]
}
