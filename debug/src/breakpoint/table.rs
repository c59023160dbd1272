//! All breakpoints of a target: what is inserted, replaced and removed.

mod planted;
mod wants;

use super::id::Id;
use super::point::{Breakpoint, Kind, Place, Purpose};
use crate::ram::Memory;
use arch::{GuestPhys, GuestVirt, Isa};
use planted::Planted;
use std::collections::BTreeMap;

/// Why a breakpoint cannot be inserted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// Its memory cannot be written.
    #[error("{0} is not in RAM")]
    NotRam(GuestPhys),
}

/// All breakpoints of a target.
#[derive(Debug)]
pub struct Table {
    isa: Isa,
    /// In the order they were inserted.
    breakpoints: BTreeMap<Id, Breakpoint>,
    next: u64,
    planted: BTreeMap<GuestPhys, Planted>,
    /// What was removed, for a debugger that takes its breakpoints out at every stop: the
    /// user still wants to see them, and their hits.
    former: Vec<Breakpoint>,
}

/// Removed breakpoints that are remembered.
const MOST_FORMER: usize = 1024;

impl Table {
    /// A table without breakpoints.
    pub fn new(isa: Isa) -> Table {
        Table { isa, breakpoints: BTreeMap::new(), next: 0, planted: BTreeMap::new(), former: Vec::new() }
    }

    /// All breakpoints, those of steps too, in the order they were inserted.
    pub fn iter(&self) -> impl Iterator<Item = &Breakpoint> {
        self.breakpoints.values()
    }

    /// The same, with what each is told by.
    pub fn entries(&self) -> impl Iterator<Item = (Id, &Breakpoint)> {
        self.breakpoints.iter().map(|(id, breakpoint)| (*id, breakpoint))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.breakpoints.is_empty()
    }

    /// Whether an instruction is planted anywhere.
    pub fn has_planted(&self) -> bool {
        !self.planted.is_empty()
    }

    /// The first breakpoint that was asked for like this.
    pub fn find(&self, kind: Kind, address: GuestVirt, length: u64) -> Option<Id> {
        let mut all = self.breakpoints.iter();
        all.find(|(_, breakpoint)| breakpoint.is_asked_for(kind, address, length)).map(|(id, _)| *id)
    }

    /// Whether such a breakpoint is there.
    pub fn contains(&self, kind: Kind, address: GuestVirt, length: u64) -> bool {
        self.find(kind, address, length).is_some()
    }

    /// Inserts a breakpoint, beside those that are the same. [`Place::Planted`] writes the instruction.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert(&mut self, memory: &dyn Memory, breakpoint: Breakpoint) -> Result<Id, InsertError> {
        let id = Id(self.next);
        self.insert_as(memory, id, breakpoint)?;
        self.next += 1;
        Ok(id)
    }

    fn insert_as(&mut self, memory: &dyn Memory, id: Id, breakpoint: Breakpoint) -> Result<(), InsertError> {
        if let Place::Planted(place) = breakpoint.place {
            self.plant(memory, place)?;
        }
        self.breakpoints.insert(id, breakpoint);
        Ok(())
    }

    /// Puts a breakpoint in the place of the one with this id, or back under the id that it has had, or in as a
    /// new one. What was replaced is for [`Self::settle_change`], one way or the other: until then its instruction
    /// stays planted.
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn put(
        &mut self,
        memory: &dyn Memory,
        id: Option<Id>,
        breakpoint: Breakpoint,
    ) -> Result<Change, InsertError> {
        let Some(id) = id else {
            return self.insert(memory, breakpoint).map(|id| Change { id, before: None });
        };
        let before = self.breakpoints.get(&id).cloned();
        self.insert_as(memory, id, breakpoint)?;
        Ok(Change { id, before })
    }

    /// Puts a breakpoint in the place of the one that was asked for alike, if there is one, with its hits; else
    /// inserts it. As [`Self::put`].
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn replace(&mut self, memory: &dyn Memory, breakpoint: Breakpoint) -> Result<Change, InsertError> {
        let Breakpoint { kind, address, length, .. } = breakpoint;
        let id = self.find(kind, address, length);
        let hits = id.and_then(|id| self.get(id)).map_or(breakpoint.hits, |before| before.hits);
        self.put(memory, id, Breakpoint { hits, ..breakpoint })
    }

    /// Makes an end of [`Self::put`]: what was replaced goes, or with `undo` it comes back as it
    /// was, and what replaced it goes.
    pub fn settle_change(&mut self, memory: &dyn Memory, change: Change, undo: bool) {
        let Change { id, before } = change;
        let gone = match (undo, before) {
            (false, before) => before,
            (true, Some(before)) => self.breakpoints.insert(id, before),
            (true, None) => self.breakpoints.remove(&id),
        };
        if let Some(Breakpoint { place: Place::Planted(place), .. }) = gone {
            self.uproot(memory, place);
        }
    }

    /// Removes the first breakpoint that was asked for like this; whether there was one.
    pub fn remove(&mut self, memory: &dyn Memory, kind: Kind, address: GuestVirt, length: u64) -> bool {
        self.find(kind, address, length).is_some_and(|id| self.take_out(memory, id))
    }

    /// Removes a breakpoint; whether it was there.
    pub fn take_out(&mut self, memory: &dyn Memory, id: Id) -> bool {
        let Some(breakpoint) = self.breakpoints.remove(&id) else { return false };
        if let Place::Planted(place) = breakpoint.place {
            self.uproot(memory, place);
        }
        if breakpoint.purpose == Purpose::Step {
            return true;
        }
        if self.former.len() == MOST_FORMER {
            self.former.remove(0);
        }
        self.former.push(breakpoint);
        true
    }

    /// Breakpoints that have been removed, the last one last.
    pub fn former(&self) -> impl Iterator<Item = &Breakpoint> {
        self.former.iter()
    }

    /// The hits that a breakpoint had when it was removed; it is not a former one any more.
    pub fn former_hits(&mut self, kind: Kind, address: GuestVirt, length: u64) -> u64 {
        let mut former = self.former.iter();
        let found = former.position(|it| it.is_asked_for(kind, address, length) && it.length == length);
        found.map_or(0, |index| self.former.remove(index).hits)
    }

    /// Takes all breakpoints out without touching memory: it is another one by now. They are former ones then.
    pub fn uprooted(&mut self) -> Vec<(Id, Breakpoint)> {
        self.planted.clear();
        let gone: Vec<(Id, Breakpoint)> = std::mem::take(&mut self.breakpoints).into_iter().collect();
        let asked = gone.iter().filter(|(_, breakpoint)| breakpoint.purpose == Purpose::Asked);
        self.former.extend(asked.map(|(_, breakpoint)| breakpoint.clone()));
        let excess = self.former.len().saturating_sub(MOST_FORMER.max(gone.len()));
        self.former.drain(..excess);
        gone
    }

    /// Removes all breakpoints.
    pub fn clear(&mut self, memory: &dyn Memory) {
        self.breakpoints.clear();
        self.former.clear();
        let places: Vec<GuestPhys> = self.planted.keys().copied().collect();
        for place in places {
            self.lift(memory, place);
        }
        self.planted.clear();
    }

    /// A breakpoint by its id.
    pub fn get(&self, id: Id) -> Option<&Breakpoint> {
        self.breakpoints.get(&id)
    }

    /// Counts a hit of a breakpoint, if it is there.
    pub fn count(&mut self, id: Id) -> Option<&Breakpoint> {
        let breakpoint = self.breakpoints.get_mut(&id)?;
        breakpoint.hits += 1;
        Some(breakpoint)
    }

    /// A hit of a breakpoint that was counted has told nobody anything, and happens again.
    pub fn take_back_hit(&mut self, id: Id) {
        if let Some(breakpoint) = self.breakpoints.get_mut(&id) {
            breakpoint.hits = breakpoint.hits.saturating_sub(1);
        }
    }

    /// Sets how often a breakpoint has been hit.
    pub fn set_hits(&mut self, id: Id, hits: u64) {
        if let Some(breakpoint) = self.breakpoints.get_mut(&id) {
            breakpoint.hits = hits;
        }
    }
}

/// A breakpoint that has replaced another one, or nothing, for [`Table::settle_change`].
#[derive(Debug)]
#[must_use]
pub struct Change {
    id: Id,
    before: Option<Breakpoint>,
}

impl Change {
    /// The breakpoint.
    pub fn id(&self) -> Id {
        self.id
    }
}

#[cfg(test)]
mod tests;
