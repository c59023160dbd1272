//! Writes ELF64 cores that the usual tools open: crash, drgn, gdb, makedumpfile, and this program.
//!
//! # What is in one
//! * `PT_NOTE`: for each vCPU `NT_PRSTATUS`, `NT_PRFPREG` and, where pointers are authenticated,
//!   `NT_ARM_PAC_MASK`, which gdb looks at if `NT_AUXV` says so; then for each QEMU's note (x86_64), which
//!   has the control registers; then for each our own, which has every register ([`arch::register::note`]);
//!   then `VMCOREINFO` if the kernel has described itself.
//! * `PT_LOAD`s by which tools that know no page tables find the kernel's image, and the pages at each
//!   vCPU's stack pointer. They take no room: it is the same memory as in the next.
//! * a `PT_LOAD` for each range of memory, with its guest-physical address and, if the kernel has a
//!   [direct map](crate::linux::translate::direct_map), its virtual one.
//!
//! Pages of zeros are holes. The file has its name only when it is whole and on disk.

pub mod destination;
mod error;
mod sink;

pub use super::progress::Progress;
pub use error::WriteError;

use super::contents::{DumpedVcpu, joined};
use super::notes::{EARLIER, STATE, number_of};
use super::read::elf::{ET_CORE, HEADER, PROGRAM_HEADER, PT_LOAD, PT_NOTE};
use crate::cancel::Cancelled;
use crate::disassemble::OperatingMode;
use crate::linux::described::{self, Anchor, Scope};
use crate::linux::translate::{self, Piece};
use crate::linux::{Described, VmCoreInfo};
use crate::ram::Memory;
use arch::address::PhysRange;
use arch::paging::Regime;
use arch::register::note::{self, Note};
use arch::{GuestPhys, GuestVirt, Isa};
use destination::{Destination, Partial};
use sink::Sink;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

/// Bytes of a page, by which zeros become holes.
const PAGE: usize = 4096;
/// Bytes that are looked at at a time.
const AT_ONCE: usize = 1 << 20;
/// Pages from a stack pointer on that get a segment of their own: of Linux's stacks, 16 KiB.
const STACK_PAGES: u64 = 4;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the guest's memory.
    pub memory: u64,
    /// Bytes of it that are not holes.
    pub stored: u64,
    /// Bytes of it that are zeros in the dump because they could not be read: it is of a dump, which has not
    /// got them.
    pub missing: u64,
    /// Whether the kernel has described itself.
    pub has_info: bool,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(f, "{} MiB of memory, {} MiB of them not zeros", mib(self.memory), mib(self.stored))?;
        if self.missing > 0 {
            write!(f, ", and {} MiB zeros because they could not be read", mib(self.missing))?;
        }
        let without = "; no Linux kernel has described itself in it";
        if self.has_info { Ok(()) } else { f.write_str(without) }
    }
}

/// What a dump is made of. It stands still meanwhile.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Its architecture.
    pub isa: Isa,
    /// Its vCPUs.
    pub cpus: &'a [DumpedVcpu],
    /// Its memory.
    pub memory: &'a dyn Memory,
}

/// Writes a core to `path`, compressed if that ends in `.gz` or `.zst`. `watch` is told how far it is
/// every few megabytes, and can break it off.
///
/// # Errors
/// [`WriteError`]; then nothing of it is left.
pub fn to_file(
    subject: &Subject<'_>,
    path: &Path,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, WriteError> {
    to_destination(subject, &Destination::anywhere(path)?, watch)
}

/// Writes a core as [`to_file`] does.
///
/// # Errors
/// [`WriteError`]; then nothing of it is left.
pub fn to_destination(
    subject: &Subject<'_>,
    destination: &Destination,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, WriteError> {
    begin(subject, destination, watch)?.keep()
}

/// A core that is whole and has no name yet. It goes with this value, unless it is kept.
#[derive(Debug)]
pub struct Whole<'a> {
    partial: Partial<'a>,
    file: File,
    summary: Summary,
}

impl Whole<'_> {
    /// Has it on disk, and gives it its name. It may go on before.
    ///
    /// # Errors
    /// [`WriteError`]; then nothing of it is left.
    pub fn keep(self) -> Result<Summary, WriteError> {
        self.partial.keep(&self.file)?;
        Ok(self.summary)
    }
}

/// Writes a core as [`to_file`] does, but for its name.
///
/// # Errors
/// [`WriteError`]; then nothing of it is left.
pub fn begin<'a>(
    subject: &Subject<'_>,
    destination: &'a Destination,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Whole<'a>, WriteError> {
    let (partial, file) = destination.create()?;
    let summary = to_open_file(subject, &file, destination.shown(), watch)?;
    Ok(Whole { partial, file, summary })
}

/// Writes a core to an empty file that somebody has opened, for a path: compressed if that ends in `.gz` or `.zst`, and
/// errors are of it. It is for whoever has opened it to have it on disk.
///
/// # Errors
/// [`WriteError`]; then there may be a part of it in the file.
pub fn to_open_file(
    subject: &Subject<'_>,
    file: &File,
    path: &Path,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, WriteError> {
    let failed = |source| WriteError::Io { path: path.into(), source };
    let mut sink = sink::of_name(path, file.try_clone().map_err(failed)?).map_err(failed)?;
    let summary = match write(subject, &mut *sink, watch).map_err(failed)? {
        ControlFlow::Continue(summary) => summary,
        ControlFlow::Break(()) => return Err(WriteError::Cancelled(path.into())),
    };
    sink.finish().map_err(failed)?;
    Ok(summary)
}

fn write(
    subject: &Subject<'_>,
    sink: &mut dyn Sink,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> io::Result<ControlFlow<(), Summary>> {
    let memory = subject.memory;
    let ranges = joined(memory.ranges());
    let populated = joined(memory.populated());
    let total = ranges.iter().map(|range| range.size).sum();
    let mut go_on = || match watch(Progress { done: 0, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Cancelled),
    };
    let anchors: Vec<Anchor> = subject.cpus.iter().filter_map(|cpu| Anchor::new(&cpu.registers)).collect();
    let found = described::find(subject.isa, memory, &anchors, Scope::Running, &mut go_on);
    let Ok(Described { info, .. }) = found else { return Ok(ControlFlow::Break(())) };
    sink.data(&head(subject, &ranges, info.as_ref()))?;
    let mut summary = Summary { memory: total, stored: 0, missing: 0, has_info: info.is_some() };
    let mut done = 0;
    let mut buffer = vec![0; AT_ONCE];
    for range in &ranges {
        let mut at = range.start.0;
        // Ranges are whole pages, and so is what is populated of them, on any host.
        for piece in populated.iter().filter(|piece| piece.end() > range.start && piece.start < range.end()) {
            let (start, end) = (piece.start.0.max(range.start.0), piece.end().0.min(range.end().0));
            summary.missing += missing(memory, at, start);
            sink.hole(start - at)?;
            done += start - at;
            at = start;
            while at < end {
                let wanted = usize::try_from(end - at).map_or(AT_ONCE, |left| left.min(AT_ONCE));
                let bytes = &mut buffer[..wanted];
                summary.missing += read_all(memory, at, bytes);
                summary.stored += store(bytes, sink)?;
                at += wanted as u64;
                done += wanted as u64;
                if watch(Progress { done, total }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        summary.missing += missing(memory, at, range.end().0);
        sink.hole(range.end().0 - at)?;
        done += range.end().0 - at;
        if watch(Progress { done, total }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(summary))
}

/// Reads bytes, zeros for those that cannot be read; how many these are.
fn read_all(memory: &dyn Memory, at: u64, bytes: &mut [u8]) -> u64 {
    let (mut done, mut missing) = (0, 0);
    loop {
        done += memory.read(GuestPhys(at + done as u64), &mut bytes[done..]);
        if done >= bytes.len() {
            return missing;
        }
        // To the end of the page.
        let gap = (bytes.len() - done).min(PAGE - done % PAGE);
        bytes[done..done + gap].fill(0);
        missing += gap as u64;
        done += gap;
    }
}

/// How many bytes between two addresses cannot be read, where nothing is stored: what one page tells is so for
/// all of them.
fn missing(memory: &dyn Memory, start: u64, end: u64) -> u64 {
    if start < end && memory.absence(GuestPhys(start)).is_some() { end - start } else { 0 }
}

/// Stores bytes, their pages of zeros as holes; how many are none.
fn store(bytes: &[u8], sink: &mut dyn Sink) -> io::Result<u64> {
    let is_zero = |page: &[u8]| page.chunks(64).all(|part| part == &[0; 64][..part.len()]);
    let mut stored = 0;
    let mut rest = bytes;
    while let Some(first) = rest.chunks(PAGE).next() {
        let zero = is_zero(first);
        let run: usize = rest.chunks(PAGE).take_while(|page| is_zero(page) == zero).map(<[u8]>::len).sum();
        let (run, after) = rest.split_at(run);
        if zero {
            sink.hole(run.len() as u64)?;
        } else {
            sink.data(run)?;
            stored += run.len() as u64;
        }
        rest = after;
    }
    Ok(stored)
}

/// A program header.
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    start: GuestVirt,
    physical: u64,
    size: u64,
}

/// Everything in front of the memory.
fn head(subject: &Subject<'_>, ranges: &[PhysRange], info: Option<&VmCoreInfo>) -> Vec<u8> {
    let regimes: Vec<(&DumpedVcpu, Regime)> =
        subject.cpus.iter().filter_map(|cpu| Some((cpu, translate::regime(&cpu.registers).ok()?))).collect();
    let direct = regimes.iter().find_map(|(_, regime)| translate::direct_map(regime, subject.memory));
    let notes = notes(subject, info);

    let others = others(subject, &regimes, direct);
    let count = 1 + ranges.len() + others.len();
    let table = HEADER + PROGRAM_HEADER * count as u64;
    let begin = (table + notes.len() as u64).next_multiple_of(PAGE as u64);
    let note = Segment {
        kind: PT_NOTE,
        flags: 0,
        offset: table,
        start: GuestVirt(0),
        physical: 0,
        size: notes.len() as u64,
    };
    let (mut offset, mut places, mut loads) = (begin, Vec::new(), Vec::new());
    for range in ranges {
        places.push((*range, offset));
        let start = direct.map_or(0, |delta| range.start.0.wrapping_add(delta));
        let (physical, size) = (range.start.0, range.size);
        loads.push(Segment { kind: PT_LOAD, flags: 7, offset, start: GuestVirt(start), physical, size });
        offset += range.size;
    }
    let mut segments = vec![note];
    for Piece { start, range } in others {
        let place = places.iter().find(|(ram, _)| ram.contains(range.start, range.size));
        if let Some((ram, offset)) = place {
            let (physical, size) = (range.start.0, range.size);
            let offset = offset + (physical - ram.start.0);
            segments.push(Segment { kind: PT_LOAD, flags: 7, offset, start, physical, size });
        }
    }
    // makedumpfile takes what the last one says for the direct map.
    segments.extend(loads);

    let mut bytes = header(subject.isa, segments.len());
    for Segment { kind, flags, offset, start, physical, size } in segments {
        bytes.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
        bytes.extend([offset, start.0, physical, size, size, 0].map(u64::to_le_bytes).concat());
    }
    // A segment less than was counted leaves room.
    bytes.resize(usize::try_from(table).unwrap_or(0), 0);
    bytes.extend(notes);
    bytes.resize(usize::try_from(begin).unwrap_or(0), 0);
    bytes
}

/// The ELF header, 64 bytes.
fn header(isa: Isa, segments: usize) -> Vec<u8> {
    const EV_CURRENT: u8 = 1;
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, EV_CURRENT];
    bytes.resize(16, 0);
    bytes.extend(ET_CORE.to_le_bytes());
    bytes.extend(note::machine_of_isa(isa).to_le_bytes());
    bytes.extend(u32::from(EV_CURRENT).to_le_bytes());
    bytes.extend([0, HEADER, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0u32.to_le_bytes());
    // vCPUs and ranges are few, so it fits.
    let count = u16::try_from(segments).unwrap_or(u16::MAX - 1);
    bytes.extend([64, 56, count, 0, 0, 0].map(u16::to_le_bytes).concat());
    bytes
}

/// Memory by further virtual addresses: the kernel's image, and stacks that are not in the direct map.
fn others(subject: &Subject<'_>, regimes: &[(&DumpedVcpu, Regime)], direct: Option<u64>) -> Vec<Piece> {
    let images = regimes.iter().map(|(cpu, regime)| {
        let vbar = cpu.registers.get("VBAR_EL1").unwrap_or(0);
        translate::image(subject.isa, regime, subject.memory, vbar)
    });
    let mut pieces: Vec<Piece> = images.into_iter().find(|image| !image.is_empty()).unwrap_or_default();
    let stack = match subject.isa {
        Isa::X86_64 => "rsp",
        Isa::Aarch64 => "sp",
    };
    for (cpu, regime) in regimes {
        let Some(pointer) = cpu.registers.get(stack).filter(|pointer| pointer >> 63 != 0) else { continue };
        let first = pointer & !(PAGE as u64 - 1);
        for at in (0..STACK_PAGES).filter_map(|index| first.checked_add(index * PAGE as u64)) {
            let known =
                pieces.iter().any(|piece| (piece.start.0..piece.start.0 + piece.range.size).contains(&at));
            let Some(piece) = translate::page(regime, subject.memory, GuestVirt(at), PAGE as u64) else {
                break;
            };
            let is_direct = direct.is_some_and(|delta| piece.range.start.0.wrapping_add(delta) == at);
            if !known && !is_direct {
                pieces.push(piece);
            }
        }
    }
    pieces
}

fn notes(subject: &Subject<'_>, info: Option<&VmCoreInfo>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |name: &str, number: u32, value: &[u8]| {
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        bytes.extend([size(name.len() + 1), size(value.len()), number.to_le_bytes()].concat());
        for part in [name.as_bytes(), &[0]].concat().chunks(4).chain(value.chunks(4)) {
            let mut word = [0; 4];
            word[..part.len()].copy_from_slice(part);
            bytes.extend(word);
        }
    };
    for kinds in [&[Note::Status, Note::Float, Note::PointerMasks][..], &[Note::Qemu]] {
        for (id, cpu) in (0..).zip(subject.cpus) {
            let width = match cpu.mode {
                OperatingMode::Bits64 => 64,
                OperatingMode::Protected32 => 32,
                OperatingMode::Real16 => 16,
            };
            for note in kinds {
                if let Some(value) = note.build(&cpu.registers, id, width) {
                    push(note.name(), note.number(), &value);
                }
            }
        }
    }
    if subject.cpus.iter().any(|cpu| Note::PointerMasks.build(&cpu.registers, 0, 64).is_some()) {
        push("CORE", note::VECTOR_NUMBER, &note::authenticating_vector());
    }
    for cpu in subject.cpus {
        let (state, earlier) = ([number_of(cpu.activity)], [1]);
        let more: [(&[u8], &[u8]); 2] = [(STATE, &state), (EARLIER, &earlier)];
        let value = note::build_all(&cpu.registers, &more[..1 + usize::from(cpu.is_earlier)]);
        push(note::ALL_NAME, note::ALL_NUMBER, &value);
    }
    if let Some(info) = info {
        push("VMCOREINFO", 0, info.text().as_bytes());
    }
    bytes
}
