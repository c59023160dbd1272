//! Names as the guest has them.

use crate::reader::{NotThere, Reader};
use crate::types::Field;
use arch::plain::plain;

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
