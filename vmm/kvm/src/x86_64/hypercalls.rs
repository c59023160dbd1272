//! How hypercalls come out of an x86 guest.

use crate::error::{KvmError, ioctl};
use crate::{HypercallSetup, Transport, XenAttribute, XenVcpuAttribute};
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, 0xae, 0x7a, kvm::kvm_xen_hvm_config);
ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, 0xae, 0xc9, kvm::kvm_xen_hvm_attr);
ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, 0xae, 0xcb, kvm::kvm_xen_vcpu_attr);
ioctl_iow_nr!(KVM_XEN_HVM_EVTCHN_SEND, 0xae, 0xd0, kvm::kvm_irq_routing_xen_evtchn);

/// What KVM must have to deliver events: the shared page, and sending from here.
const EVENTS: u32 = kvm::KVM_XEN_HVM_CONFIG_SHARED_INFO | kvm::KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

/// The port that the hypercall page writes to: nothing else of this machine is there.
const PORT: u8 = 0xea;

/// Has KVM hand hypercalls over; if this host has no way for it, why.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn prepare(
    kvm: &Kvm,
    vm: &VmFd,
    setup: &HypercallSetup,
) -> Result<Result<Transport, &'static str>, KvmError> {
    let flags = u32::try_from(kvm.check_extension_int(Cap::XenHvm)).unwrap_or(0);
    if flags & kvm::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0 && !setup.page_only {
        let config = kvm::kvm_xen_hvm_config {
            flags: kvm::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
            msr: setup.msr,
            ..Default::default()
        };
        // SAFETY: the ioctl reads the structure, which lives through the call.
        let result = unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), &config) };
        if result != 0 {
            return Err(ioctl("KVM_XEN_HVM_CONFIG")(kvm_ioctls::Error::last()));
        }
        return Ok(Ok(Transport::XenExit { has_events: flags & EVENTS == EVENTS }));
    }
    if !setup.has_page {
        return Ok(Err("this host's KVM lacks KVM_CAP_XEN_HVM, so hypercalls are not seen"));
    }
    if !(kvm.check_extension_raw(kvm::KVM_CAP_X86_USER_SPACE_MSR.into()) > 0
        && kvm.check_extension_raw(kvm::KVM_CAP_X86_MSR_FILTER.into()) > 0)
    {
        return Ok(Err("this host's KVM has neither KVM_CAP_XEN_HVM nor KVM_CAP_X86_MSR_FILTER, so the \
             guest is not told of Xen"));
    }
    let exits = kvm::kvm_enable_cap {
        cap: kvm::KVM_CAP_X86_USER_SPACE_MSR,
        args: [kvm::KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&exits).map_err(ioctl("KVM_ENABLE_CAP for KVM_CAP_X86_USER_SPACE_MSR"))?;
    // A clear bit denies the access, and what is denied comes to us.
    let range =
        MsrFilterRange { flags: MsrFilterRangeFlags::WRITE, base: setup.msr, msr_count: 1, bitmap: &[0] };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]).map_err(ioctl("KVM_X86_SET_MSR_FILTER"))?;
    Ok(Ok(Transport::Page { port: PORT }))
}

/// A message is an edge.
pub const ARE_LEVELS: bool = false;

/// Interrupts a vCPU by a vector of its local APIC (Intel SDM vol. 3, "Message Address Register
/// Format").
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn interrupt(vm: &VmFd, vcpu: u32, vector: u32, level: bool) -> Result<(), KvmError> {
    if !level {
        return Ok(());
    }
    let message = kvm::kvm_msi { address_lo: 0xfee0_0000 | vcpu << 12, data: vector, ..Default::default() };
    vm.signal_msi(message).map(drop).map_err(ioctl("KVM_SIGNAL_MSI"))
}

/// Sends a message to local APICs, which do not ask whose it is.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn message(vm: &VmFd, (address, data): (u64, u32), _: u32) -> Result<(), KvmError> {
    let [address_lo, address_hi] = arch::bytes::halves(address);
    let message = kvm::kvm_msi { address_lo, address_hi, data, ..Default::default() };
    vm.signal_msi(message).map(drop).map_err(ioctl("KVM_SIGNAL_MSI"))
}

/// Has a vCPU wait as `HLT` does; whether [`wake`] has to end that.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn halt(vcpu: &VcpuFd) -> Result<bool, KvmError> {
    let halted = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_HALTED };
    vcpu.set_mp_state(halted).map_err(ioctl("KVM_SET_MP_STATE"))?;
    Ok(false)
}

/// An interrupt ends what [`halt`] began, without a word to us.
///
/// # Errors
/// None.
pub fn wake(_: &VcpuFd) -> Result<(), KvmError> {
    Ok(())
}

/// Tells KVM something of a guest that uses Xen's interface.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn set_xen_attribute(vm: &VmFd, attribute: XenAttribute) -> Result<(), KvmError> {
    const PAGE: u64 = 4096;
    let mut value = kvm::kvm_xen_hvm_attr::default();
    let number = match attribute {
        XenAttribute::LongMode(is_long) => {
            value.u.long_mode = u8::from(is_long);
            kvm::KVM_XEN_ATTR_TYPE_LONG_MODE
        }
        XenAttribute::SharedInfo { address } => {
            value.u.shared_info = kvm::kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1 { gfn: address / PAGE };
            kvm::KVM_XEN_ATTR_TYPE_SHARED_INFO
        }
        XenAttribute::Vector(vector) => {
            value.u.vector = vector;
            kvm::KVM_XEN_ATTR_TYPE_UPCALL_VECTOR
        }
    };
    value.type_ = u16::try_from(number).expect("a small number");
    // SAFETY: the ioctl reads the structure, which lives through the call.
    match unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_SET_ATTR(), &value) } {
        0 => Ok(()),
        _ => Err(ioctl("KVM_XEN_HVM_SET_ATTR")(kvm_ioctls::Error::last())),
    }
}

/// Tells KVM something of one of its vCPUs. Waits while the vCPU runs, so its own thread does it.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn set_xen_vcpu_attribute(vcpu: &VcpuFd, attribute: XenVcpuAttribute) -> Result<(), KvmError> {
    let mut value = kvm::kvm_xen_vcpu_attr::default();
    let number = match attribute {
        XenVcpuAttribute::Info { address } => {
            value.u.gpa = address;
            kvm::KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO
        }
        XenVcpuAttribute::Vector(vector) => {
            value.u.vector = vector;
            kvm::KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR
        }
    };
    value.type_ = u16::try_from(number).expect("a small number");
    // SAFETY: the ioctl reads the structure, which lives through the call.
    match unsafe { ioctl_with_ref(vcpu, KVM_XEN_VCPU_SET_ATTR(), &value) } {
        0 => Ok(()),
        _ => Err(ioctl("KVM_XEN_VCPU_SET_ATTR")(kvm_ioctls::Error::last())),
    }
}

/// Makes the event of a port pending.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn send_event(vm: &VmFd, vcpu: u32, port: u32) -> Result<(), KvmError> {
    /// `KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL`.
    const TWO_LEVELS: u32 = u32::MAX;
    let event = kvm::kvm_irq_routing_xen_evtchn { port, vcpu, priority: TWO_LEVELS };
    // SAFETY: the ioctl reads the structure, which lives through the call.
    match unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_EVTCHN_SEND(), &event) } {
        0 => Ok(()),
        _ => Err(ioctl("KVM_XEN_HVM_EVTCHN_SEND")(kvm_ioctls::Error::last())),
    }
}

/// KVM's clock, nanoseconds.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn clock(vm: &VmFd) -> Result<u64, KvmError> {
    vm.get_clock().map(|clock| clock.clock).map_err(ioctl("KVM_GET_CLOCK"))
}

/// A vCPU's time-stamp counter and its frequency in kHz.
pub fn tsc(vcpu: &VcpuFd) -> Option<(u64, u32)> {
    const TSC: u32 = 0x10;
    let entry = kvm::kvm_msr_entry { index: TSC, ..Default::default() };
    let mut msrs = kvm::Msrs::from_entries(&[entry]).ok()?;
    let read = vcpu.get_msrs(&mut msrs).ok()?;
    let value = msrs.as_slice().first().filter(|_| read == 1)?.data;
    Some((value, vcpu.get_tsc_khz().ok()?))
}
