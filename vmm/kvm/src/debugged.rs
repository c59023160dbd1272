//! A vCPU of KVM's as a debugger sees it.

use super::error::KvmError;
use super::{HOST_ISA, Vcpu, kick};
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use debug::arming::{Arming, DebugRegisters};
use debug::machine::{Abilities, Activity, Code, MachineError};
use debug::trap::Injection;

impl From<KvmError> for MachineError {
    fn from(error: KvmError) -> MachineError {
        MachineError::Host(error.to_string())
    }
}

impl debug::vcpu::Vcpu for Vcpu {
    fn id(&self) -> u32 {
        self.id()
    }

    fn isa(&self) -> Isa {
        HOST_ISA
    }

    fn pc_and_flags(&self) -> Result<(u64, u64), MachineError> {
        Ok(self.pc_and_flags()?)
    }

    fn code(&self) -> Result<Code, MachineError> {
        Ok(self.code()?)
    }

    fn regime(&self) -> Result<Regime, MachineError> {
        Ok(self.regime()?)
    }

    fn registers(&self, banks: &[Bank]) -> RegisterFile {
        self.registers(banks)
    }

    fn at_stop(&self) -> RegisterFile {
        self.at_stop()
    }

    fn register(&self, row: usize) -> Option<u64> {
        self.register(row)
    }

    fn set_registers(&mut self, file: &RegisterFile) -> Result<(), MachineError> {
        Ok(Vcpu::set_registers(self, file)?)
    }

    fn set_rows(&mut self, values: &[(usize, u64)]) -> Result<(), MachineError> {
        Ok(Vcpu::set_rows(self, values)?)
    }

    fn own_debug_registers(&self, abilities: &Abilities) -> Result<DebugRegisters, MachineError> {
        Ok(self.own_debug_registers(abilities)?)
    }

    fn set_debug(&mut self, arming: &Arming) -> Result<(), MachineError> {
        Ok(Vcpu::set_debug(self, arming)?)
    }

    fn inject(&mut self, injection: &Injection, arming: &Arming) -> Result<(), MachineError> {
        Ok(Vcpu::inject(self, injection, arming)?)
    }

    fn has_queued(&self) -> bool {
        self.has_queued()
    }

    fn abort_access(&mut self) -> Result<(), MachineError> {
        Ok(Vcpu::abort_access(self)?)
    }

    fn shadow_interrupts(&mut self) -> Result<(), MachineError> {
        Ok(Vcpu::shadow_interrupts(self)?)
    }

    fn end_halt(&mut self) -> Result<(), MachineError> {
        Ok(Vcpu::end_halt(self)?)
    }

    fn activity(&self) -> Activity {
        self.activity()
    }

    fn nmi(&mut self) -> Result<(), MachineError> {
        Ok(Vcpu::nmi(self)?)
    }

    fn clear_kick(&mut self) {
        kick::clear();
    }
}
