//! Where a core is written to: a file with holes, or one that is compressed in blocks.

use crate::dump::packing::{BlockSize, PackedBlocks, Packing};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::Path;
use std::thread;

/// Threads that compress: the guest stands still meanwhile, so its processors are free.
const MOST_THREADS: usize = 16;
/// Bytes that each of them gets at a time, so much that starting a thread is nothing beside it.
const SHARE: usize = 4 << 20;

/// Takes a core in order.
pub(super) trait Sink {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// So many zeros.
    fn hole(&mut self, size: u64) -> io::Result<()>;
    /// There is no more.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// The one that the name of a file asks for.
pub(super) fn of_name(path: &Path, file: File) -> io::Result<Box<dyn Sink>> {
    Ok(match Packing::of_path(path) {
        Some(packing) => {
            let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
            let file = BufWriter::with_capacity(1 << 20, file);
            Box::new(Blocks::new(packing, file, threads, SHARE)?)
        }
        None => Box::new(Sparse { file, at: 0 }),
    })
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

/// A file that is compressed in blocks, many at a time.
struct Blocks<F> {
    packing: Packing,
    file: F,
    threads: usize,
    /// Bytes that wait at most, whole blocks.
    most: usize,
    /// What waits to be compressed; its last block may be one that is only begun.
    waiting: Vec<u8>,
    /// Where in it, by whole blocks, there are so many blocks of zeros more.
    zeros: Vec<(usize, u64)>,
    /// A block of zeros, compressed.
    zero_block: Vec<u8>,
    sizes: Vec<BlockSize>,
}

impl<F: Write> Blocks<F> {
    fn new(packing: Packing, file: F, threads: usize, share: usize) -> io::Result<Blocks<F>> {
        Ok(Blocks {
            packing,
            file,
            threads,
            most: (threads * share).next_multiple_of(packing.block()),
            waiting: Vec::new(),
            zeros: Vec::new(),
            zero_block: packing.pack_zeros()?,
            sizes: Vec::new(),
        })
    }

    /// Puts something behind what waits, no more than there is room for; afterwards there is room again.
    fn fill(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        put(&mut self.waiting);
        if self.waiting.len() < self.most { Ok(()) } else { self.write_waiting() }
    }

    /// Compresses what waits, each thread its share, and writes it.
    fn write_waiting(&mut self) -> io::Result<()> {
        let parts = pack(self.packing, &self.waiting, self.threads)?;
        let blocks = parts.iter().flat_map(|part| {
            part.sizes.iter().scan(part.bytes.as_slice(), |rest, size| {
                let (block, later) = rest.split_at(usize::try_from(size.packed).unwrap_or(0));
                *rest = later;
                Some((block, *size))
            })
        });
        let mut zeros = self.zeros.drain(..).peekable();
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let zero = BlockSize { packed: size(self.zero_block.len()), plain: size(self.packing.block()) };
        // With what may stand behind the last.
        for (index, block) in blocks.map(Some).chain([None]).enumerate() {
            while let Some((_, count)) = zeros.next_if(|(before, _)| *before == index) {
                for _ in 0..count {
                    self.sizes.push(zero);
                    self.file.write_all(&self.zero_block)?;
                }
            }
            if let Some((block, size)) = block {
                self.sizes.push(size);
                self.file.write_all(block)?;
            }
        }
        drop(zeros);
        self.waiting.clear();
        Ok(())
    }
}

/// Compresses blocks, each thread as many as the others.
fn pack(packing: Packing, plain: &[u8], threads: usize) -> io::Result<Vec<PackedBlocks>> {
    let share = plain.len().div_ceil(threads).next_multiple_of(packing.block()).max(packing.block());
    thread::scope(|scope| {
        let start = |share| {
            thread::Builder::new().name("compress".into()).spawn_scoped(scope, move || packing.pack(share))
        };
        let shares = plain.chunks(share).map(start).collect::<io::Result<Vec<_>>>()?;
        let failed = |_| Err(io::Error::other("compressing failed"));
        shares.into_iter().map(|share| share.join().unwrap_or_else(failed)).collect()
    })
}

impl<F: Write> Sink for Blocks<F> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.most - self.waiting.len()));
            self.fill(|waiting| waiting.extend(now))?;
            rest = later;
        }
        Ok(())
    }

    fn hole(&mut self, size: u64) -> io::Result<()> {
        let block = self.packing.block();
        let small = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        // To the end of a block that is begun, whole blocks, and the beginning of one.
        let room = self.waiting.len().next_multiple_of(block) - self.waiting.len();
        let first = small(size).min(room);
        self.fill(|waiting| waiting.resize(waiting.len() + first, 0))?;
        let left = size - first as u64;
        if left >= block as u64 {
            self.zeros.push((self.waiting.len() / block, left / block as u64));
        }
        let last = small(left % block as u64);
        self.fill(|waiting| waiting.resize(waiting.len() + last, 0))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.write_waiting()?;
        let end = self.packing.end(&self.sizes);
        self.file.write_all(&end)?;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::read::packed::Packed;
    use crate::source::Source;
    use std::sync::Arc;

    /// Data and holes of any size, and what they are together.
    fn pieces(block: usize) -> (Vec<(Vec<u8>, usize)>, Vec<u8>) {
        let mut random = 3u32;
        let mut next = |most: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            usize::try_from(random >> 8).unwrap() % most
        };
        let pieces: Vec<(Vec<u8>, usize)> = (0..9)
            .map(|index| {
                let most = if index % 3 == 0 { 2 * block } else { block / 2 };
                let text = (0..next(most)).map(|at| u8::try_from((at / 5 + index) % 256).unwrap()).collect();
                (text, [next(block), block, 0, next(3 * block)][index % 4])
            })
            .collect();
        let plain = pieces.iter().flat_map(|(data, hole)| data.iter().copied().chain(vec![0; *hole]));
        let plain = plain.collect();
        (pieces, plain)
    }

    #[test]
    fn threads_do_not_matter() {
        for packing in [Packing::Gzip, Packing::Zstandard] {
            let (pieces, plain) = pieces(packing.block());
            let packed = |threads: usize, share: usize| {
                let mut file = Vec::new();
                let mut blocks = Box::new(Blocks::new(packing, &mut file, threads, share).unwrap());
                for (data, hole) in &pieces {
                    blocks.data(data).unwrap();
                    blocks.hole(*hole as u64).unwrap();
                }
                blocks.finish().unwrap();
                file
            };
            let alone = packed(1, 1);
            for (threads, share) in [(2, 1), (3, packing.block())] {
                assert!(packed(threads, share) == alone, "{packing:?} {threads} {share}");
            }
            let source = Packed::new(Arc::new(alone), packing).unwrap();
            let mut unpacked = vec![0; plain.len() + 1];
            assert_eq!(source.read_at(0, &mut unpacked).unwrap(), plain.len());
            assert!(unpacked[..plain.len()] == plain, "{packing:?}");
        }
    }

    #[test]
    fn zeros_take_little() {
        const ZEROS: u64 = 256 << 20;
        // Of gzip's best, one bit for 129 bytes, and of what each of its members needs; what Zstandard has is less.
        for (packing, most) in [(Packing::Gzip, ZEROS / 500), (Packing::Zstandard, ZEROS / 10_000)] {
            let mut file = Vec::new();
            let mut blocks = Box::new(Blocks::new(packing, &mut file, 1, 1).unwrap());
            blocks.hole(ZEROS).unwrap();
            blocks.finish().unwrap();
            assert!((file.len() as u64) < most, "{packing:?}: {} bytes", file.len());
        }
    }

    /// A disk that is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let mut blocks = Blocks::new(Packing::Gzip, Full, 2, 1).unwrap();
        let error = blocks.data(&[1; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
