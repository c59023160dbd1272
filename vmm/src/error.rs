//! Why a run could not start, and the exit code for it.

use crate::boot::BootError;
use crate::outcome;
use debug::dump::write::WriteError;
use disk::DiskError;
use kvm::KvmError;
use share::ShareError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Everything that can go wrong before a guest runs.
#[derive(Debug, Error)]
pub enum Error {
    /// Options contradict each other.
    #[error("{0}")]
    Usage(String),
    /// KVM.
    #[error("{option}{0}", option = option(.0))]
    Kvm(#[from] KvmError),
    /// The kernel or an initrd.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A file that is not part of the guest.
    #[error("cannot open {option} {path}: {source}")]
    Open {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder that a guest was to be given.
    #[error("cannot share {}: {source}{}", folder.display(), share_hint(source))]
    Share {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ShareError,
    },
    /// A disk that a guest was to be given.
    #[error("cannot use {} as a disk: {source}", path.display())]
    Disk {
        /// The image.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// A core could not be written when the time comes.
    #[error("--dump-on: {0}")]
    Dump(#[from] WriteError),
    /// The address that a debugger would connect to.
    #[error("cannot listen at --gdb {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A CPU template file that cannot be understood.
    #[error("--cpu-template {path}: {source}")]
    Template {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The host's system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What of the command line an error is about, if it is one.
fn option(error: &KvmError) -> &'static str {
    match error {
        KvmError::TooManyVcpus { .. } => "--cpus: ",
        KvmError::TooMuchMemory { .. } => "--memory: ",
        _ => "",
    }
}

/// What helps where a folder cannot be shared.
fn share_hint(error: &ShareError) -> &'static str {
    match error {
        ShareError::Folder(error) if error.kind() == io::ErrorKind::NotADirectory => {
            " (--share gives the guest a folder)"
        }
        _ => "",
    }
}

/// What helps where nobody can listen.
fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            " (another guest's gdb server? port 0 takes one that is free, and says which)"
        }
        _ => "",
    }
}

impl Error {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Error::Kvm(
                KvmError::TooManyVcpus { .. }
                | KvmError::TooMuchMemory { .. }
                | KvmError::Template(_)
                | KvmError::Feature(_),
            )
            | Error::Usage(_)
            | Error::Dump(WriteError::Name { .. })
            | Error::Boot(BootError::LoadAddressNotFlat { .. }) => outcome::USAGE,
            Error::Kvm(_)
            | Error::System { .. }
            | Error::Share { source: ShareError::NoProc(_) | ShareError::NoOpenat2(_), .. } => outcome::HOST,
            Error::Boot(_) => outcome::IMAGE,
            Error::Open { .. }
            | Error::Share { .. }
            | Error::Disk { .. }
            | Error::Template { .. }
            | Error::Listen { .. }
            | Error::Dump(_) => outcome::FILE,
        }
    }

    /// Makes the error of a failed system call.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { what, source }
    }
}
