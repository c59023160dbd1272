//! Buses: which device answers an access.

use crate::End;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A device on a bus.
///
/// Offsets count from the start of the range it was put at, in bytes. Data is as wide as
/// the access, little-endian; a read that the device has nothing for leaves it as it is:
/// all ones.
pub trait Device: Send {
    /// Name for the log.
    fn name(&self) -> &'static str;

    /// Serves a read; `data` holds ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Serves a write.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End>;
}

/// A device that vCPU threads share with the event loop.
pub type Shared<D> = Arc<Mutex<D>>;

/// A device was put where there is one already, or where addresses end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap;

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the range is empty, wraps, or belongs to another device")
    }
}

impl std::error::Error for Overlap {}

struct Slot {
    start: u64,
    last: u64,
    device: Shared<dyn Device>,
}

/// Ranges of addresses with a device behind each.
///
/// It is filled before the guest starts and shared read-only from then on, so a look-up
/// takes no lock; each device has its own.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| (slot.start, slot.last))).finish()
    }
}

impl Bus {
    /// Puts a device at `size` bytes (or ports) from `start`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&mut self, start: u64, size: u64, device: Shared<dyn Device>) -> Result<(), Overlap> {
        let last = size.checked_sub(1).and_then(|rest| start.checked_add(rest)).ok_or(Overlap)?;
        let place = self.slots.partition_point(|slot| slot.start < start);
        let clashes = |slot: &Slot| slot.start <= last && start <= slot.last;
        if self.slots.iter().any(clashes) {
            return Err(Overlap);
        }
        self.slots.insert(place, Slot { start, last, device });
        Ok(())
    }

    /// The device at an address, with the offset into its range.
    fn find(&self, address: u64) -> Option<(&Slot, u64)> {
        let index = self.slots.partition_point(|slot| slot.start <= address).checked_sub(1)?;
        let slot = &self.slots[index];
        (address <= slot.last).then(|| (slot, address - slot.start))
    }

    /// Serves a read; `false` when no device is there. `data` is all ones unless a device
    /// says otherwise, as on a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((slot, offset)) = self.find(address) else { return false };
        slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Serves a write; `Err` when no device is there.
    ///
    /// # Errors
    /// [`NoDevice`].
    pub fn write(&self, address: u64, data: &[u8]) -> Result<Option<End>, NoDevice> {
        let (slot, offset) = self.find(address).ok_or(NoDevice)?;
        Ok(slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data))
    }
}

/// Nothing is mapped at the address of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDevice;

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe(Vec<(u64, usize)>);

    impl Device for Probe {
        fn name(&self) -> &'static str {
            "probe"
        }

        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.0.push((offset, data.len()));
            data[0] = 7;
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
            self.0.push((offset, data.len()));
            Some(End::Reset)
        }
    }

    #[test]
    fn accesses_reach_their_device_with_an_offset() {
        let probe = Arc::new(Mutex::new(Probe(Vec::new())));
        let mut bus = Bus::default();
        bus.insert(0x100, 8, probe.clone()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x107, &mut data));
        assert_eq!(data, [7, 0xff, 0xff, 0xff]);
        assert_eq!(bus.write(0x100, &[1]), Ok(Some(End::Reset)));
        assert!(!bus.read(0x108, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.write(0xff, &[1]), Err(NoDevice));
        assert_eq!(probe.lock().unwrap().0, [(7, 4), (0, 1)]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let probe = || -> Shared<dyn Device> { Arc::new(Mutex::new(Probe(Vec::new()))) };
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, probe()).unwrap();
        assert_eq!(bus.insert(0x10f, 1, probe()), Err(Overlap));
        assert_eq!(bus.insert(0xf0, 0x11, probe()), Err(Overlap));
        assert_eq!(bus.insert(0xf0, 0x40, probe()), Err(Overlap));
        assert_eq!(bus.insert(0x200, 0, probe()), Err(Overlap));
        assert_eq!(bus.insert(u64::MAX, 2, probe()), Err(Overlap));
        assert_eq!(bus.insert(0x110, 1, probe()), Ok(()));
        assert_eq!(bus.insert(u64::MAX, 1, probe()), Ok(()));
        assert_eq!(bus.write(u64::MAX, &[0]), Ok(Some(End::Reset)));
    }
}
