//! What conditions and commands of breakpoints see.

use super::{Cpu, Engine};
use crate::breakpoint::{Condition, Hit, Id, Witness};
use crate::expression::Environment;
use crate::memory::{self, Translation};
use arch::paging::Regime;
use arch::{GuestVirt, Isa};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a condition sees: the vCPU that hit.
pub(super) struct Evaluation<'a> {
    cpu: &'a dyn Cpu,
    engine: &'a Engine,
    /// How the vCPU translates, once that has been asked for.
    regime: Cell<Option<Regime>>,
    pub(super) printed: String,
}

/// One hit of one breakpoint.
#[derive(Clone, Copy)]
pub(super) struct Which {
    pub id: Id,
    pub hits: u64,
    pub pc: u64,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(cpu: &'a dyn Cpu, engine: &'a Engine) -> Evaluation<'a> {
        Evaluation { cpu, engine, regime: Cell::new(None), printed: String::new() }
    }

    /// A condition that cannot be evaluated holds, so that the user sees the stop.
    pub(super) fn holds(&mut self, condition: &Condition, which: Which) -> bool {
        let result = match condition {
            Condition::Bytecode(expression) => {
                expression.evaluate(self).map(|value| value != 0).map_err(|error| error.to_string())
            }
            Condition::Closure(closure) => {
                let hit = Hit::new(which.id, which.hits, (self.cpu.vcpu().id(), which.pc), self);
                // What a closure has left half done is its own.
                let called = catch_unwind(AssertUnwindSafe(|| closure(&hit)));
                called.map_err(|panic| format!("it panicked: {}", words(&*panic)))
            }
        };
        result.unwrap_or_else(|error| {
            self.print(&format!("(condition: {error})\n"));
            true
        })
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".into())
}

impl Witness for Evaluation<'_> {
    fn isa(&self) -> Isa {
        self.cpu.vcpu().isa()
    }

    fn register(&self, row: usize) -> Option<u64> {
        self.cpu.vcpu().register(row)
    }

    fn read(&self, regime: Regime, address: GuestVirt, bytes: &mut [u8]) -> usize {
        let requests = self.engine.requests();
        memory::read(self.cpu.memory(), &Translation::Virtual(regime), Some(&requests.table), address, bytes)
    }

    fn regime(&self) -> Option<Regime> {
        if self.regime.get().is_none() {
            self.regime.set(self.cpu.vcpu().regime().ok());
        }
        self.regime.get()
    }
}

impl Environment for Evaluation<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        Witness::register(self, usize::from(number))
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let regime = Witness::regime(self);
        regime.is_some_and(|regime| self.read(regime, GuestVirt(address), bytes) == bytes.len())
    }

    fn print(&mut self, text: &str) {
        self.printed.push_str(text);
    }
}
