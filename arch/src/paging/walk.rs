//! What a walk of either architecture reads, meets and comes to.

use crate::{GuestPhys, GuestVirt};
use std::fmt;

/// Where tables are read from.
pub trait TableMemory {
    /// Reads `bytes.len()` bytes at `address`, all or nothing; `false` where there is no RAM.
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool;
}

/// One table entry that a walk has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The manual's name of the entry's level: `PML4E`, `level 1`.
    pub name: &'static str,
    /// Where the entry stands.
    pub at: GuestPhys,
    /// Its value.
    pub value: u64,
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The kernel may write.
    pub write: bool,
    /// The kernel may execute.
    pub execute: bool,
    /// User mode may read.
    pub user: bool,
    /// User mode may write.
    pub user_write: bool,
    /// User mode may execute.
    pub user_execute: bool,
}

impl Permissions {
    /// Everything, as without paging.
    pub const ALL: Permissions =
        Permissions { write: true, execute: true, user: true, user_write: true, user_execute: true };
}

impl fmt::Display for Permissions {
    /// Kernel's, then user's: `rwx r-x`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |on, letter| if on { letter } else { '-' };
        write!(
            f,
            "r{}{} {}{}{}",
            letter(self.write, 'w'),
            letter(self.execute, 'x'),
            letter(self.user, 'r'),
            letter(self.user_write, 'w'),
            letter(self.user_execute, 'x'),
        )
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of the byte.
    pub address: GuestPhys,
    /// Size of the page or block around it, bytes, a power of two.
    pub page_size: u64,
    /// What may be done there.
    pub permissions: Permissions,
}

impl Mapping {
    /// How many bytes from this one to the end of its page.
    pub fn bytes_left(&self) -> u64 {
        self.page_size - (self.address.0 & (self.page_size - 1))
    }
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The address is not one that the regime can translate: not canonical on x86, between
    /// the two ranges on aarch64.
    #[error("{0:#x} is not an address that the page tables cover")]
    OutOfRange(GuestVirt),
    /// An entry says that nothing is mapped.
    #[error("not mapped: {name} at {at:#x} is {value:#x}")]
    NotMapped {
        /// Level of the entry.
        name: &'static str,
        /// Where it stands.
        at: GuestPhys,
        /// What it holds.
        value: u64,
        /// Bytes of address space that the entry covers, a power of two.
        span: u64,
    },
    /// An entry has bits that make it neither a table nor a page.
    #[error("{name} at {at:#x} is {value:#x}, which is reserved")]
    Reserved {
        /// Level of the entry.
        name: &'static str,
        /// Where it stands.
        at: GuestPhys,
        /// What it holds.
        value: u64,
        /// Bytes of address space that the entry covers, a power of two.
        span: u64,
    },
    /// A table is not in RAM.
    #[error("the table for {name} would be at {at:#x}, where there is no RAM")]
    NoTable {
        /// Level of the entry.
        name: &'static str,
        /// Where it would stand.
        at: GuestPhys,
        /// Bytes of address space that the entry covers, a power of two.
        span: u64,
    },
    /// The registers that translation starts from are not known.
    #[error("register {0} is not known, which translation needs")]
    NoRegister(&'static str),
}

impl Fault {
    /// Bytes of address space around the address that fault alike, a power of two.
    pub fn span(&self) -> u64 {
        match self {
            Fault::NotMapped { span, .. } | Fault::Reserved { span, .. } | Fault::NoTable { span, .. } => {
                *span
            }
            Fault::OutOfRange(_) | Fault::NoRegister(_) => 1,
        }
    }
}

/// Reads a little-endian entry of 4 or 8 bytes.
pub(crate) fn read_entry(memory: &(impl TableMemory + ?Sized), at: GuestPhys, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read_table(at, bytes.get_mut(..size)?).then(|| u64::from_le_bytes(bytes))
}
