//! A debug session: what gdb, or another debugger that speaks its protocol, knows and wants to know of a guest. What is
//! done with the guest a [`Debuggee`] does.
//!
//! Threads are vCPUs, whose thread-ids are their numbers plus one; or vCPUs and the tasks that sleep (`threads`).

use super::description::{Believed, Described, RegisterSet};
use crate::context::Debuggee;
use crate::engine::Engine;
use crate::machine::Machine;
use crate::symbols::SymbolFile;
use crate::view::View;
use arch::Isa;
use arch::register::RegisterFile;
use std::path::PathBuf;
use std::sync::Arc;

mod attach;
mod chosen;
pub mod ids;
mod run;
mod stop;
#[cfg_attr(not(feature = "linux"), path = "session/no_tasks.rs")]
mod tasks;
mod threads;
mod told;
mod write;

pub use crate::context::{InsertError, Stop};
pub use chosen::Chosen;
pub use stop::words;
pub use threads::Threads;
pub use write::OVERLOADED;

/// Debuggers that are told apart, where they read the protocol in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// It may be told between two packets that an answer is worth waiting for, and `TextSeg` of `qOffsets`
    /// is an address to it (GDB manual, "General Query Packets").
    Gdb,
    /// It takes a word in between for the answer, and all of `qOffsets` for offsets.
    Lldb,
    /// It has not said.
    Unknown,
}

/// What the guest is to a debugger that is connected: its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// It is debugged.
    Attached,
    /// It runs, and is not.
    Detached,
    /// It was ended, and may begin again.
    Killed,
}

/// What words to a debugger's user begin with where nobody has said whose they are.
pub const NAME: &str = env!("CARGO_PKG_NAME");

/// A session with a machine.
#[derive(Debug)]
pub struct Session<M: Machine> {
    /// The guest.
    pub debuggee: Debuggee<M>,
    /// Registers that are described to the debugger.
    pub registers: RegisterSet,
    /// What the processor is described as to the debugger that attaches next, if somebody has said so.
    pub described: Option<Described>,
    /// What it is described as where nobody has: that follows from the kernel's file.
    pub believed: Believed,
    /// The debugger has been told that it was told of another processor than there is.
    is_told: bool,
    /// What words to its user begin with: the monitor's name.
    pub name: String,
    /// The folder that dumps are written below.
    pub dump_folder: PathBuf,
    /// The file that the guest's kernel was linked to, for `monitor`.
    pub symbols: SymbolFile,
    /// The vCPU that the debugger chose for `c` and `s`.
    pub chosen: Option<u32>,
    /// What threads are to it.
    pub threads: Threads,
    /// Which debugger it is.
    pub client: Client,
    /// It takes errors in words for an answer to any packet.
    pub takes_words: bool,
    /// It wants thread-ids that name the process.
    pub names_process: bool,
    /// It stays connected when it has let go of the guest, or ended it (GDB manual, "Packets", `!`).
    pub is_extended: bool,
    /// What the guest is to it.
    pub process: Process,
    /// The debugger wants the server to end.
    pub is_done: bool,
    /// It may write a program over the kernel that runs.
    pub allows_load: bool,
    /// How often the guest had begun when that was looked at last.
    beginnings: u64,
    /// Bytes that it has written to pages that can be executed, since the target ran last.
    code_written: u64,
}

impl<M: Machine> Session<M> {
    /// A session with a machine that stands still.
    pub fn new(machine: M, engine: Arc<Engine>) -> Session<M> {
        Session {
            registers: RegisterSet::new(&RegisterFile::new(machine.isa())),
            described: None,
            believed: Believed::default(),
            is_told: false,
            debuggee: Debuggee::new(machine, engine),
            name: NAME.into(),
            dump_folder: PathBuf::from("."),
            symbols: SymbolFile::Absent,
            chosen: None,
            threads: Threads::default(),
            client: Client::Unknown,
            takes_words: false,
            names_process: false,
            is_extended: false,
            process: Process::Detached,
            is_done: false,
            allows_load: false,
            code_written: 0,
            beginnings: 0,
        }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.debuggee.isa()
    }

    /// A vCPU's thread-id, as the debugger wants it.
    pub fn thread_id(&self, vcpu: u32) -> String {
        let process = if self.names_process { "p01." } else { "" };
        format!("{process}{:02x}", u64::from(vcpu) + 1)
    }

    /// The machine as the debugger sees it, through the current vCPU.
    pub fn view(&self) -> View<'_> {
        self.debuggee.view()
    }
}
