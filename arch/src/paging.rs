//! Page-table walks: from a guest-virtual address to a guest-physical one, as the vCPU's
//! own walk would go.
//!
//! [`Regime`] holds what the control registers say at the moment; [`Regime::walk`] reads the
//! tables through a [`TableMemory`], one entry a level, and tells each entry to the caller,
//! so that one walk serves a memory access, `monitor translate` and the map of all ranges.
//! Accessed and dirty bits are left alone, and permissions are reported, not enforced: a
//! debugger reads what the guest may not.
//!
//! The walks themselves are in [`x86`] and [`aarch64`]. A walk
//! takes at most five steps, whatever the tables hold, so tables that point to themselves
//! cannot hold one up.

pub mod aarch64;
mod walk;
pub mod x86;

use crate::register::RegisterFile;
use crate::{GuestPhys, GuestVirt, Isa};

pub use walk::{Fault, Mapping, Permissions, TableEntry, TableMemory};

/// A translation regime: how a vCPU translates at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// x86.
    X86(x86::Paging),
    /// aarch64, EL1&0.
    Aarch64(aarch64::Paging),
}

impl Regime {
    /// The regime that a vCPU's registers select.
    ///
    /// # Errors
    /// [`Fault::NoRegister`] when one of them is not in the file.
    pub fn new(registers: &RegisterFile) -> Result<Regime, Fault> {
        let get = |name| registers.get(name).ok_or(Fault::NoRegister(name));
        Ok(match registers.isa() {
            Isa::X86_64 => Regime::X86(x86::Paging::new(get("cr0")?, get("cr3")?, get("cr4")?, get("efer")?)),
            Isa::Aarch64 => Regime::Aarch64(aarch64::Paging::new(
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
        visit: impl FnMut(TableEntry),
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
            Regime::X86(paging) => paging.mode() != x86::Mode::Off,
            Regime::Aarch64(paging) => paging.is_on(),
        }
    }

    /// The top-level table that `address` is translated by, as long as [it is on](Self::is_on).
    pub fn table(&self, address: GuestVirt) -> GuestPhys {
        match self {
            Regime::X86(paging) => paging.table(),
            Regime::Aarch64(paging) => paging.table(address),
        }
    }

    /// The table that tells one process's `address` from another's: those of kernels mean the same to all, and so do
    /// all while it is off.
    pub fn table_of_process(&self, address: GuestVirt) -> Option<GuestPhys> {
        (self.is_on() && address.0 >> 63 == 0).then(|| self.table(address))
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
