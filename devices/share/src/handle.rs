//! What the guest has open.

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is open.
#[derive(Clone, Debug)]
pub enum Opened {
    /// A file.
    File(Arc<OwnedFd>),
    /// A folder.
    Folder(Arc<OwnedFd>),
    /// What something is mounted over: empty, whatever it is.
    Covered,
}

#[derive(Debug)]
struct Handle {
    node: u64,
    /// What it was opened with.
    flags: OFlags,
    opened: Opened,
}

/// A handle, as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHandle {
    pub number: u64,
    pub node: u64,
    /// As the host's open(2) has them.
    pub flags: u32,
    pub is_folder: bool,
}

/// All handles, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHandles {
    next: u64,
    pub handles: Vec<SavedHandle>,
}

/// All handles.
#[derive(Debug)]
pub struct Handles {
    handles: HashMap<u64, Handle>,
    next: u64,
    most: usize,
}

impl Handles {
    /// At most so many.
    pub fn new(most: usize) -> Handles {
        Handles { handles: HashMap::new(), next: 1, most }
    }

    pub fn clear(&mut self) {
        self.handles.clear();
    }

    pub fn save(&self) -> SavedHandles {
        let saved = |(number, handle): (&u64, &Handle)| SavedHandle {
            number: *number,
            node: handle.node,
            flags: handle.flags.bits(),
            is_folder: matches!(handle.opened, Opened::Folder(_)),
        };
        let mut handles: Vec<SavedHandle> = self.handles.iter().map(saved).collect();
        handles.sort_by_key(|handle| handle.number);
        SavedHandles { next: self.next, handles }
    }

    /// Whether these can be put back.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn fit(&self, saved: &SavedHandles) -> Result<(), String> {
        if saved.handles.len() > self.most {
            return Err(format!("{} files are open, and {} may be", saved.handles.len(), self.most));
        }
        if saved.handles.iter().any(|handle| handle.number == 0 || handle.number >= saved.next) {
            return Err("a handle's number is none".into());
        }
        Ok(())
    }

    /// Puts them back, those that could be opened.
    pub fn restore(&mut self, saved: &SavedHandles, opened: Vec<(SavedHandle, Opened)>) {
        self.next = saved.next;
        let handle = |(saved, opened): (SavedHandle, Opened)| {
            let flags = OFlags::from_bits_retain(saved.flags);
            (saved.number, Handle { node: saved.node, flags, opened })
        };
        self.handles = opened.into_iter().map(handle).collect();
    }

    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Whether there is room for another.
    ///
    /// # Errors
    /// `ENFILE`.
    pub fn has_room(&self) -> Result<(), Errno> {
        if self.handles.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Adds one; its number.
    ///
    /// # Errors
    /// `ENFILE`.
    pub fn add(&mut self, node: u64, flags: OFlags, opened: Opened) -> Result<u64, Errno> {
        self.has_room()?;
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, Handle { node, flags, opened });
        Ok(number)
    }

    /// Takes one away; whether there was one.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, number: u64) -> Result<(), Errno> {
        self.handles.remove(&number).map(drop).ok_or(Errno::BADF)
    }

    /// What is open.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, number: u64) -> Result<&Opened, Errno> {
        self.handles.get(&number).map(|handle| &handle.opened).ok_or(Errno::BADF)
    }

    /// The file that is open.
    ///
    /// # Errors
    /// `EBADF`, `EISDIR`; `EROFS` where something is mounted.
    pub fn file(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.get(number)? {
            Opened::File(fd) => Ok(Arc::clone(fd)),
            Opened::Folder(_) => Err(Errno::ISDIR),
            Opened::Covered => Err(Errno::ROFS),
        }
    }

    /// A descriptor of a node's, if it is open.
    pub fn of_node(&self, node: u64) -> Option<Arc<OwnedFd>> {
        self.handles.values().filter(|handle| handle.node == node).find_map(|handle| match &handle.opened {
            Opened::File(fd) | Opened::Folder(fd) => Some(Arc::clone(fd)),
            Opened::Covered => None,
        })
    }
}
