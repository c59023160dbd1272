//! What a file says, and why it does not.

use arch::Isa;

/// Why a file says nothing of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SymbolsError {
    /// It is no ELF file of a kernel.
    #[error("not an ELF file that a kernel was linked to: {0}")]
    Format(String),
    /// It is one of another architecture.
    #[error("a file of {0}, not of the guest's architecture")]
    Architecture(Isa),
    /// It has no table of symbols: it was stripped.
    #[error("the file has no symbols: it was stripped")]
    Stripped,
    /// It has no debug information.
    #[error("the file has no debug information (CONFIG_DEBUG_INFO)")]
    NoLines,
    /// Its debug information contradicts itself.
    #[error("the file's debug information is damaged: {0}")]
    Damaged(String),
    /// To look it up takes more work than with any kernel's.
    #[error("looking up a line in this file takes too long: its debug information is odd")]
    TooMuchWork,
    /// More than is read of any file.
    #[error("more than is read: {what}, {size} ({most} are read)")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large it is, or says that it is: bytes, or symbols of a table.
        size: u64,
        /// So much is read at most.
        most: u64,
    },
}

/// What a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Code that was compiled as a function.
    Function,
    /// Data.
    Variable,
    /// A place in code or data of which the file says no more, as in assembly.
    Label,
    /// Data that every processor has of its own: its address is that of none of them.
    PerCpu,
    /// A number, not a place.
    Absolute,
}

#[cfg(feature = "dwarf")]
impl Role {
    /// Whether it is where the kernel is: not of a processor's own, and no number.
    pub(super) fn is_placed(self) -> bool {
        matches!(self, Role::Function | Role::Variable | Role::Label)
    }
}

/// A symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, as the linker has it.
    pub name: String,
    /// Where it begins: guest-virtual, or for one of a processor's own ([`Role::PerCpu`]) what the file says.
    pub address: u64,
    /// Bytes that it has; 0 where the file does not say.
    pub size: u64,
    /// How far behind its beginning the address is that was asked for, bytes.
    pub offset: u64,
    /// What it is.
    pub role: Role,
    /// The kernel's module that it is in.
    pub module: Option<String>,
}

/// A source line, and the function that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function's name.
    pub function: Option<String>,
    /// The source file, as the compiler was told of it.
    pub file: Option<String>,
    /// The line, from 1 up.
    pub line: Option<u32>,
    /// The column, from 1 up.
    pub column: Option<u32>,
}
