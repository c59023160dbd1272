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

use crate::arming::{Arming, Own};
use crate::breakpoint::{Kind, Place, Table, is_patched_by_kernels};
use crate::machine::{Abilities, Action, MachineError, Memory, SoftwareBreakpoints, StopReason};
use crate::memory::Translation;
use crate::output::Output;
use crate::trap::Trap;
use arch::x86::debug_registers::matches;
use arch::{GuestPhys, GuestVirt, Isa};
#[cfg(feature = "linux")]
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

mod cpu;
mod evaluation;
mod filters;
mod guest_memory;
mod judge;
#[cfg(feature = "linux")]
pub mod kept;
mod past;
mod ranges;
mod registers;
mod requests;
mod retries;

pub use cpu::{Cpu, Stepped};
pub use filters::{Filter, Filters, TooManyFilters};
pub use requests::Requests;
use requests::{Progress, Sharing};
use retries::Retries;

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
