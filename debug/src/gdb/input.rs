//! What a client has sent and was not served yet.
//!
//! It is read in two places: by the server between two packets, and, while a command takes long, by
//! the command's [token](crate::cancel), which looks whether the client interrupts or has gone.

use super::listener::Stream;
use super::packet::{Framer, Item};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets, acknowledgements and interrupts that wait; more is not read.
const MOST_ITEMS: usize = 4096;
/// How often a debugger that waits is told that it is worth while. gdb gives up after two seconds of
/// silence, and what is answered then it takes for the answer to its next question; any byte between
/// packets has it wait anew.
const REASSURE: Duration = Duration::from_millis(700);

/// A client's stream, taken apart.
#[derive(Debug)]
pub(super) struct Input {
    stream: Arc<Stream>,
    framer: Framer,
    items: VecDeque<Item>,
    /// Nothing more will come.
    is_over: bool,
    /// Something has come that no debugger sends.
    is_noise: bool,
    /// When the client is reassured next, while it waits for what takes long.
    reassure: Option<Instant>,
}

impl Input {
    pub fn new(stream: Arc<Stream>) -> Input {
        Input {
            stream,
            framer: Framer::default(),
            items: VecDeque::new(),
            is_over: false,
            is_noise: false,
            reassure: None,
        }
    }

    /// Takes bytes that have been read already.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (items, is_noise) = (&mut self.items, &mut self.is_noise);
        self.framer.feed(bytes, |item| {
            *is_noise |= matches!(item, Item::Noise(_));
            items.push_back(item);
        });
    }

    /// Reads what there is, a piece at most; whether there may be more.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        if self.is_over || self.items.len() >= MOST_ITEMS {
            return false;
        }
        match self.stream.read(&mut buffer) {
            Ok(0) => self.is_over = true,
            Ok(count) => {
                self.feed(&buffer[..count]);
                return count == buffer.len();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(_) => self.is_over = true,
        }
        false
    }

    /// The next one.
    pub fn next(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// Whether something waits.
    pub fn is_waiting(&self) -> bool {
        !self.items.is_empty()
    }

    /// Whether the stream is over, what waits apart.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether bytes have come that no debugger sends.
    pub fn is_noise(&self) -> bool {
        self.is_noise
    }

    /// A command that may take long begins; `is_reassured`: nothing else waits to be sent.
    pub fn begin_long(&mut self, is_reassured: bool) {
        self.reassure = is_reassured.then(|| Instant::now() + REASSURE);
    }

    /// It is over. Acknowledgements that came meanwhile are of nothing that was sent: a debugger whose
    /// patience ends sends `-`, and must not get the answer twice.
    pub fn end_long(&mut self) {
        self.reassure = None;
        while self.read() {}
        self.items.retain(|item| !matches!(item, Item::Ack | Item::Nack));
    }

    /// Whether the client wants no more of a command that takes long: it has interrupted it, or gone.
    pub fn wants_no_more(&mut self) -> bool {
        self.read();
        let interrupt = self.items.iter().position(|item| *item == Item::Interrupt);
        if let Some(interrupt) = interrupt {
            self.items.remove(interrupt);
            return true;
        }
        if let Some(next) = self.reassure
            && Instant::now() >= next
        {
            // One that does not read is not waiting; and its going is seen by the next read.
            self.stream.write(b"+").ok();
            self.reassure = Some(Instant::now() + REASSURE);
        }
        self.is_over || self.is_noise()
    }
}
