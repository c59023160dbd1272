//! Doing what an instruction does, without a processor, and where instructions lead.
//!
//! [`simulate`] knows common instructions that only touch general registers and flags; see
//! [`crate::x86::simulate`] for what it is for. [`flow`] tells where an instruction leads, for
//! running through a range instead of stepping it.
//!
//! Source: Arm ARM (DDI 0487), "A64 Base Instruction Descriptions", "Shared pseudocode:
//! AddWithCarry, ConditionHolds", and "Index by Encoding".

use super::exception_entry::pstate::{self, BTYPE, IL, NRW};

/// Rows of the register table; X0 to X30 come before them.
const SP: usize = 31;
const PC: usize = 32;
const PSTATE: usize = 33;

const N: u64 = 1 << 31;
const Z: u64 = 1 << 30;
const C: u64 = 1 << 29;
const V: u64 = 1 << 28;

/// Registers and what they have become, by rows of the register table.
pub type Changes = Vec<(usize, u64)>;

/// Bits `high` to `low` of an instruction.
const fn field(instruction: u32, high: u32, low: u32) -> u32 {
    instruction >> low & ((1 << (high - low + 1)) - 1)
}

/// A field as a signed number, times `scale`.
const fn signed(instruction: u32, high: u32, low: u32, scale: i64) -> i64 {
    let unused = 31 - high;
    let shifted = (instruction << unused).cast_signed() >> (unused + low);
    shifted as i64 * scale
}

/// Where an instruction leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next one.
    Next,
    /// To this address.
    Jump(u64),
    /// To this address, or to the next one.
    Branch(u64),
    /// Somewhere else: an address in a register, an exception.
    Elsewhere,
}

/// Where the instruction at `pc` leads. An exception that any instruction can take is not
/// meant.
pub fn flow(instruction: u32, pc: u64) -> Flow {
    let to = |distance: i64| pc.wrapping_add_signed(distance);
    match instruction {
        // B, BL
        _ if field(instruction, 30, 26) == 0b00101 => Flow::Jump(to(signed(instruction, 25, 0, 4))),
        // B.cond, BC.cond
        _ if field(instruction, 31, 24) == 0b0101_0100 => Flow::Branch(to(signed(instruction, 23, 5, 4))),
        // CBZ, CBNZ
        _ if field(instruction, 30, 25) == 0b01_1010 => Flow::Branch(to(signed(instruction, 23, 5, 4))),
        // TBZ, TBNZ
        _ if field(instruction, 30, 25) == 0b01_1011 => Flow::Branch(to(signed(instruction, 18, 5, 4))),
        // BR, BLR, RET, ERET and their kin; SVC, HVC, SMC, BRK, HLT and theirs.
        _ if field(instruction, 31, 25) == 0b110_1011 => Flow::Elsewhere,
        _ if field(instruction, 31, 24) == 0b1101_0100 => Flow::Elsewhere,
        // What is not allocated: UDF.
        _ if instruction >> 16 == 0 => Flow::Elsewhere,
        _ => Flow::Next,
    }
}

/// `ConditionHolds`.
fn holds(condition: u32, flags: u64) -> bool {
    let is_set = |flag: u64| flags & flag != 0;
    let result = match condition >> 1 {
        0 => is_set(Z),
        1 => is_set(C),
        2 => is_set(N),
        3 => is_set(V),
        4 => is_set(C) && !is_set(Z),
        5 => is_set(N) == is_set(V),
        6 => is_set(N) == is_set(V) && !is_set(Z),
        _ => return true,
    };
    result == (condition & 1 == 0)
}

/// Simulates the instruction at the program counter. `read` gives the value of a row. The
/// changes include PC. `None` for what is not known for certain.
pub fn simulate(instruction: u32, mut read: impl FnMut(usize) -> Option<u64>) -> Option<Changes> {
    let (pc, flags) = (read(PC)?, read(PSTATE)?);
    let is_landing_pad = instruction & !0xc0 == 0xd503_241f;
    if flags & (IL | NRW | pstate::SS) != 0 || flags & BTYPE != 0 && !is_landing_pad {
        return None;
    }
    let is_wide = instruction >> 31 != 0;
    let mask = if is_wide { u64::MAX } else { 0xffff_ffff };
    let (to, from) = (field(instruction, 4, 0), field(instruction, 9, 5));
    let mut next = pc.wrapping_add(4);
    let mut new_flags = flags & !BTYPE;
    let mut changes = Changes::new();
    // Register 31 is SP or zero, as the instruction has it.
    let mut get = |number: u32, is_sp: bool| match number {
        31 if is_sp => read(SP),
        31 => Some(0),
        number => read(number as usize),
    };
    let mut set = |number: u32, is_sp: bool, value: u64| match number {
        31 if is_sp => changes.push((SP, value & mask)),
        31 => {}
        number => changes.push((number as usize, value & mask)),
    };
    match instruction {
        // NOP, YIELD, CSDB and BTI, of the hints.
        0xd503_201f | 0xd503_203f | 0xd503_229f => {}
        _ if is_landing_pad => {}
        // ADD, SUB (immediate)
        _ if field(instruction, 28, 23) == 0b10_0010 => {
            let sets_flags = instruction >> 29 & 1 != 0;
            let immediate = u64::from(field(instruction, 21, 10)) << (12 * field(instruction, 22, 22));
            let is_sub = instruction >> 30 & 1 != 0;
            let (result, nzcv) = add(get(from, true)?, immediate, is_sub, mask);
            set(to, !sets_flags, result);
            if sets_flags {
                new_flags = new_flags & !pstate::NZCV | nzcv;
            }
        }
        // ADD, SUB (shifted register)
        _ if field(instruction, 28, 24) == 0b0_1011 && field(instruction, 21, 21) == 0 => {
            let operand = shifted(instruction, get(field(instruction, 20, 16), false)?, is_wide)?;
            let is_sub = instruction >> 30 & 1 != 0;
            let (result, nzcv) = add(get(from, false)?, operand, is_sub, mask);
            set(to, false, result);
            if instruction >> 29 & 1 != 0 {
                new_flags = new_flags & !pstate::NZCV | nzcv;
            }
        }
        // AND, ORR, EOR, ANDS and their inverted kin (shifted register); MOV is one of them.
        _ if field(instruction, 28, 24) == 0b0_1010 => {
            let mut operand = shifted(instruction, get(field(instruction, 20, 16), false)?, is_wide)?;
            if field(instruction, 21, 21) != 0 {
                operand = !operand;
            }
            let left = get(from, false)?;
            let result = mask
                & match field(instruction, 30, 29) {
                    0 | 3 => left & operand,
                    1 => left | operand,
                    _ => left ^ operand,
                };
            set(to, false, result);
            if field(instruction, 30, 29) == 3 {
                new_flags = new_flags & !pstate::NZCV | sign_and_zero(result, mask);
            }
        }
        // MOVN, MOVZ, MOVK
        _ if field(instruction, 28, 23) == 0b10_0101 => {
            let shift = 16 * field(instruction, 22, 21);
            if !is_wide && shift > 16 {
                return None;
            }
            let immediate = u64::from(field(instruction, 20, 5)) << shift;
            let value = match field(instruction, 30, 29) {
                0 => !immediate,
                2 => immediate,
                3 => get(to, false)? & !(0xffff << shift) | immediate,
                _ => return None,
            };
            set(to, false, value);
        }
        // ADR, ADRP
        _ if field(instruction, 28, 24) == 0b1_0000 => {
            let immediate = signed(instruction, 23, 5, 4) | i64::from(field(instruction, 30, 29));
            let value = match is_wide {
                true => (pc & !0xfff).wrapping_add_signed(immediate << 12),
                false => pc.wrapping_add_signed(immediate),
            };
            // The result is 64 bits wide for both.
            if to < 31 {
                changes.push((to as usize, value));
            }
        }
        // B, BL
        _ if field(instruction, 30, 26) == 0b00101 => {
            if is_wide {
                changes.push((30, next));
            }
            next = pc.wrapping_add_signed(signed(instruction, 25, 0, 4));
        }
        // B.cond
        _ if field(instruction, 31, 24) == 0b0101_0100 && field(instruction, 4, 4) == 0 => {
            if holds(field(instruction, 3, 0), flags) {
                next = pc.wrapping_add_signed(signed(instruction, 23, 5, 4));
            }
        }
        // CBZ, CBNZ
        _ if field(instruction, 30, 25) == 0b01_1010 => {
            let is_zero = get(to, false)? & mask == 0;
            if is_zero == (field(instruction, 24, 24) == 0) {
                next = pc.wrapping_add_signed(signed(instruction, 23, 5, 4));
            }
        }
        // TBZ, TBNZ
        _ if field(instruction, 30, 25) == 0b01_1011 => {
            let bit = field(instruction, 31, 31) << 5 | field(instruction, 23, 19);
            let is_set = get(to, false)? >> bit & 1 != 0;
            if is_set == (field(instruction, 24, 24) != 0) {
                next = pc.wrapping_add_signed(signed(instruction, 18, 5, 4));
            }
        }
        _ => return None,
    }
    changes.push((PC, next));
    if new_flags != flags {
        changes.push((PSTATE, new_flags));
    }
    Some(changes)
}

fn sign_and_zero(result: u64, mask: u64) -> u64 {
    let negative = if result & (mask ^ mask >> 1) != 0 { N } else { 0 };
    negative | if result == 0 { Z } else { 0 }
}

/// `AddWithCarry`: the result, and NZCV.
fn add(left: u64, right: u64, is_sub: bool, mask: u64) -> (u64, u64) {
    let (left, right) = (left & mask, if is_sub { !right } else { right } & mask);
    let wide = u128::from(left) + u128::from(right) + u128::from(is_sub);
    let result = left.wrapping_add(right).wrapping_add(u64::from(is_sub)) & mask;
    let carry = if wide > u128::from(mask) { C } else { 0 };
    let sign = mask ^ mask >> 1;
    let overflow = if (left ^ result) & (right ^ result) & sign != 0 { V } else { 0 };
    (result, sign_and_zero(result, mask) | carry | overflow)
}

/// The second operand of the shifted-register forms.
fn shifted(instruction: u32, value: u64, is_wide: bool) -> Option<u64> {
    let amount = field(instruction, 15, 10);
    if !is_wide && amount > 31 {
        return None;
    }
    let narrow = u32::try_from(value & 0xffff_ffff).ok()?;
    Some(match (field(instruction, 23, 22), is_wide) {
        (0, true) => value << amount,
        (0, false) => u64::from(narrow << amount),
        (1, true) => value >> amount,
        (1, false) => u64::from(narrow >> amount),
        (2, true) => (value.cast_signed() >> amount).cast_unsigned(),
        (2, false) => u64::from((narrow.cast_signed() >> amount).cast_unsigned()),
        (_, true) => value.rotate_right(amount),
        (_, false) => u64::from(narrow.rotate_right(amount)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xffff_8000_0000_1000;

    fn registers() -> [u64; 34] {
        let mut rows: [u64; 34] = std::array::from_fn(|number| number as u64 * 0x10);
        rows[PC] = AT;
        rows[PSTATE] = pstate::EL1H;
        rows
    }

    fn run(instruction: u32, change: impl FnOnce(&mut [u64; 34])) -> Option<[u64; 34]> {
        let mut rows = registers();
        change(&mut rows);
        let changes = simulate(instruction, |row| Some(rows[row]))?;
        changes.into_iter().for_each(|(row, value)| rows[row] = value);
        Some(rows)
    }

    fn result(instruction: u32, row: usize) -> u64 {
        run(instruction, |_| {}).unwrap_or_else(|| panic!("{instruction:#x} is not simulated"))[row]
    }

    #[test]
    fn registers_and_flags() {
        let nzcv = |instruction, change: fn(&mut [u64; 34])| {
            run(instruction, change).unwrap()[PSTATE] & pstate::NZCV
        };
        assert_eq!(result(0x9100_0400, 0), 1); // add x0, x0, #1
        assert_eq!(result(0xd101_03ff, SP), 31 * 0x10 - 0x40); // sub sp, sp, #0x40
        assert_eq!(result(0x9100_03fd, 29), 31 * 0x10); // mov x29, sp
        assert_eq!(result(0x9140_0420, 0), 0x1010); // add x0, x1, #1, lsl #12
        assert_eq!(result(0xaa02_03e1, 1), 0x20); // mov x1, x2
        assert_eq!(result(0x2a22_03e1, 1), 0xffff_ffdf); // mvn w1, w2
        assert_eq!(result(0x8b02_0c20, 0), 0x10 + 0x100); // add x0, x1, x2, lsl #3
        assert_eq!(result(0x4b01_0040, 0), 0x10); // sub w0, w2, w1
        assert_eq!(result(0xca81_0820, 0), 0x10 ^ 0x4); // eor x0, x1, x1, asr #2
        assert_eq!(result(0xd2a0_0020, 0), 0x1_0000); // movz x0, #1, lsl #16
        assert_eq!(result(0x1280_0000, 0), 0xffff_ffff); // movn w0, #0
        assert_eq!(result(0xf2c0_0021, 1), 0x1_0000_0010); // movk x1, #1, lsl #32
        assert_eq!(nzcv(0xf100_043f, |_| {}), C); // cmp x1, #1
        assert_eq!(nzcv(0xf100_043f, |rows| rows[1] = 1), Z | C);
        assert_eq!(nzcv(0xf100_043f, |rows| rows[1] = 0), N);
        assert_eq!(nzcv(0xf100_043f, |rows| rows[1] = 1 << 63), C | V);
        assert_eq!(nzcv(0x3100_0400, |rows| rows[0] = 0x7fff_ffff), N | V); // adds w0, w0, #1
        assert_eq!(nzcv(0xea00_001f, |rows| rows[0] = 0), Z); // tst x0, x0
    }

    #[test]
    fn addresses_and_branches() {
        assert_eq!(result(0x1000_0040, 0), AT + 8); // adr x0, .+8
        assert_eq!(result(0x70ff_ffe0, 0), AT - 1); // adr x0, .-1
        assert_eq!(result(0xb000_0000, 0), AT + 0x1000); // adrp x0, .+0x1000
        assert_eq!(result(0x17ff_ffff, PC), AT - 4); // b .-4
        assert_eq!((result(0x9400_0002, PC), result(0x9400_0002, 30)), (AT + 8, AT + 4)); // bl .+8
        for (instruction, flags, taken) in [
            (0x5400_0040, Z, true), // b.eq .+8
            (0x5400_0040, 0, false),
            (0x5400_0041, 0, true), // b.ne
            (0x5400_004b, N, true), // b.lt
            (0x5400_004b, N | V, false),
            (0x5400_004c, 0, true), // b.gt
            (0x5400_0048, C, true), // b.hi
            (0x5400_0048, C | Z, false),
            (0x5400_004e, 0, true), // b.al
        ] {
            let pc = run(instruction, |rows| rows[PSTATE] |= flags).unwrap()[PC];
            assert_eq!(pc, if taken { AT + 8 } else { AT + 4 }, "{instruction:#x} {flags:#x}");
        }
        assert_eq!((result(0xb400_0041, PC), result(0xb500_0041, PC)), (AT + 4, AT + 8)); // cbz, cbnz x1
        assert_eq!((result(0x3620_0041, PC), result(0x3720_0041, PC)), (AT + 4, AT + 8)); // tbz, tbnz w1, #4
    }

    #[test]
    fn hints_and_what_is_left_to_the_processor() {
        assert_eq!(result(0xd503_201f, PC), AT + 4);
        let landed = run(0xd503_245f, |rows| rows[PSTATE] |= BTYPE).unwrap(); // bti c
        assert_eq!((landed[PC], landed[PSTATE]), (AT + 4, pstate::EL1H));
        assert_eq!(run(0xd503_201f, |rows| rows[PSTATE] |= BTYPE), None);
        assert_eq!(run(0xd503_201f, |rows| rows[PSTATE] |= pstate::SS), None);
        for instruction in [
            0xd503_233f,              // paciasp
            0xd503_207f,              // wfi
            0xf940_0000,              // ldr x0, [x0]
            0xa9bf_7bfd,              // stp x29, x30, [sp, #-16]!
            0xd65f_03c0,              // ret
            0xd400_0001,              // svc #0
            0xd53b_4220,              // mrs x0, daif
            0,                        // udf #0
            0x5280_0000 | 0b10 << 21, // movz w0, #0, lsl #32
        ] {
            assert_eq!(run(instruction, |_| {}), None, "{instruction:#x}");
        }
    }

    #[test]
    fn where_instructions_lead() {
        for (instruction, expected) in [
            (0xd503_201f, Flow::Next),
            (0x9100_0400, Flow::Next),
            (0x17ff_ffff, Flow::Jump(AT - 4)),
            (0x9400_0002, Flow::Jump(AT + 8)),
            (0x54ff_ffe1, Flow::Branch(AT - 4)),
            (0xb500_0041, Flow::Branch(AT + 8)),
            (0x3707_ffe1, Flow::Branch(AT - 4)),
            (0xd65f_03c0, Flow::Elsewhere), // ret
            (0xd61f_0200, Flow::Elsewhere), // br x16
            (0xd69f_03e0, Flow::Elsewhere), // eret
            (0xd400_0001, Flow::Elsewhere), // svc
            (0xd420_0000, Flow::Elsewhere), // brk
            (0x0000_0000, Flow::Elsewhere), // udf
        ] {
            assert_eq!(flow(instruction, AT), expected, "{instruction:#x}");
        }
    }
}
