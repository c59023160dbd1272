//! What conditions and commands of breakpoints see.

use super::Cpu;
use crate::breakpoint::Table;
use crate::expression::{Environment, Expression};
use crate::memory::{self, Space};
use arch::GuestVirt;

/// What a condition sees: the vCPU that hit.
pub(super) struct Evaluation<'a> {
    cpu: &'a dyn Cpu,
    table: &'a Table,
    space: Option<Space>,
    pub(super) printed: String,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(cpu: &'a dyn Cpu, table: &'a Table) -> Evaluation<'a> {
        Evaluation { cpu, table, space: None, printed: String::new() }
    }

    /// A condition that cannot be evaluated holds, so that the user sees the stop.
    pub(super) fn holds(&mut self, condition: &Expression) -> bool {
        match condition.evaluate(self) {
            Ok(value) => value != 0,
            Err(error) => {
                self.print(&format!("(condition: {error})\n"));
                true
            }
        }
    }
}

impl Environment for Evaluation<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        self.cpu.vcpu().register(usize::from(number))
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let space = match self.space {
            Some(space) => space,
            None => {
                let Ok(regime) = self.cpu.vcpu().regime() else { return false };
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
