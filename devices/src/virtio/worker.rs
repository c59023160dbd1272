//! A device's own thread: it serves queues when it is rung, until it is told to end, and not while the guest is held.
//!
//! What it asks of the host (a file system that is frozen, a server that is gone) may take for ever, and it cannot be
//! broken off. So a thread has its queues to itself for a turn, with nothing locked, and whoever wants something of it
//! waits for the turn's end until a moment, and hears whether it came to that ([`Worker::wait`], [`Worker::close`]).
//! What was wanted stays so: the thread ends, or lets a queue go, as soon as its turn is over. One that nobody has
//! waited for to the end is left to itself, with all that it touches.

use super::Interrupts;
use super::pace::Pace;
use super::queue::{Broken, Queues};
use crate::{guest_log, tell, threads};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
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

/// How long a worker that is dropped is waited for, from when it was told to end.
pub const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// A queue's number, and what it has come to.
pub type Position = (usize, QueueState);

/// What a thread and whoever wants something of it share.
#[derive(Debug)]
struct Table {
    /// `None` while the thread has them for a turn.
    queues: Option<Queues>,
    /// Queues that the thread lets go when its turn is over.
    closing: Vec<usize>,
    /// What those that it has let go had come to.
    closed: Vec<Position>,
    /// The thread touches nothing any more.
    has_ended: bool,
    /// How many wait for news: a wake-up of nobody is a system call all the same.
    waiting: usize,
    /// What the thread waits with.
    epoll: Arc<Epoll>,
}

impl Table {
    fn let_go(&mut self) {
        let Some(queues) = &mut self.queues else { return };
        for number in std::mem::take(&mut self.closing) {
            if let Some(queue) = queues.get(number) {
                self.closed.push((number, queue.state()));
                // The device has its bell still: rung, with nobody to read it, it would keep the thread awake.
                let (bell, event) = (queue.bell.as_raw_fd(), EpollEvent::default());
                if let Err(error) = self.epoll.ctl(ControlOperation::Delete, bell, event) {
                    tell!(Error, "a virtio device: the bell of a queue stays: {error}");
                }
            }
            queues.put(number, None);
        }
    }

    fn is_free(&self) -> bool {
        self.queues.is_some() || self.has_ended
    }
}

#[derive(Debug)]
struct Shared(Mutex<Table>, Condvar);

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the table is as wanted, or for as long as that; then it is as it is.
    fn wait(&self, until: Instant, is_wanted: impl Fn(&Table) -> bool) -> MutexGuard<'_, Table> {
        let mut table = self.table();
        while !is_wanted(&table) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            table.waiting += 1;
            (table, _) = self.1.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner);
            table.waiting -= 1;
        }
        table
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table();
        change(&mut table);
        let has_waiting = table.waiting > 0;
        drop(table);
        if has_waiting {
            self.1.notify_all();
        }
    }
}

/// Says that a thread has ended, however it has.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.change(|table| table.has_ended = true);
    }
}

/// A thread that serves queues.
pub struct Worker {
    name: &'static str,
    /// Of the thread as well, which is to find it when nobody else has it any more.
    end: Arc<EventFd>,
    is_over: Arc<AtomicBool>,
    /// When it was told to end.
    told: OnceLock<Instant>,
    /// Of the queues that it was given.
    numbers: Vec<usize>,
    pace: Pace,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// What the thread waits for beside queues, which have their numbers.
const END: u64 = u64::MAX;
const SOURCES: u64 = 1 << 32;

/// What the thread works with.
struct Work {
    name: &'static str,
    server: Box<dyn Serve>,
    shared: Arc<Shared>,
    pace: Pace,
    _end: Arc<EventFd>,
    /// How long the guest had been held, all in all, when the server was told of it last.
    rested: Duration,
    is_over: Arc<AtomicBool>,
    interrupts: Arc<dyn Interrupts>,
    epoll: Arc<Epoll>,
    /// How many queues and sources there are.
    queues: usize,
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
        let (end, epoll) = (Arc::new(EventFd::new(EFD_NONBLOCK)?), Arc::new(Epoll::new()?));
        let add = |fd, events, what| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, what));
        add(end.as_raw_fd(), EventSet::IN, END)?;
        let numbers = queues.iter().map(|(number, _)| number).collect();
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
        let (count, is_over) = (queues.len(), Arc::new(AtomicBool::new(false)));
        let (queues, closing, closed) = (Some(queues), Vec::new(), Vec::new());
        let table =
            Table { queues, closing, closed, has_ended: false, waiting: 0, epoll: Arc::clone(&epoll) };
        let shared = Arc::new(Shared(Mutex::new(table), Condvar::new()));
        let work = Work {
            name,
            server,
            shared: Arc::clone(&shared),
            pace: pace.clone(),
            _end: Arc::clone(&end),
            rested: pace.rested(),
            is_over: Arc::clone(&is_over),
            interrupts,
            epoll,
            queues: count,
            sources: sources.len(),
            rung,
        };
        let ends = Ends(Arc::clone(&shared));
        let thread = threads::start(name, Builder::new().name(name.into()), move || {
            let _ends = ends;
            work.run();
        })?;
        Ok(Worker { name, end, is_over, told: OnceLock::new(), numbers, pace, shared, thread: Some(thread) })
    }

    /// Tells it to end, whether the guest is held or not, and waits for nothing.
    pub fn end(&self) {
        self.told.get_or_init(Instant::now);
        self.pace.end(&self.is_over);
        // Its counter has room for this.
        self.end.write(1).ok();
    }

    /// Waits for its end, until a moment at most; whether it has ended: nobody touches the guest's RAM for these queues
    /// any more, and nobody what serves them.
    pub fn wait(&mut self, until: Instant) -> bool {
        let has_ended = self.shared.wait(until, |table| table.has_ended).has_ended;
        if has_ended
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tell!(Error, "{}: its thread has panicked", self.name);
        }
        has_ended
    }

    /// Has it serve a queue no more, if it does, and waits for that until a moment at most; after that it does so as
    /// soon as its turn is over ([`Self::is_closing`]).
    pub fn close(&self, number: usize, until: Instant) {
        if !self.numbers.contains(&number) {
            return;
        }
        let mut table = self.shared.table();
        table.closing.push(number);
        table.let_go();
        drop(table);
        // Not for it to be between turns: one may follow the other at once.
        drop(self.shared.wait(until, |table| !table.closing.contains(&number) || table.has_ended));
    }

    /// Whether it still serves a queue that is to be closed.
    pub fn is_closing(&self, number: usize) -> bool {
        let table = self.shared.table();
        table.closing.contains(&number) && !table.has_ended
    }

    /// What queues had come to that it has let go since this was asked last, by their numbers.
    pub fn take_closed(&self) -> Vec<Position> {
        std::mem::take(&mut self.shared.table().closed)
    }

    /// What its queues have come to, by their numbers; waits until a moment at most, and `None`: it is in a turn still.
    pub fn positions(&self, until: Instant) -> Option<Vec<Position>> {
        let table = self.shared.wait(until, Table::is_free);
        let queues = table.queues.iter().flat_map(Queues::iter);
        table.is_free().then(|| queues.map(|(number, queue)| (number, queue.state())).collect())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        // Of several that were told at once, all together are waited for so long.
        let told = self.told.get_or_init(Instant::now);
        if !self.wait(*told + DROP_PATIENCE) {
            let name = self.name;
            tell!(Warn, "{name}: the host does not answer; the thread that has asked it is left behind");
            // This thread need not be one that serves the guest.
            guest_log::deliver();
        }
    }
}

/// Something that is done once, on a thread that is left to itself: the host may keep it for as long as it likes.
#[derive(Debug)]
pub struct Errand(Receiver<()>);

/// How an errand stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is done.
    Done,
    /// Its thread is at it.
    GoesOn,
    /// Its thread has ended before that.
    Failed,
}

impl Errand {
    /// Begins it.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(name: &'static str, work: threads::Work) -> io::Result<Errand> {
        let (sender, end) = channel();
        threads::start(name, Builder::new().name(name.into()), move || {
            work();
            // Whoever has begun it may have gone on without it.
            sender.send(()).ok();
            guest_log::deliver();
        })?;
        Ok(Errand(end))
    }

    /// Waits for it, until a moment at most; how it stands then.
    pub fn wait(&self, until: Instant) -> Standing {
        match self.0.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => Standing::Done,
            Err(RecvTimeoutError::Timeout) => Standing::GoesOn,
            Err(RecvTimeoutError::Disconnected) => Standing::Failed,
        }
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
        let mut table = self.shared.table();
        for event in &events[..count] {
            let at = match event.data() {
                END => return Ok(false),
                source @ SOURCES.. => self.queues + usize::try_from(source - SOURCES).unwrap_or(usize::MAX),
                queue => {
                    let number = usize::try_from(queue).unwrap_or(usize::MAX);
                    if let Some(queue) = table.queues.as_mut().and_then(|queues| queues.get(number)) {
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
            // Nobody else takes them.
            let Some(mut queues) = self.shared.table().queues.take() else { return Ok(()) };
            let then = self.server.serve(why, &mut queues);
            self.shared.change(|table| {
                table.queues = Some(queues);
                table.let_go();
            });
            self.rung[at] = then? == Then::GoesOn;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
