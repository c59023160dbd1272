//! The PL031 real-time clock (Arm DDI 0224). `vm_superio` has the device; this is its place
//! on a bus. Its registers are 32-bit words.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::{Node, TreeEntry, Trigger};
use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

/// The device.
#[derive(Default)]
pub struct Pl031(Rtc<NoEvents>);

impl std::fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pl031")
    }
}

impl Fitted for Pl031 {
    /// As `rtc/arm,pl031.yaml` has it.
    fn node(isa: Isa) -> Option<Node> {
        let entry = TreeEntry {
            compatible: &["arm,pl031", "arm,primecell"],
            properties: Vec::new(),
            is_primecell: true,
        };
        (isa == Isa::Aarch64)
            .then(|| Node::new("rtc").memory(0x0901_0000, 0x1000).interrupt(1, Trigger::Level).tree(entry))
    }

    /// Its interrupt is described, as the binding wants one, and never raised.
    fn make(_: &Node, _: &mut dyn Resources) -> Pl031 {
        Pl031::default()
    }
}

impl Device for Pl031 {
    fn name(&self) -> &'static str {
        "PL031"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (word, skip) = (offset & !3, usize::try_from(offset & 3).unwrap_or(0));
        let Ok(word) = u16::try_from(word) else { return };
        let mut bytes = [0; 4];
        self.0.read(word, &mut bytes);
        for (to, from) in data.iter_mut().zip(&bytes[skip..]) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        let offset = u16::try_from(offset).ok()?;
        let word: [u8; 4] = data.try_into().ok()?;
        self.0.write(offset, &word);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn the_data_register_counts_seconds_since_1970() {
        let mut clock = Pl031::default();
        let mut data = [0; 4];
        clock.read(0, &mut data);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(u64::from(u32::from_le_bytes(data))) <= 2);
    }

    #[test]
    fn accesses_of_other_widths_and_places_are_harmless() {
        let mut clock = Pl031::default();
        // PrimeCell identification register 0, a byte at a time.
        let mut byte = [0];
        clock.read(0xff0, &mut byte);
        assert_eq!(byte, [0x0d]);
        let mut wide = [0xff; 8];
        clock.read(0xff0, &mut wide);
        assert_eq!(wide, [0x0d, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(clock.write(0, &[1]), None);
        assert_eq!(clock.write(u64::MAX, &[1, 2, 3, 4]), None);
        clock.read(u64::MAX, &mut wide);
    }
}
