//! Planted instructions: what they replaced, and what is seen and written in their place.

use super::super::id::Id;
use super::super::instruction::{is_breakpoint, planted_instruction};
use super::super::point::{Breakpoint, Place};
use super::{InsertError, Table};
use crate::ram::Memory;
use arch::{GuestPhys, GuestVirt};

/// What a planted instruction replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planted {
    pub(super) original: Vec<u8>,
    pub(super) users: usize,
    /// There was no code when it was planted.
    pub(super) awaits_code: bool,
    /// The instruction is out: lifted for a step, or out of the way of what was written for the guest. Memory is
    /// the guest's until it is planted again.
    pub(super) is_out: bool,
}

/// Bytes of zeros that are no code: on x86 eight instructions that write to memory, on aarch64 four that
/// are undefined.
const NO_CODE: usize = 16;

impl Table {
    pub(super) fn plant(&mut self, memory: &dyn Memory, place: GuestPhys) -> Result<(), InsertError> {
        if let Some(planted) = self.planted.get_mut(&place) {
            planted.users += 1;
            return Ok(());
        }
        let instruction = planted_instruction(self.isa);
        let mut original = vec![0; instruction.len()];
        let mut code = [0; NO_CODE];
        let count = memory.read(place, &mut code);
        if memory.read(place, &mut original) < original.len()
            || memory.write(place, instruction) < instruction.len()
        {
            return Err(InsertError::NotRam(place));
        }
        let awaits_code = code[..count].iter().all(|byte| *byte == 0);
        self.planted.insert(place, Planted { original, users: 1, awaits_code, is_out: false });
        Ok(())
    }

    pub(super) fn uproot(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let Some(planted) = self.planted.get_mut(&place) else { return };
        planted.users -= 1;
        if planted.users == 0 {
            self.lift(memory, place);
            self.planted.remove(&place);
        }
    }

    /// Whether the planted instruction is in memory at `place`.
    pub(super) fn stands(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        if self.planted.get(&place).is_some_and(|planted| planted.is_out) {
            return false;
        }
        let instruction = planted_instruction(self.isa);
        let mut there = vec![0; instruction.len()];
        memory.read(place, &mut there) == there.len() && there == instruction
    }

    /// Whether we planted the instruction at a guest-physical address, and it is there.
    pub fn is_planted(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        self.planted.contains_key(&place) && self.stands(memory, place)
    }

    /// Whether a trap at `place` is of an instruction that we planted: it is there, or was when it was met. Another
    /// vCPU may have it lifted for a step of its own by now, or written for the guest; what is there then is no
    /// breakpoint instruction, or it would be the guest's own.
    pub fn is_met(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        if !self.planted.contains_key(&place) {
            return false;
        }
        let mut there = vec![0; planted_instruction(self.isa).len()];
        let is_read = memory.read(place, &mut there) == there.len();
        self.stands(memory, place) || is_read && !is_breakpoint(self.isa, &there)
    }

    /// Takes the planted instruction at `place` out, if it is there: for a step, until [`Self::replant`].
    pub fn lift(&mut self, memory: &dyn Memory, place: GuestPhys) -> bool {
        if !self.is_planted(memory, place) {
            return false;
        }
        if let Some(planted) = self.planted.get_mut(&place) {
            memory.write(place, &planted.original);
            planted.is_out = true;
        }
        true
    }

    /// Takes out what is planted within a range, which somebody is about to change for the guest.
    pub fn make_way(&mut self, memory: &dyn Memory, address: GuestPhys, length: usize) {
        for place in self.places(address, length) {
            self.lift(memory, place);
        }
    }

    /// Writes for the guest; how many bytes were written. A planted instruction that is in memory stays, with what
    /// is written for its original, if a breakpoint's address still leads there, as `leads_to` says; else it makes
    /// way.
    pub fn write_for_guest(
        &mut self,
        memory: &dyn Memory,
        address: GuestPhys,
        bytes: &[u8],
        leads_to: &dyn Fn(GuestVirt) -> Option<GuestPhys>,
    ) -> usize {
        let places = self.places(address, bytes.len());
        if places.is_empty() {
            return memory.write(address, bytes);
        }
        for place in places {
            let is_theirs =
                |it: &Breakpoint| it.place == Place::Planted(place) && leads_to(it.address) == Some(place);
            if !self.stands(memory, place) || !self.breakpoints.values().any(is_theirs) {
                self.lift(memory, place);
                // What the guest has written over it by itself is the guest's, too.
                if let Some(planted) = self.planted.get_mut(&place) {
                    planted.is_out = true;
                }
            }
        }
        let mut masked = bytes.to_vec();
        self.write_over(address, &mut masked);
        memory.write(address, &masked)
    }

    /// Puts the instruction at `place` back after a step. What the guest has put there
    /// meanwhile is the new original.
    pub fn replant(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let instruction = planted_instruction(self.isa);
        if self.stands(memory, place) {
            return;
        }
        if let Some(planted) = self.planted.get_mut(&place)
            && memory.read(place, &mut planted.original) == instruction.len()
        {
            memory.write(place, instruction);
            planted.is_out = false;
        }
    }

    /// Plants the instruction of a breakpoint again, if that is at `place` and code has been copied over it.
    pub fn restore(&mut self, memory: &dyn Memory, place: GuestPhys, id: Option<Id>) {
        if !self.is_planted(memory, place) && self.planted_at(place).iter().any(|there| Some(*there) == id) {
            self.replant(memory, place);
        }
    }

    /// Places where the guest has written over an instruction of ours, for instance a kernel
    /// that patches its text, with an address that the breakpoint was asked for at. Whether the
    /// place is still that address's is for the caller to find out: a page that has become
    /// something else must not be written to. [`Self::replant`] plants again.
    pub fn overwritten(&self, memory: &dyn Memory) -> Vec<(GuestPhys, GuestVirt)> {
        let is_overwritten = |place: &GuestPhys| !self.stands(memory, *place);
        let address = |place: GuestPhys| {
            self.breakpoints.values().find(|breakpoint| breakpoint.place == Place::Planted(place))
        };
        self.planted
            .keys()
            .filter(|place| is_overwritten(place))
            .filter_map(|place| Some((*place, address(*place)?.address)))
            .collect()
    }

    /// Puts originals over planted instructions in `bytes`, which were read at `address`.
    pub fn unmask(&self, address: GuestPhys, bytes: &mut [u8]) {
        let instruction = planted_instruction(self.isa);
        self.overlaps(address, bytes.len(), |_, planted, index, at| {
            // Where the guest has patched its text, memory is right as it is.
            if !planted.is_out && bytes[at] == instruction[index] {
                bytes[at] = planted.original[index];
            }
        });
    }

    /// Takes bytes that are about to be written at `address`: where an instruction is planted,
    /// they become the original and the planted one stays in `bytes`. One that is out stays out.
    pub fn write_over(&mut self, address: GuestPhys, bytes: &mut [u8]) {
        let instruction = planted_instruction(self.isa);
        let mut changes = Vec::new();
        self.overlaps(address, bytes.len(), |place, planted, index, at| {
            if !planted.is_out {
                changes.push((place, index, at));
            }
        });
        for (place, index, at) in changes {
            if let Some(planted) = self.planted.get_mut(&place) {
                planted.original[index] = bytes[at];
                bytes[at] = instruction[index];
            }
        }
    }

    /// The places of planted instructions of which a byte is within a range.
    fn places(&self, address: GuestPhys, length: usize) -> Vec<GuestPhys> {
        let mut places = Vec::new();
        self.overlaps(address, length, |place, _, _, _| {
            if places.last() != Some(&place) {
                places.push(place);
            }
        });
        places
    }

    /// Calls `visit` for each byte of a planted instruction within a range: its place, its
    /// entry, its index in the instruction and in the range.
    fn overlaps(
        &self,
        address: GuestPhys,
        length: usize,
        mut visit: impl FnMut(GuestPhys, &Planted, usize, usize),
    ) {
        let size = planted_instruction(self.isa).len() as u64;
        let first = GuestPhys(address.0.saturating_sub(size - 1));
        let Some(last) = address.0.checked_add(length as u64) else { return };
        for (place, planted) in self.planted.range(first..GuestPhys(last)) {
            for index in 0..planted.original.len() {
                let at = (place.0 + index as u64).checked_sub(address.0);
                if let Some(at) = at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < length) {
                    visit(*place, planted, index, at);
                }
            }
        }
    }
}
