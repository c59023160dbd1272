//! Opening and closing.

use super::{Access, Body, Outcome, Server};
use crate::handle::{Opened, SavedHandle, SavedHandles};
use crate::host::{Stat, stat};
use crate::node::{Place, SavedNodes, Stamp};
use crate::protocol::{FOPEN_KEEP_CACHE, OpenIn, OpenOut, ReleaseIn};
use crate::request::Request;
use rustix::fs::{self, FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
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

/// What the guest knows and has open, as it is saved. Files are found again where they were; one that is not there any
/// more, or is another one, is an error to the guest when it is used, and so is one that had no name any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    has_begun: bool,
    nodes: SavedNodes,
    handles: SavedHandles,
}

impl Server {
    /// What the guest knows and has open.
    pub fn save(&self) -> State {
        State { has_begun: self.has_begun, nodes: self.nodes.save(), handles: self.handles.save() }
    }

    /// Puts it back; how many files that were open are not there any more.
    ///
    /// # Errors
    /// Why it cannot be, in words; then nothing is done.
    pub fn restore(&mut self, state: State) -> Result<usize, String> {
        self.handles.fit(&state.handles)?;
        self.nodes.restore(state.nodes)?;
        self.handles.clear();
        self.has_begun = state.has_begun;
        let mut opened = Vec::new();
        for handle in &state.handles.handles {
            if let Ok(again) = self.open_again(handle) {
                opened.push((*handle, again));
            }
        }
        let lost = state.handles.handles.len() - opened.len();
        self.handles.restore(&state.handles, opened);
        Ok(lost)
    }

    fn open_again(&mut self, handle: &SavedHandle) -> Result<Opened, Errno> {
        let flags = kept(OFlags::from_bits_retain(handle.flags));
        if self.access == Access::ReadOnly && flags.intersects(OFlags::ACCMODE) {
            return Err(Errno::ROFS);
        }
        match self.place(handle.node)? {
            Place::Covered(_) => Ok(Opened::Covered),
            Place::File(file) if handle.is_folder => {
                Ok(Opened::Folder(Arc::new(self.host.open(&*file, OFlags::RDONLY | OFlags::DIRECTORY)?)))
            }
            Place::File(file) => Ok(Opened::File(Arc::new(self.host.open(&*file, flags)?))),
        }
    }

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
                return Ok(OpenOut {
                    fh: self.handles.add(node, OFlags::RDONLY, Opened::Covered)?,
                    ..OpenOut::default()
                });
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
        let fh = self.handles.add(node, kept(flags), Opened::File(Arc::new(opened)))?;
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
        Ok(Body::of(&OpenOut { fh: self.handles.add(node, OFlags::RDONLY, opened)?, ..OpenOut::default() }))
    }

    pub(super) fn release(&mut self, mut request: Request<'_>) -> Outcome {
        let release: ReleaseIn = request.take()?;
        self.handles.remove(release.fh)?;
        Ok(Body::empty())
    }
}
