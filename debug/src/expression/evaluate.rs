//! Evaluation, bounded in time and memory.

use super::bytecode::{Expression, number, op, operand};
use super::printf::printf;
use super::stack::{Environment, EvaluationError, Stack, extend};

/// Operations that one evaluation may take.
const MOST_OPERATIONS: usize = 100_000;

impl Expression {
    /// Evaluates it: what is on top of the stack at the end, 0 where nothing is.
    ///
    /// # Errors
    /// [`EvaluationError`].
    pub fn evaluate(&self, environment: &mut dyn Environment) -> Result<u64, EvaluationError> {
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
                    stack.push(environment.register(register).ok_or(EvaluationError::Register(register))?)?;
                }
                op::REF8..=op::REF64 => {
                    let address = stack.pop()?;
                    let mut bytes = [0; 8];
                    let size = 1 << (operation - op::REF8);
                    if !environment.memory(address, &mut bytes[..size]) {
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
                op::PRINTF => printf(&mut stack, operand, environment)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::bytecode::{BytecodeError, LONGEST};

    const REF16: u8 = 0x18;
    const REF32: u8 = 0x19;

    #[derive(Default)]
    struct Fake {
        printed: String,
    }

    impl Environment for Fake {
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
