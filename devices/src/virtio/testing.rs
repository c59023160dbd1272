//! A guest for tests: RAM, and a driver that does by the book what Linux does, and otherwise what it is told.

use super::Model;
use super::pace::Pace;
use super::pci::{Bells, Connections, VirtioFunction};
use crate::pci::Function;
use crate::pci::msix::{Message, Sender};
use crate::rack::Line;
use crate::ram::Ram;
use arch::GuestPhys;
use arch::address::PhysRange;
use std::io;
use std::sync::mpsc::{self, Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// A line that tells of each level it is set to.
#[derive(Debug)]
pub struct TestLine(pub Mutex<mpsc::Sender<bool>>);

impl Line for TestLine {
    fn pulse(&self) -> io::Result<()> {
        Ok(())
    }

    fn set(&self, level: bool) -> io::Result<()> {
        self.0.lock().unwrap().send(level).unwrap();
        Ok(())
    }
}

/// RAM, with nothing planted in it.
#[derive(Clone, Debug)]
pub struct TestRam(pub GuestMemoryMmap);

impl TestRam {
    /// A mebibyte from 0, and a page above 4 GiB.
    pub fn new() -> TestRam {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 0x1000)];
        TestRam(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }
}

impl Ram for TestRam {
    fn ranges(&self) -> Vec<PhysRange> {
        self.0.iter().map(|region| PhysRange::new(region.start_addr().0, region.len())).collect()
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

    fn lend(&self, parts: &[(GuestPhys, usize)], work: &mut dyn FnMut(&[VolatileSlice<'_>])) -> bool {
        let slices: Option<Vec<_>> =
            parts.iter().map(|&(address, size)| self.shared(address, size)).collect();
        slices.is_some_and(|slices| {
            work(&slices);
            true
        })
    }

    fn forget_mapping(&self, _: GuestPhys) {}
}

struct Sends(Mutex<std::sync::mpsc::Sender<u32>>);

impl Sender for Sends {
    fn send(&self, message: Message) -> io::Result<()> {
        self.0.lock().unwrap().send(message.data).ok();
        Ok(())
    }
}

/// No bell has a way of its own.
struct NoBells;

impl Bells for NoBells {
    fn place(&mut self, _: u16, _: &EventFd, _: Option<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Flags of a descriptor (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where a queue's parts are.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Bytes between one queue's parts and the next one's.
const PER_QUEUE: u64 = 0x4000;

/// A driver of a device on PCI.
pub struct Driver<M> {
    pub function: VirtioFunction<M>,
    pub ram: TestRam,
    /// By which its threads are held.
    pub pace: Pace,
    messages: Receiver<u32>,
    /// What has been made available in each queue.
    available: Vec<u16>,
}

impl<M: Model> Driver<M> {
    pub fn new(model: M) -> Driver<M> {
        let queues = model.queue_sizes().len();
        Driver::over(TestRam::new(), model, vec![0; queues])
    }

    /// One that goes on with another device, of which it thinks as of this one.
    pub fn with_another(self, model: M) -> Driver<M> {
        Driver::over(self.ram, model, self.available)
    }

    fn over(ram: TestRam, model: M, available: Vec<u16>) -> Driver<M> {
        let ((sender, messages), pace) = (channel(), Pace::default());
        let connections = Connections {
            ram: Arc::new(ram.clone()),
            pace: pace.clone(),
            sender: Box::new(Sends(Mutex::new(sender))),
            line: None,
            bells: Box::new(NoBells),
        };
        let function = VirtioFunction::new(model, connections).unwrap();
        Driver { function, ram, pace, messages, available }
    }

    pub fn read(&mut self, offset: u64, size: usize) -> u64 {
        let mut data = [0xff; 8];
        self.function.read(0, offset, &mut data[..size]);
        data[size..].fill(0);
        u64::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, size: usize, value: u64) {
        assert_eq!(self.function.write(0, offset, &value.to_le_bytes()[..size]), None);
    }

    pub fn configure(&mut self, offset: usize, data: &[u8]) {
        self.function.config_mut().write(offset, data);
        self.function.configured(offset, data.len());
    }

    /// The offset of a capability, the first with this identifier.
    pub fn capability(&mut self, id: u8) -> usize {
        let mut at = [0x34u8];
        loop {
            let mut link = [0];
            self.function.read_config(usize::from(at[0]), &mut link);
            assert_ne!(link[0], 0, "there is no such capability");
            let mut found = [0; 2];
            self.function.read_config(link[0].into(), &mut found);
            if found[0] == id {
                return link[0].into();
            }
            at[0] = link[0] + 1;
        }
    }

    /// Resets the device, and waits for that as drivers do.
    pub fn reset(&mut self) {
        self.write(0x14, 1, 0);
        self.wait_for_reset();
    }

    /// Waits for the end of a reset.
    pub fn wait_for_reset(&mut self) {
        let start = Instant::now();
        while self.status() != 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "it is not reset");
            std::thread::yield_now();
        }
    }

    /// Does all that a driver does, with the features that it takes of those that are offered.
    pub fn set_up(&mut self, features: u64) {
        // Memory and bus master; messages, one for each queue and one for the configuration, whose data is its number.
        self.configure(4, &[6, 0]);
        let msix = self.capability(0x11);
        self.configure(msix + 2, &0x8000u16.to_le_bytes());
        for vector in 0..=self.available.len() as u64 {
            for (at, value) in [(0, 0xfee0_0000), (4, 0), (8, vector), (12, 0)] {
                assert_eq!(self.function.write(2, 16 * vector + at, &value.to_le_bytes()[..4]), None);
            }
        }
        self.reset();
        self.write(0x14, 1, 1);
        self.write(0x14, 1, 3);
        let mut offered = 0;
        for half in 0..2u64 {
            self.write(0, 4, half);
            offered |= self.read(4, 4) << (32 * half);
            self.write(8, 4, half);
            self.write(0xc, 4, features >> (32 * half) & 0xffff_ffff);
        }
        assert_eq!(features & !offered, 0, "that is not offered");
        self.write(0x14, 1, 11);
        assert_eq!(self.read(0x14, 1), 11, "features are not agreed on");
        self.write(0x10, 2, self.available.len() as u64);
        for index in 0..self.available.len() as u64 {
            self.write(0x16, 2, index);
            assert_eq!(self.read(0x1e, 2), index);
            self.write(0x1a, 2, index);
            assert_eq!(self.read(0x1a, 2), index);
            for (register, place) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
                let place = place + PER_QUEUE * index;
                self.ram.write(GuestPhys(place), &[0; 0x1000]);
                self.write(register, 4, place);
                self.write(register + 4, 4, 0);
            }
            self.write(0x1c, 2, 1);
        }
        self.available.fill(0);
        self.write(0x14, 1, 15);
    }

    /// Writes a descriptor of a queue.
    pub fn descriptor(&self, queue: u64, index: u16, part: (u64, u32), flags: u16, next: u16) {
        let mut bytes = part.0.to_le_bytes().to_vec();
        bytes.extend(part.1.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = DESCRIPTORS + PER_QUEUE * queue + 16 * u64::from(index);
        assert_eq!(self.ram.write(GuestPhys(at), &bytes), 16);
    }

    /// Makes a chain available, and rings.
    pub fn offer(&mut self, queue: u64, head: u16) {
        let index = usize::try_from(queue).unwrap();
        let at = AVAILABLE + PER_QUEUE * queue;
        let size = {
            self.write(0x16, 2, queue);
            self.read(0x18, 2)
        };
        // It wants to hear of the next that is used (2.7.7.1).
        let mut used = [0; 2];
        self.ram.read(GuestPhys(USED + PER_QUEUE * queue + 2), &mut used);
        self.ram.write(GuestPhys(at + 4 + 2 * size), &used);
        let slot = u64::from(self.available[index]) % size;
        self.ram.write(GuestPhys(at + 4 + 2 * slot), &head.to_le_bytes());
        self.available[index] = self.available[index].wrapping_add(1);
        self.ram.write(GuestPhys(at + 2), &self.available[index].to_le_bytes());
        self.write(0x3000 + 4 * queue, 2, queue);
    }

    /// How many chains of a queue have been used, and what the last one's head and length are.
    pub fn used(&mut self, queue: u64) -> (u16, u32, u32) {
        let at = USED + PER_QUEUE * queue;
        let size = {
            self.write(0x16, 2, queue);
            self.read(0x18, 2)
        };
        let mut index = [0; 2];
        self.ram.read(GuestPhys(at + 2), &mut index);
        let index = u16::from_le_bytes(index);
        let mut entry = [0; 8];
        self.ram.read(GuestPhys(at + 4 + 8 * (u64::from(index.wrapping_sub(1)) % size)), &mut entry);
        let half = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        (index, half(0), half(4))
    }

    /// The vector of the next message.
    pub fn message(&self) -> Option<u32> {
        self.messages.recv_timeout(Duration::from_secs(20)).ok()
    }

    /// Whether none comes for so long.
    pub fn stays_quiet(&self, time: Duration) -> bool {
        self.messages.recv_timeout(time).is_err()
    }

    /// Whether none has come that was not taken.
    pub fn is_quiet(&self) -> bool {
        self.messages.try_recv().is_err()
    }

    pub fn status(&mut self) -> u64 {
        self.read(0x14, 1)
    }
}
