//! The instruction that is planted, and those that kernels patch themselves.

use arch::Isa;

/// `int3` (Intel SDM vol. 2, "INT n/INTO/INT3/INT1").
pub const INT3: &[u8] = &[0xcc];

/// `BRK #0`, little-endian (Arm ARM (DDI 0487), "BRK").
pub const BRK_0: u32 = 0xd420_0000;

/// The instruction that is planted.
pub const fn planted_instruction(isa: Isa) -> &'static [u8] {
    const BRK: [u8; 4] = BRK_0.to_le_bytes();
    match isa {
        Isa::X86_64 => INT3,
        Isa::Aarch64 => &BRK,
    }
}

/// Whether the instruction at the start of `code` is one that breaks: `int3`, or `BRK` with any number.
pub fn is_breakpoint(isa: Isa, code: &[u8]) -> bool {
    /// All bits of `BRK` but its number's.
    const BRK: u32 = 0xffe0_001f;
    match isa {
        Isa::X86_64 => code.first() == INT3.first(),
        Isa::Aarch64 => arch::bytes::u32_at(code, 0).is_some_and(|word| word & BRK == BRK_0),
    }
}

/// Whether the instruction at the start of `code` is one that kernels keep to be patched: the
/// NOPs of function tracing and of jump labels, and a call to a tracer in the place of one
/// (Linux, `arch/*/kernel/ftrace.c` and `jump_label.c`).
pub fn is_patched_by_kernels(isa: Isa, code: &[u8]) -> bool {
    match isa {
        Isa::X86_64 => {
            matches!(code, [0x0f, 0x1f, 0x44, 0x00, 0x00, ..] | [0x66, 0x90, ..])
        }
        Isa::Aarch64 => code.starts_with(&[0x1f, 0x20, 0x03, 0xd5]),
    }
}
