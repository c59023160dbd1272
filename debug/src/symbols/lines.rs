//! Source lines, by a file's debug information.

use super::metered::{Bytes, Work};
use super::symbol::{Frame, SymbolsError};
use arch::plain::plain;
use gimli::{Dwarf, Reader, SectionId};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// Bytes of debug information that are read, unpacked: a kernel's with everything switched on has less.
const MOST_BYTES: u64 = 4 << 30;
/// Functions inlined into each other that are told.
const MOST_FRAMES: usize = 256;
/// Pieces of one line that are joined.
const MOST_PIECES: usize = 1024;
/// Entries of debug information that are within each other: functions that were inlined into each other are read by
/// recursion, and a kernel's are some tens deep.
const MOST_NESTED: isize = 256;

/// Work that reading a file's debug information takes at most: a distribution's kernel has 63 million, one with
/// everything switched on some hundreds...
const MOST_WORK_AT_FIRST: u64 = 1 << 30;
/// ...and one question, for which a unit's functions and lines are read: of the same kernels, some millions.
const MOST_WORK: u64 = 1 << 26;

/// What is read for lines: neither where variables are kept, nor types.
pub(super) const WANTED: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// What a read of a section costs: the bytes that what it says may take in memory.
fn price(id: SectionId) -> u64 {
    match id {
        // A row of a line for a byte.
        SectionId::DebugLine => 24,
        // A range for two words.
        SectionId::DebugAranges | SectionId::DebugRanges | SectionId::DebugRngLists => 16,
        _ => 1,
    }
}

/// Reads a section by its name, of so many bytes at most.
pub(super) type SectionReader<'a> = dyn Fn(&str, u64) -> Result<Vec<u8>, SymbolsError> + 'a;

/// Sections with debug information.
pub(super) struct Sections {
    work: Work,
    all: HashMap<SectionId, Bytes>,
}

impl fmt::Debug for Sections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sections").finish_non_exhaustive()
    }
}

impl Sections {
    /// Reads some.
    pub fn read(wanted: &[SectionId], section: &SectionReader<'_>) -> Result<Sections, SymbolsError> {
        let (mut most, work, mut all) = (MOST_BYTES, Work::default(), HashMap::new());
        work.allow(MOST_WORK_AT_FIRST);
        for id in wanted {
            let bytes = section(id.name(), most)?;
            most -= bytes.len() as u64;
            all.insert(*id, Bytes::new(bytes, &work, price(*id)));
        }
        Ok(Sections { work, all })
    }

    /// One of them; nothing of one that was not wanted.
    pub fn section(&self, id: SectionId) -> Bytes {
        self.all.get(&id).cloned().unwrap_or_else(|| Bytes::new(Vec::new(), &self.work, 1))
    }

    /// What one unit says, of which this is `.debug_info`, and these are the other sections.
    pub fn lines_of(&self, unit: Vec<u8>) -> Result<Lines, SymbolsError> {
        self.work.allow(MOST_WORK);
        let unit = Bytes::new(unit, &self.work, price(SectionId::DebugInfo));
        Lines::new(&self.work, |id| if id == SectionId::DebugInfo { unit.clone() } else { self.section(id) })
    }
}

/// A file's source lines, or a unit's.
pub(super) struct Lines {
    work: Work,
    context: addr2line::Context<Bytes>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

pub(super) fn damaged(error: gimli::Error) -> SymbolsError {
    match error {
        // Nothing else reads.
        gimli::Error::Io => SymbolsError::TooMuchWork,
        error => SymbolsError::Damaged(error.to_string()),
    }
}

/// None for what is damaged. That there was too much work is no damage: there may be less next time.
fn readable<T>(read: gimli::Result<T>) -> Result<Option<T>, SymbolsError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(gimli::Error::Io) => Err(SymbolsError::TooMuchWork),
        Err(_) => Ok(None),
    }
}

/// Refuses what would be read by more recursion than there is stack.
fn check_depth(dwarf: &Dwarf<Bytes>) -> Result<(), SymbolsError> {
    let mut units = dwarf.units();
    while let Some(header) = units.next().map_err(damaged)? {
        // What is damaged is not read any further when it is looked into, either.
        let Some(unit) = readable(dwarf.unit(header))? else { continue };
        let Some(mut entries) = readable(unit.entries_raw(None))? else { continue };
        while !entries.is_empty() {
            if entries.next_depth() > MOST_NESTED {
                let why = format!("more than {MOST_NESTED} entries are within each other");
                return Err(SymbolsError::Damaged(why));
            }
            let next = match entries.read_abbreviation() {
                Ok(Some(abbreviation)) => entries.skip_attributes(abbreviation.attributes()),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if readable(next)?.is_none() {
                break;
            }
        }
    }
    Ok(())
}

impl Lines {
    /// Reads a file's debug information, of which `section` has each section.
    pub fn of(section: &SectionReader<'_>) -> Result<Lines, SymbolsError> {
        let sections = Sections::read(&WANTED, section)?;
        if sections.section(SectionId::DebugInfo).is_empty() {
            return Err(SymbolsError::NoLines);
        }
        Lines::new(&sections.work, |id| sections.section(id))
    }

    fn new(work: &Work, section: impl Fn(SectionId) -> Bytes) -> Result<Lines, SymbolsError> {
        let dwarf = Dwarf::load(|id| Ok::<_, SymbolsError>(section(id)))?;
        check_depth(&dwarf)?;
        let context = addr2line::Context::from_dwarf(dwarf).map_err(damaged)?;
        Ok(Lines { context, work: work.clone() })
    }

    /// The line of an instruction, as linked, and those that its function was inlined at.
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>, SymbolsError> {
        // What is looked up is a byte, which ends in front of the next.
        if address == u64::MAX {
            return Ok(Vec::new());
        }
        self.work.allow(MOST_WORK);
        let mut found = self.context.find_frames(address).skip_all_loads().map_err(damaged)?;
        let mut frames = Vec::new();
        while let Some(frame) = found.next().map_err(damaged)?
            && frames.len() < MOST_FRAMES
        {
            let function = match &frame.function {
                Some(name) => Some(plain(&name.demangle().map_err(damaged)?)),
                None => None,
            };
            let at = frame.location;
            frames.push(Frame {
                function,
                file: at.as_ref().and_then(|at| at.file).map(plain),
                line: at.as_ref().and_then(|at| at.line),
                column: at.as_ref().and_then(|at| at.column).filter(|column| *column > 0),
            });
        }
        Ok(frames)
    }

    /// The instructions of the line that one is of, as linked.
    pub fn range(&self, address: u64) -> Result<Option<Range<u64>>, SymbolsError> {
        if address == u64::MAX {
            return Ok(None);
        }
        self.work.allow(MOST_WORK);
        let pieces = self.context.find_location_range(address, u64::MAX).map_err(damaged)?;
        let mut pieces =
            pieces.map(|(begin, size, at)| (begin..begin.saturating_add(size), (at.file, at.line)));
        let Some((mut range, line)) = pieces.next().filter(|(range, _)| range.contains(&address)) else {
            return Ok(None);
        };
        for (piece, its_line) in pieces.take(MOST_PIECES) {
            if piece.start != range.end || its_line != line {
                break;
            }
            range.end = piece.end;
        }
        Ok(Some(range))
    }
}
