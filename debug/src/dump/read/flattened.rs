//! Flattened dumps: a file as a list of pieces to be written, which can go through a pipe. QEMU writes
//! its compressed kdumps so, and `makedumpfile -F`.
//!
//! Source: makedumpfile, `makedumpfile.h` (`struct makedumpfile_header`, `struct makedumpfile_data_header`).

use super::source::read_all;
use crate::dump::contents::DumpError;
use crate::source::Source;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// What such a file begins with.
pub const SIGNATURE: &[u8] = b"makedumpfile";
/// Bytes in front of the first piece.
const HEADER: u64 = 4096;
/// Bytes in front of each piece: its offset and its size, big-endian.
const PIECE_HEADER: u64 = 16;
/// Pieces that one file may have: of 64 GiB, as QEMU writes them.
const MOST_PIECES: u64 = 1 << 22;
/// Pieces with nothing in them that one file may have: a hole of a file would be nothing else, however large.
const MOST_EMPTY: u64 = 64;

/// The file that a flattened one describes.
#[derive(Debug)]
pub struct Flattened {
    source: Arc<dyn Source>,
    /// By offset: size, and where it stands. They do not overlap.
    pieces: BTreeMap<u64, (u64, u64)>,
    size: u64,
}

impl Flattened {
    /// Finds the pieces of a flattened file.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn new(source: Arc<dyn Source>) -> Result<Flattened, DumpError> {
        let mut result = Flattened { pieces: BTreeMap::new(), size: 0, source: Arc::clone(&source) };
        let mut at = HEADER;
        let (mut pieces, mut empty) = (0, 0);
        loop {
            let header = read_all(&*source, at, PIECE_HEADER, "the header of a flattened dump's piece")?;
            let number = |from: usize| arch::bytes::array_at(&header, from).map_or(0, u64::from_be_bytes);
            let (offset, size) = (number(0), number(8));
            if offset == u64::MAX {
                return Ok(result);
            }
            let place = at + PIECE_HEADER;
            let malformed = |what: &str| DumpError::Malformed { what: what.into(), offset: at };
            let end = offset.checked_add(size).filter(|end| *end <= i64::MAX.cast_unsigned());
            let end = end.ok_or_else(|| malformed("a piece of a flattened dump that goes past all files"))?;
            if place.checked_add(size).is_none_or(|end| end > source.size()) {
                return Err(DumpError::Truncated { what: "a flattened dump's piece", offset: at });
            }
            pieces += 1;
            empty += u64::from(size == 0);
            if pieces > MOST_PIECES || empty > MOST_EMPTY {
                return Err(malformed(
                    "a flattened dump of too many pieces, or too many with nothing in them",
                ));
            }
            result.insert(offset, size, place);
            result.size = result.size.max(end);
            at = place + size;
        }
    }

    /// Puts a piece over what is there.
    fn insert(&mut self, offset: u64, size: u64, place: u64) {
        let end = offset + size;
        let mut over: Vec<(u64, (u64, u64))> = Vec::new();
        for (start, piece) in self.pieces.range(..end).rev() {
            if start + piece.0 <= offset {
                break;
            }
            over.push((*start, *piece));
        }
        for (start, (length, at)) in over {
            self.pieces.remove(&start);
            if start < offset {
                self.pieces.insert(start, (offset - start, at));
            }
            if start + length > end {
                self.pieces.insert(end, (start + length - end, at + (end - start)));
            }
        }
        if size > 0 {
            self.pieces.insert(offset, (size, place));
        }
    }
}

impl Source for Flattened {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        let bytes = &mut bytes[..wanted];
        // What no piece has is zeros, as in a file with holes.
        bytes.fill(0);
        let end = offset + wanted as u64;
        let before = self.pieces.range(..=offset).next_back();
        for (start, (size, place)) in before.into_iter().chain(self.pieces.range(offset.saturating_add(1)..))
        {
            if *start >= end {
                break;
            }
            let (from, to) = ((*start).max(offset), (start + size).min(end));
            if from < to {
                let piece =
                    usize::try_from(from - offset).unwrap_or(0)..usize::try_from(to - offset).unwrap_or(0);
                let wanted = piece.len();
                if self.source.read_at(place + (from - start), &mut bytes[piece])? < wanted {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flattened(pieces: &[(u64, &[u8])]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.resize(4096, 0);
        for (offset, piece) in pieces {
            bytes.extend(offset.to_be_bytes());
            bytes.extend((piece.len() as u64).to_be_bytes());
            bytes.extend(*piece);
        }
        bytes.extend([0xff; 16]);
        bytes
    }

    fn content(pieces: &[(u64, &[u8])]) -> Vec<u8> {
        let file = Flattened::new(Arc::new(flattened(pieces))).unwrap();
        let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
        assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
        // A byte at a time gives the same.
        for (at, byte) in (0u64..).zip(&bytes) {
            let mut one = [0];
            assert_eq!((file.read_at(at, &mut one).unwrap(), one[0]), (1, *byte));
        }
        assert_eq!(file.read_at(file.size(), &mut [0]).unwrap(), 0);
        bytes
    }

    #[test]
    fn later_pieces_lie_over_earlier_ones() {
        assert_eq!(content(&[(0, b"abcdef"), (8, b"ij")]), b"abcdef\0\0ij");
        assert_eq!(content(&[(0, b"abcdef"), (2, b"XY")]), b"abXYef");
        assert_eq!(content(&[(2, b"cdef"), (0, b"XYZ"), (5, b"!!")]), b"XYZde!!");
        assert_eq!(content(&[(1, b"b"), (3, b"d"), (5, b"f"), (0, b"======")]), b"======");
        assert_eq!(content(&[(0, b"ab"), (1, b"")]), b"ab");
    }

    #[test]
    fn damage_is_told() {
        let whole = flattened(&[(0, b"abcdef")]);
        for end in 4096..whole.len() - 1 {
            assert!(Flattened::new(Arc::new(whole[..end].to_vec())).is_err(), "{end}");
        }
        // A hole.
        let mut sparse = flattened(&[]);
        sparse.truncate(4096);
        sparse.resize(64 << 10, 0);
        let told = Flattened::new(Arc::new(sparse)).map(|file| file.size);
        assert!(told.unwrap_err().to_string().contains("too many"));
        let mut wild = whole.clone();
        wild[4104..4112].fill(0xff);
        assert!(Flattened::new(Arc::new(wild)).is_err());
    }
}
