//! The only place that calls KVM.
//!
//! [`Vm`] and [`Vcpu`] are the same for both architectures; what differs (interrupt
//! controller, CPU model, boot registers) is in one module per architecture, and this is the
//! one folder where `cfg(target_arch)` chooses code. Everything above asks [`HOST_ISA`].
//!
//! [`exit`] turns what `KVM_RUN` left behind into a typed value; [`kick`] gets a thread out
//! of `KVM_RUN` without losing the request.

#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod clock;
mod debug_exit;
mod debugged;
pub mod error;
pub mod exit;
pub mod kick;
mod lines;
pub mod probe;
pub mod ram;
mod vcpu;
mod vm;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as native;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

use arch::cpu_template::CpuTemplate;

pub use error::KvmError;
pub use native::guest_debug::{blocks_interrupts, code_changed, registers as debug_registers};
pub use vcpu::Vcpu;
pub use vm::{BellRinger, GuestTime, Host, InterruptLine, Interrupter, MessageSender, Vm, XenEvents};

/// The architecture of the host's processor, and so of every guest that KVM runs on it.
pub const HOST_ISA: arch::Isa = native::ISA;

/// Registers of the vCPU that starts first, as plain values of either architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    /// An x86 guest's.
    X86(arch::x86::boot_state::BootState),
    /// An aarch64 guest's.
    Aarch64(arch::aarch64::boot_state::BootState),
}

/// What a virtual machine is made with.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Memory, bytes, a multiple of the page size.
    pub memory: u64,
    /// What the guest sees of the processor.
    pub cpu: CpuTemplate,
    /// Hypercalls that are to come to us.
    pub hypercalls: Option<HypercallSetup>,
    /// Devices send messages ([`Vm::messages`]), if the host can take them.
    pub has_messages: bool,
}

/// What hypercalls a machine is to hand over.
#[derive(Clone, Copy, Debug)]
pub struct HypercallSetup {
    /// x86: the MSR by whose writes a guest asks for the page.
    pub msr: u32,
    /// x86: the leaves of CPUID by which a guest on this vCPU finds the calls.
    pub leaves: fn(u32) -> Vec<arch::x86::cpuid::Entry>,
    /// An x86 guest finds Xen by CPUID, and a hypercall page by its MSR.
    pub has_page: bool,
    /// x86: by the monitor's own hypercall page, though KVM could do better.
    pub page_only: bool,
}

/// How hypercalls come out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// x86: `KVM_EXIT_XEN`.
    XenExit {
        /// KVM also delivers events.
        has_events: bool,
    },
    /// x86: the hypercall page is the monitor's, and its entries write to a port.
    Page {
        /// The port.
        port: u8,
    },
    /// aarch64: SMCCC functions that a filter hands over.
    Smccc,
}

impl Transport {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::XenExit { has_events: false } => "KVM's exit for them",
            Transport::XenExit { has_events: true } => "KVM's exit for them, events by KVM",
            Transport::Page { .. } => "a hypercall page of our own",
            Transport::Smccc => "KVM's SMCCC filter",
        }
    }
}

/// What KVM is told of a guest's events by Xen's interface (KVM API, `KVM_XEN_HVM_SET_ATTR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenAttribute {
    /// Whether the guest's structures are those of 64-bit code.
    LongMode(bool),
    /// Where the shared page is; KVM puts the time of day into it.
    SharedInfo {
        /// Guest-physical.
        address: u64,
    },
    /// The vector that tells every vCPU of its events; 0 is none.
    Vector(u8),
}

/// The same, of one vCPU (KVM API, `KVM_XEN_VCPU_SET_ATTR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenVcpuAttribute {
    /// Where its `struct vcpu_info` is; KVM keeps the time in it.
    Info {
        /// Guest-physical.
        address: u64,
    },
    /// The vector of its local APIC that tells it of its events; 0 is none.
    Vector(u8),
}

/// What only the host's KVM can tell of an aarch64 machine.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// Which interrupt controller there is.
    pub gic: arch::aarch64::gic::GicVersion,
    /// `MPIDR_EL1` of each vCPU.
    pub mpidrs: &'a [u64],
    /// Whether there is an interrupt translation service.
    pub its: bool,
    /// Whether vCPUs have performance monitors.
    pub pmu: bool,
}

/// A capability of the host, as KVM's own word has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Key in JSON.
    pub key: &'static str,
    /// What a person calls it.
    pub title: &'static str,
    /// Whether it is there.
    pub works: bool,
    /// A number or a name that goes with it.
    pub detail: String,
}
