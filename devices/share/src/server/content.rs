//! What is in files.

use super::{Body, HEADER, MOST_WRITTEN, Outcome, Reply, Server};
use crate::handle::Opened;
use crate::protocol::{
    CopyFileRangeIn, FSYNC_FDATASYNC, FallocateIn, FsyncIn, LseekIn, LseekOut, ReadIn, WRITE_CACHE, WriteIn,
    WriteOut,
};
use crate::request::Request;
use rustix::fs::{self, FallocateFlags, OFlags, SeekFrom};
use rustix::io::{self, Errno, ReadWriteFlags};
use std::io::IoSlice;
use std::sync::Arc;

/// How much is read at once.
const PIECE: usize = 256 << 10;
/// The most that is copied at once: the guest asks again for what is left.
const MOST_COPIED: u64 = 16 << 20;

impl Server {
    pub(super) fn read(&mut self, mut request: Request<'_>, reply: &mut dyn Reply) -> Outcome {
        let read: ReadIn = request.take()?;
        let file = match self.handles.get(read.fh)? {
            Opened::File(fd) => Arc::clone(fd),
            Opened::Folder(_) => return Err(Errno::ISDIR),
            Opened::Covered => return Ok(Body::empty()),
        };
        let wanted = usize::try_from(read.size).map_err(|_| Errno::INVAL)?;
        let wanted = wanted.min(reply.room().saturating_sub(HEADER));
        if self.buffer.is_empty() {
            self.buffer = vec![0; PIECE];
        }
        let mut done = 0;
        while done < wanted {
            let piece = (wanted - done).min(PIECE);
            let offset = read.offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            let count = match io::pread(&*file, &mut self.buffer[..piece], offset) {
                Err(Errno::INTR) => continue,
                // What came before is not lost.
                Err(_) if done > 0 => break,
                count => count?,
            };
            reply.write(HEADER + done, &self.buffer[..count]);
            done += count;
            if count < piece {
                break;
            }
        }
        Ok(Body::Placed(done))
    }

    pub(super) fn write(&mut self, mut request: Request<'_>) -> Outcome {
        let write: WriteIn = request.take()?;
        let bytes = request.bytes(write.size)?;
        if write.size > MOST_WRITTEN {
            return Err(Errno::INVAL);
        }
        let file = self.handles.file(write.fh)?;
        self.drop_set_id(&*file)?;
        let appends = write.write_flags & WRITE_CACHE == 0
            && OFlags::from_bits_retain(write.flags).contains(OFlags::APPEND);
        let mut done = 0;
        while done < bytes.len() {
            let offset = write.offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            let written = if appends {
                io::pwritev2(&*file, &[IoSlice::new(&bytes[done..])], offset, ReadWriteFlags::APPEND)
            } else {
                io::pwrite(&*file, &bytes[done..], offset)
            };
            match written {
                Err(Errno::INTR) => {}
                Err(error) if done == 0 => return Err(error),
                // What came before is not lost.
                Err(_) | Ok(0) => break,
                Ok(count) => done += count,
            }
        }
        Ok(Body::of(&WriteOut { size: u32::try_from(done).unwrap_or(0), padding: 0 }))
    }

    pub(super) fn fsync(&mut self, mut request: Request<'_>) -> Outcome {
        let sync: FsyncIn = request.take()?;
        match self.handles.get(sync.fh)? {
            Opened::Covered => {}
            Opened::File(fd) | Opened::Folder(fd) if sync.fsync_flags & FSYNC_FDATASYNC != 0 => {
                fs::fdatasync(&**fd)?
            }
            Opened::File(fd) | Opened::Folder(fd) => fs::fsync(&**fd)?,
        }
        Ok(Body::empty())
    }

    pub(super) fn lseek(&mut self, mut request: Request<'_>) -> Outcome {
        const DATA: u32 = 3;
        const HOLE: u32 = 4;
        let seek: LseekIn = request.take()?;
        if i64::try_from(seek.offset).is_err() {
            return Err(Errno::INVAL);
        }
        let to = match seek.whence {
            DATA => SeekFrom::Data(seek.offset),
            HOLE => SeekFrom::Hole(seek.offset),
            // The guest knows these by itself.
            _ => return Err(Errno::INVAL),
        };
        let offset = match self.handles.get(seek.fh)? {
            Opened::File(fd) => fs::seek(&**fd, to)?,
            Opened::Folder(_) => return Err(Errno::INVAL),
            Opened::Covered => return Err(Errno::NXIO),
        };
        Ok(Body::of(&LseekOut { offset }))
    }

    pub(super) fn fallocate(&mut self, mut request: Request<'_>) -> Outcome {
        let allocate: FallocateIn = request.take()?;
        let mode = FallocateFlags::from_bits(allocate.mode).ok_or(Errno::OPNOTSUPP)?;
        let served = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !served.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.handles.file(allocate.fh)?;
        self.drop_set_id(&*file)?;
        fs::fallocate(&*file, mode, allocate.offset, allocate.length)?;
        Ok(Body::empty())
    }

    pub(super) fn copy_file_range(&mut self, mut request: Request<'_>) -> Outcome {
        let copy: CopyFileRangeIn = request.take()?;
        if copy.flags != 0 || i64::try_from(copy.off_in).is_err() || i64::try_from(copy.off_out).is_err() {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.file(copy.fh_in)?, self.handles.file(copy.fh_out)?);
        self.drop_set_id(&*to)?;
        let (mut at, mut onto) = (copy.off_in, copy.off_out);
        let count = usize::try_from(copy.len.min(MOST_COPIED)).map_err(|_| Errno::INVAL)?;
        let copied = fs::copy_file_range(&*from, Some(&mut at), &*to, Some(&mut onto), count)?;
        Ok(Body::of(&WriteOut { size: u32::try_from(copied).unwrap_or(0), padding: 0 }))
    }
}
