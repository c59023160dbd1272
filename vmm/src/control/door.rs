//! The way of those who want more than an answer: they go to whoever has made the socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use vmm_sys_util::eventfd::EventFd;

/// Who, or what, comes through it.
#[derive(Debug)]
pub enum Comer {
    /// Whoever wants a command run.
    Session(UnixStream),
    /// A key of the kernel's (SysRq) that is pressed.
    Key(u8),
}

/// By which they are handed over.
#[derive(Clone, Debug)]
pub struct Door {
    sender: Sender<Comer>,
    wake: Arc<EventFd>,
}

impl Door {
    /// A door, and what comes through it.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<(Door, Receiver<Comer>)> {
        let (sender, comers) = channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok((Door { sender, wake }, comers))
    }

    /// Becomes readable when one has come.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Hands one over. `false` when nobody is there any more.
    pub fn enter(&self, comer: Comer) -> bool {
        self.sender.send(comer).is_ok() && self.wake.write(1).is_ok()
    }
}
