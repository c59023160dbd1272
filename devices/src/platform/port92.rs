//! System control port A, at port 0x92 of a PC: the fast gates to A20 and to the processor's INIT line
//! (IBM PS/2 Hardware Interface Technical Reference, "System Control Port A").
//!
//! A20 is on always. INIT goes to firmware, which boots the machine again: a reset.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::Node;

/// Bit 0: a change from 0 to 1 pulses INIT.
const INIT: u8 = 1 << 0;
/// Bit 1: address line 20 is the address's.
const A20: u8 = 1 << 1;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Port92 {
    value: u8,
}

impl Fitted for Port92 {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("system-control").ports(0x92, 1))
    }

    fn make(_: &Node, _: &mut dyn Resources) -> Port92 {
        Port92::default()
    }
}

impl Device for Port92 {
    fn name(&self) -> &'static str {
        "system control port A"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let Some(first) = data.first_mut() {
            *first = self.value | A20;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<End> {
        let value = *data.first()?;
        let pulses = value & !self.value & INIT != 0;
        self.value = value;
        pulses.then_some(End::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rising_bit_resets_and_a20_stays_on() {
        let mut port = Port92::default();
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!(data, [2, 0xff]);
        assert_eq!(port.write(0, &[0]), None);
        port.read(0, &mut data);
        assert_eq!(data[0], 2);
        assert_eq!(port.write(0, &[3]), Some(End::Reset));
        port.read(0, &mut data);
        assert_eq!(data[0], 3);
        assert_eq!(port.write(0, &[1]), None);
        assert_eq!(port.write(0, &[0]), None);
        assert_eq!(port.write(0, &[1]), Some(End::Reset));
        assert_eq!(port.write(0, &[]), None);
    }
}
