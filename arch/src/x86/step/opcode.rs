//! The opcode of an instruction, as far as steps depend on it.
//!
//! Source: Intel SDM vol. 2, "Instruction Prefixes" and appendix "Opcode Map".

/// Width of instructions' operands and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 16-bit code.
    Code16,
    /// 32-bit code.
    Code32,
    /// 64-bit code.
    Code64,
}

/// The longest instruction, bytes.
const LONGEST: usize = 15;

/// An opcode behind its prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode {
    /// The opcode; of two bytes, the second one with 0x0f above it.
    pub number: u16,
    /// The byte behind it, if it is there.
    pub next: u8,
    /// Where that is, from the start of the instruction.
    pub length: usize,
    /// Bytes of an operand on the stack: 2, 4 or 8.
    pub stack_operand: u64,
    /// A prefix says that the operands have 64 bits.
    pub is_wide: bool,
    /// A prefix repeats a string instruction.
    pub repeats: bool,
    /// Bytes of an address in memory that an operand names: 2, or 4 or 8, which are named alike.
    address_size: u64,
    /// A prefix locks the bus, which instructions that write no memory may not have.
    pub is_locked: bool,
}

impl Opcode {
    /// Reads the start of `code`; `None` where it ends too soon.
    pub fn read(code: &[u8], bits: Bits) -> Option<Opcode> {
        let (mut operand_prefix, mut repeats, mut is_locked, mut is_wide) = (false, false, false, false);
        let (mut address_prefix, mut at) = (false, 0);
        let number = loop {
            let byte = *code.get(at).filter(|_| at < LONGEST)?;
            at += 1;
            match byte {
                // It counts only if the opcode is behind it.
                0x40..=0x4f if bits == Bits::Code64 => {
                    is_wide = byte & 8 != 0;
                    continue;
                }
                0x66 => operand_prefix = true,
                0xf2 | 0xf3 => repeats = true,
                0xf0 => is_locked = true,
                0x67 => address_prefix = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                0x0f => {
                    let second = *code.get(at)?;
                    at += 1;
                    break 0x0f00 | u16::from(second);
                }
                byte => break u16::from(byte),
            }
            is_wide = false;
        };
        let stack_operand = match (bits, operand_prefix) {
            (Bits::Code64, false) => 8,
            (Bits::Code64, true) if is_wide => 8,
            (Bits::Code32, false) | (Bits::Code16, true) => 4,
            _ => 2,
        };
        let address_size = match (bits, address_prefix) {
            (Bits::Code64, false) => 8,
            (Bits::Code64, true) | (Bits::Code32, false) | (Bits::Code16, true) => 4,
            _ => 2,
        };
        let next = code.get(at).copied().unwrap_or(0);
        Some(Opcode { number, next, length: at, stack_operand, is_wide, repeats, address_size, is_locked })
    }

    /// Bytes of the operand that a ModR/M byte behind the opcode names, that byte included; `code` is the whole
    /// instruction (Intel SDM vol. 2, tables 2-1 to 2-3). `None` where it ends too soon.
    pub fn operand_length(&self, code: &[u8]) -> Option<usize> {
        let modrm = *code.get(self.length)?;
        let (mode, register) = (modrm >> 6, modrm & 7);
        let has_index = self.address_size > 2 && mode != 3 && register == 4;
        let base = if has_index { code.get(self.length + 1)? & 7 } else { register };
        let displacement = match (mode, self.address_size) {
            (0, 2) if base == 6 => 2,
            (0, 4 | 8) if base == 5 => 4,
            (1, _) => 1,
            (2, 2) => 2,
            (2, _) => 4,
            _ => 0,
        };
        Some(1 + usize::from(has_index) + displacement)
    }

    /// The operation of an opcode that has several: bits 3 to 5 of its ModR/M byte.
    pub fn operation(&self) -> u8 {
        self.next >> 3 & 7
    }

    /// Whether it is a string instruction that reads or writes ports.
    pub fn is_string_io(&self) -> bool {
        matches!(self.number, 0x6c..=0x6f)
    }

    /// Whether it is a string instruction, which a prefix may repeat.
    pub fn is_string(&self) -> bool {
        self.is_string_io() || matches!(self.number, 0xa4..=0xa7 | 0xaa..=0xaf)
    }

    /// Whether the instruction can find out the time without leaving the guest: RDTSC, RDTSCP, RDMSR, RDPMC,
    /// IN and INS (of a timer that KVM has), and calls of KVM.
    pub fn reads_time(&self) -> bool {
        const VMCALL: u8 = 0xc1;
        const RDTSCP: u8 = 0xf9;
        /// AMD's VMCALL.
        const VMMCALL: u8 = 0xd9;
        match self.number {
            0x0f31..=0x0f33 | 0xe4 | 0xe5 | 0xec | 0xed | 0x6c | 0x6d => true,
            0x0f01 => matches!(self.next, VMCALL | RDTSCP | VMMCALL),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_of_time() {
        let reads = |code: &[u8]| Opcode::read(code, Bits::Code64).unwrap().reads_time();
        let readers: [&[u8]; 7] = [
            b"\x0f\x31",
            b"\x0f\x01\xf9",
            b"\x48\x0f\x32",
            b"\xe4\x40",
            b"\x66\xed",
            b"\xf3\x6c",
            b"\x0f\x01\xc1",
        ];
        assert!(readers.iter().all(|code| reads(code)));
        // WRMSR, OUT, LGDT, MOV, NOP.
        let others: [&[u8]; 5] = [b"\x0f\x30", b"\xe6\x40", b"\x0f\x01\x10", b"\x48\x8b\x00", b"\x90"];
        assert!(!others.iter().any(|code| reads(code)));
    }

    #[test]
    fn prefixes() {
        for (code, bits, expected) in [
            (&[0x9c][..], Bits::Code64, Some((0x9c, 8))),
            (&[0x66, 0x9c], Bits::Code64, Some((0x9c, 2))),
            (&[0x66, 0x48, 0x9c], Bits::Code64, Some((0x9c, 8))),
            (&[0x9c], Bits::Code32, Some((0x9c, 4))),
            (&[0x66, 0x9c], Bits::Code32, Some((0x9c, 2))),
            (&[0x9c], Bits::Code16, Some((0x9c, 2))),
            (&[0x66, 0x9c], Bits::Code16, Some((0x9c, 4))),
            // In 32-bit code 0x48 is DEC EAX.
            (&[0x48, 0x0f, 0x07], Bits::Code32, Some((0x48, 4))),
            (&[0x48, 0x0f, 0x07], Bits::Code64, Some((0x0f07, 8))),
            (&[], Bits::Code64, None),
            (&[0x66; 16], Bits::Code64, None),
            (&[0x0f], Bits::Code64, None),
        ] {
            let read = Opcode::read(code, bits).map(|opcode| (opcode.number, opcode.stack_operand));
            assert_eq!(read, expected, "{code:x?}");
        }
        let read = |code: &[u8]| Opcode::read(code, Bits::Code64).unwrap();
        assert!(read(&[0x48, 0x0f, 0x07]).is_wide && !read(&[0x0f, 0x07]).is_wide);
        // The second of two REX prefixes counts.
        assert!(!read(&[0x48, 0x40, 0x0f, 0x07]).is_wide && read(&[0x40, 0x48, 0x0f, 0x07]).is_wide);
        assert!(read(&[0xf0, 0x66, 0xf4]).is_locked && !read(&[0xf4]).is_locked);
        assert!(read(&[0xf3, 0x6e]).repeats && read(&[0xf3, 0x6e]).is_string_io());
        // One before another prefix does not.
        assert!(!read(&[0x48, 0x66, 0x0f, 0x07]).is_wide && read(&[0x66, 0x48, 0x0f, 0x07]).is_wide);
        assert_eq!((read(&[0xf7, 0xf1]).operation(), read(&[0xcd, 0x80]).next), (6, 0x80));
    }
}
