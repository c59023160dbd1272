//! Agent expressions: the bytecode that gdb compiles conditions and `dprintf` to.
//!
//! An [`Expression`] has been checked whole when it was made: every operation is known, every
//! jump lands on one, nothing runs over the end. What cannot be evaluated here is refused
//! then, at insertion, and never at a hit. Evaluation is bounded in time and memory.
//!
//! Source: GDB manual, appendix "The GDB Agent Expression Mechanism", "Bytecode
//! Descriptions", and `gdbsupport/ax.def` for the numbers.

mod bytecode;
mod evaluate;
mod printf;
mod stack;

pub use bytecode::{BytecodeError, Expression};
pub use stack::{Environment, EvaluationError};
