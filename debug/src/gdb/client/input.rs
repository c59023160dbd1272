//! What a client has sent and was not served yet.
//!
//! It is read in two places: by the server between two packets, and, while a command takes long, by
//! the command's [token](crate::cancel), which looks whether the client interrupts or has gone.

use crate::gdb::endpoint::Stream;
use crate::gdb::packet::{Framer, Item};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets, acknowledgements and interrupts that wait; more is not read.
const MOST_ITEMS: usize = 4096;
/// Bytes of packets that wait, likewise.
const MOST_BYTES: usize = 1 << 20;
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;
/// Pieces that are read behind a command that took long, at most: a flood may never end.
const MOST_READS: usize = 64;
/// How often a debugger that waits is told that it is worth while. gdb gives up after two seconds of
/// silence, and what is answered then it takes for the answer to its next question; any byte between
/// packets has it wait anew.
const REASSURE: Duration = Duration::from_millis(700);

/// A client's stream, taken apart.
#[derive(Debug)]
pub(super) struct Input {
    stream: Arc<Stream>,
    /// Kept from one piece to the next: to fill it with zeros takes longer than to read a packet.
    buffer: Box<[u8]>,
    framer: Framer,
    items: VecDeque<Item>,
    /// Bytes of the packets among them.
    size: usize,
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
            buffer: vec![0; PIECE].into(),
            framer: Framer::default(),
            items: VecDeque::new(),
            size: 0,
            is_over: false,
            is_noise: false,
            reassure: None,
        }
    }

    /// Takes bytes that have been read already.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.framer.feed(bytes, |item| {
            self.is_noise |= matches!(item, Item::Noise(_));
            self.size += item.len();
            self.items.push_back(item);
        });
    }

    /// Reads what there is, a piece at most; whether there may be more.
    pub fn read(&mut self) -> bool {
        if self.is_over || self.items.len() >= MOST_ITEMS || self.size >= MOST_BYTES {
            return false;
        }
        match self.stream.read(&mut self.buffer) {
            Ok(0) => self.is_over = true,
            Ok(count) => {
                let buffer = std::mem::take(&mut self.buffer);
                self.feed(&buffer[..count]);
                self.buffer = buffer;
                return count == PIECE;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(_) => self.is_over = true,
        }
        false
    }

    /// The next one.
    pub fn next(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        self.size -= item.as_ref().map_or(0, Item::len);
        item
    }

    /// The next one, which stays.
    pub fn peek(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Puts one back that was taken, as the next.
    pub fn put_back(&mut self, item: Item) {
        self.size += item.len();
        self.items.push_front(item);
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
        for _ in 0..MOST_READS {
            if !self.read() {
                break;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdb::packet::{LONGEST, frame};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_waits_to_be_served_is_bounded_in_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut input = Input::new(Arc::new(Stream::Unix(ours)));
        let packet = frame(&vec![b'x'; LONGEST]);
        let mut rest: &[u8] = &[];
        // Until neither side gets any further.
        loop {
            if rest.is_empty() {
                rest = &packet;
            }
            let written = theirs.write(rest).unwrap_or(0);
            rest = &rest[written..];
            if !input.read() && written == 0 {
                break;
            }
        }
        assert!((MOST_BYTES..MOST_BYTES + 2 * LONGEST).contains(&input.size), "{}", input.size);
        while input.next().is_some() {}
        assert_eq!(input.size, 0);
    }
}
