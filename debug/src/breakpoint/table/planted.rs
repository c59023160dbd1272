//! Planted instructions: what they replaced, and what is seen and written in their place.

use super::super::instruction::planted_instruction;
use super::super::point::Place;
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
        self.planted.insert(place, Planted { original, users: 1, awaits_code });
        Ok(())
    }

    pub(super) fn uproot(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let Some(planted) = self.planted.get_mut(&place) else { return };
        planted.users -= 1;
        if planted.users == 0
            && let Some(planted) = self.planted.remove(&place)
            && self.stands(memory, place)
        {
            memory.write(place, &planted.original);
        }
    }

    /// Whether the planted instruction is in memory at `place`.
    pub(super) fn stands(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        let instruction = planted_instruction(self.isa);
        let mut there = vec![0; instruction.len()];
        memory.read(place, &mut there) == there.len() && there == instruction
    }

    /// Whether we planted the instruction at a guest-physical address, and it is there.
    pub fn is_planted(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        self.planted.contains_key(&place) && self.stands(memory, place)
    }

    /// Takes the planted instruction at `place` out for a step, if it is there.
    pub fn lift(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        match self.planted.get(&place) {
            Some(planted) if self.stands(memory, place) => {
                memory.write(place, &planted.original);
                true
            }
            _ => false,
        }
    }

    /// Puts the instruction at `place` back after a step. What the guest has put there
    /// meanwhile is the new original.
    pub fn replant(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let instruction = planted_instruction(self.isa);
        if let Some(planted) = self.planted.get_mut(&place)
            && memory.read(place, &mut planted.original) == instruction.len()
        {
            memory.write(place, instruction);
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
            if bytes[at] == instruction[index] {
                bytes[at] = planted.original[index];
            }
        });
    }

    /// Takes bytes that are about to be written at `address`: where an instruction is planted,
    /// they become the original and the planted one stays in `bytes`.
    pub fn write_over(&mut self, address: GuestPhys, bytes: &mut [u8]) {
        let instruction = planted_instruction(self.isa);
        let mut changes = Vec::new();
        self.overlaps(address, bytes.len(), |place, _, index, at| changes.push((place, index, at)));
        for (place, index, at) in changes {
            if let Some(planted) = self.planted.get_mut(&place) {
                planted.original[index] = bytes[at];
                bytes[at] = instruction[index];
            }
        }
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
