//! The table of breakpoints.
//!
//! A breakpoint is keyed by its canonical place, the guest-physical address of its
//! instruction, and remembers the guest-virtual address it was asked for: two names of one
//! page are one place, with one planted instruction. A hit is looked up by translating the
//! program counter.
//!
//! While the debugger looks, memory never shows what was planted ([`Table::unmask`]), and a
//! write over it changes the saved original ([`Table::write_over`]). What serves the guest sees memory
//! likewise ([`Table::write_for_guest`]). On removal the original
//! returns only if the planted instruction is still there: a guest that patched its own text
//! wins.
//!
//! An address that does not translate yet waits on a debug register
//! ([`Table::waiting`]) until its page appears ([`Table::settle`]).
//!
//! A breakpoint is told by its [`Id`], which it keeps for as long as it is there, whatever comes and goes
//! beside it: what a debug register serves, what hits and what is counted go by it.

mod condition;
mod id;
mod instruction;
mod point;
mod table;

pub use condition::{Condition, Hit, Witness};
pub use id::Id;
pub use instruction::{BRK_0, INT3, is_patched_by_kernels, planted_instruction};
pub use point::{Breakpoint, Kind, NOT_MAPPED, NOT_RAM, NOT_TRAPPED, PATCHED, Place, Purpose};
pub use table::{Change, InsertError, Table};
