//! Taking names away, and giving others.

use super::{Body, Outcome, Server};
use crate::host::stat;
use crate::protocol::{Operation, Rename2In, RenameIn};
use crate::request::{Name, Request};
use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// A node of the guest's that has a name which it is about to lose.
type Known = Option<(u64, OwnedFd)>;

impl Server {
    /// What the guest knows of something in a folder.
    fn known(&self, folder: impl AsFd, name: Name<'_>) -> Known {
        let fd = self.host.find_file(folder, name).ok()?;
        let node = self.nodes.known(&stat(&fd).ok()?.identity())?;
        Some((node, fd))
    }

    pub(super) fn unlink(&mut self, request: Request<'_>) -> Outcome {
        self.remove(request, AtFlags::empty())
    }

    pub(super) fn rmdir(&mut self, request: Request<'_>) -> Outcome {
        self.remove(request, AtFlags::REMOVEDIR)
    }

    fn remove(&mut self, mut request: Request<'_>, flags: AtFlags) -> Outcome {
        let (parent, name) = (request.header.nodeid, request.name()?);
        let folder = self.file(parent)?;
        let known = self.known(&*folder, name);
        fs::unlinkat(&*folder, name.as_c_str(), flags)?;
        if let Some((node, fd)) = known {
            self.nodes.lost(node, (parent, name), fd);
        }
        Ok(Body::empty())
    }

    pub(super) fn rename(&mut self, operation: Operation, mut request: Request<'_>) -> Outcome {
        let (new, flags) = if operation == Operation::Rename2 {
            let rename: Rename2In = request.take()?;
            (rename.newdir, rename.flags)
        } else {
            (request.take::<RenameIn>()?.newdir, 0)
        };
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        // What a whiteout is is a device.
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let from = (request.header.nodeid, request.name()?);
        let to = (new, request.name()?);
        let (old_folder, new_folder) = (self.file(from.0)?, self.file(to.0)?);
        let (moved, replaced) = (self.known(&*old_folder, from.1), self.known(&*new_folder, to.1));
        fs::renameat_with(&*old_folder, from.1.as_c_str(), &*new_folder, to.1.as_c_str(), flags)?;
        let is_one = matches!((&moved, &replaced), (Some(moved), Some(replaced)) if moved.0 == replaced.0);
        match replaced {
            // Two names of one file: nothing has been done (rename(2)).
            Some(_) if is_one => return Ok(Body::empty()),
            Some((node, _)) if flags.contains(RenameFlags::EXCHANGE) => self.nodes.found(node, from),
            Some((node, fd)) => self.nodes.lost(node, to, fd),
            None => {}
        }
        if let Some((node, _)) = moved {
            self.nodes.found(node, to);
        }
        Ok(Body::empty())
    }
}
