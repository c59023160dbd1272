//! `dprintf`: what C's `printf` would print.

use super::stack::{Environment, EvaluationError, Stack, extend};
use arch::plain::plain_lines;
use std::fmt::Write;

/// Bytes of a string that `%s` prints.
const LONGEST_STRING: usize = 1024;

/// `printf`: on the stack are the function and the channel of gdb's dprintf style, which mean
/// nothing here, and below them the arguments, the first one on top.
pub(super) fn printf(
    stack: &mut Stack,
    operand: &[u8],
    environment: &mut dyn Environment,
) -> Result<(), EvaluationError> {
    let (count, format) = (operand[0], &operand[3..operand.len() - 1]);
    let (_function, _channel) = (stack.pop()?, stack.pop()?);
    let arguments = (0..count).map(|_| stack.pop()).collect::<Result<Vec<u64>, _>>()?;
    let text = format_text(&String::from_utf8_lossy(format), &arguments, environment);
    environment.print(&text);
    Ok(())
}

/// What C's `printf` would make of it, for numbers, characters, pointers and strings.
fn format_text(format: &str, arguments: &[u64], environment: &mut dyn Environment) -> String {
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
                    'c' => plain_lines(char::from(value.to_le_bytes()[0]).encode_utf8(&mut [0; 4])),
                    'p' => format!("{value:#x}"),
                    's' => string_at(value, environment),
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

fn string_at(address: u64, environment: &mut dyn Environment) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < LONGEST_STRING {
        let mut byte = [0];
        let at = address.wrapping_add(bytes.len() as u64);
        if !environment.memory(at, &mut byte) || byte[0] == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    plain_lines(&String::from_utf8_lossy(&bytes))
}
