//! What a guest writes to an image that is only read: in a temporary file without a name, as large as what was written.
//!
//! A file rather than memory, because a guest may write as much as its disk holds, and memory that is taken for it would
//! be taken from everybody; in the page cache it is as fast as long as there is room. `TMPDIR` on a tmpfs has it in
//! memory all the same. When there is no more room a write fails, for the guest as well, and nothing else is lost.
//!
//! Its blocks are at the same offsets as the disk's, and a map in memory says which of them it has.

use crate::error::DiskError;
use crate::file::{Clear, clear, read_some, temporary, temporary_folder, write_zeros};
use crate::layer::Layer;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What is copied at once, bytes: a guest's file systems write no less as a rule.
const BLOCK: u64 = 4096;
/// Blocks that stand together in the map: 2 MiB, which take it 64 bytes.
const TOGETHER: u64 = 512;
/// The most entries of the map: for 2 TiB that are touched in all places it is some 100 MiB of memory.
const MOST_ENTRIES: usize = 1 << 20;

/// Which blocks are in the temporary file.
#[derive(Debug, Default)]
struct Map(BTreeMap<u64, [u64; (TOGETHER / 64) as usize]>);

/// Where a block's bit is: the entry, the word, the bit in it.
fn place(block: u64) -> (u64, usize, u64) {
    let within = block % TOGETHER;
    (block / TOGETHER, usize::try_from(within / 64).unwrap_or_default(), 1 << (within % 64))
}

impl Map {
    fn has(&self, block: u64) -> bool {
        let (entry, word, bit) = place(block);
        self.0.get(&entry).is_some_and(|words| words[word] & bit != 0)
    }

    /// Makes room for bits of all these blocks; there may be no more.
    fn reserve(&mut self, first: u64, end: u64) -> io::Result<()> {
        for entry in first / TOGETHER..end.div_ceil(TOGETHER) {
            if !self.0.contains_key(&entry) {
                if self.0.len() >= MOST_ENTRIES {
                    return Err(io::Error::new(
                        io::ErrorKind::StorageFull,
                        "an overlay notes no more than 2 TiB of places",
                    ));
                }
                self.0.insert(entry, Default::default());
            }
        }
        Ok(())
    }

    /// Notes blocks, for which there is room.
    fn note(&mut self, first: u64, end: u64) {
        for block in first..end {
            let (entry, word, bit) = place(block);
            if let Some(words) = self.0.get_mut(&entry) {
                words[word] |= bit;
            }
        }
    }
}

/// An image with an overlay.
#[derive(Debug)]
pub struct Overlay {
    below: Box<dyn Layer>,
    file: File,
    /// Held by whoever writes, for all of it: a block that comes from below is not lost to another that does.
    map: RwLock<Map>,
}

impl Overlay {
    /// Over an image, with nothing in it.
    ///
    /// # Errors
    /// [`DiskError::Temporary`].
    pub fn new(below: Box<dyn Layer>) -> Result<Overlay, DiskError> {
        let folder = temporary_folder();
        let file = temporary(&folder).map_err(|source| DiskError::Temporary { folder, source })?;
        Ok(Overlay::with(below, file))
    }

    /// With what is written in a file of the caller's.
    pub fn with(below: Box<dyn Layer>, file: File) -> Overlay {
        Overlay { below, file, map: RwLock::default() }
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of blocks from `block` on that are alike: all here, or all below; and whether they are here.
    fn run(&self, block: u64, end: u64) -> (u64, bool) {
        let map = self.map();
        let is_here = map.has(block);
        let differs = (block + 1..end).find(|&next| map.has(next) != is_here);
        (differs.unwrap_or(end), is_here)
    }

    /// Reads what is in the file, which ends where nothing has been written yet.
    fn read_here(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let there = read_some(&self.file, offset, bytes)?;
        bytes[there..].fill(0);
        Ok(())
    }

    /// Brings a block here that is not, so that a part of it can be written.
    fn bring(&self, map: &mut Map, block: u64) -> io::Result<()> {
        let start = block * BLOCK;
        if start >= self.below.size() || map.has(block) {
            return Ok(());
        }
        let count = BLOCK.min(self.below.size() - start);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or_default()];
        self.below.read(start, &mut bytes)?;
        self.file.write_all_at(&bytes, start)?;
        map.note(block, block + 1);
        Ok(())
    }

    /// Does something to a range of the file, with what surrounds it in its blocks.
    fn change(&self, offset: u64, count: u64, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let (first, end) = (offset / BLOCK, (offset + count).div_ceil(BLOCK));
        let mut map = self.map_mut();
        map.reserve(first, end)?;
        let is_last = offset + count == self.below.size();
        if !offset.is_multiple_of(BLOCK) {
            self.bring(&mut map, first)?;
        }
        if !(offset + count).is_multiple_of(BLOCK) && !is_last {
            self.bring(&mut map, end - 1)?;
        }
        work()?;
        map.note(first, end);
        Ok(())
    }
}

impl Layer for Overlay {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = (offset + bytes.len() as u64).div_ceil(BLOCK);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (until, is_here) = self.run(at / BLOCK, end);
            let count = usize::try_from(until * BLOCK - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, others) = rest.split_at_mut(count);
            if is_here {
                self.read_here(at, part)?
            } else {
                self.below.read(at, part)?
            }
            (at, rest) = (at + count as u64, others);
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(offset, bytes.len() as u64, || self.file.write_all_at(bytes, offset))
    }

    /// Nothing has to be kept: it is gone with this process.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        // What is below stays as it is. Of what is here whole blocks are zeros from now on.
        let (mut first, end) = (offset.div_ceil(BLOCK), (offset + count) / BLOCK);
        let map = self.map_mut();
        while first < end {
            let together = (first / TOGETHER + 1) * TOGETHER;
            let until = end.min(together);
            if map.0.contains_key(&(first / TOGETHER)) {
                clear(&self.file, first * BLOCK, (until - first) * BLOCK, Clear::Hole)?;
            }
            first = until;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, count: u64, _: bool) -> io::Result<()> {
        self.change(offset, count, || {
            if clear(&self.file, offset, count, Clear::Hole)? {
                return Ok(());
            }
            write_zeros(&self.file, offset, count)
        })
    }
}
