//! What Xen's family asks of the machine.

use crate::ram::Ram;
use arch::hypercall::Abi;
use std::fmt::Debug;

/// What the machine does for Xen's guest.
pub trait Platform: Send + Sync + Debug {
    /// Console output.
    fn console_write(&self, bytes: &[u8]);

    /// Console input; how many bytes there were.
    fn console_read(&self, bytes: &mut [u8]) -> usize;

    /// The guest's RAM.
    fn ram(&self) -> &dyn Ram;

    /// vCPUs.
    fn vcpus(&self) -> u32;

    /// Interrupts a vCPU by a vector of its local APIC, or by a private interrupt, which is a level:
    /// it is due as long as the byte at `pending`, guest-physical, is not 0.
    fn interrupt(&self, vcpu: u32, number: u32, pending: u64);

    /// Nanoseconds since the machine started.
    fn now(&self) -> u64;

    /// Nanoseconds since 1970.
    fn wall(&self) -> u64;

    /// Has the calling vCPU wait: until a time ([`Self::now`]), until it is over, or for as long as the
    /// machine likes, as it may be needed meanwhile.
    fn wait(&self, until: Option<u64>, is_over: &dyn Fn() -> bool);

    /// The host's own way to deliver events, if it has one.
    fn delivery(&self) -> Option<&dyn Delivery>;

    /// Has [`Xen::expire`](super::Xen::expire) called for a vCPU at a time, or not at all; a vCPU has one time.
    fn set_timer(&self, vcpu: u32, at: Option<u64>);
}

/// A host that delivers events itself, by the two-level interface. It keeps the guest's time in the
/// structures that it is told of.
pub trait Delivery {
    /// The shared page is at `address`, guest-physical, laid out for callers like `abi`'s; whether the
    /// host takes it.
    fn share(&self, address: u64, abi: Abi) -> bool;

    /// A vCPU's `struct vcpu_info` is at `info`, guest-physical. The host may get to it later.
    fn place(&self, vcpu: u32, info: u64);

    /// A vCPU is told of events by this vector of its local APIC. The host may get to it later.
    fn set_vector(&self, vcpu: u32, vector: u8);

    /// Every vCPU is told of events by this vector, 0 for none, which needs no end of interrupt;
    /// whether the host takes it.
    fn set_callback(&self, vector: u8) -> bool;

    /// Makes a port's event pending, and tells the vCPU; `false` if the host cannot yet.
    fn send(&self, vcpu: u32, port: u32) -> bool;
}
