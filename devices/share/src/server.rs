//! The server: a request's way to what carries it out, and its reply.

mod attributes;
mod content;
mod folders;
mod making;
mod names;
mod opening;
mod removing;
mod session;

pub use opening::State;

use crate::handle::{Handles, Opened};
use crate::host::{Host, ShareError, Stat, stat};
use crate::node::{Nodes, Place};
use crate::owners::Owners;
use crate::protocol::{Attr, BatchForgetIn, Effect, ForgetIn, ForgetOne, OpenIn, Operation, OutHeader};
use crate::request::Request;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use zerocopy::{Immutable, IntoBytes};

/// The most bytes that one request has the guest write; longer requests need not be read.
pub const MOST_WRITTEN: u32 = 1 << 20;

/// Whether a guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may read alone.
    ReadOnly,
    /// It may do what this process may.
    ReadWrite,
}

/// The most that a share takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files that the guest knows at the same time: some 300 bytes each.
    pub nodes: usize,
    /// Descriptors: half of them for what the guest has open, the others for what it looks at.
    pub descriptors: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 1 << 20, descriptors: 4096 }
    }
}

/// Where a reply goes: memory of whoever asked.
pub trait Reply {
    /// How many bytes it has.
    fn room(&self) -> usize;

    /// Writes to it; what goes beyond its end is nowhere.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

impl Reply for Vec<u8> {
    fn room(&self) -> usize {
        self.len()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = self.len().min(offset.saturating_add(bytes.len()));
        if let Some(place) = self.get_mut(offset..end) {
            place.copy_from_slice(&bytes[..place.len()]);
        }
    }
}

const HEADER: usize = size_of::<OutHeader>();

/// What there is of a reply behind its header.
#[derive(Debug)]
enum Body {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many that are in their place.
    Placed(usize),
}

impl Body {
    fn empty() -> Body {
        Body::Bytes(Vec::new())
    }

    fn of(structure: &(impl IntoBytes + Immutable)) -> Body {
        Body::Bytes(structure.as_bytes().to_vec())
    }
}

type Outcome = Result<Body, Errno>;

/// A folder that is served.
#[derive(Debug)]
pub struct Server {
    host: Host,
    nodes: Nodes,
    handles: Handles,
    access: Access,
    owners: Owners,
    /// The guest has agreed on how it speaks.
    has_begun: bool,
    /// The time, in seconds since 1970, for what the host's clock is asked.
    now: fn() -> i64,
    /// What is read from a file and not yet in the reply.
    buffer: Vec<u8>,
}

/// How long a guest may believe what it was told, in seconds: what changes on the host it sees after that.
const VALID: u64 = 1;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Server {
    /// Serves a folder.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn new(folder: &Path, access: Access, limits: Limits) -> Result<Server, ShareError> {
        let (host, root) = Host::new(folder)?;
        Ok(Server {
            host,
            nodes: Nodes::new(root, limits.nodes, limits.descriptors / 4),
            handles: Handles::new(limits.descriptors / 2),
            access,
            owners: Owners::of_this_process(),
            has_begun: false,
            now,
            buffer: Vec::new(),
        })
    }

    /// Has the guest see an empty folder, or an empty file, in place of what is at this path below the shared folder, of
    /// names alone and without links: whatever is there, also later, but nothing where nothing is. For what is read-only.
    ///
    /// # Errors
    /// [`ShareError::Writable`], and [`ShareError::Folder`] for a path that has no name, or leads over links.
    pub fn cover(&mut self, place: &Path) -> Result<(), ShareError> {
        if self.access == Access::ReadWrite {
            return Err(ShareError::Writable);
        }
        self.host.cover(self.nodes.root(), place)
    }

    /// Has files be as old as they are when it is so late.
    #[cfg(test)]
    pub(crate) fn set_clock(&mut self, now: fn() -> i64) {
        self.now = now;
    }

    /// Forgets the guest: it begins anew.
    pub fn reset(&mut self) {
        self.nodes.clear();
        self.handles.clear();
        self.has_begun = false;
    }

    /// How many files the guest knows, how many it has open, and how many descriptors there are of both.
    pub fn load(&self) -> (usize, usize, usize) {
        (self.nodes.count(), self.handles.count(), self.handles.count() + self.nodes.descriptors())
    }

    /// Serves one request, which is whole or what there is of it; how many bytes the reply has, `None` if there is to be
    /// none.
    pub fn serve(&mut self, request: &[u8], reply: &mut dyn Reply) -> Option<usize> {
        let (header, outcome) = match Request::new(request) {
            Ok(request) => {
                let operation = Operation::of(request.header.opcode);
                let outcome = match operation {
                    Some(operation) if !operation.has_reply() => {
                        self.forget(operation, request);
                        return None;
                    }
                    Some(operation) => self.carry_out(operation, request, reply),
                    None => Err(Errno::NOSYS),
                };
                (request.header, outcome)
            }
            // Not even whom to answer.
            Err(None) => return None,
            Err(Some(header)) if Operation::of(header.opcode).is_some_and(|it| !it.has_reply()) => {
                return None;
            }
            Err(Some(header)) => (header, Err(Errno::INVAL)),
        };
        if reply.room() < HEADER {
            return None;
        }
        let (error, size) = match outcome {
            Ok(Body::Bytes(bytes)) if bytes.len() > reply.room() - HEADER => (Errno::INVAL.raw_os_error(), 0),
            Ok(Body::Bytes(bytes)) => {
                reply.write(HEADER, &bytes);
                (0, bytes.len())
            }
            Ok(Body::Placed(size)) => (0, size),
            Err(error) => (error.raw_os_error(), 0),
        };
        let size = HEADER + size;
        let header =
            OutHeader { len: u32::try_from(size).unwrap_or(u32::MAX), error: -error, unique: header.unique };
        reply.write(0, header.as_bytes());
        Some(size)
    }

    /// What a read-only share refuses.
    fn may(&self, operation: Operation, mut request: Request<'_>) -> Result<(), Errno> {
        let writes = match operation.effect() {
            Effect::Reads => false,
            Effect::Writes => true,
            Effect::Opens => {
                let flags = OFlags::from_bits_retain(request.take::<OpenIn>()?.flags);
                flags.intersects(OFlags::ACCMODE | OFlags::TRUNC)
            }
        };
        if writes && self.access == Access::ReadOnly { Err(Errno::ROFS) } else { Ok(()) }
    }

    fn carry_out(&mut self, operation: Operation, request: Request<'_>, reply: &mut dyn Reply) -> Outcome {
        if !self.has_begun && operation != Operation::Init {
            return Err(Errno::IO);
        }
        self.may(operation, request)?;
        match operation {
            Operation::Init => self.init(request),
            Operation::Destroy => self.destroy(),
            Operation::Lookup => self.look_up(request),
            Operation::Getattr => self.getattr(request),
            Operation::Setattr => self.setattr(request),
            Operation::Statx => self.statx(request),
            Operation::Statfs => self.statfs(request),
            Operation::Readlink => self.readlink(request),
            Operation::Symlink => self.symlink(request),
            Operation::Mknod => self.mknod(request),
            Operation::Mkdir => self.mkdir(request),
            Operation::Create => self.create(request),
            Operation::Tmpfile => self.tmpfile(request),
            Operation::Link => self.link(request),
            Operation::Unlink => self.unlink(request),
            Operation::Rmdir => self.rmdir(request),
            Operation::Rename | Operation::Rename2 => self.rename(operation, request),
            Operation::Open => self.open(request),
            Operation::Release | Operation::Releasedir => self.release(request),
            Operation::Read => self.read(request, reply),
            Operation::Write => self.write(request),
            Operation::Fsync | Operation::Fsyncdir => self.fsync(request),
            Operation::Syncfs => self.syncfs(),
            Operation::Lseek => self.lseek(request),
            Operation::Fallocate => self.fallocate(request),
            Operation::CopyFileRange => self.copy_file_range(request),
            Operation::Getxattr => self.getxattr(request),
            Operation::Setxattr => self.setxattr(request),
            Operation::Listxattr => self.listxattr(request),
            Operation::Removexattr => self.removexattr(request),
            Operation::Opendir => self.opendir(request),
            Operation::Readdir | Operation::Readdirplus => self.readdir(operation, request, reply.room()),
            // They have no reply and do not come here.
            Operation::Forget | Operation::BatchForget | Operation::Interrupt => Err(Errno::NOSYS),
        }
    }

    /// What is not answered. One that is in flight cannot be interrupted: it is done before this one is looked at.
    fn forget(&mut self, operation: Operation, mut request: Request<'_>) {
        match operation {
            Operation::Forget => {
                if let Ok(forget) = request.take::<ForgetIn>() {
                    self.nodes.forget(request.header.nodeid, forget.nlookup);
                }
            }
            Operation::BatchForget => {
                let count = request.take::<BatchForgetIn>().map_or(0, |batch| batch.count);
                for _ in 0..count {
                    let Ok(forget) = request.take::<ForgetOne>() else { break };
                    self.nodes.forget(forget.nodeid, forget.nlookup);
                }
            }
            _ => {}
        }
    }

    /// Where a node is. One whose file has lost its name is still there when it is open.
    fn place(&mut self, node: u64) -> Result<Place, Errno> {
        match self.nodes.place(&self.host, node) {
            Err(Errno::STALE) => self.handles.of_node(node).map(Place::File).ok_or(Errno::STALE),
            place => place,
        }
    }

    /// A node's file.
    fn file(&mut self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        self.place(node)?.file()
    }

    /// A node's file, or by a handle, if the request has one.
    fn file_or_handle(&mut self, node: u64, handle: Option<u64>) -> Result<Place, Errno> {
        match handle.map(|handle| self.handles.get(handle)) {
            Some(Ok(Opened::File(fd) | Opened::Folder(fd))) => Ok(Place::File(Arc::clone(fd))),
            Some(Err(error)) => Err(error),
            Some(Ok(Opened::Covered)) | None => self.place(node),
        }
    }

    /// What the guest is told of a place.
    fn attr(&self, place: &Place) -> Result<Attr, Errno> {
        match place {
            Place::File(fd) => Ok(self.shown(&stat(&**fd)?)),
            Place::Covered(covered) => Ok(session::covered_attr(*covered)),
        }
    }

    /// What the guest is told of a file.
    fn shown(&self, stat: &Stat) -> Attr {
        let mut attr = stat.attr();
        self.owners.show(&mut attr);
        attr
    }
}
