//! ELF64 cores: our own, QEMU's, `/proc/vmcore` and what is like it.
//!
//! Source: System V ABI, "Object Files", "Program Header" and "Note Section"; Linux,
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

mod image;

use super::source::{read_all, read_some};
use crate::dump::contents::{Contents, DumpError, INCOMPLETE as IS_INCOMPLETE};
use crate::dump::notes::Notes;
use crate::source::Source;
use arch::Isa;
use arch::bytes::{u8_at, u16_at, u32_at, u64_at};
use arch::register::note;
use image::{ElfImage, Segment, there};
use std::sync::Arc;

/// Sizes of the file's header, of a program header and of a section header, bytes.
pub(in crate::dump) const HEADER: u64 = 64;
pub(in crate::dump) const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;
pub(in crate::dump) const ET_CORE: u16 = 4;
pub(in crate::dump) const PT_LOAD: u32 = 1;
pub(in crate::dump) const PT_NOTE: u32 = 4;
/// `e_phnum` when there are more: `sh_info` of section 0 says how many.
pub(in crate::dump) const PN_XNUM: u16 = 0xffff;

/// What one file may have at most, so that its reader stays small: segments, bytes of notes.
const MOST_SEGMENTS: u64 = 1 << 20;
const MOST_NOTES: u64 = 64 << 20;

/// `e_flags` of a core that makedumpfile had no room for (`DUMP_ELF_INCOMPLETE`).
const INCOMPLETE: u32 = 1;

/// Who leaves out a part of a segment, and how.
const LEFT_OUT: &str =
    "as makedumpfile -E does with what its -d names; an ELF core does not tell whether it was zeros";

/// Says that something makes no sense.
fn malformed<T>(what: impl Into<String>, offset: u64) -> Result<T, DumpError> {
    Err(DumpError::Malformed { what: what.into(), offset })
}

/// What the file's header says.
struct Header {
    isa: Isa,
    /// Where the program headers are, and how many.
    table: u64,
    count: u64,
    /// makedumpfile had no room for all of it.
    is_incomplete: bool,
}

impl Header {
    fn read(source: &dyn Source) -> Result<Header, DumpError> {
        let header = read_all(source, 0, HEADER, "the ELF header")?;
        let half = |at| u16_at(&header, at).unwrap_or(0);
        let long = |at| u64_at(&header, at).unwrap_or(0);
        match (u8_at(&header, 4), u8_at(&header, 5)) {
            (Some(2), Some(1)) => {}
            (Some(1), _) => {
                return malformed("an ELF file for 32 bits; cores of 64-bit targets are read", 4);
            }
            (_, Some(2)) => {
                return malformed("a big-endian ELF file; both targets are little-endian", 5);
            }
            _ => return malformed("an ELF file of no known class", 4),
        }
        if half(16) != ET_CORE {
            return malformed(format!("an ELF file, but no core: its type is {}", half(16)), 16);
        }
        let Some(isa) = note::isa_of_machine(half(18)) else {
            let what = format!("a core of machine {}; x86_64 (62) and aarch64 (183) are read", half(18));
            return malformed(what, 18);
        };
        if u64::from(half(54)) != PROGRAM_HEADER {
            let what = format!("program headers of {} bytes instead of {PROGRAM_HEADER}", half(54));
            return malformed(what, 54);
        }
        let count = match half(56) {
            PN_XNUM => {
                let what = "the section header with the segments' number";
                let section = read_all(source, long(40), SECTION_HEADER, what)?;
                u64::from(u32_at(&section, 44).unwrap_or(0))
            }
            count => count.into(),
        };
        if count > MOST_SEGMENTS {
            return malformed(format!("{count} segments, more than {MOST_SEGMENTS}"), 56);
        }
        let is_incomplete = u32_at(&header, 48).unwrap_or(0) & INCOMPLETE != 0;
        Ok(Header { isa, table: long(32), count, is_incomplete })
    }
}

/// What the program headers name.
struct Parts {
    segments: Vec<Segment>,
    notes: Notes,
    remarks: Vec<String>,
    /// Bytes of all notes together: each may say that the same bytes are its.
    all_notes: u64,
}

impl Parts {
    fn read(source: &dyn Source, header: &Header) -> Result<Parts, DumpError> {
        let size = header.count * PROGRAM_HEADER;
        let table = read_all(source, header.table, size, "the program headers")?;
        let (segments, notes, remarks) = (Vec::new(), Notes::new(header.isa), Vec::new());
        let mut parts = Parts { segments, notes, remarks, all_notes: 0 };
        let whole = usize::try_from(PROGRAM_HEADER).unwrap_or(usize::MAX);
        for (index, entry) in (0u64..).zip(table.chunks_exact(whole)) {
            let place = header.table + index * PROGRAM_HEADER;
            let word = |at| u64_at(entry, at).unwrap_or(0);
            let (offset, start, in_file, size) = (word(8), word(24), word(32), word(40));
            match u32_at(entry, 0) {
                // Memory that has no physical address, as /proc/kcore has some.
                Some(PT_LOAD) if start == u64::MAX => {}
                Some(PT_LOAD) => {
                    parts.memory(Segment { start, size: size.max(in_file), offset, in_file }, place)?;
                }
                Some(PT_NOTE) => parts.notes(source, (offset, in_file), place)?,
                _ => {}
            }
        }
        Ok(parts)
    }

    fn memory(&mut self, segment: Segment, place: u64) -> Result<(), DumpError> {
        let Segment { start, size, offset, in_file } = segment;
        if start.checked_add(size).is_none() || offset.checked_add(in_file).is_none() {
            let what =
                format!("a segment of {size:#x} bytes from {start:#x}, which is past the end of all memory");
            return malformed(what, place);
        }
        if size > 0 {
            self.segments.push(segment);
        }
        Ok(())
    }

    fn notes(
        &mut self,
        source: &dyn Source,
        (offset, size): (u64, u64),
        place: u64,
    ) -> Result<(), DumpError> {
        self.all_notes = size.saturating_add(self.all_notes);
        if self.all_notes > MOST_NOTES {
            let what = format!("{} bytes of notes, more than {MOST_NOTES}", self.all_notes);
            return malformed(what, place);
        }
        let length = source.size().saturating_sub(offset).min(size);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = read_some(source, offset, &mut bytes, "the notes")?;
        bytes.truncate(read);
        if (read as u64) < size || !self.notes.take(&bytes) {
            self.remarks.push(format!("the notes at offset {offset:#x} are cut off or damaged"));
        }
        Ok(())
    }
}

/// Reads an ELF core.
///
/// # Errors
/// [`DumpError`].
pub fn read(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    let header = Header::read(&*source)?;
    let Parts { segments, notes, mut remarks, .. } = Parts::read(&*source, &header)?;
    if segments.is_empty() {
        return malformed("a core without memory", header.table);
    }
    let image = ElfImage::new(Arc::clone(&source), segments, header.is_incomplete);
    let sum = |part: &dyn Fn(&Segment) -> u64| image.segments.iter().map(part).fold(0, u64::saturating_add);
    // One that says that it has the same bytes at many places makes us read them at each.
    let in_file = sum(&|segment| segment.in_file);
    let cut_off = sum(&|segment| segment.in_file - there(&*source, segment));
    if in_file - cut_off > source.size() {
        let what = "a core whose segments have the same bytes of the file at several physical addresses";
        return malformed(what, header.table);
    }
    if header.is_incomplete {
        remarks.push(IS_INCOMPLETE.into());
    }
    if cut_off > 0 {
        remarks.push(format!("the file is cut off: {cut_off:#x} bytes of memory are missing"));
    }
    let left_out = sum(&|segment| segment.size - segment.in_file);
    if left_out > 0 {
        remarks.push(format!("{left_out:#x} bytes of memory were left out, {LEFT_OUT}"));
    }
    let (format, isa) = (notes.format(), header.isa);
    let (cpus, info) = notes.finish(&mut remarks);
    Ok(Contents { format, isa, image: Box::new(image), cpus, info, remarks })
}
