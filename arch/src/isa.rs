//! Which instruction set a target has.

use std::fmt;

/// The instruction set architecture of a guest, as a value.
///
/// A core dump, a register table or a kernel image carries one of these; code that works
/// for both architectures takes it as an argument instead of asking the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86_64, and the 16- and 32-bit modes of the same processors.
    X86_64,
    /// AArch64 state of Armv8-A and later.
    Aarch64,
}

impl Isa {
    /// Both architectures, in the order of their tables.
    pub const ALL: [Isa; 2] = [Isa::X86_64, Isa::Aarch64];

    /// The name that Rust targets, QEMU and this project's options use.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::X86_64 => "x86_64",
            Isa::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
