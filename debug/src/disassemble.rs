//! Instructions in words.

#[cfg(feature = "disassembly")]
use arch::Isa;
#[cfg(feature = "disassembly")]
use yaxpeax_arch::{Decoder, LengthedInstruction, U8Reader};

/// The longest instruction of either architecture, bytes (Intel SDM vol. 2, 2.3.11).
pub const LONGEST_INSTRUCTION: usize = 15;

/// How an x86 processor reads its instructions at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatingMode {
    /// 16-bit code.
    Real16,
    /// 32-bit code.
    Protected32,
    /// 64-bit code, and all of aarch64.
    Bits64,
}

/// One decoded instruction.
#[cfg(feature = "disassembly")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Length in bytes.
    pub length: usize,
    /// As an assembler would write it, Intel syntax on x86.
    pub text: String,
}

/// Decodes the instruction at the start of `bytes`; `None` when it is not one, or cut short.
#[cfg(feature = "disassembly")]
pub fn disassemble(isa: Isa, mode: OperatingMode, bytes: &[u8]) -> Option<Instruction> {
    let mut reader = U8Reader::new(bytes);
    macro_rules! decode {
        ($decoder:expr) => {{
            let instruction = $decoder.decode(&mut reader).ok()?;
            let length = usize::try_from(instruction.len().to_const()).ok()?;
            Some(Instruction { length, text: instruction.to_string() })
        }};
    }
    match (isa, mode) {
        (Isa::X86_64, OperatingMode::Bits64) => decode!(yaxpeax_x86::amd64::InstDecoder::default()),
        (Isa::X86_64, OperatingMode::Protected32) => {
            decode!(yaxpeax_x86::protected_mode::InstDecoder::default())
        }
        (Isa::X86_64, OperatingMode::Real16) => decode!(yaxpeax_x86::real_mode::InstDecoder::default()),
        (Isa::Aarch64, _) => {
            let instruction = yaxpeax_arm::armv8::a64::InstDecoder::default().decode(&mut reader).ok()?;
            Some(Instruction { length: 4, text: instruction.to_string() })
        }
    }
}

#[cfg(all(test, feature = "disassembly"))]
mod tests {
    use super::*;

    #[test]
    fn well_known_instructions_of_every_mode() {
        for (isa, mode, bytes, text) in [
            (Isa::X86_64, OperatingMode::Bits64, &[0x48, 0x0f, 0xc7, 0x0f][..], "cmpxchg16b"),
            (Isa::X86_64, OperatingMode::Bits64, &[0xf4], "hlt"),
            (Isa::X86_64, OperatingMode::Protected32, &[0xcc], "int 0x3"),
            (Isa::X86_64, OperatingMode::Real16, &[0xb8, 0x34, 0x12], "mov ax, 0x1234"),
            (Isa::Aarch64, OperatingMode::Bits64, &[0x00, 0x00, 0x20, 0xd4], "brk #0x0"),
            (Isa::Aarch64, OperatingMode::Bits64, &[0x7f, 0x20, 0x03, 0xd5], "wfi"),
        ] {
            let instruction = disassemble(isa, mode, bytes).unwrap_or_else(|| panic!("{text}"));
            assert!(instruction.text.contains(text), "{}: {text}", instruction.text);
            assert_eq!(instruction.length, bytes.len(), "{text}");
        }
    }

    #[test]
    fn cut_off_and_impossible_instructions_are_none() {
        assert_eq!(disassemble(Isa::X86_64, OperatingMode::Bits64, &[]), None);
        assert_eq!(disassemble(Isa::X86_64, OperatingMode::Bits64, &[0x48, 0x0f]), None);
        assert_eq!(disassemble(Isa::Aarch64, OperatingMode::Bits64, &[0, 0, 0x20]), None);
    }
}
