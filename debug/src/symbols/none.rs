//! What a kernel's file says where none is read: the same calls, and nobody can make one to call them on.

use super::symbol::{Frame, Symbol, SymbolsError};
#[cfg(feature = "linux")]
use crate::linux::unwind::cfi::Row;
use arch::Isa;
use std::convert::Infallible;

/// What a kernel's file says: nothing is read of one.
#[derive(Debug)]
pub struct Symbols(Infallible);

/// The same of a kernel that has moved.
#[derive(Clone, Debug)]
pub struct Moved(Infallible);

/// A module's file.
#[derive(Debug)]
pub struct ModuleFile(Infallible);

/// The same of a module that is loaded.
#[derive(Debug)]
pub struct LoadedModule(Infallible);

impl ModuleFile {
    /// Nobody calls it.
    pub fn loaded(&self, _sections: Vec<(String, u64)>) -> LoadedModule {
        match self.0 {}
    }
}

impl LoadedModule {
    /// Nobody calls it.
    ///
    /// # Errors
    /// None.
    pub fn frames(&self, _address: u64) -> Result<Vec<Frame>, SymbolsError> {
        match self.0 {}
    }
}

impl Symbols {
    /// Nobody calls it.
    pub fn isa(&self) -> Isa {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn has_segment_from(&self, _address: u64) -> bool {
        match self.0 {}
    }

    /// Nobody calls it.
    pub fn moved(&self, _slide: u64) -> Moved {
        match self.0 {}
    }
}

impl Moved {
    /// None is of any build.
    #[cfg(feature = "linux")]
    pub fn is_build(&self, _: &str) -> bool {
        match self.0 {}
    }

    /// Nobody calls it.
    ///
    /// # Errors
    /// None.
    pub fn find(&self, _name: &str) -> Result<Vec<Symbol>, SymbolsError> {
        match self.0 {}
    }

    /// Nobody calls it.
    ///
    /// # Errors
    /// None.
    pub fn at(&self, _address: u64) -> Result<Option<Symbol>, SymbolsError> {
        match self.0 {}
    }

    /// Nobody calls it.
    ///
    /// # Errors
    /// None.
    #[cfg(feature = "linux")]
    pub fn call_frame(&self, _address: u64) -> Result<Option<Row>, SymbolsError> {
        match self.0 {}
    }

    /// Nobody calls it.
    ///
    /// # Errors
    /// None.
    pub fn frames(&self, _address: u64) -> Result<Vec<Frame>, SymbolsError> {
        match self.0 {}
    }
}
