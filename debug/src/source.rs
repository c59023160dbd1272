//! Files that are read: dumps, and those of kernels.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file, or something like one, of a fixed size. It is read by position and not mapped: a file that
/// somebody cuts off meanwhile is an error then, and not the end of the process.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Its size, bytes.
    fn size(&self) -> u64;

    /// Reads from an offset; how many bytes. Fewer than asked for only at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// The pieces within `length` bytes from `offset` that may hold something, first and last-plus-one
    /// offset; the rest is holes.
    fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, u64)> {
        vec![(offset, offset.saturating_add(length))]
    }
}

/// A file on disk.
#[derive(Debug)]
pub struct OnDisk {
    file: File,
    size: u64,
}

impl OnDisk {
    /// The file as it is now.
    ///
    /// # Errors
    /// What the system says; also for what has no size, as a folder or a pipe.
    pub fn new(file: File) -> io::Result<OnDisk> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(OnDisk { file, size: metadata.len() })
    }
}

/// Pieces that one question about holes may have.
const MOST_PIECES: usize = 1 << 20;

impl Source for OnDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, u64)> {
        use nix::errno::Errno;
        use nix::unistd::{Whence, lseek};
        let end = offset.saturating_add(length);
        let seek = |at: u64, whence| {
            let found = lseek(&self.file, i64::try_from(at).map_err(|_| Errno::EINVAL)?, whence)?;
            u64::try_from(found).map_err(|_| Errno::EINVAL)
        };
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < end && pieces.len() < MOST_PIECES {
            let start = match seek(at, Whence::SeekData) {
                Ok(start) => start,
                // Behind the last data there is none to be found.
                Err(Errno::ENXIO) => return pieces,
                // Not every file system knows of holes.
                Err(_) => break,
            };
            if start >= end {
                return pieces;
            }
            let hole = seek(start, Whence::SeekHole).ok();
            let stop = hole.unwrap_or(end).min(end);
            pieces.push((start.max(offset), stop));
            at = stop;
        }
        if at < end {
            pieces.push((at, end));
        }
        pieces
    }
}

/// Bytes in memory, for tests and fuzzing.
impl Source for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let count = bytes.len().min(self.len() - start);
        bytes[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }
}
