//! A machine that stands still, as a dump has it.

use super::contents::DumpedVcpu;
use crate::disassemble::OperatingMode;
use crate::machine::{Machine, MachineError};
use crate::ram::{Absence, Memory};
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::paging::TableMemory;
use arch::register::Bank;

/// The vCPUs of a machine that stands still.
///
/// # Errors
/// [`MachineError`].
pub fn cpus(machine: &dyn Machine) -> Result<Vec<DumpedVcpu>, MachineError> {
    let cpu = |vcpu| {
        let mode = machine.code(vcpu).map_or(OperatingMode::Bits64, |code| code.mode);
        let (registers, activity) = (machine.registers(vcpu, &Bank::ALL)?, machine.activity(vcpu));
        Ok(DumpedVcpu { registers, mode, activity, is_earlier: false })
    };
    (0..machine.vcpus()).map(cpu).collect()
}

/// Memory as the guest has it, without the instructions that a debugger has planted.
pub struct Unplanted<'a> {
    /// The memory.
    pub memory: &'a dyn Memory,
    /// Puts what the guest has in the place of what is planted in bytes from an address on
    /// ([`Table::unmask`](crate::breakpoint::Table::unmask)).
    pub unmask: &'a (dyn Fn(GuestPhys, &mut [u8]) + Sync),
}

impl std::fmt::Debug for Unplanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unplanted").finish_non_exhaustive()
    }
}

impl TableMemory for Unplanted<'_> {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.memory.read_table(address, bytes)
    }
}

impl Memory for Unplanted<'_> {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let count = self.memory.read(address, bytes);
        (self.unmask)(address, &mut bytes[..count]);
        count
    }

    fn write(&self, _: GuestPhys, _: &[u8]) -> usize {
        0
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.memory.ranges()
    }

    fn populated(&self) -> Vec<PhysRange> {
        self.memory.populated()
    }

    fn absence(&self, address: GuestPhys) -> Option<Absence> {
        self.memory.absence(address)
    }
}
