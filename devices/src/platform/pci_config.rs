//! PCI's configuration mechanism #1 (PCI Local Bus Specification 3.0, section 3.2.2.3.2), and the reset control register
//! among its ports.
//!
//! Linux looks for a way to PCI's configuration space on every PC and complains of one that has none; it
//! believes in this one when it finds a host bridge (`arch/x86/pci/direct.c`). On a machine without functions that is
//! all there is, and ACPI describes no bus, so with ACPI it is not looked through.

use crate::End;
use crate::bus::Device;
use crate::pci::bus::PciBus;
use crate::platform::reset_control::ResetControl;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::Node;
use std::sync::Arc;

/// Where in the ports' range the data of the selected register is.
const DATA: u64 = 4;
/// Where the reset control register is, byte-wide.
const RESET: u64 = 1;
/// Bit 31 of the address: accesses to the data reach the configuration space.
const ENABLE: u32 = 1 << 31;
/// Bits of the address that are not reserved.
const ADDRESS: u32 = 0x80ff_fffc;

/// The device: eight ports from 0xcf8.
#[derive(Debug)]
pub struct PciConfig {
    bus: Arc<PciBus>,
    address: u32,
    reset: ResetControl,
}

impl PciConfig {
    /// With the functions of a bus.
    pub fn new(bus: Arc<PciBus>) -> PciConfig {
        PciConfig { bus, address: 0, reset: ResetControl::default() }
    }

    /// What is selected, at an offset into its 32-bit register: device, function, offset. Only bus 0 has any.
    fn selected(&self, offset: u64) -> Option<(usize, usize, usize)> {
        let place = self.address as usize;
        let is_there = self.address & ENABLE != 0 && place >> 16 & 0xff == 0;
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < 4 && is_there)?;
        Some((place >> 11 & 31, place >> 8 & 7, (place & 0xfc) + offset))
    }
}

impl Fitted for PciConfig {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("pci").ports(0xcf8, 8))
    }

    fn make(_: &Node, resources: &mut dyn Resources) -> PciConfig {
        PciConfig::new(resources.pci())
    }
}

impl Device for PciConfig {
    fn name(&self) -> &'static str {
        "PCI configuration"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET, 1) => self.reset.read(0, data),
            (DATA.., _) => {
                // What reaches beyond the register has nothing there.
                let count = usize::try_from(8 - offset.min(8)).unwrap_or(0).min(data.len());
                if let Some((device, function, at)) = self.selected(offset - DATA) {
                    self.bus.read_config(device, function, at, &mut data[..count]);
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        if offset == RESET && data.len() == 1 {
            return self.reset.write(0, data);
        }
        // The address is taken as a whole only.
        if let (0, &[a, b, c, d]) = (offset, data) {
            self.address = u32::from_le_bytes([a, b, c, d]) & ADDRESS;
        } else if offset >= DATA
            && let Some((device, function, at)) = self.selected(offset - DATA)
        {
            let count = usize::try_from(8 - offset.min(8)).unwrap_or(0).min(data.len());
            self.bus.write_config(device, function, at, &data[..count]);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::bus::with_bridge;

    fn read(config: &mut PciConfig, offset: u64, width: usize) -> u32 {
        let mut data = [0xff; 4];
        config.read(offset, &mut data[..width]);
        let mut value = [0; 4];
        value[..width].copy_from_slice(&data[..width]);
        u32::from_le_bytes(value)
    }

    fn select(config: &mut PciConfig, device: u32, register: u32) {
        assert_eq!(config.write(0, &(ENABLE | device << 11 | register).to_le_bytes()), None);
    }

    #[test]
    fn linux_finds_the_mechanism_and_its_bridge() {
        let mut config = PciConfig::new(Arc::new(with_bridge(&[])));
        // pci_check_type1() and pci_sanity_check() of arch/x86/pci/direct.c.
        assert_eq!(config.write(3, &[1]), None);
        let before = read(&mut config, 0, 4);
        config.write(0, &ENABLE.to_le_bytes());
        assert_eq!(read(&mut config, 0, 4), ENABLE);
        select(&mut config, 0, 8);
        assert_eq!(read(&mut config, DATA + 2, 2), 0x0600);
        config.write(0, &before.to_le_bytes());
        assert_eq!(read(&mut config, 0, 4), 0);
    }

    #[test]
    fn nothing_else_is_there() {
        let mut config = PciConfig::new(Arc::new(with_bridge(&[])));
        assert_eq!(read(&mut config, DATA, 4), u32::MAX, "it is not enabled");
        select(&mut config, 0, 0);
        assert_eq!(read(&mut config, DATA, 4), 0x0008_1b36);
        assert_eq!(read(&mut config, DATA + 2, 2), 8);
        config.write(DATA, &[0; 4]);
        assert_eq!(read(&mut config, DATA, 4), 0x0008_1b36);
        select(&mut config, 0, 0x3c);
        assert_eq!(read(&mut config, DATA, 4), 0);
        for device in 1..32 {
            select(&mut config, device, 0);
            assert_eq!(read(&mut config, DATA, 4), u32::MAX, "{device}");
        }
        // What reaches beyond the register has nothing there.
        select(&mut config, 0, 0);
        assert_eq!(read(&mut config, DATA + 3, 4), 0xffff_ff00);
    }

    #[test]
    fn the_reset_control_register_is_a_byte_among_them() {
        let mut config = PciConfig::new(Arc::new(with_bridge(&[])));
        assert_eq!(config.write(RESET, &[2]), None);
        assert_eq!(read(&mut config, RESET, 1), 2);
        assert_eq!(config.write(0, &[0, 6, 0, 0]), None, "that is the address");
        assert_eq!(config.write(RESET, &[6]), Some(End::Reset));
    }
}
