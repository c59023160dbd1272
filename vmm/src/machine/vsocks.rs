//! The host's end of a guest's socket device: Unix sockets, one for whoever asks for a port of the guest's, and one for
//! each port that a program of the host's has, at the same path with `_PORT` behind it.

use crate::error::Error;
use crate::machine::config::VsockConfig;
use debug::socket::{self, Audience, BindError, Served};
use devices::virtio::vsock::{Host, Vsock};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Bytes of a socket's path (unix(7)), without those of `_` and a port.
const LONGEST_PATH: usize = 107 - 11;

/// Sockets below a path.
#[derive(Debug)]
struct Sockets {
    served: Served,
    path: PathBuf,
}

impl Host for Sockets {
    fn listener(&self) -> Option<RawFd> {
        Some(self.served.listener().as_raw_fd())
    }

    fn accept(&mut self) -> Option<UnixStream> {
        let (stream, _) = self.served.listener().accept().ok()?;
        stream.set_nonblocking(true).ok().map(|()| stream)
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let own = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // One whose program is busy is refused, and not waited for.
        connect(own.as_raw_fd(), &UnixAddr::new(path.as_os_str())?)?;
        Ok(own.into())
    }
}

/// Sockets that are open, and the guest's number.
#[derive(Clone, Debug)]
pub struct OpenVsock {
    sockets: Arc<Mutex<Sockets>>,
    cid: u32,
    /// How many connections there may be at a time.
    connections: usize,
}

/// Opens the host's end, for so many connections at a time at most.
///
/// # Errors
/// [`Error::Open`], also when another guest has the socket.
pub fn open(config: &VsockConfig, connections: usize) -> Result<OpenVsock, Error> {
    let path = &config.path;
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(Error::Usage(format!(
            "--vsock: a path of more than {LONGEST_PATH} bytes has no room for a port behind it"
        )));
    }
    let failed = |source| Error::Open { option: "--vsock", path: path.clone(), source };
    let served = socket::bind(path, Audience::Owner).map_err(|error| match error {
        BindError::Served(_) => failed(io::Error::other("another guest has this socket")),
        BindError::Io { source, .. } => failed(source),
        error => failed(io::Error::other(error)),
    })?;
    let sockets = Arc::new(Mutex::new(Sockets { served, path: path.clone() }));
    Ok(OpenVsock { sockets, cid: config.cid, connections })
}

impl OpenVsock {
    /// A device for it.
    ///
    /// # Errors
    /// [`Error::System`]: the system gives no more descriptors.
    pub fn device(&self) -> Result<Vsock, Error> {
        let sockets = Arc::clone(&self.sockets);
        Vsock::new(self.cid, self.connections, sockets).map_err(Error::system("cannot make a virtio device"))
    }
}
