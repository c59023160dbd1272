//! The way of those who want more than an answer: they go to whoever has made the socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use vmm_sys_util::eventfd::EventFd;

/// Who, or what, comes through it.
#[derive(Debug)]
pub enum Comer {
    /// Whoever wants a command run.
    Session(UnixStream),
    /// A key of the kernel's (SysRq) that is pressed.
    Key(u8),
}

/// The most that wait before they are let in, each perhaps with a descriptor.
const MOST_WAITING: usize = 32;

/// Those who have come.
#[derive(Debug)]
pub struct Comers(Receiver<Comer>);

impl Comers {
    /// The next of them.
    pub fn take(&mut self) -> Option<Comer> {
        // That nobody can come any more is not of interest.
        self.0.try_recv().ok()
    }
}

/// By which they are handed over.
#[derive(Clone, Debug)]
pub struct Door {
    sender: SyncSender<Comer>,
    wake: Arc<EventFd>,
}

impl Door {
    /// A door, and what comes through it.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<(Door, Comers)> {
        let (sender, comers) = sync_channel(MOST_WAITING);
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok((Door { sender, wake }, Comers(comers)))
    }

    /// Becomes readable when one has come.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Hands one over. `false` when nobody is there any more, or too many wait already.
    pub fn enter(&self, comer: Comer) -> bool {
        self.sender.try_send(comer).is_ok() && self.wake.write(1).is_ok()
    }
}
