//! Names as the guest has them.

use crate::reader::{NotThere, Reader};
use crate::types::Field;

/// Bytes of a name, at most.
const LONGEST: u64 = 64;

/// A name in an array of characters, up to its zero; it may do nothing to a terminal.
///
/// # Errors
/// [`NotThere`].
pub(crate) fn read(reader: &Reader<'_>, of: u64, field: Field) -> Result<String, NotThere> {
    let mut bytes = vec![0; usize::try_from(field.size.min(LONGEST)).unwrap_or(0)];
    reader.bytes(of.wrapping_add(field.at), &mut bytes)?;
    Ok(up_to_zero(&bytes))
}

/// A name at an address, up to its zero or so many bytes, likewise.
///
/// # Errors
/// [`NotThere`], where nothing of it is.
pub(crate) fn at(reader: &Reader<'_>, at: u64, most: u64) -> Result<String, NotThere> {
    let mut bytes = vec![0; usize::try_from(most).unwrap_or(0)];
    let good = reader.some(at, &mut bytes);
    if good == 0 {
        return Err(NotThere(at));
    }
    Ok(up_to_zero(&bytes[..good]))
}

fn up_to_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    plain(&String::from_utf8_lossy(&bytes[..end]))
}

/// A name which may do nothing to a terminal, nor to the order of what stands there.
pub(crate) fn plain(name: &str) -> String {
    let is_format = |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let harmless = |c: char| if c.is_control() || is_format(c) { char::REPLACEMENT_CHARACTER } else { c };
    name.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\u{202e}b\u{200b}\u{9b}c\nd é"), "a\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}d é");
    }
}
