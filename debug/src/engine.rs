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

use crate::arming::{Allocation, Arming, DebugRegisters, Own, TooMany, Want, allocate};
use crate::breakpoint::{Breakpoint, Id, Kind, Place, Table, is_patched_by_kernels};
use crate::engine::evaluation::{Evaluation, Which};
use crate::expression::Environment as _;
use crate::machine::{Abilities, Action, MachineError, Memory, Order, SoftwareBreakpoints, StopReason};
use crate::memory::Translation;
use crate::output::Output;
use crate::trap::{Cause, Injection, Owner, Situation, Trap, also_guests, decide};
use arch::aarch64::exception_entry::refused_fetch;
use arch::x86::debug_registers::matches;
use arch::{GuestPhys, GuestVirt, Isa};
#[cfg(feature = "linux")]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

mod cpu;
mod evaluation;
mod filters;
mod guest_memory;
#[cfg(feature = "linux")]
pub mod kept;
mod past;
mod ranges;
mod registers;
mod retries;

pub use cpu::{Cpu, Stepped};
pub use filters::{Filter, Filters, TooManyFilters};
use retries::{Dealt, DealtWith, Retries};

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

/// What has come of what is planted where a vCPU has come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
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

/// What a debug session has asked for.
#[derive(Debug)]
pub struct Requests {
    /// The breakpoints.
    pub table: Table,
    /// What each vCPU does, and how far it has come.
    progress: Vec<Progress>,
    /// Whether steps may fall into interrupt handlers.
    pub step_interrupts: bool,
    /// A debugger is attached.
    pub is_attached: bool,
    /// Debug registers that breakpoints need.
    sharing: Sharing,
    /// The same, and those that are left for [guards](Table::guarded): in force while a vCPU runs.
    guarded: Sharing,
    /// What `dprintf` has printed, for the debugger.
    output: Output,
    /// How the addresses of breakpoints were looked at last.
    space: Option<Translation>,
    /// Instructions whose hits have been dealt with, and that are still to be executed.
    retries: Retries,
    /// Which hits are told, by the addresses that breakpoints are asked for at.
    pub filters: Filters,
}

/// Debug registers, and what each is for.
#[derive(Clone, Debug)]
struct Sharing {
    allocation: Allocation,
    wants: Vec<Want>,
    /// The breakpoint that each want belongs to.
    owners: Vec<Id>,
}

impl Sharing {
    fn none(isa: Isa) -> Sharing {
        let allocation = Allocation { registers: DebugRegisters::none(isa), served: Vec::new() };
        Sharing { allocation, wants: Vec::new(), owners: Vec::new() }
    }

    fn new(isa: Isa, abilities: &Abilities, wanted: &[(Id, Want)]) -> Result<Sharing, TooMany> {
        let (owners, wants): (Vec<Id>, Vec<Want>) = wanted.iter().copied().unzip();
        Ok(Sharing { allocation: allocate(isa, abilities, &wants)?, wants, owners })
    }
}

/// How far a vCPU has come with its action.
#[derive(Clone, Debug, Default)]
struct Progress {
    action: Action,
    /// Steps of a range that have been made.
    steps: u32,
    /// The stack pointer before the last of them.
    stack: Option<u64>,
    /// The range is run through instead of stepped.
    run: Option<Run>,
    /// It has begun what it was told last.
    has_begun: bool,
    /// The breakpoints that it stopped at last.
    stopped_at: Vec<Id>,
}

/// A range that is run through.
#[derive(Clone, Debug)]
struct Run {
    /// The stack pointer when it began, if that is known: exits of the range are met by other
    /// tasks of the guest, too.
    stack: Option<u64>,
    wants: Vec<Want>,
    allocation: Allocation,
}

/// The engine of one target.
#[derive(Debug)]
pub struct Engine {
    isa: Isa,
    abilities: Abilities,
    requests: Mutex<Requests>,
    #[cfg(feature = "linux")]
    kept: Arc<kept::Kept>,
}

impl Engine {
    /// An engine for a target whose host has these abilities, nothing asked for.
    pub fn new(isa: Isa, abilities: Abilities, vcpus: u32) -> Engine {
        let requests = Requests {
            table: Table::new(isa),
            progress: vec![Progress::default(); vcpus as usize],
            step_interrupts: false,
            is_attached: false,
            sharing: Sharing::none(isa),
            guarded: Sharing::none(isa),
            output: Output::default(),
            space: None,
            retries: Retries::default(),
            filters: Filters::default(),
        };
        Engine {
            isa,
            abilities,
            requests: Mutex::new(requests),
            #[cfg(feature = "linux")]
            kept: Arc::default(),
        }
    }

    /// The same, with what another one of the same target keeps of its Linux kernel.
    #[cfg(feature = "linux")]
    #[must_use]
    pub fn keeping(self, kept: Arc<kept::Kept>) -> Engine {
        Engine { kept, ..self }
    }

    /// What is kept of the guest's Linux kernel by whoever looks at it.
    #[cfg(feature = "linux")]
    pub fn kept(&self) -> &kept::Kept {
        &self.kept
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// For how many vCPUs it was made.
    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.requests().progress.len()).unwrap_or(u32::MAX)
    }

    /// What the host can do.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// The session's wishes. Not to be held while a guest runs.
    pub fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses how a breakpoint will be noticed.
    /// `vector` tells where the abort of a fetch that is refused goes, where breakpoints need it.
    pub fn place(
        &self,
        kind: Kind,
        memory: &dyn Memory,
        space: &Translation,
        address: GuestVirt,
        vector: impl FnOnce() -> Option<u64>,
    ) -> Place {
        if kind != Kind::Software {
            return Place::Register;
        }
        self.requests().space = Some(*space);
        if self.abilities.software == SoftwareBreakpoints::None {
            return Place::Fallback(crate::breakpoint::NOT_TRAPPED);
        }
        match space.locate(memory, address) {
            Err(_) => Place::Fallback(crate::breakpoint::NOT_MAPPED),
            Ok((place, _)) if memory.read(place, &mut [0]) == 0 => {
                Place::Fallback(crate::breakpoint::NOT_RAM)
            }
            Ok(_) if !space.is_executable(memory, address) => Place::NotExecutable { vector: vector() },
            Ok((place, _)) => {
                let mut code = [0; 5];
                let count = memory.read(place, &mut code);
                self.requests().table.unmask(place, &mut code[..count]);
                if is_patched_by_kernels(self.isa, &code[..count]) && self.has_register_free() {
                    return Place::Fallback(crate::breakpoint::PATCHED);
                }
                Place::Planted(place)
            }
        }
    }

    /// What a vCPU runs with to do what it does.
    pub fn arming(&self, requests: &Requests, vcpu: u32) -> Arming {
        let progress = requests.progress(vcpu);
        let run = progress.run.as_ref();
        let guards = &requests.guarded.allocation.registers;
        let has_guards =
            progress.action == Action::Run && requests.guarded.wants.len() > requests.sharing.wants.len();
        Arming {
            step: progress.action.is_step() && run.is_none(),
            block_interrupts: progress.action.is_step() && run.is_none() && !requests.step_interrupts,
            software: requests.table.has_planted(),
            registers: run.map_or(&requests.sharing.allocation, |run| &run.allocation).registers.clone(),
            guarded: has_guards.then(|| Box::new(guards.clone())),
        }
    }

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
    fn meets_planted(&self, cpu: &dyn Cpu, pc: u64, place: Option<GuestPhys>) -> Met {
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
    fn after_step(&self, cpu: &mut dyn Cpu) -> Result<Verdict, MachineError> {
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

    /// Looks whether pages of waiting breakpoints have appeared, and plants again what the
    /// guest has written over, where the page is still the one that was asked for. Called while
    /// all vCPUs stand still; `space` is asked for only when there is something to do.
    pub fn refresh(&self, memory: &dyn Memory, space: impl FnOnce() -> Translation) {
        let (overwritten, waiting) = {
            let requests = self.requests();
            let waits = self.abilities.software != SoftwareBreakpoints::None;
            let table = &requests.table;
            let waiting = if waits { [table.waiting(), table.not_executable()].concat() } else { Vec::new() };
            (table.overwritten(memory), waiting)
        };
        if overwritten.is_empty() && waiting.is_empty() {
            return;
        }
        let space = space();
        let mut requests = self.requests();
        requests.space = Some(space);
        for (place, address) in overwritten {
            if space.locate(memory, address).is_ok_and(|(now, _)| now == place) {
                requests.table.replant(memory, place);
            }
        }
        let mut settled = false;
        for (id, address) in waiting {
            if let Ok((place, _)) = space.locate(memory, address)
                && space.is_executable(memory, address)
            {
                settled |= requests.table.settle(memory, id, place);
            }
        }
        // Fewer wants than before always fit.
        if settled && self.reallocate(&mut requests).is_err() {
            log::error!("debug registers cannot be shared out anew");
        }
    }
}

impl Requests {
    /// Gives each vCPU a new action.
    pub fn begin(&mut self, actions: &[Action]) {
        for (progress, action) in self.progress.iter_mut().zip(actions) {
            *progress = Progress { action: *action, ..Progress::default() };
        }
        self.retries.keep_those_of(&self.table, actions);
    }

    /// The breakpoints whose want of a debug register is met.
    fn met(&self, want: usize) -> Vec<Id> {
        self.guarded.wants.get(want).map(|want| self.table.wanting(*want)).unwrap_or_default()
    }

    /// Counts a hit of a breakpoint, if it is there: it, and what its hits go through.
    fn count(&mut self, id: Id) -> Option<(Breakpoint, Option<Filter>)> {
        let breakpoint = self.table.count(id)?;
        Some((breakpoint.clone(), self.filters.of(breakpoint).cloned()))
    }

    /// A hit that a vCPU has stopped at is told to nobody, and happens again when it runs: it is no hit yet.
    pub fn take_back_hit(&mut self, vcpu: u32) {
        let Some(progress) = self.progress.get_mut(vcpu as usize) else { return };
        for id in std::mem::take(&mut progress.stopped_at) {
            self.table.take_back_hit(id);
        }
    }

    /// Whether a vCPU has begun what [`Self::begin`] said last.
    pub fn has_begun(&self, vcpu: u32) -> bool {
        self.progress(vcpu).has_begun
    }

    /// The breakpoints that a vCPU has stopped at since [`Self::begin`].
    pub fn stopped_at(&self, vcpu: u32) -> &[Id] {
        &self.progress(vcpu).stopped_at
    }

    /// Forgets how far each vCPU has come, and which hits were wanted: the debugger has gone, or the guest's memory.
    pub fn forget(&mut self) {
        self.progress.fill(Progress::default());
        self.retries = Retries::default();
        self.filters = Filters::default();
    }

    /// Somebody has given a vCPU other registers.
    pub fn changed(&mut self, vcpu: u32) {
        self.retries.forget(vcpu);
    }

    fn progress(&self, vcpu: u32) -> &Progress {
        const NONE: &Progress = &Progress {
            action: Action::Run,
            steps: 0,
            stack: None,
            run: None,
            has_begun: false,
            stopped_at: Vec::new(),
        };
        self.progress.get(vcpu as usize).unwrap_or(NONE)
    }

    fn print(&mut self, text: String) {
        self.output.push(text);
    }

    /// Whether something has been printed.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether a breakpoint has a debug register beside the instruction that is planted for it.
    pub fn is_guarded(&self, id: Id) -> bool {
        self.guarded.owners[self.sharing.owners.len()..].contains(&id)
    }

    /// Takes what has been printed, in pieces of `most` bytes or little more, until there is no more.
    pub fn take_output(&mut self, most: usize) -> Option<String> {
        self.output.take(most)
    }
}

/// Single steps of a range before it is looked at whether it can be run through: most ranges
/// are over by then.
const STEPS_BEFORE_RUN: u32 = 8;
/// The guest's own debug registers, where the trap may be of one.
fn own_registers(cpu: &dyn Cpu, trap: &Trap) -> Vec<Own> {
    match trap {
        Trap::Debug { dr6 } if matches(*dr6).next().is_some() => cpu.own_registers(),
        _ => Vec::new(),
    }
}

/// The linear program counter.
fn pc(cpu: &dyn Cpu) -> Result<u64, MachineError> {
    let (pc, _) = cpu.vcpu().pc_and_flags()?;
    Ok(cpu.vcpu().code()?.linear(pc))
}

fn stack(cpu: &dyn Cpu) -> Option<u64> {
    let name = match cpu.vcpu().isa() {
        Isa::X86_64 => "rsp",
        Isa::Aarch64 => "sp",
    };
    cpu.vcpu().register(arch::register::row(cpu.vcpu().isa(), name)?)
}

/// Guest-physical address of an instruction, if it is mapped.
fn locate(cpu: &dyn Cpu, pc: u64) -> Option<GuestPhys> {
    let regime = cpu.vcpu().regime().ok()?;
    regime.translate(cpu.memory(), GuestVirt(pc)).ok().map(|mapping| mapping.address)
}

#[cfg(test)]
mod tests;
