//! AArch64 stage 1 translation of the EL1&0 regime, for every granule and size.
//!
//! Source: Arm ARM (DDI 0487), chapter D8 "The AArch64 Virtual Memory System Architecture":
//! "Translation process", "VMSAv8-64 translation table format descriptors", and the registers
//! `SCTLR_EL1`, `TCR_EL1`, `TTBRn_EL1`. A guest has stage 2 below, which is the host's own
//! and invisible here.

use super::walk::{Fault, Mapping, Permissions, TableEntry, TableMemory, read_entry};
use crate::{GuestPhys, GuestVirt};

/// `SCTLR_EL1.M`: the MMU is on.
pub const SCTLR_M: u64 = 1 << 0;
const SCTLR_WXN: u64 = 1 << 19;

const TCR_EPD0: u64 = 1 << 7;
const TCR_EPD1: u64 = 1 << 23;
const TCR_TBI0: u64 = 1 << 37;
const TCR_TBI1: u64 = 1 << 38;
const TCR_TBID0: u64 = 1 << 51;
const TCR_TBID1: u64 = 1 << 52;
const TCR_HPD0: u64 = 1 << 41;
const TCR_HPD1: u64 = 1 << 42;
const TCR_DS: u64 = 1 << 59;
/// `TCR_EL1.IPS` for 52-bit physical addresses.
const IPS_52_BITS: u64 = 6;

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
const AP_USER: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const PXN_TABLE: u64 = 1 << 59;
const UXN_TABLE: u64 = 1 << 60;
const AP_TABLE_NO_USER: u64 = 1 << 61;
const AP_TABLE_READ_ONLY: u64 = 1 << 62;

const NAMES: [&str; 5] = ["level -1", "level 0", "level 1", "level 2", "level 3"];

/// The size of the smallest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

impl Granule {
    /// Logarithm of its size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Granule::Kib4 => 12,
            Granule::Kib16 => 14,
            Granule::Kib64 => 16,
        }
    }

    /// `TCR_EL1.TG0`; reserved values are taken as 4 KiB, as implementations may choose.
    const fn from_tg0(field: u64) -> Granule {
        match field {
            1 => Granule::Kib64,
            2 => Granule::Kib16,
            _ => Granule::Kib4,
        }
    }

    /// `TCR_EL1.TG1`, which is encoded another way.
    const fn from_tg1(field: u64) -> Granule {
        match field {
            1 => Granule::Kib16,
            3 => Granule::Kib64,
            _ => Granule::Kib4,
        }
    }
}

/// One of the two halves: what `TTBR0_EL1` or `TTBR1_EL1` translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    ttbr: u64,
    granule: Granule,
    /// Width of addresses, bits.
    bits: u32,
    /// The top byte is ignored.
    ignores_top_byte: bool,
    /// That goes for addresses of data only (`TBIDn`).
    only_of_data: bool,
    /// Walks are switched off (`EPDn`).
    is_off: bool,
    /// Tables do not restrict (`HPDn`).
    flat_permissions: bool,
}

/// A vCPU's translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    is_on: bool,
    low: Half,
    high: Half,
    /// `TCR_EL1.DS`: 52-bit addresses with 4 KiB and 16 KiB granules.
    ds: bool,
    /// Physical addresses of 52 bits.
    wide: bool,
    /// `SCTLR_EL1.WXN`: what is writable is not executable.
    wxn: bool,
}

impl Paging {
    /// The translation that these registers select.
    pub fn new(sctlr: u64, tcr: u64, ttbr0: u64, ttbr1: u64) -> Paging {
        // 64 - TnSZ; KVM's guests have 48-bit addresses at least, and 16 bits are the least
        // that leaves a table to walk.
        let bits = |tsz: u64| 64 - u32::try_from(tsz & 0x3f).unwrap_or(0).clamp(12, 48);
        let low = Half {
            ttbr: ttbr0,
            granule: Granule::from_tg0(tcr >> 14 & 3),
            bits: bits(tcr),
            ignores_top_byte: tcr & TCR_TBI0 != 0,
            only_of_data: tcr & TCR_TBID0 != 0,
            is_off: tcr & TCR_EPD0 != 0,
            flat_permissions: tcr & TCR_HPD0 != 0,
        };
        let high = Half {
            ttbr: ttbr1,
            granule: Granule::from_tg1(tcr >> 30 & 3),
            bits: bits(tcr >> 16),
            ignores_top_byte: tcr & TCR_TBI1 != 0,
            only_of_data: tcr & TCR_TBID1 != 0,
            is_off: tcr & TCR_EPD1 != 0,
            flat_permissions: tcr & TCR_HPD1 != 0,
        };
        Paging {
            is_on: sctlr & SCTLR_M != 0,
            low,
            high,
            ds: tcr & TCR_DS != 0,
            wide: tcr >> 32 & 7 == IPS_52_BITS,
            wxn: sctlr & SCTLR_WXN != 0,
        }
    }

    /// Whether the MMU is on.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The top-level table of the half that an address is in, as `TTBRn_EL1` says it: without the process's number
    /// (`ASID`) and `CnP` beside it.
    pub fn table(&self, address: GuestVirt) -> GuestPhys {
        const TABLE: u64 = 0x0000_ffff_ffff_fffe;
        let half = if address.0 >> 55 & 1 != 0 { &self.high } else { &self.low };
        GuestPhys(half.ttbr & TABLE)
    }

    /// The mode and the roots in words.
    pub fn describe(&self) -> String {
        if !self.is_on {
            return "the MMU is off".into();
        }
        let half = |name, half: &Half| {
            if half.is_off {
                return format!("{name} off");
            }
            let size = 1 << (half.granule.shift() - 10);
            format!("{name} {:#x} ({} bits, {size} KiB granule)", half.ttbr, half.bits)
        };
        format!("{}, {}", half("TTBR0", &self.low), half("TTBR1", &self.high))
    }

    /// The ranges that tables cover.
    pub fn ranges(&self) -> Vec<(GuestVirt, GuestVirt)> {
        if !self.is_on {
            return vec![(GuestVirt(0), GuestVirt((1 << 52) - 1))];
        }
        let mut ranges = Vec::new();
        if !self.low.is_off {
            ranges.push((GuestVirt(0), GuestVirt((1 << self.low.bits) - 1)));
        }
        if !self.high.is_off {
            ranges.push((GuestVirt((1u64 << self.high.bits).wrapping_neg()), GuestVirt(u64::MAX)));
        }
        ranges
    }

    /// The bits of a pointer that hold no address: a pointer authentication code may stand there, but
    /// not in a top byte that is ignored (Arm ARM, "Pointer authentication"). In the high half or the
    /// low one, for code or for data.
    pub fn pointer_mask(&self, is_high: bool, is_code: bool) -> u64 {
        let half = if is_high { &self.high } else { &self.low };
        let is_ignored = half.ignores_top_byte && !(is_code && half.only_of_data);
        let top = if is_ignored { 0x00ff_ffff_ffff_ffff } else { u64::MAX };
        // Bit 55 selects the half, and stays.
        top & !((1u64 << half.bits) - 1) & !(1 << 55)
    }

    /// Walks the tables for `address`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn walk(
        &self,
        memory: &(impl TableMemory + ?Sized),
        address: GuestVirt,
        mut visit: impl FnMut(TableEntry),
    ) -> Result<Mapping, Fault> {
        if !self.is_on {
            return Ok(Mapping {
                address: GuestPhys(address.0),
                page_size: 1 << 12,
                permissions: Permissions::ALL,
            });
        }
        let is_high = address.0 >> 55 & 1 != 0;
        let half = if is_high { &self.high } else { &self.low };
        let top = if half.ignores_top_byte { address.0 << 8 } else { address.0 };
        let unused = if half.ignores_top_byte { half.bits + 8 } else { half.bits };
        // What lies above the address is all of one kind.
        let above = if unused >= 64 { 0 } else { top.cast_signed() >> unused };
        if half.is_off || above != if is_high && unused < 64 { -1 } else { 0 } {
            return Err(Fault::OutOfRange(address));
        }
        let virt = address.0 & ((1 << half.bits) - 1);
        let shift = half.granule.shift();
        let stride = shift - 3;
        // A guest can write a size that leaves nothing to index: no table is walked then.
        let levels = half.bits.saturating_sub(shift).div_ceil(stride);
        if levels == 0 {
            return Err(Fault::OutOfRange(address));
        }
        let mut table = self.root(half, half.bits - (shift + stride * (levels - 1)));
        let mut permissions = Permissions::ALL;
        // From the first level, counted down: `left` levels are below this one.
        for left in (0..levels).rev() {
            let name = NAMES[4 - usize::try_from(left).unwrap_or(0).min(4)];
            let low = shift + stride * left;
            let span = 1u64 << low;
            let index_bits = if left == levels - 1 { half.bits - low } else { stride };
            let index = virt >> low & ((1 << index_bits) - 1);
            let at = GuestPhys(table + index * 8);
            let value = read_entry(memory, at, 8).ok_or(Fault::NoTable { name, at, span })?;
            visit(TableEntry { name, at, value });
            if value & VALID == 0 {
                return Err(Fault::NotMapped { name, at, value, span });
            }
            let is_leaf = left == 0 || value & TABLE_OR_PAGE == 0;
            if !is_leaf {
                if !half.flat_permissions {
                    permissions.restrict_by_table(value);
                }
                table = self.output(half.granule, value, shift);
                continue;
            }
            // At the last level only the page encoding is valid; above, only some levels
            // have blocks.
            if (left == 0) != (value & TABLE_OR_PAGE != 0) || !self.has_blocks(half.granule, left) {
                return Err(Fault::Reserved { name, at, value, span });
            }
            permissions.restrict_by_leaf(value, self.wxn);
            let base = self.output(half.granule, value, shift) & !(span - 1);
            return Ok(Mapping {
                address: GuestPhys(base | virt & (span - 1)),
                page_size: span,
                permissions,
            });
        }
        Err(Fault::OutOfRange(address))
    }

    /// Whether entries with `left` levels below them may be blocks (or are pages, for 0).
    fn has_blocks(&self, granule: Granule, left: u32) -> bool {
        match (granule, left) {
            (_, 0 | 1) => true,
            (Granule::Kib4, 2) => true,
            (Granule::Kib4, 3) => self.ds,
            (Granule::Kib16, 2) => self.ds,
            (Granule::Kib64, 2) => self.wide,
            _ => false,
        }
    }

    /// The first table: aligned to its size, or to 64 bytes when addresses have 52 bits.
    fn root(&self, half: &Half, index_bits: u32) -> u64 {
        let size = 8u64 << index_bits;
        let mut base = half.ttbr & 0x0000_ffff_ffff_fffe;
        if self.has_wide_output(half.granule) {
            base = half.ttbr & 0x0000_ffff_ffff_ffc0 | (half.ttbr >> 2 & 0xf) << 48;
        }
        base & !(size - 1)
    }

    fn has_wide_output(&self, granule: Granule) -> bool {
        match granule {
            Granule::Kib64 => self.wide,
            Granule::Kib4 | Granule::Kib16 => self.ds,
        }
    }

    /// The address in a descriptor.
    fn output(&self, granule: Granule, value: u64, shift: u32) -> u64 {
        let low = !((1u64 << shift) - 1);
        if !self.has_wide_output(granule) {
            return value & 0x0000_ffff_ffff_ffff & low;
        }
        match granule {
            Granule::Kib64 => value & 0x0000_ffff_ffff_0000 | (value >> 12 & 0xf) << 48,
            Granule::Kib4 | Granule::Kib16 => value & 0x0003_ffff_ffff_ffff & low | (value >> 8 & 3) << 50,
        }
    }
}

impl Permissions {
    fn restrict_by_table(&mut self, value: u64) {
        if value & AP_TABLE_NO_USER != 0 {
            (self.user, self.user_write) = (false, false);
        }
        if value & AP_TABLE_READ_ONLY != 0 {
            (self.write, self.user_write) = (false, false);
        }
        self.execute &= value & PXN_TABLE == 0;
        self.user_execute &= value & UXN_TABLE == 0;
    }

    fn restrict_by_leaf(&mut self, value: u64, wxn: bool) {
        let is_writable = value & AP_READ_ONLY == 0;
        self.user &= value & AP_USER != 0;
        self.write &= is_writable;
        self.user_write &= is_writable && self.user;
        // What user mode can write, the kernel never executes.
        self.execute &= value & PXN == 0 && !self.user_write && !(wxn && self.write);
        self.user_execute &= value & UXN == 0 && !(wxn && self.user_write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::tests::Words;

    const TG1_4K: u64 = 2 << 30;
    const TG1_16K: u64 = 1 << 30;
    const TG1_64K: u64 = 3 << 30;
    const TG0_16K: u64 = 2 << 14;
    const TG0_64K: u64 = 1 << 14;

    fn words(entries: &[(u64, u64)]) -> Words {
        Words(entries.iter().copied().collect())
    }

    fn tcr(t0sz: u64, t1sz: u64) -> u64 {
        t0sz | t1sz << 16
    }

    #[test]
    fn off_means_physical() {
        let paging = Paging::new(0, 0, 0, 0);
        let mapping = paging.walk(&Words::default(), GuestVirt(0x4000_1234), |_| {}).unwrap();
        assert_eq!(mapping.address, GuestPhys(0x4000_1234));
    }

    #[test]
    fn every_granule_level_and_half() {
        let high = |bits: u32, low: u64| GuestVirt((1u64 << bits).wrapping_neg() | low);
        struct Row {
            tcr: u64,
            ttbr: u64,
            entries: &'static [(u64, u64)],
            address: GuestVirt,
            expected: (u64, u64),
            steps: &'static [&'static str],
        }
        let rows = [
            // 4 KiB, 48 bits, page.
            Row {
                tcr: tcr(16, 16) | TG1_4K,
                ttbr: 0x1000,
                entries: &[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4008, 0x9003)],
                address: high(48, 0x1234),
                expected: (0x9234, 0x1000),
                steps: &["level 0", "level 1", "level 2", "level 3"],
            },
            // 4 KiB, 39 bits: a 2 MiB and a 1 GiB block.
            Row {
                tcr: tcr(25, 25) | TG1_4K,
                ttbr: 0x1000,
                entries: &[(0x1000, 0x3003), (0x3008, 0x4020_0001)],
                address: high(39, 0x20_0000 + 0x12_3456),
                expected: (0x4032_3456, 0x20_0000),
                steps: &["level 1", "level 2"],
            },
            Row {
                tcr: tcr(25, 25) | TG1_4K,
                ttbr: 0x1000,
                entries: &[(0x1008, 0x8000_0001)],
                address: high(39, 0x4000_0000 + 5),
                expected: (0x8000_0005, 0x4000_0000),
                steps: &["level 1"],
            },
            // 4 KiB, 52 bits (DS): five levels, output bits 51 and 50 in bits 9 and 8.
            Row {
                tcr: tcr(12, 12) | TG1_4K | TCR_DS,
                ttbr: 0x1000,
                entries: &[
                    (0x1000, 0x2003),
                    (0x2000, 0x3003),
                    (0x3000, 0x4003),
                    (0x4000, 0x5003),
                    (0x5000, 0x0000_7000 | 3 | 3 << 8),
                ],
                address: high(52, 0x10),
                expected: (0x000c_0000_0000_7010, 0x1000),
                steps: &["level -1", "level 0", "level 1", "level 2", "level 3"],
            },
            // 16 KiB, 47 bits: starts at level 1; a 32 MiB block.
            Row {
                tcr: tcr(17, 17) | TG1_16K,
                ttbr: 0x4000,
                entries: &[(0x4000, 0x8003), (0x8000, 0x0200_0001)],
                address: high(47, 0x1234),
                expected: (0x200_1234, 0x200_0000),
                steps: &["level 1", "level 2"],
            },
            // 16 KiB, 48 bits: level 0 has two entries.
            Row {
                tcr: tcr(16, 16) | TG1_16K,
                ttbr: 0x4000,
                entries: &[(0x4008, 0x8003), (0x8000, 0xc003), (0xc000, 0x1_0003), (0x1_0008, 0x2_0003)],
                address: high(48, (1 << 47) | 0x4010),
                expected: (0x2_0010, 0x4000),
                steps: &["level 0", "level 1", "level 2", "level 3"],
            },
            // 64 KiB, 42 bits: two levels, a 512 MiB block and a page.
            Row {
                tcr: tcr(22, 22) | TG1_64K,
                ttbr: 0x1_0000,
                entries: &[(0x1_0000, 0x2000_0001)],
                address: high(42, 0x1234),
                expected: (0x2000_1234, 0x2000_0000),
                steps: &["level 2"],
            },
            Row {
                tcr: tcr(22, 22) | TG1_64K,
                ttbr: 0x1_0000,
                entries: &[(0x1_0008, 0x3_0003), (0x3_0008, 0x5_0003)],
                address: high(42, 0x2000_0000 + 0x1_0020),
                expected: (0x5_0020, 0x1_0000),
                steps: &["level 2", "level 3"],
            },
            // 64 KiB, 52 bits (LVA, LPA): output bits 51 to 48 in bits 15 to 12.
            Row {
                tcr: tcr(12, 12) | TG1_64K | IPS_52_BITS << 32,
                ttbr: 0x1_0000,
                entries: &[(0x1_0000, 0x2_0003), (0x2_0000, 0x3_0003), (0x3_0000, 0x5_0003 | 0xf000)],
                address: high(52, 0x30),
                expected: (0x000f_0000_0005_0030, 0x1_0000),
                steps: &["level 1", "level 2", "level 3"],
            },
        ];
        for Row { tcr, ttbr, entries, address, expected, steps } in rows {
            let paging = Paging::new(SCTLR_M, tcr, 0xdead_0000, ttbr);
            let mut names = Vec::new();
            let mapping = paging.walk(&words(entries), address, |step| names.push(step.name));
            let mapping = mapping.unwrap_or_else(|fault| panic!("{address:#x}: {fault}"));
            assert_eq!((mapping.address.0, mapping.page_size), expected, "{address:#x}");
            assert_eq!(names, steps);
        }
        // The low half, with the other encoding of the granule.
        for (tg, shift) in [(0, 12), (TG0_16K, 14), (TG0_64K, 16)] {
            let paging = Paging::new(SCTLR_M, tcr(28, 28) | tg, 0x1_0000, 0);
            let mut names = Vec::new();
            let low = paging.walk(&words(&[(0x1_0000, 0x2_0003)]), GuestVirt(0), |step| names.push(step.at));
            assert!(low.is_err());
            assert_eq!(names, [GuestPhys(0x1_0000), GuestPhys(0x2_0000)], "granule shift {shift}");
        }
    }

    #[test]
    fn tables_of_52_bits_lie_above_48() {
        let paging = Paging::new(SCTLR_M, tcr(16, 16) | TG1_64K | IPS_52_BITS << 32, 0, 0x1_0000 | 3 << 2);
        let fault = paging.walk(&Words::default(), GuestVirt(u64::MAX), |_| {}).unwrap_err();
        assert!(matches!(fault, Fault::NoTable { at: GuestPhys(at), .. } if at >> 48 == 3), "{fault}");
    }

    #[test]
    fn addresses_between_the_halves_and_tags() {
        let tables = words(&[(0x1000, 0x4000_0000 | 1), (0x1000 + 8 * 511, 0x8000_0000 | 1)]);
        let walk = |extra: u64, address: u64| {
            let tcr = tcr(25, 25) | TG1_4K | extra;
            Paging::new(SCTLR_M, tcr, 0x1000, 0x1000).walk(&tables, GuestVirt(address), |_| {})
        };
        assert!(walk(0, 0x10).is_ok());
        assert!(walk(0, u64::MAX).is_ok());
        for address in [1 << 39, 0x00ff_ffff_ffff_ffff, 0x1200_0000_0000_0010, 0x12ff_ffff_ffff_ffff] {
            assert_eq!(walk(0, address), Err(Fault::OutOfRange(GuestVirt(address))));
        }
        assert!(walk(TCR_TBI0, 0x1200_0000_0000_0010).is_ok());
        assert!(walk(TCR_TBI1, 0x12ff_ffff_ffff_ffff).is_ok());
        assert!(walk(TCR_TBI1, 0x1200_0000_0000_0010).is_err());
        assert!(walk(TCR_EPD0, 0x10).is_err());
        assert!(walk(TCR_EPD1, u64::MAX).is_err());
    }

    #[test]
    fn permissions_and_reserved_encodings() {
        let walk = |sctlr: u64, table: u64, leaf: u64| {
            let tables = words(&[(0x1000, 0x2003 | table), (0x2000, 0x4000_0001 | leaf)]);
            Paging::new(SCTLR_M | sctlr, tcr(25, 25), 0x1000, 0)
                .walk(&tables, GuestVirt(0), |_| {})
                .map(|mapping| mapping.permissions.to_string())
        };
        for (sctlr, table, leaf, text) in [
            (0, 0, UXN, "rwx ---"),
            (0, 0, AP_READ_ONLY | UXN, "r-x ---"),
            (0, 0, AP_USER | PXN, "rw- rwx"),
            (0, 0, AP_USER, "rw- rwx"),
            (0, AP_TABLE_NO_USER, AP_USER | UXN, "rwx ---"),
            (0, AP_TABLE_READ_ONLY, AP_USER, "r-x r-x"),
            (0, PXN_TABLE | UXN_TABLE, 0, "rw- ---"),
            (SCTLR_WXN, 0, UXN, "rw- ---"),
        ] {
            assert_eq!(walk(sctlr, table, leaf).unwrap(), text, "{table:#x} {leaf:#x}");
        }
        // A level 3 entry must have bit 1; level 0 has no blocks.
        let tables = words(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x9001)]);
        let paging = Paging::new(SCTLR_M, tcr(16, 16), 0x1000, 0);
        let fault = paging.walk(&tables, GuestVirt(0), |_| {});
        assert!(matches!(fault, Err(Fault::Reserved { name: "level 3", .. })), "{fault:?}");
        let fault = paging.walk(&words(&[(0x1000, 1)]), GuestVirt(0), |_| {});
        assert!(matches!(fault, Err(Fault::Reserved { name: "level 0", .. })), "{fault:?}");
    }

    #[test]
    fn no_register_value_makes_a_walk_panic() {
        let tables = words(&[(0, u64::MAX), (0x1_0000, 3)]);
        for tsz in 0..64 {
            for granules in 0..16u64 {
                let tcr = tcr(tsz, tsz) | (granules & 3) << 14 | (granules >> 2) << 30;
                for extra in [0, TCR_DS | IPS_52_BITS << 32, TCR_TBI0 | TCR_TBI1] {
                    let paging = Paging::new(SCTLR_M, tcr | extra, u64::MAX, 0x1_0000);
                    for address in [0, 0xffff, 1 << 40, u64::MAX] {
                        // Any answer will do.
                        paging.walk(&tables, GuestVirt(address), |_| {}).ok();
                    }
                }
            }
        }
    }

    #[test]
    fn pointer_authentication_masks() {
        let (narrow, wide) = (0x007f_0000_0000_0000, 0xff7f_0000_0000_0000);
        let masks = |bits: u64| {
            let paging = Paging::new(SCTLR_M, tcr(16, 16) | bits, 0, 0);
            let mask = |(is_high, is_code)| paging.pointer_mask(is_high, is_code);
            [(false, false), (false, true), (true, false), (true, true)].map(mask)
        };
        assert_eq!(masks(TCR_TBI0), [narrow, narrow, wide, wide]);
        // Linux with MTE.
        assert_eq!(masks(TCR_TBI0 | TCR_TBI1 | TCR_TBID1), [narrow, narrow, narrow, wide]);
        assert_eq!(masks(TCR_TBI0 | TCR_TBID0 | TCR_TBID1), [narrow, wide, wide, wide]);
    }
}
