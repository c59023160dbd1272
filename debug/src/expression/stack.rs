//! What an evaluation works on, and why it fails.

/// What an expression asks what it is evaluated in.
pub trait Environment {
    /// The value of a register by gdb's number.
    fn register(&mut self, number: u16) -> Option<u64>;
    /// Reads guest-virtual memory, all or nothing.
    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool;
    /// Takes what `printf` printed.
    fn print(&mut self, text: &str);
}

/// Why an evaluation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// Memory that is not there.
    #[error("cannot read memory at {0:#x}")]
    Memory(u64),
    /// A register that has no value.
    #[error("cannot read register {0}")]
    Register(u16),
    /// A division by zero.
    #[error("division by zero")]
    Division,
    /// More operations, or a deeper stack, than is allowed.
    #[error("it does not come to an end")]
    Limit,
    /// An operation on an empty stack.
    #[error("the stack is empty")]
    Empty,
}

/// Depth of the stack.
const DEEPEST: usize = 256;

/// The stack of an evaluation.
pub(super) struct Stack(pub(super) Vec<u64>);

impl Stack {
    pub fn push(&mut self, value: u64) -> Result<(), EvaluationError> {
        if self.0.len() == DEEPEST {
            return Err(EvaluationError::Limit);
        }
        self.0.push(value);
        Ok(())
    }

    pub fn pop(&mut self) -> Result<u64, EvaluationError> {
        self.0.pop().ok_or(EvaluationError::Empty)
    }

    pub fn peek(&self, depth: usize) -> Result<u64, EvaluationError> {
        self.0.iter().rev().nth(depth).copied().ok_or(EvaluationError::Empty)
    }
}

/// The lowest `bits` of a value, extended by their sign or by zeros.
pub(super) fn extend(value: u64, bits: u8, signed: bool) -> u64 {
    let unused = 64 - u32::from(bits.clamp(1, 64));
    if signed { (value.cast_signed() << unused >> unused).cast_unsigned() } else { value << unused >> unused }
}
