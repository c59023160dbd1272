//! Files and block devices, opened so that nothing waits and nothing else is opened.

use crate::error::{DiskError, Qcow2Error};
use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The smallest unit of a disk, bytes.
pub const SECTOR: u64 = 512;

/// A file or a block device that is open.
#[derive(Debug)]
pub struct Medium {
    pub file: File,
    /// Bytes when it was opened, of which there are some.
    pub length: u64,
}

const QUIET: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Refuses what has no bytes at offsets.
fn check_kind(kind: FileType) -> Result<(), DiskError> {
    Err(DiskError::Kind(match kind {
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => "a folder",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a device of characters",
        _ => "something else",
    }))
}

impl Medium {
    /// Opens what a user has named.
    ///
    /// # Errors
    /// [`DiskError::Open`], [`DiskError::OpenToWrite`], [`DiskError::Kind`], [`DiskError::Empty`].
    pub fn open(path: &Path, is_written: bool) -> Result<Medium, DiskError> {
        // Some devices do things when they are opened, so it is looked at before.
        let stat = fs::stat(path).map_err(|error| DiskError::Open(error.into()))?;
        check_kind(FileType::from_raw_mode(stat.st_mode))?;
        let access = if is_written { OFlags::RDWR } else { OFlags::RDONLY };
        let file = fs::open(path, access | QUIET, Mode::empty()).map_err(|error| {
            if is_written { DiskError::OpenToWrite(error.into()) } else { DiskError::Open(error.into()) }
        })?;
        Medium::new(file)
    }

    /// Opens a backing file, to be read: below a folder, wherever links lead.
    ///
    /// # Errors
    /// Likewise, and [`Qcow2Error::Outside`].
    pub fn open_beneath(folder: impl AsFd, path: &Path) -> Result<Medium, DiskError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = |flags| fs::openat2(&folder, path, flags, Mode::empty(), resolve);
        let said = |error| match error {
            Errno::XDEV => DiskError::Qcow2(Qcow2Error::Outside),
            error => DiskError::Open(error.into()),
        };
        let looked = open(OFlags::PATH | OFlags::CLOEXEC).map_err(said)?;
        check_kind(FileType::from_raw_mode(
            fs::fstat(&looked).map_err(|error| DiskError::Open(error.into()))?.st_mode,
        ))?;
        Medium::new(open(OFlags::RDONLY | QUIET).map_err(said)?)
    }

    fn new(file: OwnedFd) -> Result<Medium, DiskError> {
        let stat = fs::fstat(&file).map_err(|error| DiskError::Open(error.into()))?;
        check_kind(FileType::from_raw_mode(stat.st_mode))?;
        let file = File::from(file);
        // A block device's end is where its size is (`BLKGETSIZE64` has the same number).
        let length = length(&file).map_err(DiskError::Open)?;
        if length == 0 {
            return Err(DiskError::Empty);
        }
        Ok(Medium { file, length })
    }

    /// What tells it from every other.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fs::fstat(&self.file)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Its first bytes, as many as there are.
    pub fn beginning(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let there = read_some(&self.file, 0, &mut bytes)?;
        bytes.truncate(there);
        Ok(bytes)
    }
}

/// The length of a file or block device, bytes.
pub fn length(mut file: &File) -> io::Result<u64> {
    // Nobody reads or writes by its position.
    file.seek(SeekFrom::End(0))
}

/// Reads until `bytes` are full or the file ends; how many there were.
pub fn read_some(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut there = 0;
    while there < bytes.len() {
        match file.read_at(&mut bytes[there..], offset + there as u64) {
            Ok(0) => break,
            Ok(count) => there += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}

/// A range of a file that is to take no room, or to be zeros: by the host's own means, as far as it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Gives the room back; they read as zeros.
    Hole,
    /// Zeros that keep their room.
    Zeros,
}

/// Clears a range; whether the host could.
pub fn clear(file: &File, offset: u64, count: u64, how: Clear) -> io::Result<bool> {
    use rustix::fs::FallocateFlags;
    let flags = match how {
        Clear::Hole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Clear::Zeros => FallocateFlags::ZERO_RANGE,
    };
    loop {
        match fs::fallocate(file, flags, offset, count) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            // The last of these is a block device's word for a range that is not of its blocks.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes zeros, as bytes.
pub fn write_zeros(file: &File, mut offset: u64, count: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let end = offset + count;
    while offset < end {
        let part = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}

/// Where temporary files are: `TMPDIR`, else a folder that is on a disk as a rule.
pub fn temporary_folder() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map_or_else(
        || if Path::new("/var/tmp").is_dir() { "/var/tmp".into() } else { "/tmp".into() },
        PathBuf::from,
    )
}

/// A file without a name, which is gone with this process.
pub fn temporary(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    match fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // A file system that has no such files: one whose name is taken away at once.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_and_unlinked(folder),
        Err(error) => Err(error.into()),
    }
}

fn named_and_unlinked(folder: &Path) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    for attempt in 0..100u32 {
        let path = folder.join(format!(".vmm-overlay-{}-{attempt}", std::process::id()));
        match fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                fs::unlink(&path)?;
                return Ok(file.into());
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
