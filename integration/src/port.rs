//! A nest's virtio ports: their other ends are files and sockets of the harness.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The name of the port that carries a debugger's connection.
pub const GDB: &str = "gdb";

/// The name of the port that takes a file out of a nest.
pub const EXPORT: &str = "export";

/// Looks up a port by its name.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::other(format!("there is no virtio port named {name}")))
}

/// Connects to a socket that may not be there yet.
///
/// # Errors
/// When it does not appear within half a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    connect_unless(socket, &|| false)?.ok_or_else(|| io::Error::other("it is over"))
}

/// The same; `None` once `is_over` says that nobody will be there any more.
///
/// # Errors
/// As [`connect`].
pub fn connect_unless(socket: &Path, is_over: &dyn Fn() -> bool) -> io::Result<Option<UnixStream>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(Some(stream)),
            Err(_) if is_over() => return Ok(None),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::park_timeout(Duration::from_millis(10)),
        }
    }
}
