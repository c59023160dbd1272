//! The target's RAM, as everything sees it that reads or writes it.

pub mod fake;

pub use crate::GuestPhys;
pub use crate::address::PhysRange;
pub use crate::paging::TableMemory;

use std::fmt;

/// Why a page of RAM that the target had cannot be read: it is a dump, and not all is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// Whoever made the dump left it out; in words, who and what.
    #[error("the page was left out of the dump, {0}")]
    LeftOut(String),
    /// The dump was never finished.
    #[error("the page was never written: the dump is incomplete")]
    NotWritten,
    /// The file is shorter than it should be.
    #[error("the file is cut off in front of the page")]
    CutOff,
    /// What the file has of it cannot be read.
    #[error("the page is damaged in the dump")]
    Damaged,
}

/// RAM of the target, by guest-physical address. Devices are not part of it, so a debugger
/// never touches one by accident.
pub trait Memory: TableMemory + Send + Sync {
    /// Reads as many bytes as there are in one piece from `address`; how many.
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize;

    /// Writes likewise. Where the bytes are instructions, processors fetch the new ones
    /// when they next enter the guest.
    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize;

    /// The ranges of RAM.
    fn ranges(&self) -> Vec<PhysRange>;

    /// The ranges of RAM that may hold something: what has never been touched reads as zeros, or cannot be
    /// read ([`Memory::absence`]), and is left out where that is known. For searches, which would else touch all of it.
    fn populated(&self) -> Vec<PhysRange> {
        self.ranges()
    }

    /// Why the byte at an address cannot be read though there was RAM, if that is so.
    fn absence(&self, _address: GuestPhys) -> Option<Absence> {
        None
    }
}

impl fmt::Debug for dyn Memory + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}
