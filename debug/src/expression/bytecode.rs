//! Bytecode, checked whole when it is taken.

/// Checked bytecode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(pub(super) Vec<u8>);

/// Why bytecode is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytecodeError {
    /// An operation that is unknown, or that needs what there is not (floating point, trace
    /// buffers).
    #[error("operation {operation:#04x} at {at} cannot be evaluated here")]
    Operation {
        /// Its number.
        operation: u8,
        /// Its offset.
        at: usize,
    },
    /// The bytecode ends within an operation, or without `end`.
    #[error("the bytecode is cut short at {0}")]
    Short(usize),
    /// A jump into nowhere.
    #[error("the jump at {0} leads nowhere")]
    Jump(usize),
    /// It is longer than gdb's own limit for a packet would let it be.
    #[error("the bytecode is too long")]
    Long,
}

/// Bytes of bytecode that are accepted.
pub(super) const LONGEST: usize = 16 << 10;

pub(super) mod op {
    pub const ADD: u8 = 0x02;
    pub const SUB: u8 = 0x03;
    pub const MUL: u8 = 0x04;
    pub const DIV_SIGNED: u8 = 0x05;
    pub const DIV_UNSIGNED: u8 = 0x06;
    pub const REM_SIGNED: u8 = 0x07;
    pub const REM_UNSIGNED: u8 = 0x08;
    pub const LSH: u8 = 0x09;
    pub const RSH_SIGNED: u8 = 0x0a;
    pub const RSH_UNSIGNED: u8 = 0x0b;
    pub const LOG_NOT: u8 = 0x0e;
    pub const BIT_AND: u8 = 0x0f;
    pub const BIT_OR: u8 = 0x10;
    pub const BIT_XOR: u8 = 0x11;
    pub const BIT_NOT: u8 = 0x12;
    pub const EQUAL: u8 = 0x13;
    pub const LESS_SIGNED: u8 = 0x14;
    pub const LESS_UNSIGNED: u8 = 0x15;
    pub const EXT: u8 = 0x16;
    pub const REF8: u8 = 0x17;
    pub const REF64: u8 = 0x1a;
    pub const IF_GOTO: u8 = 0x20;
    pub const GOTO: u8 = 0x21;
    pub const CONST8: u8 = 0x22;
    pub const CONST16: u8 = 0x23;
    pub const CONST32: u8 = 0x24;
    pub const CONST64: u8 = 0x25;
    pub const REG: u8 = 0x26;
    pub const END: u8 = 0x27;
    pub const DUP: u8 = 0x28;
    pub const POP: u8 = 0x29;
    pub const ZERO_EXT: u8 = 0x2a;
    pub const SWAP: u8 = 0x2b;
    pub const PICK: u8 = 0x32;
    pub const ROT: u8 = 0x33;
    pub const PRINTF: u8 = 0x34;
}

/// A big-endian number of up to eight bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Bytes of operand behind an operation; `None` for those that are not known.
pub(super) fn operand(code: &[u8], at: usize) -> Result<usize, BytecodeError> {
    let operation = code[at];
    Ok(match operation {
        op::ADD..=op::RSH_UNSIGNED | op::LOG_NOT..=op::LESS_UNSIGNED | op::REF8..=op::REF64 => 0,
        op::END | op::DUP | op::POP | op::SWAP | op::ROT => 0,
        op::EXT | op::ZERO_EXT | op::CONST8 | op::PICK => 1,
        op::IF_GOTO | op::GOTO | op::CONST16 | op::REG => 2,
        op::CONST32 => 4,
        op::CONST64 => 8,
        op::PRINTF => {
            let length = code.get(at + 2..at + 4).ok_or(BytecodeError::Short(at))?;
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            // The string's last byte is zero, and is counted.
            match code.get(at + 4..at + 4 + length) {
                Some([.., 0]) => 3 + length,
                _ => return Err(BytecodeError::Short(at)),
            }
        }
        _ => return Err(BytecodeError::Operation { operation, at }),
    })
}

impl Expression {
    /// Checks bytecode.
    ///
    /// # Errors
    /// [`BytecodeError`]: what about it cannot be evaluated.
    pub fn new(code: Vec<u8>) -> Result<Expression, BytecodeError> {
        if code.len() > LONGEST {
            return Err(BytecodeError::Long);
        }
        let mut starts = vec![false; code.len()];
        let mut at = 0;
        let mut last = None;
        while at < code.len() {
            starts[at] = true;
            last = Some(code[at]);
            let next = at + 1 + operand(&code, at)?;
            if next > code.len() {
                return Err(BytecodeError::Short(at));
            }
            at = next;
        }
        if last != Some(op::END) {
            return Err(BytecodeError::Short(code.len()));
        }
        for at in (0..code.len()).filter(|at| starts[*at]) {
            if matches!(code[at], op::IF_GOTO | op::GOTO) {
                let target = usize::try_from(number(&code[at + 1..at + 3])).unwrap_or(usize::MAX);
                if starts.get(target) != Some(&true) {
                    return Err(BytecodeError::Jump(at));
                }
            }
        }
        Ok(Expression(code))
    }
}
