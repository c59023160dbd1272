//! virtio: devices that a guest speaks to through queues in its RAM.
//!
//! A device's model ([`Model`]) knows queues and what goes through them, and no registers. A transport ([`pci`]) knows
//! registers, and nothing of what goes through queues. What is between the two, and the same for all devices and
//! transports, is [`device`]. Queues are served on threads of the device's own ([`worker`]), which are rung by the guest
//! and interrupt it by [`Interrupts`]; a vCPU's thread does no more than to ring. They rest while the guest is held
//! ([`pace`]).
//!
//! A guest's rings are hostile: what is wrong with one ([`queue::Broken`]) is the end of that device until the guest
//! resets it (`DEVICE_NEEDS_RESET`), and of nothing else.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, with its section.

pub mod block;
pub mod console;
pub mod device;
pub mod entropy;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pace;
pub mod pci;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod vsock;
pub mod worker;

use crate::state::Misfit;
use crate::threads;
use pace::Outside;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::{Arc, Weak};
use worker::Serve;

/// What a device's threads interrupt the guest by.
pub trait Interrupts: Send + Sync + Debug {
    /// Buffers of a queue have been used.
    fn queue(&self, index: u16);

    /// The device's configuration has changed.
    fn configuration(&self);

    /// The device cannot go on before the guest resets it (2.1.2 "Device Requirements: Device Status Field").
    fn needs_reset(&self);
}

/// What serves some of a device's queues, on a thread of its own.
pub struct Service {
    /// What does it.
    pub server: Box<dyn Serve>,
    /// The queues, by their numbers. No two services have the same.
    pub queues: Vec<usize>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// A device, behind whichever transport, that can be parted from what its model has of the host.
pub trait Unplug: Send {
    /// Takes it from the guest, for good: what serves it ends, and is waited for, 5 s at most; what the host had of the
    /// guest by it (connections, open files) ends as by a reset. From here on, whatever the guest does to its
    /// registers, it does not touch what its model has of the host, which another device may have by then: it offers
    /// nothing of its own, and its configuration reads as zeros.
    ///
    /// `false`: the host does not answer what the device has asked of it. What its model has of the host, and the
    /// guest's RAM, are then in use still, and nobody else may be given them. It may be tried again.
    #[must_use = "what is in use still may not be given to another device"]
    fn unplug(&mut self) -> bool;
}

/// A device's model. What is asked of it while its threads serve ([`Self::features`], its configuration) waits for none
/// of them; the rest is asked of it when they have ended or are at rest.
pub trait Model: Send {
    /// What is saved of it, beside its queues and what is agreed on.
    type State: Serialize + DeserializeOwned;

    /// Name for the log and for threads; at most 15 bytes.
    fn name(&self) -> &'static str;

    /// What it is (5 "Device Types").
    fn id(&self) -> u16;

    /// What a PCI bus says it is: base class, subclass, interface (PCI Code and ID Assignment).
    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }

    /// What it can do beyond what queues can (a bit for each feature).
    fn features(&self) -> u64 {
        0
    }

    /// The most entries of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration; `data` holds zeros.
    fn read_configuration(&self, _offset: u64, _data: &mut [u8]) {}

    /// Writes to it.
    fn write_configuration(&mut self, _offset: u64, _data: &[u8]) {}

    /// Begins: the guest's driver has taken these features. What serves which queues, and by what it tells the guest
    /// of other things than used buffers.
    fn services(&mut self, features: u64, interrupts: &Arc<dyn Interrupts>) -> Vec<Service>;

    /// What touches the guest's RAM for it beside what serves its queues here.
    fn outside(&self) -> Option<Weak<dyn Outside>> {
        None
    }

    /// The driver has taken a queue back, which is not served any more.
    fn closed(&mut self, _queue: usize) {}

    /// What served has ended: the device is being reset, or saved to begin anew.
    fn ended(&mut self) {}

    /// What of a reset the host may keep whoever does it with, for as long as it likes: files of the host's are closed.
    /// It is done on a thread that is left to itself, when what served has ended and before [`Self::reset`].
    fn slow_reset(&self) -> Option<threads::Work> {
        None
    }

    /// As after power-on; what it served has ended. A vCPU's thread does this, and may not be kept by the host.
    fn reset(&mut self) {}

    /// Its state, while nothing is being served.
    fn save(&self) -> Self::State;

    /// Puts it back, while it is not begun.
    ///
    /// # Errors
    /// [`Misfit`], and nothing is done.
    fn restore(&mut self, state: Self::State) -> Result<(), Misfit>;
}

/// Reads from a configuration that is these bytes, and zeros behind them.
fn read_bytes(whole: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| whole.get(offset..)).unwrap_or_default();
    let count = rest.len().min(data.len());
    data[..count].copy_from_slice(&rest[..count]);
}
