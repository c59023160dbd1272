//! The gdb remote serial protocol, for any [`Machine`](crate::machine::Machine).
//!
//! [`endpoint`] says where a debugger connects and who it is, [`server`] is the thread that lets one
//! in, and [`client`] the one that is in. Bytes of its connection become packets ([`packet`]). Those
//! that gdbstub does not know, or that need more than it passes on, are answered in front of it
//! (`front`, `resume`), in one of a few ways (`answer`); the rest goes to gdbstub, whose target is the
//! [`session`]. `stop` is what is told when the target stops. [`description`] makes the target description of the
//! register table, [`monitor`] gives `monitor` commands to the [table](crate::command).
//!
//! Source: GDB manual, appendix "GDB Remote Serial Protocol".

pub mod accept;
mod answer;
pub mod client;
pub mod description;
pub mod endpoint;
mod front;
mod memory_stream;
pub mod monitor;
pub mod packet;
mod readiness;
mod resume;
pub mod server;
pub mod session;
mod stop;
mod stub;
#[cfg(all(test, feature = "linux"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
