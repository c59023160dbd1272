//! Where a debugger connects, and who it is that does.
//!
//! Whoever speaks to the port owns the guest, and writes files by `monitor dump`. So a Unix socket is
//! its owner's, and who may come over TCP is asked of a [`Admission`], which the monitor gives us: to know
//! a peer's user takes the kernel's socket diagnostics.

use super::memory_stream::MemoryStream;
use crate::socket::{self, Audience, BindError, Served};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Where a debugger connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Endpoint {
    /// Parses `:PORT`, `HOST:PORT` or `unix:PATH`. Without a host it is loopback.
    ///
    /// # Errors
    /// A message that shows how it is written.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: needs a path behind it".into()),
                path => Ok(Endpoint::Unix(path.into())),
            };
        }
        let wrong = || format!("'{text}' is not an address: write :1234, 127.0.0.1:1234 or unix:PATH");
        if let Some(port) = text.strip_prefix(':') {
            let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().map_err(|_| match is_number {
                true => format!("there is no port {port}: they end at 65535"),
                false => wrong(),
            })?;
            return Ok(Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        text.to_socket_addrs().ok().and_then(|mut found| found.next()).map(Endpoint::Tcp).ok_or_else(wrong)
    }

    /// Whether others than this machine's own users can reach it.
    pub fn is_open(&self) -> bool {
        matches!(self, Endpoint::Tcp(address) if !address.ip().is_loopback())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp {
        /// The peer's end.
        remote: SocketAddr,
        /// Ours.
        local: SocketAddr,
    },
    /// By a Unix socket.
    Unix {
        /// The user that the peer's process had when it connected.
        user: Option<u32>,
        /// The process.
        process: Option<i32>,
    },
}

impl Peer {
    /// Whether it is over TCP from this machine, so that the kernel knows whose process it is.
    pub fn is_local_tcp(&self) -> bool {
        let plain = |ip: IpAddr| ip.to_canonical();
        match self {
            Peer::Tcp { remote, local } => {
                plain(remote.ip()).is_loopback() || plain(remote.ip()) == plain(local.ip())
            }
            Peer::Unix { .. } => false,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp { remote, .. } => write!(f, "{remote}"),
            Peer::Unix { user: Some(user), process: Some(process) } => {
                write!(f, "process {process} of user {user}")
            }
            Peer::Unix { .. } => f.write_str("a process"),
        }
    }
}

type Ask = dyn Fn(&Peer) -> Result<(), String> + Send;

/// Says whether a peer may be served, and if not, why, in words for both sides.
pub struct Admission(Box<Ask>);

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    /// One that asks `ask`.
    pub fn new(ask: impl Fn(&Peer) -> Result<(), String> + Send + 'static) -> Admission {
        Admission(Box::new(ask))
    }

    /// Everybody is served.
    pub fn open() -> Admission {
        Admission::new(|_| Ok(()))
    }

    /// Asks.
    ///
    /// # Errors
    /// Why the peer is not served.
    pub fn ask(&self, peer: &Peer) -> Result<(), String> {
        (self.0)(peer)
    }
}

/// A socket that waits for debuggers.
#[derive(Debug)]
pub enum ListeningSocket {
    /// TCP.
    Tcp(TcpListener),
    /// A socket in the file system, which is removed at the end.
    Unix(Served),
}

impl ListeningSocket {
    /// Opens the socket. One in the file system is for `audience`.
    ///
    /// # Errors
    /// What the system says, or what is in the way.
    pub fn bind(address: &Endpoint, audience: Audience) -> io::Result<ListeningSocket> {
        match address {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(ListeningSocket::Tcp(listener))
            }
            Endpoint::Unix(path) => match socket::bind(path, audience) {
                Ok(served) => Ok(ListeningSocket::Unix(served)),
                Err(BindError::Io { source, .. }) => Err(source),
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }

    /// Where it is; a port that was 0 has become a real one.
    pub fn address(&self) -> String {
        match self {
            ListeningSocket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".into(), |it| it.to_string())
            }
            ListeningSocket::Unix(served) => format!("unix:{}", served.path().display()),
        }
    }

    pub(super) fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            ListeningSocket::Tcp(listener) => {
                let (stream, remote) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                if let Err(error) = keep_alive(&stream) {
                    log::warn!("a debugger that vanishes will not be noticed: {error}");
                }
                let local = stream.local_addr()?;
                Ok((Stream::Tcp(stream), Peer::Tcp { remote, local }))
            }
            ListeningSocket::Unix(served) => {
                let (stream, _) = served.listener().accept()?;
                stream.set_nonblocking(true)?;
                let peer = getsockopt(&stream, sockopt::PeerCredentials).ok();
                let user = peer.map(|peer| peer.uid());
                Ok((Stream::Unix(stream), Peer::Unix { user, process: peer.map(|peer| peer.pid()) }))
            }
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListeningSocket::Tcp(listener) => listener.as_fd(),
            ListeningSocket::Unix(served) => served.listener().as_fd(),
        }
    }
}

/// After this much silence a peer is asked whether it is there, seconds.
const IDLE: u32 = 15;
/// This often, seconds apart, and it is gone.
const PROBES: u32 = 3;
const BETWEEN: u32 = 5;

/// Has the kernel notice a peer that has vanished within half a minute: one that says nothing (tcp(7),
/// `TCP_KEEPIDLE` and its like), and one that takes nothing (`TCP_USER_TIMEOUT`).
fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &IDLE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &BETWEEN)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &((IDLE + PROBES * BETWEEN) * 1000))
}

/// A connection, which does not block.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// A script's, without a socket.
    Memory(MemoryStream),
}

impl Stream {
    /// Whether it has not been reset. Once it has, its peer's address may be another socket's, so what the
    /// kernel says of that is not of this peer; and what it sent before can still be read.
    pub fn is_connected(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().is_ok(),
            Stream::Unix(_) | Stream::Memory(_) => true,
        }
    }

    /// Whether its peer will send nothing more; what it has sent may be unread.
    pub fn has_hung_up(&self) -> bool {
        if let Stream::Memory(stream) = self {
            return stream.has_hung_up();
        }
        // nix has no name for it, and so none for an answer that has it (poll(2)).
        let hangs_up = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.as_fd(), hangs_up)];
        let is_gone = |found: PollFlags| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_none_or(is_gone)
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => Read::read(&mut &*stream, buffer),
            Stream::Unix(stream) => Read::read(&mut &*stream, buffer),
            Stream::Memory(stream) => stream.read(buffer),
        }
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => Write::write(&mut &*stream, bytes),
            Stream::Unix(stream) => Write::write(&mut &*stream, bytes),
            Stream::Memory(stream) => stream.write(bytes),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Memory(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| match Endpoint::parse(text) {
            Ok(Endpoint::Tcp(address)) => address.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(tcp(":1234"), "127.0.0.1:1234");
        assert_eq!(tcp("127.0.0.1:0"), "127.0.0.1:0");
        assert_eq!(tcp("[::1]:1234"), "[::1]:1234");
        assert_eq!(Endpoint::parse("unix:/tmp/x"), Ok(Endpoint::Unix("/tmp/x".into())));
        for wrong in ["", "unix:", "1234", ":", ":99999", ":x"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
        assert!(!Endpoint::parse(":1").unwrap().is_open());
        assert!(Endpoint::parse("0.0.0.0:1").unwrap().is_open());
    }

    #[test]
    fn local_peers_are_known_in_either_family() {
        let peer = |remote: &str, local: &str| Peer::Tcp {
            remote: remote.parse().unwrap(),
            local: local.parse().unwrap(),
        };
        assert!(peer("127.0.0.1:5", "127.0.0.1:1").is_local_tcp());
        assert!(peer("[::1]:5", "[::1]:1").is_local_tcp());
        assert!(peer("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:1").is_local_tcp());
        assert!(peer("[::ffff:10.0.0.1]:5", "10.0.0.1:1").is_local_tcp());
        assert!(!peer("10.0.0.2:5", "10.0.0.1:1").is_local_tcp());
        assert!(!Peer::Unix { user: None, process: None }.is_local_tcp());
    }

    #[test]
    fn a_peer_that_resets_its_connection_is_none() {
        let listener =
            ListeningSocket::bind(&Endpoint::parse("127.0.0.1:0").unwrap(), Audience::Owner).unwrap();
        let accept = || loop {
            match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => break accepted.unwrap().0,
            }
        };
        for resets in [false, true] {
            let mut client = TcpStream::connect(listener.address()).unwrap();
            client.write_all(b"$k#6b").unwrap();
            if resets {
                let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&client, sockopt::Linger, &linger).unwrap();
            }
            drop(client);
            let stream = accept();
            assert_eq!(stream.is_connected(), !resets);
            assert!(stream.has_hung_up());
        }
    }

    #[test]
    fn a_peer_that_vanishes_is_noticed_in_half_a_minute() {
        let listener =
            ListeningSocket::bind(&Endpoint::parse("127.0.0.1:0").unwrap(), Audience::Owner).unwrap();
        let _client = TcpStream::connect(listener.address()).unwrap();
        let (stream, _) = loop {
            match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => break accepted.unwrap(),
            }
        };
        assert!(!stream.has_hung_up());
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        let after = [
            getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(),
            getsockopt(&stream, sockopt::TcpKeepInterval).unwrap(),
            getsockopt(&stream, sockopt::TcpKeepCount).unwrap(),
        ];
        assert_eq!(after[0] + after[1] * after[2], 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(), 30_000);
    }
}
