//! Instructions under breakpoints whose hits have been dealt with, and that were not executed then: they faulted, or
//! something else came before them. When one is executed after all, that is no new hit.

use super::{Cpu, pc, stack};
use crate::breakpoint::{Breakpoint, Table};
use crate::machine::Action;
use arch::register::{Group, table};
use arch::{GuestPhys, GuestVirt};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// As many are remembered: a task whose fault ends it never comes back.
const MOST: usize = 64;

/// What of an instruction has been dealt with, which is to be told once, however often the instruction is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DealtWith {
    /// Nothing.
    Nothing,
    /// That it is executed.
    Execution,
    /// An access of its, before which the vCPU stands (aarch64).
    Access,
}

/// An instruction, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dealt {
    with: DealtWith,
    /// The linear program counter, and where that is: nowhere yet, where an x86 debug register was met before the page
    /// was there.
    pc: u64,
    place: Option<GuestPhys>,
    /// The stack pointer: another task's is another one...
    stack: u64,
    /// ...but for processes that are copies of each other.
    table: Option<GuestPhys>,
    /// The vCPU, where there is no paging: there may be no stacks there that tell tasks apart, and none goes over to
    /// another vCPU.
    vcpu: Option<u32>,
}

impl Dealt {
    /// The one at `place` that a vCPU stands at, if something of it has been dealt with.
    pub fn at(cpu: &dyn Cpu, place: Option<GuestPhys>, with: DealtWith) -> Option<Dealt> {
        if with == DealtWith::Nothing {
            return None;
        }
        let (pc, stack, regime) = (pc(cpu).ok()?, stack(cpu)?, cpu.vcpu().regime().ok()?);
        let table = regime.table_of_process(GuestVirt(pc));
        let vcpu = (!regime.is_on()).then(|| cpu.vcpu().id());
        Some(Dealt { with, pc, place, stack, table, vcpu })
    }

    /// Whether this is the other one, which has a page by now.
    fn is(&self, now: &Dealt) -> bool {
        let place = self.place.and(now.place);
        Dealt { place, ..*self } == Dealt { place, ..*now }
            && (self.place.is_none() || self.place == now.place)
    }
}

/// One that is still to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    dealt: Dealt,
    /// What registers it is to be executed with. Whoever goes on elsewhere behind a fault, and comes by again some day,
    /// comes with others.
    registers: u64,
    /// The vCPU that has dealt with it.
    by: u32,
}

/// All of a guest's.
#[derive(Debug, Default)]
pub(super) struct Retries(VecDeque<Expected>);

impl Retries {
    /// One is still to be executed: by the vCPU that has just tried, or whichever has its task by then.
    pub fn expect(&mut self, cpu: &dyn Cpu, dealt: Dealt) {
        // Twice it would outlive its instruction.
        self.0.retain(|other| other.dealt != dealt);
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Expected { dealt, registers: registers(cpu), by: cpu.vcpu().id() });
    }

    /// Whether a vCPU stands at one of them. Asked once for each hit.
    pub fn take(&mut self, cpu: &dyn Cpu, place: Option<GuestPhys>, with: DealtWith) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let Some(now) = Dealt::at(cpu, place, with) else { return false };
        let expected = self.0.iter().position(|it| it.dealt.is(&now)).and_then(|at| self.0.remove(at));
        expected.is_some_and(|it| it.registers == registers(cpu))
    }

    /// Somebody has given a vCPU other registers.
    pub fn forget(&mut self, vcpu: u32) {
        self.0.retain(|it| it.by != vcpu);
    }

    /// vCPUs run with these breakpoints from now on: where there is none, those that run come by unseen.
    pub fn keep_those_of(&mut self, table: &Table, actions: &[Action]) {
        self.0.retain(|it| {
            let stays = actions.get(it.by as usize) == Some(&Action::Stay);
            let (pc, place) = (GuestVirt(it.dealt.pc), it.dealt.place);
            let is_its = |breakpoint: &Breakpoint| match it.dealt.with {
                DealtWith::Access => breakpoint.kind.access().is_some(),
                DealtWith::Execution | DealtWith::Nothing => breakpoint.is_at(pc, place),
            };
            stays || table.iter().any(is_its)
        });
    }
}

/// What general registers have in them, but for those that an exception changes: the program counter, the stack pointer
/// (on aarch64 another one is used) and flags.
fn registers(cpu: &dyn Cpu) -> u64 {
    const CHANGED: [&str; 6] = ["rip", "rsp", "eflags", "pc", "sp", "cpsr"];
    let mut hasher = DefaultHasher::new();
    for (row, register) in table(cpu.vcpu().isa()).iter().enumerate() {
        if register.group == Group::General && !CHANGED.contains(&register.name) {
            cpu.vcpu().register(row).hash(&mut hasher);
        }
    }
    hasher.finish()
}
