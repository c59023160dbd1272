//! Lines on their way to somebody who may not read them: messages, and the trace of hypercalls.
//!
//! Whoever puts a line here never waits: a thread of the queue's own writes it. What there is no room for
//! is dropped, counted, and told in its place. The end waits for what is left as long as it goes out, and
//! not much longer ([`LineQueue::finish`]).

use debug::threads::{self, Latecomer};
use nix::sys::signal::SigSet;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Bytes that wait at most; as many again may be with the thread that writes.
const MOST_WAITING: usize = 1 << 20;
/// As many bytes more are kept free of what a guest may put here without end: what is said of it comes through.
const RESERVE: usize = 64 << 10;
/// How long lines gather that come one after the other: waking a thread for each costs whoever puts them more
/// than the line does.
const GATHER: Duration = Duration::from_millis(2);
/// How long the end waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it waits for one that takes something now and then.
const LONGEST: Duration = Duration::from_secs(5);

/// Says how many lines were dropped; in the form of the lines.
pub type Lost = fn(u64) -> String;

/// A queue of lines. Its clones are the same queue.
#[derive(Clone, Debug)]
pub struct LineQueue {
    shared: Arc<Ends>,
}

#[derive(Debug)]
struct Ends {
    state: Mutex<Lines>,
    /// There is something to write, or no more will come.
    filled: Condvar,
    /// Something has been written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: Vec<u8>,
    lost: u64,
    /// The thread has lines to write.
    is_writing: bool,
    /// The thread sleeps until it is told of a line.
    is_idle: bool,
    /// Somebody waits for the lines to be written.
    is_urgent: bool,
    /// Changes whenever something was written.
    progress: u64,
    /// No more will come.
    is_over: bool,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineQueue {
    /// A queue to `output`, whose thread tells `failed` the first error there is. Lines that cannot be
    /// written are lost; those behind them are tried.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        output: impl Write + Send + 'static,
        lost: Lost,
        failed: impl FnOnce(&io::Error) + Send + 'static,
    ) -> io::Result<LineQueue> {
        let shared = Ends { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new() };
        let shared = Arc::new(shared);
        let its_own = Arc::clone(&shared);
        // Signals are for the threads that are there for them.
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let thread = Builder::new().name("lines".into());
        let started = threads::start("lines", thread, move || write_lines(&its_own, output, lost, failed));
        before.thread_set_mask()?;
        started.map(|_| LineQueue { shared })
    }

    /// Puts one line, or several, with their ends; never waits for whoever reads them.
    pub fn put(&self, lines: &[u8]) {
        self.put_below(MOST_WAITING + RESERVE, lines);
    }

    /// The same for a guest's own words, which may come without end: they leave room for others.
    pub fn put_of_guest(&self, lines: &[u8]) {
        self.put_below(MOST_WAITING, lines);
    }

    fn put_below(&self, most: usize, lines: &[u8]) {
        let mut state = self.shared.lock();
        if state.waiting.len() + lines.len() > most {
            state.lost += 1;
            return;
        }
        state.waiting.extend(lines);
        let is_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            self.shared.filled.notify_one();
        }
    }

    /// Waits until all lines are written, but no longer than somebody reads them; whether they are.
    pub fn finish(&self) -> bool {
        let begun = Instant::now();
        let (mut progress, mut since) = (0, begun);
        let mut state = self.shared.lock();
        state.is_urgent = true;
        self.shared.filled.notify_one();
        while !state.waiting.is_empty() || state.lost > 0 || state.is_writing {
            let now = Instant::now();
            if state.progress != progress {
                (progress, since) = (state.progress, now);
            }
            if now >= since + PATIENCE || now >= begun + LONGEST {
                return false;
            }
            let waited = self.shared.written.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_urgent = false;
        true
    }

    /// Has the thread end when it has written all that waits.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        (state.is_over, state.is_urgent) = (true, true);
        drop(state);
        self.shared.filled.notify_one();
    }
}

/// The thread's life.
fn write_lines(shared: &Ends, mut output: impl Write, lost: Lost, failed: impl FnOnce(&io::Error)) {
    let mut failed = Some(failed);
    let mut lines = Vec::new();
    // Messages are there before anything is confined.
    let mut cell = Latecomer::new("lines");
    loop {
        let mut state = shared.lock();
        state.is_writing = false;
        shared.written.notify_all();
        if !lines.is_empty() && !state.is_urgent {
            let gathered = shared.filled.wait_timeout_while(state, GATHER, |state| !state.is_urgent);
            state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        while state.waiting.is_empty() && state.lost == 0 {
            if state.is_over {
                return;
            }
            state.is_idle = true;
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_idle = false;
        lines.clear();
        std::mem::swap(&mut lines, &mut state.waiting);
        let dropped = std::mem::take(&mut state.lost);
        state.is_writing = true;
        drop(state);
        cell.look();
        if dropped > 0 {
            lines.extend(lost(dropped).as_bytes());
        }
        if let Err(error) = write(shared, &mut output, &lines)
            && let Some(failed) = failed.take()
        {
            failed(&error);
        }
    }
}

fn write(shared: &Ends, output: &mut impl Write, mut lines: &[u8]) -> io::Result<()> {
    while !lines.is_empty() {
        match output.write(lines) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                lines = &lines[count..];
                shared.lock().progress += 1;
                shared.written.notify_all();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

/// A queue as something to write to: each write is one or more whole lines.
impl Write for LineQueue {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.put(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The one end of a queue that closes it.
#[derive(Debug)]
pub struct Last(pub LineQueue);

impl Write for Last {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.write(lines)
    }

    /// Waits for what is left, as [`LineQueue::finish`] does.
    fn flush(&mut self) -> io::Result<()> {
        self.0.finish();
        Ok(())
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::sync::mpsc::channel;

    fn lost(count: u64) -> String {
        format!("{count} lost\n")
    }

    #[test]
    fn lines_go_out_in_order_and_the_end_waits_for_them() {
        let (mut reader, writer) = io::pipe().unwrap();
        let queue = LineQueue::start(writer, lost, |_| {}).unwrap();
        (0..1000).for_each(|number| queue.put(format!("{number}\n").as_bytes()));
        assert!(queue.finish());
        queue.close();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.lines().enumerate().all(|(number, line)| line == number.to_string()), "{text}");
        assert_eq!(text.lines().count(), 1000);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read_and_what_is_dropped_is_told() {
        const LINES: u64 = 100_000;
        let (reader, writer) = io::pipe().unwrap();
        let queue = LineQueue::start(writer, lost, |_| {}).unwrap();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        // This would not return if it waited.
        (0..LINES).for_each(|_| queue.put(&line));
        assert!(!queue.finish());
        queue.close();
        let mut dropped = 0;
        let mut whole = 0;
        for read in BufReader::new(reader).lines() {
            match read.unwrap().strip_suffix(" lost") {
                Some(count) => dropped += count.parse::<u64>().unwrap(),
                None => whole += 1,
            }
        }
        assert!(
            dropped > 0 && whole * 100 <= 2 * (MOST_WAITING + RESERVE) as u64 + (64 << 10),
            "{whole} {dropped}"
        );
        assert_eq!(whole + dropped, LINES);
    }

    #[test]
    fn what_a_guest_says_without_end_pushes_nothing_else_out() {
        let (mut reader, writer) = io::pipe().unwrap();
        let queue = LineQueue::start(writer, lost, |_| {}).unwrap();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        (0..100_000).for_each(|_| queue.put_of_guest(&line));
        queue.put(b"verdict\n");
        queue.close();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.contains(" lost\n") && text.contains("verdict\n"));
    }

    #[test]
    fn a_failure_is_told_once() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::EFBIG))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, failures) = channel();
        let queue = LineQueue::start(Full, lost, move |error| {
            sender.send(error.raw_os_error()).unwrap();
        })
        .unwrap();
        for _ in 0..3 {
            queue.put(b"line\n");
            assert!(queue.finish());
        }
        assert_eq!(failures.try_iter().collect::<Vec<_>>(), [Some(libc::EFBIG)]);
    }
}
