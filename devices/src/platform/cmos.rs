//! The real-time clock of a PC: the MC146818's clock registers behind an index and a data
//! port. The guest reads UTC; there is no alarm, no periodic interrupt, no battery RAM.
//!
//! Source: Motorola MC146818A data sheet; the century register is at 0x32, where Linux
//! looks for it.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::{AcpiDevice, AcpiEntry, Node};
use std::time::{SystemTime, UNIX_EPOCH};

/// Index port and data port.
const SIZE: u64 = 2;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Status A: 32.768 kHz time base, 1024 Hz rate, no update in progress.
const STATUS_A_VALUE: u8 = 0x26;
/// Status B: 24-hour mode, BCD.
const STATUS_B_VALUE: u8 = 0x02;
/// Status D: the battery is good.
const STATUS_D_VALUE: u8 = 0x80;

/// The device.
#[derive(Clone, Debug)]
pub struct Cmos {
    index: u8,
    /// Seconds since 1970, UTC.
    now: fn() -> u64,
}

impl Default for Cmos {
    fn default() -> Cmos {
        Cmos { index: 0, now: || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) }
    }
}

/// A date in the Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
}

/// The date `days` days after 1970-01-01. Years are counted from March so that the leap day
/// is the last one; 400 years have 146097 days.
fn date(days: u64) -> Date {
    const DAYS_0000_03_01_TO_1970: u64 = 719_468;
    let shifted = days + DAYS_0000_03_01_TO_1970;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    Date { year: era * 400 + year_of_era + u64::from(month <= 2), month, day, weekday: (days + 4) % 7 + 1 }
}

/// Two decimal digits, one in each half of a byte.
fn bcd(value: u64) -> u8 {
    u8::try_from(value % 100 / 10 * 16 + value % 10).unwrap_or(0)
}

impl Cmos {
    fn register(&self, index: u8) -> u8 {
        let now = (self.now)();
        let date = date(now / 86_400);
        match index {
            0x00 => bcd(now % 60),
            0x02 => bcd(now / 60 % 60),
            0x04 => bcd(now / 3600 % 24),
            0x06 => bcd(date.weekday),
            0x07 => bcd(date.day),
            0x08 => bcd(date.month),
            0x09 => bcd(date.year),
            CENTURY => bcd(date.year / 100),
            STATUS_A => STATUS_A_VALUE,
            STATUS_B => STATUS_B_VALUE,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALUE,
            _ => 0,
        }
    }
}

impl Fitted for Cmos {
    fn node(isa: Isa) -> Option<Node> {
        let entry = AcpiDevice { name: "RTC_", hid: "PNP0B00", uid: None, status: None };
        (isa == Isa::X86_64).then(|| Node::new("rtc").ports(0x70, SIZE).acpi(AcpiEntry::Device(entry)))
    }

    fn make(_: &Node, _: &mut dyn Resources) -> Cmos {
        Cmos::default()
    }
}

impl Device for Cmos {
    fn name(&self) -> &'static str {
        "CMOS clock"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [byte, ..]) = (offset, data) {
            *byte = self.register(self.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        if offset == 0 {
            // Bit 7 masks NMI.
            self.index = data.first()? & 0x7f;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days_and_centuries() {
        for (days, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (58, 1970, 2, 28, 7),
            (59, 1970, 3, 1, 1),
            (11_016, 2000, 2, 29, 3),
            (11_017, 2000, 3, 1, 4),
            (20_778, 2026, 11, 21, 7),
            (47_540, 2100, 2, 28, 1),
            (47_541, 2100, 3, 1, 2),
        ] {
            assert_eq!(date(days), Date { year, month, day, weekday }, "day {days}");
        }
    }

    #[test]
    fn a_guest_reads_bcd_through_the_two_ports() {
        // 2026-11-21 12:34:56 UTC.
        let mut clock = Cmos { index: 0, now: || 20_778 * 86_400 + 12 * 3600 + 34 * 60 + 56 };
        let mut read = |index: u8| {
            clock.write(0, &[index | 0x80]);
            let mut data = [0xff];
            clock.read(1, &mut data);
            data[0]
        };
        let registers = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY, STATUS_B, STATUS_D, 0x7f];
        assert_eq!(registers.map(&mut read), [0x56, 0x34, 0x12, 0x07, 0x21, 0x11, 0x26, 0x20, 0x02, 0x80, 0]);
    }
}
