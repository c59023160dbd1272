//! The file of an image while it is used: what the host has lost of it, and what somebody has cut off it, is not
//! forgotten.
//!
//! Linux tells of what it could not bring to the disk once: the pages are clean afterwards, and the next `fdatasync` of
//! the same file succeeds, although the bytes are nowhere (fsync(2); Linux `file_check_and_advance_wb_err`). A guest
//! that tries again would take that for its data's being kept. So no such call succeeds any more after one that has
//! failed, whichever queue or table it is for.
//!
//! What somebody has cut off is gone, and what is written behind the cut would make zeros of it. So the greatest length
//! is remembered, which grows by our own writes alone, and the least one that was seen behind that: what lies behind a
//! cut is not read any more, and nothing is written.

use crate::file::{Medium, length};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// An image's file.
#[derive(Debug)]
pub struct Kept {
    file: File,
    /// The host has lost something that was written. Held by whoever has it keep something: of two who do so at once
    /// only one would hear of that.
    has_lost: Mutex<bool>,
    /// How often that was begun.
    begun: AtomicU64,
    /// A block device: nothing is written behind its end.
    is_device: bool,
    /// Bytes that it has had at most.
    greatest: AtomicU64,
    /// Bytes that are left where it has been cut; all numbers else.
    left: AtomicU64,
}

impl Kept {
    pub fn new(medium: Medium) -> Kept {
        // What cannot be asked is looked at as a file is, which tells of the error.
        let is_device = medium.file.metadata().is_ok_and(|it| it.file_type().is_block_device());
        Kept {
            is_device,
            file: medium.file,
            has_lost: Mutex::new(false),
            begun: AtomicU64::new(0),
            greatest: AtomicU64::new(medium.length),
            left: AtomicU64::new(u64::MAX),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// So many bytes from its beginning are what they were, as far as can be seen: all numbers, or where it has been
    /// cut. A file's state is asked for and not its end: to seek there, threads wait for one another.
    fn left(&self) -> io::Result<u64> {
        // In this order: whoever writes behind its end says so afterwards.
        let greatest = self.greatest.load(Ordering::SeqCst);
        let now = if self.is_device { length(&self.file)? } else { self.file.metadata()?.len() };
        if now < greatest {
            self.left.fetch_min(now, Ordering::SeqCst);
        }
        Ok(self.left.load(Ordering::SeqCst))
    }

    /// To be asked behind each reading of so many bytes, of which those count that lie within what the file has had. Where
    /// all of them were there (`is_whole`), it is as long as that, and what is known of it is enough.
    ///
    /// # Errors
    /// Some of them were cut off.
    pub fn check_read(&self, offset: u64, count: u64, is_whole: bool) -> io::Result<()> {
        let left = if is_whole { self.left.load(Ordering::SeqCst) } else { self.left()? };
        if offset.saturating_add(count) > left { Err(cut()) } else { Ok(()) }
    }

    /// To be asked before each writing.
    ///
    /// # Errors
    /// Something was cut off.
    pub fn check_write(&self) -> io::Result<()> {
        let left = if self.is_device { self.left.load(Ordering::SeqCst) } else { self.left()? };
        if left < u64::MAX { Err(cut()) } else { Ok(()) }
    }

    /// Bytes up to here have been written.
    pub fn has_written(&self, end: u64) {
        self.greatest.fetch_max(end, Ordering::SeqCst);
    }

    /// What was written is on the host's disk.
    ///
    /// # Errors
    /// The host's; from the first one on, for good.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_by(File::sync_data)
    }

    pub fn sync_by(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let before = self.begun.load(Ordering::SeqCst);
        let mut has_lost = self.has_lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_lost {
            let why = "the host has lost what was written before, and no flush succeeds any more";
            return Err(io::Error::other(why));
        }
        // Another one that was begun meanwhile has kept this one's bytes as well.
        if self.begun.load(Ordering::SeqCst) > before {
            return Ok(());
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        let synced = sync(&self.file);
        *has_lost = synced.is_err();
        synced
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the image is shorter than it was")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::temporary;

    #[test]
    fn no_flush_succeeds_after_one_that_has_failed() {
        let kept = Kept::new(Medium { file: temporary(&std::env::temp_dir()).unwrap(), length: 0 });
        kept.sync().unwrap();
        let lost = kept.sync_by(|_| Err(io::Error::from_raw_os_error(5)));
        assert_eq!(lost.unwrap_err().raw_os_error(), Some(5));
        for _ in 0..2 {
            let error = kept.sync().unwrap_err();
            assert!(error.to_string().contains("has lost what was written"), "{error}");
        }
    }
}
