//! Sockets in the file system: whose place may be taken, and by whom.
//!
//! A monitor that was killed leaves its socket behind, and the next one wants the name. Only a socket
//! that nobody serves may be replaced: never a regular file, never what a symbolic link leads to, and
//! never the socket of another monitor, also of one that starts at the same moment. [`bind`] is the
//! one place that decides so, for gdb's port and for the control socket.
//!
//! Source: unix(7), flock(2), link(2).

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Who may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Its owner (and root).
    Owner,
    /// Every user who can reach the folder.
    Everyone,
}

/// Why a socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is something of the name that is no socket.
    #[error("{} is there already and is no socket; choose another path", .0.display())]
    NoSocket(PathBuf),
    /// There is one of the name that somebody serves.
    #[error("{} is served by another process already", .0.display())]
    Served(PathBuf),
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that is listened to; its name goes with its value, if it is still this one's.
#[derive(Debug)]
pub struct Served {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl Served {
    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// One that was made by somebody else who has it no more, at a path.
    pub fn adopt(listener: UnixListener, path: &Path) -> Served {
        Served { listener, path: path.into(), identity: identity(path) }
    }

    /// Leaves it to somebody else, who has its descriptor as well: its name stays.
    pub fn leave(mut self) {
        self.identity = None;
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Somebody may have removed it and put another one there.
        let is_ours = identity(&self.path).is_some_and(|found| Some(found) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} is left over: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata: Metadata| (metadata.dev(), metadata.ino()))
}

/// How long another monitor that is starting is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an address, with the zero at its end (unix(7), `sun_path`).
const LONGEST_ADDRESS: usize = 108;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Listens at `path`, which nobody may serve yet. The descriptor does not block.
///
/// # Errors
/// [`BindError`]; then what was there is there as it was.
pub fn bind(path: &Path, audience: Audience) -> Result<Served, BindError> {
    let failed = |source: io::Error| BindError::Io { path: path.into(), source };
    let name = path.file_name().ok_or_else(|| failed(io::Error::other("it needs a name")))?;
    // A longer name could be given to it, but nobody could connect.
    if path.as_os_str().len() >= LONGEST_ADDRESS {
        return Err(failed(io::Error::other("a socket's path has 107 bytes at most")));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Monitors that start at once take turns. Where there is no lock to be had, for instance as
    // another user keeps one on /tmp, each step below is still safe for two of them.
    let _turn = lock(folder);
    // It is listened to before it has its name, so whoever finds it there finds it served.
    let own = Temporary::new(beside(path, name));
    let listener = listen_at(&own.0, audience).map_err(failed)?;
    for _ in 0..2 {
        match fs::hard_link(&own.0, path) {
            Ok(()) => {
                let identity = identity(path);
                return Ok(Served { listener, path: path.into(), identity });
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => remove_stale(path)?,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(BindError::Served(path.into()))
}

/// A name beside `path`, hidden, that nobody else in this process or another makes.
fn beside(path: &Path, name: &OsStr) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = format!(".{:x}.{:x}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut own = OsStr::new(".").to_os_string();
    own.push(name);
    own.push(&number);
    let long = path.with_file_name(own);
    // An address has room for 107 bytes; where the name itself just fits, the number has to do.
    if long.as_os_str().len() < LONGEST_ADDRESS { long } else { path.with_file_name(number) }
}

/// A name that goes at the end, whatever the end is.
struct Temporary(PathBuf);

impl Temporary {
    /// One that a killed process with the same number may have left goes first: nobody else makes such
    /// names.
    fn new(path: PathBuf) -> Temporary {
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            fs::remove_file(&path).ok();
        }
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may never have been made.
        fs::remove_file(&self.0).ok();
    }
}

/// A lock on a folder, which ends with the value or the process.
fn lock(folder: &Path) -> Option<Flock<File>> {
    let mut file = File::open(folder).ok()?;
    let until = Instant::now() + PATIENCE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < until => file,
            Err(_) => return None,
        };
        thread::park_timeout(Duration::from_millis(10));
    }
}

fn listen_at(path: &Path, audience: Audience) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let mode = match audience {
        Audience::Owner => 0o600,
        Audience::Everyone => 0o666,
    };
    // Linux makes the file with the descriptor's permissions, so there is no moment without them.
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    bind_to(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?)?;
    if audience == Audience::Everyone {
        // In spite of the process's mask.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}

/// Takes a socket away that nobody serves.
/// Removes a socket that nobody serves; `false` where somebody does, or there is none.
///
/// # Errors
/// [`BindError`]: what is there is no socket, or the system refuses.
pub fn remove_if_stale(path: &Path) -> Result<bool, BindError> {
    let _turn = path.parent().and_then(lock);
    if fs::symlink_metadata(path).is_err() {
        return Ok(false);
    }
    match remove_stale(path) {
        Ok(()) => Ok(true),
        Err(BindError::Served(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.into(), source };
    if is_served(path)? {
        return Err(BindError::Served(path.into()));
    }
    // What is taken away may be another one by now, so it is looked at again where nobody else finds it.
    let aside = beside(path, path.file_name().unwrap_or_default());
    match fs::rename(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match is_served(&aside) {
        Ok(false) => fs::remove_file(&aside).map_err(failed),
        other => {
            // It goes back, unless the name is taken, by something that came later.
            if fs::hard_link(&aside, path).is_ok() {
                fs::remove_file(&aside).ok();
            }
            other.and(Err(BindError::Served(path.into())))
        }
    }
}

/// Whether somebody listens at a socket; an error for what is none.
fn is_served(path: &Path) -> Result<bool, BindError> {
    let failed = |source| BindError::Io { path: path.into(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // It went meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NoSocket(path.into()));
    }
    match knock(path) {
        Ok(_) => Ok(true),
        // A full queue of connections is served, too.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Connects, and does not wait for one whose queue is full, which may be for ever.
fn knock(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    /// A folder of a test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vmm-socket-{}-{name}", process::id()));
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn entries(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_a_socket_that_nobody_serves_is_replaced() {
        let folder = folder("stale");
        let path = folder.join("s");
        drop(UnixListener::bind(&path).unwrap());
        let served = bind(&path, Audience::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(entries(&folder), ["s"]);
        let again = bind(&path, Audience::Owner).unwrap_err();
        assert!(matches!(again, BindError::Served(_)), "{again}");
        UnixStream::connect(&path).unwrap();
        drop(served);
        assert!(entries(&folder).is_empty());
    }

    #[test]
    fn one_that_accepts_nobody_is_served_and_not_waited_for() {
        let folder = folder("full");
        let path = folder.join("s");
        let _served = bind(&path, Audience::Owner).unwrap();
        let mut queue = Vec::new();
        let full = loop {
            match knock(&path) {
                Ok(waiting) => queue.push(waiting),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let again = bind(&path, Audience::Owner).unwrap_err();
        assert!(matches!(again, BindError::Served(_)), "{again}");
        assert_eq!(entries(&folder), ["s"]);
    }

    #[test]
    fn files_and_links_stay() {
        let folder = folder("files");
        let (file, link, dangling) = (folder.join("f"), folder.join("l"), folder.join("d"));
        fs::write(&file, "precious").unwrap();
        symlink(&file, &link).unwrap();
        symlink(folder.join("nowhere"), &dangling).unwrap();
        // A link to a socket that nobody serves is a link all the same.
        drop(UnixListener::bind(folder.join("stale")).unwrap());
        symlink(folder.join("stale"), folder.join("m")).unwrap();
        for path in [&file, &link, &dangling, &folder.join("m"), &folder] {
            let error = bind(path, Audience::Everyone).unwrap_err();
            assert!(matches!(error, BindError::NoSocket(_)), "{}: {error}", path.display());
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
        assert_eq!(entries(&folder), ["d", "f", "l", "m", "stale"]);
        let long = bind(Path::new(&"x".repeat(LONGEST_ADDRESS)), Audience::Owner).unwrap_err();
        assert!(matches!(long, BindError::Io { .. }), "{long}");
        let nowhere = bind(&folder.join("no/s"), Audience::Owner).unwrap_err();
        assert!(matches!(nowhere, BindError::Io { .. }), "{nowhere}");
    }

    #[test]
    fn a_name_that_another_has_taken_is_left_to_it() {
        let folder = folder("taken");
        let path = folder.join("s");
        let served = bind(&path, Audience::Owner).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(served);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
    }

    #[test]
    fn of_many_that_start_at_once_one_is_served() {
        let folder = folder("many");
        for round in 0..20 {
            let path = folder.join(format!("s{round}"));
            // Its owner was killed.
            drop(UnixListener::bind(&path).unwrap());
            let barrier = Barrier::new(4);
            let start = || {
                barrier.wait();
                bind(&path, Audience::Owner)
            };
            let results: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let served = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(served, 1, "{results:?}");
            UnixStream::connect(&path).unwrap();
        }
    }
}
