//! Page-table walks: from a guest-virtual address to a guest-physical one, as the vCPU's
//! own walk would go.
//!
//! [`Regime`] holds what the control registers say at the moment; [`Regime::walk`] reads the
//! tables through a [`TableMemory`], one entry a level, and tells each entry to the caller,
//! so that one walk serves a memory access, `monitor translate` and the map of all ranges.
//! Accessed and dirty bits are left alone, and permissions are reported, not enforced: a
//! debugger reads what the guest may not.
//!
//! The walks themselves are in [`crate::x86::paging`] and [`crate::aarch64::paging`]. A walk
//! takes at most five steps, whatever the tables hold, so tables that point to themselves
//! cannot hold one up.

use crate::register::RegisterFile;
use crate::{GuestPhys, GuestVirt, Isa, aarch64, x86};
use std::fmt;

/// Where tables are read from.
pub trait TableMemory {
    /// Reads `bytes.len()` bytes at `address`, all or nothing; `false` where there is no RAM.
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool;
}

/// One table entry that a walk has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
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

/// A translation regime: how a vCPU translates at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// x86.
    X86(x86::paging::Paging),
    /// aarch64, EL1&0.
    Aarch64(aarch64::paging::Paging),
}

impl Regime {
    /// The regime that a vCPU's registers select.
    ///
    /// # Errors
    /// [`Fault::NoRegister`] when one of them is not in the file.
    pub fn new(registers: &RegisterFile) -> Result<Regime, Fault> {
        let get = |name| registers.get(name).ok_or(Fault::NoRegister(name));
        Ok(match registers.isa() {
            Isa::X86_64 => {
                Regime::X86(x86::paging::Paging::new(get("cr0")?, get("cr3")?, get("cr4")?, get("efer")?))
            }
            Isa::Aarch64 => Regime::Aarch64(aarch64::paging::Paging::new(
                get("SCTLR_EL1")?,
                get("TCR_EL1")?,
                get("TTBR0_EL1")?,
                get("TTBR1_EL1")?,
            )),
        })
    }

    /// Walks the tables for `address`, telling `visit` each entry.
    ///
    /// # Errors
    /// [`Fault`]: why the address leads nowhere.
    pub fn walk(
        &self,
        memory: &(impl TableMemory + ?Sized),
        address: GuestVirt,
        visit: impl FnMut(Step),
    ) -> Result<Mapping, Fault> {
        match self {
            Regime::X86(paging) => paging.walk(memory, address, visit),
            Regime::Aarch64(paging) => paging.walk(memory, address, visit),
        }
    }

    /// Translates `address`.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub fn translate(
        &self,
        memory: &(impl TableMemory + ?Sized),
        address: GuestVirt,
    ) -> Result<Mapping, Fault> {
        self.walk(memory, address, |_| {})
    }

    /// Whether there are tables at all.
    pub fn is_on(&self) -> bool {
        match self {
            Regime::X86(paging) => paging.mode() != x86::paging::Mode::Off,
            Regime::Aarch64(paging) => paging.is_on(),
        }
    }

    /// The mode in words.
    pub fn describe(&self) -> String {
        match self {
            Regime::X86(paging) => paging.describe(),
            Regime::Aarch64(paging) => paging.describe(),
        }
    }

    /// The ranges of addresses that tables can cover, first and last address each.
    pub fn ranges(&self) -> Vec<(GuestVirt, GuestVirt)> {
        match self {
            Regime::X86(paging) => paging.ranges(),
            Regime::Aarch64(paging) => paging.ranges(),
        }
    }
}

/// Reads a little-endian entry of 4 or 8 bytes.
pub(crate) fn read_entry(memory: &(impl TableMemory + ?Sized), at: GuestPhys, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read_table(at, bytes.get_mut(..size)?).then(|| u64::from_le_bytes(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Tables made of single words; everything below 4 GiB is RAM, and zero where not set.
    #[derive(Debug, Default)]
    pub struct Words(pub BTreeMap<u64, u64>);

    impl TableMemory for Words {
        fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
            if address.0 >= 4 << 30 {
                return false;
            }
            let word = self.0.get(&(address.0 & !7)).copied().unwrap_or(0) >> ((address.0 & 7) * 8);
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
            true
        }
    }

    #[test]
    fn a_regime_needs_its_registers() {
        for isa in Isa::ALL {
            assert!(matches!(Regime::new(&RegisterFile::new(isa)), Err(Fault::NoRegister(_))));
        }
    }

    #[test]
    fn permissions_in_words() {
        assert_eq!(Permissions::ALL.to_string(), "rwx rwx");
        let kernel_text = Permissions {
            write: false,
            user: false,
            user_write: false,
            user_execute: false,
            ..Permissions::ALL
        };
        assert_eq!(kernel_text.to_string(), "r-x ---");
    }

    #[test]
    fn bytes_left_in_a_page() {
        let mapping =
            Mapping { address: GuestPhys(0x20_0ff0), page_size: 0x1000, permissions: Permissions::ALL };
        assert_eq!(mapping.bytes_left(), 0x10);
    }
}
