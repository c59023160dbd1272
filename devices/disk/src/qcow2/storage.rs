//! A file, as `imago` reads and writes it: what it reads behind the file's end is an error, where the library's own
//! files have zeros.
#![allow(unsafe_code)] // The library's trait calls these functions unsafe; nothing in them is.

use crate::file::{Clear, SECTOR, clear, length, write_zeros};
use crate::kept::Kept;
use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use rustix::io::{Errno, preadv, pwritev};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

/// The kernel takes no more at once (`UIO_MAXIOV`).
const MOST_BUFFERS: usize = 1024;

/// A file.
#[derive(Debug)]
pub struct Bytes {
    kept: Arc<Kept>,
    /// Bytes of what is allocated at once: the file's last one need not be whole.
    cluster: u64,
    is_writable: bool,
    helper: CommonStorageHelper,
}

impl Bytes {
    pub fn new(kept: Arc<Kept>, cluster: u64, is_writable: bool) -> Bytes {
        Bytes { kept, cluster, is_writable, helper: CommonStorageHelper::default() }
    }

    /// What a file that ends before these bytes has for them: zeros as far as its last cluster goes.
    ///
    /// # Errors
    /// They go further.
    fn check_end(&self, offset: u64, count: u64) -> io::Result<()> {
        self.kept.check_read(offset, count, false)?;
        let end = length(self.kept.file())?.next_multiple_of(self.cluster);
        if offset.checked_add(count).is_none_or(|wanted| wanted > end) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image is damaged: what should be there is behind its end",
            ));
        }
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable { self.kept.check_write() } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the image")
    }
}

impl Storage for Bytes {
    fn size(&self) -> io::Result<u64> {
        // As the disk of a raw image: whole sectors.
        Ok(length(self.kept.file())?.next_multiple_of(SECTOR))
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let (mut rest, start, whole) = (bufv.len(), offset, bufv.len());
        let mut buffers = bufv.into_inner();
        // Nothing would be left of a vector of empty ones.
        buffers.retain(|buffer| !buffer.is_empty());
        let mut buffers = &mut buffers[..];
        while !buffers.is_empty() {
            let some = buffers.len().min(MOST_BUFFERS);
            match preadv(self.kept.file(), &mut buffers[..some], offset) {
                Ok(0) => {
                    self.check_end(offset, rest)?;
                    buffers.iter_mut().for_each(|buffer| buffer.fill(0));
                    break;
                }
                Ok(count) => {
                    offset += count as u64;
                    rest -= count as u64;
                    IoSliceMut::advance_slices(&mut buffers, count);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.kept.check_read(start, whole, true)
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut buffers = bufv.into_inner();
        buffers.retain(|buffer| !buffer.is_empty());
        let mut buffers = &mut buffers[..];
        while !buffers.is_empty() {
            let some = buffers.len().min(MOST_BUFFERS);
            match pwritev(self.kept.file(), &buffers[..some], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    self.kept.has_written(offset);
                    IoSlice::advance_slices(&mut buffers, count);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        if clear(self.kept.file(), offset, length, Clear::Zeros)? {
            self.kept.has_written(offset + length);
            return Ok(());
        }
        write_zeros(self.kept.file(), offset, length)?;
        self.kept.has_written(offset + length);
        Ok(())
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        write_zeros(self.kept.file(), offset, length)?;
        self.kept.has_written(offset + length);
        Ok(())
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        clear(self.kept.file(), offset, length, Clear::Hole).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.is_writable { self.kept.sync() } else { Ok(()) }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{Medium, temporary};

    #[test]
    fn it_forgets_no_flush_that_has_failed() {
        let medium = Medium { file: temporary(&std::env::temp_dir()).unwrap(), length: 0 };
        let bytes = Bytes::new(Arc::new(Kept::new(medium)), SECTOR, true);
        bytes.sync().unwrap();
        bytes.kept.sync_by(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
        assert!(bytes.sync().is_err() && bytes.sync().is_err());
    }
}
