//! The guest's serial port, as a job has it: what is printed there waits for the job's loop.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The most bytes that wait for the loop, and that it takes at a time.
const MOST: usize = 1 << 20;
const TURN: usize = 64 << 10;

/// What the guest prints on its serial port, on its way to the loop.
#[derive(Clone, Debug)]
pub struct Serial {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Bytes for which there was no room, and of which nobody has been told.
    lost: u64,
}

impl Serial {
    /// Which rings that.
    pub fn new(wake: EventFd) -> Serial {
        Serial { waiting: Arc::default(), wake: Arc::new(wake) }
    }

    /// Becomes readable when there is a line, or much.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting().bytes.is_empty()
    }

    /// How many bytes have been lost, as nobody took what was there, since it was asked last.
    pub fn take_lost(&self) -> u64 {
        std::mem::take(&mut self.waiting().lost)
    }

    /// The next bytes, as many as are for one turn; the loop is woken again for the others.
    pub fn take(&self) -> Vec<u8> {
        // Of the count nothing is to be known.
        self.wake.read().ok();
        let mut waiting = self.waiting();
        let now = waiting.bytes.len().min(TURN);
        let rest = waiting.bytes.split_off(now);
        let bytes = std::mem::replace(&mut waiting.bytes, rest);
        if !waiting.bytes.is_empty()
            && let Err(error) = self.wake.write(1)
        {
            log::error!("cannot wake the job's loop: {error}");
        }
        bytes
    }
}

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.waiting();
        let room = MOST.saturating_sub(waiting.bytes.len());
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        waiting.bytes.extend_from_slice(kept);
        waiting.lost += lost.len() as u64;
        // It comes a byte at a time, and lines are what is looked for: others are taken with the next one, or with
        // the next look at the vCPUs.
        let is_worth_it = bytes.contains(&b'\n') || waiting.bytes.len() >= TURN;
        drop(waiting);
        if is_worth_it {
            self.wake.write(1)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_port_that_never_ends_is_read_in_turns() {
        let mut serial = Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let wake = Arc::clone(&serial.wake);
        serial.write_all(&vec![b'x'; 3 * MOST]).unwrap();
        let mut all = 0;
        while !serial.is_empty() {
            let turn = serial.take().len();
            assert!((1..=TURN).contains(&turn), "{turn}");
            all += turn;
            // The loop is woken for the rest, and for nothing else.
            assert_eq!(wake.read().is_ok(), !serial.is_empty());
        }
        // It is not woken within a line.
        serial.write_all(b"a li").unwrap();
        assert!(wake.read().is_err());
        serial.write_all(b"ne\n").unwrap();
        assert!(wake.read().is_ok() && serial.take() == b"a line\n");
        // What is behind that is lost, and counted once.
        assert_eq!((all, serial.take_lost(), serial.take_lost()), (MOST, 2 * MOST as u64, 0));
    }
}
