//! What a debugger knows of a Linux kernel in the target without its symbols, live or dumped.
//!
//! [`text()`] finds where the kernel's image is mapped, for a kernel that has moved itself (KASLR).
//! [`VmCoreInfo`] is the kernel's own description of its data, which [`described`] finds in memory and believes if
//! the kernel bears it out; with it [`VmCoreInfo::log`] reads the kernel's log, and [`translate`] translates where
//! registers do not tell how. [`kallsyms`] are the symbols that it keeps for itself, in a store for symbols from
//! anywhere ([`Symbols`]); [`btf`] are its types, likewise ([`Types`]); with both, what it
//! runs can be read ([`task`], [`mm`]; at a breakpoint's hit, [`current`]), what was loaded into it ([`module`]), what is mounted
//! ([`mount`]), where each of them is ([`unwind`]), and for whom it waits ([`lock`]).

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod btf;
pub mod current;
pub mod described;
mod error;
mod image;
mod info;
pub mod kallsyms;
mod list;
pub mod lock;
pub mod log;
#[cfg(test)]
mod made;
pub mod mm;
pub mod module;
pub mod mount;
mod name;
pub mod reader;
pub mod symbols;
pub mod task;
mod text;
pub mod translate;
pub mod trouble;
pub mod typed;
pub mod types;
pub mod unwind;

pub use error::LogError;
pub use info::{Described, VmCoreInfo};
pub use list::linked;
pub use symbols::Symbols;
pub use text::text;
pub use types::Types;
