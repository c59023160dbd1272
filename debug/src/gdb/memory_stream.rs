//! A connection without a socket: two ends in one process, each a bounded queue of bytes to the other.
//!
//! A script's client has one end and the server's part that serves it the other, so everything from a packet's bytes to
//! its answer's runs where there are no sockets: under Miri, and as fast as a fuzzer wants it.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes on the way in one direction: about as many as a Unix socket's default has room for, so that one who does not
/// read is noticed as early.
const ROOM: usize = 200 << 10;

/// One direction.
#[derive(Debug, Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// One of its ends has gone.
    is_closed: bool,
}

/// Readable while there is something on its way, or nothing will come any more.
#[derive(Debug)]
struct Pipe {
    way: Mutex<Way>,
    wake: EventFd,
}

impl Pipe {
    fn new() -> io::Result<Arc<Pipe>> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Arc::new(Pipe { way: Mutex::default(), wake: EventFd::from_flags(flags)? }))
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the descriptor readable. It fails when that has been done 2^64 times, and then it is.
    fn ring(&self) {
        self.wake.write(1).ok();
    }

    fn close(&self) {
        self.way().is_closed = true;
        self.ring();
    }
}

/// One end. It does not block, and closes the connection when it goes.
#[derive(Debug)]
pub(super) struct MemoryStream {
    input: Arc<Pipe>,
    output: Arc<Pipe>,
}

impl MemoryStream {
    /// Both ends of a connection.
    ///
    /// # Errors
    /// When the system gives no more descriptors: each direction has an `eventfd(2)`.
    pub fn pair() -> io::Result<(MemoryStream, MemoryStream)> {
        let (there, back) = (Pipe::new()?, Pipe::new()?);
        let ours = MemoryStream { input: Arc::clone(&there), output: Arc::clone(&back) };
        Ok((ours, MemoryStream { input: back, output: there }))
    }

    /// Takes what has come; 0 at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing, as of a socket.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut way = self.input.way();
        if way.bytes.is_empty() && !way.is_closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut count = 0;
        // Each time up to where the queue goes round, in one piece.
        while count < buffer.len() && !way.bytes.is_empty() {
            count += io::Read::read(&mut way.bytes, &mut buffer[count..])?;
        }
        if way.bytes.is_empty() && !way.is_closed {
            // It is unreadable already where nothing was read.
            self.input.wake.read().ok();
        }
        Ok(count)
    }

    /// Sends as much as there is room for.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] without room, [`io::ErrorKind::BrokenPipe`] when the other end has gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut way = self.output.way();
        if way.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(ROOM - way.bytes.len());
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        way.bytes.extend(&bytes[..count]);
        self.output.ring();
        Ok(count)
    }

    /// Whether there is something to read, the end among it.
    pub fn is_readable(&self) -> bool {
        let way = self.input.way();
        way.is_closed || !way.bytes.is_empty()
    }

    /// Whether the other end has gone; what it has sent may be unread.
    pub fn has_hung_up(&self) -> bool {
        self.input.way().is_closed
    }
}

impl AsFd for MemoryStream {
    /// Becomes readable when [`Self::read`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.input.wake.as_fd()
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.input.close();
        self.output.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn what_is_sent_arrives_as_far_as_there_is_room() {
        let (ours, theirs) = MemoryStream::pair().unwrap();
        let mut buffer = [0; 4];
        assert_eq!(kind(ours.read(&mut buffer)), ErrorKind::WouldBlock);
        assert_eq!(theirs.write(b"abcdef").unwrap(), 6);
        assert!(ours.is_readable() && !theirs.is_readable());
        assert_eq!((ours.read(&mut buffer).unwrap(), &buffer), (4, b"abcd"));
        assert_eq!((ours.read(&mut buffer).unwrap(), &buffer[..2]), (2, &b"ef"[..]));
        assert!(!ours.is_readable());
        assert_eq!(theirs.write(&vec![b'x'; ROOM + 1]).unwrap(), ROOM);
        assert_eq!(kind(theirs.write(b"y")), ErrorKind::WouldBlock);
        ours.read(&mut buffer).unwrap();
        assert_eq!(theirs.write(b"12345").unwrap(), 4);
    }

    #[test]
    fn an_end_that_goes_ends_both_ways() {
        let (ours, theirs) = MemoryStream::pair().unwrap();
        theirs.write(b"last").unwrap();
        drop(theirs);
        let mut buffer = [0; 8];
        assert_eq!(ours.read(&mut buffer).unwrap(), 4);
        assert_eq!(ours.read(&mut buffer).unwrap(), 0);
        assert_eq!(kind(ours.write(b"x")), ErrorKind::BrokenPipe);
    }

    /// Whoever polls its descriptor sees the same.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no poll(2)")]
    fn its_descriptor_tells() {
        use crate::gdb::readiness::is_readable;
        let (ours, theirs) = MemoryStream::pair().unwrap();
        assert!(!is_readable(ours.as_fd()));
        theirs.write(b"ab").unwrap();
        assert!(is_readable(ours.as_fd()));
        ours.read(&mut [0]).unwrap();
        assert!(is_readable(ours.as_fd()));
        ours.read(&mut [0]).unwrap();
        assert!(!is_readable(ours.as_fd()));
        drop(theirs);
        assert!(is_readable(ours.as_fd()));
    }
}
