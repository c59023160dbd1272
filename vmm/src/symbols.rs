//! The file that a kernel was linked to: `--symbols`, or one that is found.

mod found;
pub mod search;

pub use found::ByBuildId;

use crate::error::Error;
use crate::given_file;
use arch::Isa;
use debug::symbols::{SymbolFile, Symbols, SymbolsError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a guest's kernel has its symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SymbolsConfig {
    /// In a file that is found by the kernel's build id, if there is one: looked for when somebody asks for names or
    /// lines, and not before.
    #[default]
    Sought,
    /// In this file.
    Named(PathBuf),
    /// Nowhere but in its own memory.
    Absent,
}

impl SymbolsConfig {
    /// The file that somebody has named.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            SymbolsConfig::Named(path) => Some(path),
            SymbolsConfig::Sought | SymbolsConfig::Absent => None,
        }
    }
}

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

/// What there is of a guest's kernel, which was booted from a file, if that is known.
///
/// # Errors
/// As [`open`], of the file that somebody has named.
pub fn of(config: &SymbolsConfig, isa: Isa, booted: Option<PathBuf>) -> Result<SymbolFile, Error> {
    Ok(match config {
        SymbolsConfig::Sought => SymbolFile::Sought(Arc::new(ByBuildId::new(booted))),
        SymbolsConfig::Named(path) => SymbolFile::Named(open(path, isa)?),
        SymbolsConfig::Absent => SymbolFile::Absent,
    })
}
