//! A device's own thread: it serves queues when it is rung, until it is told to end.

use super::queue::{ActiveQueue, Broken};
use crate::{guest_log, tell};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What comes after a look at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing, until it is rung.
    Waits,
    /// Another look: there is more in it.
    GoesOn,
}

/// What serves a device's queues.
pub trait Serve: Send + 'static {
    /// Does a part of what is in a queue: so much that whoever waits for the device's end, or for another queue, need
    /// not wait for long, however fast the guest fills it. `queues` are all of the device's that the guest has set up,
    /// by their numbers.
    ///
    /// # Errors
    /// [`Broken`], which is the end until the guest resets the device.
    fn serve(&mut self, rung: usize, queues: &mut [Option<ActiveQueue>]) -> Result<Then, Broken>;
}

/// A thread that serves a device.
pub struct Worker<S> {
    end: EventFd,
    thread: JoinHandle<S>,
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Worker").field(&self.thread.thread().name()).finish()
    }
}

/// What has no queue's number.
const END: u64 = u64::MAX;

impl<S: Serve> Worker<S> {
    /// Starts one for `queues`. Each is looked at once at the start: a driver may ring before all is ready.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(name: &'static str, server: S, queues: Vec<Option<ActiveQueue>>) -> io::Result<Worker<S>> {
        let (end, epoll) = (EventFd::new(EFD_NONBLOCK)?, Epoll::new()?);
        let add = |fd, what| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, what));
        add(end.as_raw_fd(), END)?;
        for (number, queue) in (0..).zip(&queues) {
            if let Some(queue) = queue {
                add(queue.bell.as_raw_fd(), number)?;
            }
        }
        let thread =
            thread::Builder::new().name(name.into()).spawn(move || run(name, server, queues, &epoll))?;
        Ok(Worker { end, thread })
    }

    /// Ends it, and waits for that; what served, unless that panicked.
    pub fn stop(self) -> Option<S> {
        // Its counter has room for this.
        self.end.write(1).ok();
        self.thread.join().ok()
    }
}

fn run<S: Serve>(name: &str, mut server: S, mut queues: Vec<Option<ActiveQueue>>, epoll: &Epoll) -> S {
    let interrupts = queues.iter().flatten().next().map(|queue| Arc::clone(queue.interrupts()));
    let mut rung: Vec<bool> = queues.iter().map(Option::is_some).collect();
    let mut events = [EpollEvent::default(); 8];
    loop {
        let patience = if rung.contains(&true) { 0 } else { -1 };
        let count = match epoll.wait(patience, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                tell!(Error, "{name}: cannot wait: {error}");
                break;
            }
        };
        for event in &events[..count] {
            if event.data() == END {
                return server;
            }
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            if let (Some(is_rung), Some(Some(queue))) = (rung.get_mut(number), queues.get(number)) {
                *is_rung = true;
                // Before the look at the queue, which finds what this one would be missed for.
                queue.bell.read().ok();
            }
        }
        for (number, is_rung) in rung.iter_mut().enumerate().filter(|(_, is_rung)| **is_rung) {
            match server.serve(number, &mut queues) {
                Ok(then) => *is_rung = then == Then::GoesOn,
                Err(broken) => {
                    tell!(Warn, "{name}: {broken}; the device waits for its reset");
                    if let Some(interrupts) = &interrupts {
                        interrupts.needs_reset();
                    }
                    guest_log::deliver();
                    return server;
                }
            }
        }
        guest_log::deliver();
    }
    guest_log::deliver();
    server
}
