//! From a kernel file to a guest that is ready to run: what goes where in its memory, and the
//! registers it starts with.
//!
//! [`kernel`] opens a file, finds out its format and unpacks it; [`x86`] and [`aarch64`] put
//! it, its initrd, its command line and the firmware tables into guest memory. Neither calls
//! KVM, and both work on any host: which one is used is a value.

pub mod aarch64;
pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod x86;

use crate::kvm::BootState;
use crate::memory::GuestMemory;
use arch::aarch64::device_tree::Seed;
use arch::image::ImageError;
use arch::{GuestPhys, Isa};
use std::io;
use std::path::PathBuf;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

/// Why a guest cannot be prepared.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read {what} {path}: {source}")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel that is no kernel, or a damaged one.
    #[error("kernel {path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// A kernel of the other architecture.
    #[error("kernel {path}: the {format} is for {found}, and this host runs {host} guests")]
    WrongIsa {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static str,
        /// Its architecture.
        found: Isa,
        /// Ours.
        host: Isa,
    },
    /// A compressed kernel that cannot be unpacked.
    #[error("kernel {path}: the {format} data is damaged: {why}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        format: &'static str,
        /// What the decompressor says.
        why: String,
    },
    /// A compressed kernel that is larger than the guest's memory once unpacked.
    #[error(
        "kernel {path}: unpacked it is larger than the guest's memory of {memory} bytes; give more --memory"
    )]
    UnpackedTooLarge {
        /// The file.
        path: PathBuf,
        /// The guest's memory.
        memory: u64,
    },
    /// A file that has no known format, without an address to load it at.
    #[error(
        "kernel {path}: not a format that is known (bzImage, ELF, Multiboot, Image); \
         to run it as a flat binary, say where with --load-address"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// An address to load at for a file that says itself where it goes.
    #[error("--load-address is for flat binaries; the kernel is {format} and has its own addresses")]
    LoadAddressNotFlat {
        /// What the kernel is.
        format: &'static str,
    },
    /// A part of the guest does not fit.
    #[error("{what} does not fit into the guest's memory: {why}")]
    DoesNotFit {
        /// What does not fit.
        what: String,
        /// Where it would have to go, and the remedy.
        why: String,
    },
    /// A command line that is too long or has characters that no kernel takes.
    #[error("--cmdline: {0}")]
    Cmdline(String),
    /// The firmware tables could not be made.
    #[error("cannot make the device tree: {0}")]
    DeviceTree(String),
}

/// What is booted.
#[derive(Debug)]
pub struct BootConfig<'a> {
    /// Memory of the guest, bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The command line, complete.
    pub cmdline: &'a str,
    /// Initrds, in the order they were given.
    pub initrds: &'a [PathBuf],
    /// Where a flat binary goes, guest-physical.
    pub load_address: Option<u64>,
    /// Whether the guest has an exit device.
    pub exit_device: bool,
    /// Whether it has a device that takes its panics.
    pub pvpanic: bool,
    /// Random bytes for guests that are told of them (aarch64; an x86 guest has RDRAND).
    pub seed: Seed,
}

/// The result: the state that the boot vCPU starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booted {
    /// Registers.
    pub state: BootState,
    /// Address of the first instruction, guest-physical, for messages.
    pub entry: GuestPhys,
}

/// Writes bytes that belong to the guest, with the name of what they are.
fn write(memory: &GuestMemory, what: &str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::DoesNotFit {
        what: what.to_string(),
        why: format!("{} bytes at {address:#x}; give more --memory", bytes.len()),
    })
}
