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
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(plain(&String::from_utf8_lossy(&bytes[..end])))
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
