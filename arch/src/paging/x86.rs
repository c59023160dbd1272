//! x86 page tables, in every mode.
//!
//! Source: Intel SDM vol. 3, chapter "Paging": 32-bit paging, PAE paging, 4-level and 5-level
//! paging, and the tables "Format of ..." there. Protection keys and SMEP/SMAP change who may
//! do what at the moment, not what the tables say, and are not looked at.

use super::walk::{Fault, Mapping, Permissions, TableEntry, TableMemory, read_entry};
use crate::x86::boot_state::{CR0_PG, CR4_PAE, EFER_LMA};
use crate::{GuestPhys, GuestVirt};

/// `CR4.PSE`: 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// `CR4.LA57`: five levels.
pub const CR4_LA57: u64 = 1 << 12;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAGE_SIZE: u64 = 1 << 7;
const EXECUTE_DISABLE: u64 = 1 << 63;
/// Bits 51 to 12 of an entry: a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are physical.
    Off,
    /// Two levels of 4-byte entries; `pse` allows 4 MiB pages.
    Bits32 {
        /// `CR4.PSE`.
        pse: bool,
    },
    /// Three levels of 8-byte entries, the first with four of them.
    Pae,
    /// Four levels.
    Level4,
    /// Five levels.
    Level5,
}

/// A vCPU's paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    mode: Mode,
    cr3: u64,
}

/// One level of a mode.
struct Level {
    name: &'static str,
    /// The lowest bit of the address that indexes this table.
    shift: u32,
    /// Number of index bits.
    bits: u32,
    /// Whether an entry with PS set is a page.
    pages: bool,
}

const fn level(name: &'static str, shift: u32, bits: u32, pages: bool) -> Level {
    Level { name, shift, bits, pages }
}

const LONG: [Level; 5] = [
    level("PML5E", 48, 9, false),
    level("PML4E", 39, 9, false),
    level("PDPTE", 30, 9, true),
    level("PDE", 21, 9, true),
    level("PTE", 12, 9, false),
];
const PAE: [Level; 3] = [level("PDPTE", 30, 2, false), level("PDE", 21, 9, true), level("PTE", 12, 9, false)];
const BITS32: [Level; 2] = [level("PDE", 22, 10, true), level("PTE", 12, 10, false)];

impl Paging {
    /// The paging that these control registers select.
    pub fn new(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Paging {
        let mode = if cr0 & CR0_PG == 0 {
            Mode::Off
        } else if cr4 & CR4_PAE == 0 {
            Mode::Bits32 { pse: cr4 & CR4_PSE != 0 }
        } else if efer & EFER_LMA == 0 {
            Mode::Pae
        } else if cr4 & CR4_LA57 == 0 {
            Mode::Level4
        } else {
            Mode::Level5
        };
        Paging { mode, cr3 }
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The top-level table. `CR3` has flags and the process's number (`PCID`) beside it.
    pub fn table(&self) -> GuestPhys {
        GuestPhys(self.cr3 & ADDRESS)
    }

    /// The mode and the root in words.
    pub fn describe(&self) -> String {
        let mode = match self.mode {
            Mode::Off => return "paging is off".into(),
            Mode::Bits32 { .. } => "32-bit paging",
            Mode::Pae => "PAE paging",
            Mode::Level4 => "4-level paging",
            Mode::Level5 => "5-level paging",
        };
        format!("{mode}, CR3 {:#x}", self.cr3)
    }

    /// The ranges that tables cover: one without long mode, two halves with it.
    pub fn ranges(&self) -> Vec<(GuestVirt, GuestVirt)> {
        let Some(bits) = self.canonical_bits() else {
            return vec![(GuestVirt(0), GuestVirt(u64::from(u32::MAX)))];
        };
        let half = 1u64 << (bits - 1);
        vec![(GuestVirt(0), GuestVirt(half - 1)), (GuestVirt(half.wrapping_neg()), GuestVirt(u64::MAX))]
    }

    /// Width of canonical addresses, where there are such.
    fn canonical_bits(&self) -> Option<u32> {
        match self.mode {
            Mode::Level4 => Some(48),
            Mode::Level5 => Some(57),
            Mode::Off | Mode::Bits32 { .. } | Mode::Pae => None,
        }
    }

    /// Walks the tables for a linear address. Outside long mode its upper half is ignored, as
    /// the processor does.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn walk(
        &self,
        memory: &(impl TableMemory + ?Sized),
        address: GuestVirt,
        mut visit: impl FnMut(TableEntry),
    ) -> Result<Mapping, Fault> {
        let mut linear = address.0;
        match self.canonical_bits() {
            Some(bits) => {
                let top = linear.cast_signed() >> (bits - 1);
                if top != 0 && top != -1 {
                    return Err(Fault::OutOfRange(address));
                }
            }
            None if self.mode != Mode::Off => linear &= u64::from(u32::MAX),
            None => {}
        }
        let (levels, entry_size, mut table): (&[Level], _, _) = match self.mode {
            Mode::Off => {
                return Ok(Mapping {
                    address: GuestPhys(linear),
                    page_size: 1 << 12,
                    permissions: Permissions::ALL,
                });
            }
            Mode::Bits32 { .. } => (&BITS32, 4, self.cr3 & 0xffff_f000),
            // The table of four has an alignment of its own: CR3 bits 31 to 5.
            Mode::Pae => (&PAE, 8, self.cr3 & 0xffff_ffe0),
            Mode::Level4 => (&LONG[1..], 8, self.cr3 & ADDRESS),
            Mode::Level5 => (&LONG, 8, self.cr3 & ADDRESS),
        };
        let (mut write, mut user, mut execute) = (true, true, true);
        for Level { name, shift, bits, pages } in levels {
            let span = 1u64 << shift;
            let index = linear >> shift & ((1 << bits) - 1);
            let at = GuestPhys(table + index * entry_size as u64);
            let value = read_entry(memory, at, entry_size).ok_or(Fault::NoTable { name, at, span })?;
            visit(TableEntry { name, at, value });
            if value & PRESENT == 0 {
                return Err(Fault::NotMapped { name, at, value, span });
            }
            // PAE's first level has no permissions.
            if !(self.mode == Mode::Pae && *shift == 30) {
                write &= value & WRITE != 0;
                user &= value & USER != 0;
                execute &= entry_size == 4 || value & EXECUTE_DISABLE == 0;
            }
            let is_page = *shift == 12 || (*pages && value & PAGE_SIZE != 0 && self.has_large_pages());
            if !is_page {
                if value & PAGE_SIZE != 0
                    && entry_size == 8
                    && *shift >= 30
                    && !pages
                    && self.mode != Mode::Pae
                {
                    return Err(Fault::Reserved { name, at, value, span });
                }
                table = if entry_size == 4 { value & 0xffff_f000 } else { value & ADDRESS };
                continue;
            }
            let base = match (self.mode, *shift) {
                // PSE-36: bits 39 to 32 of the address are in bits 20 to 13 of the entry.
                (Mode::Bits32 { .. }, 22) => value & 0xffc0_0000 | (value >> 13 & 0xff) << 32,
                (Mode::Bits32 { .. }, _) => value & 0xffff_f000,
                _ => value & ADDRESS & !(span - 1),
            };
            let permissions = Permissions {
                write,
                execute,
                user,
                user_write: user && write,
                user_execute: user && execute,
            };
            return Ok(Mapping {
                address: GuestPhys(base | linear & (span - 1)),
                page_size: span,
                permissions,
            });
        }
        // Every mode's last level has shift 12, which is a page or a fault.
        Err(Fault::OutOfRange(address))
    }

    fn has_large_pages(&self) -> bool {
        self.mode != Mode::Bits32 { pse: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::tests::Words;

    const LONG_MODE: (u64, u64) = (CR4_PAE, EFER_LMA);

    fn paging(cr3: u64, cr4: u64, efer: u64) -> Paging {
        Paging::new(CR0_PG, cr3, cr4, efer)
    }

    fn words(entries: &[(u64, u64)]) -> Words {
        let mut words = Words::default();
        for &(at, value) in entries {
            words.0.insert(at, value);
        }
        words
    }

    fn words32(entries: &[(u64, u32)]) -> Words {
        let mut words = Words::default();
        for &(at, value) in entries {
            *words.0.entry(at & !7).or_default() |= u64::from(value) << ((at & 7) * 8);
        }
        words
    }

    #[test]
    fn modes_follow_the_control_registers() {
        for (cr0, cr4, efer, mode) in [
            (0, 0, 0, Mode::Off),
            (0, CR4_PAE, EFER_LMA, Mode::Off),
            (CR0_PG, 0, 0, Mode::Bits32 { pse: false }),
            (CR0_PG, CR4_PSE, 0, Mode::Bits32 { pse: true }),
            (CR0_PG, CR4_PAE, 0, Mode::Pae),
            (CR0_PG, CR4_PAE, EFER_LMA, Mode::Level4),
            (CR0_PG, CR4_PAE | CR4_LA57, EFER_LMA, Mode::Level5),
        ] {
            assert_eq!(Paging::new(cr0, 0, cr4, efer).mode(), mode);
        }
    }

    #[test]
    fn every_page_size_of_every_mode() {
        let all = PRESENT | WRITE | USER;
        let (cr4, efer) = LONG_MODE;
        let four = words(&[
            (0x1000 + 8 * 0x1ff, 0x2000 | all), // PML4E
            (0x2000 + 8 * 0x1fe, 0x3000 | all), // PDPTE
            (0x3000, 0x4000 | all),             // PDE
            (0x3008, 0x4000_0000 | PAGE_SIZE | all),
            (0x2000 + 8 * 0x1ff, 0x8000_0000 | PAGE_SIZE | all),
            (0x4000 + 8 * 3, 0x5000 | all), // PTE
        ]);
        let base = 0xffff_ff80_0000_0000u64;
        let at = |low: u64| GuestVirt(base + (0x1fe << 30) + low);
        let long = paging(0x1000, cr4, efer);
        for (address, phys, size) in [
            (at(0x3123), 0x5123, 0x1000),
            (at(0x20_1234), 0x4000_1234, 0x20_0000),
            (GuestVirt(u64::MAX), 0xbfff_ffff, 0x4000_0000),
        ] {
            let mapping = long.walk(&four, address, |_| {}).unwrap();
            assert_eq!((mapping.address, mapping.page_size), (GuestPhys(phys), size), "{address:#x}");
            assert_eq!(mapping.permissions, Permissions::ALL);
        }
        let five = words(&[(0x1000, 0x2000 | all), (0x2000, 0x3000 | all), (0x3000, PAGE_SIZE | all)]);
        let mut names = Vec::new();
        let mapping = paging(0x1000, cr4 | CR4_LA57, efer)
            .walk(&five, GuestVirt(0x123_4567), |step| names.push(step.name))
            .unwrap();
        assert_eq!((mapping.address, names), (GuestPhys(0x123_4567), vec!["PML5E", "PML4E", "PDPTE"]));

        let pae = words(&[
            (0x1020 + 8 * 3, 0x2000 | PRESENT),
            (0x2000, 0x3000 | all),
            (0x2008, 0x60_0000 | PAGE_SIZE | all | EXECUTE_DISABLE),
            (0x3000, 0x7000 | PRESENT),
        ]);
        let paged = paging(0x1020, CR4_PAE, 0);
        let small = paged.walk(&pae, GuestVirt(0xffff_ffff_c000_0010), |_| {}).unwrap();
        assert_eq!((small.address, small.page_size), (GuestPhys(0x7010), 0x1000));
        assert_eq!(small.permissions.to_string(), "r-x ---");
        let large = paged.walk(&pae, GuestVirt(0xc020_0010), |_| {}).unwrap();
        assert_eq!((large.address, large.page_size), (GuestPhys(0x60_0010), 0x20_0000));
        assert_eq!(large.permissions.to_string(), "rw- rw-");

        let two =
            words32(&[(0x1000 + 4 * 0x300, 0x00c0_0087 | 0x5 << 13), (0x1004, 0x2007), (0x2008, 0x9003)]);
        let pse = paging(0x1000, CR4_PSE, 0);
        let big = pse.walk(&two, GuestVirt(0xc012_3456), |_| {}).unwrap();
        assert_eq!((big.address, big.page_size), (GuestPhys(0x5_00d2_3456), 0x40_0000));
        let small = pse.walk(&two, GuestVirt(0x40_2010), |_| {}).unwrap();
        assert_eq!((small.address, small.permissions.to_string().as_str()), (GuestPhys(0x9010), "rwx ---"));
        // Without PSE the bit is ignored and the entry names a table.
        let no_pse = paging(0x1000, 0, 0).walk(&two, GuestVirt(0xc012_3456), |_| {});
        assert!(matches!(no_pse, Err(Fault::NotMapped { name: "PTE", .. })), "{no_pse:?}");
        assert_eq!(
            Paging::new(0, 0, 0, 0).walk(&two, GuestVirt(0x1_2345_6789), |_| {}).unwrap().address,
            GuestPhys(0x1_2345_6789)
        );
    }

    #[test]
    fn what_is_not_there_says_where() {
        let (cr4, efer) = LONG_MODE;
        let tables = words(&[
            (0x1000, 0x2007),
            (0x1008, 0xf_ffff_f000 | PRESENT),
            (0x1010, 0x2007 | PAGE_SIZE),
            (0x2008, 0x1007),
        ]);
        let long = paging(0x1000, cr4, efer);
        let walk = |address| long.walk(&tables, GuestVirt(address), |_| {});
        assert_eq!(walk(1 << 47), Err(Fault::OutOfRange(GuestVirt(1 << 47))));
        assert_eq!(
            walk(0),
            Err(Fault::NotMapped { name: "PDPTE", at: GuestPhys(0x2000), value: 0, span: 1 << 30 })
        );
        assert!(matches!(walk(1 << 39), Err(Fault::NoTable { name: "PDPTE", .. })));
        assert!(matches!(walk(2 << 39), Err(Fault::Reserved { name: "PML4E", .. })));
        // A table that points back to the root ends after the last level.
        assert!(walk(1 << 30).is_err());
    }

    #[test]
    fn permissions_are_those_of_all_levels() {
        let (cr4, efer) = LONG_MODE;
        for (pde, pte, text) in [
            (PRESENT | WRITE | USER, PRESENT | USER, "r-x r-x"),
            (PRESENT | WRITE, PRESENT | WRITE | USER, "rwx ---"),
            (PRESENT | USER, PRESENT | WRITE | USER | EXECUTE_DISABLE, "r-- r--"),
            (PRESENT | WRITE | EXECUTE_DISABLE | USER, PRESENT | WRITE | USER, "rw- rw-"),
        ] {
            let tables =
                words(&[(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4000 | pde), (0x4000, 0x5000 | pte)]);
            let mapping = paging(0x1000, cr4, efer).walk(&tables, GuestVirt(0), |_| {}).unwrap();
            assert_eq!(mapping.permissions.to_string(), text);
        }
    }
}
