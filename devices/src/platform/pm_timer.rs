//! The ACPI power management timer: a counter at 3.58 MHz that guests without a paravirtual clock measure their
//! time-stamp counter by (ACPI 6.5, section 4.8.3.3, "Power Management Timer"). The tables that announce it
//! are made by `arch::board::acpi`.
//!
//! It counts the guest's own time, which stands still while the guest is held, and raises no interrupt.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::{AcpiEntry, FixedRegister, Node};

/// Number of ports the device takes.
const SIZE: u64 = 4;
/// Hz.
const RATE: u128 = 3_579_545;

/// The device.
pub struct PmTimer {
    /// The guest's time, in nanoseconds since some moment.
    now: Box<dyn Fn() -> u64 + Send>,
}

impl std::fmt::Debug for PmTimer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PmTimer")
    }
}

impl PmTimer {
    /// A timer that counts what `now` says, in nanoseconds of the guest's time.
    pub fn new(now: impl Fn() -> u64 + Send + 'static) -> PmTimer {
        PmTimer { now: Box::new(now) }
    }
}

impl Fitted for PmTimer {
    /// Where QEMU's first chipset has it as well.
    fn node(isa: Isa) -> Option<Node> {
        const REGISTERS: &[(FixedRegister, u64)] = &[(FixedRegister::Timer, 0)];
        (isa == Isa::X86_64).then(|| Node::new("timer").ports(0x608, SIZE).acpi(AcpiEntry::Fixed(REGISTERS)))
    }

    fn make(_: &Node, resources: &mut dyn Resources) -> PmTimer {
        PmTimer { now: resources.time() }
    }
}

impl Device for PmTimer {
    fn name(&self) -> &'static str {
        "ACPI timer"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let ticks = u128::from((self.now)()) * RATE / 1_000_000_000;
        // It is 32 bits wide, and goes over.
        let bytes = ticks.to_le_bytes();
        for (at, byte) in (offset..SIZE).zip(data) {
            *byte = usize::try_from(at).map_or(0xff, |at| bytes[at]);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Option<End> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn it_counts_the_guests_time_and_goes_over() {
        let time = Arc::new(AtomicU64::new(0));
        let its = Arc::clone(&time);
        let mut timer = PmTimer::new(move || its.load(Ordering::Relaxed));
        let mut at = |nanoseconds| {
            time.store(nanoseconds, Ordering::Relaxed);
            let mut data = [0xff; 4];
            timer.read(0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(at(0), 0);
        assert_eq!(at(1_000_000_000), 3_579_545);
        // 2^32 ticks are 1199.86 s.
        assert_eq!(at(1_200_000_000_000), u32::try_from(1200 * 3_579_545u64 - (1 << 32)).unwrap());
        at(u64::MAX);
    }

    #[test]
    fn any_part_can_be_read_and_nothing_written() {
        let mut timer = PmTimer::new(|| 1_000_000_000_000);
        let mut word = [0; 4];
        timer.read(0, &mut word);
        let mut part = [0xff; 2];
        timer.read(2, &mut part);
        assert_eq!(part, word[2..]);
        let mut beyond = [0xff; 4];
        timer.read(3, &mut beyond);
        assert_eq!(beyond, [word[3], 0xff, 0xff, 0xff]);
        assert_eq!(timer.write(0, &[1, 2, 3, 4]), None);
    }
}
