//! What the guest knows of the folder: a number for each file that it has looked up and not forgotten.
//!
//! A node says where its file was found last. Descriptors are few, so they are kept for those that were used last
//! alone; another file is found again by its way from the root, and has to be the same that it was. A file whose last
//! name the guest has taken away cannot be found again, so its descriptor is kept ("pinned") as long as there is room.

use crate::host::{Found, Host, Identity, stat};
use crate::protocol::ROOT;
use crate::request::Name;
use lru::LruCache;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The deepest place that is found again.
const DEEPEST: usize = 4096;

/// What a node is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file, and what stands for it.
    File(Arc<OwnedFd>),
    /// Something is mounted over it; the guest sees an empty folder or file.
    Covered(Covered),
}

impl Place {
    /// The file.
    ///
    /// # Errors
    /// `EROFS`: nothing can be done to what is covered.
    pub fn file(self) -> Result<Arc<OwnedFd>, Errno> {
        match self {
            Place::File(fd) => Ok(fd),
            Place::Covered(_) => Err(Errno::ROFS),
        }
    }
}

/// What something is mounted over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    pub number: u64,
    pub is_folder: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    File(Identity),
    Covered(Covered),
}

/// When a file had changed last when the guest opened it: what it keeps of it is good as long as that is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub changed: (i64, u32),
    pub size: u64,
}

#[derive(Debug)]
struct Node {
    what: What,
    parent: u64,
    name: CString,
    lookups: u64,
    pinned: Option<Arc<OwnedFd>>,
    stamp: Option<Stamp>,
}

/// A node, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedNode {
    id: u64,
    what: What,
    parent: u64,
    name: CString,
    lookups: u64,
}

/// All nodes, as they are saved: where they were found, not what stood for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNodes {
    next: u64,
    nodes: Vec<SavedNode>,
}

/// All of them.
#[derive(Debug)]
pub struct Nodes {
    root: Arc<OwnedFd>,
    nodes: HashMap<u64, Node>,
    files: HashMap<Identity, u64>,
    covered: HashMap<(u64, CString), u64>,
    next: u64,
    open: LruCache<u64, Arc<OwnedFd>>,
    pinned: usize,
    most_nodes: usize,
    most_pinned: usize,
}

/// A file's folder, and what it is called there.
pub type Whereabouts<'a> = (u64, Name<'a>);

impl Nodes {
    /// With a root, at most so many nodes, and at most so many descriptors of each of both kinds.
    pub fn new(root: OwnedFd, most_nodes: usize, most_descriptors: usize) -> Nodes {
        let most_open = NonZeroUsize::new(most_descriptors).unwrap_or(NonZeroUsize::MIN);
        Nodes {
            root: Arc::new(root),
            nodes: HashMap::new(),
            files: HashMap::new(),
            covered: HashMap::new(),
            next: ROOT + 1,
            // Not `new`, which has room for all of them from the first on.
            open: {
                let mut open = LruCache::unbounded();
                open.resize(most_open);
                open
            },
            pinned: 0,
            most_nodes,
            most_pinned: most_descriptors,
        }
    }

    /// The shared folder.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Forgets everything but the root.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.files.clear();
        self.covered.clear();
        self.open.clear();
        self.pinned = 0;
    }

    pub fn save(&self) -> SavedNodes {
        let saved = |(id, node): (&u64, &Node)| SavedNode {
            id: *id,
            what: node.what.clone(),
            parent: node.parent,
            name: node.name.clone(),
            lookups: node.lookups,
        };
        let mut nodes: Vec<SavedNode> = self.nodes.iter().map(saved).collect();
        nodes.sort_by_key(|node| node.id);
        SavedNodes { next: self.next, nodes }
    }

    /// Puts them back. Each file is looked for when it is used.
    ///
    /// # Errors
    /// Why they cannot be, in words; then nothing is done.
    pub fn restore(&mut self, saved: SavedNodes) -> Result<(), String> {
        if saved.nodes.len() > self.most_nodes {
            return Err(format!("{} files are known, and {} may be", saved.nodes.len(), self.most_nodes));
        }
        if saved.next == 0 || saved.nodes.iter().any(|node| node.id <= ROOT || node.id >= saved.next) {
            return Err("a file's number is none".into());
        }
        self.clear();
        self.next = saved.next;
        for SavedNode { id, what, parent, name, lookups } in saved.nodes {
            match &what {
                What::File(identity) => drop(self.files.insert(*identity, id)),
                What::Covered(_) => drop(self.covered.insert((parent, name.clone()), id)),
            }
            self.nodes.insert(id, Node { what, parent, name, lookups, pinned: None, stamp: None });
        }
        Ok(())
    }

    /// How many there are, without the root.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// How many descriptors they have.
    pub fn descriptors(&self) -> usize {
        self.open.len() + self.pinned
    }

    /// The node of a file, which the guest has looked up once more.
    ///
    /// # Errors
    /// `ENFILE`: there are too many.
    pub fn look_up(
        &mut self,
        (parent, name): Whereabouts<'_>,
        identity: Identity,
        fd: OwnedFd,
    ) -> Result<u64, Errno> {
        let fd = Arc::new(fd);
        if let Some(id) = self.files.get(&identity).copied() {
            self.count_look_up(id);
            self.found(id, (parent, name));
            self.open.push(id, fd);
            return Ok(id);
        }
        let id = self.add(What::File(identity), parent, name.as_c_str())?;
        self.files.insert(identity, id);
        self.open.push(id, fd);
        Ok(id)
    }

    /// The node of a file that has no name; its descriptor is pinned.
    ///
    /// # Errors
    /// `ENFILE`.
    pub fn add_unnamed(&mut self, identity: Identity, fd: OwnedFd) -> Result<u64, Errno> {
        let id = self.add(What::File(identity), ROOT, c"")?;
        self.files.insert(identity, id);
        self.pin(id, Arc::new(fd));
        Ok(id)
    }

    /// The node of what something is mounted over.
    ///
    /// # Errors
    /// `ENFILE`.
    pub fn look_up_covered(
        &mut self,
        (parent, name): Whereabouts<'_>,
        covered: Covered,
    ) -> Result<u64, Errno> {
        let key = (parent, name.as_c_str().to_owned());
        if let Some(id) = self.covered.get(&key).copied() {
            self.count_look_up(id);
            return Ok(id);
        }
        let id = self.add(What::Covered(covered), parent, name.as_c_str())?;
        self.covered.insert(key, id);
        Ok(id)
    }

    fn count_look_up(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_add(1);
        }
    }

    fn add(&mut self, what: What, parent: u64, name: &CStr) -> Result<u64, Errno> {
        if self.nodes.len() >= self.most_nodes {
            return Err(Errno::NFILE);
        }
        let id = self.next;
        self.next += 1;
        let node = Node { what, parent, name: name.to_owned(), lookups: 1, pinned: None, stamp: None };
        self.nodes.insert(id, node);
        Ok(id)
    }

    /// The guest forgets so many of its look-ups. What it has not looked up it cannot forget.
    pub fn forget(&mut self, id: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return;
        }
        let Some(node) = self.nodes.remove(&id) else { return };
        self.open.pop(&id);
        self.pinned -= usize::from(node.pinned.is_some());
        match node.what {
            What::File(identity) => drop(self.files.remove(&identity)),
            What::Covered(_) => drop(self.covered.remove(&(node.parent, node.name))),
        }
    }

    /// The node of a file, if the guest knows it.
    pub fn known(&self, identity: &Identity) -> Option<u64> {
        self.files.get(identity).copied()
    }

    /// A node's file was found here.
    pub fn found(&mut self, id: u64, (parent, name): Whereabouts<'_>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.parent != parent || node.name.as_c_str() != name.as_c_str() {
            (node.parent, node.name) = (parent, name.as_c_str().to_owned());
        }
        self.pinned -= usize::from(node.pinned.take().is_some());
    }

    /// A node's file is not called so any more; if that is the name by which it would be found again, this stands for
    /// it from now on.
    pub fn lost(&mut self, id: u64, (parent, name): Whereabouts<'_>, fd: OwnedFd) {
        let is_its_name = |node: &Node| node.parent == parent && node.name.as_c_str() == name.as_c_str();
        if self.nodes.get(&id).is_some_and(is_its_name) {
            self.pin(id, Arc::new(fd));
        }
    }

    fn pin(&mut self, id: u64, fd: Arc<OwnedFd>) {
        if self.pinned >= self.most_pinned {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            self.pinned += usize::from(node.pinned.is_none());
            node.pinned = Some(fd);
            self.open.pop(&id);
        }
    }

    /// Sets when a node's file had changed last, and says whether it had then, too.
    pub fn stamp(&mut self, id: u64, stamp: Option<Stamp>) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let is_the_same = stamp.is_some() && node.stamp == stamp;
        node.stamp = stamp;
        is_the_same
    }

    /// Where a node is.
    ///
    /// # Errors
    /// `ESTALE`: there is none such, or its file is not where it was. What the host says.
    pub fn place(&mut self, host: &Host, id: u64) -> Result<Place, Errno> {
        if id == ROOT {
            return Ok(Place::File(Arc::clone(&self.root)));
        }
        let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
        if let What::Covered(covered) = node.what {
            return Ok(Place::Covered(covered));
        }
        if let Some(fd) = &node.pinned {
            return Ok(Place::File(Arc::clone(fd)));
        }
        if let Some(fd) = self.open.get(&id) {
            return Ok(Place::File(Arc::clone(fd)));
        }
        let fd = Arc::new(self.find_again(host, id)?);
        self.open.push(id, Arc::clone(&fd));
        Ok(Place::File(fd))
    }

    /// Finds a node's file by its way from the nearest folder that is open.
    fn find_again(&mut self, host: &Host, id: u64) -> Result<OwnedFd, Errno> {
        let (mut way, mut at) = (Vec::new(), id);
        let start = loop {
            if at == ROOT {
                break Arc::clone(&self.root);
            }
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            // Not its own: that is what is looked for.
            if at != id
                && let Some(fd) = node.pinned.as_ref().or_else(|| self.open.peek(&at))
            {
                break Arc::clone(fd);
            }
            way.push(&node.name);
            at = node.parent;
            // Two folders that were found in each other, when they were moved on the host.
            if way.len() > DEEPEST {
                return Err(Errno::STALE);
            }
        };
        let mut fd: Option<OwnedFd> = None;
        for name in way.into_iter().rev() {
            let name = Name::new(name).map_err(|_| Errno::STALE)?;
            let found = match &fd {
                Some(folder) => host.find(folder, name),
                None => host.find(&*start, name),
            };
            fd = match found {
                Ok(Found::File(fd)) => Some(fd),
                Ok(Found::Covered) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    return Err(Errno::STALE);
                }
                Err(error) => return Err(error),
            };
        }
        let fd = fd.ok_or(Errno::STALE)?;
        match self.nodes.get(&id).map(|node| &node.what) {
            Some(What::File(identity)) if stat(&fd)?.identity() == *identity => Ok(fd),
            _ => Err(Errno::STALE),
        }
    }
}
