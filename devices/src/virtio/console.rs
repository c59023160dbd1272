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
    /// The host's end is closed: what it is here, and not what a state that is put back has, nor a reset makes of it.
    is_over: bool,
    /// Bytes of the first buffer in the queue from the driver that have been taken.
    taken: u32,
    /// The guest has said that it knows of it.
    is_ready: bool,
}

/// The most bytes of what was typed, and not taken, that are saved: more is not typed by hand.
const MOST_INPUT: usize = 64 << 10;

/// The device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    ports: Vec<PortState>,
    /// What was typed into the terminal, and waits for the guest.
    #[serde(default)]
    input: Vec<u8>,
}

/// The state of all ports, which are as many as there are ends of the host's.
#[derive(Debug)]
struct Ports {
    ports: Vec<PortState>,
}

/// What model and server share.
#[derive(Debug)]
struct Shared {
    ports: Vec<HostEnd>,
    state: Mutex<Ports>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Ports> {
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
        let state = Ports { ports: vec![PortState::default(); ports.len()] };
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
        let input = self.shared.terminal().map(|terminal| terminal.input(MOST_INPUT)).unwrap_or_default();
        State { ports: self.shared.state().ports.clone(), input }
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        let device = self.name();
        let mut own = self.shared.state();
        if own.ports.len() != state.ports.len() {
            let why = format!("it has {} ports, and there are {}", state.ports.len(), own.ports.len());
            return Err(Misfit::Damaged { device, why });
        }
        if state.input.len() > MOST_INPUT {
            let why = format!("more than {MOST_INPUT} bytes are typed");
            return Err(Misfit::Damaged { device, why });
        }
        for (own, saved) in own.ports.iter_mut().zip(state.ports) {
            let is_over = own.is_over;
            *own = PortState { is_over, ..saved };
            // The guest knows of the other end.
            if own.is_ready && saved.is_over != is_over {
                own.to_say |= to_say::OPEN;
            }
        }
        drop(own);
        if let Some(terminal) = self.shared.terminal() {
            terminal.set_input(&state.input);
        }
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
mod tests;
