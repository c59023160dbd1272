//! virtio devices on a PCI bus (4.1 "Virtio Over PCI Bus"), as of version 1: no legacy registers.
//!
//! One base address has all of a device's registers, each kind in a page of its own, so that a bell can be had without
//! a way through here. Messages (MSI-X) have a second one. Interrupts by a line are for guests that cannot do
//! messages.

use super::device::{self, QueueField, VirtioDevice};
use super::pace::Pace;
use super::{Model, Unplug};
use crate::End;
use crate::pci::Function;
use crate::pci::config::{Config, Identity};
use crate::pci::msix::MsixState;
use crate::pci::msix::{Msix, Place, Sender};
use crate::rack::Line;
use crate::ram::Ram;
use crate::state::{Misfit, Saved, Unanswered};
use crate::tell;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// 4.1.2 "PCI Device Discovery".
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// The base address with the registers, and the one with messages.
const REGISTERS: usize = 0;
const MESSAGES: usize = 2;
/// Offsets of what is behind the first one, and its size: a page for each kind.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const SIZE: u64 = 0x4000;
const PAGE: u64 = 0x1000;
/// Bytes between the bells of two queues (4.1.4.4 "Notification structure layout").
const NOTIFY_MULTIPLIER: u32 = 4;
/// Of messages: the table, and the pending bits.
const TABLE: Place = Place { bar: 2, table: 0, pending: 0x800 };

/// 4.1.4 "Virtio Structure PCI Capabilities": the identifier, and kinds of structures.
mod capability {
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const ACCESS: u8 = 5;
}

/// 4.1.4.3 "Common configuration structure layout".
mod common {
    pub const FEATURE_SELECT: u64 = 0x00;
    pub const FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    pub const QUEUE_USED: u64 = 0x30;
    pub const END: u64 = 0x38;
}

/// A vector of none (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// Bits of the interrupt status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// What reaches a device's bells without a vCPU's thread coming here.
pub trait Bells: Send {
    /// From now on a write of a queue's number to an address rings it; `None`: to nowhere.
    ///
    /// # Errors
    /// What the host says; then writes come here.
    fn place(&mut self, queue: u16, bell: &EventFd, at: Option<u64>) -> io::Result<()>;
}

/// What a machine gives to one function.
pub struct Connections {
    /// The guest's RAM.
    pub ram: Arc<dyn Ram>,
    /// When its threads may work.
    pub pace: Pace,
    /// Sends its messages.
    pub sender: Box<dyn Sender>,
    /// Its line, where the machine has one for it.
    pub line: Option<Box<dyn Line>>,
    /// Its bells.
    pub bells: Box<dyn Bells>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("ram", &self.ram).finish_non_exhaustive()
    }
}

/// How a device's threads interrupt the guest: what they share with vCPUs' threads, but for the function's own lock,
/// which may be held by one that waits for their end.
struct Wires {
    pins: Mutex<Pins>,
    isr: AtomicU8,
    configuration_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

/// What goes out to the guest.
struct Pins {
    msix: Msix,
    line: Option<Box<dyn Line>>,
    /// The driver wants it low.
    is_line_off: bool,
}

impl Pins {
    /// The line is high as long as there is a cause, and neither messages nor the driver keep it low (Interrupt Disable
    /// of the command register, MSI-X Enable).
    fn set_line(&self, isr: &AtomicU8) {
        let is_high = isr.load(Ordering::SeqCst) != 0 && !self.is_line_off && !self.msix.is_enabled();
        if let Some(line) = &self.line
            && let Err(error) = line.set(is_high)
        {
            tell!(Error, "a virtio device cannot interrupt: {error}");
        }
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wires").field("isr", &self.isr).finish_non_exhaustive()
    }
}

impl Wires {
    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self, vector: u16, cause: u8) {
        let mut pins = self.pins();
        if pins.msix.is_enabled() {
            return pins.msix.interrupt(vector);
        }
        self.isr.fetch_or(cause, Ordering::SeqCst);
        pins.set_line(&self.isr);
    }

    /// Puts back what a function with this configuration space interrupted by: messages, causes, and the vectors of the
    /// configuration and of queues.
    fn put_back(&self, config: &Config, msix: MsixState, isr: u8, (configuration, queues): (u16, &[u16])) {
        let mut pins = self.pins();
        self.isr.store(isr, Ordering::SeqCst);
        self.configuration_vector.store(configuration, Ordering::SeqCst);
        for (vector, saved) in self.queue_vectors.iter().zip(queues) {
            vector.store(*saved, Ordering::SeqCst);
        }
        pins.msix.restore(msix);
        pins.msix.configured(config);
        pins.is_line_off = config.is_line_off();
        pins.set_line(&self.isr);
    }

    /// What has been pending by the line, which is not any more.
    fn take_isr(&self) -> u8 {
        let pins = self.pins();
        let isr = self.isr.swap(0, Ordering::SeqCst);
        pins.set_line(&self.isr);
        isr
    }
}

impl device::Wires for Wires {
    fn queue(&self, index: u16) {
        let vector =
            self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |it| it.load(Ordering::SeqCst));
        self.interrupt(vector, ISR_QUEUE);
    }

    fn configuration(&self) {
        self.interrupt(self.configuration_vector.load(Ordering::SeqCst), ISR_CONFIGURATION);
    }
}

/// A virtio device as a function.
pub struct VirtioFunction<M> {
    config: Config,
    device: VirtioDevice<M, Wires>,
    wires: Arc<Wires>,
    bells: Box<dyn Bells>,
    /// Offset of the capability by which registers are reached through the configuration space.
    access: usize,
    selected: Selected,
}

/// What the driver has chosen to speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Selected {
    features: u32,
    driver_features: u32,
    queue: u16,
}

/// A function's state.
#[derive(Debug, Serialize, Deserialize)]
struct SavedFunction {
    config: Vec<u8>,
    msix: MsixState,
    isr: u8,
    configuration_vector: u16,
    queue_vectors: Vec<u16>,
    selected: Selected,
    device: Saved,
}

/// Of [`SavedFunction`].
const VERSION: u32 = 1;

impl<M: Model> fmt::Debug for VirtioFunction<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VirtioFunction").field(&self.device).finish()
    }
}

/// The body of a capability that says where a structure is.
fn structure(kind: u8, offset: u64, size: u64) -> Vec<u8> {
    let length = 16 + if kind == capability::NOTIFY || kind == capability::ACCESS { 4 } else { 0 };
    let mut body = vec![length, kind, u8::try_from(REGISTERS).unwrap_or(0), 0, 0, 0];
    for number in [offset, size] {
        body.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }
    body
}

impl<M: Model> VirtioFunction<M> {
    /// A function for a device.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(model: M, connections: Connections) -> io::Result<VirtioFunction<M>> {
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + model.id(),
            revision: 1,
            class: model.class(),
            subsystem_vendor: VENDOR,
            subsystem: 0x40,
        };
        let mut config = Config::new(identity).bar(REGISTERS, SIZE).bar(MESSAGES, PAGE);
        if connections.line.is_some() {
            config = config.interrupt_pin(1);
        }
        let mut add =
            |body: &[u8], writable: &[u8]| config.add_capability(capability::VENDOR_SPECIFIC, body, writable);
        add(&structure(capability::COMMON, COMMON, common::END), &[]);
        add(&structure(capability::ISR, ISR, 1), &[]);
        add(&structure(capability::DEVICE, DEVICE, PAGE), &[]);
        let mut notify = structure(capability::NOTIFY, NOTIFY, PAGE);
        notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        add(&notify, &[]);
        // Base address, offset and length are the driver's, and four bytes behind them are what is there (4.1.4.9).
        let mut through = structure(capability::ACCESS, 0, 0);
        through.extend([0; 4]);
        let mut writable = vec![0, 0, 0xff, 0, 0, 0];
        writable.extend([0xff; 12]);
        let access = add(&through, &writable);
        let sizes = model.queue_sizes();
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(&mut config, vectors, TABLE, connections.sender);
        let wires = Arc::new(Wires {
            pins: Mutex::new(Pins { msix, line: connections.line, is_line_off: false }),
            isr: AtomicU8::new(0),
            configuration_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: sizes.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        });
        let given = (connections.ram, connections.pace);
        Ok(VirtioFunction {
            config,
            device: VirtioDevice::new(model, given, Arc::clone(&wires))?,
            wires,
            bells: connections.bells,
            access,
            selected: Selected::default(),
        })
    }

    /// A register of the common structure, as a number of the size that it has; its first byte's offset, and that size.
    fn common(&self, offset: u64) -> (u64, usize, u64) {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let of_queue = |field| self.device.queue(self.selected.queue, field);
        match offset {
            common::FEATURE_SELECT..common::FEATURE => {
                (common::FEATURE_SELECT, 4, self.selected.features.into())
            }
            common::FEATURE..common::DRIVER_FEATURE_SELECT => {
                (common::FEATURE, 4, half(self.device.features(), self.selected.features))
            }
            common::DRIVER_FEATURE_SELECT..common::DRIVER_FEATURE => {
                (common::DRIVER_FEATURE_SELECT, 4, self.selected.driver_features.into())
            }
            common::DRIVER_FEATURE..common::CONFIG_VECTOR => (
                common::DRIVER_FEATURE,
                4,
                half(self.device.driver_features(), self.selected.driver_features),
            ),
            common::CONFIG_VECTOR..common::QUEUES => {
                let vector = self.wires.configuration_vector.load(Ordering::SeqCst);
                (common::CONFIG_VECTOR, 2, vector.into())
            }
            common::QUEUES..common::STATUS => (common::QUEUES, 2, self.device.queue_count().into()),
            common::STATUS => (common::STATUS, 1, self.device.status().into()),
            common::GENERATION => (common::GENERATION, 1, self.device.generation().into()),
            common::QUEUE_SELECT..common::QUEUE_SIZE => (common::QUEUE_SELECT, 2, self.selected.queue.into()),
            common::QUEUE_SIZE..common::QUEUE_VECTOR => (common::QUEUE_SIZE, 2, of_queue(QueueField::Size)),
            common::QUEUE_VECTOR..common::QUEUE_ENABLE => {
                let vectors = self.wires.queue_vectors.get(usize::from(self.selected.queue));
                let vector = vectors.map_or(NO_VECTOR, |it| it.load(Ordering::SeqCst));
                (common::QUEUE_VECTOR, 2, vector.into())
            }
            common::QUEUE_ENABLE..common::QUEUE_NOTIFY_OFFSET => {
                (common::QUEUE_ENABLE, 2, of_queue(QueueField::Ready))
            }
            common::QUEUE_NOTIFY_OFFSET..common::QUEUE_DESCRIPTORS => {
                (common::QUEUE_NOTIFY_OFFSET, 2, self.selected.queue.into())
            }
            common::QUEUE_DESCRIPTORS..common::QUEUE_AVAILABLE => {
                (common::QUEUE_DESCRIPTORS, 8, of_queue(QueueField::Descriptors))
            }
            common::QUEUE_AVAILABLE..common::QUEUE_USED => {
                (common::QUEUE_AVAILABLE, 8, of_queue(QueueField::Available))
            }
            common::QUEUE_USED..common::END => (common::QUEUE_USED, 8, of_queue(QueueField::Used)),
            _ => (offset, 1, 0),
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let (first, size, before) = self.common(offset);
        // The halves of what is 64 bits wide are written one by one; else a register is written as a whole (4.1.3.1).
        let value = match (size, data.len(), offset - first) {
            (8, 4, 0) => before & !0xffff_ffff | value,
            (8, 4, 4) => before & 0xffff_ffff | value << 32,
            (size, length, 0) if size == length => value,
            _ => return,
        };
        let [low, high, b2, b3, ..] = value.to_le_bytes();
        let (word, half) = (u32::from_le_bytes([low, high, b2, b3]), u16::from_le_bytes([low, high]));
        let queue = self.selected.queue;
        match first {
            common::FEATURE_SELECT => self.selected.features = word,
            common::DRIVER_FEATURE_SELECT => self.selected.driver_features = word,
            common::DRIVER_FEATURE => self.take_features(word),
            common::CONFIG_VECTOR => {
                self.wires.configuration_vector.store(self.vector(half), Ordering::SeqCst)
            }
            common::STATUS if low == 0 => self.reset(),
            common::STATUS => self.device.set_status(low),
            common::QUEUE_SELECT => self.selected.queue = half,
            common::QUEUE_VECTOR => {
                let vector = self.vector(half);
                if let Some(it) = self.wires.queue_vectors.get(usize::from(queue)) {
                    it.store(vector, Ordering::SeqCst);
                }
            }
            common::QUEUE_SIZE => self.device.set_queue(queue, QueueField::Size, value),
            // It cannot be taken back but by a reset (4.1.4.3.2).
            common::QUEUE_ENABLE if value == 0 => {}
            common::QUEUE_ENABLE => self.device.set_queue(queue, QueueField::Ready, value),
            common::QUEUE_DESCRIPTORS => self.device.set_queue(queue, QueueField::Descriptors, value),
            common::QUEUE_AVAILABLE => self.device.set_queue(queue, QueueField::Available, value),
            common::QUEUE_USED => self.device.set_queue(queue, QueueField::Used, value),
            _ => {}
        }
    }

    fn take_features(&mut self, half: u32) {
        let (features, half) = (self.device.driver_features(), u64::from(half));
        match self.selected.driver_features {
            0 => self.device.set_driver_features(features & !0xffff_ffff | half),
            1 => self.device.set_driver_features(features & 0xffff_ffff | half << 32),
            _ => {}
        }
    }

    /// A vector that the table has, or none (4.1.5.1.2.1).
    fn vector(&self, vector: u16) -> u16 {
        if self.wires.pins().msix.has(vector) { vector } else { NO_VECTOR }
    }

    /// As after power-on, but for where the guest has put it; as soon as it can be.
    fn reset(&mut self) {
        if self.device.reset() {
            self.forget();
        }
    }

    /// Before each access to registers.
    fn settle(&mut self) {
        if self.device.settle() {
            self.forget();
        }
    }

    /// The device has been reset.
    fn forget(&mut self) {
        self.selected = Selected::default();
        self.wires.configuration_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.wires.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.wires.take_isr();
    }

    /// Where the guest has put the registers, bells are to be rung.
    fn place_bells(&mut self, at: Option<u64>) {
        for index in 0..self.device.queue_count() {
            let at = at.map(|at| at + NOTIFY + u64::from(index) * u64::from(NOTIFY_MULTIPLIER));
            let Some(bell) = self.device.bell(index) else { continue };
            if let Err(error) = self.bells.place(index, bell, at) {
                tell!(Debug, "{}: bells come the long way: {error}", self.device.model.name());
            }
        }
    }

    fn read_registers(&mut self, offset: u64, data: &mut [u8]) {
        self.settle();
        match offset {
            COMMON..ISR => {
                for (index, byte) in (0..).zip(data) {
                    let (first, size, value) = self.common(offset + index);
                    let at = usize::try_from(offset + index - first).unwrap_or(usize::MAX);
                    *byte = value.to_le_bytes().get(at).copied().filter(|_| at < size).unwrap_or(0);
                }
            }
            ISR => {
                data.fill(0);
                if let Some(byte) = data.first_mut() {
                    *byte = self.wires.take_isr();
                }
            }
            DEVICE..NOTIFY => self.device.read_configuration(offset - DEVICE, data),
            _ => data.fill(0),
        }
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        self.settle();
        if self.device.is_resetting() {
            return;
        }
        match offset {
            COMMON..ISR => self.write_common(offset, data),
            DEVICE..NOTIFY => self.device.write_configuration(offset - DEVICE, data),
            NOTIFY..SIZE => self.device.ring(usize::try_from((offset - NOTIFY) / 4).unwrap_or(usize::MAX)),
            _ => {}
        }
    }

    /// What the driver wants to reach through the configuration space: an offset behind the base address, and how many
    /// bytes, if that is in order.
    fn accessed(&self) -> Option<(u64, usize)> {
        let mut body = [0; 14];
        self.config.read(self.access + 2, &mut body);
        let [_, _, bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3] = body;
        let (offset, length) = (u32::from_le_bytes([o0, o1, o2, o3]), u32::from_le_bytes([l0, l1, l2, l3]));
        let is_in_order = usize::from(bar) == REGISTERS
            && matches!(length, 1 | 2 | 4)
            && offset % length == 0
            && u64::from(offset) + u64::from(length) <= SIZE;
        is_in_order.then_some((offset.into(), length as usize))
    }

    /// Whether bytes of the configuration space are the data of that.
    fn is_access(&self, offset: usize, size: usize) -> bool {
        let data = self.access + ACCESS_DATA;
        offset < data + 4 && data < offset.saturating_add(size)
    }
}

/// Where the data of the access through the configuration space is, behind its capability.
const ACCESS_DATA: usize = 16;

impl<M: Model> Unplug for VirtioFunction<M> {
    fn unplug(&mut self) -> bool {
        self.device.unplug()
    }
}

impl<M: Model> Function for VirtioFunction<M> {
    fn name(&self) -> &'static str {
        self.device.model.name()
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if self.is_access(offset, data.len())
            && let Some((at, length)) = self.accessed()
        {
            let mut bytes = [0; 4];
            self.read_registers(at, &mut bytes[..length]);
            self.config.put(self.access + ACCESS_DATA, &bytes);
        }
        self.config.read(offset, data);
    }

    fn configured(&mut self, offset: usize, size: usize) {
        let mut pins = self.wires.pins();
        pins.msix.configured(&self.config);
        pins.is_line_off = self.config.is_line_off();
        pins.set_line(&self.wires.isr);
        drop(pins);
        if self.is_access(offset, size)
            && let Some((at, length)) = self.accessed()
        {
            let mut bytes = [0; 4];
            self.config.read(self.access + ACCESS_DATA, &mut bytes);
            self.write_registers(at, &bytes[..length]);
        }
    }

    fn read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            REGISTERS => self.read_registers(offset, data),
            MESSAGES if offset < TABLE.pending.into() => self.wires.pins().msix.read_table(offset, data),
            MESSAGES => self.wires.pins().msix.read_pending(offset - u64::from(TABLE.pending), data),
            _ => {}
        }
    }

    fn write(&mut self, bar: usize, offset: u64, data: &[u8]) -> Option<End> {
        match bar {
            REGISTERS => self.write_registers(offset, data),
            MESSAGES if offset < TABLE.pending.into() => self.wires.pins().msix.write_table(offset, data),
            _ => {}
        }
        None
    }

    fn placed(&mut self, bar: usize, at: Option<u64>) {
        if bar == REGISTERS {
            self.place_bells(at);
        }
    }

    fn save(&mut self) -> Result<Saved, Unanswered> {
        let vector = |it: &AtomicU16| it.load(Ordering::SeqCst);
        // The device first, which waits for its threads' queues, and with nothing locked that they interrupt by.
        let was_resetting = self.device.is_resetting();
        let device = self.device.save()?;
        if was_resetting {
            self.forget();
        }
        let msix = self.wires.pins().msix.save();
        let fields = SavedFunction {
            config: self.config.save(),
            msix,
            isr: self.wires.isr.load(Ordering::SeqCst),
            configuration_vector: vector(&self.wires.configuration_vector),
            queue_vectors: self.wires.queue_vectors.iter().map(vector).collect(),
            selected: self.selected,
            device,
        };
        Ok(Saved::new(NAME, VERSION, &fields))
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), Misfit> {
        let damaged = |why: &str| Misfit::Damaged { device: NAME, why: why.into() };
        let fields: SavedFunction = saved.fields(NAME, VERSION)?;
        let mut config = self.config.clone();
        if !config.restore(&fields.config) || fields.queue_vectors.len() != self.wires.queue_vectors.len() {
            return Err(damaged("it is of another function"));
        }
        if !self.wires.pins().msix.fits(&fields.msix) {
            return Err(damaged("it has another number of vectors"));
        }
        let vectors = (fields.configuration_vector, &fields.queue_vectors[..]);
        let was_resetting = self.device.is_resetting();
        let restored = self.device.restore(&fields.device, || {
            self.wires.put_back(&config, fields.msix, fields.isr, vectors);
            self.config = config;
        });
        if restored.is_err() && was_resetting && !self.device.is_resetting() {
            self.forget();
        }
        restored?;
        self.selected = fields.selected;
        Ok(())
    }
}

/// Of a function's state.
const NAME: &str = "virtio on PCI";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::Wires as _;
    use crate::virtio::entropy::Entropy;
    use crate::virtio::testing::{Driver, TestLine};
    use std::sync::mpsc::channel;

    #[test]
    fn a_line_stays_low_that_the_driver_has_off() {
        const OFF: [u8; 2] = [6, 4];
        let mut driver = Driver::new(Entropy::new(Arc::new(Mutex::new(|_: &mut [u8]| Ok(())))));
        let (sender, levels) = channel();
        driver.function.wires.pins().line = Some(Box::new(TestLine(Mutex::new(sender))));
        driver.configure(4, &[6, 0]);
        driver.function.wires.queue(0);
        assert_eq!(levels.try_iter().last(), Some(true));
        driver.configure(4, &OFF);
        assert_eq!(levels.try_iter().last(), Some(false));
        driver.function.wires.queue(0);
        assert_eq!(levels.try_iter().last(), Some(false));
        // The cause is there still.
        driver.configure(4, &[6, 0]);
        assert_eq!(levels.try_iter().last(), Some(true));
        let msix = driver.capability(0x11);
        driver.configure(msix + 2, &0x8000u16.to_le_bytes());
        assert_eq!(levels.try_iter().last(), Some(false));
    }
}
