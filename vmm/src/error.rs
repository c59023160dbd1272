//! Why a run could not start, and the exit code for it.

use crate::boot::BootError;
use crate::outcome;
use debug::dump::write::WriteError;
use debug::symbols::SymbolsError;
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
    /// The file with the kernel's symbols.
    #[error("--symbols {}: {source}", path.display())]
    Symbols {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SymbolsError,
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
    /// A network that a guest was to be given.
    #[error("--net {net}: {why}{}", net_hint(why))]
    Net {
        /// What was asked for.
        net: String,
        /// Why.
        why: NetError,
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

/// Why there is no network.
#[derive(Debug, Error)]
pub enum NetError {
    /// This program cannot make one.
    #[error(transparent)]
    Stack(#[from] net::Error),
    /// The host's addresses, or a socket.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// passt is not there, or says that it cannot.
    #[error("passt {0}")]
    Passt(String),
    /// A tap interface.
    #[error("the interface cannot be used: {0}")]
    Tap(io::Error),
}

/// What helps where there is no network.
fn net_hint(error: &NetError) -> &'static str {
    match error {
        NetError::Stack(net::Error::Forward(_, error)) => match error.kind() {
            io::ErrorKind::AddrInUse => " (another program listens there: choose another port)",
            io::ErrorKind::PermissionDenied => {
                " (ports below 1024 are root's: choose another, as in hostfwd=tcp:8080-:80)"
            }
            _ => "",
        },
        NetError::Passt(_) => " (stack=own does without it)",
        NetError::Tap(error) => match error.kind() {
            io::ErrorKind::PermissionDenied => {
                " (root makes one for you: ip tuntap add NAME mode tap user YOU; ip link set NAME up)"
            }
            io::ErrorKind::ResourceBusy => " (another guest has it)",
            io::ErrorKind::NotFound => " (this kernel has no /dev/net/tun: modprobe tun)",
            _ => "",
        },
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
            Error::Boot(_) | Error::Symbols { .. } => outcome::IMAGE,
            Error::Open { .. }
            | Error::Share { .. }
            | Error::Disk { .. }
            | Error::Net { .. }
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
