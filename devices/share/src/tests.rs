//! The server, driven by requests such as Linux sends.

mod hostile;
mod operations;
mod random;
mod rules;

use crate::protocol::{
    AttrOut, CreateIn, Dirent, EntryOut, ForgetIn, GetattrIn, InHeader, InitIn, InitOut, MAJOR, OpenIn,
    OpenOut, Operation, OutHeader, ROOT, ReadIn, ReleaseIn, SetattrIn, WriteIn, WriteOut,
};
use crate::{Access, Limits, Server};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A folder of the test's own, which goes with it.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmm-share-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The number of an operation.
pub fn code(operation: Operation) -> u32 {
    (0..64).find(|code| Operation::of(*code) == Some(operation)).unwrap()
}

/// A guest.
#[derive(Debug)]
pub struct Client {
    pub server: Server,
    /// Whom it asks for.
    pub owner: (u32, u32),
    unique: u64,
}

pub type Answer = Result<Vec<u8>, Errno>;

/// A structure from the beginning of a reply.
pub fn front<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).unwrap().0
}

/// Names as requests have them.
pub fn zeroed(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

impl Client {
    /// One that has not begun.
    pub fn silent(folder: &Path, access: Access, limits: Limits) -> Client {
        Client { server: Server::new(folder, access, limits).unwrap(), owner: (0, 0), unique: 0 }
    }

    pub fn new(folder: &Path, access: Access) -> Client {
        Client::limited(folder, access, Limits { nodes: 1000, descriptors: 64 })
    }

    pub fn limited(folder: &Path, access: Access, limits: Limits) -> Client {
        let mut client = Client::silent(folder, access, limits);
        let out: InitOut = front(&client.init(MAJOR, 41).unwrap());
        assert_eq!((out.major, out.minor, out.max_write), (7, 39, 1 << 20));
        client
    }

    pub fn init(&mut self, major: u32, minor: u32) -> Answer {
        let wanted = InitIn { major, minor, max_readahead: 1 << 17, flags: u32::MAX };
        let mut bytes = wanted.as_bytes().to_vec();
        bytes.resize(64, 0);
        self.call(Operation::Init, 0, &[&bytes])
    }

    /// Asks, with room for so much.
    pub fn ask(&mut self, operation: Operation, node: u64, parts: &[&[u8]], room: usize) -> Answer {
        self.unique += 1;
        let rest = parts.concat();
        let header = InHeader {
            len: u32::try_from(40 + rest.len()).unwrap(),
            opcode: code(operation),
            unique: self.unique,
            nodeid: node,
            uid: self.owner.0,
            gid: self.owner.1,
            ..InHeader::default()
        };
        let mut reply = vec![0xaa; 16 + room];
        let size = self.server.serve(&[header.as_bytes(), &rest].concat(), &mut reply);
        if !operation.has_reply() {
            assert_eq!(size, None);
            return Ok(Vec::new());
        }
        let out: OutHeader = front(&reply);
        assert_eq!((out.unique, Some(out.len as usize)), (self.unique, size));
        if out.error == 0 {
            Ok(reply[16..size.unwrap()].to_vec())
        } else {
            assert_eq!(size, Some(16));
            Err(Errno::from_raw_os_error(-out.error))
        }
    }

    pub fn call(&mut self, operation: Operation, node: u64, parts: &[&[u8]]) -> Answer {
        self.ask(operation, node, parts, 1 << 20)
    }

    pub fn look_up(&mut self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        self.call(Operation::Lookup, parent, &[&zeroed(name)]).map(|bytes| front(&bytes))
    }

    /// The entry of a path.
    pub fn walk(&mut self, path: &str) -> Result<EntryOut, Errno> {
        let mut entry = EntryOut { nodeid: ROOT, ..EntryOut::default() };
        for name in path.split('/') {
            entry = self.look_up(entry.nodeid, name)?;
        }
        Ok(entry)
    }

    pub fn forget(&mut self, node: u64, nlookup: u64) {
        self.call(Operation::Forget, node, &[ForgetIn { nlookup }.as_bytes()]).unwrap();
    }

    pub fn getattr(&mut self, node: u64) -> Result<AttrOut, Errno> {
        self.call(Operation::Getattr, node, &[GetattrIn::default().as_bytes()]).map(|bytes| front(&bytes))
    }

    pub fn setattr(&mut self, node: u64, set: SetattrIn) -> Result<AttrOut, Errno> {
        self.call(Operation::Setattr, node, &[set.as_bytes()]).map(|bytes| front(&bytes))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<OpenOut, Errno> {
        let open = OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        self.call(Operation::Open, node, &[open.as_bytes()]).map(|bytes| front(&bytes))
    }

    pub fn opendir(&mut self, node: u64) -> Result<OpenOut, Errno> {
        self.call(Operation::Opendir, node, &[OpenIn::default().as_bytes()]).map(|bytes| front(&bytes))
    }

    pub fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let make = CreateIn { flags: flags.cast_unsigned(), mode: 0o10_0000 | mode, ..CreateIn::default() };
        let bytes = self.call(Operation::Create, parent, &[make.as_bytes(), &zeroed(name)])?;
        Ok((front(&bytes), front(&bytes[128..])))
    }

    pub fn release(&mut self, fh: u64) {
        let release = ReleaseIn { fh, ..ReleaseIn::default() };
        self.call(Operation::Release, ROOT, &[release.as_bytes()]).unwrap();
    }

    pub fn read(&mut self, fh: u64, offset: u64, size: u32) -> Answer {
        let read = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.call(Operation::Read, ROOT, &[read.as_bytes()])
    }

    pub fn write(&mut self, fh: u64, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let write = WriteIn { fh, offset, size: u32::try_from(bytes.len()).unwrap(), ..WriteIn::default() };
        let out = self.call(Operation::Write, ROOT, &[write.as_bytes(), bytes])?;
        Ok(front::<WriteOut>(&out).size)
    }

    /// All names in a folder that is open, with room for so much at once.
    pub fn names(
        &mut self,
        node: u64,
        plus: bool,
        size: u32,
    ) -> Result<Vec<(String, u32, Option<EntryOut>)>, Errno> {
        let fh = self.opendir(node)?.fh;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let operation = if plus { Operation::Readdirplus } else { Operation::Readdir };
            let read = ReadIn { fh, offset, size, ..ReadIn::default() };
            let bytes = self.call(operation, node, &[read.as_bytes()])?;
            assert!(bytes.len() <= size as usize);
            if bytes.is_empty() {
                break;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let entry = plus.then(|| front::<EntryOut>(rest));
                rest = &rest[if plus { 128 } else { 0 }..];
                let (dirent, tail) = Dirent::read_from_prefix(rest).unwrap();
                let length = dirent.namelen as usize;
                let name = String::from_utf8(tail[..length].to_vec()).unwrap();
                names.push((name, dirent.kind, entry));
                offset = dirent.off;
                rest = &rest[(24 + length).next_multiple_of(8)..];
            }
        }
        self.call(Operation::Releasedir, node, &[ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes()])?;
        names.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(names)
    }
}

/// Flags of open(2), which are the same on both architectures.
pub const RDONLY: i32 = 0;
pub const WRONLY: i32 = 1;
pub const RDWR: i32 = 2;
pub const EXCL: i32 = 0o200;
pub const TRUNC: i32 = 0o1000;
pub const APPEND: i32 = 0o2000;
