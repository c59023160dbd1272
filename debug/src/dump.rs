//! Memory dumps: written from any [`Machine`], and read back as one.
//!
//! Layers, each of which knows nothing of the next:
//! * [`source`]: bytes of a file, which may be compressed;
//! * a reader for each format ([`elf`], [`kdump`], [`raw`]), which makes [`Contents`] of it: physical
//!   memory as an [`Image`], vCPUs' registers, and the kernel's description of itself;
//! * [`kernel`]: translation, from registers or from that description;
//! * [`machine`]: all of it as a machine that cannot run, for the debugger above.
//!
//! [`write`](mod@write) makes ELF cores. Nothing here asks what the host is: the architecture is what the
//! file says, and numbers are little-endian as both targets are.

pub mod described;
pub mod destination;
pub mod diff;
pub mod elf;
mod flattened;
pub mod kdump;
pub mod kernel;
pub mod machine;
pub mod packed;
pub mod raw;
mod sink;
pub mod source;
pub mod unpack;
pub mod write;

use crate::disassemble::Mode;
use crate::linux::VmCoreInfo;
use crate::target::{Absence, Machine, Memory, TargetError, VcpuState};
use arch::address::PhysRange;
use arch::paging::TableMemory;
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, Isa};
use packed::{Packed, Packing};
use source::Source;
use std::io;
use std::sync::Arc;

/// What is said of a dump that makedumpfile had no room for.
const INCOMPLETE: &str =
    "the dump is incomplete, as there was no room for all of it: pages that were not written cannot be read";

/// Physical memory of a dump.
pub trait Image: Send + Sync + std::fmt::Debug {
    /// Where there is memory: sorted, without overlaps, neighbours joined.
    fn ranges(&self) -> Vec<PhysRange>;

    /// Those of them that may hold something; what is not in them reads as zeros, or cannot be read.
    fn populated(&self) -> Vec<PhysRange> {
        self.ranges()
    }

    /// Reads as many bytes as there are in one piece from `address`; how many.
    fn read(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// Why the byte at an address cannot be read though there was memory, if that is so.
    fn absence(&self, _address: u64) -> Option<Absence> {
        None
    }
}

/// A vCPU, as a dump has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its registers, as far as they are there.
    pub registers: RegisterFile,
    /// How it reads its code.
    pub mode: Mode,
    /// What it was doing.
    pub state: VcpuState,
    /// Its registers are those of when it last left the guest with paging on: what they were after that, a
    /// reset or a triple fault has lost.
    pub is_earlier: bool,
}

impl Cpu {
    /// One of which nothing is known.
    pub fn unknown(isa: Isa) -> Cpu {
        let (registers, state) = (RegisterFile::new(isa), VcpuState::Unknown);
        Cpu { registers, mode: Mode::Bits64, state, is_earlier: false }
    }
}

/// The vCPUs of a machine that stands still.
///
/// # Errors
/// [`TargetError`].
pub fn cpus(machine: &dyn Machine) -> Result<Vec<Cpu>, TargetError> {
    let cpu = |vcpu| {
        let mode = machine.code(vcpu).map_or(Mode::Bits64, |code| code.mode);
        let (registers, state) = (machine.registers(vcpu, &Bank::ALL)?, machine.state(vcpu));
        Ok(Cpu { registers, mode, state, is_earlier: false })
    };
    (0..machine.vcpus()).map(cpu).collect()
}

/// Memory as the guest has it, without the instructions that a debugger has planted.
pub struct Unplanted<'a> {
    /// The memory.
    pub memory: &'a dyn Memory,
    /// Puts what the guest has in the place of what is planted in bytes from an address on
    /// ([`Table::unmask`](crate::breakpoint::Table::unmask)).
    pub unmask: &'a (dyn Fn(GuestPhys, &mut [u8]) + Sync),
}

impl std::fmt::Debug for Unplanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unplanted").finish_non_exhaustive()
    }
}

impl TableMemory for Unplanted<'_> {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.memory.read_table(address, bytes)
    }
}

impl Memory for Unplanted<'_> {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let count = self.memory.read(address, bytes);
        (self.unmask)(address, &mut bytes[..count]);
        count
    }

    fn write(&self, _: GuestPhys, _: &[u8]) -> usize {
        0
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.memory.ranges()
    }

    fn populated(&self) -> Vec<PhysRange> {
        self.memory.populated()
    }

    fn absence(&self, address: GuestPhys) -> Option<Absence> {
        self.memory.absence(address)
    }
}

/// What a reader makes of a file.
#[derive(Debug)]
pub struct Contents {
    /// The format in words.
    pub format: String,
    /// The architecture.
    pub isa: Isa,
    /// Memory.
    pub image: Box<dyn Image>,
    /// vCPUs; there may be none.
    pub cpus: Vec<Cpu>,
    /// The kernel's description of itself, if the file has it.
    pub info: Option<VmCoreInfo>,
    /// What is odd about the file, a line each.
    pub remarks: Vec<String>,
}

/// Why a dump cannot be read: one line, with the place in the file.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The system says so.
    #[error("cannot read {what} at offset {offset:#x}: {source}")]
    Io {
        /// What was to be read.
        what: &'static str,
        /// Where, bytes.
        offset: u64,
        /// Why not.
        source: io::Error,
    },
    /// The file ends before something.
    #[error("the file ends within {what}, at offset {offset:#x}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it begins, bytes.
        offset: u64,
    },
    /// Something makes no sense.
    #[error("{what} (at offset {offset:#x})")]
    Malformed {
        /// What.
        what: String,
        /// Where, bytes.
        offset: u64,
    },
    /// It is no dump that is known.
    #[error("{0}")]
    Unknown(String),
}

/// Reads a dump, whatever its format is, also one that is compressed in blocks (for one in one piece see
/// [`in_one_piece`]).
///
/// # Errors
/// [`DumpError`].
pub fn open(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    let Some(packing) = Packing::of_file(&begin(&*source)?) else { return open_plain(source) };
    let source: Arc<dyn Source> = Arc::new(Packed::new(source, packing)?);
    if Packing::of_file(&begin(&*source)?).is_some() {
        return Err(DumpError::Unknown("compressed more than once: unpack it first".into()));
    }
    let mut contents = open_plain(source)?;
    contents.format = format!("{}, compressed by {}", contents.format, packing.words().0);
    Ok(contents)
}

/// What a file begins with, as far as it is there.
fn begin(source: &dyn Source) -> Result<Vec<u8>, DumpError> {
    let mut bytes = vec![0; 16];
    let count = source::read_some(source, 0, &mut bytes, "the file's first bytes")?;
    bytes.truncate(count);
    Ok(bytes)
}

fn open_plain(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    match begin(&*source)? {
        begin if begin.starts_with(b"\x7fELF") => elf::read(source),
        begin if begin.starts_with(kdump::SIGNATURE) => kdump::read(source),
        begin if begin.starts_with(flattened::SIGNATURE) => {
            let mut contents = kdump::read(Arc::new(flattened::Flattened::new(source)?))?;
            contents.format.push_str(", flattened");
            Ok(contents)
        }
        begin => Err(DumpError::Unknown(match packed::unspoken(&begin) {
            Some((name, tool)) => {
                format!("compressed by {name}, which is not read: unpack it first ({tool})")
            }
            None => "neither an ELF core nor a compressed kdump; plain memory needs --raw and --arch".into(),
        })),
    }
}

/// How a file is compressed, if that is in one piece: then it has to be [unpacked](unpack) before it is opened.
///
/// # Errors
/// [`DumpError`], for what is compressed in blocks that are not right.
pub fn in_one_piece(source: &dyn Source) -> Result<Option<Packing>, DumpError> {
    let Some(packing) = Packing::of_file(&begin(source)?) else { return Ok(None) };
    Ok(packing.blocks(source)?.is_none().then_some(packing))
}

/// Sorts ranges, and joins what overlaps or touches.
pub(crate) fn joined(mut ranges: Vec<PhysRange>) -> Vec<PhysRange> {
    ranges.retain(|range| range.size > 0);
    ranges.sort_by_key(|range| range.start);
    let mut result: Vec<PhysRange> = Vec::new();
    for range in ranges {
        match result.last_mut() {
            Some(last) if range.start <= last.end() => {
                last.size = last.size.max(range.end().0 - last.start.0);
            }
            _ => result.push(range),
        }
    }
    result
}

#[cfg(test)]
mod tests;
