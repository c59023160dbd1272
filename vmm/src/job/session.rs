//! The host's end of a session: the process's standard streams, and the command in the guest that they belong to.

use super::protocol::{self, Command, Frame, Kind, NO_SESSION};
use super::streams::{News, Streams};
use crate::logging;
use crate::run::escape::{Escape, HELP, Key};
use crate::run::terminal::RawMode;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// As much input waits for the guest at most, bytes.
const MOST_WAITING: usize = 256 << 10;

/// How a command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself, with this code.
    Code(u8),
    /// By a signal.
    Signal(u8),
}

/// A session's end.
#[derive(Debug)]
pub struct Session {
    id: u16,
    streams: Streams,
    /// For a terminal.
    escape: Option<Escape>,
    raw: Option<RawMode>,
    /// Bytes of output and errors that the guest may send still, of each.
    allowed: [u32; 2],
    /// Bytes of input that are read for it still.
    input_room: u32,
    /// The last of its errors is no line's end.
    is_line_open: bool,
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
        let raw = match has_terminal {
            true => Some(RawMode::enter(io::stdin().as_fd().try_clone_to_owned()?)?),
            false => None,
        };
        Ok(Session {
            id,
            streams,
            escape: raw.is_some().then(Escape::default),
            raw,
            allowed: [protocol::WINDOW; 2],
            input_room: protocol::WINDOW,
            is_line_open: false,
        })
    }

    /// Becomes readable when there is something to [carry](Self::carry).
    pub fn wake(&self) -> &EventFd {
        self.streams.wake()
    }

    /// The guest is there: the command is started. `false` if it is too long.
    pub fn begin(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        let Some(command) = command.encoded() else { return false };
        protocol::put(out, Kind::Start, self.id, &command);
        self.streams.make_room(protocol::WINDOW);
        true
    }

    /// What is typed, and what has been written; whether somebody wants the guest's end.
    pub fn carry(&mut self, out: &mut Vec<u8>) -> bool {
        self.streams.wake().read().ok();
        let mut ends = false;
        while let Some(news) = self.streams.next() {
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
                // As for a program whose output nobody reads.
                News::Broken(0) => self.signal(Signal::SIGPIPE, out),
                News::Broken(_) => {}
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
        // What is not sent leaves room.
        let kept = u32::try_from(bytes.len() - typed.len()).unwrap_or(0);
        self.input_room = self.input_room.saturating_add(kept);
        self.streams.make_room(kept);
        if !typed.is_empty() && out.len() < MOST_WAITING {
            protocol::put(out, Kind::Input, self.id, &typed);
        }
        for key in &keys {
            match key {
                Key::Help => logging::print(&format!("{}\r\n", HELP.replace('\n', "\r\n"))),
                Key::Kernels(key) => protocol::put(out, Kind::Key, NO_SESSION, &[*key]),
                Key::Quit => {}
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
    pub fn resize(&self, out: &mut Vec<u8>) {
        if let Some((rows, columns)) = self.escape.is_some().then(size_of_terminal).flatten() {
            let size = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
            protocol::put(out, Kind::Resize, self.id, &size);
        }
    }

    /// Waits until all is written, as long as somebody reads it, and gives the terminal back; whether errors have ended
    /// within a line.
    pub fn finish(self) -> bool {
        self.streams.finish();
        drop(self.raw);
        self.is_line_open
    }
}

/// Whether the process has a terminal to give to a command.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Rows and columns of the process's terminal.
pub fn size_of_terminal() -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills in a structure of that kind (ioctl_tty(2)).
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_row, size.ws_col))
}
