//! Where a core is written to: a file with holes, or one that is compressed in blocks.

use super::packed::{BlockSize, Packing};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Takes a core in order.
pub(super) trait Sink {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// So many zeros.
    fn hole(&mut self, size: u64) -> io::Result<()>;
    /// There is no more.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// The one that the name of a file asks for.
pub(super) fn of_name(path: &Path, file: File) -> Box<dyn Sink> {
    match path.extension().and_then(|suffix| suffix.to_str()).and_then(Packing::of_suffix) {
        Some(packing) => Box::new(Blocks::new(packing, file)),
        None => Box::new(Sparse { file, at: 0 }),
    }
}

/// A file with holes.
struct Sparse {
    file: File,
    at: u64,
}

impl Sink for Sparse {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn hole(&mut self, size: u64) -> io::Result<()> {
        self.at += size;
        self.file.seek(SeekFrom::Start(self.at)).map(drop)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.set_len(self.at)
    }
}

/// A file that is compressed in blocks.
struct Blocks {
    packing: Packing,
    file: BufWriter<File>,
    /// What is no whole block yet.
    waiting: Vec<u8>,
    /// A block of nothing but zeros, once one was needed.
    zeros: Option<Vec<u8>>,
    sizes: Vec<BlockSize>,
}

impl Blocks {
    fn new(packing: Packing, file: File) -> Blocks {
        let file = BufWriter::with_capacity(1 << 20, file);
        Blocks { packing, file, waiting: Vec::new(), zeros: None, sizes: Vec::new() }
    }

    fn write(&mut self, packed: &[u8], plain: usize) -> io::Result<()> {
        let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        self.sizes.push(BlockSize { packed: size(packed.len())?, plain: size(plain)? });
        self.file.write_all(packed)
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        let plain = std::mem::take(&mut self.waiting);
        self.write(&self.packing.pack(&plain)?, plain.len())
    }
}

impl Sink for Blocks {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.packing.block() - self.waiting.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.waiting.extend(now);
            rest = later;
            if self.waiting.len() == self.packing.block() {
                self.write_waiting()?;
            }
        }
        Ok(())
    }

    fn hole(&mut self, size: u64) -> io::Result<()> {
        let block = self.packing.block();
        let mut left = size;
        while left > 0 {
            let room = block - self.waiting.len();
            let count = usize::try_from(left).map_or(room, |left| left.min(room));
            if count == block {
                let zeros = match self.zeros.take() {
                    Some(zeros) => zeros,
                    None => self.packing.pack(&vec![0; block])?,
                };
                self.write(&zeros, block)?;
                self.zeros = Some(zeros);
            } else {
                self.waiting.resize(self.waiting.len() + count, 0);
                if count == room {
                    self.write_waiting()?;
                }
            }
            left -= count as u64;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.write_waiting()?;
        }
        let end = self.packing.end(&self.sizes);
        self.file.write_all(&end)?;
        self.file.flush()
    }
}
