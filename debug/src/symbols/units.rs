//! Source lines of a kernel, of which no more is read than the units that are asked for: where each unit's code is stands
//! in a table (`.debug_aranges`), and all debug information of a distribution's kernel has 200 MiB.
//!
//! A file without that table, or one in which an address is not (not every compiler writes it), is read whole.
//!
//! Source: DWARF 5, sections 6.1.2 ("Lookup by Address") and 7.5.1.1 ("Full and Partial Compilation Unit Headers").

use super::file::ElfFile;
use super::lines::{Lines, Sections};
use super::symbol::SymbolsError;
use gimli::{DebugAranges, SectionId};
use std::collections::HashMap;

/// Units that are kept at most: a page on a kernel that hangs has some tens of functions.
const MOST_KEPT: usize = 128;
/// Bytes of a unit that is read by itself: the largest of a distribution's kernel has 2 MiB.
const MOST_OF_UNIT: u64 = 64 << 20;
/// Ranges of units that are kept: a kernel has some ten thousand.
const MOST_RANGES: usize = 1 << 20;

/// A kernel's source lines.
#[derive(Debug, Default)]
pub(super) struct Units {
    /// What all units share, and where each is; once somebody has asked.
    table: Option<Option<Table>>,
    /// By where they are in `.debug_info`.
    units: HashMap<u64, Lines>,
    whole: Option<Result<Lines, SymbolsError>>,
    /// All of it is not read.
    pub only_units: bool,
}

/// Where units are.
#[derive(Debug)]
struct Table {
    sections: Sections,
    /// Code of a unit, in the order of addresses, and where that is in `.debug_info`.
    ranges: Vec<(u64, u64, u64)>,
}

impl Table {
    /// Of a file that has one, and whose debug information can be read in pieces.
    fn of(file: &ElfFile) -> Result<Option<Table>, SymbolsError> {
        const IN_TABLE: [SectionId; 2] = [SectionId::DebugAranges, SectionId::DebugInfo];
        if !file.is_plain(SectionId::DebugInfo.name())? {
            return Ok(None);
        }
        let aranges = Sections::read(&[SectionId::DebugAranges], &|name, most| file.section(name, most))?;
        let mut ranges = Vec::new();
        let mut headers = DebugAranges::from(aranges.section(SectionId::DebugAranges)).headers();
        while let Some(header) = headers.next().map_err(super::lines::damaged)? {
            let unit = header.debug_info_offset().0 as u64;
            let mut entries = header.entries();
            while let Some(entry) = entries.next().map_err(super::lines::damaged)? {
                let range = entry.range();
                if range.begin < range.end && ranges.len() < MOST_RANGES {
                    ranges.push((range.begin, range.end, unit));
                }
            }
        }
        if ranges.is_empty() {
            return Ok(None);
        }
        ranges.sort_unstable();
        let others: Vec<SectionId> =
            super::lines::WANTED.into_iter().filter(|id| !IN_TABLE.contains(id)).collect();
        let sections = Sections::read(&others, &|name, most| file.section(name, most))?;
        Ok(Some(Table { sections, ranges }))
    }

    /// The unit that an address is in.
    fn unit(&self, address: u64) -> Option<u64> {
        let behind = self.ranges.partition_point(|(begin, ..)| *begin <= address);
        let (begin, end, unit) = *self.ranges.get(behind.checked_sub(1)?)?;
        (begin..end).contains(&address).then_some(unit)
    }

    /// What a unit has.
    fn read(&self, file: &ElfFile, unit: u64) -> Result<Lines, SymbolsError> {
        /// A length of 64 bits comes behind this, instead of one of 32.
        const LONG: u64 = 0xffff_ffff;
        let name = SectionId::DebugInfo.name();
        let damaged = || SymbolsError::Damaged("a unit is not where it should be".into());
        let head = file.piece(name, unit, 12)?;
        let word = |at: usize, size: usize| -> Option<u64> {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(head.get(at..at + size)?);
            Some(u64::from_le_bytes(bytes))
        };
        let size = match word(0, 4).ok_or_else(damaged)? {
            LONG => word(4, 8).ok_or_else(damaged)?.checked_add(12),
            length => Some(length + 4),
        };
        let size = size.filter(|size| *size <= MOST_OF_UNIT).ok_or_else(damaged)?;
        self.sections.lines_of(file.piece(name, unit, size)?)
    }
}

impl Units {
    /// The lines of whatever an address, as linked, is in; `None` where that is in no unit, and all is not read.
    pub fn of(&mut self, file: &ElfFile, address: u64) -> Result<Option<&Lines>, SymbolsError> {
        let table = self.table.get_or_insert_with(|| {
            // What is damaged there is told of where all is read.
            Table::of(file).unwrap_or_default()
        });
        if let Some((table, unit)) = table.as_ref().and_then(|table| Some((table, table.unit(address)?))) {
            if !self.units.contains_key(&unit) {
                if self.units.len() == MOST_KEPT {
                    self.units.clear();
                }
                self.units.insert(unit, table.read(file, unit)?);
            }
            if let Some(lines) = self.units.get(&unit) {
                return Ok(Some(lines));
            }
        }
        if self.only_units {
            return Ok(None);
        }
        let read = || Lines::of(&|name, most| file.section(name, most));
        self.whole.get_or_insert_with(read).as_ref().map(Some).map_err(SymbolsError::clone)
    }
}
