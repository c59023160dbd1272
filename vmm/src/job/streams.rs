//! The process's own standard streams, each on a thread of its own: whoever reads its output may keep it waiting, and
//! then the command waits, but nothing else does.

use crate::patient::Patient;
use debug::threads;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// News of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Input has come; none: its end.
    Input(Vec<u8>),
    /// Input is a terminal that is another job's just now: it is not read until [`Streams::look_again`].
    Elsewhere,
    /// So many bytes of an output stream have been written, or nobody is there to read them.
    Written(usize, u32),
    /// Nobody reads an output stream any more; told once.
    Broken(usize),
    /// An output stream cannot be written any more, and why; told once.
    Failed(usize, String),
    /// Nothing more is written to an output stream.
    Over,
}

/// Tells news.
#[derive(Debug)]
struct Teller {
    news: Sender<News>,
    wake: EventFd,
}

impl Teller {
    /// Whether there is still somebody to be told.
    fn tell(&self, news: News) -> bool {
        self.news.send(news).is_ok() && self.wake.write(1).is_ok()
    }
}

/// Leave to read input.
#[derive(Debug, Default)]
struct Leave {
    /// How many bytes may be read.
    bytes: u32,
    /// How often the terminal has become this job's.
    looks: u64,
    /// Nobody says when it has: it is tried.
    is_tried: bool,
}

/// The same, for whoever gives it and whoever waits for it.
#[derive(Clone, Debug, Default)]
struct Room(Arc<(Mutex<Leave>, Condvar)>);

impl Room {
    fn leave(&self) -> MutexGuard<'_, Leave> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, leave: MutexGuard<'a, Leave>) -> MutexGuard<'a, Leave> {
        self.0.1.wait(leave).unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, more: u32) {
        let mut leave = self.leave();
        leave.bytes = leave.bytes.saturating_add(more);
        self.0.1.notify_all();
    }

    /// Waits for some; all that there is, up to `most`, which is taken.
    fn take(&self, most: u32) -> u32 {
        let mut leave = self.leave();
        while leave.bytes == 0 {
            leave = self.wait(leave);
        }
        let taken = leave.bytes.min(most);
        leave.bytes -= taken;
        taken
    }

    fn looks(&self) -> u64 {
        self.leave().looks
    }

    fn look_again(&self) {
        self.leave().looks += 1;
        self.0.1.notify_all();
    }

    /// Waits until the terminal has become this job's since there were so many looks, or is to be tried.
    fn wait_for_terminal(&self, looks: u64) {
        let until = Instant::now() + TRIED_AFTER;
        let mut leave = self.leave();
        while leave.looks == looks {
            let left = until.saturating_duration_since(Instant::now());
            leave = match leave.is_tried {
                false => self.wait(leave),
                true if left.is_zero() => return,
                true => self.0.1.wait_timeout(leave, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn try_terminal(&self) {
        self.leave().is_tried = true;
        self.0.1.notify_all();
    }
}

/// What waits to be written, and the thread that does.
#[derive(Debug)]
struct Output {
    pieces: Option<Sender<Vec<u8>>>,
}

/// The standard streams.
#[derive(Debug)]
pub struct Streams {
    outputs: [Output; 2],
    room: Room,
    news: Receiver<News>,
    wake: EventFd,
    /// Output streams to which something may be written still.
    open: usize,
}

/// How long a terminal is left alone that is another job's, where nobody says when that changes.
const TRIED_AFTER: Duration = Duration::from_secs(1);

/// As much input as is read at once, bytes.
const PIECE: u32 = 8192;

impl Streams {
    /// Over these: input (if it is read at all), output and errors.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(input: Option<File>, outputs: [File; 2]) -> io::Result<Streams> {
        let (sender, news) = channel();
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let teller = || Ok::<_, io::Error>(Teller { news: sender.clone(), wake: wake.try_clone()? });
        let room = Room::default();
        if let Some(input) = input {
            let (teller, room) = (teller()?, room.clone());
            // It may be in a read until the process ends.
            let thread = thread::Builder::new().name("input".into());
            threads::start("input", thread, move || read_all(input, &teller, &room))?;
        }
        let [output, errors] = outputs;
        let start = |index: usize, file: File| {
            let (pieces, queue) = channel();
            let teller = teller()?;
            let name = ["output", "errors"][index];
            // It may be in a write until the process ends.
            let thread = thread::Builder::new().name(name.into());
            threads::start("output", thread, move || {
                write_all(index, file, &teller, &queue);
                // Whoever would hear it may be gone.
                teller.tell(News::Over);
            })?;
            Ok::<_, io::Error>(Output { pieces: Some(pieces) })
        };
        let outputs = [start(0, output)?, start(1, errors)?];
        Ok(Streams { open: outputs.len(), outputs, room, news, wake })
    }

    /// Becomes readable when there is news.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The next of it.
    pub fn take(&mut self) -> Option<News> {
        let news = self.news.try_recv().ok()?;
        self.open -= usize::from(news == News::Over);
        Some(news)
    }

    /// So much more input may be read.
    pub fn make_room(&self, bytes: u32) {
        self.room.add(bytes);
    }

    /// The terminal is this job's, perhaps again ([`News::Elsewhere`]).
    pub fn look_again(&self) {
        self.room.look_again();
    }

    /// Nobody will say when the terminal is this job's again: it is tried now and then.
    pub fn try_terminal(&self) {
        self.room.try_terminal();
    }

    /// Has bytes written to an output stream.
    pub fn write(&self, index: usize, bytes: Vec<u8>) {
        if let Some(pieces) = self.outputs.get(index).and_then(|output| output.pieces.as_ref()) {
            // A thread that has ended had nobody to tell.
            pieces.send(bytes).ok();
        }
    }

    /// Nothing more comes: the output streams are over when all is written, or nobody reads it.
    pub fn close(&mut self) {
        self.outputs.iter_mut().for_each(|output| output.pieces = None);
    }

    /// Whether all that was there is written, or cannot be; news tells when that changes.
    pub fn are_over(&self) -> bool {
        self.open == 0
    }
}

fn read_all(input: File, teller: &Teller, room: &Room) {
    let mut input = Patient(input);
    loop {
        let mut bytes = vec![0; room.take(PIECE) as usize];
        let count = loop {
            let looks = room.looks();
            match input.read(&mut bytes) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another job's: it is not to be read while this one is in the background, and may be later.
                Err(error) if error.raw_os_error() == Some(libc::EIO) && input.0.is_terminal() => {
                    if !teller.tell(News::Elsewhere) {
                        return;
                    }
                    room.wait_for_terminal(looks);
                }
                // A stream that is closed has nothing.
                Err(error) => {
                    log::debug!("standard input: {error}");
                    break 0;
                }
            }
        };
        room.add(u32::try_from(bytes.len() - count).unwrap_or(0));
        bytes.truncate(count);
        if !teller.tell(News::Input(bytes)) || count == 0 {
            return;
        }
    }
}

fn write_all(index: usize, output: File, teller: &Teller, queue: &Receiver<Vec<u8>>) {
    let mut output = Patient(output);
    let mut is_read = true;
    for piece in queue {
        if is_read && let Err(error) = output.write_all(&piece) {
            log::debug!("an output stream: {error}");
            is_read = false;
            let news = match is_for_nobody(&error, &output.0) {
                true => News::Broken(index),
                false => News::Failed(index, error.to_string()),
            };
            if !teller.tell(news) {
                return;
            }
        }
        // What nobody reads is done with as well: else whoever writes it would wait for room for ever.
        let count = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        if !teller.tell(News::Written(index, count)) {
            return;
        }
    }
}

/// Whether a stream cannot be written because whoever has read it is gone: a pipe's or a socket's other end, a terminal.
fn is_for_nobody(error: &io::Error, output: &File) -> bool {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => true,
        _ => error.raw_os_error() == Some(libc::EIO) && output.is_terminal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// Nothing is lost in silence.
    #[test]
    fn a_full_disk_is_not_a_reader_that_has_gone() {
        let ((read, output), full) = (pipe(), File::options().write(true).open("/dev/full").unwrap());
        let mut streams = Streams::start(None, [full, output]).unwrap();
        streams.write(0, b"lost".to_vec());
        let News::Failed(0, why) = wait(&mut streams) else { panic!("it is not told") };
        assert!(why.contains("No space left on device"), "{why}");
        assert_eq!(wait(&mut streams), News::Written(0, 4));
        drop(read);
        streams.write(1, b"lost".to_vec());
        assert_eq!(wait(&mut streams), News::Broken(1));
    }

    fn pipe() -> (File, File) {
        let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        (read.into(), write.into())
    }

    fn wait(streams: &mut Streams) -> News {
        loop {
            if let Some(news) = streams.take() {
                return news;
            }
            thread::yield_now();
        }
    }

    /// Whoever waits for the terminal misses no look, whether that comes before the waiting or behind it.
    #[test]
    fn a_terminal_that_comes_back_is_read_again() {
        let room = Room::default();
        let looks = room.looks();
        room.look_again();
        room.wait_for_terminal(looks);
        let (looks, theirs) = (room.looks(), room.clone());
        let reader = thread::spawn(move || {
            theirs.wait_for_terminal(looks);
            theirs.looks()
        });
        // Room for more is no terminal.
        room.add(1);
        room.look_again();
        assert_eq!(reader.join().unwrap(), looks + 1);
        // Without anybody who looks, it is tried all the same: now and then, however often that is said.
        let (begun, theirs) = (Instant::now(), room.clone());
        let reader = thread::spawn(move || theirs.wait_for_terminal(looks + 1));
        while !reader.is_finished() {
            room.try_terminal();
            thread::yield_now();
        }
        reader.join().unwrap();
        assert!(begun.elapsed() >= TRIED_AFTER);
    }

    #[test]
    fn streams_are_carried_as_far_as_there_is_room() {
        let ((input, mut typed), (mut read, output), (gone, errors)) = (pipe(), pipe(), pipe());
        let mut streams = Streams::start(Some(input), [output, errors]).unwrap();
        typed.write_all(b"hello").unwrap();
        streams.make_room(3);
        assert_eq!(wait(&mut streams), News::Input(b"hel".to_vec()));
        streams.make_room(100);
        assert_eq!(wait(&mut streams), News::Input(b"lo".to_vec()));
        drop(typed);
        assert_eq!(wait(&mut streams), News::Input(Vec::new()));
        streams.write(0, b"out".to_vec());
        assert_eq!(wait(&mut streams), News::Written(0, 3));
        drop(gone);
        streams.write(1, b"to nobody".to_vec());
        assert_eq!(wait(&mut streams), News::Broken(1));
        // It is told once, and what comes behind makes room for more.
        streams.write(1, b"and more".to_vec());
        assert_eq!(wait(&mut streams), News::Written(1, 9));
        assert_eq!(wait(&mut streams), News::Written(1, 8));
        streams.close();
        while !streams.are_over() {
            wait(&mut streams);
        }
        let mut all = String::new();
        read.read_to_string(&mut all).unwrap();
        assert_eq!(all, "out");
    }
}
