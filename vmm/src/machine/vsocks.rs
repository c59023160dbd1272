//! The host's end of a guest's socket device: this host's kernel ([`in_kernel`]), or Unix sockets, one for whoever asks for
//! a port of the guest's, and one for each port that a program of the host's has, at the same path with `_PORT` behind it.

mod in_kernel;

use crate::error::Error;
use crate::machine::config::{VsockConfig, VsockHost};
use debug::socket::{self, Audience, BindError, Served};
use devices::virtio::vsock::in_kernel::KernelVsock;
use devices::virtio::vsock::{FIRST_CID, Host, Vsock};
use in_kernel::{HostKernel, OfGuest};
use kvm::ram::GuestMemory;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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

    fn accept(&mut self) -> io::Result<UnixStream> {
        let (stream, _) = self.served.listener().accept()?;
        stream.set_nonblocking(true).map(|()| stream)
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

/// The host's end, open.
#[derive(Clone, Debug)]
pub enum OpenVsock {
    /// The kernel's.
    Kernel(OpenKernel),
    /// Unix sockets.
    Sockets(OpenSockets),
}

/// The kernel's part, which outlives one start of the guest.
#[derive(Clone, Debug)]
pub struct OpenKernel(Arc<HostKernel>);

impl OpenKernel {
    /// A device for it, of a guest with this memory. It is this one's from its driver's beginning on, by when the former
    /// one serves no more.
    ///
    /// # Errors
    /// [`Error::System`]: the system gives no more descriptors.
    pub fn device(&self, memory: &GuestMemory) -> Result<KernelVsock, Error> {
        let kernel = OfGuest { host: Arc::clone(&self.0), memory: memory.clone() };
        KernelVsock::new(Arc::new(kernel)).map_err(Error::system("cannot make a virtio device"))
    }
}

/// Sockets that are open, and the guest's number.
#[derive(Clone, Debug)]
pub struct OpenSockets {
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
    match &config.host {
        VsockHost::Sockets(path) => {
            open_sockets(path, config.cid.unwrap_or(FIRST_CID), connections).map(OpenVsock::Sockets)
        }
        VsockHost::Kernel => {
            let failed = |source| Error::Open { option: "--vsock", path: VsockHost::KERNEL.into(), source };
            let kernel = HostKernel::open(config.cid).map_err(failed)?;
            Ok(OpenVsock::Kernel(OpenKernel(Arc::new(kernel))))
        }
    }
}

fn open_sockets(path: &Path, cid: u32, connections: usize) -> Result<OpenSockets, Error> {
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(Error::Usage(format!(
            "--vsock: a path of more than {LONGEST_PATH} bytes has no room for a port behind it"
        )));
    }
    let failed = |source| Error::Open { option: "--vsock", path: path.into(), source };
    let served = socket::bind(path, Audience::Owner).map_err(|error| match error {
        BindError::Served(_) => failed(io::Error::other("another guest has this socket")),
        BindError::Io { source, .. } => failed(source),
        error => failed(io::Error::other(error)),
    })?;
    let sockets = Arc::new(Mutex::new(Sockets { served, path: path.into() }));
    Ok(OpenSockets { sockets, cid, connections })
}

impl OpenSockets {
    /// A device for it.
    ///
    /// # Errors
    /// [`Error::System`]: the system gives no more descriptors.
    pub fn device(&self) -> Result<Vsock, Error> {
        let sockets = Arc::clone(&self.sockets);
        Vsock::new(self.cid, self.connections, sockets).map_err(Error::system("cannot make a virtio device"))
    }
}
