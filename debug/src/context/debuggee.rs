//! A guest that is debugged: its machine, and what has been asked of it.

mod breakpoints;
mod contexts;
mod life;
mod memory;
mod run;
mod steps;
#[cfg(feature = "linux")]
mod tasks;
#[cfg(not(feature = "linux"))]
#[path = "debuggee/no_tasks.rs"]
mod tasks;

pub use breakpoints::{InsertError, Known, Point};
pub use contexts::{GoError, ResumeError, WaitError};
#[cfg(feature = "linux")]
pub use tasks::TasksError;

use super::listen::Listeners;
use super::stop::Stopped;
use super::tree::Tree;
use crate::breakpoint::{Id as BreakpointId, Kind};
use crate::cancel::Cancel;
use crate::engine::Engine;
use crate::machine::{Action, Ended, Event, Machine, StopReason};
use crate::view::View;
use arch::Isa;
use breakpoints::Refused;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use steps::Stepping;

/// A stop that has been reported, in front of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reported {
    /// Its linear address.
    at: u64,
    /// It was for an access that the instruction makes, and not for the instruction itself.
    is_access: bool,
}

/// A guest that is debugged.
///
/// It is one thread's; what other threads may have is its [listeners](Debuggee::listeners). Nothing of it waits for a
/// listener. What it says of the guest is as of the last time that this thread has looked at it
/// ([`wait`](Debuggee::wait), [`poll`](Debuggee::poll)).
#[derive(Debug)]
pub struct Debuggee<M: Machine> {
    /// The machine.
    pub machine: M,
    /// What judges its exits.
    pub engine: Arc<Engine>,
    /// What is asked by whatever takes long, whether it is still wanted.
    pub cancel: Cancel,
    /// The vCPU through which addresses are looked at that nobody says more about, and that stopped last.
    pub current: u32,
    /// Such addresses are guest-physical.
    pub is_physical: bool,
    tree: Tree,
    listeners: Listeners,
    /// What breakpoints were asked for, of those that have been by [`Debuggee::add`].
    points: BTreeMap<BreakpointId, Point>,
    /// What vCPUs were told to do last.
    actions: Vec<Action>,
    /// They have been told so, and none has been seen to stop since.
    is_running: bool,
    /// Listeners know it as running.
    is_told_running: bool,
    /// Its debugger has it.
    is_attached: bool,
    /// It is held for the debugger that comes next.
    is_left: bool,
    /// The step that is under way.
    stepping: Option<Stepping>,
    /// What has happened and was not looked at yet.
    happened: VecDeque<Event>,
    /// Why it stands still.
    stopped: Option<Stopped>,
    /// How it has ended, if it has.
    ended: Option<Ended>,
    /// How often it has begun again.
    beginnings: u64,
    /// What whoever debugs is to be told in words.
    words: String,
    /// vCPUs that stand at an instruction whose stop has been reported, and that is still to be executed.
    reported: Vec<Option<Reported>>,
    /// Breakpoints that have been asked for and that are not there, and why: kind, address and length.
    refused: BTreeMap<(Kind, u64, u64), Refused>,
    /// Stops of further vCPUs that have not been reported yet.
    pending: Vec<(u32, StopReason)>,
    /// The tasks of the guest's kernel, as of the last look.
    found: tasks::Found,
}

impl<M: Machine> Debuggee<M> {
    /// Of a machine that stands still, and whose exits `engine` judges. Nobody has it before it is
    /// [attached](Debuggee::attach).
    pub fn new(machine: M, engine: Arc<Engine>) -> Debuggee<M> {
        let vcpus = machine.vcpus();
        let tree = Tree::of_machine(vcpus);
        Debuggee {
            listeners: Listeners::new(&tree),
            tree,
            machine,
            engine,
            cancel: Cancel::never(),
            current: 0,
            is_physical: false,
            points: BTreeMap::new(),
            actions: Vec::new(),
            is_running: false,
            is_told_running: true,
            is_attached: false,
            is_left: false,
            stepping: None,
            happened: VecDeque::new(),
            stopped: None,
            ended: None,
            beginnings: 0,
            words: String::new(),
            reported: vec![None; vcpus as usize],
            refused: BTreeMap::new(),
            pending: Vec::new(),
            found: tasks::Found::default(),
        }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.machine.isa()
    }

    /// The machine as whoever debugs it sees it, through the current vCPU.
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

    /// Whoever wants to hear what happens. Any thread may add itself, and none is waited for.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Adds to what whoever debugs is to be told in words.
    pub(crate) fn say(&mut self, words: &str) {
        self.words.push_str(words);
    }

    /// What has been said and not been told yet.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// What is to be told, once.
    pub fn take_words(&mut self) -> Option<String> {
        let words = std::mem::take(&mut self.words);
        (!words.is_empty()).then_some(words)
    }

    /// How often the guest has begun again.
    pub fn beginnings(&self) -> u64 {
        self.beginnings
    }

    /// Whether its debugger has it; else it runs by itself, or has been left.
    pub fn is_attached(&self) -> bool {
        // Whoever has brought it to a live guest may have taken it away (`live::Debugger::leave`).
        self.is_attached && !self.machine.is_left()
    }
}

impl<M: Machine> Drop for Debuggee<M> {
    /// Listeners are told that there is no more to come. Nothing of the guest is touched.
    fn drop(&mut self) {
        self.listeners.dispose(&self.tree);
    }
}
