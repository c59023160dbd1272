//! An ELF file, read piece by piece.

use super::symbol::{Role, SymbolsError};
use super::table::{Entry, Table};
use crate::source::Source;
use arch::Isa;
use arch::plain::plain;
use object::read::{
    self as object_read, CompressedData, File, Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache,
    ReadCacheOps, RelocationTarget,
};
use object::{Architecture, ObjectKind, RelocationKind, SectionIndex, SymbolKind, SymbolSection};
use std::collections::HashMap;
use std::io;
use std::ops::Range;

/// Bytes of a table that are read at once: a kernel's with everything switched on has less in its largest.
const MOST_AT_ONCE: u64 = 1 << 30;
/// Symbols that are read: a kernel with everything switched on has two million.
const MOST_SYMBOLS: usize = 8 << 20;
/// Bytes of their names: a kernel's have a hundred megabytes. Names may overlap in the file.
const MOST_OF_NAMES: usize = 512 << 20;
/// Bytes that are read at once where only a few are wanted.
const BLOCK: usize = 64 << 10;

/// A file of a kernel.
#[derive(Debug)]
pub(super) struct ElfFile {
    source: Box<dyn Source>,
}

/// A place in a file that is read from. Names are read one by one: the block around the last one is kept.
struct Reader<'a> {
    source: &'a dyn Source,
    at: u64,
    block: Vec<u8>,
    block_at: u64,
}

impl ReadCacheOps for Reader<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.source.size())
    }

    fn seek(&mut self, at: u64) -> Result<u64, ()> {
        self.at = at;
        Ok(at)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ()> {
        let left = usize::try_from(self.source.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = bytes.len().min(left);
        self.read_exact(&mut bytes[..count])?;
        Ok(count)
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ()> {
        if bytes.len() as u64 > MOST_AT_ONCE {
            return Err(());
        }
        if bytes.len() >= BLOCK / 4 {
            fill(self.source, self.at, bytes).map_err(drop)?;
        } else {
            let behind = |this: &Self| usize::try_from(this.at.checked_sub(this.block_at)?).ok();
            let is_there = |this: &Self, from: usize| from + bytes.len() <= this.block.len();
            let from = match behind(self) {
                Some(from) if is_there(self, from) => from,
                _ => {
                    let left = self.source.size().saturating_sub(self.at);
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
                    self.block.resize(length, 0);
                    self.block_at = self.at;
                    let read = fill(self.source, self.at, &mut self.block);
                    if read.is_err() || length < bytes.len() {
                        self.block.clear();
                        return Err(());
                    }
                    0
                }
            };
            bytes.copy_from_slice(&self.block[from..from + bytes.len()]);
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// A section that is wanted whole.
struct Wanted {
    range: (u64, u64),
    format: object::CompressionFormat,
    size: u64,
}

/// Reads all of a piece of a file.
fn fill(source: &dyn Source, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    match source.read_at(at, bytes)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut off")),
    }
}

fn damaged(error: object::Error) -> SymbolsError {
    SymbolsError::Format(error.to_string())
}

impl ElfFile {
    pub fn new(source: Box<dyn Source>) -> ElfFile {
        ElfFile { source }
    }

    fn with<T>(
        &self,
        read: impl FnOnce(&File<'_, &ReadCache<Reader<'_>>>) -> Result<T, SymbolsError>,
    ) -> Result<T, SymbolsError> {
        let reader = Reader { source: &*self.source, at: 0, block: Vec::new(), block_at: 0 };
        let cache = ReadCache::new(reader);
        read(&File::parse(&cache).map_err(damaged)?)
    }

    /// Its architecture, and what tells it from other builds.
    pub fn heading(&self) -> Result<(Isa, Option<Vec<u8>>), SymbolsError> {
        let linked = [ObjectKind::Executable, ObjectKind::Dynamic];
        self.heading_of(&linked, "it was not linked (a module, or an object file)")
    }

    /// The same of a kernel's module.
    pub fn heading_of_module(&self) -> Result<(Isa, Option<Vec<u8>>), SymbolsError> {
        self.heading_of(&[ObjectKind::Relocatable], "it is no module: it was linked")
    }

    fn heading_of(
        &self,
        kinds: &[ObjectKind],
        otherwise: &str,
    ) -> Result<(Isa, Option<Vec<u8>>), SymbolsError> {
        self.with(|file| {
            let isa = match file.architecture() {
                Architecture::X86_64 | Architecture::I386 => Isa::X86_64,
                Architecture::Aarch64 if file.is_little_endian() => Isa::Aarch64,
                Architecture::Aarch64 => {
                    return Err(SymbolsError::Format("it is for big-endian Aarch64".into()));
                }
                other => return Err(SymbolsError::Format(format!("it is for {other:?}"))),
            };
            if !kinds.contains(&file.kind()) {
                return Err(SymbolsError::Format(otherwise.into()));
            }
            // One whose notes are damaged has none.
            let build_id = file.build_id().unwrap_or_default().map(<[u8]>::to_vec);
            Ok((isa, build_id))
        })
    }

    /// Whether something of it is loaded at an address or behind that, as linked.
    pub fn has_segment_from(&self, address: u64) -> Result<bool, SymbolsError> {
        self.with(|file| Ok(file.segments().any(|segment| segment.address() >= address)))
    }

    /// Its table of symbols.
    pub fn symbols(&self) -> Result<Table, SymbolsError> {
        self.symbols_of(MOST_OF_NAMES)
    }

    /// The same, with names of so many bytes at most.
    fn symbols_of(&self, most_of_names: usize) -> Result<Table, SymbolsError> {
        self.with(|file| {
            let mut sections: HashMap<SectionIndex, (Range<u64>, Role)> = HashMap::new();
            for section in file.sections() {
                let role = match section.name() {
                    Ok(".data..percpu") => Role::PerCpu,
                    _ => Role::Label,
                };
                let range = section.address()..section.address().saturating_add(section.size());
                sections.insert(section.index(), (range, role));
            }
            let mut entries = Vec::new();
            let mut of_names: usize = 0;
            for symbol in file.symbols() {
                let role = match symbol.kind() {
                    SymbolKind::Text => Role::Function,
                    SymbolKind::Data => Role::Variable,
                    SymbolKind::Label | SymbolKind::Unknown => Role::Label,
                    _ => continue,
                };
                let (role, end) = match symbol.section() {
                    SymbolSection::Absolute => (Role::Absolute, u64::MAX),
                    SymbolSection::Section(index) => match sections.get(&index) {
                        Some((range, Role::PerCpu)) => (Role::PerCpu, range.end),
                        Some((range, _)) => (role, range.end),
                        None => continue,
                    },
                    _ => continue,
                };
                let Ok(name) = symbol.name() else { continue };
                // Those that are left out below as well: each is kept while the table is read.
                of_names = of_names.saturating_add(name.len());
                if of_names > most_of_names {
                    let (size, most) = (of_names as u64, most_of_names as u64);
                    return Err(SymbolsError::TooLarge {
                        what: "bytes of names of symbols".into(),
                        size,
                        most,
                    });
                }
                // "$x", "$d" say what bytes are to a disassembler; ".L" are a compiler's own.
                if name.is_empty() || name.starts_with('$') || name.starts_with(".L") {
                    continue;
                }
                if entries.len() == MOST_SYMBOLS {
                    let what = "symbols of the table".to_string();
                    let most = MOST_SYMBOLS as u64;
                    return Err(SymbolsError::TooLarge { what, size: most + 1, most });
                }
                entries.push(Entry {
                    name: plain(name).into(),
                    address: symbol.address(),
                    size: symbol.size(),
                    end,
                    role,
                    is_global: symbol.is_global(),
                });
            }
            if entries.is_empty() { Err(SymbolsError::Stripped) } else { Ok(Table::new(entries)) }
        })
    }

    /// Where a section is, as linked; 0 of one that is not there.
    #[cfg(feature = "linux")]
    pub fn address(&self, name: &str) -> Result<u64, SymbolsError> {
        self.with(|file| Ok(file.section_by_name(name).map_or(0, |section| section.address())))
    }

    /// Whether a section is there and not compressed.
    pub fn is_plain(&self, name: &str) -> Result<bool, SymbolsError> {
        self.with(|file| {
            let Some(section) = file.section_by_name(name) else { return Ok(false) };
            let range = section.compressed_file_range().map_err(damaged)?;
            Ok(range.format == object::CompressionFormat::None && range.uncompressed_size != 0)
        })
    }

    /// A piece of a section that is not compressed, of so many bytes from an offset on.
    pub fn piece(&self, name: &str, offset: u64, size: u64) -> Result<Vec<u8>, SymbolsError> {
        let range = self.with(|file| {
            let range = file.section_by_name(name).map(|section| section.compressed_file_range());
            range.transpose().map_err(damaged)
        })?;
        let within = |range: &object_read::CompressedFileRange| -> Option<u64> {
            let end = offset.checked_add(size)?;
            let at = range.offset.checked_add(offset)?;
            let is_there = end <= range.compressed_size && at.checked_add(size)? <= self.source.size();
            is_there.then_some(at)
        };
        let at = range.as_ref().and_then(within);
        let at = at.ok_or_else(|| SymbolsError::Damaged(format!("{name} is shorter than it says")))?;
        self.bytes(name, at, size)
    }

    /// So many bytes of the file, of a section.
    fn bytes(&self, name: &str, at: u64, size: u64) -> Result<Vec<u8>, SymbolsError> {
        let length = usize::try_from(size).map_err(|error| SymbolsError::Damaged(error.to_string()))?;
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(length);
        room.map_err(|_| SymbolsError::Damaged(format!("there is no memory for {name}")))?;
        bytes.resize(length, 0);
        fill(&*self.source, at, &mut bytes).map_err(|error| SymbolsError::Damaged(error.to_string()))?;
        Ok(bytes)
    }

    /// A section's bytes, unpacked, `most` at most; none of one that is not there, or not in this file.
    pub fn section(&self, name: &str, most: u64) -> Result<Vec<u8>, SymbolsError> {
        let wanted = self.with(|file| {
            let Some(section) = file.section_by_name(name) else { return Ok(None) };
            let range = section.compressed_file_range().map_err(damaged)?;
            Ok(Some(Wanted {
                range: (range.offset, range.compressed_size),
                format: range.format,
                size: range.uncompressed_size,
            }))
        })?;
        let Some(Wanted { range: (offset, packed), format, size }) = wanted else { return Ok(Vec::new()) };
        for size in [packed, size] {
            if size > most {
                return Err(SymbolsError::TooLarge { what: format!("bytes of {name}"), size, most });
            }
        }
        if offset.checked_add(packed).is_none_or(|end| end > self.source.size()) {
            return Err(SymbolsError::Damaged(format!("{name} ends behind the file")));
        }
        let bytes = self.bytes(name, offset, packed)?;
        if format == object::CompressionFormat::None {
            return Ok(bytes);
        }
        let unpacked = CompressedData { format, data: &bytes, uncompressed_size: size }.decompress();
        let unpacked = unpacked.map_err(|error| SymbolsError::Damaged(format!("{name}: {error}")))?;
        Ok(unpacked.into_owned())
    }
}

impl ElfFile {
    /// As [`Self::section`], of a file that was not linked, with the sections where `places` say.
    pub fn relocated(
        &self,
        name: &str,
        most: u64,
        places: &[(String, u64)],
    ) -> Result<Vec<u8>, SymbolsError> {
        let mut bytes = self.section(name, most)?;
        let damaged = |why: &str| SymbolsError::Damaged(format!("{name}: {why}"));
        self.with(|file| {
            let Some(section) = file.section_by_name(name) else { return Ok(()) };
            // What is not loaded is counted from its own beginning.
            let place = |section: object_read::Section<'_, '_, _>| {
                let name = section.name().ok()?;
                places.iter().find(|(place, _)| place == name).map(|(_, address)| (section.index(), *address))
            };
            let bases: HashMap<SectionIndex, u64> = file.sections().filter_map(place).collect();
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return Err(damaged("a relocation is of no symbol"));
                };
                let symbol = file.symbol_by_index(index).map_err(self::damaged)?;
                let base = symbol.section_index().and_then(|index| bases.get(&index)).copied().unwrap_or(0);
                let value = base.wrapping_add(symbol.address()).wrapping_add_signed(relocation.addend());
                let size = match (relocation.kind(), relocation.size()) {
                    (RelocationKind::Absolute, size @ (32 | 64)) => usize::from(size / 8),
                    _ => return Err(damaged("a relocation of a kind that debug information has not")),
                };
                let at = usize::try_from(offset).ok();
                let there = at.and_then(|at| bytes.get_mut(at..at.checked_add(size)?));
                let there = there.ok_or_else(|| damaged("a relocation is outside of it"))?;
                there.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            Ok(())
        })?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::tests::kernel;

    #[test]
    fn more_names_or_bytes_than_are_read_are_refused() {
        let file = ElfFile::new(Box::new(kernel(Architecture::X86_64)));
        assert!(file.symbols_of(1 << 10).is_ok());
        let error = file.symbols_of(10).unwrap_err();
        assert!(error.to_string().contains("names of symbols"), "{error}");
        assert_eq!(file.section(".text", 0x100).unwrap().len(), 0x100);
        assert!(matches!(file.section(".text", 0xff), Err(SymbolsError::TooLarge { size: 0x100, .. })));
    }
}
