//! DR6 and DR7: what x86 debug registers are told, and what they say.
//!
//! Source: Intel SDM vol. 3, "Debug Address Registers (DR0-DR3)", "Debug Status Register
//! (DR6)", "Debug Control Register (DR7)", and the table "Breakpoint Examples".

/// Debug address registers, all of them architectural.
pub const COUNT: usize = 4;
/// `DR6` bits that read as 1 always; the rest of DR6 is below.
pub const DR6_FIXED: u64 = 0xffff_0ff0;
/// `DR6.BD`: an access to a debug register while `DR7.GD` was set.
pub const DR6_BD: u64 = 1 << 13;
/// `DR6.BS`: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// `DR6.BT`: a task switch.
pub const DR6_BT: u64 = 1 << 15;
/// `DR7` bit 10 reads as 1 always.
pub const DR7_FIXED: u64 = 1 << 10;
/// `DR7.GE`: exact data breakpoints, recommended.
pub const DR7_GE: u64 = 1 << 9;
/// The `L0`-`G3` bits.
pub const DR7_ENABLED: u64 = 0xff;

/// What a debug address register watches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The instruction at the address is about to be executed.
    Execute,
    /// A write.
    Write,
    /// A read or a write; there is no way to watch reads alone.
    Access,
}

/// One armed debug address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Linear address, aligned to `length`.
    pub address: u64,
    /// What for.
    pub condition: Condition,
    /// Bytes: 1, 2, 4 or 8; 1 for [`Condition::Execute`].
    pub length: u64,
}

/// `DR7` with the given registers armed globally.
pub fn dr7(slots: &[Option<Slot>; COUNT]) -> u64 {
    let mut dr7 = DR7_FIXED;
    for (index, slot) in slots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        let condition = match slot.condition {
            Condition::Execute => 0b00,
            Condition::Write => 0b01,
            Condition::Access => 0b11,
        };
        let length = match slot.length {
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => 0b00,
        };
        dr7 |= DR7_GE | 0b10 << (2 * index) | (condition | length << 2) << (16 + 4 * index);
    }
    dr7
}

/// The slots that a `DR7` arms, globally or locally, with the given addresses. Encodings that
/// the manual leaves undefined are taken as an access.
pub fn slots(dr7: u64, addresses: [u64; COUNT]) -> [Option<Slot>; COUNT] {
    std::array::from_fn(|index| {
        if dr7 >> (2 * index) & 0b11 == 0 {
            return None;
        }
        let field = dr7 >> (16 + 4 * index);
        let length = [1, 2, 8, 4][usize::try_from(field >> 2 & 0b11).unwrap_or(0)];
        let (condition, length) = match field & 0b11 {
            0b00 => (Condition::Execute, 1),
            0b01 => (Condition::Write, length),
            _ => (Condition::Access, length),
        };
        Some(Slot { address: addresses[index] & !(length - 1), condition, length })
    })
}

/// The debug registers that `DR6` says have matched, by index.
pub fn matches(dr6: u64) -> impl Iterator<Item = usize> {
    (0..COUNT).filter(move |index| dr6 >> index & 1 != 0)
}

/// Splits a watched range into as few aligned pieces as debug registers can watch: start
/// address and length of each.
///
/// More than [`COUNT`] pieces cannot be armed at once; the caller counts.
pub fn pieces(address: u64, length: u64) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    let (mut at, mut left) = (address, length);
    while left > 0 && pieces.len() <= COUNT {
        let size =
            [8u64, 4, 2, 1].into_iter().find(|size| at.is_multiple_of(*size) && *size <= left).unwrap_or(1);
        pieces.push((at, size));
        at = at.wrapping_add(size);
        left -= size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding() {
        // Intel SDM vol. 3, DR7: R/W and LEN fields.
        for (condition, length, field) in [
            (Condition::Execute, 1, 0b0000),
            (Condition::Write, 1, 0b0001),
            (Condition::Write, 2, 0b0101),
            (Condition::Write, 4, 0b1101),
            (Condition::Write, 8, 0b1001),
            (Condition::Access, 1, 0b0011),
            (Condition::Access, 2, 0b0111),
            (Condition::Access, 4, 0b1111),
            (Condition::Access, 8, 0b1011),
        ] {
            for index in 0..COUNT {
                let mut armed = [None; COUNT];
                armed[index] = Some(Slot { address: 0x1000, condition, length });
                let encoded = dr7(&armed);
                assert_eq!(encoded, 0x600 | 2 << (2 * index) | field << (16 + 4 * index));
                assert_eq!(slots(encoded, [0x1000; COUNT]), armed);
            }
        }
        assert_eq!(dr7(&[None; COUNT]), 0x400);
    }

    #[test]
    fn local_enables_and_unaligned_addresses_of_a_guest() {
        let found = slots(0x000d_0001, [0x1003, 0, 0, 0]);
        assert_eq!(found[0], Some(Slot { address: 0x1000, condition: Condition::Write, length: 4 }));
        assert_eq!(found[1..], [None; 3]);
    }

    #[test]
    fn ranges_fall_into_aligned_pieces() {
        assert_eq!(pieces(0x1000, 8), [(0x1000, 8)]);
        assert_eq!(pieces(0x1001, 8), [(0x1001, 1), (0x1002, 2), (0x1004, 4), (0x1008, 1)]);
        assert_eq!(pieces(0x1000, 16), [(0x1000, 8), (0x1008, 8)]);
        assert_eq!(pieces(0x1000, 3), [(0x1000, 2), (0x1002, 1)]);
        assert!(pieces(0x1001, 1 << 40).len() > COUNT);
        assert_eq!(pieces(u64::MAX, 1), [(u64::MAX, 1)]);
        assert!(pieces(0, 0).is_empty());
    }

    #[test]
    fn dr6_names_the_registers() {
        assert_eq!(matches(DR6_FIXED | 0b1010).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(matches(DR6_BS).count(), 0);
    }
}
