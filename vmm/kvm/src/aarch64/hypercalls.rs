//! How hypercalls come out of an aarch64 guest: KVM takes the low half of X0 as an SMCCC function,
//! whatever the immediate of the `HVC`, and a filter hands functions over (KVM API,
//! `KVM_ARM_VM_SMCCC_FILTER`).

use crate::error::{KvmError, ioctl};
use crate::{HypercallSetup, Transport, XenAttribute, XenVcpuAttribute};
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

/// Has KVM hand hypercalls over; if this host has no way for it, why.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn prepare(_: &Kvm, vm: &VmFd, _: &HypercallSetup) -> Result<Result<Transport, &'static str>, KvmError> {
    let attribute = |filter: Option<&kvm::kvm_smccc_filter>| kvm::kvm_device_attr {
        group: kvm::KVM_ARM_VM_SMCCC_CTRL,
        attr: kvm::KVM_ARM_VM_SMCCC_FILTER.into(),
        addr: filter.map_or(0, |filter| std::ptr::from_ref(filter) as u64),
        flags: 0,
    };
    if vm.has_device_attr(&attribute(None)).is_err() {
        return Ok(Err(
            "this host's KVM lacks KVM_ARM_VM_SMCCC_FILTER (Linux 6.4), so hypercalls are not seen",
        ));
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
    Ok(Ok(Transport::Smccc))
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

/// Sends a message to the interrupt translation service, which asks whose it is (KVM API, `KVM_SIGNAL_MSI`).
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn message(vm: &VmFd, (address, data): (u64, u32), device: u32) -> Result<(), KvmError> {
    let [address_lo, address_hi] = arch::bytes::halves(address);
    let flags = kvm::KVM_MSI_VALID_DEVID;
    let message = kvm::kvm_msi { address_lo, address_hi, data, flags, devid: device, ..Default::default() };
    vm.signal_msi(message).map(drop).map_err(ioctl("KVM_SIGNAL_MSI"))
}

/// Has a vCPU wait as `WFI` does (KVM API, `KVM_MP_STATE_SUSPENDED`): KVM tells us when there is an
/// interrupt (`KVM_SYSTEM_EVENT_WAKEUP`), and [`wake`] has to follow, which is the answer. KVM before Linux 5.19 has no such way:
/// the vCPU goes on, as one does that an event has woken.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn halt(vcpu: &VcpuFd) -> Result<bool, KvmError> {
    let suspended = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_SUSPENDED };
    match vcpu.set_mp_state(suspended) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == libc::EINVAL => Ok(false),
        Err(error) => Err(ioctl("KVM_SET_MP_STATE")(error)),
    }
}

/// Ends what [`halt`] began.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn wake(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let runnable = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_RUNNABLE };
    vcpu.set_mp_state(runnable).map_err(ioctl("KVM_SET_MP_STATE"))
}

const NO_EVENTS: KvmError = KvmError::Missing("delivery of Xen's events, which is KVM's on x86 only");

/// KVM delivers no events here.
///
/// # Errors
/// [`KvmError::Missing`].
pub fn set_xen_attribute(_: &VmFd, _: XenAttribute) -> Result<(), KvmError> {
    Err(NO_EVENTS)
}

/// KVM delivers no events here.
///
/// # Errors
/// [`KvmError::Missing`].
pub fn set_xen_vcpu_attribute(_: &VcpuFd, _: XenVcpuAttribute) -> Result<(), KvmError> {
    Err(NO_EVENTS)
}

/// KVM delivers no events here.
///
/// # Errors
/// [`KvmError::Missing`].
pub fn send_event(_: &VmFd, _: u32, _: u32) -> Result<(), KvmError> {
    Err(NO_EVENTS)
}

/// KVM has no clock for guests here.
///
/// # Errors
/// [`KvmError::Missing`].
pub fn clock(_: &VmFd) -> Result<u64, KvmError> {
    Err(NO_EVENTS)
}

/// There is none here.
pub fn tsc(_: &VcpuFd) -> Option<(u64, u32)> {
    None
}
