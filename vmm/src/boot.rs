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
#[cfg(test)]
mod testing;
pub mod x86;

use arch::board::Board;
use arch::board::device_tree::Seed;
use arch::image::ImageError;
use arch::{GuestPhys, Isa};
use kvm::BootState;
use kvm::ram::GuestMemory;
use std::fs::File;
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
    /// A string for a module, for a kernel that has no modules.
    #[error(
        "initrd {path}: the string '{string}' behind the path is for Multiboot and PVH modules; this kernel is \
         entered by {protocol}"
    )]
    ModuleString {
        /// The file.
        path: PathBuf,
        /// What was given behind it.
        string: String,
        /// How the kernel is entered.
        protocol: &'static str,
    },
    /// A kernel in an initrd's place, for Linux.
    #[error(
        "initrd {path}: it is a kernel ({format}); give it as --kernel, and as --initrd an archive of files"
    )]
    KernelAsInitrd {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// A command line that the kernel would not get whole.
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
    /// The command line, complete but for the kernel's name, which comes first in some protocols.
    pub cmdline: &'a str,
    /// Whether to leave it, and the strings of modules, without names.
    pub cmdline_exact: bool,
    /// Initrds, in the order they were given.
    pub initrds: &'a [PathBuf],
    /// Where a flat binary goes, guest-physical.
    pub load_address: Option<u64>,
    /// The devices that the guest is told of.
    pub board: &'a Board,
    /// Random bytes, for a kernel's place and its first entropy.
    pub seed: Seed,
}

impl BootConfig<'_> {
    /// What is for a kernel's first entropy of the random bytes.
    pub fn rng_seed(&self) -> &[u8] {
        self.seed.get(8..).unwrap_or_default()
    }

    /// A string of Multiboot's, whose first word is the file's name, unless it is to be exact.
    fn behind_name(&self, name: &str, string: &str) -> String {
        match (self.cmdline_exact, string) {
            (true, _) => string.to_string(),
            (false, "") => name.to_string(),
            (false, _) => format!("{name} {string}"),
        }
    }
}

/// The result: the state that the boot vCPU starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booted {
    /// Registers.
    pub state: BootState,
    /// Address of the first instruction, guest-physical, for messages.
    pub entry: GuestPhys,
    /// By which protocol it is entered, in words.
    pub protocol: &'static str,
}

/// Reads `size` bytes of a file, from where it is read next, into guest memory that is there. In pieces: Linux reads
/// no more than 2 GiB at once, which for vm-memory is the file's end.
fn read_into(memory: &GuestMemory, mut file: &File, address: u64, size: u64) -> io::Result<()> {
    const PIECE: u64 = 1 << 30;
    let mut done = 0;
    while done < size {
        let count = usize::try_from((size - done).min(PIECE)).map_err(io::Error::other)?;
        memory
            .read_exact_volatile_from(GuestAddress(address + done), &mut file, count)
            .map_err(io::Error::other)?;
        done += count as u64;
    }
    Ok(())
}

/// Writes bytes that belong to the guest, with the name of what they are.
fn write(memory: &GuestMemory, what: &str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::DoesNotFit {
        what: what.to_string(),
        why: format!("{} bytes at {address:#x}; give more --memory", bytes.len()),
    })
}
