//! Opening and closing.

use super::{Body, Outcome, Server};
use crate::handle::Opened;
use crate::host::{Stat, stat};
use crate::node::{Place, Stamp};
use crate::protocol::{FOPEN_KEEP_CACHE, OpenIn, OpenOut, ReleaseIn};
use crate::request::Request;
use rustix::fs::{self, FileType, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// What the host's file is opened with of what the guest opens its own with. Not `O_APPEND`, which each write says of
/// itself, and which would put what the guest writes back from a mapping at the end; nor `O_DIRECT`, which is between
/// the guest and its cache; nor `O_TRUNC`, before which set-id bits have to be gone.
pub fn kept(flags: OFlags) -> OFlags {
    flags & (OFlags::ACCMODE | OFlags::SYNC | OFlags::DSYNC)
}

/// A file that changed last as long ago as this has another time when it changes again, in seconds: clocks of file
/// systems go by ticks.
const SETTLED: i64 = 2;

/// When a file changed last, if what is known by that can be told from what it will be when it changes again.
fn stamp(stat: &Stat, now: i64) -> Option<Stamp> {
    let (changed, modified) = (stat.0.stx_ctime, stat.0.stx_mtime);
    let latest = changed.tv_sec.max(modified.tv_sec);
    (now.checked_sub(latest)? >= SETTLED)
        .then_some(Stamp { changed: (changed.tv_sec, changed.tv_nsec), size: stat.0.stx_size })
}

impl Server {
    pub(super) fn open(&mut self, mut request: Request<'_>) -> Outcome {
        let open: OpenIn = request.take()?;
        let flags = OFlags::from_bits_retain(open.flags);
        Ok(Body::of(&self.open_node(request.header.nodeid, flags)?))
    }

    /// Opens a file.
    pub(super) fn open_node(&mut self, node: u64, flags: OFlags) -> Result<OpenOut, Errno> {
        self.handles.has_room()?;
        let file = match self.place(node)? {
            Place::File(file) => file,
            Place::Covered(covered) if covered.is_folder => return Err(Errno::ISDIR),
            Place::Covered(_) if flags.intersects(OFlags::ACCMODE | OFlags::TRUNC) => {
                return Err(Errno::ROFS);
            }
            Place::Covered(_) => {
                return Ok(OpenOut { fh: self.handles.add(node, Opened::Covered)?, ..OpenOut::default() });
            }
        };
        let is = stat(&*file)?;
        match is.kind() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::ACCESS),
        }
        let opened = self.host.open(&*file, kept(flags))?;
        if flags.contains(OFlags::TRUNC) {
            let writable = match flags & OFlags::ACCMODE {
                OFlags::RDONLY => &self.host.open(&*file, OFlags::WRONLY)?,
                _ => &opened,
            };
            self.drop_set_id(writable)?;
            fs::ftruncate(writable, 0)?;
        }
        let is_unchanged = self.nodes.stamp(node, stamp(&is, (self.now)())) && !flags.contains(OFlags::TRUNC);
        let fh = self.handles.add(node, Opened::File(Arc::new(opened)))?;
        Ok(OpenOut { fh, open_flags: if is_unchanged { FOPEN_KEEP_CACHE } else { 0 }, padding: 0 })
    }

    pub(super) fn opendir(&mut self, request: Request<'_>) -> Outcome {
        let node = request.header.nodeid;
        self.handles.has_room()?;
        let opened = match self.place(node)? {
            Place::File(file) if stat(&*file)?.kind() == FileType::Directory => {
                Opened::Folder(Arc::new(self.host.open(&*file, OFlags::RDONLY | OFlags::DIRECTORY)?))
            }
            Place::Covered(covered) if covered.is_folder => Opened::Covered,
            Place::File(_) | Place::Covered(_) => return Err(Errno::NOTDIR),
        };
        Ok(Body::of(&OpenOut { fh: self.handles.add(node, opened)?, ..OpenOut::default() }))
    }

    pub(super) fn release(&mut self, mut request: Request<'_>) -> Outcome {
        let release: ReleaseIn = request.take()?;
        self.handles.remove(release.fh)?;
        Ok(Body::empty())
    }
}
