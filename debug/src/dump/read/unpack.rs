//! Files that are compressed in one piece, as `gzip` and `zstd` make them: nothing in one can be found without
//! all that is in front of it, so it is unpacked once, into a file that is read then.
//!
//! How large that becomes is what the file says; so zeros become holes, and a part of the file system is
//! left free.
//!
//! Source: RFC 1952, "File format"; RFC 8878, "Frames", "Skippable Frames".

use crate::dump::packing::Packing;
use crate::dump::progress::Progress;
use crate::source::Source;
use flate2::bufread::MultiGzDecoder;
use nix::sys::statvfs::fstatvfs;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

/// Bytes that are unpacked at a time, whole pages.
const AT_ONCE: usize = 1 << 20;
const PAGE: usize = 4096;
/// Bytes that are written between two looks at how much room there is.
const LOOK: u64 = 16 << 20;
/// What is left free of a file system: one of so many parts, and of a large one so many bytes.
const LEFT_FREE: u64 = 20;
const LEFT_FREE_AT_MOST: u64 = 1 << 30;

/// Why a file was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// What is compressed is not right.
    #[error("{packing} data that is damaged, or cut off: {why}")]
    Damaged {
        /// How it is compressed.
        packing: &'static str,
        /// What is wrong.
        why: String,
    },
    /// There is no room for it.
    #[error("there is no room for what it unpacks to, more than {} MiB", .0 >> 20)]
    NoRoom(u64),
    /// It cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Whoever watches wants no more of it.
    #[error("it was broken off")]
    Cancelled,
}

/// A file's bytes in order, which are counted.
struct InOrder<'a> {
    source: &'a dyn Source,
    at: &'a Cell<u64>,
}

impl Read for InOrder<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(self.at.get(), bytes)?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

/// Where it is unpacked to.
struct Output<'a> {
    file: &'a File,
    packing: &'static str,
    /// Bytes so far, and of these when the room was looked at.
    size: u64,
    looked: u64,
    watch: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl Output<'_> {
    /// Takes all that there is.
    fn take(&mut self, from: &mut dyn Read) -> Result<(), UnpackError> {
        let mut buffer = vec![0; AT_ONCE];
        loop {
            let mut filled = 0;
            while filled < AT_ONCE {
                match from.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.damaged(&error.to_string())),
                }
            }
            if (self.watch)().is_break() {
                return Err(UnpackError::Cancelled);
            }
            self.put(&buffer[..filled])?;
            if filled < AT_ONCE {
                return Ok(());
            }
        }
    }

    fn damaged(&self, why: &str) -> UnpackError {
        UnpackError::Damaged { packing: self.packing, why: why.into() }
    }

    /// Writes bytes; pages of zeros stay holes.
    fn put(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let no_room = |error: io::Error, size| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                UnpackError::NoRoom(size)
            }
            _ => error.into(),
        };
        for page in bytes.chunks(PAGE) {
            let end = self.size.checked_add(page.len() as u64).filter(|end| i64::try_from(*end).is_ok());
            let end = end.ok_or(UnpackError::NoRoom(self.size))?;
            if page.iter().any(|byte| *byte != 0) {
                self.look()?;
                self.file.write_all_at(page, self.size).map_err(|error| no_room(error, self.size))?;
                self.looked += page.len() as u64;
            }
            self.size = end;
        }
        Ok(())
    }

    /// Leaves room for others.
    fn look(&mut self) -> Result<(), UnpackError> {
        if self.looked < LOOK {
            return Ok(());
        }
        self.looked = 0;
        let there = fstatvfs(self.file).map_err(io::Error::from)?;
        let bytes = |blocks: u64| blocks.saturating_mul(there.fragment_size());
        match is_little(bytes(there.blocks_available()), bytes(there.blocks())) {
            true => Err(UnpackError::NoRoom(self.size)),
            false => Ok(()),
        }
    }
}

/// Whether what is free of a file system, in bytes, is what is left for others. One that does not count says
/// that it has no bytes at all.
fn is_little(free: u64, all: u64) -> bool {
    free < (all / LEFT_FREE).min(LEFT_FREE_AT_MOST)
}

/// Unpacks a file into another, which is empty; how many bytes that has then. `watch` is told how far it is, by
/// the bytes of what is compressed, and can break it off.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(
    source: &dyn Source,
    packing: Packing,
    file: &File,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<u64, UnpackError> {
    let (at, total) = (Cell::new(0), source.size());
    let mut watch = || watch(Progress { done: at.get(), total });
    let mut output = Output { file, packing: packing.words().0, size: 0, looked: LOOK, watch: &mut watch };
    let mut reader = BufReader::with_capacity(AT_ONCE, InOrder { source, at: &at });
    match packing {
        Packing::Gzip => output.take(&mut MultiGzDecoder::new(reader))?,
        Packing::Zstandard => {
            let mut decoder = FrameDecoder::new();
            while !reader.fill_buf()?.is_empty() {
                frame(&mut reader, &mut decoder, &mut output)?;
            }
        }
    }
    file.set_len(output.size)?;
    Ok(output.size)
}

/// Unpacks a frame, or goes past one that has nothing in it.
fn frame(
    reader: &mut impl BufRead,
    decoder: &mut FrameDecoder,
    output: &mut Output<'_>,
) -> Result<(), UnpackError> {
    match StreamingDecoder::new_with_decoder(&mut *reader, &mut *decoder) {
        Ok(mut frame) => output.take(&mut frame)?,
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
            let skipped = io::copy(&mut reader.take(length.into()), &mut io::sink())?;
            let is_all = skipped == u64::from(length);
            return if is_all { Ok(()) } else { Err(output.damaged("it ends within a frame")) };
        }
        Err(error) => return Err(output.damaged(&error.to_string())),
    }
    let noted = decoder.get_checksum_from_data();
    match noted.is_none() || noted == decoder.get_calculated_checksum() {
        true => Ok(()),
        false => Err(output.damaged("a checksum is wrong")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file in memory: how full a disk is does not matter.
    fn file() -> File {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        memfd_create("unpacked", MFdFlags::MFD_CLOEXEC).unwrap().into()
    }

    #[test]
    fn what_is_left_free() {
        const MIB: u64 = 1 << 20;
        for (free, all, little) in [
            (11 << 30, 252 << 30, false),
            (1023 * MIB, 252 << 30, true),
            (511 * MIB, 10240 * MIB, true),
            (512 * MIB, 10240 * MIB, false),
            (0, 10240 * MIB, true),
            (0, 0, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(is_little(free, all), little, "{free} of {all}");
        }
    }

    fn unpacked(bytes: &[u8], packing: Packing) -> Result<Vec<u8>, UnpackError> {
        let file = file();
        let size = unpack(&bytes.to_vec(), packing, &file, &mut |_| ControlFlow::Continue(()))?;
        let mut plain = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut plain, 0).unwrap();
        Ok(plain)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn some_bytes() -> Vec<u8> {
        let text = (0..3_000_000u32).map(|at| u8::try_from(at / 11 % 251).unwrap());
        text.chain(std::iter::repeat_n(0, 5_000_000)).chain(0..100).collect()
    }

    #[test]
    fn what_is_compressed_in_one_piece_or_in_a_few() {
        use std::os::unix::fs::MetadataExt;
        let plain = some_bytes();
        let (first, second) = plain.split_at(1_234_567);
        // A frame with nothing in it, of any number.
        let skipped = [&0x184d_2a57_u32.to_le_bytes()[..], &5u32.to_le_bytes(), b"12345"].concat();
        for (bytes, packing) in [
            (gzip(&plain), Packing::Gzip),
            ([gzip(first), gzip(second)].concat(), Packing::Gzip),
            (zstd(&plain), Packing::Zstandard),
            ([skipped.clone(), zstd(first), zstd(second), skipped.clone()].concat(), Packing::Zstandard),
        ] {
            assert!(unpacked(&bytes, packing).unwrap() == plain, "{packing:?}");
        }
        // Zeros take no room.
        let file = file();
        unpack(&gzip(&plain), Packing::Gzip, &file, &mut |_| ControlFlow::Continue(())).unwrap();
        let blocks = file.metadata().unwrap().blocks() * 512;
        assert!(blocks < 4_000_000, "{blocks}");
    }

    #[test]
    fn damage_is_told_and_it_can_be_broken_off() {
        let plain = some_bytes();
        for (good, packing) in [(gzip(&plain), Packing::Gzip), (zstd(&plain), Packing::Zstandard)] {
            let mut wrong = good.clone();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 0xff;
            let tail = [&good[..], b"and more"].concat();
            for bytes in [&good[..good.len() - 1], &good[..middle], &wrong, &tail] {
                let error = unpacked(bytes, packing).unwrap_err();
                assert!(matches!(error, UnpackError::Damaged { .. }), "{packing:?} {error}");
                assert!(!error.to_string().contains('\n'), "{error}");
            }
            let mut done = Vec::new();
            let broken = unpack(&good, packing, &file(), &mut |progress| {
                done.push(progress);
                if done.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(broken, Err(UnpackError::Cancelled)));
            assert_eq!(done[0].total, good.len() as u64);
            assert!(done.is_sorted_by_key(|progress| progress.done) && done[0].done > 0, "{done:?}");
        }
    }
}
