//! Which file of symbols there is for a guest: one that somebody has named, or one that is found by the kernel's build.

use super::{ModuleFile, Symbols};
use std::fmt::Debug;
use std::sync::Arc;

/// Finds the file that a kernel was linked to.
///
/// It is asked when a command wants names or lines and nobody has named a file: a guest that nobody asks about costs
/// nothing. That is on the thread of whoever gives the command, of which there may be several at once, and the guest may
/// be held meanwhile: it should answer soon, keep what it has found, and not wait for the guest.
pub trait FindSymbols: Debug + Send + Sync {
    /// The file of the build with this id, in hexadecimal digits as a kernel says it of itself, and where it is found by that
    /// of this release. Both are strings of the guest's, which chooses what they are: they may be of any length, no digits, and have
    /// `..` and `/` in them, and make no part of a path unless they are looked at before. A file of another build is never taken, nor one that somebody else may
    /// have made.
    fn find(&self, build_id: &str, release: &str) -> Option<FoundSymbols>;

    /// The file of a module's build, likewise: none, if the finder knows of none.
    fn find_module(&self, _build_id: &str) -> Option<Arc<ModuleFile>> {
        None
    }
}

/// A file that was found.
#[derive(Clone, Debug)]
pub struct FoundSymbols {
    /// What it says.
    pub symbols: Arc<Symbols>,
    /// Where it is, for people to read.
    pub place: String,
}

/// The file of a guest's kernel.
#[derive(Clone, Debug, Default)]
pub enum SymbolFile {
    /// None.
    #[default]
    Absent,
    /// The one that somebody has named.
    Named(Arc<Symbols>),
    /// The one that is found by the kernel's build id, if there is one.
    Sought(Arc<dyn FindSymbols>),
}

impl SymbolFile {
    /// The one that somebody has named.
    pub fn named(&self) -> Option<&Arc<Symbols>> {
        match self {
            SymbolFile::Named(symbols) => Some(symbols),
            SymbolFile::Absent | SymbolFile::Sought(_) => None,
        }
    }

    /// The file of a module's build, where files are looked for.
    pub fn module(&self, build_id: &str) -> Option<Arc<ModuleFile>> {
        match self {
            SymbolFile::Sought(finder) => finder.find_module(build_id),
            SymbolFile::Absent | SymbolFile::Named(_) => None,
        }
    }

    /// The one that is found for a build, where none is named.
    pub fn found(&self, build_id: &str, release: &str) -> Option<FoundSymbols> {
        match self {
            SymbolFile::Sought(finder) => finder.find(build_id, release),
            SymbolFile::Absent | SymbolFile::Named(_) => None,
        }
    }
}
