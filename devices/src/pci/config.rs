//! The configuration space of a function: what it is, where its registers are, what it can do.
//!
//! PCIe 7.5.1 "PCI-Compatible Configuration Registers", type 0 header. Every bit is either fixed or the guest's to
//! write, so the space is bytes and a mask; asking a base address for its size (writing ones and reading what stuck)
//! needs nothing else.

use arch::bytes;

/// Bytes of a configuration space with what PCI Express has added.
pub const SIZE: usize = 4096;
/// How many base addresses of 32 bits a header has.
pub const BARS: usize = 6;

/// Offsets of a type 0 header, bytes.
mod at {
    pub const VENDOR: usize = 0x00;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const BARS: usize = 0x10;
    pub const SUBSYSTEM: usize = 0x2c;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// Where the header ends.
    pub const END: usize = 0x40;
    /// Where PCI's space ends, and so the list of capabilities.
    pub const PCI_END: usize = 0x100;
}

/// Bits of the command register (PCIe 7.5.1.1.3).
mod command {
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
}

/// In the status register: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// In a base address: memory of 64 bits.
const MEMORY_64: u32 = 0b10 << 1;
/// The smallest range behind a base address: a page, so that no two are in one.
pub const SMALLEST_BAR: u64 = 0x1000;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// The vendor's count of it.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// The subsystem's vendor.
    pub subsystem_vendor: u16,
    /// The subsystem.
    pub subsystem: u16,
}

/// A configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// PCI's part; there is nothing in the one that PCI Express has added.
    bytes: [u8; at::PCI_END],
    /// Bits that the guest writes.
    writable: [u8; at::PCI_END],
    /// Sizes of what is behind base addresses, by the first of each one's two.
    sizes: [Option<u64>; BARS],
    /// Where the next capability goes.
    free: usize,
    /// Where the last one's link is.
    last_link: usize,
}

impl Config {
    /// The space of a function that has no registers and cannot do anything.
    pub fn new(identity: Identity) -> Config {
        let bytes = [0; at::PCI_END];
        let sizes = [None; BARS];
        let mut config = Config { bytes, writable: bytes, sizes, free: at::END, last_link: at::CAPABILITIES };
        let [base, sub, interface] = identity.class;
        config.set(at::VENDOR, &identity.vendor.to_le_bytes());
        config.set(at::VENDOR + 2, &identity.device.to_le_bytes());
        config.set(at::REVISION, &[identity.revision, interface, sub, base]);
        config.set(at::SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.set(at::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        let command = command::MEMORY | command::BUS_MASTER | command::INTERRUPT_DISABLE;
        config.allow(at::COMMAND, &command.to_le_bytes());
        // Software's own note.
        config.allow(at::INTERRUPT_LINE, &[0xff]);
        config
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// With registers of `size` bytes, a power of two of at least [`SMALLEST_BAR`], behind the base address at
    /// `index` and the next one, which are one of 64 bits.
    ///
    /// # Panics
    /// When there is no such place: that is up to who writes a device.
    #[must_use]
    pub fn bar(mut self, index: usize, size: u64) -> Config {
        assert!(
            size.is_power_of_two() && size >= SMALLEST_BAR && index + 1 < BARS,
            "no place for a base address"
        );
        let offset = at::BARS + 4 * index;
        self.set(offset, &MEMORY_64.to_le_bytes());
        self.allow(offset, &(!(size - 1)).to_le_bytes());
        self.sizes[index] = Some(size);
        self
    }

    /// With an interrupt line: 1 is INTA.
    #[must_use]
    pub fn interrupt_pin(mut self, pin: u8) -> Config {
        self.set(at::INTERRUPT_PIN, &[pin]);
        self
    }

    /// Adds a capability; the offset of its identifier. `body` is what follows identifier and link, with as many bits
    /// for the guest to write as `writable` has; what that is too short for is fixed.
    ///
    /// # Panics
    /// When the space is full: that is up to who writes a device.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.free;
        let end = offset + 2 + body.len();
        assert!(end <= at::PCI_END && writable.len() <= body.len(), "no room for a capability");
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        let link = u8::try_from(offset).expect("within 256 bytes");
        self.set(self.last_link, &[link]);
        let status = self.u16_at(at::STATUS) | HAS_CAPABILITIES;
        self.set(at::STATUS, &status.to_le_bytes());
        (self.last_link, self.free) = (offset + 1, end.next_multiple_of(4));
        offset
    }

    /// Reads; beyond the space, and where it has nothing, is zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that may be; whether where registers are may have changed by it.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        for (index, new) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index) else { break };
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
        let end = offset.saturating_add(data.len());
        let meets = |from: usize, to: usize| offset < to && from < end;
        meets(at::COMMAND, at::COMMAND + 2) || meets(at::BARS, at::BARS + 4 * BARS)
    }

    /// Puts what the function itself says of its state where the guest reads it.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.set(offset, bytes);
    }

    fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The function may write to memory, which is what messages are, too.
    pub fn is_bus_master(&self) -> bool {
        self.u16_at(at::COMMAND) & command::BUS_MASTER != 0
    }

    /// The function's interrupt line stays low.
    pub fn is_line_off(&self) -> bool {
        self.u16_at(at::COMMAND) & command::INTERRUPT_DISABLE != 0
    }

    /// Where the guest has put what is behind each base address: index, the first byte (guest-physical), and size.
    /// The first is `None` while the function answers nowhere.
    pub fn places(&self) -> impl Iterator<Item = (usize, Option<u64>, u64)> {
        let answers = self.u16_at(at::COMMAND) & command::MEMORY != 0;
        self.sizes.iter().enumerate().filter_map(move |(index, size)| {
            let size = (*size)?;
            let address = bytes::u64_at(&self.bytes, at::BARS + 4 * index)? & !(size - 1);
            // One of nothing but ones is being asked for its size, and 0 is nowhere.
            let is_place = answers && address != 0 && address.checked_add(size).is_some();
            Some((index, is_place.then_some(address), size))
        })
    }

    /// What the guest has written, and what the function has put there.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Puts that back; `false` and nothing is done if it is of another function.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        let Ok(bytes) = <[u8; at::PCI_END]>::try_from(bytes) else { return false };
        let identity = |bytes: &[u8; at::PCI_END]| {
            (bytes[..4].to_vec(), bytes[at::SUBSYSTEM..at::CAPABILITIES].to_vec())
        };
        let fits = identity(&bytes) == identity(&self.bytes);
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    /// As it is after a reset: nothing is switched on, registers are where they were.
    pub fn reset(&mut self) {
        self.set(at::COMMAND, &[0; 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1044,
        revision: 1,
        class: [0xff, 0, 7],
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
    };

    fn u32_at(config: &Config, offset: usize) -> u32 {
        let mut data = [0xff; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn places(config: &Config) -> Vec<(usize, Option<u64>, u64)> {
        config.places().collect()
    }

    #[test]
    fn a_function_says_what_it_is() {
        let config = Config::new(IDENTITY);
        assert_eq!([0, 8, 0x2c].map(|offset| u32_at(&config, offset)), [0x1044_1af4, 0xff00_0701, 0x40_1af4]);
        // A header of type 0, of a device with one function, without a list.
        assert_eq!([4, 0xc, 0x34].map(|offset| u32_at(&config, offset)), [0; 3]);
        let mut whole = [0xff; SIZE];
        config.read(0, &mut whole);
        assert!(whole[0x40..].iter().all(|byte| *byte == 0));
        // Beyond the end.
        let mut data = [0xff; 4];
        config.read(usize::MAX - 1, &mut data[..1]);
        config.read(SIZE, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn what_is_fixed_stays() {
        let mut config = Config::new(IDENTITY).bar(0, 0x4000);
        let before = u32_at(&config, 0);
        for offset in 0..SIZE {
            config.write(offset, &[0xff; 4]);
        }
        assert_eq!(u32_at(&config, 0), before);
        // Memory, bus master, no line; no ports, and nothing of the status.
        assert_eq!(u32_at(&config, 4), 0x406);
        assert_eq!(u32_at(&config, 0x3c), 0xff);
        config.reset();
        assert_eq!(u32_at(&config, 4), 0);
    }

    #[test]
    fn a_base_address_tells_its_size() {
        let mut config = Config::new(IDENTITY).bar(0, 0x4000).bar(4, 0x1_0000_0000);
        assert_eq!(places(&config), [(0, None, 0x4000), (4, None, 0x1_0000_0000)]);
        for (offset, asked) in [(0x10, [0xffff_c004, 0xffff_ffff]), (0x20, [4, 0xffff_ffff])] {
            assert!(config.write(offset, &[0xff; 4]) && config.write(offset + 4, &[0xff; 4]));
            assert_eq!([offset, offset + 4].map(|offset| u32_at(&config, offset)), asked);
        }
        // As it is asked it is nowhere, even with memory on.
        assert!(config.write(4, &[2, 0]));
        assert!(places(&config).iter().all(|(_, at, _)| at.is_none()));
        config.write(0x10, &0xd000_1234_u32.to_le_bytes());
        config.write(0x14, &[0; 4]);
        assert_eq!(u32_at(&config, 0x10), 0xd000_0004);
        config.write(0x24, &8u32.to_le_bytes());
        config.write(0x20, &[0; 4]);
        assert_eq!(
            places(&config),
            [(0, Some(0xd000_0000), 0x4000), (4, Some(0x8_0000_0000), 0x1_0000_0000)]
        );
        config.write(4, &[0, 0]);
        assert!(places(&config).iter().all(|(_, at, _)| at.is_none()));
        // What is elsewhere moves nothing.
        assert!(!config.write(0x3c, &[7]) && !config.write(usize::MAX, &[7]));
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = Config::new(IDENTITY);
        let first = config.add_capability(0x11, &[1, 0x80, 3], &[0, 0xc0]);
        let second = config.add_capability(0x09, &[0x10; 14], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(u32_at(&config, 4) >> 16, 0x10);
        assert_eq!(u32_at(&config, 0x34), 0x40);
        assert_eq!(u32_at(&config, 0x40), 0x8001_4811);
        assert_eq!(u32_at(&config, 0x48), 0x1010_0009);
        config.write(0x42, &[0xff; 2]);
        assert_eq!(u32_at(&config, 0x40), 0xc001_4811);
        config.put(0x48 + 2, &[0x22]);
        assert_eq!(u32_at(&config, 0x48), 0x1022_0009);
    }
}
