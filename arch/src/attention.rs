//! Whether a processor hears interrupts.

use crate::Isa;
use crate::bytes;

/// RFLAGS.IF (Intel SDM, 3.4.3.3).
const X86_INTERRUPTS: u64 = 1 << 9;
/// PSTATE.I, as SPSR has it (Arm ARM, C5.2.19).
const AARCH64_MASKED: u64 = 1 << 7;
/// `WFI` and `WFE` (Arm ARM, C6.2.407 and C6.2.405).
const WAITS: [u32; 2] = [0xd503_207f, 0xd503_205f];

/// Whether flags (RFLAGS, PSTATE) have interrupts off.
pub fn is_deaf(isa: Isa, flags: u64) -> bool {
    match isa {
        Isa::X86_64 => flags & X86_INTERRUPTS == 0,
        Isa::Aarch64 => flags & AARCH64_MASKED != 0,
    }
}

/// Whether one of these instructions waits for an interrupt that is masked: aarch64's do, and are gone on behind. x86's
/// `HLT` is known by the processor's being halted.
pub fn waits(isa: Isa, code: &[u8]) -> bool {
    let words = (0..code.len()).step_by(4).filter_map(|at| bytes::u32_at(code, at));
    isa == Isa::Aarch64 && words.into_iter().any(|word| WAITS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_off_by_a_flag() {
        assert!(is_deaf(Isa::X86_64, 0x2) && !is_deaf(Isa::X86_64, 0x202));
        assert!(is_deaf(Isa::Aarch64, 0x3c5) && !is_deaf(Isa::Aarch64, 0x5));
    }

    #[test]
    fn what_waits_is_known_by_its_instruction() {
        let code = [0xd503_201f_u32, 0xd503_207f].map(u32::to_le_bytes).concat();
        assert!(
            waits(Isa::Aarch64, &code)
                && !waits(Isa::Aarch64, &code[..4])
                && !waits(Isa::Aarch64, &code[..6])
        );
        assert!(!waits(Isa::X86_64, &code));
    }
}
