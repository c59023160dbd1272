//! A debug session: what a debugger has asked for of one [`Machine`].
//!
//! Threads are vCPUs; gdb's thread-ids are their numbers plus one.

use super::description::{Believed, Described, RegisterSet};
use crate::breakpoint::Kind;
use crate::cancel::Cancel;
use crate::engine::Engine;
use crate::machine::{Action, Machine, StopReason};
use crate::view::View;
use arch::Isa;
use arch::register::RegisterFile;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

mod attach;
mod breakpoints;
mod run;
mod stop;
mod told;
mod write;

pub use breakpoints::InsertError;
use breakpoints::Refused;
pub use stop::Stop;
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

/// A session with a machine.
#[derive(Debug)]
pub struct Session<M: Machine> {
    /// The machine.
    pub machine: M,
    /// What judges its exits.
    pub engine: Arc<Engine>,
    /// Registers that are described to the debugger.
    pub registers: RegisterSet,
    /// What the processor is described as to the debugger that attaches next, if somebody has said so.
    pub described: Option<Described>,
    /// What it is described as where nobody has: that follows from the kernel's file.
    pub believed: Believed,
    /// The debugger has been told that it was told of another processor than there is.
    is_told: bool,
    /// The vCPU that memory is looked at through, and that stopped last.
    pub current: u32,
    /// Addresses are guest-physical.
    pub is_physical: bool,
    /// What commands that take long ask whether they are still wanted.
    pub cancel: Cancel,
    /// The folder that dumps are written below.
    pub dump_folder: PathBuf,
    /// The vCPU that the debugger chose for `c` and `s`.
    pub chosen: Option<u32>,
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
    /// Bytes that it has written to pages that can be executed, since the target ran last.
    code_written: u64,
    /// What vCPUs were told to do last.
    actions: Vec<Action>,
    /// What it is to be told on its console.
    words: String,
    /// The guest is held for the debugger that comes next.
    is_left: bool,
    /// vCPUs that stand at a breakpoint whose hit has been reported, with its address.
    reported: Vec<Option<u64>>,
    /// Breakpoints that gdb has asked for and that are not there, and why: kind, address and length. gdb has words
    /// of its own for that, which are wrong here; it inserts them when it resumes, and that is answered with these.
    refused: BTreeMap<(Kind, u64, u64), Refused>,
    /// Stops of further vCPUs that have not been reported yet.
    pending: Vec<(u32, StopReason)>,
}

impl<M: Machine> Session<M> {
    /// A session with a machine that stands still.
    pub fn new(machine: M, engine: Arc<Engine>) -> Session<M> {
        let vcpus = machine.vcpus() as usize;
        Session {
            registers: RegisterSet::new(&RegisterFile::new(machine.isa())),
            described: None,
            believed: Believed::default(),
            is_told: false,
            machine,
            engine,
            current: 0,
            is_physical: false,
            cancel: Cancel::never(),
            dump_folder: PathBuf::from("."),
            chosen: None,
            client: Client::Unknown,
            takes_words: false,
            names_process: false,
            is_extended: false,
            process: Process::Detached,
            is_done: false,
            allows_load: false,
            code_written: 0,
            actions: Vec::new(),
            words: String::new(),
            is_left: false,
            reported: vec![None; vcpus],
            refused: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.machine.isa()
    }

    /// A vCPU's thread-id, as the debugger wants it.
    pub fn thread_id(&self, vcpu: u32) -> String {
        let process = if self.names_process { "p01." } else { "" };
        format!("{process}{:02x}", u64::from(vcpu) + 1)
    }

    /// The machine as the debugger sees it, through the current vCPU.
    pub fn view(&self) -> View<'_> {
        View {
            machine: &self.machine,
            engine: &self.engine,
            vcpu: self.current,
            is_physical: self.is_physical,
            cancel: &self.cancel,
        }
    }

    /// Gives commands that take long, and the machine, what they ask whether they are still wanted.
    pub fn set_cancel(&mut self, cancel: &Cancel) {
        self.cancel = cancel.clone();
        self.machine.set_cancel(cancel);
    }
}
