//! Who may speak to gdb's port, and to a control socket: whose process is at the other end of a connection.
//!
//! Whoever speaks to the port owns the guest and has the monitor write files, and on loopback that is
//! every user of the machine. So the kernel is asked whose socket the peer's is: by its socket
//! diagnostics (sock_diag(7), `inet_diag`), or where they are missing by `/proc/net/tcp` (proc_pid_net(5)).
//! Only an established socket that a process still has open counts: of a closed one some kernels say
//! that it is root's.

use debug::gdb::endpoint::{Admission, Peer};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;

/// Admits this process's own user, root, and under sudo the user who called it;
/// everybody with `any_user`.
pub fn admission(any_user: bool) -> Admission {
    if any_user {
        return Admission::open();
    }
    let users = Users::new();
    Admission::new(move |peer| {
        let user = match peer {
            Peer::Tcp { .. } if !peer.is_local_tcp() => return Ok(()),
            Peer::Tcp { remote, local } => owner(*remote, *local).map_err(|error| {
                log::debug!("whose process is at {remote} is not known: {error}");
                format!("it is not known whose process it is ({HINT})")
            })?,
            Peer::Unix { user, .. } => *user,
        };
        match user {
            Some(user) if users.have(user) => Ok(()),
            Some(user) => {
                Err(format!("it is a process of user {user}, and only those of {users} are served ({HINT})"))
            }
            None => Err(format!("it is not known whose process it is ({HINT})")),
        }
    })
}

/// Whether whoever has connected to a control socket is this process's own user, root, or under sudo who called it. The
/// socket's folder lets nobody else in, as far as it has stayed what it was.
///
/// # Errors
/// In words, who it is.
pub fn may_ask(stream: &UnixStream) -> Result<(), String> {
    let users = Users::new();
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(peer) if users.have(peer.uid()) => Ok(()),
        Ok(peer) => Err(format!("you are user {}, and only {users} is answered", peer.uid())),
        Err(error) => Err(format!("it is not known who you are: {error}")),
    }
}

const HINT: &str = "--gdb-any-user serves everybody";

/// Users who are served.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Users {
    own: u32,
    /// Who called sudo.
    caller: Option<u32>,
}

impl Users {
    fn new() -> Users {
        let own = nix::unistd::geteuid().as_raw();
        let caller = std::env::var("SUDO_UID").ok().and_then(|user| user.parse().ok());
        // What is in the environment of one who is not root says nothing.
        Users { own, caller: caller.filter(|_| own == 0) }
    }

    fn have(&self, user: u32) -> bool {
        user == 0 || user == self.own || Some(user) == self.caller
    }
}

impl std::fmt::Display for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.own, self.caller) {
            (0, None) => f.write_str("root"),
            (0, Some(caller)) => write!(f, "root and user {caller}"),
            (own, _) => write!(f, "root and user {own}"),
        }
    }
}

/// The user whose process has the socket at `remote` that is connected to `local`; `None` if none has.
///
/// # Errors
/// When neither the diagnostics nor `/proc` can be asked.
fn owner(remote: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    // A peer of either family may have an IPv4 address.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (remote, local) = (plain(remote), plain(local));
    ask_diagnostics(remote, local).or_else(|error| {
        log::debug!("no socket diagnostics: {error}");
        ask_proc(remote, local)
    })
}

/// By one question about one socket (`SOCK_DIAG_BY_FAMILY` without `NLM_F_DUMP`).
fn ask_diagnostics(remote: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let id = SocketId {
        source_port: remote.port(),
        destination_port: local.port(),
        source_address: remote.ip(),
        destination_address: local.ip(),
        interface_id: 0,
        // Any (`INET_DIAG_NOCOOKIE`).
        cookie: [0xff; 8],
    };
    let request = InetRequest {
        family: if remote.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::ESTABLISHED,
        socket_id: id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<SockDiagMessage>::deserialize(&reply).map_err(io::Error::other)?;
    match reply.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
            let found = response.header;
            Ok((found.state == TCP_ESTABLISHED && found.inode != 0).then_some(found.uid))
        }
        NetlinkPayload::Error(error) if error.to_io().raw_os_error() == Some(libc::ENOENT) => {
            // There is no such socket; or the kernel has no module for TCP's sockets, and then the
            // table of them has to tell.
            ask_proc(remote, local)
        }
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

/// By the tables of TCP sockets of either family. A table is read a page at a time, and the kernel may leave a socket out
/// while others before it come and go: what is not there is looked for again.
fn ask_proc(remote: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    const LOOKS: usize = 4;
    for _ in 0..LOOKS {
        let mut tables = fs::read_to_string("/proc/net/tcp")?;
        // A kernel without IPv6 has none.
        tables.push_str(&fs::read_to_string("/proc/net/tcp6").unwrap_or_default());
        let found = find(&tables, remote, local);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Looks a socket up in the text of such tables.
fn find(tables: &str, remote: SocketAddr, local: SocketAddr) -> Option<u32> {
    tables.lines().find_map(|line| {
        // sl, its address, the other's, state, queues, timer, retransmits, user, timeout, inode.
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = address(words.get(1)?)? == remote && address(words.get(2)?)? == local;
        let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
        let inode: u64 = words.get(9)?.parse().ok()?;
        (is_it && state == TCP_ESTABLISHED && inode != 0).then_some(())?;
        words.get(7)?.parse().ok()
    })
}

/// `0100007F:04D2`: words of an address as the processor has them in memory, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<u8> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect::<Option<Vec<u32>>>()?
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let ip = match words.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1067 1 0 100 0 0 10 0
   1: 0100007F:C001 0100007F:04D2 01 00000000:00000000 00:00000000 00000000   501        0 7777 1 0 20 4 30 10 -1
   2: 0100007F:C002 0100007F:04D2 05 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   3: 0100007F:C003 0100007F:04D2 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   4: 0000000000000000FFFF00000100007F:C004 0000000000000000FFFF00000100007F:04D2 01 0:0 00:0 0 502 0 8 1 0
   5: 00000000000000000000000001000000:C005 00000000000000000000000001000000:04D2 01 0:0 00:0 0 503 0 9 1 0
";

    #[test]
    fn ones_own_user_may_ask() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(may_ask(&ours), Ok(()));
        let other = Users { own: 1000, caller: None };
        assert!(!other.have(1001) && other.have(0) && other.have(1000));
    }

    #[test]
    fn the_table_of_sockets_is_read() {
        if cfg!(target_endian = "big") {
            return;
        }
        let find = |remote: &str, local: &str| find(TABLE, remote.parse().unwrap(), local.parse().unwrap());
        assert_eq!(find("127.0.0.1:49153", "127.0.0.1:1234"), Some(501));
        assert_eq!(find("127.0.0.1:49153", "127.0.0.1:1235"), None);
        // One that is closing, and one that no process has any more.
        assert_eq!(find("127.0.0.1:49154", "127.0.0.1:1234"), None);
        assert_eq!(find("127.0.0.1:49155", "127.0.0.1:1234"), None);
        assert_eq!(find("127.0.0.1:49156", "127.0.0.1:1234"), Some(502));
        assert_eq!(find("[::1]:49157", "[::1]:1234"), Some(503));
    }

    #[test]
    fn both_ways_know_this_process() {
        let own = nix::unistd::geteuid().as_raw();
        for (bind, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
            // A machine may be without IPv6.
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let port = listener.local_addr().unwrap().port();
            let stream = TcpStream::connect((connect, port)).unwrap();
            let (accepted, remote) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            assert_eq!(owner(remote, local).unwrap(), Some(own), "{bind}");
            let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            assert_eq!(ask_proc(plain(remote), plain(local)).unwrap(), Some(own), "{bind}");
            drop(stream);
            assert_eq!(owner(remote, local).unwrap(), None, "{bind}: a closed socket is nobody's");
        }
    }

    #[test]
    fn users_who_are_served() {
        let users = Users { own: 1000, caller: None };
        assert!(users.have(0) && users.have(1000) && !users.have(1001));
        assert_eq!(users.to_string(), "root and user 1000");
        let under_sudo = Users { own: 0, caller: Some(1000) };
        assert!(under_sudo.have(0) && under_sudo.have(1000) && !under_sudo.have(65534));
    }
}
