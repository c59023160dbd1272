//! The network device (5.1): frames between a guest and a link of the host's, on one pair of queues.
//!
//! Where frames go is not known here: whoever carries them ([`Link`]) takes packets and gives them, a packet being a
//! frame behind the header that the guest writes and reads as well. What the link has no room for waits in the guest's
//! queue, and what the guest has no room for waits in the link: one packet is kept here at most.

use super::queue::{ActiveQueue, Broken, Chain, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::state::Misfit;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// 5 "Device Types".
const ID: u16 = 1;
/// PCI Code and ID Assignment: Ethernet controller.
const CLASS: [u8; 3] = [2, 0, 0];
/// Queues: to the driver, and from it (5.1.2).
const TO_DRIVER: usize = 0;
const FROM_DRIVER: usize = 1;
/// Entries of each.
const ENTRIES: u16 = 256;
const SIZES: &[u16] = &[ENTRIES, ENTRIES];
/// How many packets go each way before others have their turn.
const TURN: usize = 64;

/// Bytes of the header before each frame (5.1.6 "Device Operation", `struct virtio_net_hdr` with `num_buffers`).
pub const HEADER: usize = 12;
/// Where in the header the number of buffers is that a packet lies in.
const BUFFERS: usize = 10;
/// The most bytes of a packet: the header, and an Ethernet frame with the longest IP packet.
pub const LONGEST_PACKET: usize = HEADER + 14 + 0xffff;

/// 5.1.3 "Feature bits".
pub mod feature {
    /// The driver may leave checksums to be computed.
    pub const CSUM: u64 = 1;
    /// The device may.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The configuration has the longest frame.
    pub const MTU: u64 = 1 << 3;
    /// The configuration has an address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP segments of IPv4 longer than the medium has them.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Of IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// With explicit congestion notification.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device takes such segments of IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Of IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// With explicit congestion notification.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A packet may lie in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The configuration says whether the link is up.
    pub const STATUS: u64 = 1 << 16;

    /// Those that a link can do, or not.
    pub const OF_LINKS: u64 =
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
}

/// An address of Ethernet's.
pub type Mac = [u8; 6];

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is sent, or lost.
    Gone,
    /// There is no room for it; a source says when there is.
    NoRoom,
}

/// Whoever carries frames. A packet is a header of [`HEADER`] bytes and a frame.
pub trait Link: Send + 'static {
    /// Descriptors by which there is news of it: packets, or room for them.
    fn sources(&self) -> Vec<RawFd>;

    /// What it can do ([`feature::OF_LINKS`]), always the same.
    fn features(&self) -> u64 {
        0
    }

    /// The longest packet of IP's that it carries, bytes, if it wants to tell the guest; always the same.
    fn mtu(&self) -> Option<u16> {
        None
    }

    /// A driver has begun, with these features of all.
    fn begin(&mut self, features: u64);

    /// It has gone.
    fn reset(&mut self) {}

    /// Takes a packet of the guest's, of [`HEADER`] to [`LONGEST_PACKET`] bytes. The header means nothing where the
    /// guest has not taken features that it is for.
    fn send(&mut self, packet: &[u8]) -> Sent;

    /// Gives a packet to the guest, if there is one; how many bytes, with those of the header.
    fn receive(&mut self, packet: &mut [u8]) -> Option<usize>;

    /// The guest was held for so long: nothing went either way.
    fn rested(&mut self, _time: Duration) {}

    /// Whether it carries anything.
    fn is_up(&self) -> bool {
        true
    }
}

/// What model and server share.
#[derive(Debug)]
struct Shared<L> {
    link: Arc<Mutex<L>>,
    state: Mutex<State>,
}

/// The device's state. Packets on their way are lost, as they are in networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    mac: Mac,
    is_up: bool,
}

impl<L> Shared<L> {
    fn link(&self) -> MutexGuard<'_, L> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device.
pub struct Net<L> {
    shared: Arc<Shared<L>>,
    /// What the link can do, and the longest packet of IP's: whoever asks does not wait for one who uses the link.
    offered: u64,
    mtu: Option<u16>,
}

impl<L> fmt::Debug for Net<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("state", &self.shared.state()).finish_non_exhaustive()
    }
}

impl<L: Link> Net<L> {
    /// With a link, and the guest's address there. Whoever makes the device may keep the link, for another one.
    pub fn new(link: Arc<Mutex<L>>, mac: Mac) -> Net<L> {
        let locked = link.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_up, offered, mtu) = (locked.is_up(), locked.features() & feature::OF_LINKS, locked.mtu());
        drop(locked);
        let state = Mutex::new(State { mac, is_up });
        Net { shared: Arc::new(Shared { link, state }), offered, mtu }
    }
}

impl<L: Link> Model for Net<L> {
    type State = State;

    fn name(&self) -> &'static str {
        "virtio net"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { feature::MTU } else { 0 };
        feature::MAC | feature::STATUS | feature::MRG_RXBUF | mtu | self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        SIZES
    }

    /// 5.1.4 "Device configuration layout".
    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        const LINK_UP: u16 = 1;
        const PAIRS: u16 = 1;
        let state = *self.shared.state();
        let mtu = self.mtu.unwrap_or(0);
        let status = if state.is_up { LINK_UP } else { 0 };
        let fields = [status, PAIRS, mtu].map(u16::to_le_bytes).concat();
        super::read_bytes(&[&state.mac[..], &fields].concat(), offset, data);
    }

    fn services(&mut self, features: u64, interrupts: &Arc<dyn Interrupts>) -> Vec<Service> {
        self.shared.link().begin(features);
        let server = Server {
            shared: Arc::clone(&self.shared),
            interrupts: Arc::clone(interrupts),
            is_merging: features & feature::MRG_RXBUF != 0,
            has_headers: features & feature::OF_LINKS != 0,
            sent: vec![0; LONGEST_PACKET],
            received: vec![0; LONGEST_PACKET],
            waiting: None,
            chains: Vec::new(),
        };
        vec![Service { server: Box::new(server), queues: vec![TO_DRIVER, FROM_DRIVER] }]
    }

    fn reset(&mut self) {
        self.shared.link().reset();
    }

    fn save(&self) -> State {
        *self.shared.state()
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        *self.shared.state() = state;
        Ok(())
    }
}

/// Serves both queues.
struct Server<L> {
    shared: Arc<Shared<L>>,
    interrupts: Arc<dyn Interrupts>,
    /// A packet may lie in several buffers.
    is_merging: bool,
    /// Headers of the guest's mean something.
    has_headers: bool,
    /// Room for a packet each way.
    sent: Vec<u8>,
    received: Vec<u8>,
    /// Bytes of the packet that waits for the guest's buffers.
    waiting: Option<usize>,
    /// Room for a packet's buffers, and how many bytes are in each.
    chains: Vec<(Chain, u32)>,
}

impl<L: Link> Serve for Server<L> {
    fn sources(&self) -> Vec<RawFd> {
        self.shared.link().sources()
    }

    fn rested(&mut self, time: Duration) {
        self.shared.link().rested(time);
    }

    fn serve(&mut self, _: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let shared = Arc::clone(&self.shared);
        let mut link = shared.link();
        // What is sent is answered at once, by some links.
        let sends = match queues.get(FROM_DRIVER) {
            Some(queue) => self.take(queue, &mut *link)?,
            None => Then::Waits,
        };
        let receives = match queues.get(TO_DRIVER) {
            Some(queue) => self.give(queue, &mut *link)?,
            None => Then::Waits,
        };
        let is_up = link.is_up();
        drop(link);
        if std::mem::replace(&mut shared.state().is_up, is_up) != is_up {
            self.interrupts.configuration();
        }
        Ok(if [sends, receives].contains(&Then::GoesOn) { Then::GoesOn } else { Then::Waits })
    }
}

impl<L: Link> Server<L> {
    /// What the guest sends, as far as the link takes it.
    fn take(&mut self, queue: &mut ActiveQueue, link: &mut L) -> Result<Then, Broken> {
        queue.stop_listening()?;
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else {
                queue.tell()?;
                return Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits });
            };
            let size = usize::try_from(chain.readable.size()).unwrap_or(usize::MAX);
            // One that is too long, or has no header, is lost.
            if let Some(packet) = self.sent.get_mut(..size).filter(|packet| packet.len() > HEADER)
                && chain.readable.read(0, packet) == size
            {
                if !self.has_headers {
                    packet[..HEADER].fill(0);
                }
                if link.send(packet) == Sent::NoRoom {
                    queue.put_back();
                    queue.tell()?;
                    return Ok(Then::Waits);
                }
            }
            queue.push(&chain, 0)?;
        }
        queue.tell()?;
        Ok(Then::GoesOn)
    }

    /// What comes from the link, as far as the guest has room for it.
    fn give(&mut self, queue: &mut ActiveQueue, link: &mut L) -> Result<Then, Broken> {
        queue.stop_listening()?;
        for _ in 0..TURN {
            let Some(size) = self.waiting.take().or_else(|| link.receive(&mut self.received)) else {
                queue.tell()?;
                return Ok(Then::Waits);
            };
            if let Put::TooFew(buffers) = self.put(queue, size)? {
                self.waiting = Some(size);
                queue.tell()?;
                return Ok(if queue.listen_beyond(buffers)? { Then::GoesOn } else { Then::Waits });
            }
        }
        queue.tell()?;
        Ok(Then::GoesOn)
    }

    /// Puts a packet into the guest's buffers. One that does not fit into what a queue can hold is lost.
    fn put(&mut self, queue: &mut ActiveQueue, size: usize) -> Result<Put, Broken> {
        let packet = &mut self.received[..size];
        let mut room = 0;
        self.chains.clear();
        while room < size as u64 {
            let is_full = match self.is_merging {
                true => self.chains.len() >= usize::from(queue.size()),
                false => !self.chains.is_empty(),
            };
            let chain = if is_full { None } else { queue.pop()? };
            let Some(chain) = chain else {
                self.chains.iter().for_each(|_| queue.put_back());
                let buffers = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
                return Ok(if is_full { Put::Gone } else { Put::TooFew(buffers) });
            };
            room += chain.writable.size();
            self.chains.push((chain, 0));
        }
        let buffers = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        if let Some(field) = packet.get_mut(BUFFERS..HEADER) {
            field.copy_from_slice(&buffers.to_le_bytes());
        }
        let mut rest = &*packet;
        for (chain, written) in &mut self.chains {
            let count = chain.writable.write(0, rest);
            rest = rest.get(count..).unwrap_or_default();
            *written = u32::try_from(count).unwrap_or(0);
        }
        queue.push_together(&self.chains)?;
        Ok(Put::Gone)
    }
}

/// What became of a packet for the guest.
enum Put {
    /// It is there, or lost.
    Gone,
    /// It needs more than the so many buffers that there are.
    TooFew(u16),
}

#[cfg(test)]
mod tests;
