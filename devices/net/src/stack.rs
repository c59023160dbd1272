//! The guest's network: packets of the guest's are taken apart and go to whom they are for; packets for the guest are
//! made as it takes them.

use crate::address::{GATEWAY, GUEST, MAC_OF_HOST, Mac, is_inside};
use crate::doors::Doors;
use crate::events::{Events, News, Token};
use crate::forward::{Forward, Protocol};
use crate::outbox::{ETHERNET, HEADER, Outbox, TURN};
use crate::reach::Reach;
use crate::tcp::{Accepted, Asked, Connections, Opened};
use crate::udp::Flows;
use crate::{dhcp, icmp, resolver};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv4Repr, UdpPacket,
};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// How many turns there are before others than the guest's network have theirs.
const TURNS: usize = 256;
/// How long those wait outside for whom the host had no descriptors.
const PAUSE: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(200);

/// How much there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, each with a descriptor and at most half a mebibyte.
    pub connections: usize,
    /// Those of them that the other side has not answered yet.
    pub half_open: usize,
    /// Flows of datagrams, each with a descriptor.
    pub flows: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 256, half_open: 64, flows: 128 }
    }
}

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The guest's address.
    pub mac: Mac,
    /// What it reaches.
    pub reach: Reach,
    /// Ports of the host's that lead to it.
    pub forwards: Vec<Forward>,
    /// How much there may be.
    pub limits: Limits,
}

/// There is no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port of the host's cannot be had.
    #[error("cannot listen at {0} for the guest: {1}")]
    Forward(SocketAddrV4, io::Error),
    /// The host gives no descriptors.
    #[error("cannot make a network: {0}")]
    Host(io::Error),
}

/// What happens to a guest that whoever runs it should hear of; each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It has more connections than it may, or more that nobody has answered.
    TooManyConnections,
}

/// A port of the host's by which connections come to the guest.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    guest: u16,
    /// Somebody may wait there.
    is_ready: bool,
}

/// Whose news a forwarded port's are.
#[derive(Clone, Copy, Debug)]
enum Entry {
    /// A listener's, by its place among them.
    Listener(usize),
    /// A door's.
    Door(usize),
}

/// A network of one guest.
#[derive(Debug)]
pub struct Stack {
    options: Options,
    resolver: Option<SocketAddr>,
    events: Events,
    outbox: Outbox,
    connections: Connections,
    flows: Flows,
    listeners: Vec<Listener>,
    /// Nobody is let in before this: the host has no descriptors.
    pause: Option<smoltcp::time::Instant>,
    doors: Doors,
    /// Forwarded ports in the order of their tokens.
    entries: Vec<Entry>,
    /// Who has the next turn: connections, flows, or a door.
    next_turn: usize,
    /// When its time began, moved on by as long as it has rested.
    start: Instant,
    /// The guest's driver has begun.
    is_up: bool,
    notice: Option<Notice>,
    has_noticed: bool,
    /// Room for what has come.
    news: Vec<News>,
}

impl Stack {
    /// The longest packets of IP's that the guest may send and gets.
    pub const MTU: u16 = 65520;

    /// A network, with its ports of the host's open.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(options: Options) -> Result<Stack, Error> {
        let events = Events::new().map_err(|error| Error::Host(error.into()))?;
        let (mut listeners, mut doors, mut entries) = (Vec::new(), Doors::new(), Vec::new());
        for (number, forward) in (0..).zip(&options.forwards) {
            let failed = |error| Error::Forward(forward.host, error);
            let (token, guest) = (Token::Forward(number), forward.guest);
            entries.push(match forward.protocol {
                Protocol::Tcp => {
                    let socket = listen(&events, forward.host, token).map_err(failed)?;
                    listeners.push(Listener { socket, guest, is_ready: false });
                    Entry::Listener(listeners.len() - 1)
                }
                Protocol::Udp => {
                    doors.open(&events, forward.host, guest, token).map_err(failed)?;
                    Entry::Door(doors.count() - 1)
                }
            });
        }
        let mut outbox = Outbox::new(options.mac);
        let limits = (options.limits.connections, options.limits.half_open);
        let connections = Connections::new(&mut outbox, smoltcp::time::Instant::ZERO, limits);
        Ok(Stack {
            resolver: resolver::of_host(),
            events,
            connections,
            flows: Flows::new(options.limits.flows),
            outbox,
            listeners,
            pause: None,
            doors,
            entries,
            next_turn: 0,
            options,
            start: Instant::now(),
            is_up: false,
            notice: None,
            has_noticed: false,
            news: Vec::new(),
        })
    }

    /// The same, for a test that waits.
    #[cfg(test)]
    pub(crate) fn events(&self) -> std::os::fd::BorrowedFd<'_> {
        self.events.borrowed()
    }

    /// What is polled: it is readable when there is something to do.
    pub fn descriptor(&self) -> RawFd {
        self.events.descriptor()
    }

    /// It has rested for so long, while the guest was held: nobody could answer, so that its time has stood still.
    pub fn rested(&mut self, time: Duration) {
        self.start += time;
    }

    /// After how long a time some connection has something to do by itself.
    #[cfg(test)]
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.connections.deadline().map(|at| (at - self.now()).into())
    }

    /// So much of its time passes at once.
    #[cfg(test)]
    pub(crate) fn pass(&mut self, time: Duration) {
        self.start -= time;
    }

    /// The guest's driver has begun; whether it takes packets whose checksums are to be completed, and packets as long
    /// as [`Self::MTU`].
    pub fn begin(&mut self, leaves_checksums: bool, takes_long: bool) {
        const USUAL: u16 = 1500;
        self.reset();
        self.outbox.leaves_checksums = leaves_checksums;
        self.outbox.mtu = if takes_long { Self::MTU } else { USUAL }.into();
        let limits = (self.options.limits.connections, self.options.limits.half_open);
        let now = self.now();
        self.connections = Connections::new(&mut self.outbox, now, limits);
        self.is_up = true;
        // Who has come before.
        self.listeners.iter_mut().for_each(|listener| listener.is_ready = true);
        self.doors.news_of_all();
    }

    /// The guest's driver has gone, and with it all connections.
    pub fn reset(&mut self) {
        self.is_up = false;
        self.outbox.clear();
        let limits = (self.options.limits.connections, self.options.limits.half_open);
        let now = self.now();
        self.connections = Connections::new(&mut self.outbox, now, limits);
        self.flows = Flows::new(self.options.limits.flows);
        self.doors.reset();
    }

    /// What whoever runs the guest should hear of.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notice.take()
    }

    fn now(&self) -> smoltcp::time::Instant {
        // What has passed since then.
        smoltcp::time::Instant::from(self.start)
    }

    /// Takes a packet of the guest's: a header of [`HEADER`] bytes, and a frame.
    pub fn send(&mut self, packet: &[u8]) {
        let Some(frame) = packet.get(HEADER..).filter(|_| self.is_up) else { return };
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        let (from, to) = (ethernet.src_addr(), ethernet.dst_addr());
        if to != EthernetAddress(MAC_OF_HOST) && to.is_unicast() || !from.is_unicast() {
            return;
        }
        self.outbox.mac = from.0;
        match ethernet.ethertype() {
            EthernetProtocol::Arp => self.arp(ethernet.payload()),
            EthernetProtocol::Ipv4 => self.ip(&frame[ETHERNET..]),
            // There is no IPv6.
            _ => {}
        }
    }

    /// Everybody in the guest's network, but the guest, is here.
    fn arp(&mut self, packet: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(packet) else { return };
        let Ok(asked) = ArpRepr::parse(&packet) else { return };
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr: wanted,
            ..
        } = asked
        else {
            return;
        };
        // Who asks without an address asks whether somebody has the one that it wants for itself.
        let is_probe = source_protocol_addr == Ipv4Addr::UNSPECIFIED || source_protocol_addr == wanted;
        let is_ours = is_inside(wanted) && wanted != GUEST && !is_probe;
        if operation != ArpOperation::Request || !is_ours || self.outbox.is_full() {
            return;
        }
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(MAC_OF_HOST),
            source_protocol_addr: wanted,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        self.outbox.push(EthernetProtocol::Arp, answer.buffer_len(), |bytes| {
            answer.emit(&mut ArpPacket::new_unchecked(bytes));
        });
    }

    fn ip(&mut self, bytes: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        // Pieces of packets are not put together.
        let is_piece = packet.more_frags() || packet.frag_offset() != 0;
        let Ok(header) = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()) else { return };
        let (from, to) = (header.src_addr, header.dst_addr);
        let is_nobody = from == Ipv4Addr::UNSPECIFIED && header.next_header == IpProtocol::Udp;
        if is_piece || (from != GUEST && !is_nobody) {
            return;
        }
        // Without what may stand behind it in the frame.
        let whole = &bytes[..usize::from(packet.total_len()).min(bytes.len())];
        let inner = packet.payload();
        match header.next_header {
            IpProtocol::Tcp => self.tcp(whole, inner, to),
            IpProtocol::Udp => self.udp(inner, (from, to)),
            IpProtocol::Icmp => icmp::answer(&mut self.outbox, to, inner),
            _ => {}
        }
    }

    fn tcp(&mut self, whole: &[u8], inner: &[u8], to: Ipv4Addr) {
        let (now, to) = (self.now(), SocketAddrV4::new(to, 0));
        let Asked::New(to) = self.connections.hear(&mut self.outbox, (whole, inner), to, now) else { return };
        let Some(target) = self.options.reach.target(to, self.resolver) else {
            return self.connections.refuse(&mut self.outbox, whole, now);
        };
        let opened = self.connections.open((&mut self.outbox, &self.events), whole, (to, target), now);
        if matches!(opened, Opened::TooMany) && !self.has_noticed {
            self.has_noticed = true;
            self.notice = Some(Notice::TooManyConnections);
        }
    }

    fn udp(&mut self, inner: &[u8], (from, to): (Ipv4Addr, Ipv4Addr)) {
        let Ok(packet) = UdpPacket::new_checked(inner) else { return };
        let (guest, to, bytes) =
            (packet.src_port(), SocketAddrV4::new(to, packet.dst_port()), packet.payload());
        let to_gateway = *to.ip() == GATEWAY || to.ip().is_broadcast();
        if to.port() == dhcp::SERVER && to_gateway {
            if !self.outbox.is_full() {
                dhcp::answer(&mut self.outbox, bytes);
            }
            return;
        }
        if from != GUEST || guest == 0 || to.ip().is_broadcast() || to.ip().is_multicast() {
            return;
        }
        if !self.doors.send(guest, to, bytes) {
            let (reach, resolver) = (self.options.reach, self.resolver);
            let target = || reach.target(to, resolver);
            self.flows.send((&mut self.outbox, &self.events), (guest, to), target, bytes);
        }
    }

    /// Gives the guest a packet, if there is one; how many bytes it has. One that does not fit is lost.
    pub fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        if !self.is_up {
            return None;
        }
        loop {
            let next = self.outbox.pop().or_else(|| {
                self.make();
                self.outbox.pop()
            })?;
            if let Some(place) = packet.get_mut(..next.len()) {
                place.copy_from_slice(&next);
                return Some(next.len());
            }
        }
    }

    /// Hears of the host's sockets, and makes packets of what there is, as many as the outbox takes.
    fn make(&mut self) {
        let now = self.now();
        let mut news = std::mem::take(&mut self.news);
        while self.events.take(&mut news) {}
        for news in news.drain(..) {
            match news.token {
                Token::Timer => {}
                Token::Connection(_) => self.connections.news(&mut self.outbox, news, now),
                Token::Flow(_) => self.flows.news(news),
                Token::Forward(number) => self.knock(number),
            }
        }
        self.news = news;
        self.connections.wake_due(now);
        let mut turns = 0;
        self.accept(now);
        while self.is_ready() && !self.outbox.is_full() && turns < TURNS {
            turns += 1;
            self.turn(now);
            self.accept(now);
        }
        // What has to wait for its turn, though the outbox has room, has it after others have had theirs.
        let deadline = match turns {
            TURNS => Some(now),
            _ => self.connections.deadline().into_iter().chain(self.pause).min(),
        };
        let after = deadline.map(|at| if at > now { (at - now).into() } else { Duration::ZERO });
        self.events.set_timer(after);
    }

    /// How many have turns: connections, flows, and each door.
    fn count(&self) -> usize {
        2 + self.doors.count()
    }

    fn is_ready_at(&self, number: usize) -> bool {
        match number {
            0 => self.connections.is_ready(),
            1 => self.flows.is_ready(),
            door => self.doors.is_ready(door - 2),
        }
    }

    /// Whether somebody waits for a turn.
    fn is_ready(&self) -> bool {
        (0..self.count()).any(|number| self.is_ready_at(number))
    }

    /// The next one that has something makes packets of it, a few: where all have more than the guest takes, all come to
    /// it alike.
    fn turn(&mut self, now: smoltcp::time::Instant) {
        let count = self.count();
        let order = (0..count).map(|at| (self.next_turn + at) % count);
        let Some(number) = order.into_iter().find(|number| self.is_ready_at(*number)) else { return };
        self.next_turn = (number + 1) % count;
        let (connections, flows, doors) = (&mut self.connections, &mut self.flows, &mut self.doors);
        self.outbox.allow(TURN, |outbox| match number {
            0 => connections.turn(outbox, now),
            1 => flows.turn(outbox),
            door => doors.turn(door - 2, outbox),
        });
    }

    fn knock(&mut self, number: u64) {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        match self.entries.get(index) {
            Some(Entry::Listener(at)) => self.listeners[*at].is_ready = true,
            Some(Entry::Door(at)) => self.doors.news(*at),
            None => {}
        }
    }

    /// Lets in who has come, as far as there is room.
    fn accept(&mut self, now: smoltcp::time::Instant) {
        if self.pause.is_some_and(|until| until > now) {
            return;
        }
        self.pause = None;
        for listener in self.listeners.iter_mut().filter(|it| it.is_ready) {
            match self.connections.accept(&self.events, &listener.socket, listener.guest) {
                Accepted::All => listener.is_ready = false,
                // They come in when there is.
                Accepted::NoRoom => {}
                Accepted::NotNow => {
                    self.pause = Some(now + PAUSE);
                    return;
                }
            }
        }
    }
}

/// Opens a port of the host's for connections.
fn listen(events: &Events, at: SocketAddrV4, token: Token) -> io::Result<TcpListener> {
    let socket = TcpListener::bind(at)?;
    socket.set_nonblocking(true)?;
    events.add(&socket, token)?;
    Ok(socket)
}
