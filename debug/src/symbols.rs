//! What the file that a kernel was linked to (`vmlinux`, or what a distribution keeps apart for debuggers) says of the
//! guest: which function or variable an address belongs to and where one is, of which source line code is, and how to get
//! from a function to its caller.
//!
//! The table of symbols is read when it is first asked for, debug information when a line is: that of a distribution's
//! kernel has some hundred megabytes. A file that is damaged, or not a kernel's at all, is an error in words.
//!
//! Addresses in the file are those that the kernel was linked to; one that has moved itself (KASLR) is asked about by
//! [`Symbols::moved`].
//!
//! Without the feature `dwarf` there is none: what has a place for one is the same, and nobody can make one.
//!
//! Sources: System V gABI, chapter 4 ("Symbol Table", "Compressed sections"); DWARF 5, sections 3.3.8 (inlined
//! functions) and 6.2 (line numbers); ELF for the Arm 64-bit Architecture, "Mapping symbols".

#[cfg(all(feature = "dwarf", feature = "linux"))]
mod cfi;
#[cfg(feature = "dwarf")]
mod file;
#[cfg(feature = "dwarf")]
mod lines;
#[cfg(feature = "dwarf")]
mod metered;
#[cfg(feature = "dwarf")]
mod module;
#[cfg(not(feature = "dwarf"))]
mod none;
#[cfg(feature = "dwarf")]
mod of_file;
mod offer;
mod symbol;
#[cfg(feature = "dwarf")]
mod table;
#[cfg(feature = "dwarf")]
mod units;

#[cfg(feature = "dwarf")]
pub use module::{LoadedModule, ModuleFile};
#[cfg(not(feature = "dwarf"))]
pub use none::{LoadedModule, ModuleFile, Moved, Symbols};
#[cfg(feature = "dwarf")]
pub use of_file::{Moved, Symbols};
pub use offer::{FindSymbols, FoundSymbols, SymbolFile};
pub use symbol::{Frame, Role, Symbol, SymbolsError};

/// Symbols of one name that are told.
pub const MOST_FOUND: usize = 64;

#[cfg(all(test, feature = "dwarf"))]
pub(crate) mod tests;
