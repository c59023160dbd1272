//! The reset control register of a PC's chipset, at port 0xcf9: what Linux's `reboot=pci` and hobby kernels
//! write to (Intel ICH9 datasheet, section 13.7.5, "RST_CNT").

use crate::End;
use crate::bus::Device;

/// Bit 2: a change from 0 to 1 resets the processor, by its INIT line or, with bit 1, the whole platform.
/// Here that is the same.
const RESET: u8 = 1 << 2;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResetControl {
    value: u8,
}

impl Device for ResetControl {
    fn name(&self) -> &'static str {
        "reset control"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let Some(first) = data.first_mut() {
            *first = self.value & !RESET;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<End> {
        // What is wider goes to port 0xcf8, which is PCI's.
        let [value] = *data else { return None };
        let resets = value & !self.value & RESET != 0;
        self.value = value;
        resets.then_some(End::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rising_bit_resets() {
        let mut register = ResetControl::default();
        assert_eq!(register.write(0, &[2]), None);
        let mut data = [0xff];
        register.read(0, &mut data);
        assert_eq!(data, [2]);
        assert_eq!(register.write(0, &[6, 0]), None);
        assert_eq!(register.write(0, &[6]), Some(End::Reset));
        register.read(0, &mut data);
        assert_eq!(data, [2]);
        assert_eq!(register.write(0, &[6]), None);
        assert_eq!(register.write(0, &[0]), None);
        assert_eq!(register.write(0, &[4]), Some(End::Reset));
    }
}
