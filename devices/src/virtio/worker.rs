//! A device's own thread: it serves queues when it is rung, until it is told to end, and not while the guest is held.

use super::Interrupts;
use super::pace::Pace;
use super::queue::{Broken, Queues};
use crate::{guest_log, tell, threads};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use virtio_queue::QueueState;
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

/// Why a server is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The guest has put something into this queue.
    Queue(usize),
    /// Something has come from outside, by the server's source of this number.
    Source(usize),
}

/// What serves queues, on a thread.
pub trait Serve: Send {
    /// Descriptors by which something comes from outside: it is called when there is news of one (an edge: what is left
    /// there it will not hear of again).
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The guest has been held for so long since this was called last, or since the start.
    fn rested(&mut self, _time: Duration) {}

    /// Does a part of what there is to do: so much that whoever waits for the device's end, for the guest's being held,
    /// or for another queue, need not wait for long, however fast the guest fills it.
    ///
    /// # Errors
    /// [`Broken`], which is the end until the guest resets the device.
    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken>;
}

/// A thread that serves queues.
pub struct Worker {
    end: EventFd,
    is_over: Arc<AtomicBool>,
    pace: Pace,
    queues: Arc<Mutex<Queues>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// What the thread waits for beside queues, which have their numbers.
const END: u64 = u64::MAX;
const SOURCES: u64 = 1 << 32;

/// What the thread works with.
struct Work {
    name: &'static str,
    server: Box<dyn Serve>,
    queues: Arc<Mutex<Queues>>,
    pace: Pace,
    /// How long the guest had been held, all in all, when the server was told of it last.
    rested: Duration,
    is_over: Arc<AtomicBool>,
    interrupts: Arc<dyn Interrupts>,
    epoll: Epoll,
    sources: usize,
    /// Queues by their numbers, and sources behind them, that have to be looked at.
    rung: Vec<bool>,
}

impl Worker {
    /// Starts one for `queues`. Each is looked at once at the start: a driver may ring before all is ready.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(
        name: &'static str,
        server: Box<dyn Serve>,
        queues: Queues,
        (pace, interrupts): (Pace, Arc<dyn Interrupts>),
    ) -> io::Result<Worker> {
        let (end, epoll) = (EventFd::new(EFD_NONBLOCK)?, Epoll::new()?);
        let add = |fd, events, what| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, what));
        add(end.as_raw_fd(), EventSet::IN, END)?;
        let mut rung = vec![false; queues.len()];
        for (number, queue) in queues.iter() {
            add(queue.bell.as_raw_fd(), EventSet::IN, number as u64)?;
            rung[number] = true;
        }
        let sources = server.sources();
        for (number, source) in (0..).zip(&sources) {
            let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            add(*source, events, SOURCES + number)?;
            rung.push(true);
        }
        let (queues, is_over) = (Arc::new(Mutex::new(queues)), Arc::new(AtomicBool::new(false)));
        let work = Work {
            name,
            server,
            queues: Arc::clone(&queues),
            pace: pace.clone(),
            rested: pace.rested(),
            is_over: Arc::clone(&is_over),
            interrupts,
            epoll,
            sources: sources.len(),
            rung,
        };
        let thread = threads::start(name, Builder::new().name(name.into()), move || work.run())?;
        Ok(Worker { end, is_over, pace, queues, thread: Some(thread) })
    }

    /// Ends it, and waits for that, whether the guest is held or not: nobody touches the guest's RAM for these queues any more.
    pub fn end(&mut self) {
        self.pace.end(&self.is_over);
        // Its counter has room for this.
        self.end.write(1).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tell!(Error, "a device's thread has panicked");
        }
    }

    /// Has it serve a queue no more; what that has come to, if it has served it.
    pub fn close(&self, number: usize) -> Option<QueueState> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let state = queues.get(number).map(|queue| queue.state());
        queues.put(number, None);
        state
    }

    /// What its queues have come to, by their numbers.
    pub fn positions(&self) -> Vec<(usize, QueueState)> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.iter().map(|(number, queue)| (number, queue.state())).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

impl Work {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tell!(Error, "{}: cannot wait: {error}", self.name);
                    self.interrupts.needs_reset();
                    break;
                }
            }
            if let Err(broken) = self.look() {
                tell!(Warn, "{}: {broken}; the device waits for its reset", self.name);
                self.interrupts.needs_reset();
                break;
            }
            guest_log::deliver();
        }
        guest_log::deliver();
    }

    /// Waits for something to do, unless there is; whether to go on.
    fn wait(&mut self) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); 8];
        let patience = if self.rung.contains(&true) { 0 } else { -1 };
        let count = match self.epoll.wait(patience, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for event in &events[..count] {
            let at = match event.data() {
                END => return Ok(false),
                source @ SOURCES.. => queues.len() + usize::try_from(source - SOURCES).unwrap_or(usize::MAX),
                queue => {
                    let number = usize::try_from(queue).unwrap_or(usize::MAX);
                    if let Some(queue) = queues.get(number) {
                        // Before the look at the queue, which finds what this one would be missed for.
                        queue.bell.read().ok();
                    }
                    number
                }
            };
            if let Some(is_rung) = self.rung.get_mut(at) {
                *is_rung = true;
            }
        }
        Ok(true)
    }

    /// Looks at all that has been rung, each with leave of its own.
    fn look(&mut self) -> Result<(), Broken> {
        let first_source = self.rung.len() - self.sources;
        for at in 0..self.rung.len() {
            if !self.rung[at] {
                continue;
            }
            let why = match at.checked_sub(first_source) {
                Some(source) => Rung::Source(source),
                None => Rung::Queue(at),
            };
            let Some(leave) = self.pace.enter(&self.is_over) else { return Ok(()) };
            let before = std::mem::replace(&mut self.rested, leave.rested);
            if before < leave.rested {
                self.server.rested(leave.rested - before);
            }
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            self.rung[at] = self.server.serve(why, &mut queues)? == Then::GoesOn;
        }
        Ok(())
    }
}
