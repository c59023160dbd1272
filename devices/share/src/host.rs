//! What is asked of the host: the few calls by which files below the folder are reached, each so that it cannot lead
//! out of it, cannot wait, and touches nothing but files and folders.

use crate::protocol::{Attr, SxTime};
use crate::request::Name;
use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags,
    StatxTimestamp,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// What cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The folder.
    #[error("{0}")]
    Folder(std::io::Error),
    /// Where descriptors are opened anew.
    #[error("/proc/self/fd: {0} (a shared folder needs /proc)")]
    NoProc(std::io::Error),
    /// A guest that may write could give what is covered another name.
    #[error("a folder that the guest may write to has nothing covered")]
    Writable,
    /// The call that keeps within a folder.
    #[error("this host refuses openat2, by which a shared folder is kept to ({0}; Linux has it from 5.6 on)")]
    NoOpenat2(std::io::Error),
}

/// How names are looked up: one component, below the folder that it is in, whatever is done to it meanwhile.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What every file is opened with: nothing waits, and no terminal becomes the monitor's.
const QUIET: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW);

/// What tells one file of the host's from every other, also from one that has its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    device: (u32, u32),
    number: u64,
    kind: u32,
    born: (i64, u32),
}

/// What the host says of a file.
#[derive(Clone, Copy)]
pub struct Stat(pub Statx);

impl fmt::Debug for Stat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stat")
            .field("ino", &self.0.stx_ino)
            .field("mode", &self.0.stx_mode)
            .finish_non_exhaustive()
    }
}

impl Stat {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    /// The bits of its mode that are not its kind.
    pub fn permissions(&self) -> u32 {
        u32::from(self.0.stx_mode) & 0o7777
    }

    /// What no other file has at the same time, as long as both are held.
    fn number(&self) -> (u32, u32, u64) {
        (self.0.stx_dev_major, self.0.stx_dev_minor, self.0.stx_ino)
    }

    pub fn identity(&self) -> Identity {
        let stat = &self.0;
        let is_known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if is_known { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
        Identity {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
            kind: u32::from(stat.stx_mode) & 0o17_0000,
            born,
        }
    }

    /// As a guest is told; owners as they are on the host.
    pub fn attr(&self) -> Attr {
        let stat = &self.0;
        Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec.cast_unsigned(),
            mtime: stat.stx_mtime.tv_sec.cast_unsigned(),
            ctime: stat.stx_ctime.tv_sec.cast_unsigned(),
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            // Linux's `new_encode_dev`, which is what the guest's takes it for.
            rdev: stat.stx_rdev_minor & 0xff | stat.stx_rdev_major << 8 | (stat.stx_rdev_minor & !0xff) << 12,
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }

    /// When it was made, where the file system knows.
    pub fn born(&self) -> Option<SxTime> {
        (self.0.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(self.0.stx_btime))
    }

    /// What of its attributes means something to a guest, and which of them the file system knows.
    pub fn attributes(&self) -> (u64, u64) {
        let told = StatxAttributes::COMPRESSED
            | StatxAttributes::IMMUTABLE
            | StatxAttributes::APPEND
            | StatxAttributes::NODUMP
            | StatxAttributes::ENCRYPTED;
        ((self.0.stx_attributes & told).bits(), (self.0.stx_attributes_mask & told).bits())
    }
}

fn time(time: StatxTimestamp) -> SxTime {
    SxTime { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec, reserved: 0 }
}

/// What a file system says of a descriptor, which may be of any kind.
///
/// # Errors
/// The host's.
pub fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, wanted).map(Stat)
}

/// Where something leads that is called so in a folder.
#[derive(Debug)]
pub enum Found {
    /// A file of the folder's file system.
    File(OwnedFd),
    /// Something of another file system is mounted over it, or it is [covered](Host::cover).
    Covered,
}

/// The host.
#[derive(Debug)]
pub struct Host {
    /// This process's descriptors, as a folder.
    descriptors: OwnedFd,
    /// What is as if something were mounted over it.
    covered: Vec<Cover>,
}

/// A name in a folder, as which the guest has nothing.
#[derive(Debug)]
struct Cover {
    folder: OwnedFd,
    name: CString,
}

impl Host {
    /// With the folder that is to be shared.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn new(folder: &Path) -> Result<(Host, OwnedFd), ShareError> {
        let path = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let root = fs::open(folder, path, Mode::empty()).map_err(|error| ShareError::Folder(error.into()))?;
        let descriptors = fs::open(c"/proc/self/fd", path, Mode::empty());
        let descriptors = descriptors.map_err(|error| ShareError::NoProc(error.into()))?;
        let host = Host { descriptors, covered: Vec::new() };
        let tried = fs::openat2(&root, c".", path, Mode::empty(), WITHIN);
        tried.map_err(|error| ShareError::NoOpenat2(error.into()))?;
        host.reopen(&root, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| match error {
            Errno::ACCESS => ShareError::Folder(error.into()),
            _ => ShareError::NoProc(error.into()),
        })?;
        Ok((host, root))
    }

    /// Has what is called so, below the shared folder, be as if something were mounted over it, whatever is there and
    /// whether something is. What is beyond a mount is that already.
    ///
    /// # Errors
    /// [`ShareError::Folder`]: it is not known where that is.
    pub fn cover(&mut self, root: &OwnedFd, place: &Path) -> Result<(), ShareError> {
        let failed = |error: Errno| ShareError::Folder(error.into());
        let name = place.file_name().map(|name| CString::new(name.as_bytes()));
        let Some(Ok(name)) = name.filter(|_| place.components().all(|it| matches!(it, Component::Normal(_))))
        else {
            return Err(failed(Errno::INVAL));
        };
        let folder = place.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let path = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        match fs::openat2(root, folder, path, Mode::empty(), WITHIN) {
            Ok(folder) => self.covered.push(Cover { folder, name }),
            Err(Errno::XDEV | Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    /// Whether what is called so in a folder is covered.
    fn is_covered(&self, folder: impl AsFd, name: Name<'_>) -> Result<bool, Errno> {
        let mut is_found = false;
        for cover in self.covered.iter().filter(|cover| cover.name.as_c_str() == name.as_c_str()) {
            // Both are held, so they have the same number if and only if they are the same.
            is_found |= stat(&cover.folder)?.number() == stat(&folder)?.number();
        }
        Ok(is_found)
    }

    /// Finds something, without opening it: a descriptor that only stands for it (`O_PATH`).
    ///
    /// # Errors
    /// The host's: `ENOENT`, `ENOTDIR`, `EACCES` and others.
    pub fn find(&self, folder: impl AsFd, name: Name<'_>) -> Result<Found, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.is_covered(&folder, name)? {
            return Ok(Found::Covered);
        }
        match fs::openat2(folder, name.as_c_str(), flags, Mode::empty(), WITHIN) {
            Ok(fd) => Ok(Found::File(fd)),
            Err(Errno::XDEV) => Ok(Found::Covered),
            Err(error) => Err(error),
        }
    }

    /// Finds what nothing is mounted over.
    ///
    /// # Errors
    /// [`Host::find`]'s, and `EBUSY`.
    pub fn find_file(&self, folder: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
        match self.find(folder, name)? {
            Found::File(fd) => Ok(fd),
            Found::Covered => Err(Errno::BUSY),
        }
    }

    /// What lies below something that is mounted, in the folder's own file system: its number and kind. Nothing is
    /// asked of what is mounted, which might not answer.
    ///
    /// # Errors
    /// The host's; `ENOENT` when it has gone.
    pub fn covered(&self, folder: impl AsFd, name: Name<'_>) -> Result<(u64, FileType), Errno> {
        let fd = self.reopen(folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if entry.file_name() == name.as_c_str() {
                return Ok((entry.ino(), entry.file_type()));
            }
        }
        Err(Errno::NOENT)
    }

    /// Makes a file that was not there, and opens it.
    ///
    /// # Errors
    /// The host's; `EEXIST`.
    pub fn create(
        &self,
        folder: impl AsFd,
        name: Name<'_>,
        flags: OFlags,
        permissions: u32,
    ) -> Result<OwnedFd, Errno> {
        let flags = flags | QUIET | OFlags::CREATE | OFlags::EXCL;
        let made = fs::openat2(folder, name.as_c_str(), flags, Mode::from_raw_mode(permissions), WITHIN);
        // There is something, and something is mounted over it.
        made.map_err(|error| if error == Errno::XDEV { Errno::EXIST } else { error })
    }

    /// Makes a file without a name.
    ///
    /// # Errors
    /// The host's; `EOPNOTSUPP` where the file system has none such.
    pub fn create_unnamed(
        &self,
        folder: impl AsFd,
        flags: OFlags,
        permissions: u32,
    ) -> Result<OwnedFd, Errno> {
        let flags = (flags | QUIET | OFlags::TMPFILE).difference(OFlags::NOFOLLOW);
        let made = fs::openat2(folder, c".", flags, Mode::from_raw_mode(permissions), WITHIN);
        made.map_err(|error| if error == Errno::ISDIR { Errno::OPNOTSUPP } else { error })
    }

    /// Opens a file or a folder that a descriptor stands for.
    ///
    /// # Errors
    /// The host's, and `EACCES` for everything else: links, pipes, sockets, devices.
    pub fn open(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        match stat(&fd)?.kind() {
            FileType::RegularFile | FileType::Directory => self.reopen(fd, flags),
            _ => Err(Errno::ACCESS),
        }
    }

    fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = (flags | QUIET).difference(OFlags::NOFOLLOW);
        fs::openat(&self.descriptors, Self::number(fd), flags, Mode::empty())
    }

    /// A descriptor that only stands for an open file.
    ///
    /// # Errors
    /// The host's.
    pub fn stand_for(&self, fd: impl AsFd) -> Result<OwnedFd, Errno> {
        fs::openat(&self.descriptors, Self::number(fd), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    fn number(fd: impl AsFd) -> String {
        fd.as_fd().as_raw_fd().to_string()
    }

    /// Sets permissions.
    ///
    /// # Errors
    /// The host's.
    pub fn set_permissions(&self, fd: impl AsFd, permissions: u32) -> Result<(), Errno> {
        fs::chmodat(&self.descriptors, Self::number(fd), Mode::from_raw_mode(permissions), AtFlags::empty())
    }

    /// Sets times.
    ///
    /// # Errors
    /// The host's.
    pub fn set_times(&self, fd: impl AsFd, times: &fs::Timestamps) -> Result<(), Errno> {
        fs::utimensat(&self.descriptors, Self::number(fd), times, AtFlags::empty())
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// The host's.
    pub fn link(&self, fd: impl AsFd, folder: impl AsFd, name: Name<'_>) -> Result<(), Errno> {
        let from = Self::number(fd);
        fs::linkat(&self.descriptors, from, folder, name.as_c_str(), AtFlags::SYMLINK_FOLLOW)
    }
}

/// Goes through a folder's entries from a place on, which an entry before has said, or 0. `each` has a name, its
/// number, its kind and the place behind it, and says whether it wants more.
///
/// # Errors
/// The host's, and those of `each`.
pub fn entries(
    folder: impl AsFd,
    from: u64,
    mut each: impl FnMut(&std::ffi::CStr, u64, FileType, u64) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    if i64::try_from(from).is_err() {
        return Err(Errno::INVAL);
    }
    fs::seek(&folder, fs::SeekFrom::Start(from))?;
    let mut buffer: Vec<u8> = Vec::with_capacity(16 << 10);
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(&folder, spare);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !each(entry.file_name(), entry.ino(), entry.file_type(), entry.next_entry_cookie())? {
            break;
        }
    }
    Ok(())
}
