//! Steps of a range: through it one at a time, or in one run to where it can be left.

use super::judge::Met;
use super::requests::Run;
use super::{Cpu, Engine, Requests, Verdict, pc, stack};
use crate::arming::{Want, allocate};
use crate::breakpoint::Table;
use crate::machine::{Action, MachineError, StopReason};
use crate::memory::{self, Translation};
use crate::range;
use arch::{GuestPhys, GuestVirt};
use std::ops::Range;

/// How far the stack pointer of the same task moves within a source line, bytes.
const SAME_STACK: u64 = 8 << 10;

/// Where a vCPU stands, of which a range may be run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// None is.
    NoRun,
    /// In it.
    Within,
    /// Where it is left: the next instruction is none of it.
    Left,
    /// In a handler, or in another task.
    Elsewhere,
}

impl Engine {
    /// Whether a vCPU runs through a range.
    pub(super) fn runs_range(&self, vcpu: u32) -> bool {
        self.requests().progress(vcpu).run.is_some()
    }

    /// Where a vCPU stands.
    pub(super) fn whereabouts(&self, cpu: &dyn Cpu) -> Result<Whereabouts, MachineError> {
        let (pc, requests) = (pc(cpu)?, self.requests());
        let progress = requests.progress(cpu.vcpu().id());
        let (Some(run), Action::StepRange(start, end)) = (&progress.run, progress.action) else {
            return Ok(Whereabouts::NoRun);
        };
        let is_exit =
            run.wants.iter().skip(requests.sharing.wants.len()).any(|want| *want == Want::Execute(pc));
        Ok(match (start..end).contains(&pc) {
            _ if run.is_others(stack(cpu)) => Whereabouts::Elsewhere,
            true => Whereabouts::Within,
            false if is_exit => Whereabouts::Left,
            false => Whereabouts::Elsewhere,
        })
    }

    /// Where a range can be left, if it can be run through.
    pub(super) fn exits(&self, cpu: &dyn Cpu, table: &Table, range: Range<u64>) -> Option<Vec<u64>> {
        let length = range.end.checked_sub(range.start).filter(|length| *length <= range::LONGEST)?;
        let mode = cpu.vcpu().code().ok()?.mode;
        let mut code = vec![0; usize::try_from(length).ok()?];
        let space = Translation::Virtual(cpu.vcpu().regime().ok()?);
        let count = memory::read(cpu.memory(), &space, Some(table), GuestVirt(range.start), &mut code);
        if count < code.len() {
            return None;
        }
        range::exits(self.isa, mode, &range, &code, self.abilities.breakpoints)
    }

    /// Runs from here to one of `exits`, if there are debug registers for all of them.
    pub(super) fn begin_run(
        &self,
        requests: &mut Requests,
        vcpu: u32,
        stack: Option<u64>,
        exits: Option<Vec<u64>>,
    ) {
        let Some(exits) = exits else { return };
        let mut wants = requests.sharing.wants.clone();
        wants.extend(exits.into_iter().map(Want::Execute));
        if let Ok(allocation) = allocate(self.isa, &self.abilities, &wants)
            && let Some(progress) = requests.progress.get_mut(vcpu as usize)
        {
            progress.run = Some(Run { stack, wants, allocation });
        }
    }

    /// At an exit of a range that is run through.
    pub(super) fn leave_range(
        &self,
        cpu: &mut dyn Cpu,
        pc: u64,
        place: Option<GuestPhys>,
    ) -> Result<Verdict, MachineError> {
        let other = {
            let requests = self.requests();
            requests.progress(cpu.vcpu().id()).run.as_ref().is_some_and(|run| run.is_others(stack(cpu)))
        };
        if other {
            // Another task of the guest is here.
            let met = self.meets_planted(cpu, pc, place);
            if met == Met::Stops {
                return Ok(Verdict::Stop(StopReason::Breakpoint));
            }
            self.get_past(cpu, place, met.into())?;
            return Ok(Verdict::GoOn);
        }
        self.look_at_range(cpu)
    }

    /// Ends a range that was run through, or steps an instruction within it.
    pub(super) fn look_at_range(&self, cpu: &mut dyn Cpu) -> Result<Verdict, MachineError> {
        let pc = pc(cpu)?;
        let mut requests = self.requests();
        let Some(progress) = requests.progress.get_mut(cpu.vcpu().id() as usize) else {
            return Ok(Verdict::GoOn);
        };
        progress.run = None;
        progress.steps = 0;
        progress.stack = stack(cpu);
        match progress.action {
            Action::StepRange(start, end) if !(start..end).contains(&pc) => {
                Ok(Verdict::Stop(StopReason::Step))
            }
            _ => {
                let arming = self.arming(&requests, cpu.vcpu().id());
                drop(requests);
                cpu.arm(&arming);
                Ok(Verdict::GoOn)
            }
        }
    }
}

impl Run {
    /// Whether a stack pointer is of another task than the one that began.
    fn is_others(&self, now: Option<u64>) -> bool {
        self.stack.zip(now).is_some_and(|(began, now)| began.abs_diff(now) > SAME_STACK)
    }
}
