//! A guest that says anything to its socket device, and programs of the host's that do.

use super::disks::{Memory, Nobody};
use devices::ram::Ram;
use devices::virtio::queue::{ActiveQueue, Queues};
use devices::virtio::vsock::{Host, MOST_CONNECTIONS, Vsock};
use devices::virtio::worker::Rung;
use devices::virtio::{Interrupts, Model};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The guest's number, and entries of each queue.
const CID: u32 = 3;
const SIZE: u16 = 16;
/// Where a queue's parts are, and where its buffers.
const PER_QUEUE: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFERS: u64 = 0x4000;
const BUFFER: u16 = 0x400;

/// Programs that come with what they say already said, and ports that all have somebody.
struct Programs {
    /// Readable: somebody has come.
    bell: EventFd,
    comers: Vec<UnixStream>,
    /// The other ends.
    others: Vec<UnixStream>,
}

impl Programs {
    fn pair(&mut self) -> io::Result<UnixStream> {
        let (ours, other) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        self.others.push(other);
        Ok(ours)
    }
}

impl Host for Programs {
    fn listener(&self) -> Option<RawFd> {
        Some(self.bell.as_raw_fd())
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        self.comers.pop().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        // What is said by one before it is asked for anything, and one that has gone.
        let ours = self.pair()?;
        match port {
            0 => return Err(io::ErrorKind::ConnectionRefused.into()),
            1 => drop(self.others.pop()),
            _ => {
                let other = self.others.last().ok_or(io::ErrorKind::NotFound)?;
                (&mut &*other).write_all(&[0x5a; 600])?;
            }
        }
        Ok(ours)
    }
}

/// A header by six bytes: ports, operation, flags, room, count; and what is behind it.
fn packet(bytes: &[u8]) -> Vec<u8> {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let data = &bytes[bytes.len().min(6)..];
    let mut packet = u64::from(CID).to_le_bytes().to_vec();
    packet.extend(2u64.to_le_bytes());
    packet.extend(u32::from(byte(0) % 4).to_le_bytes());
    packet.extend(u32::from(byte(1) % 4).to_le_bytes());
    let length = u32::try_from(data.len()).unwrap_or(0) + u32::from(byte(2) >> 7);
    packet.extend(length.to_le_bytes());
    packet.extend(1u16.to_le_bytes());
    packet.extend(u16::from(byte(2) % 9).to_le_bytes());
    for word in [byte(3), byte(4), byte(5)] {
        packet.extend((u32::from(word) << (word % 25)).to_le_bytes());
    }
    packet.extend(data);
    packet
}

fn queue(ram: &Memory, number: u16, interrupts: &Arc<dyn Interrupts>) -> Option<ActiveQueue> {
    let base = PER_QUEUE * u64::from(number);
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: base,
        avail_ring: base + AVAILABLE,
        used_ring: base + USED,
        ..QueueState::default()
    };
    let bell = EventFd::new(0).ok()?;
    ActiveQueue::new(state, number, bell, (Arc::new(ram.clone()), Arc::clone(interrupts))).ok()
}

/// Has a queue's next buffer be these bytes, or room for so many.
fn offer(ram: &Memory, number: u16, index: u16, bytes: Result<&[u8], u32>) {
    const WRITE: u16 = 2;
    let (slot, base) = (index % SIZE, PER_QUEUE * u64::from(number));
    let place = BUFFERS + u64::from(BUFFER) * (u64::from(number) * u64::from(SIZE) + u64::from(slot));
    let (length, flags) = match bytes {
        Ok(bytes) => {
            let bytes = &bytes[..bytes.len().min(BUFFER.into())];
            ram.write(arch::GuestPhys(place), bytes);
            (u32::try_from(bytes.len()).unwrap_or(0), 0)
        }
        Err(room) => (room, WRITE),
    };
    let mut descriptor = place.to_le_bytes().to_vec();
    descriptor.extend(length.to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend([0; 2]);
    ram.write(arch::GuestPhys(base + 16 * u64::from(slot)), &descriptor);
    ram.write(arch::GuestPhys(base + AVAILABLE + 4 + 2 * u64::from(slot)), &slot.to_le_bytes());
    ram.write(arch::GuestPhys(base + AVAILABLE + 2), &index.wrapping_add(1).to_le_bytes());
}

/// Lines of the first byte's length each: a packet of the guest's, or, where the length is odd, a program that comes and
/// says so.
pub fn vsock(data: &[u8]) {
    let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)]) else { return };
    let (ram, interrupts) = (Memory(memory), Arc::new(Nobody) as Arc<dyn Interrupts>);
    let Ok(bell) = EventFd::new(0) else { return };
    if bell.write(1).is_err() {
        return;
    }
    let mut programs = Programs { bell, comers: Vec::new(), others: Vec::new() };
    let mut packets = Vec::new();
    let mut rest = data;
    while let Some((length, behind)) = rest.split_first() {
        let (line, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = behind;
        if length % 2 == 0 {
            packets.push(packet(line));
        } else if let Ok(comer) = programs.pair()
            && let Some(other) = programs.others.last()
            && (&mut &*other).write_all(line).is_ok()
        {
            programs.comers.push(comer);
        }
    }
    let Ok(mut device) = Vsock::new(CID, MOST_CONNECTIONS, Arc::new(Mutex::new(programs))) else { return };
    let Some(mut service) = device.services(1 << 32, &interrupts).pop() else { return };
    let mut queues = Queues::new(3);
    for number in 0..3 {
        queues.put(usize::from(number), queue(&ram, number, &interrupts));
    }
    let (mut given, mut said) = (0u16, 0u16);
    for packet in packets.iter().take(64) {
        offer(&ram, 0, given, Err(BUFFER.into()));
        offer(&ram, 1, said, Ok(packet));
        (given, said) = (given.wrapping_add(1), said.wrapping_add(1));
        for rung in [Rung::Queue(1), Rung::Source(0), Rung::Queue(0), Rung::Queue(2)] {
            if service.server.serve(rung, &mut queues).is_err() {
                return;
            }
        }
    }
    device.save();
}
