//! What architecture a description is of.

use crate::disassemble::OperatingMode;
use arch::Isa;

/// What architecture a description is of. gdb takes one for as long as it is attached, whatever
/// mode an x86 processor goes through meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Described {
    /// All that the target is.
    #[default]
    Whole,
    /// An x86 processor that stays in 32-bit code.
    I386,
    /// One that stays in 16-bit code.
    I8086,
}

impl Described {
    /// By gdb's name of the architecture, `set architecture`.
    pub fn from_name(name: &str) -> Option<Described> {
        match name {
            "x86-64" => Some(Described::Whole),
            "i386" => Some(Described::I386),
            "i8086" => Some(Described::I8086),
            _ => None,
        }
    }

    /// gdb's name.
    pub const fn name(self, isa: Isa) -> &'static str {
        match (self, isa) {
            (_, Isa::Aarch64) => "aarch64",
            (Described::Whole, Isa::X86_64) => "i386:x86-64",
            (Described::I386, Isa::X86_64) => "i386",
            (Described::I8086, Isa::X86_64) => "i8086",
        }
    }
}

/// What the file of the guest's kernel has a debugger believe, where nobody has said what the processor
/// is to be described as. gdb takes a 32-bit file's word over ours: it refuses another description, and
/// then understands no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Believed {
    /// A 64-bit program, whatever mode it is entered in; or there is no file to know of.
    #[default]
    Wide,
    /// A 32-bit program, until it has gone to 64-bit mode.
    Narrow,
    /// A file that says nothing: it is what the processor does.
    Unknown,
}

impl Believed {
    /// What an x86 processor is described as to a debugger that attaches while it reads code of a mode;
    /// `is_long`: it has been switched to long mode (Intel SDM vol. 3, "IA32_EFER.LMA").
    pub fn describes(self, mode: OperatingMode, is_long: bool) -> Described {
        match (self, mode) {
            _ if is_long => Described::Whole,
            (Believed::Wide, _) | (Believed::Unknown, OperatingMode::Bits64) => Described::Whole,
            (Believed::Unknown, OperatingMode::Real16) => Described::I8086,
            (Believed::Narrow, _) | (Believed::Unknown, OperatingMode::Protected32) => Described::I386,
        }
    }
}
