//! How guest and server begin and end, and what the folder as a whole is.

use super::{Access, Body, MOST_WRITTEN, Outcome, Server};
use crate::node::Covered;
use crate::protocol::{Attr, InitIn, InitOut, Kstatfs, MAJOR, MINOR, OLDEST_MINOR, ROOT, init};
use crate::request::Request;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;

/// What is taken when the guest offers it.
///
/// Not taken, and why: the guest's cache for writes (what it has acknowledged would be lost with it), locks (other
/// guests' and the host's are another matter), ACLs and security contexts (which are the host's), umasks (the guest
/// applies its own), submounts (none are crossed), and requests without an open file (whose type is looked at then).
const WANTED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2;

/// The guest's pages of 4 KiB in one request; where it has larger ones, replies are as large as they make them, and
/// what is written stays at [`MOST_WRITTEN`].
const MOST_PAGES: u16 = 256;

/// What the guest is told of what something is mounted over.
pub fn covered_attr(covered: Covered) -> Attr {
    Attr {
        ino: covered.number,
        mode: if covered.is_folder { 0o4_0555 } else { 0o10_0444 },
        nlink: if covered.is_folder { 2 } else { 1 },
        blksize: 4096,
        ..Attr::default()
    }
}

impl Server {
    pub(super) fn init(&mut self, mut request: Request<'_>) -> Outcome {
        let wanted: InitIn = request.take()?;
        // A newer one asks again, in this one; an older one is nobody's.
        if wanted.major > MAJOR {
            return Ok(Body::of(&InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() }));
        }
        if wanted.major < MAJOR || wanted.minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        self.reset();
        self.has_begun = true;
        Ok(Body::of(&InitOut {
            major: MAJOR,
            minor: wanted.minor.min(MINOR),
            max_readahead: wanted.max_readahead,
            flags: wanted.flags & WANTED,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MOST_WRITTEN,
            time_gran: 1,
            max_pages: MOST_PAGES,
            ..InitOut::default()
        }))
    }

    pub(super) fn destroy(&mut self) -> Outcome {
        self.reset();
        Ok(Body::empty())
    }

    pub(super) fn statfs(&mut self, request: Request<'_>) -> Outcome {
        let node = request.header.nodeid;
        // What is covered is part of the folder's file system.
        let file = match self.file(node) {
            Err(Errno::ROFS) => self.file(ROOT),
            file => file,
        }?;
        let is = fs::fstatvfs(&*file)?;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Body::of(&Kstatfs {
            blocks: is.f_blocks,
            bfree: is.f_bfree,
            bavail: is.f_bavail,
            files: is.f_files,
            ffree: is.f_ffree,
            bsize: small(is.f_bsize),
            namelen: small(is.f_namemax),
            frsize: small(is.f_frsize),
            ..Kstatfs::default()
        }))
    }

    pub(super) fn syncfs(&mut self) -> Outcome {
        // A guest that cannot write has nothing to keep.
        if self.access == Access::ReadWrite {
            let root = self.file(ROOT)?;
            fs::syncfs(self.host.open(&*root, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        }
        Ok(Body::empty())
    }
}
