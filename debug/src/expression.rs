//! Agent expressions: the bytecode that gdb compiles conditions and `dprintf` to.
//!
//! An [`Expression`] has been checked whole when it was made: every operation is known, every
//! jump lands on one, nothing runs over the end. What cannot be evaluated here is refused
//! then, at insertion, and never at a hit. Evaluation is bounded in time and memory.
//!
//! Source: GDB manual, appendix "The GDB Agent Expression Mechanism", "Bytecode
//! Descriptions", and `gdbsupport/ax.def` for the numbers.

use std::fmt::Write;

/// What an expression asks its target for.
pub trait Target {
    /// The value of a register by gdb's number.
    fn register(&mut self, number: u16) -> Option<u64>;
    /// Reads guest-virtual memory, all or nothing.
    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool;
    /// Takes what `printf` printed.
    fn print(&mut self, text: &str);
}

/// Checked bytecode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(Vec<u8>);

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

/// Bytes of bytecode that are accepted.
const LONGEST: usize = 16 << 10;
/// Operations that one evaluation may take.
const MOST_OPERATIONS: usize = 100_000;
/// Depth of the stack.
const DEEPEST: usize = 256;
/// Bytes of a string that `%s` prints.
const LONGEST_STRING: usize = 1024;

mod op {
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
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Bytes of operand behind an operation; `None` for those that are not known.
fn operand(code: &[u8], at: usize) -> Result<usize, BytecodeError> {
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

    /// Evaluates it: what is on top of the stack at the end, 0 where nothing is.
    ///
    /// # Errors
    /// [`EvaluationError`].
    pub fn evaluate(&self, target: &mut dyn Target) -> Result<u64, EvaluationError> {
        let code = &self.0;
        let mut stack = Stack(Vec::new());
        let mut at = 0;
        for _ in 0..MOST_OPERATIONS {
            let operation = code[at];
            let size = operand(code, at).map_err(|_| EvaluationError::Limit)?;
            let operand = &code[at + 1..at + 1 + size];
            let mut next = at + 1 + size;
            match operation {
                op::END => return Ok(stack.0.pop().unwrap_or(0)),
                op::CONST8 | op::CONST16 | op::CONST32 | op::CONST64 => stack.push(number(operand))?,
                op::REG => {
                    let register = u16::from_be_bytes([operand[0], operand[1]]);
                    stack.push(target.register(register).ok_or(EvaluationError::Register(register))?)?;
                }
                op::REF8..=op::REF64 => {
                    let address = stack.pop()?;
                    let mut bytes = [0; 8];
                    let size = 1 << (operation - op::REF8);
                    if !target.memory(address, &mut bytes[..size]) {
                        return Err(EvaluationError::Memory(address));
                    }
                    stack.push(u64::from_le_bytes(bytes))?;
                }
                op::IF_GOTO => {
                    if stack.pop()? != 0 {
                        next = usize::try_from(number(operand)).unwrap_or(0);
                    }
                }
                op::GOTO => next = usize::try_from(number(operand)).unwrap_or(0),
                op::DUP => {
                    let top = stack.peek(0)?;
                    stack.push(top)?;
                }
                op::POP => drop(stack.pop()?),
                op::SWAP => {
                    let (top, below) = (stack.pop()?, stack.pop()?);
                    stack.push(top)?;
                    stack.push(below)?;
                }
                op::PICK => {
                    let value = stack.peek(usize::from(operand[0]))?;
                    stack.push(value)?;
                }
                op::ROT => {
                    // The third from the top comes to the top... a b c becomes c a b.
                    let (c, b, a) = (stack.pop()?, stack.pop()?, stack.pop()?);
                    for value in [c, a, b] {
                        stack.push(value)?;
                    }
                }
                op::LOG_NOT => {
                    let value = stack.pop()?;
                    stack.push(u64::from(value == 0))?;
                }
                op::BIT_NOT => {
                    let value = stack.pop()?;
                    stack.push(!value)?;
                }
                op::EXT | op::ZERO_EXT => {
                    let value = stack.pop()?;
                    stack.push(extend(value, operand[0], operation == op::EXT))?;
                }
                op::PRINTF => printf(&mut stack, operand, target)?,
                _ => {
                    let (right, left) = (stack.pop()?, stack.pop()?);
                    stack.push(binary(operation, left, right)?)?;
                }
            }
            at = next;
        }
        Err(EvaluationError::Limit)
    }
}

/// The lowest `bits` of a value, extended by their sign or by zeros.
fn extend(value: u64, bits: u8, signed: bool) -> u64 {
    let unused = 64 - u32::from(bits.clamp(1, 64));
    if signed { (value.cast_signed() << unused >> unused).cast_unsigned() } else { value << unused >> unused }
}

fn binary(operation: u8, left: u64, right: u64) -> Result<u64, EvaluationError> {
    let (signed_left, signed_right) = (left.cast_signed(), right.cast_signed());
    let shift = |wide: u64, by: u64, done: u64| if by < 64 { done } else { wide };
    let nonzero = |value: Option<u64>| value.ok_or(EvaluationError::Division);
    let by = u32::try_from(right & 63).unwrap_or(0);
    let is_zero = right == 0;
    Ok(match operation {
        op::ADD => left.wrapping_add(right),
        op::SUB => left.wrapping_sub(right),
        op::MUL => left.wrapping_mul(right),
        op::DIV_UNSIGNED => nonzero(left.checked_div(right))?,
        op::REM_UNSIGNED => nonzero(left.checked_rem(right))?,
        op::DIV_SIGNED => {
            nonzero((!is_zero).then(|| signed_left.wrapping_div(signed_right).cast_unsigned()))?
        }
        op::REM_SIGNED => {
            nonzero((!is_zero).then(|| signed_left.wrapping_rem(signed_right).cast_unsigned()))?
        }
        op::LSH => shift(0, right, left << by),
        op::RSH_UNSIGNED => shift(0, right, left >> by),
        op::RSH_SIGNED => {
            let sign = (signed_left >> 63).cast_unsigned();
            shift(sign, right, (signed_left >> by).cast_unsigned())
        }
        op::BIT_AND => left & right,
        op::BIT_OR => left | right,
        op::BIT_XOR => left ^ right,
        op::EQUAL => u64::from(left == right),
        op::LESS_SIGNED => u64::from(signed_left < signed_right),
        op::LESS_UNSIGNED => u64::from(left < right),
        _ => return Err(EvaluationError::Limit),
    })
}

struct Stack(Vec<u64>);

impl Stack {
    fn push(&mut self, value: u64) -> Result<(), EvaluationError> {
        if self.0.len() == DEEPEST {
            return Err(EvaluationError::Limit);
        }
        self.0.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, EvaluationError> {
        self.0.pop().ok_or(EvaluationError::Empty)
    }

    fn peek(&self, depth: usize) -> Result<u64, EvaluationError> {
        self.0.iter().rev().nth(depth).copied().ok_or(EvaluationError::Empty)
    }
}

/// `printf`: on the stack are the function and the channel of gdb's dprintf style, which mean
/// nothing here, and below them the arguments, the first one on top.
fn printf(stack: &mut Stack, operand: &[u8], target: &mut dyn Target) -> Result<(), EvaluationError> {
    let (count, format) = (operand[0], &operand[3..operand.len() - 1]);
    let (_function, _channel) = (stack.pop()?, stack.pop()?);
    let arguments = (0..count).map(|_| stack.pop()).collect::<Result<Vec<u64>, _>>()?;
    let text = format_text(&String::from_utf8_lossy(format), &arguments, target);
    target.print(&text);
    Ok(())
}

/// What C's `printf` would make of it, for numbers, characters, pointers and strings.
fn format_text(format: &str, arguments: &[u64], target: &mut dyn Target) -> String {
    let mut text = String::new();
    let mut arguments = arguments.iter().copied();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some('a') => text.push('\x07'),
                Some('e') => text.push('\x1b'),
                Some(other) => text.push(other),
                None => {}
            },
            '%' => {
                let mut spec = String::new();
                while let Some(c) = rest.next_if(|c| !c.is_ascii_alphabetic() && *c != '%') {
                    spec.push(c);
                }
                let mut bits = 32;
                while let Some(c) = rest.next_if(|c| matches!(c, 'l' | 'h' | 'z' | 'j' | 't' | 'q')) {
                    bits = match (c, bits) {
                        ('h', 16) => 8,
                        ('h', _) => 16,
                        _ => 64,
                    };
                }
                let Some(conversion) = rest.next() else { break };
                if conversion == '%' {
                    text.push('%');
                    continue;
                }
                let value = arguments.next().unwrap_or(0);
                let body = match conversion {
                    'd' | 'i' => extend(value, bits, true).cast_signed().to_string(),
                    'u' => extend(value, bits, false).to_string(),
                    'x' => format!("{}{:x}", prefix(&spec, "0x"), extend(value, bits, false)),
                    'X' => format!("{}{:X}", prefix(&spec, "0X"), extend(value, bits, false)),
                    'o' => format!("{}{:o}", prefix(&spec, "0"), extend(value, bits, false)),
                    'c' => char::from(value.to_le_bytes()[0]).to_string(),
                    'p' => format!("{value:#x}"),
                    's' => string_at(value, target),
                    other => format!("%{other}"),
                };
                pad(&mut text, &spec, &body, !matches!(conversion, 's' | 'c'));
            }
            other => text.push(other),
        }
    }
    text
}

fn prefix<'a>(spec: &str, prefix: &'a str) -> &'a str {
    if spec.contains('#') { prefix } else { "" }
}

/// Appends `body` with the flags, width and precision of a conversion.
fn pad(text: &mut String, spec: &str, body: &str, is_number: bool) {
    let flags: String = spec.chars().take_while(|c| "-+ #0".contains(*c)).collect();
    let mut sizes = spec[flags.len()..].split('.');
    let size = |text: Option<&str>| text.and_then(|text| text.parse::<usize>().ok());
    let width = size(sizes.next()).unwrap_or(0).min(LONGEST_STRING);
    let precision = size(sizes.next());
    let body: String = match precision {
        Some(precision) if !is_number => body.chars().take(precision).collect(),
        _ => body.to_string(),
    };
    let sign = if is_number && flags.contains('+') && !body.starts_with('-') { "+" } else { "" };
    // Writing to a String cannot fail.
    let written = if flags.contains('-') {
        write!(text, "{:<width$}", format!("{sign}{body}"))
    } else if flags.contains('0') && is_number {
        let (minus, digits) = body.strip_prefix('-').map_or(("", body.as_str()), |digits| ("-", digits));
        let width = width.saturating_sub(minus.len() + sign.len());
        write!(text, "{sign}{minus}{digits:0>width$}")
    } else {
        write!(text, "{:>width$}", format!("{sign}{body}"))
    };
    debug_assert!(written.is_ok());
}

fn string_at(address: u64, target: &mut dyn Target) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < LONGEST_STRING {
        let mut byte = [0];
        let at = address.wrapping_add(bytes.len() as u64);
        if !target.memory(at, &mut byte) || byte[0] == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REF16: u8 = 0x18;
    const REF32: u8 = 0x19;

    #[derive(Default)]
    struct Fake {
        printed: String,
    }

    impl Target for Fake {
        fn register(&mut self, number: u16) -> Option<u64> {
            (number < 16).then(|| 0x1000 + u64::from(number))
        }

        fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
            let ram = b"hello\0\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02";
            let start = usize::try_from(address.wrapping_sub(0x1000)).unwrap();
            match ram.get(start..start.wrapping_add(bytes.len())) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    true
                }
                None => false,
            }
        }

        fn print(&mut self, text: &str) {
            self.printed.push_str(text);
        }
    }

    fn value(code: &[u8]) -> Result<u64, EvaluationError> {
        Expression::new(code.to_vec()).unwrap().evaluate(&mut Fake::default())
    }

    /// Code that pushes a number.
    fn push(value: i64) -> Vec<u8> {
        [&[op::CONST64][..], &value.to_be_bytes()].concat()
    }

    #[test]
    fn every_operation_on_two_numbers() {
        for (operation, left, right, result) in [
            (op::ADD, 2, 3, 5),
            (op::SUB, 2, 3, -1),
            (op::MUL, -2, 3, -6),
            (op::DIV_SIGNED, -7, 2, -3),
            (op::DIV_SIGNED, i64::MIN, -1, i64::MIN),
            (op::DIV_UNSIGNED, -1, 2, i64::MAX),
            (op::REM_SIGNED, -7, 2, -1),
            (op::REM_UNSIGNED, 7, 4, 3),
            (op::LSH, 1, 63, i64::MIN),
            (op::LSH, 1, 64, 0),
            (op::RSH_SIGNED, -8, 1, -4),
            (op::RSH_SIGNED, -8, 100, -1),
            (op::RSH_UNSIGNED, -1, 63, 1),
            (op::RSH_UNSIGNED, -1, 64, 0),
            (op::BIT_AND, 6, 3, 2),
            (op::BIT_OR, 6, 3, 7),
            (op::BIT_XOR, 6, 3, 5),
            (op::EQUAL, 6, 6, 1),
            (op::LESS_SIGNED, -1, 0, 1),
            (op::LESS_UNSIGNED, -1, 0, 0),
        ] {
            let code = [push(left), push(right), vec![operation, op::END]].concat();
            assert_eq!(value(&code), Ok(result.cast_unsigned()), "{operation:#x} {left} {right}");
        }
        for operation in [op::DIV_SIGNED, op::DIV_UNSIGNED, op::REM_SIGNED, op::REM_UNSIGNED] {
            let code = [push(1), push(0), vec![operation, op::END]].concat();
            assert_eq!(value(&code), Err(EvaluationError::Division));
        }
    }

    #[test]
    fn registers_memory_and_extension() {
        assert_eq!(value(&[op::REG, 0, 3, op::END]), Ok(0x1003));
        assert_eq!(value(&[op::REG, 0, 99, op::END]), Err(EvaluationError::Register(99)));
        let at = |address: u8, operation| [op::CONST16, 0x10, address, operation, op::END];
        assert_eq!(value(&at(0, op::REF8)), Ok(u64::from(b'h')));
        assert_eq!(value(&at(14, REF16)), Ok(0x0201));
        assert_eq!(value(&at(6, REF32)), Ok(0xffff_ffff));
        assert_eq!(value(&at(6, op::REF64)), Ok(u64::MAX));
        assert_eq!(value(&at(15, REF16)), Err(EvaluationError::Memory(0x100f)));
        assert_eq!(value(&[op::CONST8, 0x80, op::EXT, 8, op::END]), Ok((-128i64).cast_unsigned()));
        assert_eq!(value(&[op::CONST16, 0xff, 0x80, op::ZERO_EXT, 8, op::END]), Ok(0x80));
        assert_eq!(value(&[op::CONST8, 5, op::LOG_NOT, op::END]), Ok(0));
        assert_eq!(value(&[op::CONST8, 0, op::BIT_NOT, op::END]), Ok(u64::MAX));
    }

    #[test]
    fn the_stack_and_jumps() {
        assert_eq!(value(&[op::CONST8, 1, op::CONST8, 2, op::SWAP, op::SUB, op::END]), Ok(1));
        assert_eq!(value(&[op::CONST8, 7, op::DUP, op::ADD, op::END]), Ok(14));
        assert_eq!(value(&[op::CONST8, 7, op::CONST8, 8, op::PICK, 1, op::END]), Ok(7));
        assert_eq!(value(&[op::CONST8, 7, op::CONST8, 8, op::POP, op::END]), Ok(7));
        assert_eq!(
            value(&[op::CONST8, 1, op::CONST8, 2, op::CONST8, 3, op::ROT, op::SUB, op::END]),
            Ok((-1i64).cast_unsigned())
        );
        let code = [op::CONST8, 1, op::IF_GOTO, 0, 8, op::CONST8, 5, op::END, op::CONST8, 6, op::END];
        assert_eq!(value(&code), Ok(6));
        assert_eq!(value(&[op::END]), Ok(0));
        assert_eq!(value(&[op::ADD, op::END]), Err(EvaluationError::Empty));
        assert_eq!(value(&[op::GOTO, 0, 0, op::END]), Err(EvaluationError::Limit));
        assert_eq!(value(&[op::CONST8, 1, op::GOTO, 0, 0, op::END]), Err(EvaluationError::Limit));
    }

    #[test]
    fn what_cannot_be_evaluated_is_refused_whole() {
        let refused = |code: &[u8]| Expression::new(code.to_vec()).unwrap_err();
        for operation in [0x00, 0x01, 0x0c, 0x0d, 0x1b, 0x1e, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x35, 0xff]
        {
            assert_eq!(refused(&[operation, op::END]), BytecodeError::Operation { operation, at: 0 });
        }
        assert_eq!(refused(&[]), BytecodeError::Short(0));
        assert_eq!(refused(&[op::CONST8, 1]), BytecodeError::Short(2));
        assert_eq!(refused(&[op::CONST64, 1, op::END]), BytecodeError::Short(0));
        assert_eq!(refused(&[op::GOTO, 0, 1, op::END]), BytecodeError::Jump(0));
        assert_eq!(refused(&[op::GOTO, 0xff, 0xff, op::END]), BytecodeError::Jump(0));
        assert_eq!(refused(&[op::PRINTF, 0, 0, 9, b'x', 0, op::END]), BytecodeError::Short(0));
        assert_eq!(refused(&[op::PRINTF, 0, 0, 1, b'x', op::END]), BytecodeError::Short(0));
        assert_eq!(refused(&vec![op::END; LONGEST + 1]), BytecodeError::Long);
    }

    #[test]
    fn printf_formats_as_c_does() {
        let print = |format: &str, arguments: &[i64]| {
            let mut code: Vec<u8> = arguments.iter().rev().flat_map(|value| push(*value)).collect();
            code.extend([op::CONST8, 0, op::CONST8, 0, op::PRINTF, u8::try_from(arguments.len()).unwrap()]);
            code.extend(u16::try_from(format.len() + 1).unwrap().to_be_bytes());
            code.extend(format.as_bytes());
            code.extend([0, op::END]);
            let mut fake = Fake::default();
            Expression::new(code).unwrap().evaluate(&mut fake).unwrap();
            fake.printed
        };
        for (format, arguments, text) in [
            ("plain 100%%\\n", &[][..], "plain 100%\n"),
            ("%d %u %x", &[-1, -1, -1], "-1 4294967295 ffffffff"),
            ("%ld %lu %#lx", &[-1, -1, 255], "-1 18446744073709551615 0xff"),
            ("[%5d|%-5d|%05d|%+d]", &[42, 42, -42, 42], "[   42|42   |-0042|+42]"),
            ("%s is %c", &[0x1000, 65], "hello is A"),
            ("%.2s|%6s", &[0x1000, 0x1000], "he| hello"),
            ("%p %hhd", &[0x1234, 0x1ff], "0x1234 -1"),
            ("%s", &[1], ""),
            ("%", &[], ""),
        ] {
            assert_eq!(print(format, arguments), text, "{format}");
        }
    }
}
