//! The keyboard controller, for its reset line only: Linux and hobby kernels pulse it to
//! reboot. `vm_superio` has the device; this is its place on a bus, and the output port, whose lowest bit is the
//! same line (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller").

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::Node;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::{I8042Device, Trigger};

/// Ports 0x60 to 0x64.
const SIZE: u64 = 5;

/// Command 0xd1: the next byte of data goes to the output port.
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// Command 0xd0: the next byte that is read is the output port.
const READ_OUTPUT_PORT: u8 = 0xd0;
/// Bit 0 of the output port: the processor is not reset; bit 1: A20 is on.
const OUTPUT_PORT: u8 = 0b11;
/// Offsets of the data port and of the command port.
const DATA: u64 = 0;
const COMMAND: u64 = 4;

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
    /// The last command, until its data has been written or read.
    command: Option<u8>,
}

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042")
    }
}

impl Default for I8042 {
    fn default() -> I8042 {
        let reset = ResetLine::default();
        I8042 { controller: I8042Device::new(reset.clone()), reset, command: None }
    }
}

impl Fitted for I8042 {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("keyboard").ports(0x60, SIZE))
    }

    fn make(_: &Node, _: &mut dyn Resources) -> I8042 {
        I8042::default()
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte, ..]) = (u8::try_from(offset), data) {
            let reads_port =
                u64::from(offset) == DATA && self.command.take_if(|c| *c == READ_OUTPUT_PORT).is_some();
            *byte = if reads_port { OUTPUT_PORT } else { self.controller.read(offset) };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        let value = *data.first()?;
        match offset {
            COMMAND => self.command = Some(value),
            DATA if self.command.take() == Some(WRITE_OUTPUT_PORT) && value & 1 == 0 => {
                return Some(End::Reset);
            }
            _ => {}
        }
        let Ok(()) = self.controller.write(u8::try_from(offset).ok()?, value);
        self.reset.0.swap(false, Ordering::Relaxed).then_some(End::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulsing_the_reset_line_asks_for_a_reset() {
        let mut device = I8042::default();
        assert_eq!(device.write(4, &[0xfe]), Some(End::Reset));
        assert_eq!(device.write(0, &[0xfe]), None);
        assert_eq!(device.write(4, &[]), None);
        let mut data = [0xff; 4];
        device.read(4, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn so_does_the_output_port() {
        let mut device = I8042::default();
        assert_eq!(device.write(4, &[0xd0]), None);
        let mut port = [0xff];
        device.read(0, &mut port);
        assert_eq!(port, [3]);
        device.read(0, &mut port);
        assert_eq!(port, [0]);
        // A20 is what it is for, as a rule.
        assert_eq!((device.write(4, &[0xd1]), device.write(0, &[0xdf])), (None, None));
        assert_eq!((device.write(4, &[0xd1]), device.write(0, &[2])), (None, Some(End::Reset)));
        assert_eq!(device.write(0, &[2]), None);
    }
}
