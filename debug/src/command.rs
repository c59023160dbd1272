//! Commands: what a person, or a program, asks of a machine beyond the debugger's own protocol.
//!
//! There is one table of them. `monitor X` in gdb and `vmm core PATH X` in a shell give the same command: its
//! arguments are parsed into a type ([`memory::Translate`]), it is run on what its [`Operator`] sees and may do, and
//! answers with a value ([`memory::Walk`]), from which the text for a person and the JSON for a program are printed.
//! A program that embeds the debugger may run the types itself and read the values.
//!
//! To the table belong what every machine has (here), what the operator adds (a gdb session its settings), and what
//! the [machine](crate::machine::Machine::commands) adds (a live guest its hypercalls). A command that makes no sense
//! for a machine (`nmi` for a dump) says so; which that are is asked of the machine. What takes long asks the view's
//! [token](crate::cancel::Cancel) whether it is still wanted.
//!
//! One more is one more file, or a part of one, and its line in the table.
//!
//! ```
//! use arch::Isa;
//! use debug::cancel::Cancel;
//! use debug::command::memory::{Read, Translate};
//! use debug::engine::Engine;
//! use debug::fake::Still;
//! use debug::reply::Value;
//! use debug::machine::Machine;
//! use debug::view::View;
//!
//! // Any machine; this one has no processor, and paging is off.
//! let machine = Still::new(Isa::X86_64, 1, 1 << 20)?;
//! let engine = Engine::new(machine.isa(), machine.abilities().clone(), machine.vcpus());
//! let cancel = Cancel::never();
//! let view = View { machine: &machine, engine: &engine, vcpu: 0, is_physical: false, cancel: &cancel };
//!
//! let walk = Translate { address: 0x1000, table: None }.run(&view)?;
//! assert_eq!(walk.result.map(|mapping| mapping.address.0), Ok(0x1000));
//! let bytes = Read { address: 0xffffe, length: 4, is_physical: true }.run(&view)?;
//! assert_eq!(bytes.json()["bytes"], "0000");
//! assert!(bytes.shortfall().is_some_and(|why| why.starts_with("2 of 4 bytes, up to 0x100000")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
#[cfg(feature = "linux")]
pub mod backtrace;
pub mod breakpoints;
#[cfg(feature = "linux")]
pub mod dmesg;
#[cfg(feature = "dump")]
pub mod dump;
pub mod host;
pub mod info;
#[cfg(feature = "linux")]
pub(crate) mod kernel;
#[cfg(feature = "linux")]
pub mod linux;
#[cfg(feature = "linux")]
pub mod locks;
pub mod memory;
#[cfg(feature = "linux")]
pub mod module_symbols;
#[cfg(feature = "linux")]
pub mod modules;
#[cfg(feature = "linux")]
pub mod mounts;
pub mod names;
mod nearest;
#[cfg(feature = "linux")]
mod oops;
mod operator;
#[cfg(feature = "linux")]
pub mod print;
pub mod registers;
mod run;
#[cfg(any(feature = "dwarf", feature = "linux"))]
pub mod symbols;
mod table;
#[cfg(feature = "linux")]
pub mod tasks;
mod thread_kind;
#[cfg(feature = "linux")]
pub mod why;

pub use operator::Operator;
pub use run::{Refused, commands, common, run, run_line};
pub use thread_kind::ThreadKind;

#[cfg(all(test, feature = "disassembly", feature = "dump"))]
mod tests;
