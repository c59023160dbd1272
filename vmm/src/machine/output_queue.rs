//! The guest's console output on its way from the serial port to wherever it goes.
//!
//! Whoever reads the console may be slow, or not read at all. Then the vCPU that has printed waits, and
//! nobody else: its thread puts the output here with the port locked, and waits for it to go out
//! afterwards, with nothing locked ([`OutputQueue::settle`]). So the port still takes input, and other
//! vCPUs still read its registers.

use devices::tell;
use kvm::kick;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

thread_local! {
    static DEBT: Cell<Debt> = const { Cell::new(Debt::None) };
}

/// What a thread has put here and has not seen go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debt {
    None,
    /// It has not waited for it yet.
    New,
    /// It has, and was kicked.
    Old,
}

/// How often a thread that waits looks whether it was kicked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Output that is to go out, in order.
pub struct OutputQueue {
    state: Mutex<Waiting>,
    /// The output is back.
    is_back: Condvar,
}

struct Waiting {
    bytes: VecDeque<u8>,
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
        let state = Waiting { bytes: VecDeque::new(), output: Some(output), told_failure: false };
        OutputQueue { state: Mutex::new(state), is_back: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what this thread has put here since it waited last is written, or the thread is kicked.
    pub fn settle_new(&self) {
        if DEBT.get() == Debt::New {
            self.settle();
        }
    }

    /// Waits until all that this thread has put here is written; `false` when the thread was kicked before.
    /// Then it must come back before its guest runs on: so no vCPU has more here than it can print in one
    /// exit.
    pub fn settle(&self) -> bool {
        if DEBT.get() == Debt::None {
            return true;
        }
        let is_settled = self.wait();
        DEBT.set(if is_settled { Debt::None } else { Debt::Old });
        is_settled
    }

    fn wait(&self) -> bool {
        let mut state = self.lock();
        while !state.bytes.is_empty() {
            let Some(mut output) = state.output.take() else {
                if kick::is_pending() {
                    return false;
                }
                let waited = self.is_back.wait_timeout(state, LOOK_AGAIN);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            let mut bytes = std::mem::take(&mut state.bytes);
            drop(state);
            let written = write(&mut *output, &mut bytes);
            state = self.lock();
            state.output = Some(output);
            self.is_back.notify_all();
            match written {
                // Others may have put something here meanwhile.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    bytes.append(&mut state.bytes);
                    state.bytes = bytes;
                    return false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut state.told_failure, true) {
                        tell!(Warn, "the guest's console output is lost: {error}");
                    }
                }
            }
        }
        true
    }
}

/// Writes bytes and takes away what is written, without moving the rest, until nothing is left or the
/// thread is kicked.
fn write(output: &mut dyn Write, bytes: &mut VecDeque<u8>) -> io::Result<()> {
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

/// The end of the queue that the serial port has: it never waits.
#[derive(Debug)]
pub struct QueueEnd(pub Arc<OutputQueue>);

impl Write for QueueEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().bytes.extend(bytes);
        DEBT.set(Debt::New);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
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
