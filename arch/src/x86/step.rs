//! Single steps by the trap flag: what they leave in the guest, and how it is taken out.
//!
//! KVM steps with RFLAGS.TF, and hides it, so the guest's own trap flag has to be followed:
//! `POPF` and `IRET` load it ([`pops_flags`]). `PUSHF` stores the flag where the guest sees it, so
//! the stored copy is made the guest's own after the step. `INT n`, `int3` and `SYSCALL` save it and go on without it, so they
//! are not stepped at all: the vCPU runs to where they lead ([`leads_to`]). So do faults, which
//! any instruction may cause ([`FAULTS`]).
//!
//! Source: Intel SDM vol. 2, "PUSHF/PUSHFD/PUSHFQ", "INT n/INTO/INT3/INT1", "SYSCALL", and
//! "Instruction Prefixes"; vol. 3, "64-Bit Mode IDT".

/// `RFLAGS.TF`.
pub const RFLAGS_TF: u64 = 1 << 8;

const PUSHF: u8 = 0x9c;
const POPF: u8 = 0x9d;
const IRET: u8 = 0xcf;
/// #DB.
pub const DEBUG_VECTOR: u8 = 1;
/// #BP.
pub const BREAKPOINT_VECTOR: u8 = 3;

/// Where an instruction leads that saves RFLAGS, or that is not stepped for another reason, in
/// 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To the handler of a vector.
    Vector(u8),
    /// To `IA32_LSTAR`.
    Lstar,
    /// To where RCX says: `SYSRET`, which loads flags without the trap flag before it is looked
    /// at (AMD APM vol. 3, "SYSRET").
    Rcx,
    /// To the instruction behind it, this many bytes on: `STI`, whose trap some processors hold
    /// back for one more instruction.
    Next(u64),
}

/// Whether and where the instruction at the start of `code` leads in that way.
pub fn leads_to(code: &[u8]) -> Option<Leads> {
    match code {
        [0xcc, ..] => Some(Leads::Vector(BREAKPOINT_VECTOR)),
        [0xf1, ..] => Some(Leads::Vector(DEBUG_VECTOR)),
        [0xcd, vector, ..] => Some(Leads::Vector(*vector)),
        [0x0f, 0x05, ..] => Some(Leads::Lstar),
        [0x48, 0x0f, 0x07, ..] => Some(Leads::Rcx),
        [0xfb, ..] => Some(Leads::Next(1)),
        _ => None,
    }
}

/// Faults that instructions cause, the likely ones first: #PF, #GP, #UD, #DE, #SS, #NM (Intel
/// SDM vol. 3, "Exception and Interrupt Reference").
pub const FAULTS: [u8; 6] = [14, 13, 6, 0, 12, 7];

/// Where the handler of one of [`FAULTS`] finds the saved flags, in bytes from its stack pointer:
/// behind the error code, if there is one, the instruction pointer and the code segment (Intel
/// SDM vol. 3, "64-Bit Mode Stack Frame").
pub fn flags_in_frame(vector: u8) -> u64 {
    match vector {
        12..=14 => 24,
        _ => 16,
    }
}

/// `HLT`, which a step in ring 0 goes over without halting: what it waits for is kept out of
/// steps.
pub const HLT: u8 = 0xf4;

/// Bytes of a gate of the 64-bit IDT.
pub const GATE_SIZE: usize = 16;

/// The handler that a gate names; `None` where it is not present.
pub fn gate_target(gate: &[u8; GATE_SIZE]) -> Option<u64> {
    const PRESENT: u8 = 1 << 7;
    let word = |at: usize| u64::from(gate[at]) | u64::from(gate[at + 1]) << 8;
    (gate[5] & PRESENT != 0).then(|| word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48)
}

/// The opcode behind the prefixes of the instruction at the start of `code`, and which of the
/// prefixes there are that say how wide its operands are.
fn opcode(code: &[u8], is_long_mode: bool) -> Option<(u8, Width)> {
    let mut width = Width::Default;
    for byte in code {
        match *byte {
            0x66 => width = Width::Bits16,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf0 | 0xf2 | 0xf3 => {}
            0x48..=0x4f if is_long_mode => width = Width::Bits64,
            0x40..=0x47 if is_long_mode => {}
            opcode => return Some((opcode, width)),
        }
    }
    None
}

/// Operand size, as prefixes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits16,
    Default,
    Bits64,
}

/// Whether the instruction at the start of `code` stores RFLAGS on the stack.
pub fn pushes_flags(code: &[u8], is_long_mode: bool) -> bool {
    matches!(opcode(code, is_long_mode), Some((PUSHF, _)))
}

/// Where the instruction at the start of `code` finds the flags that it loads, if it does: bytes
/// from the stack pointer. `IRET` has them behind the instruction pointer and the code segment.
pub fn pops_flags(code: &[u8], is_long_mode: bool) -> Option<u64> {
    match opcode(code, is_long_mode)? {
        (POPF, _) => Some(0),
        (IRET, Width::Bits16) => Some(4),
        (IRET, Width::Default) => Some(8),
        (IRET, Width::Bits64) => Some(16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_save_the_flags() {
        for (code, leads) in [
            (&[0xcc, 0x90][..], Some(Leads::Vector(3))),
            (&[0xf1], Some(Leads::Vector(1))),
            (&[0xcd, 0x80], Some(Leads::Vector(0x80))),
            (&[0x0f, 0x05], Some(Leads::Lstar)),
            (&[0x48, 0x0f, 0x07], Some(Leads::Rcx)),
            (&[0xfb], Some(Leads::Next(1))),
            (&[0x0f, 0x07], None),
            (&[0xcd], None),
            (&[], None),
        ] {
            assert_eq!(leads_to(code), leads, "{code:x?}");
        }
    }

    #[test]
    fn gates() {
        let mut gate = [0; GATE_SIZE];
        gate[..12].copy_from_slice(&[0x34, 0x12, 0x10, 0, 0, 0x8e, 0x78, 0x56, 0xbc, 0x9a, 0xff, 0xff]);
        assert_eq!(gate_target(&gate), Some(0xffff_9abc_5678_1234));
        gate[5] = 0x0e;
        assert_eq!(gate_target(&gate), None);
    }

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

    #[test]
    fn instructions_that_load_the_flags() {
        for (code, long, at) in [
            (&[0x9d][..], true, Some(0)),
            (&[0x66, 0x9d], false, Some(0)),
            (&[0x48, 0xcf], true, Some(16)),
            (&[0xcf], true, Some(8)),
            (&[0x66, 0xcf], true, Some(4)),
            (&[0xcf], false, Some(8)),
            // DEC EAX.
            (&[0x48, 0xcf], false, None),
            (&[0x9c], true, None),
            (&[], true, None),
        ] {
            assert_eq!(pops_flags(code, long), at, "{code:x?}");
        }
    }
}
