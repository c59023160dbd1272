//! A vCPU whose exit is judged, with what its thread knows of it.

use crate::arming::{Arming, Own};
use crate::machine::{MachineError, Memory};
use crate::trap::{Injection, Trap};
use crate::vcpu::Vcpu;

/// How a step that the engine asked for ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The instruction is done.
    Done,
    /// It is not: it faulted, and the vCPU is at the handler.
    Faulted,
    /// It raised a debug exception instead.
    Trapped(Trap),
    /// Something else happened first, for instance a kick, or an exit that ends the guest; the run loop
    /// deals with it. Where the vCPU still is at the instruction, that is begun again.
    Other,
}

/// A vCPU on its own thread, out of the guest, and what can be done with it there. It is made by the
/// [runner](crate::live::runner) of the thread; a scripted one stands in for it in tests.
pub trait Cpu {
    /// The vCPU.
    fn vcpu(&self) -> &dyn Vcpu;

    /// The same, to be written to.
    fn vcpu_mut(&mut self) -> &mut dyn Vcpu;

    /// RAM.
    fn memory(&self) -> &dyn Memory;

    /// Sets what it runs with from its next entry on.
    fn arm(&mut self, arming: &Arming);

    /// Re-injects an exception of the guest's own.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn inject(&mut self, injection: &Injection) -> Result<(), MachineError>;

    /// Whether the guest's debug registers still say what the injection tells of. If not, what the
    /// vCPU runs with follows what they say now.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn is_own(&mut self, injection: &Injection) -> Result<bool, MachineError>;

    /// The debug registers in force that are the guest's own, beside others. `None` where only the
    /// guest's are in force, as it set them.
    fn own_among_others(&self) -> Option<&[Own]>;

    /// The debug registers in force that are the guest's own, whether beside others or not.
    fn own_registers(&self) -> Vec<Own>;

    /// Makes all other vCPUs leave the guest and stay out until [`Self::end_exclusive`].
    /// Another vCPU that wants the same waits.
    fn begin_exclusive(&mut self);

    /// Lets the others in again.
    fn end_exclusive(&mut self);

    /// The linear address of the instruction that was stepped last, if it faulted instead and the
    /// vCPU is at the handler.
    fn faulted_at(&self) -> Option<u64>;

    /// Executes one instruction, interrupts kept out as the arming says, serving the accesses
    /// that it makes.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    fn step(&mut self) -> Result<Stepped, MachineError>;
}
