//! Doing what an instruction does, without a processor: the common instructions that only touch
//! general registers and flags.
//!
//! A breakpoint whose condition is false must get its vCPU past the instruction that it
//! replaced. The general way is a step of that instruction with all other vCPUs kept out of the
//! guest; for what is simulated here, none of that is needed. What is not known for certain is
//! not simulated: the answer is then `None`, and the instruction is stepped.
//!
//! Source: Intel SDM vol. 2, "Instruction Format" and the pages of the instructions; vol. 1,
//! "EFLAGS Register".

use crate::bytes::{u32_at, u64_at};

/// Rows of the register table, by the number that instructions have for a register.
const ROWS: [usize; 16] = [0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
/// Rows of RIP and RFLAGS.
const RIP: usize = 16;
const RFLAGS: usize = 17;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const TF: u64 = 1 << 8;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// How code is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 32-bit code, in segments that start at 0.
    Code32,
    /// 64-bit code.
    Code64,
}

/// Registers and what they have become, by rows of the register table.
pub type Changes = Vec<(usize, u64)>;

/// Simulates the instruction at the start of `code`, at the program counter. `read` gives the
/// value of a row. The changes include RIP.
pub fn simulate(code: &[u8], bits: Bits, mut read: impl FnMut(usize) -> Option<u64>) -> Option<Changes> {
    let (pc, flags) = (read(RIP)?, read(RFLAGS)?);
    // A step of the guest's own ends behind the instruction, which takes a processor.
    if flags & TF != 0 {
        return None;
    }
    let mut simulator = Simulator { code, at: 0, bits, rex: 0, flags, changes: Vec::new(), read };
    let target = simulator.instruction(pc)?;
    let Simulator { at, flags: new_flags, mut changes, .. } = simulator;
    let next = match target {
        Flow::Next => pc.wrapping_add(at as u64),
        Flow::Jump(distance) => pc.wrapping_add(at as u64).wrapping_add_signed(distance),
    };
    changes.push((RIP, if bits == Bits::Code32 { next & 0xffff_ffff } else { next }));
    if new_flags != flags {
        changes.push((RFLAGS, new_flags));
    }
    Some(changes)
}

enum Flow {
    Next,
    /// From the end of the instruction.
    Jump(i64),
}

struct Simulator<'a, R> {
    code: &'a [u8],
    at: usize,
    bits: Bits,
    rex: u8,
    flags: u64,
    changes: Changes,
    read: R,
}

/// The operation that a group of opcodes shares (Intel SDM vol. 2, "Opcode Extensions for One-
/// and Two-byte Opcodes by Group Number", group 1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Or,
    And,
    Sub,
    Xor,
    Compare,
    Test,
    Move,
}

impl Operation {
    fn of_group_1(number: u8) -> Option<Operation> {
        Some(match number {
            0 => Operation::Add,
            1 => Operation::Or,
            4 => Operation::And,
            5 => Operation::Sub,
            6 => Operation::Xor,
            7 => Operation::Compare,
            _ => return None,
        })
    }
}

impl<R: FnMut(usize) -> Option<u64>> Simulator<'_, R> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.code.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn signed_8(&mut self) -> Option<i64> {
        Some(i64::from(self.byte()?.cast_signed()))
    }

    fn signed_32(&mut self) -> Option<i64> {
        let value = u32_at(self.code, self.at)?;
        self.at += 4;
        Some(i64::from(value.cast_signed()))
    }

    fn is_wide(&self) -> bool {
        self.rex & 8 != 0
    }

    /// All ones as wide as the operands.
    fn mask(&self) -> u64 {
        if self.is_wide() { u64::MAX } else { 0xffff_ffff }
    }

    fn get(&mut self, number: u8) -> Option<u64> {
        Some((self.read)(ROWS[usize::from(number)])? & self.mask())
    }

    /// A 32-bit result clears the upper half; in 32-bit code there is none that anyone sees.
    fn set(&mut self, number: u8, value: u64) {
        self.changes.push((ROWS[usize::from(number)], value & self.mask()));
    }

    fn instruction(&mut self, pc: u64) -> Option<Flow> {
        if self.is_nop()? {
            return Some(Flow::Next);
        }
        let mut opcode = self.byte()?;
        if self.bits == Bits::Code64 && opcode & 0xf0 == 0x40 {
            self.rex = opcode;
            opcode = self.byte()?;
        }
        let short = opcode & 7 | (self.rex & 1) << 3;
        match opcode {
            0x01 => self.two_registers(Operation::Add),
            0x09 => self.two_registers(Operation::Or),
            0x21 => self.two_registers(Operation::And),
            0x29 => self.two_registers(Operation::Sub),
            0x31 => self.two_registers(Operation::Xor),
            0x39 => self.two_registers(Operation::Compare),
            0x85 => self.two_registers(Operation::Test),
            0x89 => self.two_registers(Operation::Move),
            0x40..=0x4f => {
                let register = opcode & 7;
                self.count(register, opcode < 0x48)
            }
            0x70..=0x7f => {
                let distance = self.signed_8()?;
                Some(self.jump_if(opcode & 0xf, distance))
            }
            0x81 | 0x83 => {
                let (number, register) = self.register_operand()?;
                let operation = Operation::of_group_1(number)?;
                let immediate = if opcode == 0x83 { self.signed_8()? } else { self.signed_32()? };
                let left = self.get(register)?;
                let right = immediate.cast_unsigned() & self.mask();
                self.operate(operation, register, left, right);
                Some(Flow::Next)
            }
            0x8d => self.load_address(pc),
            0xb8..=0xbf => {
                let value = match self.is_wide() {
                    true => {
                        let value = u64_at(self.code, self.at)?;
                        self.at += 8;
                        value
                    }
                    false => self.signed_32()?.cast_unsigned(),
                };
                self.set(short, value);
                Some(Flow::Next)
            }
            0xc7 => {
                let (0, register) = self.register_operand()? else { return None };
                let value = self.signed_32()?.cast_unsigned();
                self.set(register, value);
                Some(Flow::Next)
            }
            0xe9 => Some(Flow::Jump(self.signed_32()?)),
            0xeb => Some(Flow::Jump(self.signed_8()?)),
            0xff => match self.register_operand()? {
                (0, register) => self.count(register, true),
                (1, register) => self.count(register, false),
                _ => None,
            },
            0x0f => match self.byte()? {
                opcode @ 0x80..=0x8f => {
                    let distance = self.signed_32()?;
                    Some(self.jump_if(opcode & 0xf, distance))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Goes over NOP in its forms, and ENDBR, which is one where no indirect branch is tracked;
    /// where one is, the processor has done its check when the breakpoint was hit.
    fn is_nop(&mut self) -> Option<bool> {
        let prefixes = self.code.iter().take_while(|byte| matches!(byte, 0x66 | 0x2e)).count();
        match self.code.get(prefixes..)? {
            [0x90, ..] => self.at = prefixes + 1,
            [0x0f, 0x1f, ..] => {
                self.at = prefixes + 2;
                self.skip_operand()?;
            }
            [0xf3, 0x0f, 0x1e, 0xfa | 0xfb, ..] if prefixes == 0 => self.at = 4,
            // What has an operand-size prefix otherwise is not for us.
            _ if prefixes > 0 => return None,
            _ => return Some(false),
        }
        (self.at <= self.code.len()).then_some(true)
    }

    /// Goes over a ModRM byte with all that belongs to it.
    fn skip_operand(&mut self) -> Option<()> {
        let modrm = self.byte()?;
        let (mode, base) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return Some(());
        }
        let base = if base == 4 { self.byte()? & 7 } else { base };
        self.at += match (mode, base) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        };
        Some(())
    }

    /// A ModRM byte whose operand is a register: the middle field, and the register.
    fn register_operand(&mut self) -> Option<(u8, u8)> {
        let modrm = self.byte()?;
        (modrm >> 6 == 3).then_some((modrm >> 3 & 7, modrm & 7 | (self.rex & 1) << 3))
    }

    fn two_registers(&mut self, operation: Operation) -> Option<Flow> {
        let (middle, register) = self.register_operand()?;
        let (left, right) = (self.get(register)?, self.get(middle | (self.rex & 4) << 1)?);
        self.operate(operation, register, left, right);
        Some(Flow::Next)
    }

    fn operate(&mut self, operation: Operation, register: u8, left: u64, right: u64) {
        let mask = self.mask();
        let sign = mask ^ mask >> 1;
        let (result, carry, overflow) = match operation {
            Operation::Move => {
                self.set(register, right);
                return;
            }
            Operation::Add => {
                let result = left.wrapping_add(right) & mask;
                (result, result < left, (left ^ result) & (right ^ result) & sign != 0)
            }
            Operation::Sub | Operation::Compare => {
                let result = left.wrapping_sub(right) & mask;
                (result, left < right, (left ^ right) & (left ^ result) & sign != 0)
            }
            Operation::Or => (left | right, false, false),
            Operation::And | Operation::Test => (left & right, false, false),
            Operation::Xor => (left ^ right, false, false),
        };
        let is_logical = !matches!(operation, Operation::Add | Operation::Sub | Operation::Compare);
        // Logical operations leave AF undefined; processors clear it.
        let half = !is_logical && (left ^ right ^ result) & AF != 0;
        self.flags = self.flags & !ARITHMETIC | result_flags(result, sign);
        for (flag, is_set) in [(CF, carry), (OF, overflow), (AF, half)] {
            self.flags |= if is_set { flag } else { 0 };
        }
        if !matches!(operation, Operation::Compare | Operation::Test) {
            self.set(register, result);
        }
    }

    /// INC and DEC, which leave CF alone.
    fn count(&mut self, register: u8, is_up: bool) -> Option<Flow> {
        let carry = self.flags & CF;
        let value = self.get(register)?;
        self.operate(if is_up { Operation::Add } else { Operation::Sub }, register, value, 1);
        self.flags = self.flags & !CF | carry;
        Some(Flow::Next)
    }

    /// LEA.
    fn load_address(&mut self, pc: u64) -> Option<Flow> {
        let modrm = self.byte()?;
        let (mode, to, base) = (modrm >> 6, modrm >> 3 & 7 | (self.rex & 4) << 1, modrm & 7);
        if mode == 3 {
            return None;
        }
        let read = |simulator: &mut Self, number: u8| (simulator.read)(ROWS[usize::from(number)]);
        let mut address = 0u64;
        let mut has_base = true;
        if base == 4 {
            let sib = self.byte()?;
            let (scale, index, base) = (sib >> 6, sib >> 3 & 7 | (self.rex & 2) << 2, sib & 7);
            if index != 4 {
                address = read(self, index)? << scale;
            }
            has_base = !(mode == 0 && base == 5);
            if has_base {
                address = address.wrapping_add(read(self, base | (self.rex & 1) << 3)?);
            }
        } else if mode == 0 && base == 5 {
            has_base = false;
            if self.bits == Bits::Code64 {
                // Relative to the next instruction; nothing comes behind the displacement.
                address = pc.wrapping_add(self.at as u64 + 4);
            }
        } else {
            address = read(self, base | (self.rex & 1) << 3)?;
        }
        let displacement = match mode {
            1 => self.signed_8()?,
            2 => self.signed_32()?,
            _ if !has_base => self.signed_32()?,
            _ => 0,
        };
        self.set(to, address.wrapping_add_signed(displacement));
        Some(Flow::Next)
    }

    /// `Jcc` (Intel SDM vol. 1, "EFLAGS Condition Codes").
    fn jump_if(&self, condition: u8, distance: i64) -> Flow {
        let is_set = |flag: u64| self.flags & flag != 0;
        let holds = match condition >> 1 {
            0 => is_set(OF),
            1 => is_set(CF),
            2 => is_set(ZF),
            3 => is_set(CF | ZF),
            4 => is_set(SF),
            5 => is_set(PF),
            6 => is_set(SF) != is_set(OF),
            _ => is_set(ZF) || is_set(SF) != is_set(OF),
        };
        if holds == (condition & 1 == 0) { Flow::Jump(distance) } else { Flow::Next }
    }
}

fn result_flags(result: u64, sign: u64) -> u64 {
    let parity = if (result & 0xff).count_ones().is_multiple_of(2) { PF } else { 0 };
    let zero = if result == 0 { ZF } else { 0 };
    let negative = if result & sign != 0 { SF } else { 0 };
    parity | zero | negative
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RAX to RDI as 1, 2, 3 ... in the order of instructions' numbers, times 0x10.
    fn registers() -> [u64; 18] {
        let mut rows = [0; 18];
        for (number, row) in ROWS.into_iter().enumerate() {
            rows[row] = (number as u64 + 1) * 0x10;
        }
        rows[RIP] = 0x1000;
        rows[RFLAGS] = 2;
        rows
    }

    fn run(code: &[u8], bits: Bits, rows: [u64; 18]) -> Option<[u64; 18]> {
        let changes = simulate(code, bits, |row| Some(rows[row]))?;
        let mut rows = rows;
        changes.into_iter().for_each(|(row, value)| rows[row] = value);
        Some(rows)
    }

    /// The result of a register, RIP and RFLAGS.
    fn result(code: &[u8], number: usize, change: impl FnOnce(&mut [u64; 18])) -> (u64, u64, u64) {
        let mut rows = registers();
        change(&mut rows);
        let rows = run(code, Bits::Code64, rows).unwrap_or_else(|| panic!("{code:x?} is not simulated"));
        (rows[ROWS[number]], rows[RIP], rows[RFLAGS] & !2)
    }

    #[test]
    fn nops_do_nothing_but_end() {
        for code in [
            &[0x90][..],
            &[0x66, 0x90],
            &[0xf3, 0x0f, 0x1e, 0xfa],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        ] {
            let mut expected = registers();
            expected[RIP] += code.len() as u64;
            assert_eq!(run(code, Bits::Code64, registers()), Some(expected), "{code:x?}");
            for cut in 0..code.len() {
                // What is cut short may be another instruction, but none that is longer.
                let end = run(&code[..cut], Bits::Code64, registers()).map(|rows| rows[RIP] - 0x1000);
                assert!(end.is_none_or(|end| end <= cut as u64), "{:x?}", &code[..cut]);
            }
        }
    }

    #[test]
    fn arithmetic_and_flags() {
        let none = |_: &mut [u64; 18]| {};
        let rax = |value: u64| move |rows: &mut [u64; 18]| rows[0] = value;
        // add eax, 1
        assert_eq!(result(&[0x83, 0xc0, 1], 0, none), (0x11, 0x1003, PF));
        assert_eq!(result(&[0x83, 0xc0, 1], 0, rax(0xffff_ffff)), (0, 0x1003, CF | ZF | PF | AF));
        assert_eq!(result(&[0x83, 0xc0, 1], 0, rax(0x7fff_ffff)), (0x8000_0000, 0x1003, OF | SF | PF | AF));
        // add rax, 1
        assert_eq!(result(&[0x48, 0x83, 0xc0, 1], 0, rax(0xffff_ffff)), (1 << 32, 0x1004, PF | AF));
        // sub rsp, 0x28
        assert_eq!(result(&[0x48, 0x83, 0xec, 0x28], 4, none), (0x28, 0x1004, PF | AF));
        // cmp eax, ecx; test r8, r8; xor edx, edx
        assert_eq!(result(&[0x39, 0xc8], 0, none), (0x10, 0x1002, CF | SF | PF));
        assert_eq!(result(&[0x4d, 0x85, 0xc0], 8, none), (0x90, 0x1003, PF));
        assert_eq!(result(&[0x31, 0xd2], 2, none), (0, 0x1002, ZF | PF));
        // and eax, imm32; inc and dec keep the carry
        assert_eq!(result(&[0x81, 0xe0, 0, 0, 0, 0x80], 0, rax(u64::MAX)), (0x8000_0000, 0x1006, SF | PF));
        let carry = |rows: &mut [u64; 18]| rows[RFLAGS] |= CF;
        assert_eq!(result(&[0xff, 0xc1], 1, carry), (0x21, 0x1002, CF | PF));
        assert_eq!(result(&[0x49, 0xff, 0xc9], 9, carry), (0x9f, 0x1003, CF | PF | AF));
    }

    #[test]
    fn moves_and_addresses() {
        let none = |_: &mut [u64; 18]| {};
        assert_eq!(result(&[0x48, 0x89, 0xe5], 5, none).0, 0x50);
        assert_eq!(result(&[0x41, 0x89, 0xf8], 8, none).0, 0x80);
        assert_eq!(result(&[0xb9, 0xff, 0xff, 0xff, 0xff], 1, none).0, 0xffff_ffff);
        assert_eq!(result(&[0x48, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0x80], 0, none).0, 0x8000_0000_0000_0001);
        assert_eq!(result(&[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff], 0, none).0, u64::MAX);
        // lea rax, [rip + 0x10]; [rdi + rsi*4 + 8]; [rsp + 0x20]; [r12*8 - 1]
        assert_eq!(result(&[0x48, 0x8d, 0x05, 0x10, 0, 0, 0], 0, none).0, 0x1017);
        assert_eq!(result(&[0x48, 0x8d, 0x44, 0xb7, 8], 0, none).0, 0x80 + 0x70 * 4 + 8);
        assert_eq!(result(&[0x48, 0x8d, 0x44, 0x24, 0x20], 0, none).0, 0x70);
        assert_eq!(result(&[0x4a, 0x8d, 0x04, 0xe5, 0xff, 0xff, 0xff, 0xff], 0, none).0, 0xd0 * 8 - 1);
    }

    #[test]
    fn jumps() {
        let flags = |flags: u64| move |rows: &mut [u64; 18]| rows[RFLAGS] |= flags;
        let target = |code: &[u8], with: u64| result(code, 0, flags(with)).1;
        assert_eq!(target(&[0xeb, 0xfe], 0), 0x1000);
        assert_eq!(target(&[0xe9, 0, 1, 0, 0], 0), 0x1105);
        assert_eq!((target(&[0x74, 0x10], ZF), target(&[0x74, 0x10], 0)), (0x1012, 0x1002));
        assert_eq!((target(&[0x75, 0x10], ZF), target(&[0x75, 0x10], 0)), (0x1002, 0x1012));
        assert_eq!((target(&[0x7c, 0x10], SF), target(&[0x7c, 0x10], SF | OF)), (0x1012, 0x1002));
        assert_eq!((target(&[0x7f, 0x10], 0), target(&[0x7f, 0x10], ZF)), (0x1012, 0x1002));
        assert_eq!(target(&[0x0f, 0x87, 0, 0, 0, 0x80], 0), 0x1006u64.wrapping_sub(1 << 31));
        let loop_32 = run(&[0xeb, 0xfb], Bits::Code32, registers()).map(|rows| rows[RIP]);
        assert_eq!(loop_32, Some(0xffd));
    }

    #[test]
    fn the_rest_is_left_to_the_processor() {
        for code in [
            &[][..],
            &[0x55],                   // push rbp
            &[0x89, 0x03],             // mov [rbx], eax
            &[0x66, 0x83, 0xc0, 1],    // add ax, 1
            &[0x83, 0xd0, 1],          // adc eax, 1
            &[0xe8, 0, 0, 0, 0],       // call
            &[0xc3],                   // ret
            &[0xcc],                   // int3
            &[0x65, 0x48, 0x8b, 0x04], // gs: ...
            &[0x83, 0xc0],             // cut short
            &[0xf0, 0x01, 0xc0],       // lock
        ] {
            assert_eq!(run(code, Bits::Code64, registers()), None, "{code:x?}");
        }
        // inc eax in 32-bit code is a prefix in 64-bit code.
        assert_eq!(run(&[0x40], Bits::Code32, registers()).map(|rows| rows[0]), Some(0x11));
        assert_eq!(run(&[0x40], Bits::Code64, registers()), None);
        let mut stepping = registers();
        stepping[RFLAGS] |= TF;
        assert_eq!(run(&[0x90], Bits::Code64, stepping), None);
    }
}
