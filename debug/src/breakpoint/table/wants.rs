//! What breakpoints want of debug registers, and which wait for something.

use super::super::id::Id;
use super::super::point::{Breakpoint, NOT_MAPPED, NOT_RAM, PATCHED, Place};
use super::Table;
use crate::arming::Want;
use crate::ram::Memory;
use arch::{GuestPhys, GuestVirt};

/// What a breakpoint wants of a debug register, if it needs one.
fn wanted(breakpoint: &Breakpoint) -> Option<Want> {
    if matches!(breakpoint.place, Place::Planted(_) | Place::Off) {
        return None;
    }
    Some(match breakpoint.kind.access() {
        None => Want::Execute(breakpoint.address.0),
        Some(access) => Want::Watch(access, breakpoint.address.0, breakpoint.length),
    })
}

impl Table {
    /// Breakpoints that need a debug register, with what they want. Of those that want the same, the first.
    pub fn wants(&self) -> Vec<(Id, Want)> {
        let mut wants: Vec<(Id, Want)> = Vec::new();
        for (id, it) in &self.breakpoints {
            if let Some(want) = wanted(it)
                && !wants.iter().any(|(_, there)| *there == want)
            {
                wants.push((*id, want));
            }
        }
        let mut vectors: Vec<u64> = Vec::new();
        for (id, it) in &self.breakpoints {
            if let Place::NotExecutable { vector: Some(vector) } = it.place
                && !vectors.contains(&vector)
            {
                vectors.push(vector);
                wants.push((*id, Want::Execute(vector)));
            }
        }
        wants
    }

    /// The breakpoints that want this of a debug register.
    pub fn wanting(&self, want: Want) -> Vec<Id> {
        self.breakpoints.iter().filter(|(_, it)| wanted(it) == Some(want)).map(|(id, _)| *id).collect()
    }

    /// Breakpoints that need none, but are better off with one beside the instruction that is planted
    /// for them, with what they want: where the code is still to come, whoever copies it writes over
    /// the instruction, and nobody is told.
    pub fn guarded(&self) -> Vec<(Id, Want)> {
        let is_awaited = |it: &Breakpoint| match it.place {
            Place::Planted(place) => self.planted.get(&place).is_some_and(|planted| planted.awaits_code),
            _ => false,
        };
        let guarded = self.breakpoints.iter().filter(|(_, it)| is_awaited(it));
        guarded.map(|(id, it)| (*id, Want::Execute(it.address.0))).collect()
    }

    /// The breakpoints whose instruction is planted at `place`.
    pub fn planted_at(&self, place: GuestPhys) -> Vec<Id> {
        let there = self.breakpoints.iter().filter(|(_, it)| it.place == Place::Planted(place));
        there.map(|(id, _)| *id).collect()
    }

    /// The breakpoints at `address` that are noticed when its fetch is refused, by way of `vector`.
    pub fn refused_at(&self, vector: u64, address: u64) -> Vec<Id> {
        let place = Place::NotExecutable { vector: Some(vector) };
        let there = self.breakpoints.iter();
        let there = there.filter(|(_, it)| it.place == place && it.address == GuestVirt(address));
        there.map(|(id, _)| *id).collect()
    }

    /// Whether a breakpoint is noticed by way of this vector.
    pub fn is_vector(&self, vector: u64) -> bool {
        self.breakpoints.values().any(|it| it.place == Place::NotExecutable { vector: Some(vector) })
    }

    /// Breakpoints on pages that could not be executed, with their address.
    pub fn not_executable(&self) -> Vec<(Id, GuestVirt)> {
        let there = self.breakpoints.iter();
        let there = there.filter(|(_, it)| matches!(it.place, Place::NotExecutable { .. }));
        there.map(|(id, it)| (*id, it.address)).collect()
    }

    /// Software breakpoints that wait on a debug register because their address did not
    /// translate, or not to RAM, with their address. A kernel's own address is the latter while
    /// an aarch64 processor's MMU is off.
    pub fn waiting(&self) -> Vec<(Id, GuestVirt)> {
        self.fallen_back(&[NOT_MAPPED, NOT_RAM])
    }

    /// Software breakpoints that could be planted but are better off on a debug register while
    /// there is one.
    pub fn patched(&self) -> Vec<(Id, GuestVirt)> {
        self.fallen_back(&[PATCHED])
    }

    fn fallen_back(&self, reasons: &[&'static str]) -> Vec<(Id, GuestVirt)> {
        let has_reason = |breakpoint: &Breakpoint| match breakpoint.place {
            Place::Fallback(reason) => reasons.contains(&reason),
            Place::Planted(_) | Place::Register | Place::NotExecutable { .. } | Place::Off => false,
        };
        let fallen = self.breakpoints.iter().filter(|(_, breakpoint)| has_reason(breakpoint));
        fallen.map(|(id, breakpoint)| (*id, breakpoint.address)).collect()
    }

    /// Plants a breakpoint that was waiting, if its page is RAM now; whether it is.
    pub fn settle(&mut self, memory: &dyn Memory, id: Id, place: GuestPhys) -> bool {
        if self.breakpoints.contains_key(&id)
            && self.plant(memory, place).is_ok()
            && let Some(breakpoint) = self.breakpoints.get_mut(&id)
        {
            breakpoint.place = Place::Planted(place);
            return true;
        }
        false
    }
}
