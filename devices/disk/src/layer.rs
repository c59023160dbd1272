//! What holds a disk's bytes.

use std::fmt::Debug;
use std::fs::File;
use std::io;

/// What holds a disk's bytes. Whoever calls stays within its size, and writes to none that is only read.
pub trait Layer: Send + Sync + Debug {
    /// Bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Reads all of `bytes`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes all of them.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// What was written is on the host's disk afterwards.
    fn flush(&self) -> io::Result<()>;

    /// The file, where its bytes are the disk's.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Needs these bytes no more: they read as anything that was there before, or as zeros.
    fn discard(&self, offset: u64, count: u64) -> io::Result<()>;

    /// Makes them zeros; `gives_room`: they may take no room afterwards.
    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()>;
}
