//! What the guest has open.

use rustix::io::Errno;
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
    opened: Opened,
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
    pub fn add(&mut self, node: u64, opened: Opened) -> Result<u64, Errno> {
        self.has_room()?;
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, Handle { node, opened });
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
