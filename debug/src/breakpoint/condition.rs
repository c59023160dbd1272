//! What decides at a hit whether it stops: bytecode that gdb has compiled, or a program's own closure.

use super::id::Id;
use crate::expression::Expression;
use arch::paging::Regime;
use arch::register::row;
use arch::{GuestVirt, Isa};
use std::fmt;
use std::sync::Arc;

/// A condition of a breakpoint.
#[derive(Clone)]
pub enum Condition {
    /// It holds when this is not 0, or cannot be evaluated.
    Bytecode(Expression),
    /// It holds when this says so, or panics.
    ///
    /// It is called on the thread of the vCPU that hit, out of the guest, under no lock. Meanwhile that vCPU waits,
    /// the others run on, and whoever wants the guest to stand still waits for it: so it is to be quick, it must not
    /// wait for a thread that debugs this guest, and it cannot ask the guest for more than the [`Hit`] gives. What it
    /// finds out it may keep (an atomic, a channel that does not block). A panic in it is caught: the vCPU stops, as
    /// with every condition that cannot be evaluated, and the panic's words are printed where a breakpoint's output
    /// goes. In a program that aborts on panics it aborts.
    Closure(Arc<dyn Fn(&Hit<'_>) -> bool + Send + Sync>),
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Bytecode(expression) => f.debug_tuple("Bytecode").field(expression).finish(),
            Condition::Closure(_) => f.write_str("Closure"),
        }
    }
}

impl From<Expression> for Condition {
    fn from(expression: Expression) -> Condition {
        Condition::Bytecode(expression)
    }
}

/// What a [`Hit`] is asked of: a vCPU that is out of the guest, on its own thread.
pub trait Witness {
    /// Its architecture.
    fn isa(&self) -> Isa;

    /// A register of up to 64 bits by its row of [the table](arch::register::table).
    fn register(&self, row: usize) -> Option<u64>;

    /// Reads memory as this translates, without what is planted; how many bytes are good.
    fn read(&self, regime: Regime, address: GuestVirt, bytes: &mut [u8]) -> usize;

    /// How it translates.
    fn regime(&self) -> Option<Regime>;
}

/// A breakpoint that is hit, as its condition sees it.
#[derive(Clone, Copy)]
pub struct Hit<'a> {
    /// Which breakpoint.
    pub breakpoint: Id,
    /// The vCPU's number.
    pub vcpu: u32,
    /// How often it was hit, this time included.
    pub hits: u64,
    /// The linear address of the vCPU's program counter.
    pub pc: u64,
    witness: &'a dyn Witness,
}

impl fmt::Debug for Hit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hit { breakpoint, vcpu, hits, pc, .. } = self;
        f.debug_struct("Hit")
            .field("breakpoint", breakpoint)
            .field("vcpu", vcpu)
            .field("hits", hits)
            .field("pc", pc)
            .finish_non_exhaustive()
    }
}

impl<'a> Hit<'a> {
    /// Of this breakpoint, on the vCPU of this number.
    pub fn new(breakpoint: Id, hits: u64, (vcpu, pc): (u32, u64), witness: &'a dyn Witness) -> Hit<'a> {
        Hit { breakpoint, vcpu, hits, pc, witness }
    }

    /// A register of up to 64 bits by its name in [the table](arch::register::table), as `rdi` or `x0`.
    pub fn register(&self, name: &str) -> Option<u64> {
        self.witness.register(row(self.witness.isa(), name)?)
    }

    /// Reads memory as the vCPU sees it; how many bytes are good. Planted instructions are not seen.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.regime().map_or(0, |regime| self.read_by(regime, address, bytes))
    }

    /// Reads memory as something else translates: a kernel's own tables, from which those of user space may lack much.
    pub fn read_by(&self, regime: Regime, address: u64, bytes: &mut [u8]) -> usize {
        self.witness.read(regime, GuestVirt(address), bytes)
    }

    /// How the vCPU translates.
    pub fn regime(&self) -> Option<Regime> {
        self.witness.regime()
    }
}
