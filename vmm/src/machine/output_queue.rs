//! The guest's console output on its way from the serial port, and from a virtio console, to wherever it goes.
//!
//! Whoever reads the console may be slow, or not read at all. Then the vCPU that has printed waits, and
//! nobody else: its thread puts the output here with the port locked, and waits for it to go out
//! afterwards, with nothing locked ([`OutputQueue::settle`]). So the port still takes input, and other
//! vCPUs still read its registers.
//!
//! A virtio console's own thread never waits: what there is no room for here it leaves in the guest
//! ([`OutputQueue::offer`]), and a thread for that alone writes the rest ([`Pump`]).

use debug::threads;
use devices::tell;
use devices::virtio::console::{Drained, Terminal};
use kvm::kick;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

thread_local! {
    static DEBT: Cell<Debt> = const { Cell::new(Debt::None) };
}

/// What a thread has put here and has not seen go out.
/// How far all has to have gone for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debt {
    None,
    /// It has not waited for it yet.
    New(u64),
    /// It has, and was kicked.
    Old(u64),
}

/// How often a thread that waits looks whether it was kicked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a [`Pump`] may take for the last of the output before it is kicked, and then how often it is.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// Bytes that wait here, from which on nothing more of a virtio console is taken.
const MOST_OFFERED: usize = 64 << 10;

/// Output that is to go out, in order.
pub struct OutputQueue {
    state: Mutex<Waiting>,
    /// The output is back, or there is something for it.
    is_back: Condvar,
    /// What is rung when there is room again, if that is not the guest's serial port alone.
    terminal: OnceLock<Weak<Terminal>>,
}

struct Waiting {
    /// The terminal has been refused something.
    wants_room: bool,
    /// The pump is to end.
    is_over: bool,
    bytes: VecDeque<u8>,
    /// Bytes that have been put here, from the first on...
    put: u64,
    /// ...and those that are written, or lost.
    gone: u64,
    /// `None` while a thread writes to it.
    output: Option<Box<dyn Write + Send>>,
    /// A failure to write has been told.
    told_failure: bool,
}

impl std::fmt::Debug for OutputQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputQueue").field("waiting", &self.lock().bytes.len()).finish_non_exhaustive()
    }
}

impl OutputQueue {
    /// A queue to `output`, which may wait, and answers `Interrupted` when its thread is kicked meanwhile.
    pub fn new(output: Box<dyn Write + Send>) -> OutputQueue {
        let state = Waiting {
            wants_room: false,
            is_over: false,
            bytes: VecDeque::new(),
            put: 0,
            gone: 0,
            output: Some(output),
            told_failure: false,
        };
        OutputQueue { state: Mutex::new(state), is_back: Condvar::new(), terminal: OnceLock::new() }
    }

    /// A virtio console's terminal, whose output comes here. Somebody has to [pump](Pump) it.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn terminal(self: &Arc<OutputQueue>, drained: Drained) -> io::Result<Arc<Terminal>> {
        let queue = Arc::clone(self);
        let terminal = Arc::new(Terminal::new(Box::new(move |bytes| queue.offer(bytes)), drained)?);
        // There is one; a second one would not be told of room.
        self.terminal.set(Arc::downgrade(&terminal)).map_err(|_| io::ErrorKind::AlreadyExists)?;
        Ok(terminal)
    }

    /// Puts as much here as there is room for, and waits for nothing; how much. The terminal is rung when there is room
    /// for the rest.
    fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        if state.is_over {
            return 0;
        }
        let count = bytes.len().min(MOST_OFFERED.saturating_sub(state.bytes.len()));
        state.put(&bytes[..count]);
        state.wants_room |= count < bytes.len();
        self.is_back.notify_all();
        count
    }

    /// Waits, at the guest's end, until all that is here by now is written, or the thread is kicked; whether it is.
    pub fn flush(&self) -> bool {
        let put = self.lock().put;
        self.wait(put)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what this thread has put here since it waited last is written, or the thread is kicked.
    pub fn settle_new(&self) {
        if matches!(DEBT.get(), Debt::New(_)) {
            self.settle();
        }
    }

    /// Waits until all that this thread has put here is written; `false` when the thread was kicked before.
    /// Then it must come back before its guest runs on: so no vCPU has more here than it can print in one
    /// exit.
    pub fn settle(&self) -> bool {
        let (Debt::New(mark) | Debt::Old(mark)) = DEBT.get() else { return true };
        let is_settled = self.wait(mark);
        DEBT.set(if is_settled { Debt::None } else { Debt::Old(mark) });
        is_settled
    }

    /// Writes what is here, or waits for whoever does, until all has gone that was put before `mark`; `false` when the
    /// thread was kicked before. What others put here meanwhile is no business of it.
    fn wait(&self, mark: u64) -> bool {
        let mut state = self.lock();
        while state.gone < mark {
            let Some(mut output) = state.output.take() else {
                if kick::is_pending() {
                    return false;
                }
                let waited = self.is_back.wait_timeout(state, LOOK_AGAIN);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            let mut bytes = std::mem::take(&mut state.bytes);
            let count = bytes.len();
            drop(state);
            let written = write(&mut *output, &mut bytes);
            state = self.lock();
            state.output = Some(output);
            match &written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    state.gone += (count - bytes.len()) as u64;
                    bytes.append(&mut state.bytes);
                    state.bytes = bytes;
                }
                _ => state.gone += count as u64,
            }
            self.is_back.notify_all();
            state = self.tell_of_room(state);
            match written {
                Ok(()) if !kick::is_pending() => {}
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => break,
                Err(error) => {
                    if !std::mem::replace(&mut state.told_failure, true) {
                        tell!(Warn, "the guest's console output is lost: {error}");
                    }
                }
            }
        }
        state.gone >= mark
    }

    /// Rings the terminal, if it has been refused something and there is room now.
    fn tell_of_room<'a>(&'a self, mut state: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        if state.bytes.len() >= MOST_OFFERED || !std::mem::take(&mut state.wants_room) {
            return state;
        }
        drop(state);
        if let Some(terminal) = self.terminal.get().and_then(Weak::upgrade) {
            terminal.ring();
        }
        self.lock()
    }
}

impl Waiting {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.put += bytes.len() as u64;
    }
}

/// A thread that writes what a virtio console puts into a queue, until it is dropped.
#[derive(Debug)]
pub struct Pump {
    queue: Arc<OutputQueue>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread is at its end.
    ended: Mutex<Receiver<()>>,
}

impl Pump {
    /// Starts it; kicks have a handler by then.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(queue: &Arc<OutputQueue>) -> io::Result<Pump> {
        let (alive, ended) = channel::<()>();
        let its = Arc::clone(queue);
        let thread = threads::start("console", Builder::new().name("console".into()), move || {
            kick::unblock();
            its.pump();
            drop(alive);
        })?;
        Ok(Pump { queue: Arc::clone(queue), thread: Some(thread), ended: Mutex::new(ended) })
    }
}

impl Drop for Pump {
    /// What waits still is written, unless whoever reads it is slow.
    fn drop(&mut self) {
        self.queue.lock().is_over = true;
        self.queue.is_back.notify_all();
        let Some(thread) = self.thread.take() else { return };
        let kicked = kick::Thread::of(&thread);
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        while ended.recv_timeout(KICK_AGAIN) == Err(RecvTimeoutError::Timeout) {
            // SAFETY: it is joined below only.
            unsafe { kicked.kick() };
        }
        if thread.join().is_err() {
            log::error!("the console's thread ended with a panic");
        }
    }
}

impl OutputQueue {
    /// Writes what is here, and waits for more, until that is over.
    fn pump(&self) {
        loop {
            let mut state = self.lock();
            while state.bytes.is_empty() && !state.is_over {
                state = self.is_back.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.bytes.is_empty() {
                return;
            }
            let put = state.put;
            drop(state);
            // It is kicked when nobody waits for the rest any more.
            if !self.wait(put) {
                return;
            }
        }
    }
}

/// Writes bytes and takes away what is written, without moving the rest, until nothing is left or the
/// thread is kicked.
fn write(output: &mut dyn Write, bytes: &mut VecDeque<u8>) -> io::Result<()> {
    // What fails is given up as a whole, and was to be seen as a whole by those who listen in between. It moves what has
    // gone around the end, once.
    bytes.make_contiguous();
    let is_interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
    while !bytes.is_empty() {
        match output.write(bytes.as_slices().0) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => drop(bytes.drain(..count)),
            Err(error) if is_interrupted(&error) && !kick::is_pending() => {}
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

/// What of `bytes`, the last that there were, an output has dealt with, for those who listen in front of it: a failure
/// is the end of all of them, unless they are to be written again.
pub(crate) fn dealt_with<'a>(written: &io::Result<usize>, bytes: &'a [u8]) -> &'a [u8] {
    match written {
        // That it takes nothing is a failure as well.
        Ok(0) => bytes,
        Ok(count) => &bytes[..*count],
        Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => &[],
        Err(_) => bytes,
    }
}

/// The end of the queue that the serial port has: it never waits.
#[derive(Debug)]
pub struct QueueEnd(pub Arc<OutputQueue>);

impl Write for QueueEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        state.put(bytes);
        DEBT.set(Debt::New(state.put));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::Read;
    use std::os::fd::BorrowedFd;
    use std::sync::mpsc::channel;
    use std::thread;

    /// A queue to a pipe.
    fn to_pipe() -> (Arc<OutputQueue>, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (Arc::new(OutputQueue::new(Box::new(writer))), reader)
    }

    fn put(queue: &Arc<OutputQueue>, bytes: &[u8]) {
        QueueEnd(Arc::clone(queue)).write_all(bytes).unwrap();
    }

    #[test]
    fn what_is_put_goes_out_in_order() {
        let (queue, mut reader) = to_pipe();
        for text in ["one, ", "two, ", "three"] {
            put(&queue, text.as_bytes());
            assert!(queue.settle());
        }
        drop(queue);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one, two, three");
    }

    #[test]
    fn one_that_waits_keeps_nobody_from_putting() {
        let (queue, mut reader) = to_pipe();
        let (begun, begins) = channel();
        let (other, waits) = (Arc::clone(&queue), begun.clone());
        let stuck = thread::spawn(move || {
            // More than a pipe holds.
            put(&other, &[b'a'; 1 << 20]);
            waits.send(()).unwrap();
            assert!(other.settle());
        });
        begins.recv().unwrap();
        let other = Arc::clone(&queue);
        let second = thread::spawn(move || {
            put(&other, b"b");
            begun.send(()).unwrap();
            assert!(other.settle());
        });
        begins.recv().unwrap();
        // A thread that has put nothing owes nothing.
        assert!(queue.settle());
        assert!(!stuck.is_finished() && !second.is_finished());
        let mut bytes = vec![0; (1 << 20) + 1];
        reader.read_exact(&mut bytes).unwrap();
        stuck.join().unwrap();
        second.join().unwrap();
        assert!(bytes.iter().filter(|byte| **byte == b'b').count() == 1);
    }

    /// A queue to a pipe, and the thread that writes what a virtio console puts there.
    fn with_pump() -> (Arc<OutputQueue>, Pump, io::PipeReader) {
        kick::install_handler().unwrap();
        let (queue, reader) = to_pipe();
        let pump = Pump::start(&queue).unwrap();
        (queue, pump, reader)
    }

    #[test]
    fn a_terminal_is_refused_what_there_is_no_room_for_and_rung_when_there_is() {
        let (queue, pump, mut reader) = with_pump();
        let terminal = queue.terminal(Box::new(|| Ok(()))).unwrap();
        let (mut given, piece) = (0, [b'x'; 4096]);
        // The pipe's room, and ours: the pump may take once more while it is stuck.
        let taken = loop {
            match queue.offer(&piece) {
                4096 => given += 4096,
                less => break less,
            }
        };
        given += taken;
        assert!(given <= 2 * MOST_OFFERED + (1 << 20), "{given}");
        assert!(queue.lock().bytes.len() <= MOST_OFFERED);
        let mut bytes = vec![0; given];
        reader.read_exact(&mut bytes).unwrap();
        // SAFETY: the terminal has it open.
        let news = unsafe { BorrowedFd::borrow_raw(terminal.source()) };
        let mut polled = [PollFd::new(news, PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(20_000u16)), Ok(1));
        assert_eq!(queue.offer(b"the last of it"), 14);
        assert!(queue.flush());
        let state = queue.lock();
        assert_eq!((state.gone, state.bytes.len()), (state.put, 0));
        drop(state);
        drop(pump);
        let mut bytes = [0; 14];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"the last of it");
    }

    /// It does not end before what it can write is written, and does when nobody reads.
    #[test]
    fn a_pump_ends_though_nobody_reads() {
        let (queue, pump, reader) = with_pump();
        // More than a pipe holds.
        put(&queue, &[b'x'; 1 << 20]);
        // It is told of this, if it has not begun.
        queue.offer(b"more");
        drop(pump);
        assert!(!queue.lock().bytes.is_empty());
        drop(reader);
    }

    #[test]
    fn whoever_has_put_a_byte_waits_for_no_more_than_that() {
        let (queue, pump, mut reader) = with_pump();
        let terminal = queue.terminal(Box::new(|| Ok(()))).unwrap();
        let drain = thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        let other = Arc::clone(&queue);
        let (end, ended) = channel::<()>();
        let flood = thread::spawn(move || {
            while ended.try_recv().is_err() {
                other.offer(&[b'x'; 4096]);
            }
        });
        for _ in 0..100 {
            put(&queue, b"y");
            assert!(queue.settle() && queue.flush());
        }
        end.send(()).unwrap();
        flood.join().unwrap();
        drop(pump);
        // What comes after the end is refused.
        assert_eq!(queue.offer(b"late"), 0);
        drop(terminal);
        drop(queue);
        assert!(drain.join().unwrap() >= 100);
    }

    #[test]
    fn a_kick_ends_the_wait_and_loses_nothing() {
        kick::install_handler().unwrap();
        let (queue, mut reader) = to_pipe();
        let other = Arc::clone(&queue);
        let (kicked, kicks) = channel();
        let stuck = thread::spawn(move || {
            put(&other, &[b'a'; 1 << 20]);
            assert!(!other.settle());
            // It has waited for that, and need not again to do something else.
            other.settle_new();
            kicked.send(()).unwrap();
            kick::clear();
            assert!(other.settle());
        });
        // A kick that comes before the wait must be repeated where the output is a plain pipe's end.
        while kicks.recv_timeout(LOOK_AGAIN).is_err() {
            // SAFETY: the thread is joined below only.
            unsafe { kick::Thread::of(&stuck).kick() };
        }
        let mut bytes = vec![0; 1 << 20];
        reader.read_exact(&mut bytes).unwrap();
        stuck.join().unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'a'));
    }

    #[test]
    fn what_is_left_is_not_moved_when_a_piece_goes_out() {
        /// Takes a byte at a time, and sees where it was.
        struct Narrow(Vec<usize>);
        impl Write for Narrow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.push(bytes.as_ptr().addr());
                Ok(1)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut output, mut bytes) = (Narrow(Vec::new()), VecDeque::from(vec![b'a'; 1000]));
        write(&mut output, &mut bytes).unwrap();
        assert!(output.0.len() == 1000 && output.0.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn a_failure_is_no_reason_to_wait() {
        let (queue, reader) = to_pipe();
        drop(reader);
        put(&queue, b"lost");
        assert!(queue.settle());
        assert!(queue.settle());
    }
}
