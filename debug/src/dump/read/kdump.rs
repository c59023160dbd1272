//! Compressed kdumps: what makedumpfile writes, and QEMU's `dump-guest-memory -z`, `-l`, `-s`.
//!
//! A header, a second one, two bitmaps with a bit for each page of memory (the first: there is such a
//! page; the second: it is in the file), a descriptor for each page that is, and the pages, each
//! compressed by itself.
//!
//! Sources: makedumpfile, `IMPLEMENTATION` and `diskdump_mod.h`; QEMU, `include/sysemu/dump.h`.

use super::source::read_all;
use crate::dump::contents::{Contents, DumpError, Image, joined};
use crate::dump::notes::{Notes, isa_of_notes};
use crate::linux::VmCoreInfo;
use crate::ram::Absence;
use crate::source::Source;
use arch::Isa;
use arch::address::PhysRange;
use arch::bytes::{u32_at, u64_at};
use arch::words::counted;
use std::io::Read;
use std::sync::Arc;

/// What such a file begins with.
pub const SIGNATURE: &[u8] = b"KDUMP   ";

/// Sizes of the first header, of the second as far as it is read, and of a descriptor, bytes.
const HEADER: u64 = 464;
const SUB_HEADER: u64 = 104;
const DESCRIPTOR: u64 = 24;
/// Bytes of bitmaps that are held in memory at most: of 16 TiB of memory.
const MOST_BITMAP: u64 = 512 << 20;
/// Pieces of memory that are told apart at most.
const MOST_RUNS: usize = 1 << 20;
/// Bytes of notes at most.
const MOST_NOTES: u64 = 64 << 20;
/// Where the first header has the machine's name, 65 bytes (`struct new_utsname`).
const MACHINE: usize = 12 + 4 * 65;

/// Where the header says how the file was made, and that there was no room for all of it
/// (`DUMP_DH_COMPRESSED_INCOMPLETE`).
const STATUS: usize = 424;
const INCOMPLETE: u32 = 0x8;

/// The dump level of what leaves out pages of zeros, and nothing else.
const ZEROS_ONLY: u32 = 1;
/// What each bit of a dump level leaves out (makedumpfile, `DL_EXCLUDE_...`).
const LEVELS: [&str; 5] = ["pages of zeros", "page cache", "private page cache", "user data", "free pages"];

/// How a page is stored.
mod flags {
    pub const ZLIB: u32 = 0x1;
    pub const LZO: u32 = 0x2;
    pub const SNAPPY: u32 = 0x4;
    pub const ZSTD: u32 = 0x20;
}

/// A bit for each page.
#[derive(Debug)]
struct Bitmap {
    bytes: Vec<u8>,
    /// Bits that are set in front of each piece of [`Bitmap::PIECE`] bytes.
    before: Vec<u64>,
    /// Bits that are set.
    count: u64,
}

impl Bitmap {
    const PIECE: usize = 512;

    fn new(bytes: Vec<u8>) -> Bitmap {
        let mut count = 0;
        let before = bytes
            .chunks(Bitmap::PIECE)
            .map(|piece| {
                let before = count;
                count += piece.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
                before
            })
            .collect();
        Bitmap { bytes, before, count }
    }

    fn has(&self, page: u64) -> bool {
        usize::try_from(page / 8)
            .ok()
            .and_then(|at| self.bytes.get(at))
            .is_some_and(|byte| byte >> (page % 8) & 1 != 0)
    }

    /// How many bits are set in front of a page's.
    fn rank(&self, page: u64) -> u64 {
        let at = usize::try_from(page / 8).unwrap_or(usize::MAX).min(self.bytes.len());
        let piece = at / Bitmap::PIECE;
        let whole = self.bytes[piece * Bitmap::PIECE..at].iter().map(|byte| u64::from(byte.count_ones()));
        let mask = (1u8 << (page % 8)) - 1;
        let part = self.bytes.get(at).map_or(0, |byte| u64::from((byte & mask).count_ones()));
        self.before.get(piece).copied().unwrap_or(0) + whole.sum::<u64>() + part
    }

    /// Runs of bits that are set: first page, and the one after the last. Where there are very many, the
    /// last goes on to the last bit.
    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (at, byte) in (0u64..).zip(&self.bytes) {
            if *byte == 0 {
                continue;
            }
            let full = runs.len() >= MOST_RUNS;
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let page = at * 8 + bit;
                match runs.last_mut() {
                    Some((_, end)) if *end == page => *end += 1,
                    Some((_, end)) if full => *end = page + 1,
                    _ => runs.push((page, page + 1)),
                }
            }
        }
        runs
    }
}

#[derive(Debug)]
struct KdumpImage {
    source: Arc<dyn Source>,
    /// Bytes of a page.
    block: u64,
    /// Where the descriptors are.
    descriptors: u64,
    there: Bitmap,
    stored: Bitmap,
    /// What was left out, a bit for each kind.
    level: u32,
    is_incomplete: bool,
}

impl KdumpImage {
    /// A page's bytes, or why there are none.
    fn page(&self, page: u64) -> Result<Vec<u8>, Missing> {
        let damaged = || Missing::Known(Absence::Damaged);
        let size = usize::try_from(self.block).map_err(|_| damaged())?;
        if !self.stored.has(page) {
            return match (self.there.has(page), self.level) {
                (false, _) => Err(Missing::NoMemory),
                (true, ZEROS_ONLY) => Ok(vec![0; size]),
                // Where nothing is left out, all pages would be there in the end.
                (true, 0) => Err(Missing::Known(Absence::NotWritten)),
                (true, _) => Err(Missing::LeftOut),
            };
        }
        let missing =
            || Missing::Known(if self.is_incomplete { Absence::NotWritten } else { Absence::CutOff });
        let place = self.stored.rank(page).checked_mul(DESCRIPTOR);
        let at = place.and_then(|place| self.descriptors.checked_add(place)).ok_or_else(damaged)?;
        let read = |at, length, what| match read_all(&*self.source, at, length, what) {
            Ok(bytes) => Ok(bytes),
            Err(DumpError::Truncated { .. }) => Err(missing()),
            Err(_) => Err(damaged()),
        };
        let descriptor = read(at, DESCRIPTOR, "a page's descriptor")?;
        let (Some(offset), Some(length), Some(how)) =
            (u64_at(&descriptor, 0), u32_at(&descriptor, 8), u32_at(&descriptor, 12))
        else {
            return Err(damaged());
        };
        if offset == 0 {
            return Err(Missing::Known(Absence::NotWritten));
        }
        if u64::from(length) > self.block {
            return Err(damaged());
        }
        let bytes = read(offset, length.into(), "a page")?;
        decompress(how, bytes, size).filter(|page| page.len() == size).ok_or_else(damaged)
    }
}

/// Why there are no bytes of a page: without words, as there may be very many.
enum Missing {
    NoMemory,
    LeftOut,
    Known(Absence),
}

/// Who leaves out what at a dump level.
fn level_in_words(level: u32) -> String {
    let kinds: Vec<&str> =
        (0..).zip(LEVELS).filter(|(bit, _)| level >> bit & 1 != 0).map(|(_, kind)| kind).collect();
    format!("by makedumpfile -d {level} ({})", kinds.join(", "))
}

/// Decompresses a page of no more than `size` bytes.
fn decompress(how: u32, bytes: Vec<u8>, size: usize) -> Option<Vec<u8>> {
    let limit = size as u64 + 1;
    let mut page = Vec::with_capacity(size);
    match how & (flags::ZLIB | flags::LZO | flags::SNAPPY | flags::ZSTD) {
        0 => return Some(bytes),
        flags::ZLIB => {
            flate2::read::ZlibDecoder::new(bytes.as_slice()).take(limit).read_to_end(&mut page).ok()?;
        }
        flags::LZO => return lzo::decompress(&bytes, size).ok(),
        flags::SNAPPY => {
            if snap::raw::decompress_len(&bytes).ok()? > size {
                return None;
            }
            return snap::raw::Decoder::new().decompress_vec(&bytes).ok();
        }
        flags::ZSTD => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes.as_slice()).ok()?;
            decoder.take(limit).read_to_end(&mut page).ok()?;
        }
        _ => return None,
    }
    Some(page)
}

impl Image for KdumpImage {
    fn ranges(&self) -> Vec<PhysRange> {
        let range = |(first, end): (u64, u64)| PhysRange::new(first * self.block, (end - first) * self.block);
        joined(self.there.runs().into_iter().map(range).collect())
    }

    fn populated(&self) -> Vec<PhysRange> {
        let range = |(first, end): (u64, u64)| PhysRange::new(first * self.block, (end - first) * self.block);
        // What was left out for another reason is not known to be zeros.
        let pages = if self.level == ZEROS_ONLY { &self.stored } else { &self.there };
        joined(pages.runs().into_iter().map(range).collect())
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Ok(page) = self.page(at / self.block) else { break };
            let start = usize::try_from(at % self.block).unwrap_or(0);
            let count = (page.len() - start).min(bytes.len() - done);
            bytes[done..done + count].copy_from_slice(&page[start..start + count]);
            done += count;
        }
        done
    }

    fn absence(&self, address: u64) -> Option<Absence> {
        match self.page(address / self.block).err()? {
            Missing::NoMemory => None,
            Missing::LeftOut => Some(Absence::LeftOut(level_in_words(self.level))),
            Missing::Known(why) => Some(why),
        }
    }
}

fn malformed<T>(what: impl Into<String>, offset: u64) -> Result<T, DumpError> {
    Err(DumpError::Malformed { what: what.into(), offset })
}

/// What the headers say.
struct Headers {
    machine: String,
    version: u32,
    /// Bytes of a page, which blocks of the file have as well.
    block: u64,
    sub_blocks: u64,
    bitmap_blocks: u64,
    most_pages: u64,
    is_incomplete: bool,
    /// The second header.
    sub: Vec<u8>,
}

impl Headers {
    fn read(source: &dyn Source) -> Result<Headers, DumpError> {
        let header = read_all(source, 0, HEADER, "the header")?;
        let word = |at: usize| u32_at(&header, at).unwrap_or(0);
        let machine: &[u8] = header.get(MACHINE..MACHINE + 65).unwrap_or(&[]);
        let machine = machine.split(|byte| *byte == 0).next().unwrap_or(&[]);
        let block = u64::from(word(428));
        if !matches!(block, 4096 | 16384 | 65536) {
            return malformed(format!("pages of {block} bytes; 4096, 16384 or 65536 are read"), 428);
        }
        let sub = read_all(source, block, SUB_HEADER, "the second header")?;
        let version = word(8);
        let most_pages = if version >= 6 { u64_at(&sub, 96).unwrap_or(0) } else { u64::from(word(440)) };
        if version >= 2 && u32_at(&sub, 12).unwrap_or(0) != 0 {
            let what = "one of the parts that makedumpfile --split makes; put them together first";
            return malformed(what, block + 12);
        }
        Ok(Headers {
            machine: String::from_utf8_lossy(machine).into_owned(),
            version,
            block,
            sub_blocks: u64::from(word(432)),
            bitmap_blocks: u64::from(word(436)),
            most_pages,
            is_incomplete: word(STATUS) & INCOMPLETE != 0,
            sub,
        })
    }

    /// A number of the second header.
    fn long(&self, at: usize) -> u64 {
        u64_at(&self.sub, at).unwrap_or(0)
    }

    /// Its dump level: what makedumpfile left out.
    fn level(&self) -> u32 {
        u32_at(&self.sub, 8).unwrap_or(0)
    }

    fn image(&self, source: Arc<dyn Source>) -> Result<KdumpImage, DumpError> {
        let Headers { block, most_pages, .. } = *self;
        let bitmap_at = (1 + self.sub_blocks) * block;
        let half = self.bitmap_blocks * block / 2;
        if 2 * half > MOST_BITMAP {
            return malformed(format!("bitmaps of {:#x} bytes, more than {MOST_BITMAP:#x}", 2 * half), 436);
        }
        if most_pages.div_ceil(8) > half {
            let what = format!("{most_pages:#x} pages, for which the bitmaps are too small");
            return malformed(what, block + 96);
        }
        // A page whose address does not fit is none.
        let bytes = most_pages.min(u64::MAX / block / 2).div_ceil(8);
        let there = read_all(&*source, bitmap_at, bytes, "the first bitmap")?;
        let stored = read_all(&*source, bitmap_at + half, bytes, "the second bitmap")?;
        Ok(KdumpImage {
            level: self.level(),
            is_incomplete: self.is_incomplete,
            descriptors: bitmap_at + self.bitmap_blocks * block,
            there: Bitmap::new(there),
            stored: Bitmap::new(stored),
            block,
            source,
        })
    }

    /// The notes; those that are not there are a remark.
    fn notes(&self, source: &dyn Source, remarks: &mut Vec<String>) -> Result<Vec<u8>, DumpError> {
        let (at, size) = (self.long(48), self.long(56));
        if self.version < 4 || size == 0 {
            return Ok(Vec::new());
        }
        if size > MOST_NOTES {
            return malformed(format!("{size} bytes of notes, more than {MOST_NOTES}"), self.block + 56);
        }
        Ok(read_all(source, at, size, "the notes").unwrap_or_else(|error| {
            remarks.push(error.to_string());
            Vec::new()
        }))
    }

    /// The kernel's description of itself.
    fn info(&self, source: &dyn Source) -> Result<Option<VmCoreInfo>, DumpError> {
        let (at, size) = (self.long(32), self.long(40));
        if self.version < 3 || size == 0 || size > MOST_NOTES {
            return Ok(None);
        }
        Ok(VmCoreInfo::parse(&read_all(source, at, size, "the kernel's description")?))
    }
}

/// Reads a compressed kdump.
///
/// # Errors
/// [`DumpError`].
pub fn read(source: Arc<dyn Source>) -> Result<Contents, DumpError> {
    let headers = Headers::read(&*source)?;
    let image = headers.image(Arc::clone(&source))?;
    let mut remarks = Vec::new();
    if headers.is_incomplete {
        remarks.push(crate::dump::contents::INCOMPLETE.into());
    }
    let note_bytes = headers.notes(&*source, &mut remarks)?;
    let isa = match headers.machine.as_str() {
        "x86_64" => Some(Isa::X86_64),
        "aarch64" => Some(Isa::Aarch64),
        // QEMU does not say; its notes do.
        _ => isa_of_notes(&note_bytes),
    };
    let Some(isa) = isa else {
        let what = format!("a dump of machine {:?}; x86_64 and aarch64 are read", headers.machine);
        return malformed(what, MACHINE as u64);
    };
    let mut notes = Notes::new(isa);
    if !notes.take(&note_bytes) {
        remarks.push(format!("the notes at offset {:#x} are cut off or damaged", headers.long(48)));
    }
    let (cpus, noted) = notes.finish(&mut remarks);
    let info = headers.info(&*source)?.or(noted);
    let (there, stored) = (image.there.count, image.stored.count);
    let (version, level) = (headers.version, headers.level());
    let format = format!(
        "compressed kdump, version {version}, dump level {level}, {stored} of {}",
        counted(there, "page")
    );
    Ok(Contents { format, isa, image: Box::new(image), cpus, info, remarks })
}
