//! What can fail when KVM is asked for something.

use arch::cpu_features::FeatureError;
use arch::cpu_template::TemplateError;
use arch::words::{counted, verb};
use kvm_ioctls::Error as Errno;
use std::path::PathBuf;
use thiserror::Error;

/// A failure of KVM, or a guest that this host's KVM cannot give.
#[derive(Debug, Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open {path}: {source} ({remedy})")]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Another version of the KVM API.
    #[error("this kernel's KVM has API version {0}; version 12 is the only one ever released")]
    ApiVersion(i32),
    /// An ioctl failed.
    #[error("KVM refused {call}: {source}")]
    Ioctl {
        /// The ioctl, as the KVM API documentation names it.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// More vCPUs than there can be.
    #[error("{} {} too many: {whose} allows {limit}", counted(*asked, "vCPU"), verb(*asked, "is", "are"))]
    TooManyVcpus {
        /// What was asked for.
        asked: u32,
        /// The limit.
        limit: u32,
        /// What allows no more.
        whose: &'static str,
    },
    /// More memory than guest-physical addresses of this host reach.
    #[error("so much memory needs {needed}-bit guest-physical addresses: this host's KVM has {limit} bits")]
    TooMuchMemory {
        /// Bits needed.
        needed: u32,
        /// Bits there are.
        limit: u32,
    },
    /// A capability without which no guest runs.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// A CPU template that cannot be applied.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A feature that cannot be switched.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// An ID register that KVM does not let us write.
    #[error("this host's KVM does not let {register} be changed, so {what} cannot be hidden: {source}")]
    FixedIdRegister {
        /// The register.
        register: &'static str,
        /// The feature, or "the template's bits".
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// A register that KVM does not let us read or write.
    #[error("this host's KVM refuses register {register}: {source}")]
    Register {
        /// The register's name in the register table.
        register: &'static str,
        /// Why.
        source: Errno,
    },
    /// An MSR that `KVM_SET_MSRS` stopped at, which tells no reason.
    #[error("this host's KVM refuses the value {value:#x} of register {register}")]
    Msr {
        /// The register's name in the register table.
        register: &'static str,
        /// What was to be written.
        value: u64,
    },
    /// An ioctl that sets several registers failed; KVM does not tell which of them it refuses.
    #[error("KVM refused {call} with a new value of {registers}: {source}")]
    Registers {
        /// The ioctl, as the KVM API documentation names it.
        call: &'static str,
        /// The registers that were to change.
        registers: String,
        /// Why.
        source: Errno,
    },
    /// A register that has no value of its own, or one of another size.
    #[error("register {0} cannot be written")]
    NoValue(&'static str),
    /// There is no signal that vCPUs' threads could be kicked by.
    #[error("vCPUs' threads cannot be kicked: {0}")]
    Signal(std::io::Error),
    /// Memory could not be mapped.
    #[error("cannot map {bytes} bytes of guest memory: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes the error of a failed ioctl.
pub(crate) fn ioctl(call: &'static str) -> impl FnOnce(Errno) -> KvmError {
    move |source| KvmError::Ioctl { call, source }
}
