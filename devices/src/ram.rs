//! The guest's RAM, as its devices and its hypervisor's calls see it: the one way to it for what serves a guest.
//!
//! Whoever implements it knows what else there is in that memory. A debugger plants instructions, which no device is
//! to read and which are not to be lost when one writes over them; whoever keeps account of pages that have been
//! written learns of it here. So no device is given the memory itself.

use arch::GuestPhys;
use arch::address::PhysRange;
use std::fmt::Debug;
pub use vm_memory::VolatileSlice;

/// RAM of a guest. Addresses are guest-physical.
pub trait Ram: Send + Sync + Debug {
    /// The ranges of RAM, in ascending order.
    fn ranges(&self) -> Vec<PhysRange>;

    /// Reads as many bytes as there are in one piece from `address`; how many.
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize;

    /// Writes likewise.
    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize;

    /// Sets and clears bits of a naturally aligned word of `size` bytes, 1, 4 or 8, in one step; what
    /// was there, or `None` if it is not in RAM.
    fn update(&self, address: GuestPhys, size: usize, set: u64, clear: u64) -> Option<u64>;

    /// RAM in one piece, as it is, for what device and guest share all the time: a queue's rings. What a debugger has
    /// planted there is seen and written over, so it is for nothing else.
    fn shared(&self, address: GuestPhys, size: usize) -> Option<VolatileSlice<'_>>;

    /// So many bytes of what is [shared](Self::shared) have been written there: whoever keeps account of pages that
    /// have been written learns of it.
    fn written(&self, _address: GuestPhys, _size: usize) {}

    /// Lends parts of RAM as they are, each an address and its bytes, for as long as `work` takes: to a host that reads into
    /// them by itself. What it wrote is told by [`Self::written`]. `false`: nothing was lent, as
    /// there may be something in RAM that is not the guest's, or a part does not lie in it in one piece. It is no fault:
    /// [`Self::read`] and [`Self::write`] always do.
    fn lend(&self, _parts: &[(GuestPhys, usize)], _work: &mut dyn FnMut(&[VolatileSlice<'_>])) -> bool {
        false
    }

    /// Has the host forget how it maps the page of 4 KiB at an address for KVM, without its contents' being lost.
    /// Where no RAM is, nothing happens.
    fn forget_mapping(&self, page: GuestPhys);
}
