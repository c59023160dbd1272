//! The gdb remote serial protocol, for any [`Machine`](crate::target::Machine).
//!
//! Bytes of a connection become packets ([`packet`]). Those that gdbstub does not know, or
//! that need more than it passes on, are answered in front of it ([`front`]); the rest goes to
//! gdbstub, whose target is the [`session`]. [`server`] is the thread that does all this.
//! [`description`] makes the target description of the register table, [`monitor`] serves
//! `monitor` commands.
//!
//! Source: GDB manual, appendix "GDB Remote Serial Protocol".

pub mod description;
pub mod front;
mod kernel;
pub mod monitor;
pub mod packet;
mod search;
pub mod server;
pub mod session;
