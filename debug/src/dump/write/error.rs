//! Why a dump is not written.

use std::io;
use std::path::PathBuf;

/// Why a dump was not written. The file that was asked for is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is something of the name that is no file.
    #[error("cannot write {}: it is there already, and is no regular file", .0.display())]
    NoFile(PathBuf),
    /// The file cannot be made or written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file that was asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Files of this process may not become as large as it would be.
    #[error(
        "cannot write {}: it would be {} MiB large, and a file may be {limit} bytes (ulimit -f); raise that, or have \
         it compressed (.gz, .zst)",
        path.display(), memory.div_ceil(1 << 20)
    )]
    TooLarge {
        /// The file that was asked for.
        path: PathBuf,
        /// Bytes of the memory that would be in it.
        memory: u64,
        /// Bytes that a file may have.
        limit: u64,
    },
    /// There is something of the name already.
    #[error("cannot write {}: it is there already", .0.display())]
    Exists(PathBuf),
    /// It would not be where it has to be.
    #[error("cannot write {}: give a path below {}, without '..' and links", path.display(), folder.display())]
    Outside {
        /// The file that was asked for.
        path: PathBuf,
        /// Where it has to be.
        folder: PathBuf,
    },
    /// Somebody else could have it written, or read, where they like.
    #[error(
        "cannot write {}: it, or a link on the way to it, is another user's, in a folder that everybody may write to",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Its name asks for what cannot be done.
    #[error("cannot write {}: {why}", path.display())]
    Name {
        /// The file that was asked for.
        path: PathBuf,
        /// What can be done.
        why: String,
    },
    /// Whoever watches wants no more of it.
    #[error("the dump to {} was broken off", .0.display())]
    Cancelled(PathBuf),
}
