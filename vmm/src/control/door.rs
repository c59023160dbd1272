//! The way of those who want more than an answer: they go to whoever has made the socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// The most that wait before they are let in, each perhaps with a descriptor.
const MOST_WAITING: usize = 32;

/// Those who have come.
#[derive(Debug)]
pub struct Comers(Receiver<(Comer, Waiting)>);

impl Comers {
    /// The next of them.
    pub fn take(&mut self) -> Option<Comer> {
        // That nobody can come any more is not of interest.
        self.0.try_recv().ok().map(|(comer, _)| comer)
    }
}

/// One of those who wait, as they are counted.
#[derive(Debug)]
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place at the door, for one.
#[derive(Debug)]
pub struct Place<'a> {
    door: &'a Door,
    waiting: Waiting,
}

impl Place<'_> {
    /// Hands one over. `false` when nobody is there any more.
    pub fn enter(self, comer: Comer) -> bool {
        self.door.sender.send((comer, self.waiting)).is_ok() && self.door.wake.write(1).is_ok()
    }
}

/// By which they are handed over.
#[derive(Clone, Debug)]
pub struct Door {
    sender: Sender<(Comer, Waiting)>,
    waiting: Arc<AtomicUsize>,
    wake: Arc<EventFd>,
}

impl Door {
    /// A door, and what comes through it.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<(Door, Comers)> {
        let (sender, comers) = channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok((Door { sender, waiting: Arc::default(), wake }, Comers(comers)))
    }

    /// Becomes readable when one has come.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// A place for one; none when too many wait already.
    pub fn place(&self) -> Option<Place<'_>> {
        let more = |waiting| (waiting < MOST_WAITING).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place { door: self, waiting: Waiting(Arc::clone(&self.waiting)) })
    }

    /// Hands one over. `false` when nobody is there any more, or too many wait already.
    pub fn enter(&self, comer: Comer) -> bool {
        self.place().is_some_and(|place| place.enter(comer))
    }
}
