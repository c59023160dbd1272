//! What is asked of a file: names, addresses, lines.

#[cfg(feature = "linux")]
use super::cfi::CallFrames;
use super::file::ElfFile;
use super::lines::Lines;
use super::symbol::{Frame, Symbol, SymbolsError};
use super::table::Table;
use super::units::Units;
#[cfg(feature = "linux")]
use crate::linux::unwind::cfi::Row;
use crate::source::{OnDisk, Source};
use arch::Isa;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// What a kernel's file says.
///
/// ```
/// use debug::symbols::Symbols;
/// use std::fs::File;
///
/// // This program, which was linked to an ELF file as a kernel is.
/// let symbols = Symbols::open(File::open(std::env::current_exe()?)?)?;
/// # let nowhere = symbols.moved(0).find("no_function_has_this_name")?;
/// # assert!(nowhere.is_empty());
/// let found = symbols.moved(0x1000_0000).find("main")?;
/// assert_eq!(found[0].name, "main");
/// let same = symbols.moved(0x1000_0000).at(found[0].address + 1)?.ok_or("no symbol")?;
/// assert_eq!((same.name, same.offset), ("main".into(), 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Symbols(RwLock<Arc<OfFile>>);

/// What one file says.
#[derive(Debug)]
struct OfFile {
    isa: Isa,
    build_id: Option<Vec<u8>>,
    file: ElfFile,
    table: OnceLock<Result<Table, SymbolsError>>,
    /// Looking up a line remembers what was read of its file.
    lines: Mutex<Units>,
    #[cfg(feature = "linux")]
    call_frames: Mutex<Option<Result<CallFrames, SymbolsError>>>,
}

impl Symbols {
    /// Those of a file on disk, which stays open.
    ///
    /// # Errors
    /// [`SymbolsError::Format`] for what is no ELF file of an architecture that is known.
    pub fn open(file: File) -> Result<Symbols, SymbolsError> {
        Symbols::new(OnDisk::new(file).map_err(|error| SymbolsError::Format(error.to_string()))?)
    }

    /// Those of a file that is read by `source`.
    ///
    /// # Errors
    /// As of [`Symbols::open`].
    pub fn new(source: impl Source + 'static) -> Result<Symbols, SymbolsError> {
        let file = ElfFile::new(Box::new(source));
        let (isa, build_id) = file.heading()?;
        let file = OfFile {
            isa,
            build_id,
            file,
            table: OnceLock::new(),
            lines: Mutex::new(Units::default()),
            #[cfg(feature = "linux")]
            call_frames: Mutex::new(None),
        };
        Ok(Symbols(RwLock::new(Arc::new(file))))
    }

    /// Has lines read by the units that they are in alone, and none of a file without a table of these
    /// (`.debug_aranges`): to read all debug information takes seconds, and hundreds of MiB for a distribution's kernel.
    #[must_use]
    pub fn by_units(self) -> Symbols {
        self.now().lines.lock().unwrap_or_else(PoisonError::into_inner).only_units = true;
        self
    }

    /// The architecture that it is for.
    pub fn isa(&self) -> Isa {
        self.now().isa
    }

    /// What tells it from every other build, if that was linked into it (`NT_GNU_BUILD_ID`).
    pub fn build_id(&self) -> Option<Vec<u8>> {
        self.now().build_id.clone()
    }

    /// Whether something of it is loaded at an address or behind that, as linked (gABI, chapter 5, "Program Header"); nothing
    /// of what is damaged.
    pub fn has_segment_from(&self, address: u64) -> bool {
        self.now().file.has_segment_from(address).unwrap_or(false)
    }

    /// Whoever has these has those of another file from now on: the guest has begun again, with a kernel that was built
    /// anew.
    pub fn replace(&self, other: &Symbols) {
        let other = other.now();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other;
    }

    fn now(&self) -> Arc<OfFile> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same for a guest whose kernel has moved by `slide` bytes.
    pub fn moved(&self, slide: u64) -> Moved {
        Moved { symbols: self.now(), slide }
    }
}

impl OfFile {
    pub(super) fn table(&self) -> Result<&Table, SymbolsError> {
        self.table.get_or_init(|| self.file.symbols()).as_ref().map_err(SymbolsError::clone)
    }

    fn with_lines<T>(
        &self,
        address: u64,
        ask: impl FnOnce(&Lines) -> Result<T, SymbolsError>,
    ) -> Result<Option<T>, SymbolsError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.of(&self.file, address)?.map(ask).transpose()
    }
}

/// What a file says of a kernel that has moved.
#[derive(Clone, Debug)]
pub struct Moved {
    symbols: Arc<OfFile>,
    slide: u64,
}

impl Moved {
    /// Whether the file says that it is the build with this id, in hexadecimal digits.
    #[cfg(feature = "linux")]
    pub fn is_build(&self, id: &str) -> bool {
        let own = self.symbols.build_id.as_ref().filter(|own| !own.is_empty());
        own.is_some_and(|own| own.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == id)
    }

    #[cfg(test)]
    pub(super) fn symbols_table(&self) -> &Table {
        self.symbols.table().unwrap()
    }

    /// The symbols of a name, at most [`MOST_FOUND`](super::MOST_FOUND): several files of a kernel may have functions of one name.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn find(&self, name: &str) -> Result<Vec<Symbol>, SymbolsError> {
        let found = self.symbols.table()?.named(name);
        Ok(found.map(|entry| entry.symbol(self.slide, 0)).collect())
    }

    /// The symbol that an address is in.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn at(&self, address: u64) -> Result<Option<Symbol>, SymbolsError> {
        let linked = address.wrapping_sub(self.slide);
        let found = self.symbols.table()?.at(linked);
        Ok(found.map(|entry| entry.symbol(self.slide, linked - entry.address)))
    }

    /// The source line of an instruction, and where functions were inlined the lines that they were called at, the
    /// innermost first. Of an address that a call returns to, ask for the byte before it: the line behind the call may
    /// be another.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>, SymbolsError> {
        let linked = address.wrapping_sub(self.slide);
        Ok(self.symbols.with_lines(linked, |lines| lines.frames(linked))?.unwrap_or_default())
    }

    /// How to get from an instruction to the caller of its function, by the file's call frame information; `None` where that
    /// has nothing of it, or nothing that can be followed. It is read when this is first asked, and no other debug
    /// information with it.
    ///
    /// # Errors
    /// [`SymbolsError`].
    #[cfg(feature = "linux")]
    pub fn call_frame(&self, address: u64) -> Result<Option<Row>, SymbolsError> {
        let OfFile { isa, file, call_frames, .. } = &*self.symbols;
        let mut frames = call_frames.lock().unwrap_or_else(PoisonError::into_inner);
        match frames.get_or_insert_with(|| CallFrames::of(file, *isa)) {
            Ok(frames) => Ok(frames.at(address.wrapping_sub(self.slide))),
            Err(error) => Err(error.clone()),
        }
    }

    /// The instructions around an address that are of one source line in one piece: what a step by line goes through.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn line(&self, address: u64) -> Result<Option<Range<u64>>, SymbolsError> {
        let linked = address.wrapping_sub(self.slide);
        let range = self.symbols.with_lines(linked, |lines| lines.range(linked))?.flatten();
        Ok(range.map(|it| it.start.wrapping_add(self.slide)..it.end.wrapping_add(self.slide)))
    }
}
