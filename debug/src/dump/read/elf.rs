//! ELF64 cores: our own, QEMU's, `/proc/vmcore` and what is like it.
//!
//! Source: System V ABI, "Object Files", "Program Header" and "Note Section"; Linux,
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use super::source::{Source, read_all, read_some};
use crate::disassemble::Mode;
use crate::dump::contents::{Contents, Cpu, DumpError, Image, joined};
use crate::linux::VmCoreInfo;
use crate::ram::Absence;
use crate::target::VcpuState;
use arch::Isa;
use arch::address::PhysRange;
use arch::bytes::{u8_at, u16_at, u32_at, u64_at};
use arch::core_note::{self, Note};
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

/// What one file may have at most, so that its reader stays small: segments, bytes of notes, vCPUs.
const MOST_SEGMENTS: u64 = 1 << 20;
const MOST_NOTES: u64 = 64 << 20;
const MOST_CPUS: usize = 4096;
/// Pieces of memory that are told apart from holes.
const MOST_RANGES: usize = 1 << 20;
/// Who leaves out a part of a segment, and how.
const LEFT_OUT: &str =
    "as makedumpfile -E does with what its -d names; an ELF core does not tell whether it was zeros";

/// `e_flags` of a core that makedumpfile had no room for (`DUMP_ELF_INCOMPLETE`).
const INCOMPLETE: u32 = 1;

/// A piece of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Guest-physical address.
    start: u64,
    /// Bytes; those behind `in_file` were left out.
    size: u64,
    offset: u64,
    /// Bytes of it that the file says it has.
    in_file: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.size
    }

    /// What is left from `start` on.
    fn from(&self, start: u64) -> Segment {
        let cut = start - self.start;
        Segment {
            start,
            size: self.size - cut,
            offset: self.offset + cut.min(self.in_file),
            in_file: self.in_file.saturating_sub(cut),
        }
    }
}

/// The memory of a core.
#[derive(Debug)]
struct ElfImage {
    source: Arc<dyn Source>,
    /// Sorted, without overlaps.
    segments: Vec<Segment>,
    is_incomplete: bool,
}

impl ElfImage {
    fn new(source: Arc<dyn Source>, mut segments: Vec<Segment>, is_incomplete: bool) -> ElfImage {
        segments.sort_by_key(|segment| (segment.start, u64::MAX - segment.in_file));
        let mut result: Vec<Segment> = Vec::with_capacity(segments.len());
        for segment in segments {
            // What several segments have is the same memory by several virtual addresses.
            let free = result.last().map_or(0, Segment::end);
            if segment.end() > free {
                result.push(segment.from(segment.start.max(free)));
            }
        }
        ElfImage { source, segments: result, is_incomplete }
    }

    fn segment(&self, at: u64) -> Option<&Segment> {
        let index = self.segments.partition_point(|segment| segment.start <= at);
        self.segments.get(index.checked_sub(1)?).filter(|segment| at < segment.end())
    }
}

impl Image for ElfImage {
    fn ranges(&self) -> Vec<PhysRange> {
        joined(self.segments.iter().map(|segment| PhysRange::new(segment.start, segment.size)).collect())
    }

    fn populated(&self) -> Vec<PhysRange> {
        let mut ranges = Vec::new();
        for segment in &self.segments {
            let there = there(&*self.source, segment);
            // Each question about holes may have many answers; all of them together no more than one.
            let pieces = match ranges.len() < MOST_RANGES {
                true => self.source.pieces(segment.offset, there),
                false => vec![(segment.offset, segment.offset + there)],
            };
            ranges.extend(
                pieces.into_iter().map(|(first, end)| {
                    PhysRange::new(segment.start + (first - segment.offset), end - first)
                }),
            );
        }
        joined(ranges)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(segment) = self.segment(at) else { break };
            let rest = segment.from(at);
            let piece = &mut bytes[done..];
            let wanted = usize::try_from(rest.in_file).map_or(piece.len(), |size| size.min(piece.len()));
            let read = self.source.read_at(rest.offset, &mut piece[..wanted]).unwrap_or(0);
            done += read;
            if read == 0 || read < wanted {
                break;
            }
        }
        done
    }

    fn absence(&self, address: u64) -> Option<Absence> {
        let rest = self.segment(address)?.from(address);
        match rest.in_file {
            0 => Some(Absence::LeftOut(LEFT_OUT.into())),
            _ if rest.offset < self.source.size() => {
                let is_there = self.source.read_at(rest.offset, &mut [0]).is_ok_and(|read| read == 1);
                (!is_there).then_some(Absence::Damaged)
            }
            _ if self.is_incomplete => Some(Absence::NotWritten),
            _ => Some(Absence::CutOff),
        }
    }
}

/// How many bytes of a segment the file has.
fn there(source: &dyn Source, segment: &Segment) -> u64 {
    source.size().saturating_sub(segment.offset).min(segment.in_file)
}

/// Reads an ELF core.
///
/// # Errors
/// [`DumpError`].
pub fn read(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    let malformed = |what: String, offset| DumpError::Malformed { what, offset };
    let header = read_all(&*source, 0, HEADER, "the ELF header")?;
    let half = |at| u16_at(&header, at).unwrap_or(0);
    let long = |at| u64_at(&header, at).unwrap_or(0);
    match (u8_at(&header, 4), u8_at(&header, 5)) {
        (Some(2), Some(1)) => {}
        (Some(1), _) => {
            return Err(malformed("an ELF file for 32 bits; cores of 64-bit targets are read".into(), 4));
        }
        (_, Some(2)) => {
            return Err(malformed("a big-endian ELF file; both targets are little-endian".into(), 5));
        }
        _ => return Err(malformed("an ELF file of no known class".into(), 4)),
    }
    if half(16) != ET_CORE {
        return Err(malformed(format!("an ELF file, but no core: its type is {}", half(16)), 16));
    }
    let machine = half(18);
    let isa = core_note::isa_of_machine(machine).ok_or_else(|| {
        malformed(format!("a core of machine {machine}; x86_64 (62) and aarch64 (183) are read"), 18)
    })?;
    if u64::from(half(54)) != PROGRAM_HEADER {
        return Err(malformed(
            format!("program headers of {} bytes instead of {PROGRAM_HEADER}", half(54)),
            54,
        ));
    }
    let count = match half(56) {
        PN_XNUM => {
            let section =
                read_all(&*source, long(40), SECTION_HEADER, "the section header with the segments' number")?;
            u64::from(u32_at(&section, 44).unwrap_or(0))
        }
        count => count.into(),
    };
    if count > MOST_SEGMENTS {
        return Err(malformed(format!("{count} segments, more than {MOST_SEGMENTS}"), 56));
    }
    let table_at = long(32);
    let table = read_all(&*source, table_at, count * PROGRAM_HEADER, "the program headers")?;
    let mut remarks = Vec::new();
    let (mut segments, mut notes, mut all_notes) = (Vec::new(), Notes::new(isa), 0u64);
    for (index, entry) in (0u64..).zip(table.chunks_exact(56)) {
        let place = table_at + index * PROGRAM_HEADER;
        let word = |at| u64_at(entry, at).unwrap_or(0);
        let (offset, start, in_file, size) = (word(8), word(24), word(32), word(40));
        match u32_at(entry, 0) {
            // Memory that has no physical address, as /proc/kcore has some.
            Some(PT_LOAD) if start == u64::MAX => {}
            Some(PT_LOAD) => {
                let size = size.max(in_file);
                if start.checked_add(size).is_none() || offset.checked_add(in_file).is_none() {
                    return Err(malformed(
                        format!(
                            "a segment of {size:#x} bytes from {start:#x}, which is past the end of all memory"
                        ),
                        place,
                    ));
                }
                if size > 0 {
                    segments.push(Segment { start, size, offset, in_file });
                }
            }
            Some(PT_NOTE) => {
                // All of them together: each may say that the same bytes are its.
                all_notes = in_file.saturating_add(all_notes);
                if all_notes > MOST_NOTES {
                    return Err(malformed(
                        format!("{all_notes} bytes of notes, more than {MOST_NOTES}"),
                        place,
                    ));
                }
                let length = source.size().saturating_sub(offset).min(in_file);
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                let read = read_some(&*source, offset, &mut bytes, "the notes")?;
                bytes.truncate(read);
                if (read as u64) < in_file || !notes.take(&bytes) {
                    remarks.push(format!("the notes at offset {offset:#x} are cut off or damaged"));
                }
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(malformed("a core without memory".into(), table_at));
    }
    let is_incomplete = u32_at(&header, 48).unwrap_or(0) & INCOMPLETE != 0;
    let image = ElfImage::new(Arc::clone(&source), segments, is_incomplete);
    let sum = |part: &dyn Fn(&Segment) -> u64| image.segments.iter().map(part).fold(0, u64::saturating_add);
    // One that says that it has the same bytes at many places makes us read them at each.
    let in_file = sum(&|segment| segment.in_file);
    let cut_off = sum(&|segment| segment.in_file - there(&*source, segment));
    if in_file - cut_off > source.size() {
        let what = "a core whose segments have the same bytes of the file at several physical addresses";
        return Err(malformed(what.into(), table_at));
    }
    if is_incomplete {
        remarks.push(crate::dump::contents::INCOMPLETE.into());
    }
    if cut_off > 0 {
        remarks.push(format!("the file is cut off: {cut_off:#x} bytes of memory are missing"));
    }
    let left_out = sum(&|segment| segment.size - segment.in_file);
    if left_out > 0 {
        remarks.push(format!("{left_out:#x} bytes of memory were left out, {LEFT_OUT}"));
    }
    let format = notes.format();
    let (cpus, info) = notes.finish(&mut remarks);
    Ok(Contents { format, isa, image: Box::new(image), cpus, info, remarks })
}

/// What our own note has beside registers: what the vCPU was doing, a byte.
pub(in crate::dump) const STATE: &[u8] = b"state";
/// And, a byte that is not 0, that the registers are [earlier](Cpu::is_earlier) ones.
pub(in crate::dump) const EARLIER: &[u8] = b"earlier";

fn state_of(number: u8) -> VcpuState {
    match number {
        1 => VcpuState::Running,
        2 => VcpuState::Halted,
        3 => VcpuState::NotStarted,
        _ => VcpuState::Unknown,
    }
}

/// The number of a state in our own note.
pub(in crate::dump) fn number_of(state: VcpuState) -> u8 {
    match state {
        VcpuState::Unknown => 0,
        VcpuState::Running => 1,
        VcpuState::Halted => 2,
        VcpuState::NotStarted => 3,
    }
}

/// The architecture whose general registers the first note has, by their size.
pub(super) fn isa_of_notes(bytes: &[u8]) -> Option<Isa> {
    let (name_size, size, number) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    let name = bytes.get(12..12usize.checked_add(usize::try_from(name_size).ok()?)?)?;
    let note = Note::of(name.strip_suffix(&[0]).unwrap_or(name), number)?;
    Isa::ALL.into_iter().find(|isa| note.size(*isa) == usize::try_from(size).ok())
}

/// Numbers in words, not too many.
pub(in crate::dump) fn numbers(all: &[usize]) -> String {
    const MOST: usize = 8;
    let mut words: Vec<String> = all.iter().take(MOST).map(usize::to_string).collect();
    if all.len() > MOST {
        words.push("...".into());
    }
    words.join(", ")
}

/// What notes tell.
#[derive(Debug)]
pub(super) struct Notes {
    isa: Isa,
    cpus: Vec<Cpu>,
    /// How many of QEMU's and of our own notes there were: each is the next vCPU's.
    qemu: usize,
    own: usize,
    info: Option<VmCoreInfo>,
    too_many: bool,
}

impl Notes {
    pub fn new(isa: Isa) -> Notes {
        Notes { isa, cpus: Vec::new(), qemu: 0, own: 0, info: None, too_many: false }
    }

    fn cpu(&mut self, index: usize) -> Option<&mut Cpu> {
        if index >= MOST_CPUS {
            self.too_many = true;
            return None;
        }
        while self.cpus.len() <= index {
            self.cpus.push(Cpu::unknown(self.isa));
        }
        self.cpus.get_mut(index)
    }

    /// Takes a segment's notes; `false` if they are cut off or damaged.
    pub fn take(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            // Some writers leave room behind the last note.
            let begin = &bytes[..bytes.len().min(12)];
            if begin.iter().all(|byte| *byte == 0) {
                return true;
            }
            let (Some(name_size), Some(size), Some(number)) =
                (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8))
            else {
                return false;
            };
            let piece = |start: usize, size: u32| {
                let end = start.checked_add(usize::try_from(size).ok()?)?;
                Some((bytes.get(start..end)?, end.checked_next_multiple_of(4)?))
            };
            let Some((name, at)) = piece(12, name_size) else { return false };
            let Some((value, next)) = piece(at, size) else { return false };
            self.note(name.strip_suffix(&[0]).unwrap_or(name), number, value);
            bytes = bytes.get(next..).unwrap_or(&[]);
        }
    }

    fn note(&mut self, name: &[u8], number: u32, value: &[u8]) {
        if name == b"VMCOREINFO" {
            self.info = VmCoreInfo::parse(value);
        } else if name == core_note::ALL_NAME.as_bytes() && number == core_note::ALL_NUMBER {
            self.own += 1;
            if let Some(cpu) = self.cpu(self.own - 1) {
                core_note::parse_all(value, &mut cpu.registers, |name, value| match (name, value) {
                    (STATE, [state]) => cpu.state = state_of(*state),
                    (EARLIER, [earlier]) => cpu.is_earlier = *earlier != 0,
                    _ => {}
                });
            }
        } else if let Some(note) = Note::of(name, number) {
            let index = match note {
                Note::Status => self.cpus.len(),
                Note::Float | Note::PointerMasks => self.cpus.len().saturating_sub(1),
                Note::Qemu => {
                    self.qemu += 1;
                    self.qemu - 1
                }
            };
            let Some(cpu) = self.cpu(index) else { return };
            note.parse(value, &mut cpu.registers);
            if note == Note::Qemu {
                cpu.mode = match core_note::code_width(value) {
                    Some(32) => Mode::Protected32,
                    Some(16) => Mode::Real16,
                    _ => Mode::Bits64,
                };
            }
        }
    }

    fn format(&self) -> String {
        match (self.own, self.qemu) {
            (0, 0) => "ELF core",
            (0, _) => "ELF core of QEMU",
            _ => "ELF core of vmm",
        }
        .into()
    }

    pub fn finish(self, remarks: &mut Vec<String>) -> (Vec<Cpu>, Option<VmCoreInfo>) {
        if self.too_many {
            remarks.push(format!("there are notes of more than {MOST_CPUS} vCPUs; the rest is left out"));
        }
        let earlier: Vec<usize> = (0..self.cpus.len()).filter(|vcpu| self.cpus[*vcpu].is_earlier).collect();
        if !earlier.is_empty() {
            remarks.push(format!(
                "vCPU {} has the registers of when it last left the guest before a reset or a triple fault, \
                 which has lost later ones",
                numbers(&earlier)
            ));
        }
        (self.cpus, self.info)
    }
}
