//! Crafted kernels and the memory that they are loaded to, for tests of either architecture on any host.

use super::kernel::Kernel;
use super::{BootConfig, BootError};
use arch::Isa;
use arch::board::Board;
use devices::platform::{self, Extra};
use kvm::ram::{self, GuestMemory};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_memory::{Bytes, GuestAddress};

/// A file that goes with its value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, bytes: &[u8]) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vmm-boot-{}-{count}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }

    /// A file of this size without contents.
    pub fn sparse(name: &str, size: u64) -> Scratch {
        let scratch = Scratch::new(name, b"");
        std::fs::File::options().write(true).open(&scratch.0).unwrap().set_len(size).unwrap();
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
        self.0.parent().map(std::fs::remove_dir).transpose().ok();
    }
}

/// What is booted, and how.
pub struct Setting<'a> {
    pub memory: u64,
    pub cmdline: &'a str,
    pub exact: bool,
    pub initrds: &'a [PathBuf],
    pub load_address: Option<u64>,
}

impl Default for Setting<'_> {
    fn default() -> Self {
        Setting { memory: 256 << 20, cmdline: "", exact: false, initrds: &[], load_address: None }
    }
}

/// What a guest is told of.
pub fn board(isa: Isa) -> Board {
    platform::board(isa, &[Extra::Exit]).unwrap()
}

impl Setting<'_> {
    /// With `board` to be told of.
    pub fn config<'a>(&'a self, board: &'a Board) -> BootConfig<'a> {
        BootConfig {
            memory: self.memory,
            vcpus: 1,
            cmdline: self.cmdline,
            cmdline_exact: self.exact,
            initrds: self.initrds,
            load_address: self.load_address,
            board,
            seed: [7; 40],
        }
    }

    /// The file as a kernel, and the memory that it goes to.
    pub fn open(&self, isa: Isa, file: &[u8]) -> Result<(Kernel, GuestMemory), BootError> {
        let scratch = Scratch::new("kernel", file);
        let kernel = Kernel::open(&scratch.0, isa, self.memory)?;
        Ok((kernel, ram::map(isa, self.memory).unwrap()))
    }
}

pub fn read(memory: &GuestMemory, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

pub fn word(memory: &GuestMemory, address: u64) -> u64 {
    u64::from(memory.read_obj::<u32>(GuestAddress(address)).unwrap())
}

/// A string with a zero at its end.
pub fn string(memory: &GuestMemory, address: u64) -> String {
    let bytes = read(memory, address, 4096);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// A segment: its place and what the file has of it; it has `memory` bytes.
pub struct Segment<'a> {
    pub at: u64,
    pub bytes: &'a [u8],
    pub memory: u64,
}

/// An ELF64 file of a machine (62: x86_64, 183: aarch64), entered at `entry`.
pub fn elf(machine: u16, entry: u64, segments: &[Segment], note: Option<&[u8]>) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, machine].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    let count = u16::try_from(segments.len() + usize::from(note.is_some())).unwrap();
    file.extend([64, 56, count, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * u64::from(count);
    let mut put = |kind: u32, at: u64, bytes: &[u8], memory: u64, align: u64| {
        file.extend([kind, 7].map(u32::to_le_bytes).concat());
        file.extend([offset, at, at, bytes.len() as u64, memory, align].map(u64::to_le_bytes).concat());
        offset += bytes.len() as u64;
    };
    for segment in segments {
        put(1, segment.at, segment.bytes, segment.memory, 1);
    }
    if let Some(note) = note {
        put(4, 0, note, note.len() as u64, 8);
    }
    file.extend(segments.iter().flat_map(|segment| segment.bytes.iter()));
    file.extend(note.unwrap_or_default());
    file
}
