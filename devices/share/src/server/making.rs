//! Making files, folders and links.

use super::attributes::{SETTABLE, set_owner};
use super::{Body, Outcome, Server, VALID};
use crate::handle::Opened;
use crate::host::stat;
use crate::owners::{Owner, Owners};
use crate::protocol::{CreateIn, EntryOut, InHeader, LinkIn, MkdirIn, MknodIn, OpenOut};
use crate::request::{Name, Request};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// What a new file is to be.
struct Wanted {
    owner: Owner,
    /// Its permissions; a link has none.
    permissions: Option<u32>,
    /// Its group is its folder's, as that has its set-group-id bit set.
    keeps_group: bool,
}

const SET_GROUP: u32 = 0o2000;

impl Server {
    fn wanted(header: &InHeader, permissions: Option<u32>, folder: impl AsFd) -> Result<Wanted, Errno> {
        if header.uid == u32::MAX || header.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let owner = Owner { user: header.uid, group: header.gid };
        let keeps_group = stat(folder)?.permissions() & SET_GROUP != 0;
        Ok(Wanted { owner, permissions: permissions.map(|bits| bits & SETTABLE), keeps_group })
    }

    /// Gives a new file its owner, and its permissions, of which this process's umask may have taken some.
    fn settle(&self, file: impl AsFd, wanted: &Wanted) -> Result<(), Errno> {
        let is = stat(&file)?;
        let (user, group) = (is.0.stx_uid, is.0.stx_gid);
        let owner =
            Owner { group: if wanted.keeps_group { group } else { wanted.owner.group }, ..wanted.owner };
        if self.owners == Owners::AsTheyAre && owner != (Owner { user, group }) {
            set_owner(&file, owner)?;
        }
        if let Some(permissions) = wanted.permissions {
            // What a folder has from the one that it is in is the host's own.
            let inherited = if is.kind() == FileType::Directory { is.permissions() & SET_GROUP } else { 0 };
            if is.permissions() != permissions | inherited {
                self.host.set_permissions(&file, permissions | inherited)?;
            }
        }
        Ok(())
    }

    /// The entry of what has just been made, or takes it away again.
    fn made(
        &mut self,
        (parent, name): (u64, Name<'_>),
        folder: impl AsFd,
        (made, wanted): (OwnedFd, &Wanted),
        kind: FileType,
    ) -> Result<EntryOut, Errno> {
        let settled = match stat(&made) {
            Ok(is) if is.kind() == kind => self.settle(&made, wanted),
            // Somebody on the host was faster.
            Ok(_) => return Err(Errno::STALE),
            Err(error) => Err(error),
        };
        let entry = settled.and_then(|()| self.entry_of(parent, name, made));
        if entry.is_err() {
            let flags = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            fs::unlinkat(folder, name.as_c_str(), flags).ok();
        }
        entry
    }

    pub(super) fn mkdir(&mut self, mut request: Request<'_>) -> Outcome {
        let make: MkdirIn = request.take()?;
        let (parent, name) = (request.header.nodeid, request.name()?);
        let folder = self.file(parent)?;
        let wanted = Self::wanted(&request.header, Some(make.mode), &*folder)?;
        fs::mkdirat(&*folder, name.as_c_str(), Mode::from_raw_mode(make.mode & SETTABLE))?;
        let made = self.host.find_file(&*folder, name)?;
        Ok(Body::of(&self.made((parent, name), &*folder, (made, &wanted), FileType::Directory)?))
    }

    pub(super) fn symlink(&mut self, mut request: Request<'_>) -> Outcome {
        let (parent, name) = (request.header.nodeid, request.name()?);
        let text = request.string()?;
        let folder = self.file(parent)?;
        let wanted = Self::wanted(&request.header, None, &*folder)?;
        fs::symlinkat(text, &*folder, name.as_c_str())?;
        let made = self.host.find_file(&*folder, name)?;
        Ok(Body::of(&self.made((parent, name), &*folder, (made, &wanted), FileType::Symlink)?))
    }

    pub(super) fn mknod(&mut self, mut request: Request<'_>) -> Outcome {
        let make: MknodIn = request.take()?;
        // Devices are the host's, and so are pipes and sockets, on which processes of the host's would wait.
        if !matches!(FileType::from_raw_mode(make.mode), FileType::RegularFile) {
            return Err(Errno::PERM);
        }
        let (parent, name) = (request.header.nodeid, request.name()?);
        let folder = self.file(parent)?;
        let wanted = Self::wanted(&request.header, Some(make.mode), &*folder)?;
        let made = self.host.create(&*folder, name, OFlags::WRONLY, make.mode & SETTABLE)?;
        let made = self.host.stand_for(&made)?;
        Ok(Body::of(&self.made((parent, name), &*folder, (made, &wanted), FileType::RegularFile)?))
    }

    pub(super) fn create(&mut self, mut request: Request<'_>) -> Outcome {
        let make: CreateIn = request.take()?;
        let (parent, name) = (request.header.nodeid, request.name()?);
        let flags = OFlags::from_bits_retain(make.flags);
        let folder = self.file(parent)?;
        self.handles.has_room()?;
        let wanted = Self::wanted(&request.header, Some(make.mode), &*folder)?;
        let opened = match self.host.create(&*folder, name, super::opening::kept(flags), make.mode & SETTABLE)
        {
            // It was there before, or has come meanwhile: opened as any other.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let entry = self.entry(parent, name, None)?;
                return match self.open_node(entry.nodeid, flags) {
                    Ok(out) => self.opened_entry(entry, out),
                    Err(error) => {
                        self.nodes.forget(entry.nodeid, 1);
                        Err(error)
                    }
                };
            }
            opened => opened?,
        };
        let made = self.host.stand_for(&opened)?;
        let entry = self.made((parent, name), &*folder, (made, &wanted), FileType::RegularFile)?;
        let fh =
            self.handles.add(entry.nodeid, super::opening::kept(flags), Opened::File(Arc::new(opened)))?;
        self.opened_entry(entry, OpenOut { fh, ..OpenOut::default() })
    }

    fn opened_entry(&mut self, mut entry: EntryOut, out: OpenOut) -> Outcome {
        // What was cut off when it was opened.
        let place = self.place(entry.nodeid)?;
        entry.attr = self.attr(&place)?;
        let mut bytes = entry.as_bytes().to_vec();
        bytes.extend(out.as_bytes());
        Ok(Body::Bytes(bytes))
    }

    pub(super) fn tmpfile(&mut self, mut request: Request<'_>) -> Outcome {
        let make: CreateIn = request.take()?;
        let folder = self.file(request.header.nodeid)?;
        self.handles.has_room()?;
        let wanted = Self::wanted(&request.header, Some(make.mode), &*folder)?;
        let flags = super::opening::kept(OFlags::from_bits_retain(make.flags));
        let opened = self.host.create_unnamed(&*folder, flags, make.mode & SETTABLE)?;
        self.settle(&opened, &wanted)?;
        let is = stat(&opened)?;
        let nodeid = self.nodes.add_unnamed(is.identity(), self.host.stand_for(&opened)?)?;
        let fh = self.handles.add(nodeid, flags, Opened::File(Arc::new(opened)))?;
        let attr = self.shown(&is);
        let entry = EntryOut { nodeid, entry_valid: VALID, attr_valid: VALID, attr, ..EntryOut::default() };
        self.opened_entry(entry, OpenOut { fh, ..OpenOut::default() })
    }

    pub(super) fn link(&mut self, mut request: Request<'_>) -> Outcome {
        let link: LinkIn = request.take()?;
        let (parent, name) = (request.header.nodeid, request.name()?);
        let file = self.file(link.oldnodeid)?;
        let folder = self.file(parent)?;
        self.host.link(&*file, &*folder, name)?;
        let made = self.host.find_file(&*folder, name)?;
        Ok(Body::of(&self.entry_of(parent, name, made)?))
    }
}
