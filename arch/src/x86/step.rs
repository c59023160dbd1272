//! Single steps by the trap flag: what they leave in the guest, and how it is taken out.
//!
//! KVM steps with RFLAGS.TF. `PUSHF` stores it where the guest sees it, so the stored copy is
//! cleared after the step. Source: Intel SDM vol. 2, "PUSHF/PUSHFD/PUSHFQ", and "Instruction
//! Prefixes".

/// `RFLAGS.TF`.
pub const RFLAGS_TF: u64 = 1 << 8;

const PUSHF: u8 = 0x9c;

/// Whether the instruction at the start of `code` stores RFLAGS on the stack.
pub fn pushes_flags(code: &[u8], is_long_mode: bool) -> bool {
    let opcode = code.iter().find(|byte| {
        let is_prefix = matches!(**byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        !(is_prefix || is_long_mode && matches!(**byte, 0x40..=0x4f))
    });
    opcode == Some(&PUSHF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushf_with_and_without_prefixes() {
        for (code, long, yes) in [
            (&[0x9c][..], true, true),
            (&[0x66, 0x9c], true, true),
            (&[0x48, 0x9c], true, true),
            // In 32-bit code 0x48 is DEC EAX.
            (&[0x48, 0x9c], false, false),
            (&[0x66, 0x9c], false, true),
            (&[0x9d], true, false),
            (&[], true, false),
            (&[0x66, 0x66], true, false),
        ] {
            assert_eq!(pushes_flags(code, long), yes, "{code:x?}");
        }
    }
}
