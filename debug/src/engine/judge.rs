//! Whether an exit is a breakpoint's, a step's or the guest's own, and what is done for each.

use super::cpu::Cpu;
use super::evaluation::{Evaluation, Which};
use super::retries::{Dealt, DealtWith};
use super::{Engine, STEPS_BEFORE_RUN, Verdict, locate, own_registers, pc, stack};
use crate::breakpoint::{Breakpoint, Id, Kind};
use crate::expression::Environment as _;
use crate::machine::{Action, MachineError, Order, StopReason};
use crate::trap::{Cause, Injection, Owner, Situation, Trap, also_guests, decide};
use arch::aarch64::exception_entry::refused_fetch;
use arch::{GuestPhys, GuestVirt, Isa};

/// What has come of what is planted where a vCPU has come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// There is nothing.
    Nothing,
    /// It is a hit that does not stop.
    GoesOn,
    /// It is one that does.
    Stops,
}

impl From<Met> for DealtWith {
    fn from(met: Met) -> DealtWith {
        match met {
            Met::Nothing => DealtWith::Nothing,
            Met::GoesOn | Met::Stops => DealtWith::Execution,
        }
    }
}

impl Engine {
    /// Begins an order, on the vCPU's thread.
    pub fn start(&self, cpu: &mut dyn Cpu, order: &Order) -> Verdict {
        if let Some(progress) = self.requests().progress.get_mut(cpu.vcpu().id() as usize) {
            progress.has_begun = true;
            progress.stack = stack(cpu);
        }
        cpu.arm(&order.arming);
        if !order.steps_off {
            return Verdict::GoOn;
        }
        let place = pc(cpu).ok().and_then(|pc| locate(cpu, pc));
        // What holds it here has been told.
        let dealt_with = match self.isa {
            Isa::Aarch64 if !self.is_at_breakpoint(cpu, place) => DealtWith::Access,
            _ => DealtWith::Execution,
        };
        self.pass(cpu, place, dealt_with).unwrap_or_else(|error| {
            Verdict::Stop(StopReason::Fatal(format!("it cannot be resumed: {error}")))
        })
    }

    /// Whether there is a breakpoint where a vCPU stands.
    fn is_at_breakpoint(&self, cpu: &dyn Cpu, place: Option<GuestPhys>) -> bool {
        let requests = self.requests();
        pc(cpu).is_ok_and(|pc| requests.table.iter().any(|it| it.is_at(GuestVirt(pc), place)))
    }

    /// Judges an exit of `cpu` that may be the debugger's.
    pub fn judge(&self, cpu: &mut dyn Cpu, trap: &Trap) -> Verdict {
        match self.try_judge(cpu, trap) {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Stop(StopReason::Fatal(format!("a debug exit cannot be served: {error}"))),
        }
    }

    fn try_judge(&self, cpu: &mut dyn Cpu, trap: &Trap) -> Result<Verdict, MachineError> {
        let pc = pc(cpu)?;
        let mut requests = self.requests();
        let is_plain_step = matches!(trap, Trap::Aarch64 { exception, .. }
            if matches!(exception, arch::aarch64::syndrome::DebugException::SoftwareStep { .. }));
        let place = if is_plain_step { None } else { locate(cpu, pc) };
        let is_planted = place.is_some_and(|place| requests.table.is_met(cpu.memory(), place));
        let opcode = place.and_then(|place| {
            let mut byte = [0];
            (self.isa == Isa::X86_64 && cpu.memory().read(place, &mut byte) == 1).then_some(byte[0])
        });
        let own = own_registers(cpu, trap);
        let progress = requests.progress(cpu.vcpu().id());
        let (wants, allocation) = match &progress.run {
            Some(run) => (&run.wants, &run.allocation),
            // Those of guards stand behind the others, and may be in force while a vCPU runs.
            None if progress.action == Action::Run => (&requests.guarded.wants, &requests.guarded.allocation),
            None => (&requests.sharing.wants, &requests.sharing.allocation),
        };
        let is_range_run = progress.run.is_some();
        let situation = Situation {
            pc,
            is_planted,
            opcode,
            is_step: progress.action.is_step(),
            registers: &allocation.registers,
            served: &allocation.served,
            wants,
            own: &own,
        };
        let (owner, also) = (decide(trap, &situation), also_guests(trap, &situation));
        log::debug!(target: "debug::exit", "vCPU {} at {pc:#x}: {trap:x?} is {owner:x?}, and {also:x?}", cpu.vcpu().id());
        if let (Owner::Debugger(_), Some(injection)) = (owner, also) {
            cpu.inject(&injection)?;
        }
        match owner {
            Owner::Nobody => Ok(Verdict::NotOurs),
            Owner::Guest(injection) => {
                drop(requests);
                self.give_back(cpu, &injection)
            }
            Owner::Debugger(Cause::Step) => {
                drop(requests);
                self.after_step(cpu)
            }
            Owner::Debugger(Cause::Planted) => {
                // What is met translates.
                let Some(place) = place else { return Ok(Verdict::NotOurs) };
                let hit = requests.table.planted_at(place);
                let is_retry = requests.retries.take(cpu, Some(place), DealtWith::Execution);
                drop(requests);
                if !is_retry && self.stops(cpu, pc, &hit) {
                    return Ok(Verdict::Stop(StopReason::Breakpoint));
                }
                self.pass(cpu, Some(place), DealtWith::Execution)
            }
            // An exit of a range that is run through.
            Owner::Debugger(Cause::Execute(want)) if is_range_run && want >= requests.sharing.wants.len() => {
                drop(requests);
                self.leave_range(cpu, pc, place)
            }
            Owner::Debugger(Cause::Execute(_)) if requests.table.is_vector(pc) => {
                drop(requests);
                self.at_vector(cpu, pc, place)
            }
            Owner::Debugger(Cause::Execute(want)) => {
                drop(requests);
                self.at_register(cpu, pc, place, want)
            }
            Owner::Debugger(Cause::Watch(want, address)) => {
                drop(requests);
                self.at_watchpoint(cpu, pc, place, (want, address))
            }
        }
    }

    /// At an access that a debug register is on, in front of it or behind it.
    fn at_watchpoint(
        &self,
        cpu: &mut dyn Cpu,
        pc: u64,
        place: Option<GuestPhys>,
        (want, address): (usize, u64),
    ) -> Result<Verdict, MachineError> {
        let mut requests = self.requests();
        let id = requests.guarded.owners.get(want).copied();
        let access = id.and_then(|id| requests.table.get(id)).and_then(|breakpoint| breakpoint.kind.access());
        let hit = requests.met(want);
        // On aarch64 the access is still to come, and may be begun again.
        let is_retry = self.isa == Isa::Aarch64 && requests.retries.take(cpu, place, DealtWith::Access);
        drop(requests);
        if !is_retry
            && self.stops(cpu, pc, &hit)
            && let Some(access) = access
        {
            return Ok(Verdict::Stop(StopReason::Watchpoint { address, access }));
        }
        match self.isa {
            Isa::Aarch64 => self.pass(cpu, place, DealtWith::Access),
            // It is done, and a range that is run through goes on to an exit.
            Isa::X86_64 if self.runs_range(cpu.vcpu().id()) => Ok(Verdict::GoOn),
            Isa::X86_64 => self.after_step(cpu),
        }
    }

    /// At an instruction that a debug register is on.
    fn at_register(
        &self,
        cpu: &mut dyn Cpu,
        pc: u64,
        place: Option<GuestPhys>,
        want: usize,
    ) -> Result<Verdict, MachineError> {
        let mut requests = self.requests();
        let id = requests.guarded.owners.get(want).copied();
        // All of a place's breakpoints are met at once, by whichever of their names: what is planted there is lifted for
        // the step over it, and met no more.
        let mut hit = requests.met(want);
        if let Some(place) = place {
            if want >= requests.sharing.wants.len() {
                requests.table.restore(cpu.memory(), place, id);
                hit.clear();
            }
            hit.extend(requests.table.planted_at(place));
        }
        let is_retry = requests.retries.take(cpu, place, DealtWith::Execution);
        drop(requests);
        // A page that was missing when the breakpoint was asked for is there now; but
        // the others are still armed as they are, so `refresh` plants it.
        if !is_retry && self.stops(cpu, pc, &hit) {
            return Ok(Verdict::Stop(self.reason(cpu.vcpu().id())));
        }
        self.pass(cpu, place, DealtWith::Execution)
    }

    /// At a vector that aborts of fetches go to: where one was refused at a breakpoint, that is a hit, and the
    /// abort is undone. What it has written over (`ELR_EL1`, `SPSR_EL1`, `ESR_EL1`, `FAR_EL1`) no code that can
    /// be interrupted relies on.
    fn at_vector(
        &self,
        cpu: &mut dyn Cpu,
        pc: u64,
        place: Option<GuestPhys>,
    ) -> Result<Verdict, MachineError> {
        let row = |name| arch::register::row(self.isa, name);
        let get = |name| row(name).and_then(|row| cpu.vcpu().register(row));
        let refused = get("ESR_EL1").zip(get("ELR_EL1")).and_then(|(esr, elr)| refused_fetch(esr, elr));
        let (saved, flags) = (get("SPSR_EL1"), get("cpsr"));
        if let (Some(at), Some(saved), Some(flags)) = (refused, saved, flags)
            && let (Some(pc_row), Some(flags_row)) = (row("pc"), row("cpsr"))
        {
            let hit = self.requests().table.refused_at(pc, at);
            if !hit.is_empty() {
                cpu.vcpu_mut().set_rows(&[(pc_row, at), (flags_row, saved)])?;
                let here = locate(cpu, at);
                // Whoever goes on from a hit here is refused once more.
                let is_retry = self.requests().retries.take(cpu, here, DealtWith::Execution);
                if !is_retry && self.stops(cpu, at, &hit) {
                    return Ok(Verdict::Stop(StopReason::Breakpoint));
                }
                // Once its page can be executed it is met again.
                self.expect(cpu, Dealt::at(cpu, here, DealtWith::Execution));
                cpu.vcpu_mut().set_rows(&[(pc_row, pc), (flags_row, flags)])?;
            }
        }
        match self.meets_planted(cpu, pc, place) {
            Met::Stops => Ok(Verdict::Stop(StopReason::Breakpoint)),
            met => self.pass(cpu, place, met.into()),
        }
    }

    /// At a place where a debug register is for something else: what is planted there is met, and would be lifted for the
    /// step over it.
    pub(super) fn meets_planted(&self, cpu: &dyn Cpu, pc: u64, place: Option<GuestPhys>) -> Met {
        let (hit, is_retry) = {
            let mut requests = self.requests();
            let hit = place.map(|place| requests.table.planted_at(place)).unwrap_or_default();
            let is_retry = !hit.is_empty() && requests.retries.take(cpu, place, DealtWith::Execution);
            (hit, is_retry)
        };
        match hit.is_empty() {
            true => Met::Nothing,
            false if !is_retry && self.stops(cpu, pc, &hit) => Met::Stops,
            false => Met::GoesOn,
        }
    }

    /// Why a vCPU stops: the first of its breakpoints tells.
    fn reason(&self, vcpu: u32) -> StopReason {
        let requests = self.requests();
        let first = requests.stopped_at(vcpu).first().and_then(|id| requests.table.get(*id));
        match first.map(|breakpoint| breakpoint.kind) {
            Some(Kind::Software) => StopReason::Breakpoint,
            _ => StopReason::HardwareBreakpoint,
        }
    }

    /// Counts a hit of each breakpoint, runs its commands, and tells whether one stops. Conditions are asked under
    /// no lock: they may be a program's own.
    fn stops(&self, cpu: &dyn Cpu, pc: u64, hit: &[Id]) -> bool {
        let mut stopping = Vec::new();
        for &id in hit {
            let Some((breakpoint, filter)) = self.requests().count(id) else { continue };
            let Breakpoint { conditions, commands, hits, .. } = breakpoint;
            let mut target = Evaluation::new(cpu, self);
            let which = Which { id, hits, pc };
            let holds = filter.is_none_or(|filter| target.holds(&filter.condition, which))
                && (conditions.is_empty() || conditions.iter().any(|it| target.holds(it, which)));
            if holds && commands.is_empty() {
                stopping.push(id);
            }
            for command in commands.iter().filter(|_| holds) {
                // A command that fails has printed nothing; the user sees why.
                if let Err(error) = command.evaluate(&mut target) {
                    target.print(&format!("(dprintf: {error})\n"));
                }
            }
            let printed = target.printed;
            if !printed.is_empty() {
                self.requests().print(printed);
            }
        }
        let stops = !stopping.is_empty();
        if stops && let Some(progress) = self.requests().progress.get_mut(cpu.vcpu().id() as usize) {
            progress.stopped_at = stopping;
        }
        stops
    }

    /// Gives the guest an exception of its own; a requested step ends in its handler.
    fn give_back(&self, cpu: &mut dyn Cpu, injection: &Injection) -> Result<Verdict, MachineError> {
        if injection.is_of_register() && !cpu.is_own(injection)? {
            return Ok(Verdict::GoOn);
        }
        cpu.inject(injection)?;
        let vcpu = cpu.vcpu().id();
        // In a range that is run through it is a handler's, or another task's.
        let is_step = self.requests().progress(vcpu).action.is_step() && !self.runs_range(vcpu);
        // On aarch64 the vCPU is at its vector now. On x86 KVM delivers the exception when the
        // guest is entered; the step ends at the handler then.
        Ok(if is_step && self.isa == Isa::Aarch64 { Verdict::Stop(StopReason::Step) } else { Verdict::GoOn })
    }

    /// After an instruction has been executed: the step that was asked for, or one of a range.
    pub(super) fn after_step(&self, cpu: &mut dyn Cpu) -> Result<Verdict, MachineError> {
        let pc = pc(cpu)?;
        let faulted = cpu.faulted_at();
        let mut requests = self.requests();
        let Some(progress) = requests.progress.get_mut(cpu.vcpu().id() as usize) else {
            return Ok(Verdict::GoOn);
        };
        match progress.action {
            Action::StepRange(start, end) if (start..end).contains(&pc) => {
                progress.steps += 1;
                progress.stack = stack(cpu);
                if progress.steps == STEPS_BEFORE_RUN {
                    let exits = self.exits(cpu, &requests.table, start..end);
                    self.begin_run(&mut requests, cpu.vcpu().id(), stack(cpu), exits);
                }
                // The guest may have changed its own flags, so the step is asked for again.
                let arming = self.arming(&requests, cpu.vcpu().id());
                drop(requests);
                cpu.arm(&arming);
                Ok(Verdict::GoOn)
            }
            // An instruction of the range has faulted: its handler is no part of the range, and
            // when it is done the range goes on where it was.
            Action::StepRange(start, end) if faulted.is_some_and(|at| (start..end).contains(&at)) => {
                let exits = faulted.map(|at| vec![at]);
                let stack = progress.stack;
                self.begin_run(&mut requests, cpu.vcpu().id(), stack, exits);
                if requests.progress(cpu.vcpu().id()).run.is_none() {
                    return Ok(Verdict::Stop(StopReason::Step));
                }
                let arming = self.arming(&requests, cpu.vcpu().id());
                drop(requests);
                cpu.arm(&arming);
                Ok(Verdict::GoOn)
            }
            Action::Step | Action::StepRange(..) => Ok(Verdict::Stop(StopReason::Step)),
            Action::Run | Action::Stay => Ok(Verdict::GoOn),
        }
    }
}
