//! Reading files that are compressed in blocks ([`packing`](crate::dump::packing)), where they are needed.

use super::source::{read_all, read_some};
use crate::dump::contents::DumpError;
use crate::dump::packing::{
    BGZF_END, BGZF_HEADER, BGZF_TRAILER, BlockSize, HAS_CHECKSUMS, Packing, SEEKABLE_MAGIC, TABLE_FOOTER,
    TABLE_MAGIC,
};
use crate::source::Source;
use arch::bytes::{array_at, u32_at};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks that one file may have: BGZF's of 256 GiB.
const MOST_BLOCKS: usize = 1 << 22;
/// Bytes that a block may unpack to.
const MOST_PLAIN: u32 = 64 << 20;
/// Bytes of unpacked blocks that are kept, but for one that is larger.
const KEPT: usize = 16 << 20;

/// The sizes of a file's blocks; `None` for one that is compressed otherwise.
pub(super) fn blocks(packing: Packing, source: &dyn Source) -> Result<Option<Vec<BlockSize>>, DumpError> {
    match packing {
        Packing::Gzip => members(source),
        Packing::Zstandard => frames(source),
    }
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
        let read = read_some(source, at - front as u64, &mut header[SIZE - front..], what)?;
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
        let sizes = blocks(packing, &*source)?.ok_or_else(|| {
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
