//! The host's end of a session: the process's standard streams, and the command in the guest that they belong to.

use super::protocol::{self, Frame, Kind, NO_SESSION};
use super::streams::{News, Streams};
use super::verdict::Verdict;
use crate::logging;
use crate::run::escape::{Escape, HELP, Key};
use crate::run::foreground::Foreground;
use crate::run::terminal::{self, RawMode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// As much input waits for the guest at most, bytes.
const MOST_WAITING: usize = 256 << 10;
/// What is typed and not read by the command waits as well, also before the guest is there, bytes: less than there is room
/// to read, so that the keys that end the guest are heard.
const MOST_HELD: usize = 48 << 10;

/// What is said of a command that is no frame's payload.
pub const TOO_LONG: &str = "the command and its environment are too long: they have at most 32 KiB together";

/// How a command has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself, with this code.
    Code(u8),
    /// By a signal.
    Signal(u8),
    /// It has never begun: the code for that, and why.
    NotBegun(u8, String),
}

impl From<CommandEnd> for Verdict {
    fn from(end: CommandEnd) -> Verdict {
        match end {
            CommandEnd::Code(code) => Verdict::Command(code),
            CommandEnd::Signal(signal) => Verdict::Signal(signal),
            CommandEnd::NotBegun(code, why) => Verdict::NotBegun(code, why),
        }
    }
}

/// A session's end.
#[derive(Debug)]
pub struct Session {
    id: u16,
    streams: Streams,
    /// For a terminal.
    escape: Option<Escape>,
    terminal: Option<Foreground>,
    /// Bytes of output and errors that the guest may send still, of each.
    allowed: [u32; 2],
    /// Bytes of input that are read for it still.
    input_room: u32,
    /// What is typed on a terminal until the command is started.
    held: Option<Vec<u8>>,
    /// The last of its errors is no line's end.
    is_line_open: bool,
    /// Why not all of its output is written, if somebody would have read it.
    unwritten: Option<String>,
}

/// A standard stream as a file of its own; `None` for one that is closed.
fn own(stream: BorrowedFd<'_>) -> Option<File> {
    stream.try_clone_to_owned().ok().map(File::from)
}

impl Session {
    /// Over the process's standard streams; in raw mode, if the command has a terminal.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors, or the terminal cannot be set up.
    pub fn new(id: u16, has_terminal: bool) -> io::Result<Session> {
        let nowhere = || File::options().write(true).open("/dev/null");
        let outputs = [own(io::stdout().as_fd()), logging::stderr_file()];
        let [output, errors] = outputs.map(|file| file.map_or_else(nowhere, Ok));
        let streams = Streams::start(own(io::stdin().as_fd()), [output?, errors?])?;
        let terminal = match has_terminal {
            true => Some(Foreground::new(RawMode::enter(io::stdin().as_fd().try_clone_to_owned()?)?)?),
            false => None,
        };
        // Looks now and then, if it is another job's now.
        terminal.as_ref().map(Foreground::take);
        let escape = terminal.is_some().then(Escape::default);
        Ok(Session::over(id, streams, escape, terminal))
    }

    /// Over these. With keys of its own it listens at once: nothing else ends a guest that boots.
    fn over(id: u16, streams: Streams, escape: Option<Escape>, terminal: Option<Foreground>) -> Session {
        if escape.is_some() {
            streams.make_room(protocol::WINDOW);
        }
        Session {
            id,
            streams,
            held: escape.is_some().then(Vec::new),
            escape,
            terminal,
            allowed: [protocol::WINDOW; 2],
            input_room: protocol::WINDOW,
            is_line_open: false,
            unwritten: None,
        }
    }

    /// What becomes readable when there is something to [carry](Self::carry).
    pub fn wakes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = [Some(self.streams.wake().as_raw_fd()), self.terminal.as_ref().map(Foreground::timer)];
        // SAFETY: both are open as long as the session is there.
        all.into_iter().flatten().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Something may have changed whose terminal it is: it is taken, if it is this job's.
    fn look_for_terminal(&self) {
        if self.terminal.as_ref().is_some_and(Foreground::take) {
            self.streams.look_again();
        }
    }

    /// What a signal is about that says something of the terminal. `false` for one that does not.
    pub fn hear_of_terminal(&self, signal: Signal, out: &mut Vec<u8>) -> bool {
        match (signal, &self.terminal) {
            (Signal::SIGWINCH, _) => self.resize(out),
            (Signal::SIGTSTP, Some(terminal)) => terminal.stop(),
            // It goes on, perhaps in the foreground, with a terminal that has another size.
            (Signal::SIGCONT, Some(terminal)) => {
                terminal.look_soon();
                self.resize(out);
            }
            (Signal::SIGTSTP | Signal::SIGCONT | Signal::SIGTTIN | Signal::SIGTTOU, _) => {}
            _ => return false,
        }
        true
    }

    /// The guest is there: the command is started, [encoded](protocol::Command::encoded).
    pub fn begin(&mut self, command: &[u8], out: &mut Vec<u8>) {
        protocol::put(out, Kind::Start, self.id, command);
        match self.held.take() {
            Some(typed) => {
                let pieces = typed.chunks(protocol::MOST_PAYLOAD);
                pieces.for_each(|piece| protocol::put(out, Kind::Input, self.id, piece));
            }
            None => self.streams.make_room(protocol::WINDOW),
        }
        // The command has the size that it was before the guest was there.
        if self.terminal.is_some() {
            self.resize(out);
        }
    }

    /// What is typed, and what has been written; whether somebody wants the guest's end.
    pub fn carry(&mut self, out: &mut Vec<u8>) -> bool {
        self.streams.wake().read().ok();
        // Of a terminal that is ours it does nothing; else it sets the time of the next look.
        if self.terminal.as_ref().is_some_and(|terminal| is_readable(terminal.timer())) {
            self.look_for_terminal();
        }
        let mut ends = false;
        while let Some(news) = self.streams.take() {
            match news {
                News::Input(bytes) => {
                    self.input_room = self.input_room.saturating_sub(u32::try_from(bytes.len()).unwrap_or(0));
                    ends |= self.type_in(&bytes, out);
                }
                News::Written(index, count) => {
                    let stream = if index == 0 { protocol::OUTPUT } else { protocol::ERRORS };
                    self.allowed[index] = self.allowed[index].saturating_add(count);
                    let grant = [&[stream][..], &count.to_le_bytes()].concat();
                    protocol::put(out, Kind::Grant, self.id, &grant);
                }
                // It is looked at now and then, until it is ours.
                News::Elsewhere if self.terminal.is_some() => self.look_for_terminal(),
                News::Elsewhere => self.streams.try_terminal(),
                // As for a program whose output nobody reads.
                News::Broken(_) => self.signal(Signal::SIGPIPE, out),
                News::Failed(index, why) => {
                    let name = ["output", "errors"][index];
                    self.unwritten.get_or_insert_with(|| format!("the command's {name}: {why}"));
                    self.signal(Signal::SIGPIPE, out);
                }
                News::Over => {}
            }
        }
        ends
    }

    fn type_in(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(escape) = &mut self.escape else {
            protocol::put(out, Kind::Input, self.id, bytes);
            return false;
        };
        let (typed, keys) = escape.filter(bytes);
        // What the command has not read yet, in front of that.
        let before = (protocol::WINDOW as usize).saturating_sub(self.input_room as usize + bytes.len());
        let sent = match &mut self.held {
            Some(held) if held.len() + typed.len() <= MOST_HELD => {
                held.extend_from_slice(&typed);
                typed.len()
            }
            None if out.len() < MOST_WAITING && before + typed.len() <= MOST_HELD && !typed.is_empty() => {
                protocol::put(out, Kind::Input, self.id, &typed);
                typed.len()
            }
            // There is too much already.
            _ => 0,
        };
        // What is not sent leaves room.
        let kept = u32::try_from(bytes.len() - sent).unwrap_or(0);
        self.input_room = self.input_room.saturating_add(kept);
        self.streams.make_room(kept);
        for key in &keys {
            match key {
                Key::Help => logging::print(&format!("{}\r\n", HELP.replace('\n', "\r\n"))),
                Key::Kernels(key) if out.len() < MOST_WAITING => {
                    protocol::put(out, Kind::Key, NO_SESSION, &[*key]);
                }
                Key::Kernels(_) | Key::Quit => {}
            }
        }
        keys.contains(&Key::Quit)
    }

    /// Something the guest says of this session; how the command has ended, if it has.
    pub fn hear(&mut self, frame: Frame) -> Option<CommandEnd> {
        match frame.kind {
            Kind::Output => self.take(0, frame.payload),
            Kind::Errors => {
                self.is_line_open = frame.payload.last().map_or(self.is_line_open, |byte| *byte != b'\n');
                self.take(1, frame.payload);
            }
            Kind::InputGrant => {
                // No more than a window at a time, whatever it says.
                let granted = protocol::number(&frame.payload, 0).unwrap_or(0);
                let granted = granted.min(protocol::WINDOW.saturating_sub(self.input_room));
                self.input_room += granted;
                self.streams.make_room(granted);
            }
            Kind::Exit => {
                return match frame.payload[..] {
                    [2, code, ref why @ ..] => {
                        Some(CommandEnd::NotBegun(code, String::from_utf8_lossy(why).into_owned()))
                    }
                    [1, signal] => Some(CommandEnd::Signal(signal)),
                    [_, code] => Some(CommandEnd::Code(code)),
                    _ => None,
                };
            }
            _ => {}
        }
        None
    }

    /// Has output written, as much as the guest was allowed to send: what is more is not kept.
    fn take(&mut self, index: usize, mut bytes: Vec<u8>) {
        bytes.truncate(usize::try_from(self.allowed[index]).unwrap_or(usize::MAX));
        if !bytes.is_empty() {
            self.allowed[index] -= u32::try_from(bytes.len()).unwrap_or(0);
            self.streams.write(index, bytes);
        }
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal, out: &mut Vec<u8>) {
        let number = u8::try_from(signal as i32).unwrap_or(0);
        protocol::put(out, Kind::Signal, self.id, &[number]);
    }

    /// The terminal may have another size.
    fn resize(&self, out: &mut Vec<u8>) {
        if let Some((rows, columns)) = self.escape.is_some().then(size_of_terminal).flatten() {
            let size = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
            protocol::put(out, Kind::Resize, self.id, &size);
        }
    }

    /// Nothing more comes of the command: its output is [over](Self::is_over) when all is written.
    pub fn close(&mut self) {
        self.streams.close();
    }

    /// Whether all that was to be written is, or nobody reads it; [`Self::wakes`] tell when that changes.
    pub fn is_over(&self) -> bool {
        self.streams.are_over()
    }

    /// Why not all of its output is written, so far, if it was not for want of a reader.
    pub fn unwritten(&self) -> Option<&str> {
        self.unwritten.as_deref()
    }

    /// Whether the errors, so far, end within a line.
    pub fn is_line_open(&self) -> bool {
        self.is_line_open
    }
}

/// The next signal that has come.
pub fn next_signal(signals: &SignalFd) -> Option<Signal> {
    let signal = signals.read_signal().ok()??;
    // What is waited for is one.
    Signal::try_from(i32::try_from(signal.ssi_signo).ok()?).ok()
}

/// Whether a descriptor has news now.
fn is_readable(fd: std::os::fd::RawFd) -> bool {
    // SAFETY: whoever asks has it open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Whether the process has a terminal to give to a command.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Whether the errors of a command that has a terminal are to go elsewhere: to a file.
pub fn has_errors_apart() -> bool {
    !logging::is_terminal()
}

/// Rows and columns of the process's terminal.
pub fn size_of_terminal() -> Option<(u16, u16)> {
    terminal::size(libc::STDOUT_FILENO).map(|size| (size.rows, size.columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::protocol::Decoder;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        (read.into(), write.into())
    }

    /// A session with a terminal's keys, what types, and what reads its output and errors.
    fn session() -> (Session, File, [File; 2]) {
        let ((input, typed), (read, output), (read_errors, errors)) = (pipe(), pipe(), pipe());
        let streams = Streams::start(Some(input), [output, errors]).unwrap();
        (Session::over(1, streams, Some(Escape::default()), None), typed, [read, read_errors])
    }

    fn wait(session: &Session) {
        let mut polls: Vec<PollFd<'_>> =
            session.wakes().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        assert!(poll(&mut polls, PollTimeout::from(30_000u16)).unwrap() > 0, "there is no news");
    }

    fn frames(bytes: &[u8]) -> Vec<(Kind, Vec<u8>)> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        std::iter::from_fn(|| decoder.take().unwrap()).map(|frame| (frame.kind, frame.payload)).collect()
    }

    #[test]
    fn what_is_typed_before_the_guest_is_there_waits_and_its_end_is_heard() {
        let (mut session, mut typed, _read) = session();
        let mut out = Vec::new();
        // More than is kept, a piece at a time.
        for _ in 0..20 {
            typed.write_all(&[b'x'; 8192]).unwrap();
            wait(&session);
            assert!(!session.carry(&mut out) && out.is_empty());
        }
        assert!((40_000..=MOST_HELD).contains(&session.held.as_ref().unwrap().len()));
        session.begin(b"", &mut out);
        let begun = frames(&out);
        assert_eq!(begun[0].0, Kind::Start);
        let later: usize = begun[1..].iter().map(|(_, typed)| typed.len()).sum();
        assert!(begun[1..].iter().all(|(kind, _)| *kind == Kind::Input) && later >= 40_000);
        typed.write_all(b"\x01x").unwrap();
        let mut ends = false;
        while !ends {
            wait(&session);
            ends = session.carry(&mut out);
        }
    }

    #[test]
    fn keys_are_heard_behind_more_than_the_command_reads() {
        let (mut session, mut typed, _read) = session();
        let (mut out, mut sent) = (Vec::new(), 0);
        session.begin(b"", &mut out);
        // The command reads nothing; what goes to the guest does.
        for _ in 0..20 {
            typed.write_all(&[b'x'; 8192]).unwrap();
            out.clear();
            let mut carried = 0;
            while carried < 8192 {
                wait(&session);
                let room = session.input_room;
                assert!(!session.carry(&mut out));
                let typed: usize = frames(&out).iter().map(|(_, typed)| typed.len()).sum();
                sent += typed;
                // What was dropped has left its room.
                carried = if session.input_room == room { 8192 } else { carried + typed };
                out.clear();
            }
        }
        assert!((40_000..=MOST_HELD).contains(&sent), "{sent}");
        typed.write_all(b"\x01x").unwrap();
        let mut ends = false;
        while !ends {
            wait(&session);
            ends = session.carry(&mut out);
        }
        // Once it has read all, it hears more.
        let all = u32::try_from(sent).unwrap().to_le_bytes().to_vec();
        session.hear(Frame { kind: Kind::InputGrant, session: 1, payload: all });
        assert_eq!(session.input_room, protocol::WINDOW);
        typed.write_all(b"more").unwrap();
        while !frames(&out).contains(&(Kind::Input, b"more".to_vec())) {
            wait(&session);
            session.carry(&mut out);
        }
    }

    #[test]
    fn a_command_whose_output_or_errors_nobody_reads_is_told_and_goes_on() {
        for (index, kind) in [(0, Kind::Output), (1, Kind::Errors)] {
            let (mut session, _typed, [read, read_errors]) = session();
            drop(if index == 0 { read } else { read_errors });
            let (mut out, piece) = (Vec::new(), vec![b'x'; 30_000]);
            // More than a window: what is not read is granted again.
            for _ in 0..4 {
                session.hear(Frame { kind, session: 1, payload: piece.clone() });
                out.clear();
                while !frames(&out).iter().any(|(kind, _)| *kind == Kind::Grant) {
                    wait(&session);
                    session.carry(&mut out);
                }
            }
            assert_eq!(session.allowed[index], protocol::WINDOW);
        }
    }

    #[test]
    fn a_command_that_never_began_is_told_from_one_that_ends_so() {
        let (mut session, _typed, _read) = session();
        let mut hear = |payload: &[u8]| {
            let frame = Frame { kind: Kind::Exit, session: 1, payload: payload.to_vec() };
            session.hear(frame).map(Verdict::from)
        };
        assert_eq!(hear(&[0, 127]), Some(Verdict::Command(127)));
        let never = hear(b"\x02\x7fno\x1bne: not found").unwrap();
        assert_eq!((never.code(), never.word()), (127, "not-begun"));
        assert_eq!(never.to_string(), "the command could not be executed: no\u{fffd}ne: not found");
    }

    #[test]
    fn sigpipe_is_sent_once_for_each_stream() {
        let (mut session, _typed, read) = session();
        drop(read);
        let mut out = Vec::new();
        for kind in [Kind::Output, Kind::Errors, Kind::Output] {
            session.hear(Frame { kind, session: 1, payload: b"x".to_vec() });
        }
        let count = |out: &[u8], wanted: Kind| frames(out).iter().filter(|(kind, _)| *kind == wanted).count();
        while count(&out, Kind::Grant) < 3 {
            wait(&session);
            session.carry(&mut out);
        }
        let pipe = u8::try_from(Signal::SIGPIPE as i32).unwrap();
        assert_eq!(count(&out, Kind::Signal), 2);
        assert!(frames(&out).contains(&(Kind::Signal, vec![pipe])));
    }

    #[test]
    fn keys_end_the_wait_for_whoever_reads_the_last_output() {
        let (mut session, mut typed, _read) = session();
        session.hear(Frame { kind: Kind::Output, session: 1, payload: vec![b'x'; 60_000] });
        session.hear(Frame { kind: Kind::Errors, session: 1, payload: vec![b'x'; 65_536] });
        session.streams.write(0, vec![b'x'; 65_536]);
        typed.write_all(b"\x01x").unwrap();
        session.close();
        let mut out = Vec::new();
        loop {
            wait(&session);
            if session.carry(&mut out) {
                break;
            }
        }
        assert!(!session.is_over());
    }
}
