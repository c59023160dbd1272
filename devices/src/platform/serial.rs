//! The 16550 serial port that carries the guest's console. `vm_superio` has the device; this
//! module puts it on a bus and feeds it input without losing any.
//!
//! Output goes to a [`Write`] at the moment the guest sends it. Input that does not fit the
//! port's 64-byte FIFO waits in [`Serial::pending`] until the guest has read some.

use crate::End;
use crate::bus::Device;
use crate::tell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use vm_superio::{Serial as Uart, Trigger, serial::NoEvents};

/// Registers of a 16550, a byte each.
pub const SIZE: u64 = 8;

/// The interrupt line of a device.
pub type Interrupt = Box<dyn Trigger<E = io::Error> + Send>;

struct Line(Interrupt);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// The device.
pub struct Serial {
    uart: Uart<Line, NoEvents, Box<dyn Write + Send>>,
    pending: VecDeque<u8>,
    /// Told when pending input has all gone into the FIFO.
    drained: Interrupt,
    /// A failure to write has been told.
    told_failure: bool,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that raises `interrupt` and sends its output to `output`, which should not wait: whoever
    /// else needs the port would wait for it, too. `drained` is triggered when the guest has read so much
    /// that no input is pending any more: whoever feeds the port stops at some amount of pending input
    /// and goes on then.
    pub fn new(interrupt: Interrupt, output: Box<dyn Write + Send>, drained: Interrupt) -> Serial {
        Serial {
            uart: Uart::new(Line(interrupt), output),
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
            && let Err(error) = self.drained.trigger()
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

    struct NoInterrupt;

    impl Trigger for NoInterrupt {
        type E = io::Error;

        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, Shared) {
        let output = Shared::default();
        (Serial::new(Box::new(NoInterrupt), Box::new(output.clone()), Box::new(NoInterrupt)), output)
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
