//! The host's end of the port that is a terminal.
//!
//! What is typed waits here until the guest has room for it. What the guest prints waits in its queue while whoever takes
//! it has no room.

use super::TerminalSize;
use crate::tell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Takes what a guest prints, without waiting: how many of the bytes there was room for. Whoever had none for all of them
/// calls [`Terminal::ring`] when there is some.
pub type Print = Box<dyn Fn(&[u8]) -> usize + Send + Sync>;

/// Called when the guest has taken all input that was waiting.
pub type Drained = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The host's end.
pub struct Terminal {
    print: Print,
    drained: Drained,
    waiting: Mutex<Waiting>,
    /// There is news for the device: input, room for output, another size.
    news: EventFd,
}

#[derive(Default)]
struct Waiting {
    input: VecDeque<u8>,
    size: TerminalSize,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

impl Terminal {
    /// One of unknown size, 0 by 0.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(print: Print, drained: Drained) -> io::Result<Terminal> {
        let news = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Terminal { print, drained, waiting: Mutex::default(), news })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the guest input; how many bytes wait for it to take them. As many are kept as are given: whoever gives them
    /// stops at some amount.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.waiting();
        waiting.input.extend(bytes);
        let count = waiting.input.len();
        drop(waiting);
        if !bytes.is_empty() {
            self.ring();
        }
        count
    }

    /// Bytes of input that wait for the guest.
    pub fn pending(&self) -> usize {
        self.waiting().input.len()
    }

    /// Input that waits for the guest, so many bytes of it at most, in order.
    pub(super) fn input(&self, most: usize) -> Vec<u8> {
        self.waiting().input.iter().take(most).copied().collect()
    }

    /// This waits for the guest, instead of what did.
    pub(super) fn set_input(&self, bytes: &[u8]) {
        let before = std::mem::replace(&mut self.waiting().input, bytes.to_vec().into());
        if !before.is_empty() && bytes.is_empty() {
            self.tell_drained();
        }
        self.ring();
    }

    fn tell_drained(&self) {
        if let Err(error) = (self.drained)() {
            tell!(Warn, "console input may be stuck: {error}");
        }
    }

    /// It has this size from now on.
    pub fn set_size(&self, size: TerminalSize) {
        self.waiting().size = size;
        self.ring();
    }

    /// Its size.
    pub fn size(&self) -> TerminalSize {
        self.waiting().size
    }

    /// Has the device look again.
    pub fn ring(&self) {
        // A counter that is full is news already.
        if let Err(error) = self.news.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tell!(Warn, "the console may be stuck: {error}");
        }
    }

    /// What becomes readable when there is news.
    pub fn source(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    /// Takes the news.
    pub(super) fn hear(&self) {
        // Where there is none, it has been heard.
        self.news.read().ok();
    }

    /// What the guest prints; how much of it is taken.
    pub(super) fn print(&self, bytes: &[u8]) -> usize {
        (self.print)(bytes)
    }

    /// The next bytes of input, which are gone from here then; how many.
    pub(super) fn read(&self, bytes: &mut [u8]) -> usize {
        let mut waiting = self.waiting();
        let count = bytes.len().min(waiting.input.len());
        for (byte, typed) in bytes.iter_mut().zip(waiting.input.drain(..count)) {
            *byte = typed;
        }
        let is_drained = count > 0 && waiting.input.is_empty();
        drop(waiting);
        if is_drained {
            self.tell_drained();
        }
        count
    }
}
