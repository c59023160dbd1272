//! virtio devices by registers in memory alone (4.2 "Virtio Over MMIO", version 2), for kernels without PCI.
//!
//! Firmware tells where they are; each has a page and an interrupt line, which is high as long as there is a cause.

use super::device::{self, QueueField, VirtioDevice};
use super::pace::Pace;
use super::{Model, Unplug};
use crate::End;
use crate::bus::Device;
use crate::rack::Line;
use crate::ram::Ram;
use crate::state::{Misfit, Saved, Unanswered};
use crate::tell;
use arch::Isa;
use arch::board::{AcpiDevice, AcpiEntry, Node, TreeEntry, Trigger};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a device's registers.
const SIZE: u64 = 0x1000;

/// Offsets of registers (4.2.2 "MMIO Device Register Layout"), each of 4 bytes.
mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE: u64 = 0x008;
    pub const VENDOR: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_MOST: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_AVAILABLE: u64 = 0x090;
    pub const QUEUE_USED: u64 = 0x0a0;
    /// How long a region of shared memory is, two words: all ones, as there is none.
    pub const SHARED_MEMORY: [u64; 2] = [0x0b0, 0x0b4];
    pub const GENERATION: u64 = 0x0fc;
    pub const CONFIGURATION: u64 = 0x100;
}

/// "virt".
const MAGIC: u64 = 0x7472_6976;
const VERSION_2: u64 = 2;
/// As a PCI function's.
const VENDOR: u64 = 0x1af4;
/// Bits of the interrupt status.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// How a device interrupts.
struct Wires {
    isr: AtomicU8,
    line: Mutex<Box<dyn Line>>,
}

impl Wires {
    fn interrupt(&self, cause: u8) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.isr.fetch_or(cause, Ordering::SeqCst);
        self.set(&**line);
    }

    fn acknowledge(&self, causes: u8) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.isr.fetch_and(!causes, Ordering::SeqCst);
        self.set(&**line);
    }

    /// These are the causes, and no others.
    fn put_back(&self, causes: u8) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.isr.store(causes, Ordering::SeqCst);
        self.set(&**line);
    }

    fn set(&self, line: &dyn Line) {
        if let Err(error) = line.set(self.isr.load(Ordering::SeqCst) != 0) {
            tell!(Error, "a virtio device cannot interrupt: {error}");
        }
    }
}

impl device::Wires for Wires {
    fn queue(&self, _: u16) {
        self.interrupt(ISR_QUEUE);
    }

    fn configuration(&self) {
        self.interrupt(ISR_CONFIGURATION);
    }
}

/// What the driver has chosen to speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// A device's state.
#[derive(Debug, Serialize, Deserialize)]
struct SavedRegisters {
    isr: u8,
    selected: Selected,
    device: Saved,
}

/// Of [`SavedRegisters`], and what they are of.
const VERSION: u32 = 1;
const NAME: &str = "virtio by MMIO";

/// A virtio device on the bus.
pub struct VirtioMmio<M> {
    device: VirtioDevice<M, Wires>,
    wires: Arc<Wires>,
    selected: Selected,
}

impl<M: Model> fmt::Debug for VirtioMmio<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VirtioMmio").field(&self.device).finish()
    }
}

/// The most of them that a machine may have.
pub const MOST: usize = 8;
/// Their names in ACPI's namespace.
const NAMES: [&str; MOST] = ["VR00", "VR01", "VR02", "VR03", "VR04", "VR05", "VR06", "VR07"];

/// What firmware is told of the device of a number; `None` when it is too large. x86's have the I/O APIC's lines that no
/// other device has (16 to 23), and are found by ACPI as `LNRO0005` (Linux drivers/virtio/virtio_mmio.c); aarch64's have
/// the GIC's last ones.
pub fn node(isa: Isa, number: usize) -> Option<Node> {
    let name = *NAMES.get(number)?;
    let offset = SIZE * number as u64;
    let line = u32::try_from(number).ok()?;
    let node = Node::new("virtio_mmio");
    Some(match isa {
        Isa::X86_64 => {
            let device = AcpiDevice { name, hid: "LNRO0005", uid: u8::try_from(number).ok(), status: None };
            node.memory(0xe100_0000 + offset, SIZE)
                .interrupt(16 + line, Trigger::Level)
                .acpi(AcpiEntry::Device(device))
        }
        Isa::Aarch64 => node
            .memory(0x0a00_0000 + offset, SIZE)
            .interrupt(48 + line, Trigger::Level)
            .tree(TreeEntry { compatible: &["virtio,mmio"], ..TreeEntry::default() }),
    })
}

impl<M: Model> VirtioMmio<M> {
    /// A device with the guest's RAM, leave to work, and its line.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(model: M, given: (Arc<dyn Ram>, Pace), line: Box<dyn Line>) -> io::Result<VirtioMmio<M>> {
        let wires = Arc::new(Wires { isr: AtomicU8::new(0), line: Mutex::new(line) });
        let device = VirtioDevice::new(model, given, Arc::clone(&wires))?;
        Ok(VirtioMmio { device, wires, selected: Selected::default() })
    }

    fn queue(&self) -> u16 {
        u16::try_from(self.selected.queue).unwrap_or(u16::MAX)
    }

    fn register(&self, offset: u64) -> u64 {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION_2,
            register::DEVICE => self.device.model.id().into(),
            register::VENDOR => VENDOR,
            register::DEVICE_FEATURES => half(self.device.features(), self.selected.device_features),
            register::QUEUE_MOST => self.device.most_entries(self.queue()).into(),
            register::QUEUE_READY => self.device.queue(self.queue(), QueueField::Ready),
            register::INTERRUPT_STATUS => self.wires.isr.load(Ordering::SeqCst).into(),
            register::STATUS => self.device.status().into(),
            register::GENERATION => self.device.generation().into(),
            _ if register::SHARED_MEMORY.contains(&offset) => u64::from(u32::MAX),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let [low, ..] = value.to_le_bytes();
        match offset {
            register::DEVICE_FEATURES_SELECT => self.selected.device_features = value,
            register::DRIVER_FEATURES_SELECT => self.selected.driver_features = value,
            register::DRIVER_FEATURES => {
                let features = with_half(self.device.driver_features(), self.selected.driver_features, value);
                self.device.set_driver_features(features);
            }
            register::QUEUE_SELECT => self.selected.queue = value,
            register::QUEUE_SIZE => self.device.set_queue(self.queue(), QueueField::Size, value.into()),
            register::QUEUE_READY => self.device.set_queue(self.queue(), QueueField::Ready, value.into()),
            register::QUEUE_NOTIFY => self.device.ring(usize::try_from(value).unwrap_or(usize::MAX)),
            register::INTERRUPT_ACKNOWLEDGE => self.wires.acknowledge(low),
            register::STATUS if value == 0 => {
                if self.device.reset() {
                    self.forget();
                }
            }
            register::STATUS => self.device.set_status(low),
            _ => self.write_address(offset, value),
        }
    }

    /// The device has been reset.
    fn forget(&mut self) {
        self.selected = Selected::default();
        self.wires.acknowledge(u8::MAX);
    }

    /// Before each access.
    fn settle(&mut self) {
        if self.device.settle() {
            self.forget();
        }
    }

    /// Half of where a part of a queue is.
    fn write_address(&mut self, offset: u64, value: u32) {
        let (field, half) = match offset {
            register::QUEUE_DESCRIPTORS.. if offset < register::QUEUE_DESCRIPTORS + 8 => {
                (QueueField::Descriptors, offset - register::QUEUE_DESCRIPTORS)
            }
            register::QUEUE_AVAILABLE.. if offset < register::QUEUE_AVAILABLE + 8 => {
                (QueueField::Available, offset - register::QUEUE_AVAILABLE)
            }
            register::QUEUE_USED.. if offset < register::QUEUE_USED + 8 => {
                (QueueField::Used, offset - register::QUEUE_USED)
            }
            _ => return,
        };
        let queue = self.queue();
        let half = u32::from(half != 0);
        self.device.set_queue(queue, field, with_half(self.device.queue(queue, field), half, value));
    }

    /// Its state, while the guest is held.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub fn save(&mut self) -> Result<Saved, Unanswered> {
        let was_resetting = self.device.is_resetting();
        let device = self.device.save()?;
        if was_resetting {
            self.forget();
        }
        let isr = self.wires.isr.load(Ordering::SeqCst);
        Ok(Saved::new(NAME, VERSION, &SavedRegisters { isr, selected: self.selected, device }))
    }

    /// Puts it back.
    ///
    /// # Errors
    /// [`Misfit`], and nothing is done but what waited: a reset, or for the host's answer.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Misfit> {
        let fields: SavedRegisters = saved.fields(NAME, VERSION)?;
        let was_resetting = self.device.is_resetting();
        let restored = self.device.restore(&fields.device, || self.wires.put_back(fields.isr));
        if restored.is_err() && was_resetting && !self.device.is_resetting() {
            self.forget();
        }
        restored?;
        self.selected = fields.selected;
        Ok(())
    }
}

/// A number of which one half, the low one or the high one, is another.
fn with_half(whole: u64, half: u32, value: u32) -> u64 {
    match half {
        0 => whole & !0xffff_ffff | u64::from(value),
        1 => whole & 0xffff_ffff | u64::from(value) << 32,
        _ => whole,
    }
}

impl<M: Model> Unplug for VirtioMmio<M> {
    fn unplug(&mut self) -> bool {
        self.device.unplug()
    }
}

impl<M: Model> Device for VirtioMmio<M> {
    fn name(&self) -> &'static str {
        self.device.model.name()
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.settle();
        data.fill(0);
        match offset.checked_sub(register::CONFIGURATION) {
            Some(offset) => self.device.read_configuration(offset, data),
            // Registers are read whole (4.2.2.2).
            None if data.len() == 4 && offset.is_multiple_of(4) => {
                data.copy_from_slice(&self.register(offset).to_le_bytes()[..4]);
            }
            None => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        self.settle();
        // A line that the driver could not lower would interrupt it without end until the host answers.
        if self.device.is_resetting() && offset != register::INTERRUPT_ACKNOWLEDGE {
            return None;
        }
        match (offset.checked_sub(register::CONFIGURATION), data) {
            (Some(offset), data) => self.device.write_configuration(offset, data),
            (None, &[b0, b1, b2, b3]) if offset.is_multiple_of(4) => {
                self.write_register(offset, u32::from_le_bytes([b0, b1, b2, b3]));
            }
            (None, _) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::entropy::Entropy;
    use crate::virtio::testing::{TestLine, TestRam};
    use arch::GuestPhys;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    type Tested = VirtioMmio<Entropy>;

    fn device() -> (Tested, TestRam, Receiver<bool>) {
        let (ram, (sender, levels)) = (TestRam::new(), channel());
        let model = Entropy::new(Arc::new(Mutex::new(|bytes: &mut [u8]| {
            bytes.fill(0xa5);
            Ok(())
        })));
        let given: (Arc<dyn Ram>, Pace) = (Arc::new(ram.clone()), Pace::default());
        (VirtioMmio::new(model, given, Box::new(TestLine(Mutex::new(sender)))).unwrap(), ram, levels)
    }

    fn read(device: &mut Tested, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(device: &mut Tested, offset: u64, value: u32) {
        assert_eq!(device.write(offset, &value.to_le_bytes()), None);
    }

    /// Does what a driver does, with version 1 and nothing else.
    fn set_up(device: &mut Tested) {
        for status in [0, 1, 3] {
            write(device, register::STATUS, status);
        }
        write(device, register::DRIVER_FEATURES_SELECT, 1);
        write(device, register::DRIVER_FEATURES, 1);
        write(device, register::STATUS, 11);
        assert_eq!(read(device, register::STATUS), 11);
        write(device, register::QUEUE_SELECT, 0);
        assert_eq!(read(device, register::QUEUE_MOST), 64);
        write(device, register::QUEUE_SIZE, 8);
        for (at, place) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            write(device, at, place);
            write(device, at + 4, 0);
        }
        write(device, register::QUEUE_READY, 1);
        write(device, register::STATUS, 15);
    }

    #[test]
    fn a_driver_finds_and_uses_it() {
        let (mut device, ram, levels) = device();
        let who = [register::MAGIC, register::VERSION, register::DEVICE].map(|at| read(&mut device, at));
        assert_eq!(who, [0x7472_6976, 2, 4]);
        set_up(&mut device);
        // Descriptor 0, 16 bytes at 0x8000, to be written; available at once.
        let descriptor =
            [&0x8000u64.to_le_bytes()[..], &16u32.to_le_bytes(), &2u16.to_le_bytes(), &[0; 2]].concat();
        ram.write(GuestPhys(0x1000), &descriptor);
        ram.write(GuestPhys(0x2002), &1u16.to_le_bytes());
        write(&mut device, register::QUEUE_NOTIFY, 0);
        let level = loop {
            let level = levels.recv_timeout(Duration::from_secs(20)).unwrap();
            if level {
                break level;
            }
        };
        assert!(level && read(&mut device, register::INTERRUPT_STATUS) == 1);
        let mut bytes = [0; 16];
        ram.read(GuestPhys(0x8000), &mut bytes);
        assert_eq!(bytes, [0xa5; 16]);
        let saved = device.save().unwrap();
        write(&mut device, register::INTERRUPT_ACKNOWLEDGE, 1);
        assert_eq!((levels.recv().unwrap(), read(&mut device, register::INTERRUPT_STATUS)), (false, 0));
        device.restore(&saved).unwrap();
        assert_eq!(device.save().unwrap(), saved);
        assert_eq!(levels.try_iter().last(), Some(true));
        write(&mut device, register::STATUS, 0);
        assert_eq!(levels.try_iter().last(), Some(false));
    }

    /// It reads as such then (Linux `vm_del_vq` warns of one that does not), and is served no more until a reset.
    #[test]
    fn a_queue_is_taken_back() {
        let (mut device, ram, levels) = device();
        for is_served in [false, true] {
            set_up(&mut device);
            if !is_served {
                write(&mut device, register::STATUS, 0);
                write(&mut device, register::QUEUE_READY, 1);
            }
            write(&mut device, register::QUEUE_READY, 2);
            assert_eq!(read(&mut device, register::QUEUE_READY), 1);
            write(&mut device, register::QUEUE_READY, 0);
            assert_eq!(read(&mut device, register::QUEUE_READY), 0);
            if is_served {
                levels.try_iter().for_each(drop);
                // Its rings are not looked at any more: this one would be the device's end.
                ram.write(GuestPhys(0x2002), &200u16.to_le_bytes());
                write(&mut device, register::QUEUE_NOTIFY, 0);
                write(&mut device, register::QUEUE_READY, 1);
                device.save().unwrap();
                assert_eq!(
                    [register::QUEUE_READY, register::STATUS].map(|at| read(&mut device, at)),
                    [0, 15]
                );
                // Whoever looked all the same would have interrupted by then.
                assert!(levels.recv_timeout(Duration::from_millis(200)).is_err());
            }
        }
        ram.write(GuestPhys(0x2002), &[0; 2]);
        set_up(&mut device);
        assert_eq!(read(&mut device, register::QUEUE_READY), 1);
    }

    #[test]
    fn what_a_guest_does_wrong_does_nothing() {
        let (mut device, _, _) = device();
        let fresh = device.save().unwrap();
        for offset in (0..SIZE).step_by(2) {
            for size in [1, 2, 4, 8] {
                let mut data = vec![0xff; size];
                device.read(offset, &mut data);
                // The status and what acknowledges are registers like others here; a reset is not wrong.
                if !(offset..offset + 4).contains(&register::STATUS) && size != 4 {
                    device.write(offset, &data);
                }
            }
        }
        assert_eq!(device.save().unwrap(), fresh);
        write(&mut device, register::QUEUE_SELECT, u32::MAX);
        write(&mut device, register::QUEUE_NOTIFY, u32::MAX);
        assert_eq!([register::QUEUE_MOST, register::QUEUE_READY].map(|at| read(&mut device, at)), [0, 0]);
    }

    #[test]
    fn each_has_a_place_of_its_own() {
        for isa in Isa::ALL {
            let mut board = arch::board::Board::new(isa);
            for number in 0..MOST {
                board.add(node(isa, number).unwrap()).unwrap();
            }
            assert_eq!(node(isa, MOST), None);
        }
    }
}
