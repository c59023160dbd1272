//! Why a guest stands still.

use super::tree::Id;
use crate::breakpoint;
use crate::machine::{Ended, StopReason};

/// Something to report: by number of vCPU, as a debugger's protocol tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A vCPU stopped, and all stand still.
    Vcpu(u32, StopReason),
    /// The guest is over.
    Ended(Ended),
}

/// Why a context stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The vCPU that has stopped; the others stand still because it has.
    pub context: Id,
    /// Why it has.
    pub reason: StopReason,
    /// The breakpoints that it has stopped at. Of several on one place those are in it whose conditions hold.
    pub breakpoints: Vec<breakpoint::Id>,
}

/// What a context is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextState {
    /// The guest has not started this vCPU.
    NotStarted,
    /// It runs, or waits for an interrupt.
    Running,
    /// It stands still.
    Stopped(Stopped),
    /// It is over.
    Ended(Ended),
}
