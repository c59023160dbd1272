//! Connections: each a socket of the host's and one of smoltcp's for the guest, and bytes carried between the two as
//! far as the other has room. So either side waits for the other, and nothing gathers between them.
//!
//! A connection of the guest's is answered when the host's is there: what is refused is refused to the guest.

mod carry;
mod wire;

use crate::address::{GATEWAY, GUEST, PREFIX};
use crate::events::{Events, News, Token};
use crate::icmp::{parts, unreachable};
use crate::outbox::Outbox;
use carry::{Carried, Host};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, Icmpv4DstUnreachable, IpCidr, IpListenEndpoint, TcpPacket};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use wire::Wire;

/// Bytes that are kept of a connection, each way.
const KEPT: usize = 256 << 10;
/// How long the guest is waited for that owes an answer, and the host that takes nothing of what the guest has left for
/// it: as long as Linux tries to connect by itself (tcp(7), `tcp_syn_retries`).
const PATIENCE: Duration = Duration::from_secs(127);
/// How often a guest that has no room is asked whether it is still there: as often as Linux asks in the end, at a round
/// trip of a quarter of a second (RFC 9293, 3.8.6.1 "Zero-Window Probing").
const PROBES: Duration = Duration::from_secs(30);
/// The most bytes of a packet that asks for a connection.
const LONGEST_REQUEST: usize = 256;
/// Ports that connections from outside come from, as the guest sees it.
const FIRST_PORT: u16 = 0xc000;

/// The guest's port, and the other's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: u16,
    other: SocketAddrV4,
}

/// One connection.
struct Connection {
    key: Key,
    host: Host,
    /// The guest's packet that asks for it, until the host's is there.
    request: Option<Vec<u8>>,
    /// One socket.
    sockets: SocketSet<'static>,
    handle: Option<SocketHandle>,
    /// It waits for its turn.
    is_ready: bool,
    deadline: Option<Instant>,
    /// When the guest said something of it last, up to its end.
    heard: Instant,
    /// Since when an answer of the guest's has been waited for, if one is.
    owes_since: Option<Instant>,
    /// Since when the host has taken nothing of what a guest that is done has left for it.
    owed_since: Option<Instant>,
}

impl Connection {
    fn hear(&mut self, now: Instant) {
        let socket = self.handle.map(|handle| self.sockets.get::<Socket<'_>>(handle));
        if socket.is_none_or(|socket| socket.state() != State::TimeWait) {
            self.heard = now;
        }
        self.owes_since = None;
    }

    /// Carries both ways what can be; whether there was something.
    fn carry(
        &mut self,
        interface: &mut Interface,
        handle: SocketHandle,
        (outbox, now): (&mut Outbox, Instant),
    ) -> bool {
        let mut has_carried = false;
        loop {
            let socket = self.sockets.get_mut::<Socket<'_>>(handle);
            let carried = self.host.carry(socket);
            has_carried |= carried == Carried::Something;
            // Where time comes to its end, smoltcp forgets what it has of the guest's: none passes before the host has it.
            let is_kept = socket.state() == State::TimeWait && self.host.is_owed(socket);
            let moment = if is_kept { self.heard } else { now };
            socket.set_keep_alive(is_probed(socket).then_some(PROBES));
            let mut wire = Wire::new(outbox, None);
            let sent = interface.poll_egress(moment, &mut wire, &mut self.sockets);
            if outbox.is_full() || (carried == Carried::Nothing && sent == PollResult::None) {
                break;
            }
        }
        has_carried
    }

    /// Whether one of the two moments has passed [`PATIENCE`].
    fn is_past(since: Option<Instant>, now: Instant) -> bool {
        since.is_some_and(|since| since + PATIENCE <= now)
    }
}

/// All of them.
pub struct Connections {
    interface: Interface,
    nobody: SocketSet<'static>,
    numbers: HashMap<Key, u64>,
    all: HashMap<u64, Connection>,
    next: u64,
    next_port: u16,
    ready: VecDeque<u64>,
    /// The most, and the most that the host has not answered yet.
    most: usize,
    most_half_open: usize,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("count", &self.all.len()).finish_non_exhaustive()
    }
}

/// What a connection of the guest's is asked for with.
pub enum Asked {
    /// It is one that is there, or none.
    Known,
    /// It is a new one, to this place.
    New(SocketAddrV4),
}

/// What became of one that was asked for.
pub enum Opened {
    /// It goes on.
    Goes,
    /// There are too many.
    TooMany,
}

/// Who of those that wait outside was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Everybody.
    All,
    /// There are as many connections as there may be; others come in when one has ended.
    NoRoom,
    /// The host has no descriptors now. It does not tell when there are some again.
    NotNow,
}

fn interface(outbox: &mut Outbox, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = RandomState::new().hash_one(0);
    let mut interface = Interface::new(config, &mut Wire::new(outbox, None), now);
    // There is room for two of each.
    interface.update_ip_addrs(|list| {
        list.push(IpCidr::new(GATEWAY.into(), PREFIX)).ok();
    });
    interface.routes_mut().add_default_ipv4_route(GATEWAY).ok();
    interface.set_any_ip(true);
    interface
}

fn socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; KEPT]);
    let mut socket = Socket::new(buffer(), buffer());
    // The way to the guest is short: what there is goes at once.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket
}

impl Connections {
    /// None yet; for a guest that takes packets as the outbox says.
    pub fn new(outbox: &mut Outbox, now: Instant, (most, most_half_open): (usize, usize)) -> Connections {
        Connections {
            interface: interface(outbox, now),
            nobody: SocketSet::new(Vec::new()),
            numbers: HashMap::new(),
            all: HashMap::new(),
            next: 0,
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            most,
            most_half_open,
        }
    }

    /// Whether there can be another.
    pub fn has_room(&self) -> bool {
        self.all.len() < self.most
    }

    /// Whether one waits for its turn.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the first of them has something to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        self.all.values().filter(|it| !it.is_ready).filter_map(|it| it.deadline).min()
    }

    /// A packet of the guest's, an IP packet whole and the TCP packet in it; whether it asks for something new.
    pub fn hear(
        &mut self,
        outbox: &mut Outbox,
        (whole, inner): (&[u8], &[u8]),
        to: SocketAddrV4,
        now: Instant,
    ) -> Asked {
        let Ok(packet) = TcpPacket::new_checked(inner) else { return Asked::Known };
        let to = SocketAddrV4::new(*to.ip(), packet.dst_port());
        let key = Key { guest: packet.src_port(), other: to };
        let Some(number) = self.numbers.get(&key).copied() else {
            if packet.syn() && !packet.ack() && !packet.rst() {
                return Asked::New(to);
            }
            self.refuse(outbox, whole, now);
            return Asked::Known;
        };
        let Some(connection) = self.all.get_mut(&number) else { return Asked::Known };
        match connection.request {
            // It asks again, or has given up.
            Some(_) if packet.rst() => self.remove(number),
            Some(_) => {}
            None => {
                connection.hear(now);
                let mut wire = Wire::new(outbox, Some(whole));
                self.interface.poll_ingress_single(now, &mut wire, &mut connection.sockets);
                self.wake(number);
            }
        }
        Asked::Known
    }

    /// Answers a packet as one that nobody is there for.
    pub fn refuse(&mut self, outbox: &mut Outbox, packet: &[u8], now: Instant) {
        if !outbox.is_full() {
            self.interface.poll_ingress_single(now, &mut Wire::new(outbox, Some(packet)), &mut self.nobody);
        }
    }

    /// Says by ICMP that a place cannot be reached, or refuses.
    fn fail(&mut self, outbox: &mut Outbox, packet: &[u8], (why, now): (&io::Error, Instant)) {
        let is_far = matches!(
            why.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut
        );
        match parts(packet).filter(|_| is_far) {
            Some((header, inner)) => {
                unreachable(outbox, Icmpv4DstUnreachable::HostUnreachable, &header, inner);
            }
            None => self.refuse(outbox, packet, now),
        }
    }

    /// Opens a connection that the guest has asked for, to `target` of the host's.
    pub fn open(
        &mut self,
        (outbox, events): (&mut Outbox, &Events),
        packet: &[u8],
        (to, target): (SocketAddrV4, SocketAddr),
        now: Instant,
    ) -> Opened {
        let guest = parts(packet).and_then(|(_, inner)| Some(TcpPacket::new_checked(inner).ok()?.src_port()));
        let Some(guest) = guest.filter(|_| packet.len() <= LONGEST_REQUEST) else { return Opened::Goes };
        let half_open = self.all.values().filter(|it| it.request.is_some()).count();
        if !self.has_room() || half_open >= self.most_half_open {
            self.refuse(outbox, packet, now);
            return Opened::TooMany;
        }
        match begin(target) {
            Ok(stream) => {
                let key = Key { guest, other: to };
                self.add(events, key, (stream, Some(packet.to_vec())));
            }
            Err(error) => self.fail(outbox, packet, (&error, now)),
        }
        Opened::Goes
    }

    /// Puts one in; its number, unless the host has no room for it.
    fn add(
        &mut self,
        events: &Events,
        key: Key,
        (stream, request): (TcpStream, Option<Vec<u8>>),
    ) -> Option<u64> {
        let number = self.next;
        events.add(&stream, Token::Connection(number)).ok()?;
        self.next += 1;
        self.numbers.insert(key, number);
        let connection = Connection {
            key,
            host: Host::new(stream),
            request,
            sockets: SocketSet::new(Vec::new()),
            handle: None,
            is_ready: false,
            deadline: None,
            heard: Instant::ZERO,
            owes_since: None,
            owed_since: None,
        };
        self.all.insert(number, connection);
        Some(number)
    }

    /// Takes connections from outside, to the guest's port, as far as there is room.
    pub fn accept(&mut self, events: &Events, listener: &TcpListener, guest: u16) -> Accepted {
        while self.has_room() {
            match listener.accept() {
                // One that cannot be carried on is closed; who comes behind it has its own chance.
                Ok((stream, _)) => drop(self.let_in(events, stream, guest)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Accepted::All,
                    // Somebody has gone before being let in.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // No descriptors, or no memory.
                    _ => return Accepted::NotNow,
                },
            }
        }
        Accepted::NoRoom
    }

    /// Begins a connection to the guest's port for one that has come from outside; its number, unless it is refused.
    fn let_in(&mut self, events: &Events, stream: TcpStream, guest: u16) -> Option<u64> {
        stream.set_nonblocking(true).ok()?;
        // Without it bytes go together, and later.
        stream.set_nodelay(true).ok();
        let key = self.free_key(guest)?;
        let number = self.add(events, key, (stream, None))?;
        let connection = self.all.get_mut(&number)?;
        let mut socket = socket();
        let (remote, local) = ((GUEST, guest), (GATEWAY, key.other.port()));
        if socket.connect(self.interface.context(), remote, local).is_err() {
            self.remove(number);
            return None;
        }
        connection.handle = Some(connection.sockets.add(socket));
        self.wake(number);
        Some(number)
    }

    /// A port of the gateway's that no connection with this port of the guest's has.
    fn free_key(&mut self, guest: u16) -> Option<Key> {
        (FIRST_PORT..=u16::MAX).find_map(|_| {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let key = Key { guest, other: SocketAddrV4::new(GATEWAY, port) };
            (!self.numbers.contains_key(&key)).then_some(key)
        })
    }

    /// The host's socket has news.
    pub fn news(&mut self, outbox: &mut Outbox, news: News, now: Instant) {
        let Token::Connection(number) = news.token else { return };
        let Some(connection) = self.all.get_mut(&number) else { return };
        connection.host.hear(news);
        if connection.request.is_none() {
            return self.wake(number);
        }
        let error = connection.host.error();
        if error.is_none() && !news.is_writable {
            return;
        }
        let Some(request) = connection.request.take() else { return };
        if let Some(error) = error {
            self.remove(number);
            return self.fail(outbox, &request, (&error, now));
        }
        let (ip, port) = (*connection.key.other.ip(), connection.key.other.port());
        let mut socket = socket();
        // No port of a packet's is 0 here: such are refused.
        socket.listen(IpListenEndpoint { addr: Some(ip.into()), port }).ok();
        connection.handle = Some(connection.sockets.add(socket));
        connection.hear(now);
        let mut wire = Wire::new(outbox, Some(&request));
        self.interface.poll_ingress_single(now, &mut wire, &mut connection.sockets);
        self.wake(number);
    }

    fn wake(&mut self, number: u64) {
        if let Some(connection) = self.all.get_mut(&number)
            && !std::mem::replace(&mut connection.is_ready, true)
        {
            self.ready.push_back(number);
        }
    }

    /// Those whose time has come have their turn.
    pub fn wake_due(&mut self, now: Instant) {
        let is_due = |it: &Connection| it.deadline.is_some_and(|deadline| deadline <= now);
        let due: Vec<u64> = self.all.iter().filter(|(_, it)| is_due(it)).map(|(number, _)| *number).collect();
        due.into_iter().for_each(|number| self.wake(number));
    }

    /// The next one carries what it can.
    pub fn turn(&mut self, outbox: &mut Outbox, now: Instant) {
        let Some(number) = self.ready.pop_front() else { return };
        let Some(connection) = self.all.get_mut(&number) else { return };
        connection.is_ready = false;
        let Some(handle) = connection.handle else { return };
        if Connection::is_past(connection.owes_since, now) {
            // A guest that answers nothing has not got it.
            connection.sockets.get_mut::<Socket<'_>>(handle).abort();
        }
        let has_carried = connection.carry(&mut self.interface, handle, (outbox, now));
        let socket = connection.sockets.get::<Socket<'_>>(handle);
        let is_over = matches!(socket.state(), State::Closed | State::TimeWait | State::Listen);
        if has_carried || !is_over {
            connection.owed_since = None;
        }
        if is_over {
            let owed_since = *connection.owed_since.get_or_insert(now);
            if !connection.host.is_owed(socket) || Connection::is_past(Some(owed_since), now) {
                return self.remove(number);
            }
        }
        if outbox.is_full() {
            // There may be more: it goes on when the guest has taken something. What it has not got it owes no answer
            // to. smoltcp is not asked below for when: while it has not acknowledged all that it has taken, that may
            // panic in 0.12.0 (`tests/windows.rs`).
            connection.owes_since = None;
            return self.wake(number);
        }
        if owes(socket) {
            connection.owes_since.get_or_insert(now);
        } else {
            connection.owes_since = None;
        }
        let ends =
            [connection.owes_since, connection.owed_since].into_iter().flatten().map(|at| at + PATIENCE);
        let is_kept = socket.state() == State::TimeWait;
        // Not at once: what could be done now has been.
        let soonest = now + Duration::from_millis(1);
        let deadline = self.interface.poll_at(now, &connection.sockets).filter(|_| !is_kept);
        connection.deadline = deadline.map(|at| at.max(soonest)).into_iter().chain(ends).min();
    }

    /// Ends one; the host's side is told whether it was an orderly end ([`Host`]).
    fn remove(&mut self, number: u64) {
        if let Some(connection) = self.all.remove(&number) {
            self.numbers.remove(&connection.key);
        }
    }
}

/// Whether the guest has yet to say that it has got something.
fn owes(socket: &Socket<'_>) -> bool {
    matches!(socket.state(), State::SynSent | State::SynReceived) || is_probed(socket)
}

/// The same, once it is there. It may have no room for what it is to get, and says nothing then unless it is asked.
fn is_probed(socket: &Socket<'_>) -> bool {
    match socket.state() {
        State::FinWait1 | State::Closing | State::LastAck => true,
        State::Established | State::CloseWait => socket.send_queue() > 0,
        _ => false,
    }
}

/// Begins to connect, without waiting.
fn begin(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).ok();
    Ok(stream)
}
