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

/// A name of so many bytes, likewise.
///
/// # Errors
/// [`NotThere`], where not all of it is.
pub(crate) fn whole(reader: &Reader<'_>, at: u64, length: u64) -> Result<String, NotThere> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    reader.bytes(at, &mut bytes)?;
    Ok(up_to_zero(&bytes))
}

fn up_to_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    plain(&String::from_utf8_lossy(&bytes[..end]))
}
