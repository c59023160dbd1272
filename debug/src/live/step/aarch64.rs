//! Steps of an aarch64 vCPU: interrupts are masked for one instruction, and sequences of exclusives are run through.

use super::{At, PlannedStep, Stepper, is_step, stepped};
use crate::arming::Arming;
use crate::machine::{MachineError, Memory};
use crate::memory::{self, Translation};
use crate::trap::Trap;
use crate::vcpu::Vcpu;
use arch::aarch64::exception_entry::pstate;
use arch::aarch64::step::{self, After, Before, Look, Plan, Repair};
use arch::register::{RegisterFile, row};
use arch::x86::step::gate::Handler;
use arch::{GuestVirt, Isa};

/// A guest, as plans look at it.
struct Guest<'a> {
    vcpu: &'a dyn Vcpu,
    memory: &'a dyn Memory,
    space: &'a Translation,
    flags: u64,
}

impl Look for Guest<'_> {
    fn code(&self, address: u64, bytes: &mut [u8]) -> usize {
        memory::read(self.memory, self.space, None, GuestVirt(address), bytes)
    }

    fn fault_vector(&self) -> Option<u64> {
        state(self.vcpu).ok().map(|state| state.fault_vector(self.flags))
    }
}

/// What a step looks at when it is done.
fn state(vcpu: &dyn Vcpu) -> Result<After, MachineError> {
    let (pc, pstate) = vcpu.pc_and_flags()?;
    let get = |name: &'static str| {
        let value = row(Isa::Aarch64, name).and_then(|row| vcpu.register(row));
        value.ok_or_else(|| MachineError::Host(format!("the hypervisor does not tell {name}")))
    };
    Ok(After { pc, pstate, vbar: get("VBAR_EL1")?, spsr: get("SPSR_EL1")? })
}

impl Stepper<'_> {
    /// Plans a step; what the vCPU runs with for it, or `None` when the instruction has been skipped.
    pub(super) fn plan_aarch64(
        &mut self,
        at: &At<'_>,
        step: &mut PlannedStep,
    ) -> Result<Option<Arming>, MachineError> {
        let instruction = arch::bytes::u32_at(at.bytes, 0).unwrap_or(0);
        (step.instruction, step.reads_time) = (instruction, step::reads_time(instruction, at.flags));
        let guest = Guest { vcpu: &*self.vcpu, memory: self.memory, space: &at.space, flags: at.flags };
        let mut arming = self.armed.arming.clone();
        match step::plan(instruction, at.pc, self.host.breakpoints, &guest) {
            Plan::Skip(length) => {
                self.skip_to(at.pc.wrapping_add(length))?;
                return Ok(None);
            }
            Plan::Trap => {}
            Plan::RunTo { targets, faults } => {
                let ends: Vec<u64> = targets.iter().chain(&faults).copied().collect();
                arming = self.run_to(&ends);
                step.runs_to = targets;
                step.faults =
                    faults.into_iter().map(|address| Handler { address, flags: 0, flags_size: 0 }).collect();
            }
        }
        if arming.block_interrupts {
            let before = Before { instruction, pc: at.pc, pstate: at.flags };
            let mut file = RegisterFile::new(Isa::Aarch64);
            file.set("cpsr", step::before(&before));
            self.vcpu.set_registers(&file)?;
            step.masked = Some(before);
        }
        Ok(Some(arming))
    }

    /// Gives the guest back what the mask of interrupts has changed, where it has.
    pub(super) fn repair(&mut self, step: &PlannedStep, before: &Before) -> Result<(), MachineError> {
        let after = state(self.vcpu)?;
        let Repair { pstate, spsr, register } = step::after(before, &step.runs_to, &after);
        let mut repaired = RegisterFile::new(Isa::Aarch64);
        if let Some(pstate) = pstate {
            repaired.set("cpsr", pstate);
        }
        if let Some(spsr) = spsr {
            repaired.set("SPSR_EL1", spsr);
        }
        if let Some((number, value)) = register {
            repaired.set_row(usize::from(number), value);
        }
        self.vcpu.set_registers(&repaired)
    }

    pub(super) fn finish_aarch64(&mut self, step: &PlannedStep, trap: Trap) -> Result<Trap, MachineError> {
        let (pc, _) = self.vcpu.pc_and_flags()?;
        if step.runs_to.contains(&pc) {
            return Ok(stepped(Isa::Aarch64));
        }
        if step.faults.iter().any(|fault| fault.address == pc) {
            // It ran, so what was saved says nothing of steps.
            self.armed.faulted = Some(step.from);
            return Ok(stepped(Isa::Aarch64));
        }
        if !is_step(&trap) || !step::may_be_vector(pc, step.from) {
            return Ok(trap);
        }
        let after = state(self.vcpu)?;
        if step::has_faulted(step.instruction, step.from, &after) {
            self.armed.faulted = Some(step.from);
            // What was saved says that the instruction is still to be stepped.
            let mut file = RegisterFile::new(Isa::Aarch64);
            file.set("SPSR_EL1", after.spsr & !pstate::SS);
            self.vcpu.set_registers(&file)?;
        }
        Ok(trap)
    }
}
