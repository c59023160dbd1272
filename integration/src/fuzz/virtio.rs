//! A PCI bus with virtio devices, by a guest that writes anything anywhere: to configuration spaces, to registers, and to
//! the memory that queues are in.

use super::frames::Echo;
use arch::GuestPhys;
use arch::address::PhysRange;
use devices::pci::bus::{PciBus, with_bridge};
use devices::pci::msix::{Message, Sender};
use devices::ram::Ram;
use devices::virtio::Model;
use devices::virtio::console::{Console, Port, Terminal, TerminalSize};
use devices::virtio::entropy::Entropy;
use devices::virtio::net::Net;
use devices::virtio::pace::Pace;
use devices::virtio::pci::{Bells, Connections, VirtioFunction};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// 64 KiB of RAM.
const RAM: usize = 0x1_0000;

#[derive(Clone, Debug)]
struct Memory(GuestMemoryMmap);

impl Ram for Memory {
    fn ranges(&self) -> Vec<PhysRange> {
        vec![PhysRange::new(0, RAM as u64)]
    }

    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        self.0.read(bytes, GuestAddress(address.0)).unwrap_or(0)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        self.0.write(bytes, GuestAddress(address.0)).unwrap_or(0)
    }

    fn update(&self, _: GuestPhys, _: usize, _: u64, _: u64) -> Option<u64> {
        None
    }

    fn shared(&self, address: GuestPhys, size: usize) -> Option<VolatileSlice<'_>> {
        GuestMemoryBackend::get_slice(&self.0, GuestAddress(address.0), size).ok()
    }

    fn forget_mapping(&self, _: GuestPhys) {}
}

struct Nowhere;

impl Sender for Nowhere {
    fn send(&self, _: Message) -> io::Result<()> {
        Ok(())
    }
}

impl Bells for Nowhere {
    fn place(&mut self, _: u16, _: &EventFd, _: Option<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where registers may lie.
const WINDOW: PhysRange = PhysRange::new(0xd000_0000, 0x10_0000);
/// Where the devices' registers are put at the beginning, a page each kind.
const PLACES: [u64; 3] = [WINDOW.start.0, WINDOW.start.0 + 0x8000, WINDOW.start.0 + 0x1_0000];

fn add(bus: &mut PciBus, memory: &Memory, pace: &Pace, model: impl Model + 'static) -> io::Result<()> {
    let connections = Connections {
        ram: Arc::new(memory.clone()),
        pace: pace.clone(),
        sender: Box::new(Nowhere),
        line: None,
        bells: Box::new(Nowhere),
    };
    bus.add(Arc::new(Mutex::new(VirtioFunction::new(model, connections)?)));
    Ok(())
}

/// A console with a port and a terminal, on which something has been typed, and which takes half of what is printed.
fn console(stream: UnixStream) -> io::Result<Console> {
    let print = |bytes: &[u8]| bytes.len().div_ceil(2);
    let terminal = Terminal::new(Box::new(print), Box::new(|| Ok(())))?;
    terminal.set_size(TerminalSize { columns: 80, rows: 25 });
    terminal.receive(&[b'x'; 100]);
    Console::new(Some(Arc::new(terminal)), vec![Port { name: "port".into(), stream }])
}

/// A bus with an entropy device, a console and a network, whose registers are put somewhere, what holds them, and
/// the host's end of its port.
fn machine(memory: &Memory) -> io::Result<(PciBus, Pace, UnixStream)> {
    let (mut bus, pace) = (with_bridge(&[WINDOW]), Pace::default());
    let (stream, host) = UnixStream::pair()?;
    host.set_nonblocking(true)?;
    let random = |bytes: &mut [u8]| {
        bytes.fill(7);
        Ok(())
    };
    add(&mut bus, memory, &pace, Entropy::new(Arc::new(Mutex::new(random))))?;
    add(&mut bus, memory, &pace, console(stream)?)?;
    add(&mut bus, memory, &pace, Net::new(Arc::new(Mutex::new(Echo::default())), [2, 0, 0, 0, 0, 1]))?;
    for (device, place) in (1..).zip(PLACES) {
        bus.write_config(device, 0, 0x10, &place.to_le_bytes());
        bus.write_config(device, 0, 0x18, &(place + 0x4000).to_le_bytes());
        bus.write_config(device, 0, 4, &[6, 0]);
    }
    Ok((bus, pace, host))
}

/// Accesses, each a kind, a place, and what is written there.
pub fn virtio(mut data: &[u8]) {
    let Ok(memory) = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]) else { return };
    let memory = Memory(memory);
    // Without descriptors there is nothing to fuzz.
    let Ok((bus, pace, host)) = machine(&memory) else { return };
    while let [kind, low, high, b0, b1, b2, b3, rest @ ..] = data {
        data = rest;
        let (place, bytes) = (u16::from_le_bytes([*low, *high]), [*b0, *b1, *b2, *b3]);
        let size = 1 << (kind >> 4 & 0b11).min(2);
        let device = usize::from(kind >> 6) % 3;
        let register = PLACES[device] + u64::from(place);
        match kind & 0xf {
            0 => bus.write_config(device, 0, usize::from(place), &bytes[..size]),
            1 => bus.read_config(device, 0, usize::from(place), &mut [0xff; 4][..size]),
            2..=5 => assert_eq!(bus.write(register, &bytes[..size]), None),
            6 => bus.read(register, &mut [0xff; 4][..size]),
            7..=10 => drop(memory.write(GuestPhys(u64::from(place)), &bytes)),
            11 => drop((&host).write(&bytes)),
            12 => drop((&host).read(&mut [0; 64])),
            // What is saved can be put back, and is the same then.
            13 => {
                // A turn of a device's is a matter of microseconds; if it is not over, nothing is to be compared.
                let is_quiet = pace.hold(Duration::from_secs(1));
                let states = bus.save().expect("the host answers");
                bus.restore(&states).expect("it is the same machine's");
                assert!(!is_quiet || bus.save().expect("the host answers") == states);
                pace.release();
            }
            _ => std::thread::yield_now(),
        }
    }
}
