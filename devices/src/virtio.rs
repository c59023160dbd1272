//! virtio: devices that a guest speaks to through queues in its RAM.
//!
//! A device's model ([`Model`]) knows queues and what goes through them, and no registers. A transport ([`pci`]) knows
//! registers, and nothing of what goes through queues. Queues are served on a thread of the device's own
//! ([`worker`]), which is rung by the guest and interrupts it by [`Interrupts`]; a vCPU's thread does no more than to
//! ring.
//!
//! A guest's rings are hostile: what is wrong with one ([`queue::Broken`]) is the end of that device until the guest
//! resets it (`DEVICE_NEEDS_RESET`), and of nothing else.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, with its section.

pub mod entropy;
pub mod pci;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod worker;

use queue::ActiveQueue;
use std::fmt::Debug;

/// What a device's threads interrupt the guest by.
pub trait Interrupts: Send + Sync + Debug {
    /// Buffers of a queue have been used.
    fn queue(&self, index: u16);

    /// The device's configuration has changed.
    fn configuration(&self);

    /// The device cannot go on before the guest resets it (2.1.2 "Device Requirements: Device Status Field").
    fn needs_reset(&self);
}

/// A device's model.
pub trait Model: Send {
    /// Name for the log and for threads; at most 15 bytes.
    fn name(&self) -> &'static str;

    /// What it is (5 "Device Types").
    fn id(&self) -> u16;

    /// What it can do beyond what queues can (a bit for each feature).
    fn features(&self) -> u64;

    /// The most entries of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration; `data` holds zeros.
    fn read_configuration(&self, offset: u64, data: &mut [u8]);

    /// Writes to it.
    fn write_configuration(&mut self, offset: u64, data: &[u8]);

    /// Begins to serve: the guest's driver has taken these features, and has set up these queues; `None` is one that it
    /// does without. What cannot be served is said by [`Interrupts::needs_reset`].
    fn start(&mut self, features: u64, queues: Vec<Option<ActiveQueue>>);

    /// Ends it. When this returns, nobody reads or writes the guest's RAM for this device any more.
    fn stop(&mut self);
}
