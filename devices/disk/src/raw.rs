//! A raw image, or a block device: the file's bytes are the disk's.

use crate::file::{Clear, Medium, SECTOR, clear, read_some, write_zeros};
use crate::kept::Kept;
use crate::layer::Layer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The image. A file that ends within a sector is as if zeros followed.
#[derive(Debug)]
pub struct Raw {
    kept: Kept,
    /// Bytes of the file when it was opened.
    length: u64,
}

impl Raw {
    pub fn new(medium: Medium) -> Raw {
        Raw { length: medium.length, kept: Kept::new(medium) }
    }
}

impl Layer for Raw {
    fn size(&self) -> u64 {
        // A block device has no part of a sector.
        self.length.next_multiple_of(SECTOR)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let there = read_some(self.kept.file(), offset, bytes)?;
        self.kept.check_read(offset, bytes.len() as u64, there == bytes.len())?;
        bytes[there..].fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.kept.check_write()?;
        self.kept.file().write_all_at(bytes, offset)?;
        self.kept.has_written(offset + bytes.len() as u64);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.kept.sync()
    }

    fn file(&self) -> Option<&File> {
        // One that was cut is read here alone.
        self.kept.check_write().ok().map(|()| self.kept.file())
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.kept.check_write()?;
        // A host that cannot keeps them.
        clear(self.kept.file(), offset, count, Clear::Hole).map(drop)
    }

    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        self.kept.check_write()?;
        let (file, ways) = (self.kept.file(), [Clear::Hole, Clear::Zeros]);
        for how in ways.into_iter().filter(|how| gives_room || *how == Clear::Zeros) {
            if clear(file, offset, count, how)? {
                return Ok(());
            }
        }
        write_zeros(file, offset, count)?;
        self.kept.has_written(offset + count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::temporary;

    #[test]
    fn it_forgets_no_flush_that_has_failed() {
        let file = temporary(&std::env::temp_dir()).unwrap();
        file.set_len(512).unwrap();
        let raw = Raw::new(Medium { file, length: 512 });
        raw.flush().unwrap();
        raw.kept.sync_by(|_| Err(io::ErrorKind::Other.into())).unwrap_err();
        assert!(raw.flush().is_err() && raw.flush().is_err());
    }
}
