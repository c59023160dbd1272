//! What is in folders.

use super::{Body, HEADER, MOST_WRITTEN, Outcome, Server};
use crate::handle::Opened;
use crate::host::entries;
use crate::protocol::{Dirent, EntryOut, Operation, ROOT, ReadIn};
use crate::request::{Name, Request};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::CStr;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// One entry of a folder.
struct Entry<'a> {
    name: &'a CStr,
    number: u64,
    kind: FileType,
    /// The place behind it.
    next: u64,
}

/// Entries on their way to the guest.
struct List {
    bytes: Vec<u8>,
    room: usize,
    has_more: bool,
}

impl List {
    fn record(entry: &Entry<'_>, with_attributes: bool) -> usize {
        let attributes = if with_attributes { size_of::<EntryOut>() } else { 0 };
        attributes + (size_of::<Dirent>() + entry.name.to_bytes().len()).next_multiple_of(8)
    }

    fn has_room(&self, entry: &Entry<'_>, with_attributes: bool) -> bool {
        self.bytes.len() + Self::record(entry, with_attributes) <= self.room
    }

    fn add(&mut self, entry: &Entry<'_>, attributes: Option<&EntryOut>) {
        let end = self.bytes.len() + Self::record(entry, attributes.is_some());
        if let Some(attributes) = attributes {
            self.bytes.extend(attributes.as_bytes());
        }
        let name = entry.name.to_bytes();
        let namelen = u32::try_from(name.len()).unwrap_or(0);
        // The kind is what a mode has of it (`DT_...`).
        let kind = entry.kind.as_raw_mode() >> 12 & 15;
        self.bytes.extend(Dirent { ino: entry.number, off: entry.next, namelen, kind }.as_bytes());
        self.bytes.extend(name);
        self.bytes.resize(end, 0);
    }
}

impl Server {
    pub(super) fn readdir(&mut self, operation: Operation, mut request: Request<'_>, room: usize) -> Outcome {
        let read: ReadIn = request.take()?;
        let room = room.saturating_sub(HEADER).min(read.size.min(MOST_WRITTEN) as usize);
        let mut list = List { bytes: Vec::new(), room, has_more: false };
        let (node, plus) = (request.header.nodeid, operation == Operation::Readdirplus);
        match self.handles.get(read.fh)? {
            Opened::File(_) => return Err(Errno::NOTDIR),
            Opened::Covered => self.list_covered(node, read.offset, plus, &mut list),
            Opened::Folder(fd) => {
                let fd = Arc::clone(fd);
                let root = self.root_number()?;
                entries(&*fd, read.offset, |name, number, kind, next| {
                    // What is above the folder is nobody's.
                    let is_above = node == ROOT && name == c"..";
                    let number = if is_above { root } else { number };
                    let entry = Entry { name, number, kind, next };
                    if !list.has_room(&entry, plus) {
                        list.has_more = true;
                        return Ok(false);
                    }
                    let attributes = plus.then(|| self.listed(node, &entry));
                    list.add(&entry, attributes.as_ref());
                    Ok(true)
                })?;
            }
        }
        // There is something, and it does not fit: not the end.
        if list.bytes.is_empty() && list.has_more { Err(Errno::INVAL) } else { Ok(Body::Bytes(list.bytes)) }
    }

    fn root_number(&mut self) -> Result<u64, Errno> {
        let root = self.place(ROOT)?;
        Ok(self.attr(&root)?.ino)
    }

    /// What the guest is told of something in a folder that it goes through; it looks up by itself what has no node.
    fn listed(&mut self, folder: u64, entry: &Entry<'_>) -> EntryOut {
        // Those that are no names (`.` and `..`) are not looked up, and need not be forgotten.
        let Ok(name) = Name::new(entry.name) else { return EntryOut::default() };
        self.entry(folder, name, Some((entry.number, entry.kind))).unwrap_or_default()
    }

    fn list_covered(&self, node: u64, from: u64, plus: bool, list: &mut List) {
        for (next, name) in (1..).zip([c".", c".."]) {
            let entry = Entry { name, number: node, kind: FileType::Directory, next };
            if next > from && list.has_room(&entry, plus) {
                list.add(&entry, plus.then(EntryOut::default).as_ref());
            }
        }
    }
}
