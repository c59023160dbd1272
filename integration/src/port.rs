//! A nest's virtio ports: their other ends are files and sockets of the harness.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
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

/// Carries connections between the port and a socket, one after the other, until `is_over`
/// says so.
///
/// # Errors
/// When the port or the socket cannot be opened.
pub fn carry(port: &Path, socket: &Path, is_over: &dyn Fn() -> bool) -> io::Result<()> {
    let mut port = OpenOptions::new().read(true).write(true).open(port)?;
    let mut buffer = [0; 4096];
    while !is_over() {
        // A port whose other end is not connected reads as empty.
        let count = port.read(&mut buffer)?;
        if count == 0 {
            thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        let mut first = buffer[..count].to_vec();
        while !first.is_empty() {
            let Some(stream) = connect_unless(socket, is_over)? else { return Ok(()) };
            first = carry_one(&mut port, stream, &first)?;
        }
    }
    Ok(())
}

/// Carries one connection, whose first bytes have arrived. The first bytes of the next one, where that has come
/// before the end of this one was seen.
fn carry_one(port: &mut File, mut stream: UnixStream, first: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(first)?;
    let (mut back, mut to) = (stream.try_clone()?, port.try_clone()?);
    let answers = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = back.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    });
    let (mut buffer, mut next) = ([0; 4096], Vec::new());
    while let Ok(count @ 1..) = port.read(&mut buffer) {
        if answers.is_finished() || stream.write_all(&buffer[..count]).is_err() {
            next.extend(&buffer[..count]);
            break;
        }
    }
    // One that is closed already cannot be closed again.
    stream.shutdown(Shutdown::Both).ok();
    answers.join().map_err(|_| io::Error::other("carrying answers failed"))?;
    Ok(next)
}

/// Connects to a socket that may not be there yet.
///
/// # Errors
/// When it does not appear within half a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    connect_unless(socket, &|| false)?.ok_or_else(|| io::Error::other("it is over"))
}

/// The same; `None` once `is_over` says that nobody will be there any more.
fn connect_unless(socket: &Path, is_over: &dyn Fn() -> bool) -> io::Result<Option<UnixStream>> {
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
