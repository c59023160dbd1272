//! A file of a kernel's module, which the kernel itself links: where its sections are is known once it is loaded.
//!
//! Sources: System V gABI, chapter 4 ("Relocation"); System V ABI, AMD64, section 4.4; ELF for the Arm 64-bit
//! Architecture, section 5.7.

use super::file::ElfFile;
use super::lines::Lines;
use super::symbol::{Frame, SymbolsError};
use crate::source::{OnDisk, Source};
use arch::Isa;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// A module's file.
#[derive(Debug)]
pub struct ModuleFile {
    isa: Isa,
    build_id: Option<Vec<u8>>,
    file: Arc<ElfFile>,
}

/// What it says of a module that is loaded.
#[derive(Debug)]
pub struct LoadedModule {
    file: Arc<ElfFile>,
    /// Its sections, and where each is.
    sections: Vec<(String, u64)>,
    lines: Mutex<Option<Result<Lines, SymbolsError>>>,
}

impl ModuleFile {
    /// A file on disk, which stays open.
    ///
    /// # Errors
    /// [`SymbolsError::Format`] for what is no module of an architecture that is known.
    pub fn open(file: File) -> Result<ModuleFile, SymbolsError> {
        ModuleFile::new(OnDisk::new(file).map_err(|error| SymbolsError::Format(error.to_string()))?)
    }

    /// One that is read by `source`.
    ///
    /// # Errors
    /// As of [`ModuleFile::open`].
    pub fn new(source: impl Source + 'static) -> Result<ModuleFile, SymbolsError> {
        let file = ElfFile::new(Box::new(source));
        let (isa, build_id) = file.heading_of_module()?;
        Ok(ModuleFile { isa, build_id, file: Arc::new(file) })
    }

    /// The architecture that it is for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What tells it from every other build, if it has that.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// The same with its sections where they are.
    pub fn loaded(&self, sections: Vec<(String, u64)>) -> LoadedModule {
        LoadedModule { file: Arc::clone(&self.file), sections, lines: Mutex::new(None) }
    }
}

impl LoadedModule {
    /// The source lines of an instruction, as [`Moved::frames`](super::Moved::frames) has them.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>, SymbolsError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || Lines::of(&|name, most| self.file.relocated(name, most, &self.sections));
        match lines.get_or_insert_with(read) {
            Ok(lines) => lines.frames(address),
            Err(error) => Err(error.clone()),
        }
    }
}
