//! The socket device (5.10): streams between programs of the guest and programs of the host, by ports.
//!
//! Whoever of the host's asks for a port of the guest's comes by [`Host::accept`]; what the guest asks for of the host's
//! goes to [`Host::connect`]. Both are streams of bytes, which are carried here (`connection`), with credit both ways:
//! what is not taken is not asked for, so that nothing is kept without bound.
//!
//! Connections are not saved: a guest that is put back is told that all of them are gone (5.10.6.7.1).

mod connection;
pub mod in_kernel;
mod packet;

use super::queue::{Broken, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::state::Misfit;
use crate::tell;
use connection::{Connection, Fate};
use packet::{HEADER, HOST, Header, LONGEST, STREAM, op};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// 5 "Device Types".
const ID: u16 = 19;
/// PCI Code and ID Assignment: other communication devices.
const CLASS: [u8; 3] = [7, 0x80, 0];
/// 5.10.3 "Feature bits": streams.
const STREAMS: u64 = 1 << 0;
/// To the driver, from it, and what has happened (5.10.2).
const TO_DRIVER: usize = 0;
const FROM_DRIVER: usize = 1;
const EVENTS: usize = 2;
const SIZES: [u16; 3] = [128, 128, 16];
/// The first number that is a guest's (5.10.4).
pub const FIRST_CID: u32 = 3;
/// Packets and streams that are served before others have their turn.
const TURN: usize = 64;
/// The most connections that a device may have at a time, each with a descriptor.
pub const MOST_CONNECTIONS: usize = 1024;
/// The most refusals that wait to be told.
const MOST_REFUSALS: usize = 256;
/// The first port that a program of the host's has; a guest's own programs choose others.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The host's programs.
pub trait Host: Send {
    /// Becomes readable when one has come.
    fn listener(&self) -> Option<RawFd>;

    /// The next that has come, set to not wait; it will say which port it wants (`docs/vsock.md`).
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: nobody has come. Another one: nobody can be let in for now.
    fn accept(&mut self) -> io::Result<UnixStream>;

    /// The one that has a port, set to not wait.
    ///
    /// # Errors
    /// Nobody has it.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
}

/// The device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The guest's number.
    cid: u32,
    /// The guest is to be told that its connections are gone.
    are_gone: bool,
    /// How far the host's kernel had come in the driver's rings, if it is what served two of the queues.
    next: Option<[u16; 2]>,
}

/// What model and server share.
struct Shared {
    host: Arc<Mutex<dyn Host>>,
    cid: u32,
    /// The most connections at a time.
    most: usize,
    are_gone: bool,
    /// By the guest's port and the host's.
    connections: BTreeMap<(u32, u32), Connection>,
    /// Those that the guest has ended, whose bytes the host's programs have not taken yet.
    ended: BTreeMap<(u32, u32), Connection>,
    /// Programs of the host's that have not said what they want, by numbers that the poller knows them by.
    asking: BTreeMap<u32, Connection>,
    /// Headers of answers to what belongs to no connection.
    refusals: VecDeque<Header>,
    /// What the guest says waits, as there are too many of them.
    is_held_back: bool,
    /// Streams with news. The thread has this one descriptor for all of them.
    poller: Epoll,
    /// Rings when whoever could not be let in is tried again.
    again: TimerFd,
    next_port: u32,
    /// Which connection has its turn first.
    turn: (u32, u32),
}

/// The device.
#[derive(Clone)]
pub struct Vsock {
    shared: Arc<Mutex<Shared>>,
    /// Also here: whoever asks does not wait for one who uses the host's end.
    cid: u32,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock").field("cid", &self.cid).finish_non_exhaustive()
    }
}

fn locked(host: &Mutex<dyn Host>) -> MutexGuard<'_, dyn Host + 'static> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the poller calls the listener, and the timer by which that is tried again.
const LISTENER: u64 = u64::MAX;
const AGAIN: u64 = LISTENER - 1;
/// After this time, where there were no descriptors: nothing tells when there are.
const TRIED_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What it calls a connection; one that has not said what it wants has no guest's port.
fn token(guest: u32, host: u32) -> u64 {
    u64::from(guest) << 32 | u64::from(host)
}

impl Vsock {
    /// For a guest of this number, [`FIRST_CID`] or more, which has so many connections at a time, [`MOST_CONNECTIONS`] at
    /// most. Whoever makes the device may keep the host's end, for another one.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(cid: u32, connections: usize, host: Arc<Mutex<dyn Host>>) -> io::Result<Vsock> {
        let poller = Epoll::new()?;
        if let Some(listener) = locked(&host).listener() {
            poller.ctl(ControlOperation::Add, listener, EpollEvent::new(EventSet::IN, LISTENER))?;
        }
        let again = TimerFd::new()?;
        poller.ctl(ControlOperation::Add, again.as_raw_fd(), EpollEvent::new(EventSet::IN, AGAIN))?;
        let shared = Shared {
            host,
            cid,
            most: connections.min(MOST_CONNECTIONS),
            are_gone: false,
            connections: BTreeMap::new(),
            ended: BTreeMap::new(),
            asking: BTreeMap::new(),
            refusals: VecDeque::new(),
            is_held_back: false,
            poller,
            again,
            next_port: FIRST_HOST_PORT,
            turn: (0, 0),
        };
        Ok(Vsock { shared: Arc::new(Mutex::new(shared)), cid })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model for Vsock {
    type State = State;

    fn name(&self) -> &'static str {
        "virtio vsock"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        STREAMS
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn services(&mut self, _features: u64, _interrupts: &Arc<dyn Interrupts>) -> Vec<Service> {
        let server = Server(self.clone());
        vec![Service { server: Box::new(server), queues: vec![TO_DRIVER, FROM_DRIVER, EVENTS] }]
    }

    fn reset(&mut self) {
        let mut shared = self.shared();
        shared.forget_all();
        shared.are_gone = false;
    }

    fn save(&self) -> State {
        let shared = self.shared();
        let are_gone = shared.are_gone || !shared.connections.is_empty();
        State { cid: shared.cid, are_gone, next: None }
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        let mut shared = self.shared();
        if state.cid < FIRST_CID {
            let why = format!("{} is no guest's number", state.cid);
            return Err(Misfit::Damaged { device: "virtio vsock", why });
        }
        if state.next.is_some() {
            let why = "the host's kernel was the other end of it".into();
            return Err(Misfit::Damaged { device: "virtio vsock", why });
        }
        shared.forget_all();
        // The guest reads its new number when it is told that its connections are gone.
        shared.are_gone = state.are_gone || state.cid != shared.cid;
        Ok(())
    }
}

impl Shared {
    fn forget_all(&mut self) {
        self.connections.clear();
        self.ended.clear();
        self.asking.clear();
        self.is_held_back = false;
        self.refusals.clear();
    }

    fn count(&self) -> usize {
        self.connections.len() + self.ended.len() + self.asking.len()
    }

    /// Has the poller look at a stream, at each change of its.
    fn watch(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.poller.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, token))
    }

    fn watch_as(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.poller.ctl(ControlOperation::Modify, stream.as_raw_fd(), EpollEvent::new(events, token))
    }

    /// A port of the host's that nobody has.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == u32::MAX { FIRST_HOST_PORT } else { port + 1 };
            let mut open = self.connections.keys().chain(self.ended.keys());
            let is_taken = self.asking.contains_key(&port) || open.any(|it| it.1 == port);
            if !is_taken {
                return port;
            }
        }
    }

    /// Lets those in who have come; whether there was any.
    fn accept(&mut self) -> bool {
        for number in 0..TURN {
            let accepted = locked(&self.host).accept();
            let stream = match accepted {
                Ok(stream) => stream,
                // Somebody has gone before being let in.
                Err(error)
                    if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted]
                        .contains(&error.kind()) =>
                {
                    continue;
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.try_again(&error);
                    }
                    return number > 0;
                }
            };
            if self.count() >= self.most {
                tell!(Debug, "vsock: there are {} connections already", self.most);
                continue;
            }
            let port = self.free_port();
            match self.watch(&stream, token(0, port)) {
                Ok(()) => drop(self.asking.insert(port, Connection::asking(stream, port))),
                Err(error) => tell!(Debug, "vsock: {error}"),
            }
        }
        true
    }

    /// Whoever has come, and cannot be let in, has no news any more: a timer looks at them.
    fn try_again(&mut self, error: &io::Error) {
        tell!(Debug, "vsock: nobody can be let in for now: {error}");
        if let Err(error) = self.again.reset(TRIED_AGAIN_AFTER, None) {
            tell!(Warn, "vsock: who has come is let in with the next one: {error}");
        }
    }

    /// Marks whoever has news; whether there was any.
    fn look(&mut self) -> bool {
        let mut events = [EpollEvent::default(); TURN];
        let count = self.poller.wait(0, &mut events).unwrap_or(0);
        let mut is_news = false;
        for event in &events[..count] {
            if [LISTENER, AGAIN].contains(&event.data()) {
                // The timer has no news of its own.
                if event.data() == AGAIN
                    && let Err(error) = self.again.wait()
                {
                    tell!(Debug, "vsock: {error}");
                }
                is_news |= self.accept();
                continue;
            }
            is_news = true;
            #[expect(clippy::cast_possible_truncation, reason = "it has two of them")]
            let key = ((event.data() >> 32) as u32, event.data() as u32);
            let news = event.event_set();
            match key {
                (0, port) => self.hear_asking(port),
                key => {
                    if let Some(connection) = self.connections.get_mut(&key) {
                        connection.has_news(news);
                    }
                    if let Some(connection) = self.ended.get_mut(&key) {
                        connection.has_news(news);
                        if !connection.is_owed() {
                            self.ended.remove(&key);
                        }
                    }
                }
            }
        }
        is_news
    }

    /// One of the host's programs says which port it wants.
    fn hear_asking(&mut self, port: u32) {
        let Some(connection) = self.asking.get_mut(&port) else { return };
        match connection.asked_for() {
            Ok(None) => {}
            Ok(Some(guest)) => {
                let Some(connection) = self.asking.remove(&port) else { return };
                match self.watch_as(connection.stream(), token(guest, port)) {
                    Ok(()) => drop(self.connections.insert((guest, port), connection)),
                    Err(error) => tell!(Debug, "vsock: {error}"),
                }
            }
            Err(error) => {
                tell!(Debug, "vsock: a program of the host's: {error}");
                self.asking.remove(&port);
            }
        }
    }

    /// What the guest says, with its bytes.
    fn hear(&mut self, header: &Header, bytes: &[u8]) {
        let key = (header.src_port, header.dst_port);
        let is_for_us = header.dst_cid == HOST && header.src_cid == u64::from(self.cid);
        if !is_for_us || header.kind != STREAM || header.len as usize != bytes.len() {
            return self.refuse(header);
        }
        match (self.connections.get_mut(&key), header.op) {
            (None, op::REQUEST) => self.open(header),
            (None, op::RST) => {}
            (None, _) => self.refuse(header),
            (Some(connection), _) => match connection.hear(header, bytes) {
                Fate::Stays => {}
                Fate::Over => {
                    let ended = self.connections.remove(&key).filter(Connection::is_owed);
                    self.ended.extend(ended.map(|ended| (key, ended)));
                }
                Fate::Refused => {
                    self.connections.remove(&key);
                    self.refuse(header);
                }
            },
        }
    }

    /// The guest asks for a port of the host's.
    fn open(&mut self, header: &Header) {
        let key = (header.src_port, header.dst_port);
        // One before it of these ports may have bytes for the host still, and is found by them.
        if self.count() >= self.most || self.ended.contains_key(&key) {
            return self.refuse(header);
        }
        let opened = locked(&self.host).connect(header.dst_port).and_then(|stream| {
            self.watch(&stream, token(key.0, key.1))?;
            Ok(stream)
        });
        match opened {
            // Its number would be that of one who is asking.
            _ if header.src_port == 0 => self.refuse(header),
            Ok(stream) => drop(self.connections.insert(key, Connection::asked(stream, header))),
            Err(error) => {
                tell!(Debug, "vsock: port {}: {error}", header.dst_port);
                self.refuse(header);
            }
        }
    }

    fn refuse(&mut self, header: &Header) {
        // One that is refused is not answered.
        if header.op != op::RST {
            self.refusals.push_back(header.answer(op::RST));
        }
    }

    /// The next packet for the guest: its header, and so many bytes of `bytes`.
    fn next(&mut self, bytes: &mut [u8]) -> Option<(Header, usize)> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some((refusal, 0));
        }
        let cid = self.cid;
        let behind: Vec<(u32, u32)> = self.connections.range(self.turn..).map(|(key, _)| *key).collect();
        let before: Vec<(u32, u32)> = self.connections.range(..self.turn).map(|(key, _)| *key).collect();
        for key in behind.into_iter().chain(before) {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            let Some((fields, count)) = connection.say(bytes) else { continue };
            let header = Header {
                src_cid: HOST,
                dst_cid: cid.into(),
                src_port: key.1,
                dst_port: key.0,
                len: u32::try_from(count).unwrap_or(0),
                kind: STREAM,
                ..fields
            };
            if header.op == op::RST {
                self.connections.remove(&key);
            }
            self.turn = (key.0, key.1.wrapping_add(1));
            return Some((header, count));
        }
        None
    }
}

/// What serves the queues.
struct Server(Vsock);

impl Serve for Server {
    fn sources(&self) -> Vec<RawFd> {
        vec![self.0.shared().poller.as_raw_fd()]
    }

    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let mut shared = self.0.shared();
        let shared = &mut *shared;
        let heard = match rung {
            Rung::Queue(EVENTS) => return happened(&mut shared.are_gone, queues),
            Rung::Queue(FROM_DRIVER) => take_from_driver(shared, queues)?,
            Rung::Queue(_) if goes_on(shared) => take_from_driver(shared, queues)?,
            Rung::Queue(_) => Then::Waits,
            Rung::Source(_) => {
                let more = shared.look();
                // What could not be taken from the guest may be now.
                let taken = take_from_driver(shared, queues)?;
                if more { Then::GoesOn } else { taken }
            }
        };
        let given = give_to_driver(shared, queues)?;
        Ok(if [heard, given].contains(&Then::GoesOn) { Then::GoesOn } else { Then::Waits })
    }
}

/// That all connections are gone (5.10.6.7).
fn happened(are_gone: &mut bool, queues: &mut Queues) -> Result<Then, Broken> {
    const TRANSPORT_RESET: [u8; 4] = [0; 4];
    let Some(queue) = queues.get(EVENTS) else { return Ok(Then::Waits) };
    if *are_gone {
        let Some(chain) = queue.pop()? else {
            return Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits });
        };
        let written = chain.writable.write(0, &TRANSPORT_RESET);
        queue.push(&chain, u32::try_from(written).unwrap_or(0))?;
        *are_gone = false;
        queue.tell()?;
    }
    Ok(Then::Waits)
}

/// What the guest says, as long as there is room for the answers.
fn take_from_driver(shared: &mut Shared, queues: &mut Queues) -> Result<Then, Broken> {
    let Some(queue) = queues.get(FROM_DRIVER) else {
        // Nobody is held back who says nothing any more.
        shared.is_held_back = false;
        return Ok(Then::Waits);
    };
    queue.stop_listening()?;
    let mut packet = vec![0; HEADER + LONGEST];
    for _ in 0..TURN {
        // It is looked at again when the guest has taken answers.
        shared.is_held_back = shared.refusals.len() >= MOST_REFUSALS;
        if shared.is_held_back {
            queue.tell()?;
            return Ok(Then::Waits);
        }
        let Some(chain) = queue.pop()? else { break };
        let count = chain.readable.read(0, &mut packet);
        if let Some(header) = Header::decoded(&packet[..count]) {
            shared.hear(&header, &packet[HEADER..count]);
        }
        queue.push(&chain, 0)?;
    }
    queue.tell()?;
    Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits })
}

/// Whether there is room again for answers to a guest that was held back.
fn goes_on(shared: &Shared) -> bool {
    shared.is_held_back && shared.refusals.len() < MOST_REFUSALS
}

/// What there is for the guest, as far as it has room.
fn give_to_driver(shared: &mut Shared, queues: &mut Queues) -> Result<Then, Broken> {
    let Some(queue) = queues.get(TO_DRIVER) else { return Ok(Then::Waits) };
    queue.stop_listening()?;
    let mut bytes = vec![0; LONGEST];
    for _ in 0..TURN {
        let Some(chain) = queue.pop()? else {
            queue.tell()?;
            let more = queue.listen()?;
            return Ok(if more || goes_on(shared) { Then::GoesOn } else { Then::Waits });
        };
        let room = usize::try_from(chain.writable.size()).unwrap_or(usize::MAX);
        let Some(room) = room.checked_sub(HEADER) else {
            // One that has no room for a header is of no use.
            queue.push(&chain, 0)?;
            continue;
        };
        let Some((header, count)) = shared.next(&mut bytes[..room.min(LONGEST)]) else {
            queue.put_back();
            queue.tell()?;
            return if goes_on(shared) { take_from_driver(shared, queues) } else { Ok(Then::Waits) };
        };
        let written = chain.writable.write(0, &header.encoded());
        let written = written + chain.writable.write(HEADER as u64, &bytes[..count]);
        queue.push(&chain, u32::try_from(written).unwrap_or(0))?;
    }
    queue.tell()?;
    Ok(Then::GoesOn)
}

#[cfg(test)]
mod tests;
