//! Datagrams of the guest's: a socket of the host's for each place that one of its ports sends to, which hears of nobody
//! else. Those that come by themselves have [doors](crate::doors).

use crate::address::GUEST;
use crate::events::{Events, News, Token};
use crate::icmp::port_unreachable;
use crate::outbox::{Outbox, TURN};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// A flow that has not been used for so long ends when there is a new one.
const IDLE: Duration = Duration::from_secs(180);
/// The most bytes of a datagram.
pub const LONGEST: usize = 0xffff;

/// The guest's port, and where it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: u16,
    other: SocketAddrV4,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: UdpSocket,
    used: Instant,
    is_ready: bool,
}

/// All of the guest's.
#[derive(Debug)]
pub struct Flows {
    numbers: HashMap<Key, u64>,
    all: HashMap<u64, Flow>,
    next: u64,
    ready: VecDeque<u64>,
    most: usize,
    bytes: Vec<u8>,
}

impl Flows {
    pub fn new(most: usize) -> Flows {
        Flows {
            numbers: HashMap::new(),
            all: HashMap::new(),
            next: 0,
            ready: VecDeque::new(),
            most,
            bytes: vec![0; LONGEST],
        }
    }

    /// Sends one on from a port of the guest's; `target` is where it goes, if it may.
    pub fn send(
        &mut self,
        (outbox, events): (&mut Outbox, &Events),
        (guest, other): (u16, SocketAddrV4),
        target: impl FnOnce() -> Option<SocketAddr>,
        bytes: &[u8],
    ) {
        let (key, from) = (Key { guest, other }, SocketAddrV4::new(GUEST, guest));
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => match target().and_then(|target| self.open(events, key, target).ok()) {
                Some(number) => number,
                None => return port_unreachable(outbox, from, other),
            },
        };
        let Some(flow) = self.all.get_mut(&number) else { return };
        flow.used = Instant::now();
        if send_on(|| flow.socket.send(bytes)).is_err_and(|error| is_refusal(&error)) {
            port_unreachable(outbox, from, other);
        }
    }

    fn open(&mut self, events: &Events, key: Key, target: SocketAddr) -> io::Result<u64> {
        self.make_room();
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(target)?;
        let number = self.next;
        events.add(&socket, Token::Flow(number))?;
        self.next += 1;
        self.numbers.insert(key, number);
        self.all.insert(number, Flow { key, socket, used: Instant::now(), is_ready: false });
        Ok(number)
    }

    /// Ends those that nobody has used for long, and the oldest if there are too many all the same.
    fn make_room(&mut self) {
        let is_old = |flow: &Flow| flow.used.elapsed() > IDLE;
        let mut gone: Vec<u64> = self.all.iter().filter(|(_, it)| is_old(it)).map(|(it, _)| *it).collect();
        if self.all.len() - gone.len() >= self.most {
            gone.extend(self.all.iter().min_by_key(|(_, flow)| flow.used).map(|(number, _)| *number));
        }
        for number in gone {
            if let Some(flow) = self.all.remove(&number) {
                self.numbers.remove(&flow.key);
            }
        }
    }

    /// A socket has news.
    pub fn news(&mut self, news: News) {
        let Token::Flow(number) = news.token else { return };
        if let Some(flow) = self.all.get_mut(&number)
            && (news.is_readable || news.is_over)
            && !std::mem::replace(&mut flow.is_ready, true)
        {
            self.ready.push_back(number);
        }
    }

    /// Whether one waits for its turn.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next one gives what has come, as far as the outbox takes it, and a few at a time.
    pub fn turn(&mut self, outbox: &mut Outbox) {
        let Some(number) = self.ready.pop_front() else { return };
        let Some(flow) = self.all.get_mut(&number) else { return };
        let (from, to) = (flow.key.other, SocketAddrV4::new(GUEST, flow.key.guest));
        flow.is_ready = take_turn(outbox, |outbox| {
            let count = flow.socket.recv(&mut self.bytes).inspect_err(|error| {
                if is_refusal(error) {
                    port_unreachable(outbox, to, from);
                }
            })?;
            flow.used = Instant::now();
            outbox.push_datagram(from, to, &self.bytes[..count]);
            Ok(())
        });
        if flow.is_ready {
            self.ready.push_back(number);
        }
    }
}

/// Whether nobody listens at the other end.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Sends a datagram. An error that a socket has is first of all one of a datagram before it (udp(7)): this one has not
/// gone then, and is sent again. What cannot go all the same is lost, as datagrams are.
///
/// # Errors
/// That of one before, or why this one is lost.
pub fn send_on(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    match send() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        Err(error) => {
            // Lost, as is said above.
            send().ok();
            Err(error)
        }
    }
}

/// A socket's turn: what has come to it is taken one by one, [`TURN`] at most, whether or not the outbox has more of it
/// then. Whether there may be more. An error is of a datagram that was sent before, and others may lie behind it; where
/// there is nothing but errors, they are the socket's, which is not looked at until it has news.
pub fn take_turn(outbox: &mut Outbox, mut take: impl FnMut(&mut Outbox) -> io::Result<()>) -> bool {
    let mut errors = 0;
    for _ in 0..TURN {
        if outbox.is_full() {
            return true;
        }
        match take(outbox) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => errors += 1,
        }
    }
    errors < TURN
}
