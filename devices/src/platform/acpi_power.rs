//! The power registers of hardware-reduced ACPI: sleep control, sleep status and reset, one
//! byte each (ACPI 6.5, 4.8.3.6 and 4.8.3.7). The tables that announce them are made by
//! `arch::board::acpi`.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use crate::tell;
use arch::Isa;
use arch::board::acpi::{RESET_VALUE, SLEEP_ENABLE, SLEEP_TYPE_S5};
use arch::board::{AcpiEntry, FixedRegister, Node};

/// Where the registers are in the device's ports.
const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = 1;
const RESET: u64 = 2;
/// Number of ports the device takes.
const SIZE: u64 = 3;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcpiPower;

impl Fitted for AcpiPower {
    fn node(isa: Isa) -> Option<Node> {
        const REGISTERS: &[(FixedRegister, u64)] = &[
            (FixedRegister::SleepControl, SLEEP_CONTROL),
            (FixedRegister::SleepStatus, SLEEP_STATUS),
            (FixedRegister::Reset, RESET),
        ];
        (isa == Isa::X86_64).then(|| Node::new("power").ports(0x600, SIZE).acpi(AcpiEntry::Fixed(REGISTERS)))
    }

    fn make(_: &Node, _: &mut dyn Resources) -> AcpiPower {
        AcpiPower
    }
}

impl Device for AcpiPower {
    fn name(&self) -> &'static str {
        "ACPI power registers"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // WAK_STS is never set: a guest that sleeps does not come back.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        let value = *data.first()?;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 => {
                let kind = value >> 2 & 7;
                if kind == SLEEP_TYPE_S5 {
                    return Some(End::PowerOff);
                }
                tell!(Warn, "the guest asked for ACPI sleep type {kind}; only S5 (soft-off) exists");
                None
            }
            RESET if value == RESET_VALUE => Some(End::Reset),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_log;

    #[test]
    fn a_guest_that_asks_for_what_there_is_not_fills_no_log() {
        log::set_max_level(log::LevelFilter::Info);
        let mut power = AcpiPower;
        for _ in 0..1000 {
            assert_eq!(power.write(0, &[1 << 2 | SLEEP_ENABLE]), None);
        }
        let said = guest_log::tests::said();
        assert!(said.len() <= guest_log::ALLOWED as usize && said[0].contains("sleep type 1"), "{said:?}");
    }

    #[test]
    fn only_soft_off_and_the_reset_value_do_something() {
        let mut power = AcpiPower;
        assert_eq!(power.write(0, &[SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE]), Some(End::PowerOff));
        assert_eq!(power.write(0, &[SLEEP_TYPE_S5 << 2]), None);
        assert_eq!(power.write(0, &[1 << 2 | SLEEP_ENABLE]), None);
        assert_eq!(power.write(1, &[0x80]), None);
        assert_eq!(power.write(2, &[RESET_VALUE]), Some(End::Reset));
        assert_eq!(power.write(2, &[0]), None);
        assert_eq!(power.write(0, &[]), None);
        let mut data = [0xff; 2];
        power.read(0, &mut data);
        assert_eq!(data, [0, 0]);
    }
}
