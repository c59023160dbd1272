//! The file that a kernel was linked to: `--symbols`.

pub mod search;

use crate::error::Error;
use crate::given_file;
use arch::Isa;
use debug::symbols::{Symbols, SymbolsError};
use std::path::Path;
use std::sync::Arc;

/// Opens the file that a user names for a kernel of an architecture.
///
/// # Errors
/// [`Error::Open`], [`Error::Symbols`].
pub fn open(path: &Path, isa: Isa) -> Result<Arc<Symbols>, Error> {
    let failed = |source| Error::Open { option: "--symbols", path: path.into(), source };
    let wrong = |source| Error::Symbols { path: path.into(), source };
    let symbols = Symbols::open(given_file::open(path).map_err(failed)?).map_err(wrong)?;
    match symbols.isa() {
        its if its == isa => Ok(Arc::new(symbols)),
        other => Err(wrong(SymbolsError::Architecture(other))),
    }
}
