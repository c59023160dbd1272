//! How hypercalls come out of an x86 guest.

use crate::kvm::error::{KvmError, ioctl};
use crate::kvm::{HypercallSetup, Transport};
use devices::hypercall::xen::cpuid::HYPERCALL_MSR;
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, 0xae, 0x7a, kvm::kvm_xen_hvm_config);

/// The port that the hypercall page writes to: nothing else of this machine is there.
const PORT: u8 = 0xea;

/// Has KVM hand hypercalls over; `None` if this host has no way for it, which is said.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn prepare(kvm: &Kvm, vm: &VmFd, setup: &HypercallSetup) -> Result<Option<Transport>, KvmError> {
    let flags = u32::try_from(kvm.check_extension_int(Cap::XenHvm)).unwrap_or(0);
    if flags & kvm::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0 && !setup.page_only {
        let config = kvm::kvm_xen_hvm_config {
            flags: kvm::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
            msr: HYPERCALL_MSR,
            ..Default::default()
        };
        // SAFETY: the ioctl reads the structure, which lives through the call.
        let result = unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), &config) };
        if result != 0 {
            return Err(ioctl("KVM_XEN_HVM_CONFIG")(kvm_ioctls::Error::last()));
        }
        return Ok(Some(Transport::XenExit));
    }
    if !setup.has_page {
        log::warn!("--hypercalls: this host's KVM lacks KVM_CAP_XEN_HVM, so hypercalls are not seen");
        return Ok(None);
    }
    if !(kvm.check_extension_raw(kvm::KVM_CAP_X86_USER_SPACE_MSR.into()) > 0
        && kvm.check_extension_raw(kvm::KVM_CAP_X86_MSR_FILTER.into()) > 0)
    {
        log::warn!(
            "--hypercalls: this host's KVM has neither KVM_CAP_XEN_HVM nor KVM_CAP_X86_MSR_FILTER, so the \
             guest is not told of Xen"
        );
        return Ok(None);
    }
    let exits = kvm::kvm_enable_cap {
        cap: kvm::KVM_CAP_X86_USER_SPACE_MSR,
        args: [kvm::KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&exits).map_err(ioctl("KVM_ENABLE_CAP for KVM_CAP_X86_USER_SPACE_MSR"))?;
    // A clear bit denies the access, and what is denied comes to us.
    let range =
        MsrFilterRange { flags: MsrFilterRangeFlags::WRITE, base: HYPERCALL_MSR, msr_count: 1, bitmap: &[0] };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]).map_err(ioctl("KVM_X86_SET_MSR_FILTER"))?;
    Ok(Some(Transport::Page { port: PORT }))
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

/// Has a vCPU wait as `HLT` does.
///
/// # Errors
/// [`KvmError::Ioctl`].
pub fn halt(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let halted = kvm::kvm_mp_state { mp_state: kvm::KVM_MP_STATE_HALTED };
    vcpu.set_mp_state(halted).map_err(ioctl("KVM_SET_MP_STATE"))
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
