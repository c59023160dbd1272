//! An entry to the guest of a vCPU that is debugged, and what is to be done around it beyond what the hypervisor
//! does: interrupts kept out of single steps, instructions that cannot be stepped run to where they lead, traces of
//! the step taken out of the guest, the guest's own debug registers kept in force.
//!
//! How an instruction is stepped is a pure plan (`arch::x86::step`, `arch::aarch64::step`). A [`Stepper`] carries it
//! out: [`Stepper::prepare`] before the entry, [`Stepper::finish`] behind it. What is different on each architecture
//! is in a file of its own; both compile and are tested on any host.

mod aarch64;
#[cfg(test)]
mod tests;
mod x86;

use super::times::Entry;
use crate::arming::{Arming, DebugRegisters, Own, Want, allocate, with_own};
use crate::disassemble::LONGEST_INSTRUCTION;
use crate::machine::{Abilities, Code, MachineError, Memory, SoftwareBreakpoints};
use crate::memory::{self, Translation};
use crate::trap::{Injection, Trap};
use crate::vcpu::Vcpu;
use arch::aarch64::step as arm;
use arch::aarch64::syndrome::DebugException;
use arch::register::RegisterFile;
use arch::x86::debug_registers::{Condition, DR6_BS, Slot, matches};
use arch::x86::step::gate::Handler;
use arch::{GuestVirt, Isa};
use std::fmt;

/// Whether a trap is the end of a step.
pub fn is_step(trap: &Trap) -> bool {
    match trap {
        Trap::Debug { dr6 } => dr6 & DR6_BS != 0,
        Trap::Aarch64 { exception: DebugException::SoftwareStep { .. }, .. } => true,
        _ => false,
    }
}

/// The trap of a step that has been done in another way.
pub fn stepped(isa: Isa) -> Trap {
    match isa {
        Isa::X86_64 => Trap::Debug { dr6: DR6_BS },
        Isa::Aarch64 => {
            Trap::Aarch64 { exception: DebugException::SoftwareStep { load_exclusive: false }, far: 0 }
        }
    }
}

/// What a debugger has armed a vCPU with, and what of it the vCPU's thread has to remember between entries.
#[derive(Debug)]
pub struct Armed {
    /// What the vCPU runs with.
    pub arming: Arming,
    /// The hypervisor has not been told that yet.
    pub is_new: bool,
    /// The linear address of the instruction that was stepped last, if it faulted instead.
    pub faulted: Option<u64>,
    /// The guest's own debug registers, where others are in force beside them.
    beside: Option<Beside>,
    /// x86: the handler of an exception that was given to the guest during a step; the step ends there.
    runs_to: Option<u64>,
    /// x86: the guest's own trap flag, while the hypervisor steps with it and hides it.
    trap_flag: Option<bool>,
}

/// The guest's own debug registers beside the debugger's.
#[derive(Debug)]
struct Beside {
    /// Those that are in force, and where.
    own: Vec<Own>,
    /// What the guest had in its registers then.
    guests: DebugRegisters,
}

impl Armed {
    /// Nothing is armed.
    pub fn off(isa: Isa) -> Armed {
        Armed {
            arming: Arming::off(isa),
            is_new: false,
            faulted: None,
            beside: None,
            runs_to: None,
            trap_flag: None,
        }
    }

    /// Has the vCPU run with this from its next entry on.
    pub fn set(&mut self, arming: &Arming) {
        self.is_new = true;
        self.arming.clone_from(arming);
    }

    /// The debug registers in force that are the guest's own, beside others. `None` where only the guest's are in
    /// force, as it set them.
    pub fn own_among_others(&self) -> Option<&[Own]> {
        self.beside.as_ref().map(|beside| &beside.own[..])
    }
}

/// A step that is under way.
#[derive(Clone, Debug, Default)]
pub struct PlannedStep {
    /// Linear address of the instruction.
    from: u64,
    /// The vCPU runs to the first of these instead of stepping; none for a plain step.
    runs_to: Vec<u64>,
    /// Handlers that the instruction may fault to, which have a debug register meanwhile. On aarch64 they
    /// are vectors, and only in the way of one that runs.
    faults: Vec<Handler>,
    /// x86: the instruction stores the flags.
    stores_flags: bool,
    /// x86: it reads or writes ports again and again, and stays where it is meanwhile.
    repeats: bool,
    /// x86: the guest's own trap flag.
    own: x86::OwnTrapFlag,
    /// The instruction may find out the time.
    reads_time: bool,
    /// aarch64: interrupts are masked.
    masked: Option<arm::Before>,
    /// aarch64: the instruction.
    instruction: u32,
}

impl PlannedStep {
    /// What it is to the guest's time.
    pub fn entry(&self) -> Entry {
        if self.reads_time || !self.runs_to.is_empty() { Entry::Run } else { Entry::Step }
    }
}

/// How the guest is to be entered.
#[derive(Debug)]
pub enum Entering {
    /// It runs; no step was asked for.
    Run,
    /// It makes a step.
    Step(PlannedStep),
    /// Not at all: the step is done, as the instruction only waits and has been skipped.
    Skip,
}

/// Where a vCPU is that is about to make a step.
struct At<'a> {
    pc: u64,
    flags: u64,
    code: Code,
    space: Translation,
    /// The instruction, and what is behind it.
    bytes: &'a [u8],
}

/// Carries out steps of a vCPU that is out of the guest.
pub struct Stepper<'a> {
    /// The vCPU.
    pub vcpu: &'a mut dyn Vcpu,
    /// Guest RAM.
    pub memory: &'a dyn Memory,
    /// What the host can do.
    pub host: &'a Abilities,
    /// What the vCPU's thread remembers.
    pub armed: &'a mut Armed,
}

impl fmt::Debug for Stepper<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vcpu, armed) = (self.vcpu.id(), &self.armed);
        formatter.debug_struct("Stepper").field("vcpu", &vcpu).field("armed", armed).finish_non_exhaustive()
    }
}

impl Stepper<'_> {
    fn isa(&self) -> Isa {
        self.vcpu.isa()
    }

    /// The linear program counter.
    fn linear_pc(&self) -> Result<u64, MachineError> {
        let (pc, _) = self.vcpu.pc_and_flags()?;
        Ok(self.vcpu.code()?.linear(pc))
    }

    /// Prepares an entry to the guest, and has the hypervisor told what the vCPU runs with.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn prepare(&mut self) -> Result<Entering, MachineError> {
        self.armed.faulted = None;
        // The exception that was queued may be gone: whoever writes registers drops it.
        let queued = self.armed.runs_to.filter(|_| self.vcpu.has_queued());
        self.armed.runs_to = queued;
        if !self.armed.arming.step {
            if self.armed.is_new || !self.is_unchanged()? {
                let arming = self.armed.arming.clone();
                self.set(arming, &mut PlannedStep::default())?;
            }
            return Ok(Entering::Run);
        }
        let (pc, flags) = self.vcpu.pc_and_flags()?;
        let code = self.vcpu.code()?;
        let mut step = PlannedStep { from: code.linear(pc), ..PlannedStep::default() };
        if let Some(target) = queued {
            // The handler runs first, and then comes back.
            self.armed.faulted = Some(step.from);
            step.runs_to.push(target);
            let arming = self.run_to(&step.runs_to);
            self.set(arming, &mut step)?;
            return Ok(Entering::Step(step));
        }
        let space = Translation::Virtual(self.vcpu.regime()?);
        let mut bytes = [0; LONGEST_INSTRUCTION];
        let count = memory::read(self.memory, &space, None, GuestVirt(step.from), &mut bytes);
        let at = At { pc, flags, code, space, bytes: &bytes[..count] };
        let arming = match self.isa() {
            Isa::X86_64 => self.plan_x86(&at, &mut step)?,
            Isa::Aarch64 => self.plan_aarch64(&at, &mut step)?,
        };
        let Some(arming) = arming else { return Ok(Entering::Skip) };
        // The guest may have changed the flag that it is stepped with, so the hypervisor is told each time.
        self.set(arming, &mut step)?;
        Ok(Entering::Step(step))
    }

    /// Goes on at `next`: the instruction only waits.
    fn skip_to(&mut self, next: u64) -> Result<(), MachineError> {
        let mut file = RegisterFile::new(self.isa());
        file.set_pc(next);
        self.vcpu.set_registers(&file)
    }

    /// Tells the hypervisor, with the guest's own debug registers added, as it puts ours in the place of all of
    /// them; those that are left then go to handlers of faults.
    fn set(&mut self, mut arming: Arming, step: &mut PlannedStep) -> Result<(), MachineError> {
        self.armed.beside = None;
        let guarded = arming.guarded.take();
        if !arming.registers.is_empty() || guarded.is_some() || !step.faults.is_empty() {
            let guests = self.vcpu.own_debug_registers(self.host)?;
            if let Some(guarded) = guarded.filter(|_| !guests.is_armed()) {
                arming.registers = *guarded;
            }
            let (all, own) = with_own(self.host, &arming.registers, &guests);
            arming.registers = all;
            self.armed.beside = Some(Beside { own, guests });
        }
        if let DebugRegisters::X86(slots) = &mut arming.registers {
            let mut free = slots.iter_mut().filter(|slot| slot.is_none());
            step.faults.retain(|fault| {
                let slot = Slot { address: fault.address, condition: Condition::Execute, length: 1 };
                free.next().map(|place| *place = Some(slot)).is_some()
            });
        }
        self.tell(&arming)?;
        self.armed.is_new = false;
        Ok(())
    }

    fn tell(&mut self, arming: &Arming) -> Result<(), MachineError> {
        match self.isa() {
            Isa::X86_64 => self.tell_x86(arming),
            Isa::Aarch64 => self.vcpu.set_debug(arming),
        }
    }

    /// What runs to one of `targets` instead of stepping.
    fn run_to(&self, targets: &[u64]) -> Arming {
        /// As far as they go, callers look first whether the host's registers do.
        const EVERY: Abilities = Abilities {
            software: SoftwareBreakpoints::Trapped,
            single_step: true,
            breakpoints: 0,
            watchpoints: 0,
            blocks_interrupts: true,
        };
        let every = Abilities { breakpoints: targets.len(), ..EVERY };
        let wants: Vec<Want> = targets.iter().map(|target| Want::Execute(*target)).collect();
        let registers = allocate(self.isa(), &every, &wants)
            .map_or_else(|_| DebugRegisters::none(self.isa()), |allocation| allocation.registers);
        Arming { step: false, registers, guarded: None, ..self.armed.arming.clone() }
    }

    /// Re-injects an exception of the guest's own; a step that is asked for ends at its handler.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn inject(&mut self, injection: &Injection) -> Result<(), MachineError> {
        let can_run_to = self.armed.arming.step && self.host.breakpoints > 0;
        let target = can_run_to.then(|| self.handler(injection)).flatten();
        // With the trap flag on, the flags that the exception saves would have it.
        let arming = target.map_or_else(|| self.armed.arming.clone(), |target| self.run_to(&[target]));
        self.tell(&arming)?;
        self.vcpu.inject(injection, &arming)?;
        self.armed.runs_to = target;
        // The hypervisor is told again when the guest is entered.
        self.armed.is_new = true;
        Ok(())
    }

    /// Whether the guest has left its own debug registers as they were when they were armed beside
    /// the debugger's; if not, they are armed anew when the guest is entered.
    fn is_unchanged(&mut self) -> Result<bool, MachineError> {
        let Some(Beside { guests, .. }) = &self.armed.beside else { return Ok(true) };
        let is_unchanged = self.vcpu.own_debug_registers(self.host)? == *guests;
        self.armed.is_new |= !is_unchanged;
        Ok(is_unchanged)
    }

    /// Whether the guest still has the debug register armed that an exception came from; others may
    /// have changed.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn is_own(&mut self, injection: &Injection) -> Result<bool, MachineError> {
        if self.is_unchanged()? {
            return Ok(true);
        }
        let now = self.vcpu.own_debug_registers(self.host)?;
        let before = self.armed.beside.as_ref().map(|beside| &beside.guests);
        Ok(match (injection, before, &now) {
            (Injection::Debug { dr6, .. }, Some(DebugRegisters::X86(before)), DebugRegisters::X86(now)) => {
                matches(*dr6).any(|register| before[register] == now[register])
            }
            // The access or the instruction is still to come, and traps again if it is to.
            _ => false,
        })
    }

    /// Whether the instruction of a plain step has been executed, by where the vCPU is now.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn has_moved(&self, step: &PlannedStep) -> Result<bool, MachineError> {
        Ok(step.runs_to.is_empty() && self.linear_pc()? != step.from)
    }

    /// Whether a step is done though its trap has not come; then it will not come any more. `is_served` says that
    /// an access or a call of the instruction has been served and finished.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn is_done(&mut self, step: &PlannedStep, is_served: bool) -> Result<bool, MachineError> {
        let is_done = self.has_moved(step)? || is_served && step.repeats;
        if is_done && self.isa() == Isa::Aarch64 {
            // KVM remembers that a trap is to come, until debugging is switched off.
            self.vcpu.set_debug(&Arming::off(Isa::Aarch64))?;
        }
        Ok(is_done)
    }

    /// Puts right what a step has left, after any exit, and answers with the trap as the engine
    /// sees it: the end of the step, however it was made.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn finish(&mut self, step: &PlannedStep, trap: Option<Trap>) -> Result<Option<Trap>, MachineError> {
        let result = match (self.isa(), trap) {
            (Isa::X86_64, Some(trap @ Trap::Debug { .. })) => Some(self.finish_x86(step, trap)?),
            (Isa::Aarch64, Some(trap @ Trap::Aarch64 { .. })) => Some(self.finish_aarch64(step, trap)?),
            (_, trap) => trap,
        };
        if let Some(before) = &step.masked {
            self.repair(step, before)?;
        }
        Ok(result)
    }
}
