//! Instructions under breakpoints whose hits have been dealt with, and that were not executed then: they faulted, or
//! something else came before them. When one is executed after all, that is no new hit.

use super::{Cpu, pc, stack};
use crate::breakpoint::{Place, Table};
use arch::{GuestPhys, GuestVirt};
use std::collections::VecDeque;

/// As many are remembered: a task whose fault ends it never comes back.
const MOST: usize = 64;

/// An instruction, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dealt {
    /// The linear program counter, and where that is.
    pc: u64,
    place: GuestPhys,
    /// The stack pointer: another task's is another one...
    stack: u64,
    /// ...but for processes that are copies of each other.
    table: Option<GuestPhys>,
    /// The vCPU that it is to be executed by; `None` for whichever has the task by then.
    pub vcpu: Option<u32>,
}

impl Dealt {
    /// The one at `place` that a vCPU stands at.
    pub fn at(cpu: &dyn Cpu, place: GuestPhys) -> Option<Dealt> {
        let (pc, stack) = (pc(cpu).ok()?, stack(cpu)?);
        let table = cpu.vcpu().regime().ok()?.table_of_process(GuestVirt(pc));
        Some(Dealt { pc, place, stack, table, vcpu: Some(cpu.vcpu().id()) })
    }

    /// It has faulted: while that is dealt with, its task may go over to another vCPU.
    pub fn faulted(self, cpu: &dyn Cpu) -> Dealt {
        // What runs without paging may have no stack of its own.
        let is_task = cpu.vcpu().regime().is_ok_and(|regime| regime.is_on());
        Dealt { vcpu: self.vcpu.filter(|_| !is_task), ..self }
    }

    fn is_met_by(&self, now: &Dealt) -> bool {
        *self == Dealt { vcpu: self.vcpu.and(now.vcpu), ..*now }
    }
}

/// All of a guest's.
#[derive(Debug, Default)]
pub(super) struct Retries(VecDeque<Dealt>);

impl Retries {
    /// One is still to be executed.
    pub fn expect(&mut self, dealt: Dealt) {
        // Twice it would outlive its instruction.
        self.0.retain(|other| *other != dealt);
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(dealt);
    }

    /// Whether a vCPU stands at one of them. Asked once for each hit.
    pub fn take(&mut self, cpu: &dyn Cpu, place: Option<GuestPhys>) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let Some(now) = place.and_then(|place| Dealt::at(cpu, place)) else { return false };
        let at = self.0.iter().position(|dealt| dealt.is_met_by(&now));
        at.is_some_and(|at| self.0.remove(at).is_some())
    }

    /// Somebody has put a vCPU somewhere else.
    pub fn forget(&mut self, vcpu: u32) {
        self.0.retain(|dealt| dealt.vcpu != Some(vcpu));
    }

    /// vCPUs run with these breakpoints from now on: where there is none, they come by unseen.
    pub fn keep_those_of(&mut self, table: &Table) {
        self.0.retain(|dealt| {
            table.iter().any(|it| {
                let is_there = it.address == GuestVirt(dealt.pc) || it.place == Place::Planted(dealt.place);
                it.kind.access().is_none() && it.place != Place::Off && is_there
            })
        });
    }
}
