//! Files that are compressed in blocks, each of which can be unpacked by itself, so that a dump can be
//! read where it is needed: what [`write`](mod@super::write) makes of `.gz` and `.zst`. Both are ordinary
//! files of their kind to `gunzip` and `zstd -d`.
//!
//! * gzip: BGZF, members of at most 64 KiB that say their size in an extra field, and an empty one at the
//!   end (SAM specification, "The BGZF compression format"; RFC 1952).
//! * Zstandard: the seekable format, frames and behind them a table of their sizes in a frame that
//!   decoders skip (zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`; RFC 8878).

use arch::bytes::u32_at;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use ruzstd::encoding::{CompressionLevel, FrameCompressor};
use std::io::{self, Read};
use std::path::Path;

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

/// A BGZF member's header: gzip's with one extra field, `BC`, that has the member's size and 1 less.
pub(super) const BGZF_HEADER: usize = 18;
/// Behind a member: CRC-32 and size of what is compressed.
pub(super) const BGZF_TRAILER: usize = 8;
/// The member with nothing in it that is the last.
pub(super) const BGZF_END: [u8; 28] =
    [31, 139, 8, 4, 0, 0, 0, 0, 0, 255, 6, 0, b'B', b'C', 2, 0, 27, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What gzip files begin with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// What Zstandard's frames begin with.
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// What the frame begins with that has the table.
pub(super) const TABLE_MAGIC: u32 = 0x184d_2a5e;
/// What the file ends with then.
pub(super) const SEEKABLE_MAGIC: u32 = 0x8f92_eab1;
/// Behind the table: how many frames, flags, magic number.
pub(super) const TABLE_FOOTER: usize = 9;
/// A flag: each entry has a checksum as well.
pub(super) const HAS_CHECKSUMS: u8 = 1 << 7;

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

    /// The one that a file's name asks for.
    pub fn of_path(path: &Path) -> Option<Packing> {
        path.extension().and_then(|suffix| suffix.to_str()).and_then(Packing::of_suffix)
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
        self.pack_as(plain, Compression::fast())
    }

    /// A block of zeros, as small as it can be: of most guests' memory it stands in the file again and again.
    ///
    /// # Errors
    /// When it becomes too large.
    pub fn pack_zeros(self) -> io::Result<Vec<u8>> {
        self.pack_as(&vec![0; self.block()], Compression::best()).map(|packed| packed.bytes)
    }

    fn pack_as(self, plain: &[u8], level: Compression) -> io::Result<PackedBlocks> {
        let mut packed = PackedBlocks::default();
        let blocks = plain.chunks(self.block());
        // What compresses has tables that are larger than most blocks: one for all of them.
        match self {
            Packing::Gzip => {
                let mut compress = Compress::new(level, false);
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

    /// Unpacks a block; `None` for one that is damaged.
    pub(super) fn unpack(self, packed: &[u8], plain: u32) -> Option<Vec<u8>> {
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
