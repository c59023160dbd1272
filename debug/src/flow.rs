//! Where an instruction leads: to the next one, somewhere that it names, into a function and back, or out of one.
//!
//! Source: Intel SDM vol. 2 by way of yaxpeax-x86; Arm ARM (DDI 0487), "Branches, Exception Generating and System
//! instructions", by way of [`arch::aarch64::simulate::flow`].

use crate::disassemble::OperatingMode;
use arch::Isa;
use arch::aarch64::simulate;
#[cfg(feature = "disassembly")]
use yaxpeax_arch::{Decoder, LengthedInstruction, U8Reader};

/// Where an instruction leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next one.
    Next,
    /// To this address.
    Jump(u64),
    /// To this address, or to the next one.
    Branch(u64),
    /// Into a function at this address, if it names one, that comes back to the next instruction.
    Call(Option<u64>),
    /// Into whatever serves exceptions (`SYSCALL`, `INT n`, `SVC`), which comes back to the next instruction.
    Service,
    /// Out of a function, to the address that its caller has left.
    Return,
    /// Out of an exception's handler.
    ExceptionReturn,
    /// Somewhere else: an address in a register, an exception.
    Elsewhere,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its length, bytes.
    pub length: u64,
    /// Where it leads.
    pub flow: Flow,
}

/// The instruction at the start of `bytes`, which stand at `at`. `None` when it is not understood.
pub fn instruction(isa: Isa, mode: OperatingMode, bytes: &[u8], at: u64) -> Option<Instruction> {
    match isa {
        Isa::Aarch64 => {
            let word = arch::bytes::u32_at(bytes, 0)?;
            Some(Instruction { length: 4, flow: aarch64(word, at) })
        }
        Isa::X86_64 => x86(mode, bytes, at),
    }
}

fn aarch64(word: u32, at: u64) -> Flow {
    /// `BL`: bit 31 tells it from `B`.
    const LINK: u32 = 1 << 31;
    /// Unconditional branches to registers: bits 31 to 25.
    const BY_REGISTER: u32 = 0b110_1011;
    /// Exceptions that are raised: bits 31 to 24.
    const EXCEPTION: u32 = 0b1101_0100;
    match simulate::flow(word, at) {
        simulate::Flow::Next => Flow::Next,
        simulate::Flow::Jump(to) if word & LINK != 0 => Flow::Call(Some(to)),
        simulate::Flow::Jump(to) => Flow::Jump(to),
        simulate::Flow::Branch(to) => Flow::Branch(to),
        // `opc`, bits 24 to 21; bit 24 is set of those that authenticate with a modifier.
        simulate::Flow::Elsewhere if word >> 25 == BY_REGISTER => match word >> 21 & 0b0111 {
            1 => Flow::Call(None),
            2 => Flow::Return,
            4 => Flow::ExceptionReturn,
            _ => Flow::Elsewhere,
        },
        // `opc` 000: SVC, HVC, SMC.
        simulate::Flow::Elsewhere if word >> 21 == EXCEPTION << 3 => Flow::Service,
        simulate::Flow::Elsewhere => Flow::Elsewhere,
    }
}

#[cfg(not(feature = "disassembly"))]
fn x86(mode: OperatingMode, bytes: &[u8], at: u64) -> Option<Instruction> {
    x86_by_opcode(mode, bytes, at)
}

/// What leads into a function and out of one, which is all that a step over one or out of one cannot do without; the
/// others are not understood. Source: Intel SDM vol. 2, appendix "Opcode Map".
#[cfg(any(test, not(feature = "disassembly")))]
fn x86_by_opcode(mode: OperatingMode, bytes: &[u8], at: u64) -> Option<Instruction> {
    use arch::x86::step::opcode::{Bits, Opcode};
    const CALL: u16 = 0xe8;
    const CALL_FAR: u16 = 0x9a;
    const GROUP_5: u16 = 0xff;
    let bits = match mode {
        OperatingMode::Bits64 => Bits::Code64,
        OperatingMode::Protected32 => Bits::Code32,
        OperatingMode::Real16 => Bits::Code16,
    };
    let opcode = Opcode::read(bytes, bits)?;
    // A prefix makes near calls of 64-bit code no shorter (on Intel's processors).
    let operand = if bits == Bits::Code64 { 4 } else { usize::try_from(opcode.stack_operand).ok()? };
    let (flow, rest) = match opcode.number {
        CALL => {
            let operand = bytes.get(opcode.length..opcode.length + operand)?;
            let distance = match *operand {
                [a, b] => i64::from(i16::from_le_bytes([a, b])),
                [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
                _ => return None,
            };
            let behind = at.wrapping_add((opcode.length + operand.len()) as u64);
            let to = behind.wrapping_add_signed(distance);
            let to = if bits == Bits::Code64 { to } else { to & 0xffff_ffff };
            (Flow::Call(Some(to)), operand.len())
        }
        CALL_FAR if bits != Bits::Code64 => (Flow::Call(None), operand + 2),
        // Near, and far.
        GROUP_5 if matches!(opcode.operation(), 2 | 3) => (Flow::Call(None), opcode.operand_length(bytes)?),
        // SYSCALL, INT n, INTO.
        0x0f05 => (Flow::Service, 0),
        0xcd => (Flow::Service, 1),
        0xce if bits != Bits::Code64 => (Flow::Service, 0),
        0xc3 | 0xcb => (Flow::Return, 0),
        0xc2 | 0xca => (Flow::Return, 2),
        // IRET, SYSRET, SYSEXIT.
        0xcf | 0x0f07 | 0x0f35 => (Flow::ExceptionReturn, 0),
        _ => return None,
    };
    let length = opcode.length + rest;
    (length <= bytes.len()).then_some(Instruction { length: length as u64, flow })
}

#[cfg(feature = "disassembly")]
fn x86(mode: OperatingMode, bytes: &[u8], at: u64) -> Option<Instruction> {
    let mut reader = U8Reader::new(bytes);
    // The decoders have types of their own with the same shape.
    macro_rules! decode {
        ($module:ident, $jump_if_zero:ident, $wrap:expr) => {{
            use yaxpeax_x86::$module::{InstDecoder, Opcode, Operand};
            let instruction = InstDecoder::default().decode(&mut reader).ok()?;
            let length = usize::try_from(instruction.len().to_const()).ok()?;
            let distance = match instruction.operand(0) {
                Operand::ImmediateI8 { imm } => Some(i64::from(imm)),
                Operand::ImmediateI16 { imm } => Some(i64::from(imm)),
                Operand::ImmediateI32 { imm } => Some(i64::from(imm)),
                _ => None,
            };
            let target =
                distance.map(|distance| $wrap(at.wrapping_add(length as u64).wrapping_add_signed(distance)));
            let flow = match instruction.opcode() {
                Opcode::JMP => target.map_or(Flow::Elsewhere, Flow::Jump),
                Opcode::CALL => Flow::Call(target),
                Opcode::CALLF => Flow::Call(None),
                Opcode::JO | Opcode::JNO | Opcode::JB | Opcode::JNB | Opcode::JZ | Opcode::JNZ => {
                    Flow::Branch(target?)
                }
                Opcode::JNA | Opcode::JA | Opcode::JS | Opcode::JNS | Opcode::JP | Opcode::JNP => {
                    Flow::Branch(target?)
                }
                Opcode::JL | Opcode::JGE | Opcode::JLE | Opcode::JG => Flow::Branch(target?),
                Opcode::LOOP | Opcode::LOOPZ | Opcode::LOOPNZ | Opcode::$jump_if_zero => {
                    Flow::Branch(target?)
                }
                Opcode::RETURN | Opcode::RETF => Flow::Return,
                Opcode::IRET | Opcode::IRETD | Opcode::IRETQ => Flow::ExceptionReturn,
                Opcode::SYSRET | Opcode::SYSEXIT => Flow::ExceptionReturn,
                Opcode::INTO | Opcode::SYSCALL => Flow::Service,
                Opcode::INT if bytes.get(length.wrapping_sub(2)) == Some(&0xcd) => Flow::Service,
                // `INT3`, which a debugger plants and is not the guest's, and `INT1`.
                Opcode::INT => Flow::Elsewhere,
                Opcode::JMPF | Opcode::UD0 | Opcode::UD1 | Opcode::UD2 | Opcode::SYSENTER => Flow::Elsewhere,
                Opcode::HLT | Opcode::MONITOR | Opcode::MWAIT | Opcode::RSM | Opcode::XBEGIN => {
                    Flow::Elsewhere
                }
                Opcode::VMLAUNCH | Opcode::VMRESUME | Opcode::VMRUN | Opcode::VMCALL | Opcode::VMMCALL => {
                    Flow::Elsewhere
                }
                _ => Flow::Next,
            };
            Some(Instruction { length: length as u64, flow })
        }};
    }
    match mode {
        OperatingMode::Bits64 => decode!(long_mode, JRCXZ, |target: u64| target),
        OperatingMode::Protected32 => decode!(protected_mode, JECXZ, |target: u64| target & 0xffff_ffff),
        OperatingMode::Real16 => decode!(real_mode, JCXZ, |target: u64| target & 0xffff_ffff),
    }
}

/// Whether what stands at the start of `bytes` is there for a processor that guesses to stop at, and is not come to: a
/// call in front of it does not come back to it. So kernels leave functions by way of `RET` where processors must not
/// guess (Linux, `arch/x86/lib/retpoline.S`).
pub fn is_speculation_trap(isa: Isa, bytes: &[u8]) -> bool {
    match isa {
        // `int3`, `ud2`, `pause`.
        Isa::X86_64 => matches!(bytes, [0xcc, ..] | [0x0f, 0x0b, ..] | [0xf3, 0x90, ..]),
        Isa::Aarch64 => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What leads into a function and out of one is known without a decoder as it is with one.
    #[test]
    #[cfg(feature = "disassembly")]
    fn what_every_build_knows_of_x86() {
        let is_known =
            |flow: Flow| matches!(flow, Flow::Call(_) | Flow::Service | Flow::Return | Flow::ExceptionReturn);
        let mut count = 0;
        let mut compare = |mode, bytes: &[u8]| {
            let decoded = x86(mode, bytes, 0x1000);
            let found = x86_by_opcode(mode, bytes, 0x1000);
            let expected = decoded.filter(|it| is_known(it.flow));
            // What no processor knows may be taken for what it looks like; and the decoder reads as much of an address as
            // without the prefix that halves or doubles it.
            let is_misread = mode != OperatingMode::Bits64 && bytes[..3].contains(&0x66) && found != expected;
            if decoded.is_some() && !is_misread {
                assert_eq!(found, expected, "{mode:?} {bytes:02x?}");
                count += usize::from(found.is_some());
            }
        };
        let rest = [0x10, 0x20, 0x30, 0x44, 0x55, 0x66, 0x77, 0x08];
        for mode in [OperatingMode::Bits64, OperatingMode::Protected32, OperatingMode::Real16] {
            for prefix in [&[][..], &[0x67], &[0x2e], &[0xf2], &[0x3e, 0x67]] {
                for first in 0..=0xff {
                    for second in 0..=0xff {
                        let mut bytes = prefix.to_vec();
                        bytes.extend([first, second]);
                        bytes.extend(rest);
                        compare(mode, &bytes);
                    }
                }
            }
            // Every form of an operand in memory.
            for index in 0..=0xff {
                for modrm in 0..=0xff {
                    compare(mode, &[0xff, modrm, index, 0x11, 0x22, 0x33, 0x44, 0x55]);
                    compare(mode, &[0x67, 0xff, modrm, index, 0x11, 0x22, 0x33, 0x44, 0x55]);
                }
            }
        }
        assert!(count > 10_000, "{count}");
        for end in 0..7 {
            assert_eq!(x86_by_opcode(OperatingMode::Bits64, &[0xff, 0x94, 0x24, 1, 2, 3, 4][..end], 0), None);
        }
    }

    #[test]
    #[cfg(feature = "disassembly")]
    fn x86_with_a_decoder() {
        for (bytes, length, flow) in [
            (&[0x90][..], 1, Flow::Next),
            (&[0xeb, 0xfe], 2, Flow::Jump(0x1000)),
            (&[0xff, 0xe0], 2, Flow::Elsewhere),
            (&[0x74, 0x10], 2, Flow::Branch(0x1012)),
            (&[0xe8, 0x20, 0, 0, 0], 5, Flow::Call(Some(0x1025))),
            (&[0xff, 0xd0], 2, Flow::Call(None)),
            (&[0xff, 0x10], 2, Flow::Call(None)),
            (&[0xc3], 1, Flow::Return),
            (&[0xc2, 8, 0], 3, Flow::Return),
            (&[0x48, 0xcf], 2, Flow::ExceptionReturn),
            (&[0x0f, 0x05], 2, Flow::Service),
            (&[0xcd, 0x80], 2, Flow::Service),
            (&[0xcc], 1, Flow::Elsewhere),
            (&[0x0f, 0x0b], 2, Flow::Elsewhere),
            (&[0xf4], 1, Flow::Elsewhere),
        ] {
            let found = instruction(Isa::X86_64, OperatingMode::Bits64, bytes, 0x1000);
            assert_eq!(found, Some(Instruction { length, flow }), "{bytes:02x?}");
        }
        let call = instruction(Isa::X86_64, OperatingMode::Real16, &[0xe8, 0x20, 0], 0x1000);
        assert_eq!(call.map(|call| call.length), Some(3));
        assert_eq!(instruction(Isa::X86_64, OperatingMode::Bits64, &[0x0f, 0xff], 0), None);
    }

    #[test]
    fn aarch64() {
        for (word, flow) in [
            (0x9100_0400u32, Flow::Next),
            (0x1400_0010, Flow::Jump(0x1040)),
            (0x9400_0010, Flow::Call(Some(0x1040))),
            (0xb5ff_ffe1, Flow::Branch(0xffc)),
            // br x16; blr x3; blraaz x3; ret; ret x5; retaa; eret
            (0xd61f_0200, Flow::Elsewhere),
            (0xd63f_0060, Flow::Call(None)),
            (0xd63f_087f, Flow::Call(None)),
            (0xd73f_0861, Flow::Call(None)),
            (0xd65f_03c0, Flow::Return),
            (0xd65f_00a0, Flow::Return),
            (0xd65f_0bff, Flow::Return),
            (0xd69f_03e0, Flow::ExceptionReturn),
            // svc #0; hvc #0; brk #0
            (0xd400_0001, Flow::Service),
            (0xd400_0002, Flow::Service),
            (0xd420_0000, Flow::Elsewhere),
        ] {
            let found = instruction(Isa::Aarch64, OperatingMode::Bits64, &word.to_le_bytes(), 0x1000);
            assert_eq!(found, Some(Instruction { length: 4, flow }), "{word:#x}");
        }
        assert_eq!(instruction(Isa::Aarch64, OperatingMode::Bits64, &[0; 3], 0), None);
    }
}
