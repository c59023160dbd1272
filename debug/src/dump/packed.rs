//! Files that are compressed in blocks, each of which can be unpacked by itself, so that a dump can be
//! read where it is needed: what [`write`](super::write) makes of `.gz` and `.zst`. Both are ordinary
//! files of their kind to `gunzip` and `zstd -d`.
//!
//! * gzip: BGZF, members of at most 64 KiB that say their size in an extra field, and an empty one at the
//!   end (SAM specification, "The BGZF compression format"; RFC 1952).
//! * Zstandard: the seekable format, frames and behind them a table of their sizes in a frame that
//!   decoders skip (zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`; RFC 8878).

use super::DumpError;
use super::source::{Source, read_all};
use arch::bytes::{array_at, u32_at};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use ruzstd::encoding::{CompressionLevel, FrameCompressor};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A way to compress in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, as BGZF has it.
    Gzip,
    /// Zstandard, in its seekable format.
    Zstandard,
}

/// How large a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Bytes in the file.
    pub packed: u32,
    /// Bytes of what is compressed.
    pub plain: u32,
}

/// Compressed blocks, one behind another.
#[derive(Clone, Debug, Default)]
pub struct PackedBlocks {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// Their sizes.
    pub sizes: Vec<BlockSize>,
}

impl PackedBlocks {
    fn push_size(&mut self, packed: usize, plain: usize) -> io::Result<()> {
        let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        self.sizes.push(BlockSize { packed: size(packed)?, plain: size(plain)? });
        Ok(())
    }
}

/// Blocks that one file may have: BGZF's of 256 GiB.
const MOST_BLOCKS: usize = 1 << 22;
/// Bytes that a block may unpack to.
const MOST_PLAIN: u32 = 64 << 20;
/// Bytes of unpacked blocks that are kept, but for one that is larger.
const KEPT: usize = 16 << 20;

/// A BGZF member's header: gzip's with one extra field, `BC`, that has the member's size and 1 less.
const BGZF_HEADER: usize = 18;
/// Behind a member: CRC-32 and size of what is compressed.
const BGZF_TRAILER: usize = 8;
/// The member with nothing in it that is the last.
const BGZF_END: [u8; 28] =
    [31, 139, 8, 4, 0, 0, 0, 0, 0, 255, 6, 0, b'B', b'C', 2, 0, 27, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What gzip files begin with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// What Zstandard's frames begin with.
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// What the frame begins with that has the table.
const TABLE_MAGIC: u32 = 0x184d_2a5e;
/// What the file ends with then.
const SEEKABLE_MAGIC: u32 = 0x8f92_eab1;
/// Behind the table: how many frames, flags, magic number.
const TABLE_FOOTER: usize = 9;
/// A flag: each entry has a checksum as well.
const HAS_CHECKSUMS: u8 = 1 << 7;

/// Suffixes that ask for something that is not spoken.
const UNSPOKEN: [&str; 22] = [
    "xz", "lzma", "lz", "lz4", "lzo", "lzop", "bz2", "bzip2", "br", "sz", "snappy", "z", "gzip", "zstd",
    "7z", "zip", "rar", "tar", "tgz", "txz", "tbz2", "tzst",
];

/// What files of other kinds begin with, their names, and how to unpack them.
const OTHERS: [(&[u8], &str, &str); 6] = [
    (b"\xfd7zXZ\0", "xz", "xz -dk"),
    (b"BZh", "bzip2", "bunzip2 -k"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
    (b"\x89LZO\0", "lzop", "lzop -d"),
    (b"LZIP", "lzip", "lzip -dk"),
    (b"PK\x03\x04", "zip", "unzip"),
];

/// The name of what has compressed a file that begins so and is not read, and how to unpack it.
pub(super) fn unspoken(begin: &[u8]) -> Option<(&'static str, &'static str)> {
    OTHERS.iter().find(|(magic, ..)| begin.starts_with(magic)).map(|(_, name, tool)| (*name, *tool))
}

/// Checks that a file's name does not ask for what it would not be.
///
/// # Errors
/// What can be written instead.
pub fn check_name(path: &Path) -> Result<(), String> {
    let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
    match suffix.filter(|suffix| UNSPOKEN.contains(&suffix.as_str())) {
        Some(suffix) => Err(format!("dumps are not written as .{suffix}; .gz and .zst compress")),
        None => Ok(()),
    }
}

impl Packing {
    /// The one that a file's suffix asks for.
    pub fn of_suffix(suffix: &str) -> Option<Packing> {
        match suffix.to_ascii_lowercase().as_str() {
            "gz" => Some(Packing::Gzip),
            "zst" => Some(Packing::Zstandard),
            _ => None,
        }
    }

    /// The one of a file that begins so.
    pub fn of_file(begin: &[u8]) -> Option<Packing> {
        if begin.starts_with(&GZIP_MAGIC) {
            Some(Packing::Gzip)
        } else if begin.starts_with(&ZSTD_MAGIC) {
            Some(Packing::Zstandard)
        } else {
            None
        }
    }

    /// Its name, and how to unpack a file that is not in blocks.
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Packing::Gzip => ("gzip", "gunzip -k"),
            Packing::Zstandard => ("Zstandard", "zstd -d"),
        }
    }

    /// Bytes that are compressed at a time, whole pages.
    pub const fn block(self) -> usize {
        match self {
            // As much as fits into a member even if it cannot be compressed.
            Packing::Gzip => 60 << 10,
            Packing::Zstandard => 1 << 20,
        }
    }

    /// Compresses bytes, block by block.
    ///
    /// # Errors
    /// When a block becomes too large.
    pub fn pack(self, plain: &[u8]) -> io::Result<PackedBlocks> {
        let mut packed = PackedBlocks::default();
        let blocks = plain.chunks(self.block());
        // What compresses has tables that are larger than most blocks: one for all of them.
        match self {
            Packing::Gzip => {
                let mut compress = Compress::new(Compression::fast(), false);
                for block in blocks {
                    let begin = packed.bytes.len();
                    pack_member(&mut compress, block, &mut packed.bytes)?;
                    packed.push_size(packed.bytes.len() - begin, block.len())?;
                }
            }
            Packing::Zstandard => {
                let mut compressor = FrameCompressor::new(CompressionLevel::Fastest);
                compressor.set_drain(Vec::new());
                let mut begin = 0;
                for block in blocks {
                    compressor.set_source(block);
                    compressor.compress();
                    let end = compressor.drain().map_or(0, Vec::len);
                    packed.push_size(end - begin, block.len())?;
                    begin = end;
                }
                packed.bytes = compressor.take_drain().unwrap_or_default();
            }
        }
        Ok(packed)
    }

    /// What comes behind the last block.
    pub fn end(self, blocks: &[BlockSize]) -> Vec<u8> {
        match self {
            Packing::Gzip => BGZF_END.to_vec(),
            Packing::Zstandard => {
                // A size of four bytes is enough for frames of 512 TiB.
                let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
                let count = size(blocks.len());
                let mut bytes =
                    [TABLE_MAGIC, size(8 * blocks.len() + TABLE_FOOTER)].map(u32::to_le_bytes).concat();
                for block in blocks {
                    bytes.extend([block.packed, block.plain].map(u32::to_le_bytes).concat());
                }
                bytes.extend(count.to_le_bytes());
                bytes.push(0);
                bytes.extend(SEEKABLE_MAGIC.to_le_bytes());
                bytes
            }
        }
    }

    /// The sizes of a file's blocks; `None` for one that is compressed otherwise.
    pub(super) fn blocks(self, source: &dyn Source) -> Result<Option<Vec<BlockSize>>, DumpError> {
        match self {
            Packing::Gzip => members(source),
            Packing::Zstandard => frames(source),
        }
    }

    fn unpack(self, packed: &[u8], plain: u32) -> Option<Vec<u8>> {
        let size = usize::try_from(plain).ok()?;
        let bytes = match self {
            Packing::Gzip => unpack_member(packed, size)?,
            Packing::Zstandard => {
                let mut bytes = Vec::with_capacity(size);
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
                (&mut decoder).take(u64::from(plain) + 1).read_to_end(&mut bytes).ok()?;
                let frame = decoder.into_frame_decoder();
                let noted = frame.get_checksum_from_data();
                if noted.is_some() && noted != frame.get_calculated_checksum() {
                    return None;
                }
                bytes
            }
        };
        (bytes.len() == size).then_some(bytes)
    }
}

/// Puts a member behind `bytes`.
fn pack_member(compress: &mut Compress, plain: &[u8], bytes: &mut Vec<u8>) -> io::Result<()> {
    let begin = bytes.len();
    bytes.extend(&BGZF_END[..BGZF_HEADER]);
    // As much as a member can be.
    bytes.reserve(1 << 16);
    compress.reset();
    let status = compress.compress_vec(plain, bytes, FlushCompress::Finish)?;
    let mut checksum = flate2::Crc::new();
    checksum.update(plain);
    bytes.extend([checksum.sum(), checksum.amount()].map(u32::to_le_bytes).concat());
    let size = u16::try_from(bytes.len() - begin - 1).ok().filter(|_| status == Status::StreamEnd);
    let size = size.ok_or_else(|| io::Error::other("a block that is too large for gzip"))?;
    bytes[begin + BGZF_HEADER - 2..begin + BGZF_HEADER].copy_from_slice(&size.to_le_bytes());
    Ok(())
}

fn unpack_member(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let trailer = packed.len().checked_sub(BGZF_TRAILER)?;
    let mut bytes = Vec::with_capacity(size);
    // It stops at the room that there is.
    let mut decompress = Decompress::new(false);
    decompress.decompress_vec(packed.get(BGZF_HEADER..trailer)?, &mut bytes, FlushDecompress::Finish).ok()?;
    let mut checksum = flate2::Crc::new();
    checksum.update(&bytes);
    (u32_at(packed, trailer) == Some(checksum.sum())).then_some(bytes)
}

/// Goes from member to member.
fn members(source: &dyn Source) -> Result<Option<Vec<BlockSize>>, DumpError> {
    const SIZE: usize = 4;
    let mut blocks = Vec::new();
    // With the last bytes of the member before, which have its size.
    let mut at = 0;
    let mut header = [0; SIZE + BGZF_HEADER];
    let what = "a gzip member";
    loop {
        let front = if at == 0 { 0 } else { SIZE };
        let read = super::source::read_some(source, at - front as u64, &mut header[SIZE - front..], what)?;
        if let Some(BlockSize { plain, .. }) = blocks.last_mut() {
            *plain = u32_at(&header, 0).unwrap_or(0);
            if *plain > 1 << 16 {
                let what = format!("a gzip member of {plain:#x} bytes, more than there can be");
                return Err(DumpError::Malformed { what, offset: at - front as u64 });
            }
            if *plain == 0 && at == source.size() {
                return Ok(Some(blocks));
            }
        }
        let (header, wanted) = (&header[SIZE..], &BGZF_END[..BGZF_HEADER - 2]);
        let is_like = |at: usize| header[at] == wanted[at];
        // Time and system may be others.
        let is_member = (0..4).chain(10..BGZF_HEADER - 2).all(is_like);
        if read < front + BGZF_HEADER {
            return Err(DumpError::Truncated { what, offset: at });
        }
        if !is_member && at == 0 {
            return Ok(None);
        }
        if !is_member {
            let what = "a gzip member of another kind than the first".into();
            return Err(DumpError::Malformed { what, offset: at });
        }
        if blocks.len() >= MOST_BLOCKS {
            let what = format!("more than {MOST_BLOCKS} gzip members: unpack it first");
            return Err(DumpError::Malformed { what, offset: at });
        }
        let packed = array_at(header, BGZF_HEADER - 2).map_or(0, u16::from_le_bytes);
        let packed = u32::from(packed) + 1;
        if u64::from(packed) > source.size() - at {
            return Err(DumpError::Truncated { what, offset: at });
        }
        if usize::try_from(packed).unwrap_or(0) < BGZF_HEADER + BGZF_TRAILER {
            let what = format!("a gzip member of {packed} bytes, fewer than there can be");
            return Err(DumpError::Malformed { what, offset: at });
        }
        blocks.push(BlockSize { packed, plain: 0 });
        at += u64::from(packed);
    }
}

/// Reads the table of frames.
fn frames(source: &dyn Source) -> Result<Option<Vec<BlockSize>>, DumpError> {
    const FOOTER: u64 = TABLE_FOOTER as u64;
    let Some(at) = source.size().checked_sub(FOOTER) else { return Ok(None) };
    let footer = read_all(source, at, FOOTER, "the end of the table of frames")?;
    if u32_at(&footer, 5) != Some(SEEKABLE_MAGIC) {
        return Ok(None);
    }
    let malformed = |what: String, offset| DumpError::Malformed { what, offset };
    let count = u32_at(&footer, 0).unwrap_or(0);
    if usize::try_from(count).map_or(true, |count| count > MOST_BLOCKS) {
        let what = format!("{count} Zstandard frames, more than {MOST_BLOCKS}: unpack it first");
        return Err(malformed(what, at));
    }
    let entry: usize = if footer[4] & HAS_CHECKSUMS != 0 { 12 } else { 8 };
    let size = u64::from(count) * entry as u64;
    let table = at.checked_sub(size + 8);
    let table = table.ok_or_else(|| malformed(format!("a table of {count} Zstandard frames"), at))?;
    let bytes = read_all(source, table, size + 8, "the table of frames")?;
    let wanted = [TABLE_MAGIC, u32::try_from(size + FOOTER).unwrap_or(0)];
    if [u32_at(&bytes, 0), u32_at(&bytes, 4)] != wanted.map(Some) {
        return Err(malformed("a table of Zstandard frames that does not begin like one".into(), table));
    }
    let mut blocks = Vec::new();
    let mut begin = 0u64;
    for sizes in bytes[8..].chunks_exact(entry) {
        let (packed, plain) = (u32_at(sizes, 0).unwrap_or(0), u32_at(sizes, 4).unwrap_or(0));
        begin += u64::from(packed);
        if begin > table || plain > MOST_PLAIN {
            let what = format!("a Zstandard frame of {packed:#x} bytes for {plain:#x}, which cannot be");
            return Err(malformed(what, table + 8 + (entry * blocks.len()) as u64));
        }
        blocks.push(BlockSize { packed, plain });
    }
    Ok(Some(blocks))
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// In the file, and in what is compressed.
    place: u64,
    start: u64,
    size: BlockSize,
}

/// What a file holds that is compressed in blocks.
#[derive(Debug)]
pub struct Packed {
    source: Arc<dyn Source>,
    packing: Packing,
    blocks: Vec<Block>,
    size: u64,
    /// The blocks that were read lately, by their index, the last one last.
    kept: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl Packed {
    /// Finds the blocks of a compressed file.
    ///
    /// # Errors
    /// [`DumpError`]; also for one that is compressed in one piece.
    pub fn new(source: Arc<dyn Source>, packing: Packing) -> Result<Packed, DumpError> {
        let (name, tool) = packing.words();
        let sizes = packing.blocks(&*source)?.ok_or_else(|| {
            DumpError::Unknown(format!("compressed by {name} in one piece: unpack it first ({tool})"))
        })?;
        let (mut place, mut start) = (0, 0);
        let mut blocks = Vec::with_capacity(sizes.len());
        for size in sizes {
            if size.plain > 0 {
                blocks.push(Block { place, start, size });
            }
            place += u64::from(size.packed);
            start += u64::from(size.plain);
        }
        Ok(Packed { source, packing, blocks, size: start, kept: Mutex::default() })
    }

    fn block(&self, index: usize) -> io::Result<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().rposition(|(known, _)| *known == index) {
            let found = kept.remove(at);
            let bytes = Arc::clone(&found.1);
            kept.push(found);
            return Ok(bytes);
        }
        let Block { place, size, .. } = self.blocks[index];
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a compressed block is damaged");
        let packed = read_all(&*self.source, place, size.packed.into(), "a compressed block")
            .map_err(io::Error::other)?;
        let bytes = Arc::new(self.packing.unpack(&packed, size.plain).ok_or_else(damaged)?);
        kept.push((index, Arc::clone(&bytes)));
        while kept.len() > 1 && kept.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > KEPT {
            kept.remove(0);
        }
        Ok(bytes)
    }
}

impl Source for Packed {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = offset.checked_add(done as u64).filter(|at| *at < self.size) else { break };
            let index = self.blocks.partition_point(|block| block.start <= at) - 1;
            let block = self.block(index)?;
            let from = usize::try_from(at - self.blocks[index].start).unwrap_or(0);
            let count = (block.len() - from).min(bytes.len() - done);
            bytes[done..done + count].copy_from_slice(&block[from..from + count]);
            done += count;
        }
        Ok(done)
    }
}
