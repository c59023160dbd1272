//! How hypercalls come out of an aarch64 guest: KVM takes the low half of X0 as an SMCCC function,
//! whatever the immediate of the `HVC`, and a filter hands functions over (KVM API,
//! `KVM_ARM_VM_SMCCC_FILTER`).

use crate::kvm::error::{KvmError, ioctl};
use crate::kvm::{HypercallSetup, Transport};
use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// What KVM keeps: functions of the Arm architecture, which the filter does not take; PSCI and the
/// random number generator; paravirtual time; its own (Arm DEN0028, "Function Identifier Ranges";
/// Linux, `include/linux/arm-smccc.h`). First and last of each.
const KEPT: [(u32, u32); 10] = [
    (0x8000_0000, 0x8000_ffff),
    (0x8400_0000, 0x8400_003f),
    (0x8400_0050, 0x8400_005f),
    (0x8600_0000, 0x8600_00ff),
    (0x8600_ff00, 0x8600_ffff),
    (0xc000_0000, 0xc000_ffff),
    (0xc400_0000, 0xc400_003f),
    (0xc400_0050, 0xc400_005f),
    (0xc500_0020, 0xc500_002f),
    (0xc600_0000, 0xc600_ffff),
];

/// Has KVM hand hypercalls over; `None` if this host has no way for it, which is said.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn prepare(_: &Kvm, vm: &VmFd, _: &HypercallSetup) -> Result<Option<Transport>, KvmError> {
    let attribute = |filter: Option<&kvm::kvm_smccc_filter>| kvm::kvm_device_attr {
        group: kvm::KVM_ARM_VM_SMCCC_CTRL,
        attr: kvm::KVM_ARM_VM_SMCCC_FILTER.into(),
        addr: filter.map_or(0, |filter| std::ptr::from_ref(filter) as u64),
        flags: 0,
    };
    if vm.has_device_attr(&attribute(None)).is_err() {
        log::warn!(
            "--hypercalls: this host's KVM lacks KVM_ARM_VM_SMCCC_FILTER (Linux 6.4), so hypercalls are not seen"
        );
        return Ok(None);
    }
    let mut next = Some(0);
    for (first, last) in
        KEPT.into_iter().map(Some).chain([None]).map(|kept| kept.unwrap_or((u32::MAX, u32::MAX)))
    {
        let Some(start) = next else { break };
        if first > start {
            let filter = kvm::kvm_smccc_filter {
                base: start,
                nr_functions: first - start,
                action: u8::try_from(kvm::kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER)
                    .expect("a small number"),
                pad: [0; 15],
            };
            vm.set_device_attr(&attribute(Some(&filter)))
                .map_err(ioctl("KVM_SET_DEVICE_ATTR for KVM_ARM_VM_SMCCC_FILTER"))?;
        }
        next = last.checked_add(1);
    }
    Ok(Some(Transport::Smccc))
}

/// KVM's GIC has private interrupts as levels only, whatever the guest configures.
pub const ARE_LEVELS: bool = true;

/// Raises or lowers one of a vCPU's private interrupts (KVM API, `KVM_IRQ_LINE`).
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn interrupt(vm: &VmFd, vcpu: u32, number: u32, level: bool) -> Result<(), KvmError> {
    let line = kvm::KVM_ARM_IRQ_TYPE_PPI << kvm::KVM_ARM_IRQ_TYPE_SHIFT
        | (vcpu & 0xff) << kvm::KVM_ARM_IRQ_VCPU_SHIFT
        | number;
    vm.set_irq_line(line, level).map_err(ioctl("KVM_IRQ_LINE"))
}

/// KVM has no way to make a vCPU wait here: it goes on, as one does that an event has woken.
///
/// # Errors
/// None.
pub fn halt(_: &VcpuFd) -> Result<(), KvmError> {
    Ok(())
}

/// There is none here.
pub fn tsc(_: &VcpuFd) -> Option<(u64, u32)> {
    None
}
