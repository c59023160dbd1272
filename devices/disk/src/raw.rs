//! A raw image, or a block device: the file's bytes are the disk's.

use crate::file::{Clear, Medium, SECTOR, clear, read_some, write_zeros};
use crate::layer::Layer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The image. A file that ends within a sector is as if zeros followed.
#[derive(Debug)]
pub struct Raw(Medium);

impl Raw {
    pub fn new(medium: Medium) -> Raw {
        Raw(medium)
    }
}

impl Layer for Raw {
    fn size(&self) -> u64 {
        // A block device has no part of a sector.
        self.0.length.next_multiple_of(SECTOR)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let there = read_some(&self.0.file, offset, bytes)?;
        let rest = &mut bytes[there..];
        if !rest.is_empty() {
            if offset + (there as u64) < self.0.length {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image is shorter than it was"));
            }
            rest.fill(0);
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.file.sync_data()
    }

    fn file(&self) -> Option<&File> {
        Some(&self.0.file)
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        // A host that cannot keeps them.
        clear(&self.0.file, offset, count, Clear::Hole).map(drop)
    }

    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        let (file, ways) = (&self.0.file, [Clear::Hole, Clear::Zeros]);
        for how in ways.into_iter().filter(|how| gives_room || *how == Clear::Zeros) {
            if clear(file, offset, count, how)? {
                return Ok(());
            }
        }
        write_zeros(file, offset, count)
    }
}
