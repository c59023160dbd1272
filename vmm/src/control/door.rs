//! The way of those who want more than an answer: their connections go to whoever has made the socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use vmm_sys_util::eventfd::EventFd;

/// By which they are handed over.
#[derive(Clone, Debug)]
pub struct Door {
    sender: Sender<UnixStream>,
    wake: Arc<EventFd>,
}

impl Door {
    /// A door, and what comes through it.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<(Door, Receiver<UnixStream>)> {
        let (sender, comers) = channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok((Door { sender, wake }, comers))
    }

    /// Becomes readable when one has come.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Hands one over. `false` when nobody is there any more.
    pub fn enter(&self, comer: UnixStream) -> bool {
        self.sender.send(comer).is_ok() && self.wake.write(1).is_ok()
    }
}
