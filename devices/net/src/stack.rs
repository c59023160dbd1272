//! The guest's network: packets of the guest's are taken apart and go to whom they are for; packets for the guest are
//! made as it takes them.

use crate::address::{GATEWAY, GUEST, MAC_OF_HOST, Mac, is_inside};
use crate::events::{Events, News, Token};
use crate::forward::{Forward, Protocol};
use crate::outbox::{ETHERNET, HEADER, Outbox};
use crate::reach::Reach;
use crate::tcp::{Asked, Connections, Opened};
use crate::udp::{Door, Flows};
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

/// How many turns everybody has before others have theirs.
const TURNS: usize = 256;

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

/// What leads to the guest.
#[derive(Debug)]
enum Entry {
    Tcp { listener: TcpListener, guest: u16, is_ready: bool },
    Udp(Door),
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
    entries: Vec<Entry>,
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
        let mut entries = Vec::new();
        for (number, forward) in (0..).zip(&options.forwards) {
            let failed = |error| Error::Forward(forward.host, error);
            entries.push(entry(&events, number, forward).map_err(failed)?);
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
            entries,
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
        for entry in &mut self.entries {
            match entry {
                Entry::Tcp { is_ready, .. } => *is_ready = true,
                Entry::Udp(door) => door.news(),
            }
        }
    }

    /// The guest's driver has gone, and with it all connections.
    pub fn reset(&mut self) {
        self.is_up = false;
        self.outbox.clear();
        let limits = (self.options.limits.connections, self.options.limits.half_open);
        let now = self.now();
        self.connections = Connections::new(&mut self.outbox, now, limits);
        self.flows = Flows::new(self.options.limits.flows);
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
        let answered = |entry: &Entry| match entry {
            Entry::Udp(door) => door.send(guest, to, bytes),
            Entry::Tcp { .. } => false,
        };
        if !self.entries.iter().any(answered) {
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
        self.accept();
        while self.is_ready() && !self.outbox.is_full() && turns < TURNS {
            turns += 1;
            self.connections.turn(&mut self.outbox, now);
            self.flows.turn(&mut self.outbox);
            for entry in &mut self.entries {
                if let Entry::Udp(door) = entry
                    && door.is_ready()
                {
                    door.turn(&mut self.outbox);
                }
            }
            self.accept();
        }
        // What has to wait for its turn, though the outbox has room, has it after others have had theirs.
        let deadline = if turns == TURNS { Some(now) } else { self.connections.deadline() };
        let after = deadline.map(|at| if at > now { (at - now).into() } else { Duration::ZERO });
        self.events.set_timer(after);
    }

    /// Whether somebody waits for a turn.
    fn is_ready(&self) -> bool {
        self.connections.is_ready() || self.flows.is_ready() || self.is_a_door_ready()
    }

    fn is_a_door_ready(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry, Entry::Udp(door) if door.is_ready()))
    }

    fn knock(&mut self, number: u64) {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        match self.entries.get_mut(index) {
            Some(Entry::Tcp { is_ready, .. }) => *is_ready = true,
            Some(Entry::Udp(door)) => door.news(),
            None => {}
        }
    }

    /// Lets in who has come, as far as there is room.
    fn accept(&mut self) {
        for entry in &mut self.entries {
            if let Entry::Tcp { listener, guest, is_ready } = entry
                && *is_ready
            {
                self.connections.accept(&self.events, listener, *guest);
                // Who has not been let in for want of room comes in when there is.
                *is_ready = !self.connections.has_room();
            }
        }
    }
}

/// Opens a port of the host's.
fn entry(events: &Events, number: u64, forward: &Forward) -> io::Result<Entry> {
    match forward.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(forward.host)?;
            listener.set_nonblocking(true)?;
            events.add(&listener, Token::Forward(number))?;
            Ok(Entry::Tcp { listener, guest: forward.guest, is_ready: false })
        }
        Protocol::Udp => {
            let door = Door::new(forward.host, forward.guest)?;
            events.add(door.socket(), Token::Forward(number))?;
            Ok(Entry::Udp(door))
        }
    }
}
