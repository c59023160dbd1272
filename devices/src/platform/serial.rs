//! The 16550 serial port that carries the guest's console. `vm_superio` has the device; this
//! module puts it on a bus and feeds it input without losing any.
//!
//! Output goes to a [`Write`] at the moment the guest sends it. Input that does not fit the
//! port's 64-byte FIFO waits in [`Serial::pending`] until the guest has read some.

use crate::End;
use crate::bus::Device;
use crate::rack::{Console, Fitted, Line, Resources};
use crate::tell;
use arch::Isa;
use arch::board::{AcpiDevice, AcpiEntry, Node, TreeEntry, Trigger};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use vm_superio::{Serial as Uart, serial::NoEvents};

/// Registers of a 16550, a byte each.
pub const SIZE: u64 = 8;
/// What the port claims to be clocked by, Hz: its divisors count in sixteenths of 115200 Bd.
const CLOCK_HZ: u32 = 1_843_200;

/// How `vm_superio` raises the port's interrupt.
struct Interrupt(Option<Box<dyn Line>>);

impl vm_superio::Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |line| line.pulse())
    }
}

/// The device.
pub struct Serial {
    uart: Uart<Interrupt, NoEvents, Box<dyn Write + Send>>,
    pending: VecDeque<u8>,
    /// Called when pending input has all gone into the FIFO.
    drained: Box<dyn Fn() -> io::Result<()> + Send>,
    /// A failure to write has been told.
    told_failure: bool,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that raises `line`, if it has one, and whose other end is `console`.
    pub fn new(line: Option<Box<dyn Line>>, console: Console) -> Serial {
        let Console { output, drained } = console;
        Serial {
            uart: Uart::new(Interrupt(line), output),
            pending: VecDeque::new(),
            drained,
            told_failure: false,
        }
    }

    /// Gives the guest input. What the FIFO has no room for is kept.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
        self.feed();
    }

    /// Writes to where the port's output goes, past the port.
    pub fn print(&mut self, bytes: &[u8]) {
        let output = self.uart.writer_mut();
        if let Err(error) = output.write_all(bytes).and_then(|()| output.flush())
            && !std::mem::replace(&mut self.told_failure, true)
        {
            tell!(Warn, "the guest's console output is lost: {error}");
        }
    }

    /// Bytes of input that wait for room in the FIFO.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Moves pending input into the FIFO.
    fn feed(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.fill_fifo();
        if self.pending.is_empty()
            && let Err(error) = (self.drained)()
        {
            tell!(Warn, "console input may be stuck: {error}");
        }
    }

    fn fill_fifo(&mut self) {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let room = self.uart.fifo_capacity().min(front.len());
            if room == 0 {
                return;
            }
            match self.uart.enqueue_raw_bytes(&front[..room]) {
                Ok(0) | Err(_) => return,
                Ok(taken) => drop(self.pending.drain(..taken)),
            }
        }
    }
}

impl Fitted for Serial {
    /// COM1, or what `serial/8250.yaml` describes.
    fn node(isa: Isa) -> Option<Node> {
        let node = Node::new("serial").console();
        Some(match isa {
            Isa::X86_64 => {
                node.ports(0x3f8, SIZE).interrupt(4, Trigger::Edge).acpi(AcpiEntry::Device(AcpiDevice {
                    name: "COM1",
                    hid: "PNP0501",
                    uid: Some(0),
                    status: None,
                }))
            }
            Isa::Aarch64 => node.memory(0x0900_0000, 0x1000).interrupt(0, Trigger::Edge).tree(TreeEntry {
                compatible: &["ns16550a"],
                properties: vec![("clock-frequency", CLOCK_HZ)],
                is_primecell: false,
            }),
        })
    }

    fn make(node: &Node, resources: &mut dyn Resources) -> Serial {
        let line = node.interrupts.first().map(|interrupt| resources.line(interrupt.line));
        Serial::new(line, resources.console())
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        "16550"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..SIZE).zip(data) {
            *byte = self.uart.read(offset.to_le_bytes()[0]);
        }
        self.feed();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        for (offset, &byte) in (offset..SIZE).zip(data) {
            if let Err(error) = self.uart.write(offset.to_le_bytes()[0], byte)
                && !std::mem::replace(&mut self.told_failure, true)
            {
                tell!(Warn, "the guest's console output is lost: {error}");
            }
        }
        // Loopback and FIFO control can make room or switch reception on.
        self.feed();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, Shared) {
        let output = Shared::default();
        let console = Console { output: Box::new(output.clone()), drained: Box::new(|| Ok(())) };
        (Serial::new(None, console), output)
    }

    #[test]
    fn what_the_guest_sends_comes_out() {
        let (mut serial, output) = serial();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_whole_and_in_order() {
        let (mut serial, _) = serial();
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        serial.receive(&input);
        assert!(serial.pending() > 0);
        let mut seen = Vec::new();
        let mut data = [0];
        loop {
            serial.read(5, &mut data);
            if data[0] & 1 == 0 {
                break;
            }
            serial.read(0, &mut data);
            seen.push(data[0]);
        }
        assert_eq!(seen, input);
        assert_eq!(serial.pending(), 0);
    }

    #[test]
    fn accesses_wider_than_a_register_touch_the_next_ones_and_stop_at_the_end() {
        let (mut serial, _) = serial();
        serial.write(7, &[0x5a, 1, 2, 3]);
        let mut data = [0; 4];
        serial.read(7, &mut data);
        assert_eq!(data, [0x5a, 0, 0, 0]);
        serial.read(u64::MAX, &mut data);
        serial.write(8, &[1]);
    }
}
