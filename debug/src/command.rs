//! Commands: what a person, or a program, asks of a machine beyond the debugger's own protocol.
//!
//! There is one table of them. `monitor X` in gdb and `vmm core PATH X` in a shell give the same command: its
//! arguments are parsed into a type ([`memory::Translate`]), it is run on what its [`Operator`] sees and may do, and
//! answers with a value ([`memory::Walk`]), from which the text for a person and the JSON for a program are printed.
//! A program that embeds the debugger may run the types itself and read the values.
//!
//! To the table belong what every machine has (here), what the operator adds (a gdb session its settings), and what
//! the [machine](crate::target::Machine::commands) adds (a live guest its hypercalls). A command that makes no sense
//! for a machine (`nmi` for a dump) says so; which that are is asked of the machine. What takes long asks the view's
//! [token](crate::cancel::Cancel) whether it is still wanted.
//!
//! One more is one more file, or a part of one, and its line in the table.

pub mod address;
pub mod breakpoints;
pub mod dump;
pub mod host;
pub mod info;
pub mod linux;
pub mod memory;
mod nearest;
mod operator;
pub mod registers;
mod run;
mod table;

pub use operator::Operator;
pub use run::{Refused, commands, common, run, run_line};

#[cfg(test)]
mod tests;
