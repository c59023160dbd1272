//! What a host can do for a debugger, and what a watchpoint can watch for.

/// What a watchpoint watches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Both.
    Any,
}

/// What a host can do for a debugger, found by trying it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// How a planted breakpoint instruction comes to us.
    pub software: SoftwareBreakpoints,
    /// Single steps work.
    pub single_step: bool,
    /// Breakpoint registers that work; on x86 shared with watchpoints.
    pub breakpoints: usize,
    /// Watchpoint registers that work.
    pub watchpoints: usize,
    /// KVM keeps interrupts out of a step (`KVM_GUESTDBG_BLOCKIRQ`).
    pub blocks_interrupts: bool,
}

/// The ways in which a planted breakpoint instruction can be noticed, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftwareBreakpoints {
    /// KVM traps it.
    Trapped,
    /// KVM fails to emulate it and tells its bytes.
    EmulationFailure,
    /// Not at all: debug registers take its place.
    None,
}
