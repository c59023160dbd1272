//! Steps over functions and out of one, carried out: parts that a [walk](super::super::walk) names, one after the
//! other.

use super::Debuggee;
use crate::breakpoint::{self, Condition};
use crate::context::mode::Mode;
use crate::context::walk::{Next, Return, Returning, Seen, Walk};
use crate::machine::{Action, Machine, MachineError, StopReason};
use crate::view::View;
use arch::register::Bank;
use arch::{GuestVirt, Isa};
use std::sync::Arc;

/// A step that is under way.
#[derive(Debug)]
pub(super) struct Stepping {
    /// `None`: it is over at the breakpoint.
    walk: Option<Walk>,
    /// The vCPU that makes it: that of its task, which may go on on another one.
    vcpu: u32,
    /// The other vCPUs stay where they are.
    is_alone: bool,
    /// The breakpoint at the return that is run to.
    at: Option<breakpoint::Id>,
}

impl<M: Machine> Debuggee<M> {
    /// Begins a step of a vCPU.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing runs.
    pub(super) fn begin_step(&mut self, vcpu: u32, mode: &Mode, is_alone: bool) -> Result<(), MachineError> {
        let action = match mode {
            Mode::StepInto => Action::Step,
            Mode::StepIntoRange(range) => Action::StepRange(range.start, range.end),
            _ => Action::Run,
        };
        let Some(walk) = Walk::new(mode) else {
            return self.run(&self.all_do(vcpu, action, is_alone));
        };
        self.stepping = Some(Stepping { walk: Some(walk), vcpu, is_alone, at: None });
        match self.go_on_stepping() {
            // A walk begins with something to do.
            Ok(_) => Ok(()),
            Err(error) => {
                self.end_step();
                Err(error)
            }
        }
    }

    /// All run until one of them comes to an address, and this holds.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing runs.
    pub(super) fn begin_activation(&mut self, at: u64, holds: Condition) -> Result<(), MachineError> {
        let vcpu = self.current;
        let id = self.put_for_step(vcpu, at, holds).map_err(|error| {
            MachineError::Host(format!("no breakpoint where the kernel goes over to a task: {error}"))
        })?;
        self.stepping = Some(Stepping { walk: None, vcpu, is_alone: false, at: Some(id) });
        self.run(&vec![Action::Run; self.machine.vcpus() as usize]).inspect_err(|_| self.end_step())
    }

    fn all_do(&self, vcpu: u32, action: Action, is_alone: bool) -> Vec<Action> {
        let others = if is_alone { Action::Stay } else { Action::Run };
        (0..self.machine.vcpus()).map(|it| if it == vcpu { action } else { others }).collect()
    }

    /// A vCPU has stopped: if that is a part of the step that is under way, it goes on, and there is nothing to
    /// report.
    pub(super) fn step_on(&mut self, vcpu: u32, reason: StopReason) -> Option<(u32, StopReason)> {
        let at = self.engine.requests().stopped_at(vcpu).to_vec();
        let Some(stepping) = &mut self.stepping else {
            // A step's breakpoint, which has gone with the step since.
            let is_known = |id: &breakpoint::Id| self.engine.requests().table.get(*id).is_some();
            let is_gone = reason == StopReason::Breakpoint && !at.is_empty() && !at.iter().any(is_known);
            return Some((vcpu, if is_gone { StopReason::Interrupt } else { reason }));
        };
        let is_part = match (&reason, stepping.at) {
            (StopReason::Step, _) => stepping.vcpu == vcpu,
            // One that somebody has asked for at the same place is a stop for them.
            (StopReason::Breakpoint, Some(id)) => at == [id],
            _ => false,
        };
        if !is_part {
            self.end_step();
            return Some((vcpu, reason));
        }
        stepping.vcpu = vcpu;
        match self.go_on_stepping() {
            Ok(true) => None,
            Ok(false) => {
                self.end_step();
                Some((vcpu, StopReason::Step))
            }
            Err(error) => {
                self.end_step();
                Some((vcpu, StopReason::Fatal(format!("the step cannot go on: {error}"))))
            }
        }
    }

    /// Does the next part of the step; whether there is one.
    fn go_on_stepping(&mut self) -> Result<bool, MachineError> {
        let Some(mut stepping) = self.stepping.take() else { return Ok(false) };
        if let Some(id) = stepping.at.take() {
            self.take_out_of_step(id);
        }
        let Some(walk) = &mut stepping.walk else { return Ok(false) };
        let next = self.see(stepping.vcpu, |seen| walk.next(seen))?;
        let (vcpu, is_alone) = (stepping.vcpu, stepping.is_alone);
        let action = match next {
            Next::Done => return Ok(false),
            Next::Step => Action::Step,
            Next::Range(range) => Action::StepRange(range.start, range.end),
            Next::RunTo(to) => {
                stepping.at = Some(self.wait_at(vcpu, to)?);
                Action::Run
            }
        };
        self.stepping = Some(stepping);
        self.run(&self.all_do(vcpu, action, is_alone))?;
        Ok(true)
    }

    /// What a walk sees where a vCPU stands.
    fn see<R>(&self, vcpu: u32, look: impl FnOnce(&Seen<'_>) -> R) -> Result<R, MachineError> {
        let file = self.machine.registers(vcpu, &[Bank::General])?;
        let code = self.machine.code(vcpu)?;
        let view = View { is_physical: false, ..self.view().through(vcpu) };
        let space = view.space();
        let read = |at: u64, bytes: &mut [u8]| view.read_in(&space, at, bytes);
        let get = |name| file.get(name).unwrap_or(0);
        let (stack, link) = match self.isa() {
            Isa::X86_64 => (get("rsp"), 0),
            Isa::Aarch64 => (get("sp"), get("x30")),
        };
        let pc = code.linear(file.pc().unwrap_or(0));
        Ok(look(&Seen { isa: self.isa(), mode: code.mode, pc, stack, link, read: &read }))
    }

    /// Puts a breakpoint at a return.
    fn wait_at(&mut self, vcpu: u32, to: Return) -> Result<breakpoint::Id, MachineError> {
        let stack = |vcpu: u32| {
            let file = self.machine.registers(vcpu, &[Bank::General]).ok()?;
            file.get(if self.isa() == Isa::X86_64 { "rsp" } else { "sp" })
        };
        let own = stack(vcpu).unwrap_or(0);
        let mut others = (0..self.machine.vcpus()).filter(|other| *other != vcpu);
        let is_near = |other: u64| other.abs_diff(own) <= to.slack;
        let is_this_alone = others.any(|other| stack(other).is_some_and(is_near));
        let table = self.machine.regime(vcpu)?.table_of_process(GuestVirt(to.address));
        let returning = Returning { to, vcpu, is_this_alone, table };
        let holds = Condition::Closure(Arc::new(move |hit| returning.is_it(hit)));
        self.put_for_step(vcpu, to.address, holds)
            .map_err(|error| MachineError::Host(format!("no breakpoint where it would return to: {error}")))
    }

    /// Makes an end of the step that is under way, if there is one, wherever it is.
    pub(super) fn end_step(&mut self) {
        if let Some(id) = self.stepping.take().and_then(|stepping| stepping.at) {
            self.take_out_of_step(id);
        }
    }
}
