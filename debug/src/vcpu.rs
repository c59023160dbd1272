//! One vCPU, as its hypervisor gives it: out of the guest, on the thread that runs it.
//!
//! Each method of [`Vcpu`] is about one call of the hypervisor. What they amount to (steps, breakpoints that are
//! passed, exceptions that are re-injected) is made of them in [`live`](crate::live) and in the
//! [engine](crate::engine). Entering the guest is no method: the monitor does that, and serves what the guest
//! wants meanwhile, in the callback that it hands to [`Runner::run`](crate::live::runner::Runner::run).

use crate::arming::{Arming, DebugRegisters};
use crate::machine::{Abilities, Activity, Code, MachineError};
use crate::trap::Injection;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};

/// A vCPU. What its registers are is what they were when it left the guest, and what has been written since; all
/// of that is in force when it enters it again.
pub trait Vcpu {
    /// Its number, from 0.
    fn id(&self) -> u32;

    /// Its architecture.
    fn isa(&self) -> Isa;

    /// Program counter (RIP, PC) and flags (RFLAGS, PSTATE). Asked for after each exit.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn pc_and_flags(&self) -> Result<(u64, u64), MachineError>;

    /// How it reads its code now.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn code(&self) -> Result<Code, MachineError>;

    /// How it translates addresses now.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn regime(&self) -> Result<Regime, MachineError>;

    /// Reads the registers of some banks, as far as the hypervisor gives them.
    fn registers(&self, banks: &[Bank]) -> RegisterFile;

    /// Reads the registers that a stop is told with ([`arch::register::at_stop`]): all general registers where the
    /// hypervisor gives them at once, and those alone where each is a call.
    fn at_stop(&self) -> RegisterFile {
        self.registers(&[Bank::General])
    }

    /// Reads one register of up to 64 bits by its row of [the table](arch::register::table).
    fn register(&self, row: usize) -> Option<u64>;

    /// Writes every register that the file has a value for.
    ///
    /// # Errors
    /// [`MachineError::Host`] for a value that is refused; registers written before it keep their new values.
    fn set_registers(&mut self, file: &RegisterFile) -> Result<(), MachineError>;

    /// Writes a few registers of up to 64 bits by their rows: what a simulated instruction has changed.
    ///
    /// # Errors
    /// As [`Self::set_registers`].
    fn set_rows(&mut self, values: &[(usize, u64)]) -> Result<(), MachineError>;

    /// The debug registers that the guest has armed for itself, as many as the host has the abilities to arm.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn own_debug_registers(&self, abilities: &Abilities) -> Result<DebugRegisters, MachineError>;

    /// Sets what it runs with (KVM API, `KVM_SET_GUEST_DEBUG`).
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn set_debug(&mut self, arming: &Arming) -> Result<(), MachineError>;

    /// Gives the guest an exception of its own that came to the debugger, and sets what it runs with.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn inject(&mut self, injection: &Injection, arming: &Arming) -> Result<(), MachineError>;

    /// Whether an exception that was injected waits for the guest to be entered. aarch64 has none that wait.
    fn has_queued(&self) -> bool;

    /// Gives the guest the external abort that an access to nothing is on hardware.
    ///
    /// # Errors
    /// [`MachineError::Host`] where the hypervisor cannot.
    fn abort_access(&mut self) -> Result<(), MachineError>;

    /// x86: keeps interrupts out of the next instruction, by an interrupt shadow, where
    /// [`Abilities::blocks_interrupts`] says that arming does not.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn shadow_interrupts(&mut self) -> Result<(), MachineError>;

    /// x86: has it go on behind a `HLT` that it waits in.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn end_halt(&mut self) -> Result<(), MachineError>;

    /// What it is doing.
    fn activity(&self) -> Activity;

    /// Raises a non-maskable interrupt.
    ///
    /// # Errors
    /// [`MachineError::Host`] where there is none.
    fn nmi(&mut self) -> Result<(), MachineError>;

    /// Forgets a kick that came before now, so that the guest can be entered: whoever kicked kicks again, or has
    /// left a task that is looked for behind this.
    fn clear_kick(&mut self);
}
