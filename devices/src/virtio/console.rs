//! The console device (5.3): a terminal (`hvc0`) and named ports (`/dev/virtio-ports/NAME`), each a stream of bytes.
//!
//! The host's end of a named port is a socket, that of the terminal a [`Terminal`]. What the guest writes waits in its
//! queue when nobody takes it, and what comes from outside waits there until the guest has room for it: nothing is kept
//! here.
//!
//! A device with nothing but a terminal has one port, and no queues for control messages: such a driver reads the
//! terminal's size from the configuration. Drivers of more ports are told it by a message whose order of rows and columns
//! depends on their age.

mod terminal;

pub use terminal::{Drained, Print, Terminal};

use super::queue::{Broken, Buffer, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::state::Misfit;
use crate::tell;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// 5 "Device Types".
const ID: u16 = 3;
/// PCI Code and ID Assignment: other communication devices.
const CLASS: [u8; 3] = [7, 0x80, 0];

/// 5.3.3 "Feature bits".
mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
}

/// 5.3.6.2 "Multiport Device Operation": events of control messages.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// Queues of control messages: to the driver, and from it.
const TO_DRIVER: usize = 2;
const FROM_DRIVER: usize = 3;
/// Entries of a queue.
const ENTRIES: u16 = 64;
/// Bytes that are taken of the guest before the device looks whether it is to rest.
const MOST_IN_A_TURN: usize = 1 << 20;
/// Bytes that are carried in one go.
const PIECE: usize = 4096;
/// How many buffers are served before others have their turn.
const TURN: usize = 64;
/// The most ports that a device may have.
pub const MOST_PORTS: usize = 16;

/// Queues of a port: to the driver, and from it (5.3.2).
fn queues_of(port: usize) -> (usize, usize) {
    match port {
        0 => (0, 1),
        _ => (2 * port + 2, 2 * port + 3),
    }
}

/// A named port, as the host has it.
#[derive(Debug)]
pub struct Port {
    /// By which the guest finds it.
    pub name: String,
    /// What the guest writes can be read from its other end, and the other way round.
    pub stream: UnixStream,
}

/// The host's end of each port.
#[derive(Debug)]
enum HostEnd {
    Terminal(Arc<Terminal>),
    Port(Port),
}

impl HostEnd {
    fn source(&self) -> RawFd {
        match self {
            HostEnd::Terminal(terminal) => terminal.source(),
            HostEnd::Port(port) => port.stream.as_raw_fd(),
        }
    }

    /// What comes from outside: none is its end, but of a terminal, which has none.
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            HostEnd::Terminal(terminal) => match terminal.read(bytes) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            },
            HostEnd::Port(port) => (&port.stream).read(bytes),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            HostEnd::Terminal(terminal) => match terminal.print(bytes) {
                0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            },
            HostEnd::Port(port) => (&port.stream).write(bytes),
        }
    }
}

/// A terminal's size, characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// In a row.
    pub columns: u16,
    /// From top to bottom.
    pub rows: u16,
}

/// What is still to be said of a port, in the order in which it is said: a bit for each event.
mod to_say {
    pub const ADD: u8 = 1;
    pub const TERMINAL: u8 = 1 << 1;
    pub const NAME: u8 = 1 << 2;
    pub const OPEN: u8 = 1 << 3;
    pub const SIZE: u8 = 1 << 4;
}

/// A port's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PortState {
    /// [`to_say`].
    to_say: u8,
    /// The guest has somebody who reads and writes it.
    is_open: bool,
    /// The host's end is closed.
    is_over: bool,
    /// Bytes of the first buffer in the queue from the driver that have been taken.
    taken: u32,
    /// The guest has said that it knows of it.
    is_ready: bool,
}

/// The device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    ports: Vec<PortState>,
}

/// What model and server share.
#[derive(Debug)]
struct Shared {
    ports: Vec<HostEnd>,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn terminal(&self) -> Option<&Terminal> {
        match self.ports.first() {
            Some(HostEnd::Terminal(terminal)) => Some(terminal),
            _ => None,
        }
    }

    /// Of the terminal; 0 by 0 where there is none, or it is not known.
    fn size(&self) -> TerminalSize {
        self.terminal().map(Terminal::size).unwrap_or_default()
    }
}

/// The device.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    /// It has more than a terminal.
    has_names: bool,
    sizes: Vec<u16>,
}

impl Console {
    /// With a terminal, with named ports, or both, one of these at least; those behind [`MOST_PORTS`] are left out.
    ///
    /// # Errors
    /// When a socket cannot be set to not wait.
    pub fn new(terminal: Option<Arc<Terminal>>, named: Vec<Port>) -> io::Result<Console> {
        let has_names = !named.is_empty();
        let named = named.into_iter().map(HostEnd::Port);
        let mut ports: Vec<HostEnd> = terminal.map(HostEnd::Terminal).into_iter().chain(named).collect();
        ports.truncate(MOST_PORTS);
        for port in &ports {
            if let HostEnd::Port(port) = port {
                port.stream.set_nonblocking(true)?;
            }
        }
        let state = State { ports: vec![PortState::default(); ports.len()] };
        let queues = if has_names { 2 * ports.len() + 2 } else { 2 };
        let shared = Arc::new(Shared { ports, state: Mutex::new(state) });
        Ok(Console { shared, has_names, sizes: vec![ENTRIES; queues] })
    }
}

impl Model for Console {
    type State = State;

    fn name(&self) -> &'static str {
        "virtio console"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        let size = if self.shared.terminal().is_some() { feature::SIZE } else { 0 };
        size | if self.has_names { feature::MULTIPORT } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.size();
        let ports = u32::try_from(self.shared.ports.len()).unwrap_or(0);
        let mut whole = [0; 8];
        whole[..2].copy_from_slice(&size.columns.to_le_bytes());
        whole[2..4].copy_from_slice(&size.rows.to_le_bytes());
        whole[4..].copy_from_slice(&ports.to_le_bytes());
        super::read_bytes(&whole, offset, data);
    }

    fn services(&mut self, features: u64, interrupts: &Arc<dyn Interrupts>) -> Vec<Service> {
        let is_multiport = features & feature::MULTIPORT != 0;
        if !is_multiport && let Some(first) = self.shared.state().ports.first_mut() {
            first.is_open = true;
        }
        // A driver that has just begun has not been told the size.
        let (told, interrupts) = (TerminalSize::default(), Arc::clone(interrupts));
        let server = Server { shared: Arc::clone(&self.shared), is_multiport, told, interrupts };
        vec![Service { server: Box::new(server), queues: (0..self.sizes.len()).collect() }]
    }

    fn reset(&mut self) {
        let mut state = self.shared.state();
        for port in &mut state.ports {
            *port = PortState { is_over: port.is_over, ..PortState::default() };
        }
    }

    fn save(&self) -> State {
        self.shared.state().clone()
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        let mut own = self.shared.state();
        if own.ports.len() != state.ports.len() {
            let why = format!("it has {} ports, and there are {}", state.ports.len(), own.ports.len());
            return Err(Misfit::Damaged { device: self.name(), why });
        }
        *own = state;
        Ok(())
    }
}

struct Server {
    shared: Arc<Shared>,
    /// The driver knows of more than the first port.
    is_multiport: bool,
    /// The terminal's size that the driver has been told to look at.
    told: TerminalSize,
    interrupts: Arc<dyn Interrupts>,
}

impl Serve for Server {
    fn sources(&self) -> Vec<RawFd> {
        self.shared.ports.iter().map(HostEnd::source).collect()
    }

    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let (port, ways) = match rung {
            Rung::Source(port) => (port, Ways::Both),
            Rung::Queue(FROM_DRIVER) => return self.hear(queues),
            Rung::Queue(TO_DRIVER) => return self.say(queues),
            Rung::Queue(queue @ 0..TO_DRIVER) => (queue / 2, Ways::of(queue)),
            Rung::Queue(queue) => (queue / 2 - 1, Ways::of(queue)),
        };
        if port > 0 && !self.is_multiport {
            return Ok(Then::Waits);
        }
        // Its news is heard only where all of it is looked at.
        if let (Rung::Source(_), Some(HostEnd::Terminal(terminal))) = (rung, self.shared.ports.get(port)) {
            terminal.hear();
        }
        self.look_at_size(port);
        let mut then = Then::Waits;
        if ways != Ways::ToDriver && self.take_from_driver(port, queues)? == Then::GoesOn {
            then = Then::GoesOn;
        }
        // What the guest prints comes in many pieces: nothing else is looked at for each of them.
        if ways != Ways::FromDriver {
            let both = [self.give_to_driver(port, queues)?, self.say(queues)?];
            if both.contains(&Then::GoesOn) {
                then = Then::GoesOn;
            }
        }
        Ok(then)
    }
}

/// What a port is served for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    ToDriver,
    FromDriver,
    Both,
}

impl Ways {
    /// By the number of a port's queue.
    fn of(queue: usize) -> Ways {
        if queue.is_multiple_of(2) { Ways::ToDriver } else { Ways::FromDriver }
    }
}

impl Server {
    /// Has the driver look at a size of the terminal that is new to it.
    fn look_at_size(&mut self, port: usize) {
        let Some(HostEnd::Terminal(terminal)) = self.shared.ports.get(port) else { return };
        let size = terminal.size();
        if std::mem::replace(&mut self.told, size) == size {
            return;
        }
        self.interrupts.configuration();
        if let Some(ours) = self.shared.state().ports.get_mut(port).filter(|ours| ours.is_ready) {
            ours.to_say |= to_say::SIZE;
        }
    }

    /// Control messages from the driver.
    fn hear(&mut self, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(FROM_DRIVER) else { return Ok(Then::Waits) };
        queue.stop_listening()?;
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else { break };
            let mut message = [0; 8];
            if chain.readable.read(0, &mut message) == message.len() {
                let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
                let id = u32::from_le_bytes([i0, i1, i2, i3]);
                self.heard(id, u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
            }
            queue.push(&chain, 0)?;
        }
        queue.tell()?;
        let more = queue.listen()?;
        // A port that has been opened may have waited.
        let mut then = if more { Then::GoesOn } else { Then::Waits };
        for port in 0..self.shared.ports.len() {
            if self.give_to_driver(port, queues)? == Then::GoesOn {
                then = Then::GoesOn;
            }
        }
        if self.say(queues)? == Then::GoesOn {
            then = Then::GoesOn;
        }
        Ok(then)
    }

    fn heard(&self, id: u32, event: u16, value: u16) {
        let mut state = self.shared.state();
        if event == event::DEVICE_READY {
            for port in &mut state.ports {
                (port.to_say, port.is_ready) = (if value == 1 { to_say::ADD } else { 0 }, false);
            }
            return;
        }
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let (Some(port), Some(ours)) = (self.shared.ports.get(index), state.ports.get_mut(index)) else {
            return;
        };
        match event {
            event::PORT_READY if value == 1 => {
                ours.is_ready = true;
                ours.to_say |= match port {
                    HostEnd::Port(_) => to_say::NAME | to_say::OPEN,
                    HostEnd::Terminal(_) => to_say::TERMINAL | to_say::SIZE | to_say::OPEN,
                };
            }
            event::PORT_OPEN => ours.is_open = value == 1,
            _ => {}
        }
    }

    /// Control messages to the driver, as far as it has given buffers for them.
    fn say(&self, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(TO_DRIVER) else { return Ok(Then::Waits) };
        let mut state = self.shared.state();
        let size = self.shared.size();
        let mut is_short = false;
        'ports: for (index, (ours, port)) in (0u32..).zip(state.ports.iter_mut().zip(&self.shared.ports)) {
            while ours.to_say != 0 {
                let Some(chain) = queue.pop()? else {
                    is_short = true;
                    break 'ports;
                };
                let first = ours.to_say & ours.to_say.wrapping_neg();
                ours.to_say &= !first;
                let message = message(index, first, (port, ours, size));
                let written = chain.writable.write(0, &message);
                queue.push(&chain, u32::try_from(written).unwrap_or(0))?;
            }
        }
        queue.tell()?;
        // It is rung for when there is something to say and no room for it.
        let more = if is_short { queue.listen()? } else { false };
        Ok(if more { Then::GoesOn } else { Then::Waits })
    }

    /// What the guest writes to a port, as far as it is taken.
    fn take_from_driver(&self, port: usize, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(queues_of(port).1) else { return Ok(Then::Waits) };
        let Some(end) = self.shared.ports.get(port) else { return Ok(Then::Waits) };
        let mut state = self.shared.state();
        let Some(ours) = state.ports.get_mut(port) else { return Ok(Then::Waits) };
        queue.stop_listening()?;
        let mut left = MOST_IN_A_TURN;
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else { break };
            // A driver makes no chain larger than 4 GiB (2.7.4); of one that does, no more is taken.
            let size = chain.readable.size().min(u32::MAX.into());
            let taken = carry_out(&chain.readable, u64::from(ours.taken)..size, end, &mut left);
            if taken < size {
                // The port's source says when there is room.
                ours.taken = u32::try_from(taken).unwrap_or(u32::MAX);
                queue.put_back();
                queue.tell()?;
                return Ok(if left == 0 { Then::GoesOn } else { Then::Waits });
            }
            ours.taken = 0;
            queue.push(&chain, 0)?;
        }
        queue.tell()?;
        Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits })
    }

    /// What comes from outside, as far as the guest has room for it.
    fn give_to_driver(&self, port: usize, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(queues_of(port).0) else { return Ok(Then::Waits) };
        let Some(end) = self.shared.ports.get(port) else { return Ok(Then::Waits) };
        let mut state = self.shared.state();
        let Some(ours) = state.ports.get_mut(port) else { return Ok(Then::Waits) };
        // What comes before somebody in the guest listens stays outside.
        if ours.is_over || !ours.is_open {
            return Ok(Then::Waits);
        }
        queue.stop_listening()?;
        let mut bytes = [0; PIECE];
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else {
                queue.tell()?;
                return Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits });
            };
            let room = usize::try_from(chain.writable.size()).unwrap_or(PIECE).min(PIECE);
            match end.read(&mut bytes[..room]) {
                Ok(0) if room > 0 => {
                    (ours.is_over, ours.to_say) = (true, ours.to_say | to_say::OPEN);
                    queue.put_back();
                    break;
                }
                Ok(count) => {
                    let written = chain.writable.write(0, &bytes[..count]);
                    queue.push(&chain, u32::try_from(written).unwrap_or(0))?;
                }
                Err(error) => {
                    queue.put_back();
                    match error.kind() {
                        io::ErrorKind::Interrupted => return Ok(Then::GoesOn),
                        io::ErrorKind::WouldBlock => {}
                        _ => (ours.is_over, ours.to_say) = (true, ours.to_say | to_say::OPEN),
                    }
                    queue.tell()?;
                    return Ok(Then::Waits);
                }
            }
        }
        queue.tell()?;
        Ok(if ours.is_over { Then::Waits } else { Then::GoesOn })
    }
}

/// Writes a part of a buffer to a port's other end, and no more than are left of a turn; how far it came. What nobody
/// will take is taken.
fn carry_out(buffer: &Buffer, part: Range<u64>, end: &HostEnd, left: &mut usize) -> u64 {
    let mut at = part.start;
    let mut bytes = [0; PIECE];
    while at < part.end && *left > 0 {
        let most = usize::try_from(part.end - at).unwrap_or(PIECE).min(PIECE).min(*left);
        let count = buffer.read(at, &mut bytes[..most]);
        match end.write(&bytes[..count]) {
            Ok(written) => {
                at += written as u64;
                *left = left.saturating_sub(written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return at,
            Err(error) => {
                tell!(Debug, "nobody takes what the guest writes: {error}");
                return part.end;
            }
        }
        if count == 0 {
            return part.end;
        }
    }
    at
}

/// A control message.
fn message(id: u32, what: u8, (port, state, size): (&HostEnd, &PortState, TerminalSize)) -> Vec<u8> {
    let (event, value) = match what {
        to_say::ADD => (event::DEVICE_ADD, 0),
        to_say::TERMINAL => (event::CONSOLE_PORT, 1),
        to_say::NAME => (event::PORT_NAME, 1),
        to_say::OPEN => (event::PORT_OPEN, u16::from(!state.is_over)),
        _ => (event::RESIZE, 0),
    };
    let mut message = id.to_le_bytes().to_vec();
    message.extend(event.to_le_bytes());
    message.extend(value.to_le_bytes());
    match (event, port) {
        (event::PORT_NAME, HostEnd::Port(port)) => message.extend(port.name.as_bytes()),
        (event::RESIZE, _) => {
            // Rows first, as drivers/char/virtio_console.c of Linux before 6.15 reads it (5.3.6.2.1 has it the other way,
            // as newer ones do).
            message.extend(size.rows.to_le_bytes());
            message.extend(size.columns.to_le_bytes());
        }
        _ => {}
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Function;
    use crate::ram::Ram;
    use crate::virtio::testing::{Driver, WRITE};
    use arch::GuestPhys;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    const VERSION_1: u64 = 1 << 32;
    const PLACE: u64 = 0x4_0000;
    const PER_QUEUE: u64 = 0x2000;

    /// The outer end of a terminal: what is printed, of which it takes so much.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Paper {
        fn terminal(&self, room: usize) -> (Arc<Terminal>, Receiver<()>) {
            self.0.lock().unwrap().1 = room;
            let (paper, (sender, drained)) = (self.clone(), channel());
            let print = move |bytes: &[u8]| {
                let (printed, room) = &mut *paper.0.lock().unwrap();
                let count = bytes.len().min(*room);
                printed.extend(&bytes[..count]);
                *room -= count;
                count
            };
            let tells = Box::new(move || sender.send(()).map_err(io::Error::other));
            (Arc::new(Terminal::new(Box::new(print), tells).unwrap()), drained)
        }
    }

    /// A driver of a terminal and a port, and the host's ends of both.
    fn driver() -> (Driver<Console>, Host) {
        let paper = Paper::default();
        let (terminal, drained) = paper.terminal(usize::MAX);
        let (stream, port) = UnixStream::pair().unwrap();
        port.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let ports = vec![Port { name: "vmm".into(), stream }];
        let console = Console::new(Some(Arc::clone(&terminal)), ports).unwrap();
        (Driver::new(console), Host { terminal, paper, drained, port })
    }

    struct Host {
        terminal: Arc<Terminal>,
        paper: Paper,
        /// The guest has taken all input.
        drained: Receiver<()>,
        port: UnixStream,
    }

    /// Gives a queue a buffer to write to.
    fn give(driver: &mut Driver<Console>, queue: u64, head: u16) {
        let place = PLACE + PER_QUEUE * queue + 64 * u64::from(head);
        driver.descriptor(queue, head, (place, 64), WRITE, 0);
        driver.offer(queue, head);
    }

    /// Sends bytes by a queue.
    fn send(driver: &mut Driver<Console>, queue: u64, bytes: &[u8]) {
        let place = PLACE + PER_QUEUE * queue;
        driver.ram.write(GuestPhys(place), bytes);
        driver.descriptor(queue, 0, (place, u32::try_from(bytes.len()).unwrap()), 0, 0);
        driver.offer(queue, 0);
    }

    /// Waits until so many buffers of a queue are used; what the last one holds.
    fn wait(driver: &mut Driver<Console>, queue: u64, count: u16) -> Vec<u8> {
        loop {
            let (used, head, length) = driver.used(queue);
            if used == count {
                let mut bytes = vec![0; length as usize];
                driver.ram.read(GuestPhys(PLACE + PER_QUEUE * queue + 64 * u64::from(head)), &mut bytes);
                return bytes;
            }
            driver.message().expect("an interrupt");
        }
    }

    fn control(id: u32, event: u16, value: u16) -> Vec<u8> {
        [id.to_le_bytes().to_vec(), event.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
    }

    /// Goes through the start-up; how many control messages have come.
    fn introduce(driver: &mut Driver<Console>) -> u16 {
        driver.set_up(VERSION_1 | feature::SIZE | feature::MULTIPORT);
        for head in 0..16 {
            give(driver, TO_DRIVER as u64, head);
        }
        send(driver, FROM_DRIVER as u64, &control(0, event::DEVICE_READY, 1));
        assert_eq!(wait(driver, TO_DRIVER as u64, 2), control(1, event::DEVICE_ADD, 0));
        send(driver, FROM_DRIVER as u64, &control(0, event::PORT_READY, 1));
        assert_eq!(wait(driver, TO_DRIVER as u64, 5), [control(0, event::RESIZE, 0), vec![0; 4]].concat());
        send(driver, FROM_DRIVER as u64, &control(1, event::PORT_READY, 1));
        assert_eq!(wait(driver, TO_DRIVER as u64, 7), control(1, event::PORT_OPEN, 1));
        for port in 0..2 {
            send(driver, FROM_DRIVER as u64, &control(port, event::PORT_OPEN, 1));
            wait(driver, FROM_DRIVER as u64, u16::try_from(port).unwrap() + 4);
        }
        7
    }

    #[test]
    fn bytes_go_both_ways() {
        let (mut driver, Host { terminal, paper, drained, mut port }) = driver();
        introduce(&mut driver);
        send(&mut driver, 1, b"to the terminal");
        wait(&mut driver, 1, 1);
        assert_eq!(paper.0.lock().unwrap().0, b"to the terminal");
        send(&mut driver, 5, b"to the port");
        let mut bytes = [0; 64];
        assert_eq!(port.read(&mut bytes).unwrap(), 11);
        assert_eq!(&bytes[..11], b"to the port");
        port.write_all(&[b'x'; 70]).unwrap();
        give(&mut driver, 4, 0);
        assert_eq!(wait(&mut driver, 4, 1), [b'x'; 64]);
        give(&mut driver, 4, 1);
        assert_eq!(wait(&mut driver, 4, 2), [b'x'; 6]);
        give(&mut driver, 4, 2);
        assert_eq!(terminal.receive(b"key"), 3);
        give(&mut driver, 0, 0);
        assert_eq!(wait(&mut driver, 0, 1), b"key");
        drained.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(terminal.pending(), 0);
        // The host's end goes.
        drop(port);
        assert_eq!(wait(&mut driver, TO_DRIVER as u64, 8), control(1, event::PORT_OPEN, 0));
        send(&mut driver, 5, b"to nobody");
        wait(&mut driver, 5, 2);
    }

    /// To one that knows of ports by a message, also when it was set before the driver began.
    #[test]
    fn a_size_is_told() {
        let (mut driver, host) = driver();
        introduce(&mut driver);
        assert_eq!(driver.read(0x15, 1), 0);
        host.terminal.set_size(TerminalSize { columns: 80, rows: 25 });
        let told = [control(0, event::RESIZE, 0), vec![25, 0, 80, 0]].concat();
        assert_eq!(wait(&mut driver, TO_DRIVER as u64, 8), told);
        assert_eq!((driver.read(0x2000, 4), driver.read(0x2004, 4)), (25 << 16 | 80, 2));
        assert_eq!(driver.read(0x15, 1), 1);
    }

    /// A device with a terminal alone is one of two queues, whose driver looks at its configuration.
    #[test]
    fn a_terminal_needs_no_control_messages() {
        let paper = Paper::default();
        let (terminal, _drained) = paper.terminal(6);
        terminal.set_size(TerminalSize { columns: 132, rows: 50 });
        terminal.receive(b"typed ahead");
        let console = Console::new(Some(Arc::clone(&terminal)), Vec::new()).unwrap();
        assert_eq!((console.features(), console.queue_sizes().len()), (feature::SIZE, 2));
        let mut driver = Driver::new(console);
        driver.set_up(VERSION_1 | feature::SIZE);
        give(&mut driver, 0, 0);
        assert_eq!(wait(&mut driver, 0, 1), b"typed ahead");
        assert_eq!((driver.read(0x2000, 4), driver.read(0x15, 1)), (50 << 16 | 132, 1));
        // What there is no room for waits in the guest, and is not lost; nor when it is saved meanwhile.
        send(&mut driver, 1, b"more than there is room for");
        while paper.0.lock().unwrap().0.len() < 6 {
            std::thread::yield_now();
        }
        assert!(driver.pace.hold(Duration::from_secs(20)));
        let saved = driver.function.save();
        assert_eq!(saved.fields["device"]["fields"]["model"]["ports"][0]["taken"], 6);
        driver.function.restore(&saved).unwrap();
        driver.pace.release();
        assert_eq!(driver.used(1).0, 0);
        paper.0.lock().unwrap().1 = usize::MAX;
        terminal.ring();
        wait(&mut driver, 1, 1);
        assert_eq!(paper.0.lock().unwrap().0, b"more than there is room for");
    }

    /// What nobody takes waits in the guest, and is not lost; nor when it is saved meanwhile.
    #[test]
    fn what_is_not_taken_waits() {
        let (mut driver, Host { mut port, .. }) = driver();
        introduce(&mut driver);
        let block: Vec<u8> = (0..=255).cycle().take(0x1000).collect();
        // As many as the queue has, which is more than a socket holds (net.core.wmem_default: 208 KiB).
        let sent = ENTRIES;
        for _ in 0..sent {
            send(&mut driver, 5, &block);
        }
        // As whoever saves a guest does: nothing is being served meanwhile.
        assert!(driver.pace.hold(Duration::from_secs(20)));
        let saved = driver.function.save();
        assert_eq!(driver.function.save(), saved);
        driver.function.restore(&saved).unwrap();
        driver.pace.release();
        let mut got = vec![0; usize::from(sent) * block.len()];
        port.read_exact(&mut got).unwrap();
        assert!(got.chunks(block.len()).all(|piece| piece == block));
        wait(&mut driver, 5, sent);
    }

    #[test]
    fn hostile_control_messages_do_nothing() {
        let (mut driver, _host) = driver();
        let said = introduce(&mut driver);
        let messages = [
            control(7, event::PORT_READY, 1),
            control(u32::MAX, event::PORT_OPEN, 1),
            control(0, 77, 1),
            control(1, event::PORT_READY, 0),
            vec![1, 2, 3],
        ];
        for (count, message) in (6..).zip(messages) {
            send(&mut driver, FROM_DRIVER as u64, &message);
            wait(&mut driver, FROM_DRIVER as u64, count);
        }
        assert_eq!((driver.used(TO_DRIVER as u64).0, driver.status()), (said, 15));
        // Over and over, without room for the answers: nothing gathers.
        for count in 11..=200 {
            send(&mut driver, FROM_DRIVER as u64, &control(0, event::DEVICE_READY, 1));
            wait(&mut driver, FROM_DRIVER as u64, count);
        }
        assert_eq!(driver.function.save().fields["device"]["fields"]["model"]["ports"][0]["to_say"], 1);
    }
}
