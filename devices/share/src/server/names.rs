//! Names: what is found by them, and links.

use super::{Body, Outcome, Server, VALID};
use crate::host::{Found, stat};
use crate::node::{Covered, Place};
use crate::protocol::EntryOut;
use crate::request::{Name, Request};
use rustix::fs::{self, FileType};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

impl Server {
    pub(super) fn look_up(&mut self, mut request: Request<'_>) -> Outcome {
        let (parent, name) = (request.header.nodeid, request.name()?);
        Ok(Body::of(&self.entry(parent, name, None)?))
    }

    /// Looks a name up, which the guest has to forget again. A folder that has been gone through has said what is
    /// there, for what is covered: its number and kind.
    pub(super) fn entry(
        &mut self,
        parent: u64,
        name: Name<'_>,
        listed: Option<(u64, FileType)>,
    ) -> Result<EntryOut, Errno> {
        // Nothing is in what is covered.
        let Place::File(folder) = self.place(parent)? else { return Err(Errno::NOENT) };
        match self.host.find(&*folder, name)? {
            Found::File(fd) => self.entry_of(parent, name, fd),
            Found::Covered => {
                let (number, kind) = match listed {
                    Some(listed) => listed,
                    None => self.host.covered(&*folder, name)?,
                };
                // A file system that does not say has more folders than files that are mounted on.
                let is_folder = matches!(kind, FileType::Directory | FileType::Unknown);
                let covered = Covered { number, is_folder };
                let node = self.nodes.look_up_covered((parent, name), covered)?;
                let attr = super::session::covered_attr(covered);
                Ok(EntryOut {
                    nodeid: node,
                    entry_valid: VALID,
                    attr_valid: VALID,
                    attr,
                    ..EntryOut::default()
                })
            }
        }
    }

    /// Something that was found so.
    pub(super) fn entry_of(&mut self, parent: u64, name: Name<'_>, fd: OwnedFd) -> Result<EntryOut, Errno> {
        let stat = stat(&fd)?;
        let node = self.nodes.look_up((parent, name), stat.identity(), fd)?;
        let attr = self.shown(&stat);
        Ok(EntryOut { nodeid: node, entry_valid: VALID, attr_valid: VALID, attr, ..EntryOut::default() })
    }

    pub(super) fn readlink(&mut self, request: Request<'_>) -> Outcome {
        let Place::File(link) = self.place(request.header.nodeid)? else { return Err(Errno::INVAL) };
        if stat(&*link)?.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let text = fs::readlinkat(&*link, c"", Vec::new())?;
        Ok(Body::Bytes(text.into_bytes()))
    }
}
