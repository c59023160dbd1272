//! The symbols of a module, as the kernel keeps them for its traces.
//!
//! Sources: Linux, `include/linux/module.h` (`struct mod_kallsyms`); System V gABI, chapter 4, "Symbol Table".

use crate::reader::{NotThere, Reader};
use crate::symbols::{Builder, Kind, Symbol, Symbols};
use crate::types::{Field, TypeId, Types};
use arch::bytes::{u16_at, u32_at, u64_at};

/// Symbols that are read at most of one module: the largest of a distribution has some ten thousand.
const MOST: u64 = 1 << 17;
/// Bytes of a name, at most, and of all of a module's.
const LONGEST: usize = 512;
const MOST_OF_NAMES: usize = 8 << 20;
/// Bytes of an `Elf64_Sym`, and where it has what.
const BYTES: usize = 24;
const INFO: usize = 4;
const SECTION: usize = 6;
const VALUE: usize = 8;
const SIZE: usize = 16;

/// Where a module has its symbols.
#[derive(Debug)]
pub(super) struct Layout {
    /// Of `struct module`: where the rest is.
    table: Field,
    symbols: Field,
    count: Field,
    names: Field,
}

impl Layout {
    pub fn new(types: &Types, module: TypeId) -> Option<Layout> {
        let of = types.tagged("mod_kallsyms")?;
        Some(Layout {
            table: types.field(module, "kallsyms")?,
            symbols: types.field(of, "symtab")?,
            count: types.field(of, "num_symtab")?,
            names: types.field(of, "strtab")?,
        })
    }

    /// How many there are that are looked at.
    pub fn count(&self, module: u64, reader: &Reader<'_>) -> Result<u64, NotThere> {
        let table = reader.field(module, self.table)?;
        Ok(reader.field(table, self.count)?.min(MOST))
    }

    /// All of the table's bytes, and where names are.
    fn table(&self, module: u64, reader: &Reader<'_>) -> Result<(Vec<u8>, u64), NotThere> {
        let table = reader.field(module, self.table)?;
        let (at, names) = (reader.field(table, self.symbols)?, reader.field(table, self.names)?);
        let count = reader.field(table, self.count)?.min(MOST);
        let mut all = vec![0; usize::try_from(count).unwrap_or(0) * BYTES];
        reader.bytes(at, &mut all)?;
        Ok((all, names))
    }

    /// How many bytes what begins at an address has: of several the most.
    pub fn size_at(&self, module: u64, address: u64, reader: &Reader<'_>) -> Result<Option<u64>, NotThere> {
        let (all, _) = self.table(module, reader)?;
        let begins = |symbol: &&[u8]| u64_at(symbol, VALUE) == Some(address) && is_placed(symbol);
        Ok(all.chunks_exact(BYTES).filter(begins).filter_map(|symbol| u64_at(symbol, SIZE)).max())
    }

    /// All that have an address.
    pub fn read(&self, module: u64, reader: &Reader<'_>) -> Result<Symbols, NotThere> {
        let (all, names) = self.table(module, reader)?;
        let mut builder = Builder::default();
        let (mut name, mut bytes) = (vec![0; LONGEST], 0);
        for symbol in all.chunks_exact(BYTES) {
            let name_at = u32_at(symbol, 0).unwrap_or(0);
            let (address, kind) = (u64_at(symbol, VALUE).unwrap_or(0), symbol[INFO] & 0xf);
            if !is_placed(symbol) {
                continue;
            }
            let good = reader.some(names.wrapping_add(name_at.into()), &mut name);
            let Some(end) = name[..good].iter().position(|byte| *byte == 0) else { continue };
            let is_plain = end > 0 && name[0] != b'$' && name[..end].iter().all(u8::is_ascii_graphic);
            if let Some(name) = str::from_utf8(&name[..end]).ok().filter(|_| is_plain) {
                let (kind, is_global) =
                    (if kind == 1 { Kind::Data } else { Kind::Text }, symbol[INFO] >> 4 != 0);
                builder.add(Symbol { name, address, kind, is_global });
                bytes += name.len();
                if bytes > MOST_OF_NAMES {
                    break;
                }
            }
        }
        Ok(builder.finish())
    }
}

/// Whether a symbol is one of the module's own code or data: others are of other modules (SHN_UNDEF), of sections and
/// files.
fn is_placed(symbol: &[u8]) -> bool {
    let kind = symbol.get(INFO).map_or(0xf, |info| info & 0xf);
    u16_at(symbol, SECTION).unwrap_or(0) != 0 && u64_at(symbol, VALUE).unwrap_or(0) != 0 && kind <= 2
}
