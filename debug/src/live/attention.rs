//! A receiver's word to its senders that it looks for messages by itself just now, so that
//! they need not ring.
//!
//! The receiver says so ([`Attention::begin`]), looks as long as it likes, takes it back
//! ([`Attention::end`]) and then *looks once more*. A sender puts its message in and asks
//! [`Attention::is_there`]; it rings (a signal, an eventfd) if not.
//!
//! # Why no message is missed
//! The sender writes the message and then reads the word; the receiver writes the word and then
//! reads for messages. With a sequentially consistent fence between the two halves on each side,
//! at least one of them sees what the other wrote: either the sender sees that the receiver's
//! attention is gone, and rings, or the receiver's last look finds the message.

use std::sync::atomic::{AtomicBool, Ordering, fence};

/// The word.
#[derive(Debug, Default)]
pub struct Attention(AtomicBool);

impl Attention {
    /// The receiver looks from now on.
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// It looks no more, but for one more time after this.
    pub fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Asked by a sender whose message is in: whether it need not ring.
    pub fn is_there(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    /// A receiver that sleeps only when it was not told otherwise gets every message.
    #[test]
    fn no_message_is_missed() {
        const MESSAGES: u32 = 20_000;
        let attention = Arc::new(Attention::default());
        let (sender, messages) = channel();
        let receiver = std::thread::current();
        let theirs = Arc::clone(&attention);
        let thread = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                sender.send(number).unwrap();
                if !theirs.is_there() {
                    receiver.unpark();
                }
            }
        });
        let mut next = 0;
        while next < MESSAGES {
            attention.begin();
            let mut seen: Vec<u32> = messages.try_iter().take(3).collect();
            attention.end();
            seen.extend(messages.try_iter());
            if seen.is_empty() {
                std::thread::park();
            }
            for number in seen {
                assert_eq!(number, next);
                next += 1;
            }
        }
        thread.join().unwrap();
    }
}
