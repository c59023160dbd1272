//! What is known of a file besides what is in it: modes, owners, times, sizes, and extended attributes.

use super::{Body, Outcome, Server, VALID};
use crate::host::stat;
use crate::node::Place;
use crate::owners::Owner;
use crate::protocol::{
    Attr, AttrOut, GETATTR_FH, GetattrIn, GetxattrIn, GetxattrOut, SetattrIn, SetxattrIn, Statx, StatxIn,
    StatxOut, SxTime, fattr,
};
use crate::request::Request;
use rustix::fs::{self, AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The bits of a mode that a guest may set: all but set-id bits.
pub const SETTABLE: u32 = 0o1777;
/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// The only attributes that a guest sees and sets: those that mean nothing to the host.
const OURS: &[u8] = b"user.";
/// The largest value and the longest list of attributes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST: usize = 64 << 10;

fn attr_out(attr: Attr) -> Body {
    Body::of(&AttrOut { attr_valid: VALID, attr, ..AttrOut::default() })
}

impl Server {
    pub(super) fn getattr(&mut self, mut request: Request<'_>) -> Outcome {
        let get: GetattrIn = request.take()?;
        let handle = (get.getattr_flags & GETATTR_FH != 0).then_some(get.fh);
        let place = self.file_or_handle(request.header.nodeid, handle)?;
        Ok(attr_out(self.attr(&place)?))
    }

    pub(super) fn statx(&mut self, mut request: Request<'_>) -> Outcome {
        /// `STATX_BASIC_STATS` and `STATX_BTIME`.
        const BASIC: u32 = 0x7ff;
        const BORN: u32 = 0x800;
        let get: StatxIn = request.take()?;
        let handle = (get.getattr_flags & GETATTR_FH != 0).then_some(get.fh);
        let place = self.file_or_handle(request.header.nodeid, handle)?;
        let attr = self.attr(&place)?;
        let (mut born, mut attributes) = (None, (0, 0));
        if let Place::File(fd) = &place {
            let stat = stat(&**fd)?;
            (born, attributes) = (stat.born(), stat.attributes());
        }
        let time = |seconds: u64, tv_nsec| SxTime { tv_sec: seconds.cast_signed(), tv_nsec, reserved: 0 };
        let stat = Statx {
            mask: BASIC | if born.is_some() { BORN } else { 0 },
            blksize: attr.blksize,
            attributes: attributes.0,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: u16::try_from(attr.mode).unwrap_or(0),
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            attributes_mask: attributes.1,
            atime: time(attr.atime, attr.atimensec),
            btime: born.unwrap_or_default(),
            ctime: time(attr.ctime, attr.ctimensec),
            mtime: time(attr.mtime, attr.mtimensec),
            rdev_major: attr.rdev >> 8 & 0xfff,
            rdev_minor: attr.rdev & 0xff | attr.rdev >> 12 & !0xff,
            ..Statx::default()
        };
        Ok(Body::of(&StatxOut { attr_valid: VALID, stat, ..StatxOut::default() }))
    }

    pub(super) fn setattr(&mut self, mut request: Request<'_>) -> Outcome {
        let set: SetattrIn = request.take()?;
        let has = |bit: u32| set.valid & bit != 0;
        let handle = has(fattr::FH).then_some(set.fh);
        let file = self.file_or_handle(request.header.nodeid, handle)?.file()?;
        let before = stat(&*file)?;
        // Who may use the host's devices is not a guest's to say.
        let is_device = matches!(before.kind(), FileType::CharacterDevice | FileType::BlockDevice);
        if is_device && set.valid & (fattr::MODE | fattr::UID | fattr::GID) != 0 {
            return Err(Errno::PERM);
        }
        if has(fattr::SIZE) {
            self.set_size(&file, handle, set.size)?;
        }
        let (user, group) = (has(fattr::UID).then_some(set.uid), has(fattr::GID).then_some(set.gid));
        if let Some(owner) = self.owners.change(&self.shown(&before), user, group)? {
            set_owner(&*file, owner)?;
        }
        if has(fattr::MODE) {
            // A link has none.
            if before.kind() == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            self.host.set_permissions(&*file, set.mode & SETTABLE)?;
        }
        self.set_times(&file, &set)?;
        Ok(attr_out(self.shown(&stat(&*file)?)))
    }

    fn set_size(&self, file: &Arc<OwnedFd>, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        let opened = match handle {
            Some(handle) => self.handles.file(handle)?,
            None => match stat(&**file)?.kind() {
                FileType::Directory => return Err(Errno::ISDIR),
                _ => Arc::new(self.host.open(&**file, OFlags::WRONLY)?),
            },
        };
        self.drop_set_id(&*opened)?;
        fs::ftruncate(&*opened, size)
    }

    fn set_times(&self, file: &Arc<OwnedFd>, set: &SetattrIn) -> Result<(), Errno> {
        let time = |is_set: u32, is_now: u32, seconds: u64, nanoseconds: u32| {
            let tv_nsec = match (set.valid & is_set != 0, set.valid & is_now != 0) {
                (false, _) => fs::UTIME_OMIT,
                (true, true) => fs::UTIME_NOW,
                (true, false) => nanoseconds.min(999_999_999).into(),
            };
            Timespec { tv_sec: seconds.cast_signed(), tv_nsec }
        };
        if set.valid & (fattr::ATIME | fattr::MTIME) == 0 {
            return Ok(());
        }
        let times = Timestamps {
            last_access: time(fattr::ATIME, fattr::ATIME_NOW, set.atime, set.atimensec),
            last_modification: time(fattr::MTIME, fattr::MTIME_NOW, set.mtime, set.mtimensec),
        };
        self.host.set_times(&**file, &times)
    }

    /// Takes set-id bits off a file that is about to be written to. The host does so for ordinary users by itself, but
    /// not for root.
    pub(super) fn drop_set_id(&self, file: impl AsFd) -> Result<(), Errno> {
        if self.owners != crate::owners::Owners::AsTheyAre {
            return Ok(());
        }
        let is = stat(&file)?;
        if is.kind() == FileType::RegularFile && is.permissions() & SET_ID != 0 {
            self.host.set_permissions(&file, is.permissions() & SETTABLE)?;
        }
        Ok(())
    }

    /// The file of a node as something that has extended attributes, or why it has none.
    fn attributed(&mut self, node: u64) -> Result<OwnedFd, Errno> {
        let Place::File(file) = self.place(node)? else { return Err(Errno::OPNOTSUPP) };
        match self.host.open(&*file, OFlags::RDONLY) {
            // Links, pipes and devices have none of `user.`.
            Err(Errno::ACCESS) => match stat(&*file)?.kind() {
                FileType::RegularFile => self.host.open(&*file, OFlags::WRONLY),
                _ => Err(Errno::OPNOTSUPP),
            },
            opened => opened,
        }
    }

    pub(super) fn getxattr(&mut self, mut request: Request<'_>) -> Outcome {
        let get: GetxattrIn = request.take()?;
        let name = request.string()?;
        if !is_ours(name) {
            // What a program that looks for ACLs and labels takes for "there are none".
            let is_system = name.to_bytes().starts_with(b"system.");
            return Err(if is_system { Errno::OPNOTSUPP } else { Errno::NODATA });
        }
        let file = self.attributed(request.header.nodeid).map_err(|error| match error {
            Errno::OPNOTSUPP => Errno::NODATA,
            error => error,
        })?;
        let mut value = vec![0; LARGEST];
        let size = fs::fgetxattr(&file, name, &mut value[..])?;
        value.truncate(size);
        sized(get.size, value)
    }

    pub(super) fn listxattr(&mut self, mut request: Request<'_>) -> Outcome {
        let get: GetxattrIn = request.take()?;
        let file = match self.attributed(request.header.nodeid) {
            Err(Errno::OPNOTSUPP) => return sized(get.size, Vec::new()),
            file => file?,
        };
        let mut names = vec![0; LARGEST];
        let size = fs::flistxattr(&file, &mut names[..])?;
        let ours = names[..size].split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(OURS));
        sized(get.size, ours.flatten().copied().collect())
    }

    pub(super) fn setxattr(&mut self, mut request: Request<'_>) -> Outcome {
        let set: SetxattrIn = request.take()?;
        let name = request.string()?;
        let value = request.bytes(set.size)?;
        if !is_ours(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.attributed(request.header.nodeid)?;
        let flags = XattrFlags::from_bits(set.flags).ok_or(Errno::INVAL)?;
        if !(XattrFlags::CREATE | XattrFlags::REPLACE).contains(flags) {
            return Err(Errno::INVAL);
        }
        fs::fsetxattr(&file, name, value, flags)?;
        Ok(Body::empty())
    }

    pub(super) fn removexattr(&mut self, mut request: Request<'_>) -> Outcome {
        let name = request.string()?;
        if !is_ours(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.attributed(request.header.nodeid)?;
        fs::fremovexattr(&file, name)?;
        Ok(Body::empty())
    }
}

fn is_ours(name: &CStr) -> bool {
    name.to_bytes().strip_prefix(OURS).is_some_and(|rest| !rest.is_empty())
}

/// A value, if there is room for it, or how large it is, if that is asked for.
fn sized(room: u32, value: Vec<u8>) -> Outcome {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    match room {
        0 => Ok(Body::of(&GetxattrOut { size, padding: 0 })),
        room if room < size => Err(Errno::RANGE),
        _ => Ok(Body::Bytes(value)),
    }
}

/// Sets an owner and a group.
pub fn set_owner(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    fs::chownat(file, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)
}
