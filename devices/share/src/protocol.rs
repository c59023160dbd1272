//! The FUSE protocol's numbers and structures, as they lie in requests and replies.
//!
//! Source: Linux's `include/uapi/linux/fuse.h`, protocol 7.39, whose names these have without `fuse_`. Everything is in
//! the guest's byte order, which is little-endian on both architectures, as the host's is.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that is spoken.
pub const MAJOR: u32 = 7;
/// The newest minor version of it that is known here, and the oldest that is served.
pub const MINOR: u32 = 39;
pub const OLDEST_MINOR: u32 = 31;

/// The folder's own node.
pub const ROOT: u64 = 1;

/// What an operation does to the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing.
    Reads,
    /// It changes something, which a read-only share refuses.
    Writes,
    /// It depends on the flags that a file is opened with.
    Opens,
}

/// An operation that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Symlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Statfs,
    Release,
    Fsync,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Init,
    Opendir,
    Readdir,
    Releasedir,
    Fsyncdir,
    Create,
    Interrupt,
    Destroy,
    BatchForget,
    Fallocate,
    Readdirplus,
    Rename2,
    Lseek,
    CopyFileRange,
    Syncfs,
    Tmpfile,
    Statx,
}

impl Operation {
    /// The operation of a number. What is not here is answered with `ENOSYS`, upon which Linux does without it for
    /// good: `FLUSH` (nothing is kept back that the end of a file could write), `ACCESS` (the guest judges by modes
    /// and owners), locks (which are the guest's own), `BMAP`, `IOCTL` and `POLL`.
    pub fn of(code: u32) -> Option<Operation> {
        Some(match code {
            1 => Operation::Lookup,
            2 => Operation::Forget,
            3 => Operation::Getattr,
            4 => Operation::Setattr,
            5 => Operation::Readlink,
            6 => Operation::Symlink,
            8 => Operation::Mknod,
            9 => Operation::Mkdir,
            10 => Operation::Unlink,
            11 => Operation::Rmdir,
            12 => Operation::Rename,
            13 => Operation::Link,
            14 => Operation::Open,
            15 => Operation::Read,
            16 => Operation::Write,
            17 => Operation::Statfs,
            18 => Operation::Release,
            20 => Operation::Fsync,
            21 => Operation::Setxattr,
            22 => Operation::Getxattr,
            23 => Operation::Listxattr,
            24 => Operation::Removexattr,
            26 => Operation::Init,
            27 => Operation::Opendir,
            28 => Operation::Readdir,
            29 => Operation::Releasedir,
            30 => Operation::Fsyncdir,
            35 => Operation::Create,
            36 => Operation::Interrupt,
            38 => Operation::Destroy,
            42 => Operation::BatchForget,
            43 => Operation::Fallocate,
            44 => Operation::Readdirplus,
            45 => Operation::Rename2,
            46 => Operation::Lseek,
            47 => Operation::CopyFileRange,
            50 => Operation::Syncfs,
            51 => Operation::Tmpfile,
            52 => Operation::Statx,
            _ => return None,
        })
    }

    /// What it does: the one place that says what a read-only share refuses.
    pub fn effect(self) -> Effect {
        match self {
            Operation::Setattr
            | Operation::Symlink
            | Operation::Mknod
            | Operation::Mkdir
            | Operation::Unlink
            | Operation::Rmdir
            | Operation::Rename
            | Operation::Link
            | Operation::Write
            | Operation::Setxattr
            | Operation::Removexattr
            | Operation::Create
            | Operation::Fallocate
            | Operation::Rename2
            | Operation::CopyFileRange
            | Operation::Tmpfile => Effect::Writes,
            Operation::Open => Effect::Opens,
            Operation::Lookup
            | Operation::Forget
            | Operation::Getattr
            | Operation::Readlink
            | Operation::Read
            | Operation::Statfs
            | Operation::Release
            | Operation::Fsync
            | Operation::Getxattr
            | Operation::Listxattr
            | Operation::Init
            | Operation::Opendir
            | Operation::Readdir
            | Operation::Releasedir
            | Operation::Fsyncdir
            | Operation::Interrupt
            | Operation::Destroy
            | Operation::BatchForget
            | Operation::Readdirplus
            | Operation::Lseek
            | Operation::Syncfs
            | Operation::Statx => Effect::Reads,
        }
    }

    /// Whether it is answered.
    pub fn has_reply(self) -> bool {
        !matches!(self, Operation::Forget | Operation::BatchForget | Operation::Interrupt)
    }
}

/// Flags of [`InitIn`] and [`InitOut`] (`FUSE_...`) that are taken when they are offered.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Bits of [`SetattrIn::valid`] (`FATTR_...`).
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_GETATTR_FH`: there is a handle.
pub const GETATTR_FH: u32 = 1 << 0;
/// `FUSE_WRITE_CACHE`: from the page cache; the handle is a guess, and flags are not there.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_FSYNC_FDATASYNC`: data alone.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `FOPEN_KEEP_CACHE`: what the guest has of the file is still good.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// Derives what all structures have.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $kind),* }
    )*};
}

structures! {
    /// In front of each request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// In front of each reply; the error is negative.
    OutHeader { len: u32, error: i32, unique: u64 }
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    ForgetIn { nlookup: u64 }
    ForgetOne { nodeid: u64, nlookup: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { newdir: u64 }
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    LinkIn { oldnodeid: u64 }
    OpenIn { flags: u32, open_flags: u32 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteOut { size: u32, padding: u32 }
    Kstatfs {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// As it is without `FUSE_SETXATTR_EXT`, which is not taken.
    SetxattrIn { size: u32, flags: u32 }
    GetxattrIn { size: u32, padding: u32 }
    GetxattrOut { size: u32, padding: u32 }
    /// Without what `FUSE_INIT_EXT` has behind it, which is not looked at.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut { offset: u64 }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// In front of a name, which is padded to eight bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
    StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    SxTime { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes as a C compiler has them for `linux/fuse.h` (of 7.39).
    #[test]
    fn structures_have_their_sizes() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<Attr>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<GetattrIn>(), 16),
            (size_of::<SetattrIn>(), 88),
            (size_of::<MknodIn>(), 16),
            (size_of::<MkdirIn>(), 8),
            (size_of::<Rename2In>(), 16),
            (size_of::<CreateIn>(), 16),
            (size_of::<OpenOut>(), 16),
            (size_of::<ReleaseIn>(), 24),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<Kstatfs>(), 80),
            (size_of::<FsyncIn>(), 16),
            (size_of::<InitOut>(), 64),
            (size_of::<FallocateIn>(), 32),
            (size_of::<LseekIn>(), 24),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<Dirent>(), 24),
            (size_of::<StatxIn>(), 24),
            (size_of::<Statx>(), 256),
            (size_of::<StatxOut>(), 288),
        ];
        for (index, (is, wanted)) in sizes.into_iter().enumerate() {
            assert_eq!(is, wanted, "structure {index}");
        }
    }

    #[test]
    fn every_number_has_its_operation_or_none() {
        let known: Vec<u32> = (0..8192).filter(|code| Operation::of(*code).is_some()).collect();
        assert_eq!((known.len(), known.last()), (39, Some(&52)));
        // FLUSH, the locks, ACCESS, BMAP, IOCTL, POLL, NOTIFY_REPLY, mappings; and numbers that are nobody's.
        for code in [0, 7, 19, 25, 31, 32, 33, 34, 37, 39, 40, 41, 48, 49, 53, u32::MAX] {
            assert_eq!(Operation::of(code), None, "{code}");
        }
    }
}
