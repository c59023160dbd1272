//! How a context is resumed, and why it cannot be.

use std::ops::Range;

/// What a context does when it is resumed.
///
/// Ranges are of linear addresses, the first and the one behind the last, as a debugger knows a source line by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It runs.
    Run,
    /// One instruction, into functions that it calls.
    StepInto,
    /// Until it is out of the range, into functions that are called from it.
    StepIntoRange(Range<u64>),
    /// One instruction; a function that it calls is run to its return.
    ///
    /// That return is to the instruction behind the call *on the same stack*: a function that calls itself, a vCPU
    /// that comes by in another task, and what an interrupt runs in between are told apart by the stack pointer, and
    /// in user mode by the translation table. A task that goes on on another vCPU is met there. A function that does
    /// not come back (it ends its task) leaves the step waiting, until something else stops the guest.
    StepOver,
    /// Until it is out of the range; functions that are called from it are run to their return.
    StepOverRange(Range<u64>),
    /// Until the function returns to its caller.
    ///
    /// Where the vCPU stands at the first instruction of a function, as it does after a breakpoint there, and a direct
    /// call has led to it, the return address is known, and the function is run at the guest's speed. Else it is walked
    /// to its own return, without an unwinder: functions that it calls are run to their return, loops without calls
    /// run at the guest's speed once they have been gone through, the rest is stepped. A jump out of the function is
    /// followed: whoever is jumped to returns to the same caller. Of x86 kernels' thunks, which leave by a `RET` that
    /// is none, those are seen that the stack pointer gives away. What it cannot know: that code changes the return
    /// address by itself, or switches stacks (a scheduler's switch of tasks is left in the next task).
    StepOut,
    /// The same; and where it comes back into this range, on until it is out of that, over functions.
    StepOutRange(Range<u64>),
    /// It runs until it is the one that its CPU executes: for tasks, which are not all on a vCPU
    /// ([`Debuggee::find_tasks`](super::Debuggee::find_tasks)). It stops behind the kernel's switch to it, on whichever
    /// vCPU that is; a task that comes to its end instead leaves this waiting, until something else stops the guest.
    UntilActive,
}

impl Mode {
    /// The same, backwards in time.
    pub fn backwards(self) -> Resume {
        Resume { mode: self, is_backwards: true }
    }

    /// Whether one context does it, and not all of them.
    pub(super) fn is_step(&self) -> bool {
        !matches!(self, Mode::Run | Mode::UntilActive)
    }

    /// Whether it may have to be run to a return.
    pub(super) fn runs_to_returns(&self) -> bool {
        !matches!(self, Mode::Run | Mode::UntilActive | Mode::StepInto | Mode::StepIntoRange(_))
    }

    /// Its range.
    pub(super) fn range(&self) -> Option<&Range<u64>> {
        match self {
            Mode::StepIntoRange(range) | Mode::StepOverRange(range) | Mode::StepOutRange(range) => {
                Some(range)
            }
            _ => None,
        }
    }
}

/// A mode, and its direction in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// What it does.
    pub mode: Mode,
    /// Backwards.
    pub is_backwards: bool,
}

impl From<Mode> for Resume {
    fn from(mode: Mode) -> Resume {
        Resume { mode, is_backwards: false }
    }
}

/// Why a context cannot be resumed in a mode, or its memory not be had, by the kind of thing that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// There is no such context.
    #[error("there is no such context")]
    NoContext,
    /// It is over.
    #[error("the guest has ended")]
    Ended,
    /// It has been let go.
    #[error("nobody debugs the guest now: attach to it first")]
    Detached,
    /// It runs already.
    #[error("the guest runs already: interrupt it first")]
    Running,
    /// It is a dump.
    #[error("this is a dump: it does not run")]
    NeverRuns,
    /// There is no record of what was.
    #[error("it cannot go backwards: nothing of what has been is recorded")]
    Backwards,
    /// It is no task, or nobody knows where the kernel switches tasks.
    #[error("vCPUs are always active, and of a task it is to be known where its kernel goes over to it")]
    UntilActive,
    /// It waits for nothing.
    #[error("the task is on a vCPU already")]
    Active,
    /// Tasks make no steps.
    #[error("a task makes no step of its own: the vCPU does that it is on")]
    Task,
    /// A machine makes no step.
    #[error("a step is one vCPU's: name it")]
    ManyVcpus,
    /// The vCPU has not been started.
    #[error("the guest has not started this vCPU: it executes nothing")]
    NotStarted,
    /// The host cannot.
    #[error("this host does no single steps")]
    NoSteps,
    /// The host cannot.
    #[error("this host has no breakpoints, which the way over a function needs")]
    NoBreakpoints,
    /// There is nothing in the range.
    #[error("the range of addresses is empty")]
    EmptyRange,
    /// aarch64 has none, a dump has none, or nobody serves them.
    #[error("there are no ports here")]
    NoPorts,
}
