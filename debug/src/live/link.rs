//! What the threads of one guest's vCPUs share with whoever debugs it.

use super::attention::Attention;
use super::gate::{Gate, Kick};
use crate::engine::Engine;
use crate::machine::{Event, Memory};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Becomes readable when there is something to look at. Its clones are the same.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    fd: EventFd,
    /// It has been rung. Set behind the descriptor: one that is readable has this set, or has it in a moment, and so is
    /// never readable for good. (It may be set where another has taken what it stands for.)
    is_rung: AtomicBool,
}

impl Wake {
    /// One that nobody has rung.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<Wake> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Wake(Arc::new(Bell { fd: EventFd::from_flags(flags)?, is_rung: AtomicBool::new(false) })))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // It fails only when it has been rung 2^64 times, and then it is readable.
        self.0.fd.write(1).ok();
        self.0.is_rung.store(true, Ordering::Release);
    }

    /// Whether it is readable.
    pub fn is_rung(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// A descriptor of its own that is the same.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }

    /// Makes it unreadable; whether somebody has rung it. No system call where nobody has.
    pub fn take(&self) -> bool {
        self.0.is_rung.swap(false, Ordering::Acquire) && self.0.fd.read().is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// What the threads of a guest's vCPUs share with whoever debugs it.
pub struct Link {
    /// Judges exits.
    pub engine: Arc<Engine>,
    /// Keeps vCPUs out of the guest while one steps exclusively.
    pub gate: Gate,
    /// The guest's RAM.
    pub memory: Box<dyn Memory>,
    events: Mutex<Sender<Event>>,
    wake: Wake,
    release: Wake,
    attention: Attention,
    /// The debugger has left.
    is_left: AtomicBool,
    /// It is about to.
    is_leaving: AtomicBool,
    /// vCPUs' threads look for what comes at once, before they sleep.
    pub looks: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Link { engine, gate, .. } = self;
        formatter.debug_struct("Link").field("engine", engine).field("gate", gate).finish_non_exhaustive()
    }
}

impl Link {
    /// For a guest with this many vCPUs; `wake` is rung when there is an event, `release` when the debugger that is
    /// attached is to let go. And where the events arrive.
    pub fn new(
        engine: Arc<Engine>,
        vcpus: u32,
        memory: Box<dyn Memory>,
        kick: Kick,
        (wake, release): (Wake, Wake),
    ) -> (Link, Receiver<Event>) {
        let (sender, events) = channel();
        let gate = Gate::new(vcpus, kick);
        let (is_left, is_leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        let events_in = Mutex::new(sender);
        let link = Link {
            engine,
            gate,
            memory,
            events: events_in,
            wake,
            release,
            attention: Attention::default(),
            is_left,
            is_leaving,
            looks: true,
        };
        (link, events)
    }

    /// Whether a debugger is attached.
    pub fn is_attached(&self) -> bool {
        self.engine.requests().is_attached
    }

    /// The debugger has no say any more, and nothing of it is in the guest's memory. Whoever waits for its events is
    /// woken.
    pub(super) fn leave(&self) {
        let mut requests = self.engine.requests();
        requests.table.clear(&*self.memory);
        requests.is_attached = false;
        self.is_left.store(true, Ordering::Release);
        drop(requests);
        self.wake.ring();
    }

    /// It is to leave, whoever waits for its events.
    pub fn begin_leaving(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    /// Whether it leaves, or has left.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire) || self.is_left()
    }

    /// Whether it has left.
    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// Tells whoever debugs the guest.
    pub fn tell(&self, event: Event) {
        // The receiver lives as long as the machine; at worst nobody reads it.
        self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event).ok();
        if !self.attention.is_there() {
            self.wake.ring();
        }
    }

    /// What is rung when there is something to look at.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// What is rung when the debugger that is attached is to let go, so that another one may come.
    pub fn release(&self) -> &Wake {
        &self.release
    }

    /// The word of whoever looks for events without waiting for [`Self::wake`].
    pub fn attention(&self) -> &Attention {
        &self.attention
    }
}
