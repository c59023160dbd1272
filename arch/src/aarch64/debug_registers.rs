//! Breakpoint and watchpoint registers of AArch64.
//!
//! Source: Arm ARM (DDI 0487), `DBGBCR<n>_EL1`, `DBGBVR<n>_EL1`, `DBGWCR<n>_EL1`,
//! `DBGWVR<n>_EL1`, and "Watchpoint exceptions", "Programming a watchpoint with eight or
//! fewer bytes" and "... with more than eight bytes".

/// Most breakpoints and most watchpoints that the architecture has room for. How many there
/// are is asked of the host.
pub const MOST: usize = 16;

const ENABLE: u64 = 1 << 0;
/// PMC/PAC: at EL1 and at EL0.
const EL1_AND_EL0: u64 = 0b11 << 1;
const BAS: u32 = 5;
const BAS_ALL: u64 = 0b1111;
const LSC: u32 = 3;
const MASK: u32 = 24;

/// What a watchpoint watches for, `DBGWCR<n>_EL1.LSC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Both.
    Any,
}

/// Control and value of one register pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// `DBGBCR` or `DBGWCR`.
    pub control: u64,
    /// `DBGBVR` or `DBGWVR`.
    pub value: u64,
}

impl Pair {
    /// Whether it is armed.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }
}

/// A breakpoint on the instruction at `address`, at EL1 and EL0, in any context.
pub fn breakpoint(address: u64) -> Pair {
    Pair { control: ENABLE | EL1_AND_EL0 | BAS_ALL << BAS, value: address & !3 }
}

/// A range that one watchpoint can watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchRange {
    /// Bytes within one doubleword, any run of them: `DBGWCR.BAS`.
    Bytes {
        /// The doubleword, a multiple of 8.
        base: u64,
        /// A bit for each byte, the lowest address in bit 0.
        select: u8,
    },
    /// A naturally aligned power of two from 8 bytes to 2 GiB: `DBGWCR.MASK`.
    Block {
        /// First byte.
        base: u64,
        /// Logarithm of the size in bytes, 3 to 31.
        log2: u32,
    },
}

impl WatchRange {
    /// First byte and length.
    pub fn extent(&self) -> (u64, u64) {
        match *self {
            WatchRange::Bytes { base, select } => {
                (base.wrapping_add(u64::from(select.trailing_zeros())), u64::from(select.count_ones()))
            }
            WatchRange::Block { base, log2 } => (base, 1 << log2),
        }
    }
}

/// A watchpoint at EL1 and EL0.
pub fn watchpoint(range: WatchRange, access: Access) -> Pair {
    let lsc = match access {
        Access::Read => 0b01,
        Access::Write => 0b10,
        Access::Any => 0b11,
    };
    let control = ENABLE | EL1_AND_EL0 | lsc << LSC;
    match range {
        WatchRange::Bytes { base, select } => {
            Pair { control: control | u64::from(select) << BAS, value: base }
        }
        // With a mask, all of BAS must be ones; a mask of 0 to 2 is reserved.
        WatchRange::Block { base, log2: 3 } => Pair { control: control | 0xff << BAS, value: base },
        WatchRange::Block { base, log2 } => {
            Pair { control: control | 0xff << BAS | u64::from(log2) << MASK, value: base }
        }
    }
}

/// Splits a range into what watchpoints can watch, in as few as may be.
///
/// More than [`MOST`] pieces cannot be armed; the caller counts.
pub fn pieces(address: u64, length: u64) -> Vec<WatchRange> {
    let mut pieces = Vec::new();
    let (mut at, mut left) = (address, length);
    while left > 0 && pieces.len() <= MOST {
        let base = at & !7;
        let offset = at - base;
        let size = if offset != 0 || left < 8 {
            let size = (8 - offset).min(left);
            // At most 8 bits.
            let select = u8::try_from(((1u64 << size) - 1) << offset & 0xff).unwrap_or(u8::MAX);
            pieces.push(WatchRange::Bytes { base, select });
            size
        } else {
            let aligned = if at == 0 { 31 } else { at.trailing_zeros() };
            let log2 = aligned.min(left.ilog2()).min(31);
            pieces.push(WatchRange::Block { base: at, log2 });
            1 << log2
        };
        at = at.wrapping_add(size);
        left -= size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_is_linked_to_nothing() {
        // E, PMC 0b11, BAS 0b1111, BT 0 (unlinked address match).
        assert_eq!(breakpoint(0xffff_8000_1000_0004), Pair { control: 0x1e7, value: 0xffff_8000_1000_0004 });
    }

    #[test]
    fn byte_select_and_access() {
        for (access, lsc) in [(Access::Read, 1), (Access::Write, 2), (Access::Any, 3)] {
            for (select, bas) in [(0x01, 0x01), (0x0c, 0x0c), (0xf0, 0xf0), (0xff, 0xff)] {
                let pair = watchpoint(WatchRange::Bytes { base: 0x1000, select }, access);
                assert_eq!(pair, Pair { control: 7 | lsc << 3 | bas << 5, value: 0x1000 });
            }
        }
    }

    #[test]
    fn wide_watchpoints_use_the_mask() {
        let pair = watchpoint(WatchRange::Block { base: 0x4000, log2: 12 }, Access::Write);
        assert_eq!(pair, Pair { control: 7 | 2 << 3 | 0xff << 5 | 12 << 24, value: 0x4000 });
        let eight = watchpoint(WatchRange::Block { base: 0x4000, log2: 3 }, Access::Write);
        assert_eq!(eight.control >> 24, 0);
    }

    #[test]
    fn ranges_fall_into_pieces_that_cover_them() {
        use WatchRange::{Block, Bytes};
        for (address, length, expected) in [
            (0x1000, 4, vec![Bytes { base: 0x1000, select: 0x0f }]),
            (0x1006, 4, vec![Bytes { base: 0x1000, select: 0xc0 }, Bytes { base: 0x1008, select: 0x03 }]),
            (0x1000, 8, vec![Block { base: 0x1000, log2: 3 }]),
            (0x1000, 24, vec![Block { base: 0x1000, log2: 4 }, Block { base: 0x1010, log2: 3 }]),
            (0x1000, 4096, vec![Block { base: 0x1000, log2: 12 }]),
            (0x1003, 3, vec![Bytes { base: 0x1000, select: 0x38 }]),
            (0, 1 << 31, vec![Block { base: 0, log2: 31 }]),
            (u64::MAX, 1, vec![Bytes { base: u64::MAX - 7, select: 0x80 }]),
        ] {
            let found = pieces(address, length);
            assert_eq!(found, expected, "{address:#x} {length}");
            let total: u64 = found.iter().map(|piece| piece.extent().1).sum();
            assert_eq!((total, found[0].extent().0), (length, address));
        }
        assert!(pieces(1, u64::MAX).len() > MOST);
    }
}
