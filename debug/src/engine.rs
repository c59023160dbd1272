//! Acting on a debug exit, on the thread of the vCPU that it happened on.
//!
//! The [`Engine`] holds what a debug session has asked for: the breakpoint table and each
//! vCPU's action. A vCPU's thread hands it an exit ([`Engine::judge`]) and is told to go on
//! or to stop; so a false condition, a `dprintf`, a range step and an exception of the
//! guest's own cost no other thread. The thread that serves gdb changes the table while all
//! vCPUs stand still.
//!
//! No lock is held while a guest runs: a step over a breakpoint makes the other vCPUs leave
//! the guest first ([`Cpu::begin_exclusive`]), so that none runs past the place while its
//! instruction is lifted.

use crate::arming::{Allocation, Arming, DebugRegisters, TooMany, Want, allocate};
use crate::breakpoint::{Breakpoint, Kind, Place, Table};
use crate::expression::{Expression, Target};
use crate::memory::{self, Space};
use crate::target::{
    Action, Cpu, HostDebug, Memory, Order, SoftwareBreakpoints, Stepped, StopReason, TargetError,
};
use crate::trap::{Cause, Injection, Owner, Situation, Trap, decide};
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, GuestVirt, Isa};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a vCPU's thread does after an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run on.
    GoOn,
    /// Stop and report.
    Stop(StopReason),
    /// It is nobody's: the run loop deals with it as if there were no debugger.
    NotOurs,
}

/// What a debug session has asked for.
#[derive(Debug)]
pub struct State {
    /// The breakpoints.
    pub table: Table,
    /// What each vCPU does.
    pub actions: Vec<Action>,
    /// Whether steps may fall into interrupt handlers.
    pub step_interrupts: bool,
    /// A debugger is attached.
    pub is_attached: bool,
    /// Debug registers in force, and the breakpoint that each want belongs to.
    allocation: Allocation,
    wants: Vec<Want>,
    owners: Vec<usize>,
    /// What `dprintf` has printed, for the debugger.
    output: VecDeque<String>,
}

/// The engine of one target.
#[derive(Debug)]
pub struct Engine {
    isa: Isa,
    host: HostDebug,
    state: Mutex<State>,
}

/// Pieces of output kept for a debugger that does not read; the oldest go first.
const MOST_OUTPUT: usize = 4096;

impl Engine {
    /// An engine for a target whose host can do `host`, nothing asked for.
    pub fn new(isa: Isa, host: HostDebug, vcpus: u32) -> Engine {
        let state = State {
            table: Table::new(isa),
            actions: vec![Action::Run; vcpus as usize],
            step_interrupts: false,
            is_attached: false,
            allocation: Allocation { registers: DebugRegisters::none(isa), served: Vec::new() },
            wants: Vec::new(),
            owners: Vec::new(),
            output: VecDeque::new(),
        };
        Engine { isa, host, state: Mutex::new(state) }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the host can do.
    pub fn host(&self) -> &HostDebug {
        &self.host
    }

    /// The session's wishes. Not to be held while a guest runs.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses how a breakpoint will be noticed.
    pub fn place(&self, kind: Kind, memory: &dyn Memory, space: &Space, address: GuestVirt) -> Place {
        if kind != Kind::Software {
            return Place::Register;
        }
        if self.host.software == SoftwareBreakpoints::None {
            return Place::Fallback(crate::breakpoint::NOT_TRAPPED);
        }
        match space.locate(memory, address) {
            Err(_) => Place::Fallback(crate::breakpoint::NOT_MAPPED),
            Ok((place, _)) if memory.read(place, &mut [0]) == 0 => {
                Place::Fallback(crate::breakpoint::NOT_RAM)
            }
            Ok((place, _)) => Place::Planted(place),
        }
    }

    /// Shares out debug registers anew, after the table has changed.
    ///
    /// # Errors
    /// [`TooMany`]; then the old sharing stays.
    pub fn reallocate(&self, state: &mut State) -> Result<(), TooMany> {
        let (owners, wants) = state.table.wants();
        state.allocation = allocate(self.isa, &self.host, &wants)?;
        (state.owners, state.wants) = (owners, wants);
        Ok(())
    }

    /// What a vCPU runs with to do `action`.
    pub fn arming(&self, state: &State, action: Action) -> Arming {
        Arming {
            step: matches!(action, Action::Step | Action::StepRange(..)),
            block_interrupts: !state.step_interrupts,
            software: state.table.has_planted(),
            registers: state.allocation.registers.clone(),
        }
    }

    /// Begins an order, on the vCPU's thread.
    pub fn start(&self, cpu: &mut dyn Cpu, order: &Order) -> Verdict {
        let begun = if order.steps_off {
            let place = cpu.pc_and_flags().ok().and_then(|(pc, _)| locate(cpu, pc));
            self.step_over(cpu, place, &order.arming)
                .and_then(|stepped| self.after_step_over(cpu, &stepped, order.action, &order.arming))
        } else {
            cpu.arm(&order.arming).map(|()| Verdict::GoOn)
        };
        begun.unwrap_or_else(|error| {
            Verdict::Stop(StopReason::Fatal(format!("it cannot be resumed: {error}")))
        })
    }

    /// Judges an exit of `cpu` that may be the debugger's.
    pub fn judge(&self, cpu: &mut dyn Cpu, trap: &Trap) -> Verdict {
        match self.try_judge(cpu, trap) {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Stop(StopReason::Fatal(format!("a debug exit cannot be served: {error}"))),
        }
    }

    fn try_judge(&self, cpu: &mut dyn Cpu, trap: &Trap) -> Result<Verdict, TargetError> {
        let (pc, _) = cpu.pc_and_flags()?;
        let mut state = self.state();
        let action = state.actions.get(cpu.id() as usize).copied().unwrap_or_default();
        let is_plain_step = matches!(trap, Trap::Aarch64 { exception, .. }
            if matches!(exception, arch::aarch64::syndrome::DebugException::SoftwareStep { .. }));
        let place = if is_plain_step { None } else { locate(cpu, pc) };
        let is_planted = place.is_some_and(|place| state.table.is_planted(cpu.memory(), place));
        let opcode = place.and_then(|place| {
            let mut byte = [0];
            (self.isa == Isa::X86_64 && cpu.memory().read(place, &mut byte) == 1).then_some(byte[0])
        });
        let situation = Situation {
            pc,
            is_planted,
            opcode,
            is_step: matches!(action, Action::Step | Action::StepRange(..)),
            registers: &state.allocation.registers,
            served: &state.allocation.served,
            wants: &state.wants,
        };
        match decide(trap, &situation) {
            Owner::Nobody => Ok(Verdict::NotOurs),
            Owner::Guest(injection) => {
                drop(state);
                self.give_back(cpu, &injection, action)
            }
            Owner::Debugger(Cause::Step) => {
                let arming = self.arming(&state, action);
                drop(state);
                after_step(cpu, pc, action, &arming)
            }
            Owner::Debugger(Cause::Planted) => {
                // `is_planted` says that it translates.
                let Some(place) = place else { return Ok(Verdict::NotOurs) };
                let hit = state.table.planted_at(place);
                if self.stops(cpu, &mut state, &hit) {
                    return Ok(Verdict::Stop(StopReason::Breakpoint));
                }
                let arming = self.arming(&state, action);
                drop(state);
                let stepped = self.step_over(cpu, Some(place), &arming)?;
                self.after_step_over(cpu, &stepped, action, &arming)
            }
            Owner::Debugger(Cause::Execute(want)) => {
                let index = state.owners.get(want).copied().unwrap_or(usize::MAX);
                // A page that was missing when the breakpoint was asked for is there now; but
                // the others are still armed as they are, so `refresh` plants it.
                if self.stops(cpu, &mut state, &[index]) {
                    let kind = state.table.get(index).map(|breakpoint| breakpoint.kind);
                    return Ok(Verdict::Stop(match kind {
                        Some(Kind::Software) => StopReason::Breakpoint,
                        _ => StopReason::HardwareBreakpoint,
                    }));
                }
                let arming = self.arming(&state, action);
                drop(state);
                let stepped = self.step_over(cpu, place, &arming)?;
                self.after_step_over(cpu, &stepped, action, &arming)
            }
            Owner::Debugger(Cause::Watch(want, address)) => {
                let index = state.owners.get(want).copied().unwrap_or(usize::MAX);
                let access = state.table.get(index).and_then(|breakpoint| breakpoint.kind.access());
                if self.stops(cpu, &mut state, &[index])
                    && let Some(access) = access
                {
                    return Ok(Verdict::Stop(StopReason::Watchpoint { address, access }));
                }
                let arming = self.arming(&state, action);
                drop(state);
                // x86 reports after the access, aarch64 before it.
                let stepped = match self.isa {
                    Isa::Aarch64 => self.step_over(cpu, None, &arming)?,
                    Isa::X86_64 => Stepped::Done,
                };
                self.after_step_over(cpu, &stepped, action, &arming)
            }
        }
    }

    /// Counts a hit of each breakpoint, runs its commands, and tells whether one stops.
    fn stops(&self, cpu: &mut dyn Cpu, state: &mut State, hit: &[usize]) -> bool {
        let mut stops = false;
        for &index in hit {
            state.table.count(index);
            let Some(breakpoint) = state.table.get(index) else { continue };
            let Breakpoint { conditions, commands, .. } = breakpoint.clone();
            let mut target = Evaluation::new(cpu, self.isa, &state.table);
            let holds = conditions.is_empty() || conditions.iter().any(|condition| target.holds(condition));
            if !holds {
                continue;
            }
            stops |= commands.is_empty();
            for command in &commands {
                // A command that fails has printed nothing; the user sees why.
                if let Err(error) = command.evaluate(&mut target) {
                    target.print(&format!("(dprintf: {error})\n"));
                }
            }
            let printed = target.printed;
            state.print(printed);
        }
        stops
    }

    /// Executes the instruction under a breakpoint while no other vCPU runs.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn step_over(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        arming: &Arming,
    ) -> Result<Stepped, TargetError> {
        cpu.begin_exclusive();
        let lifted = place.filter(|place| self.state().table.lift(cpu.memory(), *place));
        let alone = Arming {
            step: true,
            block_interrupts: true,
            software: arming.software,
            registers: DebugRegisters::none(self.isa),
        };
        let result = cpu.arm(&alone).and_then(|()| cpu.step());
        if let Some(place) = lifted {
            self.state().table.replant(cpu.memory(), place);
        }
        let armed = cpu.arm(arming);
        cpu.end_exclusive();
        let stepped = result?;
        armed?;
        // The instruction under the breakpoint may be the guest's own breakpoint.
        if let Stepped::Trapped(trap) = &stepped
            && let Owner::Guest(injection) = decide_alone(cpu, trap, &alone)?
        {
            cpu.inject(&injection)?;
        }
        Ok(stepped)
    }

    /// A step over a breakpoint counts as the step that was asked for, if one was.
    fn after_step_over(
        &self,
        cpu: &mut dyn Cpu,
        stepped: &Stepped,
        action: Action,
        arming: &Arming,
    ) -> Result<Verdict, TargetError> {
        if !arming.step || *stepped == Stepped::Other {
            return Ok(Verdict::GoOn);
        }
        let (pc, _) = cpu.pc_and_flags()?;
        after_step(cpu, pc, action, arming)
    }

    /// Gives the guest an exception of its own; a requested step ends in its handler.
    fn give_back(
        &self,
        cpu: &mut dyn Cpu,
        injection: &Injection,
        action: Action,
    ) -> Result<Verdict, TargetError> {
        cpu.inject(injection)?;
        let is_step = matches!(action, Action::Step | Action::StepRange(..));
        // On aarch64 the vCPU is at its vector now. On x86 KVM delivers the exception when the
        // guest is entered; the step ends at the handler then.
        Ok(if is_step && self.isa == Isa::Aarch64 { Verdict::Stop(StopReason::Step) } else { Verdict::GoOn })
    }

    /// Looks whether pages of waiting breakpoints have appeared, and plants again what the
    /// guest has written over, where the page is still the one that was asked for. Called while
    /// all vCPUs stand still; `space` is asked for only when there is something to do.
    pub fn refresh(&self, memory: &dyn Memory, space: impl FnOnce() -> Space) {
        let (overwritten, waiting) = {
            let state = self.state();
            let waits = self.host.software != SoftwareBreakpoints::None;
            let waiting = if waits { state.table.waiting() } else { Vec::new() };
            (state.table.overwritten(memory), waiting)
        };
        if overwritten.is_empty() && waiting.is_empty() {
            return;
        }
        let space = space();
        let mut state = self.state();
        for (place, address) in overwritten {
            if space.locate(memory, address).is_ok_and(|(now, _)| now == place) {
                state.table.replant(memory, place);
            }
        }
        let mut settled = false;
        for (index, address) in waiting {
            if let Ok((place, _)) = space.locate(memory, address) {
                state.table.settle(memory, index, place);
                settled = true;
            }
        }
        // Fewer wants than before always fit.
        if settled && self.reallocate(&mut state).is_err() {
            log::error!("debug registers cannot be shared out anew");
        }
    }
}

impl State {
    fn print(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        if self.output.len() == MOST_OUTPUT {
            self.output.pop_front();
        }
        self.output.push_back(text);
    }

    /// Whether something has been printed.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes what has been printed.
    pub fn take_output(&mut self) -> Vec<String> {
        self.output.drain(..).collect()
    }
}

/// After a step: the one that was asked for, or one of a range.
fn after_step(cpu: &mut dyn Cpu, pc: u64, action: Action, arming: &Arming) -> Result<Verdict, TargetError> {
    match action {
        Action::StepRange(start, end) if (start..end).contains(&pc) => {
            // The guest may have changed its own flags, so the step is asked for again.
            cpu.arm(arming)?;
            Ok(Verdict::GoOn)
        }
        Action::Step | Action::StepRange(..) => Ok(Verdict::Stop(StopReason::Step)),
        Action::Run | Action::Stay => Ok(Verdict::GoOn),
    }
}

/// Whose a trap is that came during a step with nothing of the debugger's in the way.
fn decide_alone(cpu: &dyn Cpu, trap: &Trap, alone: &Arming) -> Result<Owner, TargetError> {
    let (pc, _) = cpu.pc_and_flags()?;
    let opcode = locate(cpu, pc).and_then(|place| {
        let mut byte = [0];
        (cpu.memory().read(place, &mut byte) == 1).then_some(byte[0])
    });
    let registers = &alone.registers;
    Ok(decide(
        trap,
        &Situation { pc, is_planted: false, opcode, is_step: true, registers, served: &[], wants: &[] },
    ))
}

/// Guest-physical address of an instruction, if it is mapped.
fn locate(cpu: &dyn Cpu, pc: u64) -> Option<GuestPhys> {
    let regime = cpu.regime().ok()?;
    regime.translate(cpu.memory(), GuestVirt(pc)).ok().map(|mapping| mapping.address)
}

/// What a condition sees: the vCPU that hit.
struct Evaluation<'a> {
    cpu: &'a dyn Cpu,
    table: &'a Table,
    registers: RegisterFile,
    all_registers: Option<RegisterFile>,
    space: Option<Space>,
    printed: String,
}

impl<'a> Evaluation<'a> {
    fn new(cpu: &'a dyn Cpu, isa: Isa, table: &'a Table) -> Evaluation<'a> {
        Evaluation {
            cpu,
            table,
            registers: RegisterFile::new(isa),
            all_registers: None,
            space: None,
            printed: String::new(),
        }
    }

    /// A condition that cannot be evaluated holds, so that the user sees the stop.
    fn holds(&mut self, condition: &Expression) -> bool {
        match condition.evaluate(self) {
            Ok(value) => value != 0,
            Err(error) => {
                self.print(&format!("(condition: {error})\n"));
                true
            }
        }
    }
}

impl Target for Evaluation<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        let row = usize::from(number);
        if !self.registers.has(row) {
            self.registers = self.cpu.registers(&[Bank::General]);
        }
        if let Some(value) = self.registers.get_row(row) {
            return Some(value);
        }
        self.all_registers.get_or_insert_with(|| self.cpu.registers(&Bank::ALL)).get_row(row)
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let space = match self.space {
            Some(space) => space,
            None => {
                let Ok(regime) = self.cpu.regime() else { return false };
                *self.space.insert(Space::Virtual(regime))
            }
        };
        let table = Some(self.table);
        memory::read(self.cpu.memory(), &space, table, GuestVirt(address), bytes) == bytes.len()
    }

    fn print(&mut self, text: &str) {
        self.printed.push_str(text);
    }
}
