//! The keyboard controller, for its reset line only: Linux and hobby kernels pulse it to
//! reboot. `vm_superio` has the device; this is its place on a bus.

use crate::bus::{Device, Request};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::{I8042Device, Trigger};

/// Ports 0x60 to 0x64.
pub const SIZE: u64 = 5;

#[derive(Clone, Debug, Default)]
struct ResetLine(Arc<AtomicBool>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The device.
pub struct I8042 {
    controller: I8042Device<ResetLine>,
    reset: ResetLine,
}

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042")
    }
}

impl Default for I8042 {
    fn default() -> I8042 {
        let reset = ResetLine::default();
        I8042 { controller: I8042Device::new(reset.clone()), reset }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte, ..]) = (u8::try_from(offset), data) {
            *byte = self.controller.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        let Ok(()) = self.controller.write(u8::try_from(offset).ok()?, *data.first()?);
        self.reset.0.swap(false, Ordering::Relaxed).then_some(Request::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulsing_the_reset_line_asks_for_a_reset() {
        let mut device = I8042::default();
        assert_eq!(device.write(4, &[0xfe]), Some(Request::Reset));
        assert_eq!(device.write(4, &[0xd1]), None);
        assert_eq!(device.write(0, &[0xfe]), None);
        assert_eq!(device.write(4, &[]), None);
        let mut data = [0xff; 4];
        device.read(4, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }
}
