//! Pieces of a dump's file.

use crate::dump::contents::DumpError;
use crate::source::Source;

/// Reads as many bytes as there are.
///
/// # Errors
/// [`DumpError::Io`].
pub fn read_some(
    source: &dyn Source,
    offset: u64,
    bytes: &mut [u8],
    what: &'static str,
) -> Result<usize, DumpError> {
    source.read_at(offset, bytes).map_err(|source| DumpError::Io { what, offset, source })
}

/// Reads all of `length` bytes.
///
/// # Errors
/// [`DumpError::Truncated`] before anything is allocated, if the file has not got so many;
/// [`DumpError::Io`].
pub fn read_all(
    source: &dyn Source,
    offset: u64,
    length: u64,
    what: &'static str,
) -> Result<Vec<u8>, DumpError> {
    let truncated = || DumpError::Truncated { what, offset };
    let end = offset.checked_add(length).ok_or_else(truncated)?;
    if end > source.size() {
        return Err(truncated());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| truncated())?];
    if read_some(source, offset, &mut bytes, what)? < bytes.len() {
        return Err(truncated());
    }
    Ok(bytes)
}
