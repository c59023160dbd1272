//! One virtual machine: memory, interrupt controller and vCPUs as KVM has them.

use super::clock::VmClock;
use super::error::{KvmError, ioctl};
use super::lines::Lines;
use super::native;
use super::vcpu::Vcpu;
use super::{Capability, Transport, VmConfig, XenAttribute};
use crate::ram::{self, GuestMemory};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

const KVM_API_VERSION: i32 = 12;
const DEVICE: &std::ffi::CStr = c"/dev/kvm";

/// The host's KVM.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

/// What helps where there is no `/dev/kvm`.
const MISSING: &str = "is virtualization switched on in the firmware, or, in a virtual machine, nested virtualization on its \
                       host, and the module kvm_intel, kvm_amd or kvm loaded? a container needs --device /dev/kvm";

/// What helps where `/dev/kvm` may not be opened, by its mode.
fn denied(mode: Option<u32>) -> &'static str {
    const GROUP: u32 = 0o060;
    const OTHERS: u32 = 0o006;
    match mode {
        Some(mode) if mode & OTHERS == OTHERS => {
            "its mode lets everybody: a container or a security module is in the way (a container needs \
             --device /dev/kvm)"
        }
        Some(mode) if mode & GROUP == GROUP => {
            "join its group, kvm as a rule: sudo usermod -aG kvm $USER, and log in anew; or run as root; on a hosted \
             runner of CI a udev rule with MODE=\"0666\" lets everybody (docs/recipes.md has it)"
        }
        _ => {
            "only root may, and a group would not help: run as root, or let the group kvm have it, until the next \
             boot: sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm; on a hosted runner of CI a udev rule with \
             MODE=\"0666\" lets everybody (docs/recipes.md has it)"
        }
    }
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`KvmError::Open`] with what to do about it, [`KvmError::ApiVersion`].
    pub fn open() -> Result<Host, KvmError> {
        let fd = Kvm::open_with_cloexec_at(DEVICE, true).map_err(|error| {
            let remedy = match error.errno() {
                libc::ENOENT | libc::ENXIO | libc::ENODEV => MISSING,
                libc::EACCES | libc::EPERM => denied(std::fs::metadata("/dev/kvm").ok().map(|it| it.mode())),
                _ => "see what the kernel's log says about kvm",
            };
            KvmError::Open {
                path: PathBuf::from("/dev/kvm"),
                source: std::io::Error::from_raw_os_error(error.errno()),
                remedy,
            }
        })?;
        // SAFETY: the descriptor was opened just now and belongs to nobody else.
        let kvm = unsafe { Kvm::from_raw_fd(fd) };
        match kvm.get_api_version() {
            KVM_API_VERSION => Ok(Host { kvm }),
            other => Err(KvmError::ApiVersion(other)),
        }
    }

    /// The most vCPUs that a guest can have: what KVM allows, and what the interrupt controller that
    /// they are given has room for.
    pub fn max_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(native::MAX_VCPUS)
    }

    /// What the host says that it can do; `vm` is any machine.
    pub fn capabilities(&self, vm: &VmFd) -> Vec<Capability> {
        native::capabilities::capabilities(&self.kvm, vm)
    }

    /// The handle, for questions about capabilities.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    // Dropped first: the interrupt controller's device belongs to the VM.
    native: native::NativeVm,
    fd: Arc<VmFd>,
    memory: GuestMemory,
    transport: Option<Result<Transport, &'static str>>,
    lines: Lines,
    /// What devices were last told of the guest's time, nanoseconds.
    told: Arc<AtomicU64>,
}

/// What raises interrupts of single vCPUs.
#[derive(Clone, Debug)]
pub struct Interrupter {
    fd: Arc<VmFd>,
    lines: Lines,
}

/// An interrupt line of a device.
#[derive(Debug)]
pub struct InterruptLine {
    fd: Arc<VmFd>,
    lines: Lines,
    number: u32,
}

impl InterruptLine {
    /// Raises an edge.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn trigger(&self) -> Result<(), KvmError> {
        let _raised = self.lines.raise();
        native::NativeVm::set_line(&self.fd, self.number, true)?;
        native::NativeVm::set_line(&self.fd, self.number, false)
    }
}

impl InterruptLine {
    /// Gives it a level, for a device that leaves it at that.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set(&self, level: bool) -> Result<(), KvmError> {
        let _raised = self.lines.raise();
        native::NativeVm::set_line(&self.fd, self.number, level)
    }
}

/// Sends messages that are interrupts (MSI).
#[derive(Clone, Debug)]
pub struct MessageSender {
    fd: Arc<VmFd>,
    lines: Lines,
    device: u32,
}

impl MessageSender {
    /// Sends one (KVM API, `KVM_SIGNAL_MSI`). Not by a descriptor that KVM listens to (`irqfd`): nobody could keep that
    /// still while an interrupt controller's state is taken and put back.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn send(&self, address: u64, data: u32) -> Result<(), KvmError> {
        let _raised = self.lines.raise();
        native::hypercalls::message(&self.fd, (address, data), self.device)
    }
}

/// Has a guest's writes ring bells, without a vCPU's leaving the guest for longer than that takes.
#[derive(Clone, Debug)]
pub struct BellRinger {
    fd: Arc<VmFd>,
}

impl BellRinger {
    /// A write of any size to `address` rings `bell` (KVM API, `KVM_IOEVENTFD`).
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn place(&self, bell: &EventFd, address: u64) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(bell, &address, NoDatamatch).map_err(ioctl("KVM_IOEVENTFD"))
    }

    /// It does no more.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn take_away(&self, bell: &EventFd, address: u64) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.unregister_ioevent(bell, &address, NoDatamatch).map_err(ioctl("KVM_IOEVENTFD"))
    }
}

/// The guest's time, as devices tell it: it stands still while the guest is held, like what else counts it
/// ([`super::clock`]). x86 only; an aarch64 guest has a counter of its own that says the same.
#[derive(Clone, Debug)]
pub struct GuestTime {
    fd: Arc<VmFd>,
    /// What was said last.
    last: Arc<AtomicU64>,
}

impl GuestTime {
    /// Nanoseconds since about the guest's start. It never goes back, though KVM's clock may, by a fraction of a
    /// microsecond, when KVM keeps it another way from then on: counters of vCPUs that are not alike for a moment are
    /// enough.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn now(&self) -> Result<u64, KvmError> {
        let now = native::hypercalls::clock(&self.fd)?;
        Ok(now.max(self.last.fetch_max(now, Ordering::Relaxed)))
    }
}

impl Interrupter {
    /// Whether interrupts are levels, which have to be lowered again.
    pub const ARE_LEVELS: bool = native::hypercalls::ARE_LEVELS;

    /// Raises or lowers a private interrupt on aarch64; raises a vector of a vCPU's local APIC on x86,
    /// which need not be lowered.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn interrupt(&self, vcpu: u32, number: u32, level: bool) -> Result<(), KvmError> {
        let _raised = self.lines.raise();
        native::hypercalls::interrupt(&self.fd, vcpu, number, level)
    }
}

/// KVM's own delivery of events by Xen's interface.
#[derive(Clone, Debug)]
pub struct XenEvents {
    fd: Arc<VmFd>,
    lines: Lines,
}

impl XenEvents {
    /// Tells KVM something of the guest.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set(&self, attribute: XenAttribute) -> Result<(), KvmError> {
        native::hypercalls::set_xen_attribute(&self.fd, attribute)
    }

    /// Makes the event of a port pending, and tells the vCPU that it is bound to.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn send(&self, vcpu: u32, port: u32) -> Result<(), KvmError> {
        let _raised = self.lines.raise();
        native::hypercalls::send_event(&self.fd, vcpu, port)
    }

    /// The time that KVM tells the guest: nanoseconds since about its start.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn now(&self) -> Result<u64, KvmError> {
        native::hypercalls::clock(&self.fd)
    }
}

impl Vm {
    /// Creates a virtual machine and its vCPUs, none of which has registers for a guest yet.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(host: &Host, config: &VmConfig) -> Result<(Vm, Vec<Vcpu>), KvmError> {
        let limit = host.max_vcpus();
        if config.vcpus > limit {
            let is_ours = limit == native::MAX_VCPUS;
            let whose = if is_ours { native::WHY_NO_MORE_VCPUS } else { "this host's KVM" };
            return Err(KvmError::TooManyVcpus { asked: config.vcpus, limit, whose });
        }
        if !host.kvm.check_extension(Cap::ImmediateExit) {
            return Err(KvmError::Missing("KVM_CAP_IMMEDIATE_EXIT (Linux 4.11)"));
        }
        let fd = native::create_vm(&host.kvm, config)?;
        let memory = ram::map(native::ISA, config.memory)
            .map_err(|source| KvmError::Memory { bytes: config.memory, source })?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.get_host_address(MemoryRegionAddress(0)).map_err(|error| {
                    KvmError::Memory { bytes: config.memory, source: std::io::Error::other(error) }
                })? as u64,
            };
            // SAFETY: the region is a mapping of this process that `Vm` keeps as long as the
            // VM's descriptor; regions do not overlap (`GuestMemory` checks it).
            unsafe { fd.set_user_memory_region(slot) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let transport = match &config.hypercalls {
            Some(setup) => Some(native::hypercalls::prepare(&host.kvm, &fd, setup)?),
            None => None,
        };
        let has_page =
            matches!(transport, Some(Ok(_))) && config.hypercalls.is_some_and(|setup| setup.has_page);
        let (native, fds) = native::NativeVm::new(&host.kvm, &fd, config, has_page)?;
        let can_sync = native::registers::can_sync(&host.kvm);
        let vcpus = (0..).zip(fds).map(|(id, fd)| Vcpu::new(id, fd, can_sync)).collect();
        let (lines, told) = (Lines::default(), Arc::default());
        Ok((Vm { native, fd: Arc::new(fd), memory, transport, lines, told }, vcpus))
    }

    /// How hypercalls come out of the guest, if they are to and can.
    pub fn transport(&self) -> Option<Transport> {
        self.transport?.ok()
    }

    /// Why they do not, though they are to.
    pub fn why_no_hypercalls(&self) -> Option<&'static str> {
        self.transport?.err()
    }

    /// What raises interrupts of single vCPUs.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter { fd: Arc::clone(&self.fd), lines: self.lines.clone() }
    }

    /// KVM's own delivery of events by Xen's interface, where hypercalls come by KVM and it has any.
    pub fn xen_events(&self) -> Option<XenEvents> {
        let events = XenEvents { fd: Arc::clone(&self.fd), lines: self.lines.clone() };
        let has_events = matches!(self.transport(), Some(Transport::XenExit { has_events: true }));
        (has_events && events.now().is_ok()).then_some(events)
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What boot code for aarch64 must know that only the host can tell; `None` on x86.
    pub fn platform(&self) -> Option<crate::Platform<'_>> {
        self.native.platform()
    }

    /// Interrupt line `number`, a GSI on x86, an SPI on aarch64.
    pub fn interrupt(&self, number: u32) -> InterruptLine {
        InterruptLine { fd: Arc::clone(&self.fd), lines: self.lines.clone(), number }
    }

    /// What sends the messages of a device: `device` is its number with what takes them, for a PCI function its place on
    /// the bus.
    pub fn messages(&self, device: u32) -> MessageSender {
        MessageSender { fd: Arc::clone(&self.fd), lines: self.lines.clone(), device }
    }

    /// Whether messages have somebody to take them: always on x86, on aarch64 where KVM has an interrupt translation
    /// service.
    pub fn takes_messages(&self) -> bool {
        self.native.takes_messages()
    }

    /// What has a guest's writes ring bells.
    pub fn bell_ringer(&self) -> BellRinger {
        BellRinger { fd: Arc::clone(&self.fd) }
    }

    /// The guest's time, for devices.
    pub fn time(&self) -> GuestTime {
        GuestTime { fd: Arc::clone(&self.fd), last: Arc::clone(&self.told) }
    }

    /// What keeps the guest's time. To be asked for before the guest runs.
    pub fn clock(&self) -> VmClock {
        VmClock::new(Arc::clone(&self.fd), self.lines.clone(), native::NativeVm::counter(&self.fd))
    }

    /// The descriptor, for `vmm check`.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_depends_on_whom_the_device_lets() {
        for (mode, words) in [
            (Some(0o20_600), "a group would not help: run as root, or"),
            (Some(0o20_660), "join its group, kvm as a rule"),
            (Some(0o20_640), "a group would not help"),
            (Some(0o20_660), "udev rule with MODE=\"0666\""),
            (Some(0o20_600), "docs/recipes.md"),
            (Some(0o20_666), "a container or a security module"),
            (None, "run as root"),
        ] {
            assert!(
                denied(mode).contains(words) && !denied(mode).contains('\n'),
                "{mode:?}: {}",
                denied(mode)
            );
        }
        assert!(MISSING.contains("nested virtualization") && !MISSING.contains('\n'));
    }
}
