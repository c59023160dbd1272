//! Memory of a live guest, for what serves the guest: devices and hypercalls read what the guest has put there, and
//! what they write stays written, wherever instructions are planted.
//!
//! A write over a planted instruction leaves it planted as long as the breakpoint's address still leads there: what
//! was written is its original from then on. Where that is not known, or the page has become something else's, what
//! is written comes first: the instruction goes, and comes back when the target is resumed next, if the place is
//! the address's then ([`Engine::refresh`]).

use super::Engine;
use crate::machine::Memory;
use arch::{GuestPhys, GuestVirt};

impl Engine {
    /// Reads guest-physical memory; how many bytes are good.
    pub fn read_for_guest(&self, memory: &dyn Memory, address: GuestPhys, bytes: &mut [u8]) -> usize {
        // What is planted meanwhile is not to be read either.
        let requests = self.requests();
        let count = memory.read(address, bytes);
        requests.table.unmask(address, &mut bytes[..count]);
        count
    }

    /// Writes guest-physical memory; how many bytes were written.
    pub fn write_for_guest(&self, memory: &dyn Memory, address: GuestPhys, bytes: &[u8]) -> usize {
        let mut requests = self.requests();
        let space = requests.space;
        let leads_to = |address: GuestVirt| space?.locate(memory, address).ok().map(|(place, _)| place);
        requests.table.write_for_guest(memory, address, bytes, &leads_to)
    }

    /// Has what is planted in a range of bytes make way, and then `change` them: for words of data that the guest
    /// looks at by itself meanwhile.
    pub fn change_for_guest<R>(
        &self,
        memory: &dyn Memory,
        address: GuestPhys,
        length: usize,
        change: impl FnOnce() -> R,
    ) -> R {
        let mut requests = self.requests();
        requests.table.make_way(memory, address, length);
        // Nothing is planted before it is done.
        change()
    }
}
