//! Ports of the host's by which datagrams come to the guest. It sees each sender as a port of the gateway's, by which its
//! answers find the way back: through the door that the sender came by.

use crate::address::{GATEWAY, GUEST};
use crate::events::{Events, Token};
use crate::outbox::Outbox;
use crate::udp::{LONGEST, take_turn};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Instant;

/// Ports that senders are seen as.
const FIRST_PORT: u16 = 0xc000;
/// The most senders that one door knows.
const MOST_PEERS: usize = 256;

/// As what the guest sees a sender: a port of the gateway's that sends to one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    guest: u16,
    gateway: u16,
}

/// Somebody who has sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Peer {
    /// The door, by its place among all.
    door: usize,
    address: SocketAddr,
}

#[derive(Debug)]
struct Door {
    socket: UdpSocket,
    /// The guest's port.
    guest: u16,
    is_ready: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Doors {
    all: Vec<Door>,
    /// Who sends, and when each was heard of last. Doors that lead to one port of the guest's share its numbers.
    peers: HashMap<Seen, (Peer, Instant)>,
    /// The other way round.
    seen: HashMap<Peer, Seen>,
    next_port: u16,
    bytes: Vec<u8>,
}

impl Doors {
    pub fn new() -> Doors {
        Doors {
            all: Vec::new(),
            peers: HashMap::new(),
            seen: HashMap::new(),
            next_port: FIRST_PORT,
            bytes: vec![0; LONGEST],
        }
    }

    /// Opens one that leads to a port of the guest's.
    pub fn open(&mut self, events: &Events, at: SocketAddrV4, guest: u16, token: Token) -> io::Result<()> {
        let socket = UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        events.add(&socket, token)?;
        self.all.push(Door { socket, guest, is_ready: false });
        Ok(())
    }

    /// One has news, by its place among all.
    pub fn news(&mut self, door: usize) {
        if let Some(door) = self.all.get_mut(door) {
            door.is_ready = true;
        }
    }

    /// All are looked at: somebody may have come before.
    pub fn news_of_all(&mut self) {
        self.all.iter_mut().for_each(|door| door.is_ready = true);
    }

    /// Forgets who has sent something: a guest that begins again has not heard of them.
    pub fn reset(&mut self) {
        self.peers.clear();
        self.seen.clear();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether something may have come to this one.
    pub fn is_ready(&self, door: usize) -> bool {
        self.all.get(door).is_some_and(|door| door.is_ready)
    }

    /// As what a sender is seen. Where a door knows too many, the one that was silent longest is forgotten.
    fn seen_of(&mut self, peer: Peer, guest: u16) -> Option<Seen> {
        if let Some(seen) = self.seen.get(&peer) {
            return Some(*seen);
        }
        let of_door = || self.peers.iter().filter(|(_, (it, _))| it.door == peer.door);
        if of_door().count() >= MOST_PEERS {
            let oldest = of_door().min_by_key(|(_, (_, used))| *used).map(|(seen, _)| *seen);
            self.forget(oldest?);
        }
        let free = (FIRST_PORT..=u16::MAX).find_map(|_| {
            let gateway = self.next_port;
            self.next_port = gateway.checked_add(1).unwrap_or(FIRST_PORT);
            let seen = Seen { guest, gateway };
            (!self.peers.contains_key(&seen)).then_some(seen)
        });
        // Doors enough to use up all numbers of one port of the guest's: the last ones take from others.
        let seen = free.or_else(|| {
            let all = self.peers.iter().filter(|(seen, _)| seen.guest == guest);
            all.min_by_key(|(_, (_, used))| *used).map(|(seen, _)| *seen)
        })?;
        self.forget(seen);
        self.seen.insert(peer, seen);
        self.peers.insert(seen, (peer, Instant::now()));
        Some(seen)
    }

    fn forget(&mut self, seen: Seen) {
        if let Some((peer, _)) = self.peers.remove(&seen) {
            self.seen.remove(&peer);
        }
    }

    /// Sends on what a port of the guest's answers somebody; whether it was for one who came by a door.
    pub fn send(&self, guest: u16, to: SocketAddrV4, bytes: &[u8]) -> bool {
        let seen = Seen { guest, gateway: to.port() };
        let Some((peer, _)) = self.peers.get(&seen).filter(|_| *to.ip() == GATEWAY) else { return false };
        if let Some(door) = self.all.get(peer.door) {
            // What cannot go is lost, as datagrams are.
            door.socket.send_to(bytes, peer.address).ok();
        }
        true
    }

    /// Gives the guest what has come to one, as far as the outbox takes it, and a few at a time.
    pub fn turn(&mut self, number: usize, outbox: &mut Outbox) {
        let goes_on = take_turn(outbox, |outbox| self.take(number, outbox));
        if let Some(door) = self.all.get_mut(number) {
            door.is_ready = goes_on;
        }
    }

    fn take(&mut self, number: usize, outbox: &mut Outbox) -> io::Result<()> {
        let door = self.all.get(number).ok_or(io::ErrorKind::WouldBlock)?;
        let (guest, (count, address)) = (door.guest, door.socket.recv_from(&mut self.bytes)?);
        // Without a number for whoever sends, it is lost.
        let Some(seen) = self.seen_of(Peer { door: number, address }, guest) else { return Ok(()) };
        if let Some((_, used)) = self.peers.get_mut(&seen) {
            *used = Instant::now();
        }
        let (from, to) = (SocketAddrV4::new(GATEWAY, seen.gateway), SocketAddrV4::new(GUEST, guest));
        outbox.push_datagram(from, to, &self.bytes[..count]);
        Ok(())
    }
}
