//! Debug registers, shared out among breakpoints.

use super::requests::Sharing;
use super::{Engine, Requests};
use crate::arming::{TooMany, Want, allocate};
use crate::breakpoint::{Breakpoint, Id, Kind};
use crate::machine::Memory;
use crate::memory::Translation;
use arch::Isa;
use arch::aarch64::debug_registers::MOST;
use std::collections::BTreeSet;

impl Engine {
    /// Whether there is a debug register left for one more breakpoint, and one more for a range
    /// step.
    pub(super) fn has_register_free(&self) -> bool {
        let requests = self.requests();
        let wants = requests.sharing.wants.iter().copied().chain([Want::Execute(0), Want::Execute(0)]);
        allocate(self.isa, &self.abilities, &wants.collect::<Vec<_>>()).is_ok()
    }

    /// Why there are too few debug registers for one breakpoint more: what has them.
    pub fn too_few(&self, kind: Kind, address: u64, length: u64) -> String {
        let want = kind.access().map_or(Want::Execute(0), |access| Want::Watch(access, address, length));
        if let Err(TooMany { there }) = allocate(self.isa, &self.abilities, &[want]) {
            return match (kind.access(), there) {
                (_, 0) => "this host has no debug registers for it (see 'monitor host')".into(),
                (None, _) => format!("it takes more debug registers than the {there} that this host has"),
                // 8 bytes each, if they are aligned.
                (Some(_), _) => {
                    format!("a watchpoint covers at most {} bytes here; this is {length}", 8 * there)
                }
            };
        }
        let requests = self.requests();
        let there = match (self.isa, kind.access()) {
            (Isa::X86_64, _) => self.abilities.breakpoints.max(self.abilities.watchpoints),
            (Isa::Aarch64, None) => self.abilities.breakpoints,
            (Isa::Aarch64, Some(_)) => self.abilities.watchpoints,
        };
        let shares = |it: &&Breakpoint| {
            self.isa == Isa::X86_64 || it.kind.access().is_some() == kind.access().is_some()
        };
        let owners: BTreeSet<Id> = requests.sharing.owners.iter().copied().collect();
        let users = owners.iter().filter_map(|id| requests.table.get(*id)).filter(shares);
        let users: Vec<String> =
            users.map(|it| format!("the {} at {:#x}", it.kind.name(), it.address)).collect();
        let pieces = requests.sharing.allocation.served.iter();
        let used = pieces.filter(|(register, _)| {
            self.isa == Isa::X86_64 || (*register >= MOST) == kind.access().is_some()
        });
        format!("{} of {there} debug registers are in use, by {}", used.count(), users.join(", "))
    }

    /// Shares out debug registers anew, after the table has changed.
    ///
    /// # Errors
    /// [`TooMany`]; then the old sharing stays.
    pub fn reallocate(&self, requests: &mut Requests) -> Result<(), TooMany> {
        let mut wanted = requests.table.wants();
        requests.sharing = Sharing::new(self.isa, &self.abilities, &wanted)?;
        requests.guarded = requests.sharing.clone();
        for guard in requests.table.guarded() {
            wanted.push(guard);
            match Sharing::new(self.isa, &self.abilities, &wanted) {
                Ok(more) => requests.guarded = more,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Shares out debug registers anew; where there are too few, breakpoints that need none give
    /// theirs up and are planted.
    ///
    /// # Errors
    /// [`TooMany`], when they would still be too few; then the old sharing stays.
    pub fn make_room(
        &self,
        requests: &mut Requests,
        memory: &dyn Memory,
        space: &Translation,
    ) -> Result<(), TooMany> {
        let first = self.reallocate(requests);
        let patched = requests.table.patched();
        if first.is_ok() || patched.is_empty() {
            return first;
        }
        let is_patched = |owner| patched.iter().any(|(id, _)| *id == owner);
        let wanted = requests.table.wants().into_iter();
        let rest: Vec<(Id, Want)> = wanted.filter(|(owner, _)| !is_patched(*owner)).collect();
        Sharing::new(self.isa, &self.abilities, &rest)?;
        for (id, address) in patched {
            if let Ok((place, _)) = space.locate(memory, address) {
                requests.table.settle(memory, id, place);
            }
        }
        self.reallocate(requests)
    }
}
