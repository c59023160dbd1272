//! What a dump's reader makes of a file, whatever the format.

use crate::disassemble::OperatingMode;
use crate::linux::VmCoreInfo;
use crate::machine::Activity;
use crate::ram::Absence;
use arch::Isa;
use arch::address::PhysRange;
use arch::register::RegisterFile;
use std::io;

/// What is said of a dump that makedumpfile had no room for.
pub(super) const INCOMPLETE: &str =
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
pub struct DumpedVcpu {
    /// Its registers, as far as they are there.
    pub registers: RegisterFile,
    /// How it reads its code.
    pub mode: OperatingMode,
    /// What it was doing.
    pub activity: Activity,
    /// Its registers are those of when it last left the guest with paging on: what they were after that, a
    /// reset or a triple fault has lost.
    pub is_earlier: bool,
}

impl DumpedVcpu {
    /// One of which nothing is known.
    pub fn unknown(isa: Isa) -> DumpedVcpu {
        let (registers, activity) = (RegisterFile::new(isa), Activity::Unknown);
        DumpedVcpu { registers, mode: OperatingMode::Bits64, activity, is_earlier: false }
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
    pub cpus: Vec<DumpedVcpu>,
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
