//! Reading dumps: which format a file has, and a reader for each.
//!
//! Nothing here asks what the host is: the architecture is what the file says, and numbers are little-endian as
//! both targets are.

pub mod elf;
mod flattened;
pub mod kdump;
pub mod packed;
pub mod raw;
pub mod source;
pub mod unpack;

use super::contents::{Contents, DumpError};
use super::packing::{Packing, unspoken};
use crate::source::Source;
use packed::Packed;
use std::sync::Arc;

/// Reads a dump, whatever its format is, also one that is compressed in blocks (for one in one piece see
/// [`in_one_piece`]).
///
/// # Errors
/// [`DumpError`].
pub fn open(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    let Some(packing) = Packing::of_file(&begin(&*source)?) else { return open_plain(source) };
    let source: Arc<dyn Source> = Arc::new(Packed::new(source, packing)?);
    if Packing::of_file(&begin(&*source)?).is_some() {
        return Err(DumpError::Unknown("compressed more than once: unpack it first".into()));
    }
    let mut contents = open_plain(source)?;
    contents.format = format!("{}, compressed by {}", contents.format, packing.words().0);
    Ok(contents)
}

/// What a file begins with, as far as it is there.
fn begin(source: &dyn Source) -> Result<Vec<u8>, DumpError> {
    let mut bytes = vec![0; 16];
    let count = source::read_some(source, 0, &mut bytes, "the file's first bytes")?;
    bytes.truncate(count);
    Ok(bytes)
}

fn open_plain(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    match begin(&*source)? {
        begin if begin.starts_with(b"\x7fELF") => elf::read(source),
        begin if begin.starts_with(kdump::SIGNATURE) => kdump::read(source),
        begin if begin.starts_with(flattened::SIGNATURE) => {
            let mut contents = kdump::read(Arc::new(flattened::Flattened::new(source)?))?;
            contents.format.push_str(", flattened");
            Ok(contents)
        }
        begin => Err(DumpError::Unknown(match unspoken(&begin) {
            Some((name, tool)) => {
                format!("compressed by {name}, which is not read: unpack it first ({tool})")
            }
            None => NEITHER.into(),
        })),
    }
}

/// What is said of a file that may be anything, plain memory too ([`raw`]).
pub const NEITHER: &str = "neither an ELF core nor a compressed kdump";

/// How a file is compressed, if that is in one piece: then it has to be [unpacked](unpack) before it is opened.
///
/// # Errors
/// [`DumpError`], for what is compressed in blocks that are not right.
pub fn in_one_piece(source: &dyn Source) -> Result<Option<Packing>, DumpError> {
    let Some(packing) = Packing::of_file(&begin(source)?) else { return Ok(None) };
    Ok(packed::blocks(packing, source)?.is_none().then_some(packing))
}
