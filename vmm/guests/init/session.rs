//! Commands: processes, their pipes or their terminal, and what goes through them.

use crate::common::protocol::{self, Command, Kind};
use crate::sys::{self, Ended, Fd, IN, OUT, Poll};
use alloc::format;
use alloc::vec::Vec;

/// A stream of a command's output.
#[derive(Debug)]
struct Stream {
    fd: Option<Fd>,
    /// Bytes that the host has room for.
    room: u32,
    /// Once the command has ended: bytes that were there by then, and are still to be sent. What others that it has left
    /// behind write after it is dropped: they could go on without end.
    rest: Option<usize>,
}

/// A command that runs.
#[derive(Debug)]
pub struct Session {
    pub id: u16,
    pub pid: usize,
    /// How it has ended; what it wrote may not have been sent yet.
    pub ended: Option<Ended>,
    input: Option<Fd>,
    /// What has come for its input and was not taken yet.
    pending: Vec<u8>,
    /// Behind that there comes nothing.
    input_ends: bool,
    streams: [Stream; 2],
    is_terminal: bool,
    /// What has something to read when the command could not begin: its exit code, and why.
    refusal: Fd,
}

/// More than a terminal holds that nobody has read, bytes.
const MOST_OF_TERMINAL: usize = 256 << 10;

/// Exit codes of a command that cannot be run, as a shell's.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// What the kernel's terminals are asked (ioctl_tty(2)).
mod request {
    pub const SET_CONTROLLING: usize = 0x540e;
    pub const SET_SIZE: usize = 0x5414;
    pub const GET_NUMBER: usize = 0x8004_5430;
    pub const SET_LOCK: usize = 0x4004_5431;
}

fn set_size(terminal: Fd, rows: u16, columns: u16) {
    let size = [rows, columns, 0, 0];
    sys::ioctl(terminal, request::SET_SIZE, size.as_ptr() as usize).ok();
}

/// What has been opened for a command: closed with this.
#[derive(Default)]
struct Opened(Vec<Fd>);

impl Opened {
    fn open(&mut self, path: &[u8]) -> sys::Result<Fd> {
        let fd = sys::open(path, sys::READ_WRITE | sys::NO_TERMINAL | sys::CLOSE_ON_EXEC)?;
        self.0.push(fd);
        Ok(fd)
    }

    /// A new terminal: its two ends.
    fn terminal(&mut self, rows: u16, columns: u16) -> sys::Result<(Fd, Fd)> {
        let master = self.open(b"/dev/ptmx")?;
        let (mut number, unlocked) = (0u32, 0i32);
        sys::ioctl(master, request::SET_LOCK, &raw const unlocked as usize)?;
        sys::ioctl(master, request::GET_NUMBER, &raw mut number as usize)?;
        let slave = self.open(format!("/dev/pts/{number}").as_bytes())?;
        set_size(slave, rows, columns);
        Ok((master, slave))
    }

    /// A new pipe: what reads, and what writes.
    fn pipe(&mut self) -> sys::Result<(Fd, Fd)> {
        let ends = sys::pipe()?;
        self.0.extend([ends.0, ends.1]);
        Ok(ends)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for fd in self.0.drain(..) {
            sys::close(fd);
        }
    }
}

/// Becomes a program, or says why not. What the kernel takes for none is a shell's script, as for a shell (execvp(3)),
/// unless there are bytes in it that no text has.
fn execute(path: &[u8], command: &Command) -> sys::Errno {
    const SHELL: &[u8] = b"/bin/sh";
    let error = sys::execute(path, &command.words, &command.environment);
    if error == sys::ENOEXEC && is_text(path) {
        let rest = command.words.iter().skip(1).cloned();
        let words: Vec<Vec<u8>> = [b"sh".to_vec(), path.to_vec()].into_iter().chain(rest).collect();
        sys::execute(SHELL, &words, &command.environment);
    }
    error
}

fn is_text(path: &[u8]) -> bool {
    let mut bytes = [0; 128];
    let Ok(fd) = sys::open(path, sys::READ_ONLY | sys::CLOSE_ON_EXEC) else { return false };
    let count = sys::read(fd, &mut bytes);
    sys::close(fd);
    count.is_ok_and(|count| !bytes[..count].contains(&0))
}

/// Whether there is nothing of that name.
fn is_missing(error: sys::Errno) -> bool {
    matches!(error, sys::ENOENT | sys::ENOTDIR)
}

/// Becomes the command, or writes why not.
fn turn_into(command: &Command, refusal: Fd) -> ! {
    sys::block_signals(false);
    let name = command.words.first().map(Vec::as_slice).unwrap_or_default();
    let fail = |what: &[u8], error: sys::Errno| -> ! {
        let code = if is_missing(error) { NOT_FOUND } else { NOT_EXECUTABLE };
        let words = format!("{}: {error}", alloc::string::String::from_utf8_lossy(what));
        // It has room for a path. Whoever would read it may have gone.
        sys::write(refusal, &[&[code], words.as_bytes()].concat()).ok();
        sys::exit(code)
    };
    if let Err(error) = sys::change_folder(&command.folder) {
        fail(&command.folder, error);
    }
    if name.is_empty() {
        fail(name, sys::ENOENT);
    }
    if name.contains(&b'/') {
        fail(name, execute(name, command));
    }
    let path = command.environment.iter().find_map(|it| it.strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut worst = sys::ENOENT;
    for folder in path.split(|byte| *byte == b':') {
        // One without a name is the command's own.
        let before: &[u8] = if folder.is_empty() { b"." } else { folder };
        let error = execute(&[before, b"/", name].concat(), command);
        if !is_missing(error) {
            worst = error;
        }
    }
    fail(name, worst)
}

impl Session {
    pub fn start(id: u16, command: &Command) -> sys::Result<Session> {
        let mut opened = Opened::default();
        let (ours, theirs): ([Option<Fd>; 3], [Fd; 3]) = match command.terminal {
            Some((rows, columns)) => {
                let (master, slave) = opened.terminal(rows, columns)?;
                let errors = if command.errors_apart { Some(opened.pipe()?) } else { None };
                let (ours, theirs) = errors.map_or((None, slave), |(read, write)| (Some(read), write));
                ([Some(master), Some(master), ours], [slave, slave, theirs])
            }
            None => {
                let (input, output, errors) = (opened.pipe()?, opened.pipe()?, opened.pipe()?);
                ([Some(input.1), Some(output.0), Some(errors.0)], [input.0, output.1, errors.1])
            }
        };
        // Its end is closed when the command has begun.
        let (refusal, refuses) = opened.pipe()?;
        let pid = sys::fork()?;
        if pid == 0 {
            sys::new_session();
            for (fd, number) in theirs.into_iter().zip(0..) {
                sys::duplicate(fd, number).ok();
            }
            if command.terminal.is_some() {
                sys::ioctl(Fd(0), request::SET_CONTROLLING, 0).ok();
            }
            turn_into(command, refuses);
        }
        // The others are closed.
        opened.0.retain(|fd| !ours.contains(&Some(*fd)) && *fd != refusal);
        for fd in ours.into_iter().flatten().chain([refusal]) {
            sys::never_wait(fd);
        }
        let [input, output, errors] = ours;
        let room = protocol::WINDOW;
        Ok(Session {
            id,
            pid,
            ended: None,
            input,
            pending: Vec::new(),
            input_ends: false,
            streams: [output, errors].map(|fd| Stream { fd, room, rest: None }),
            is_terminal: command.terminal.is_some(),
            refusal,
        })
    }

    /// What it waits for.
    pub fn polls(&self, polls: &mut Vec<Poll>, may_send: bool) {
        for stream in &self.streams {
            if let Some(fd) = stream.fd.filter(|_| may_send && stream.room > 0 && self.ended.is_none()) {
                polls.push(Poll { fd: fd.0, events: IN, came: 0 });
            }
        }
        if let Some(fd) = self.input.filter(|_| !self.pending.is_empty()) {
            polls.push(Poll { fd: fd.0, events: OUT, came: 0 });
        }
    }

    /// Something has come for it.
    pub fn hear(&mut self, kind: Kind, payload: &[u8]) {
        match kind {
            Kind::Input if payload.is_empty() => self.input_ends = true,
            Kind::Input => self.pending.extend_from_slice(payload),
            Kind::Grant => {
                let stream = payload.first().map_or(0, |stream| usize::from(stream.wrapping_sub(1)));
                if let (Some(stream), Some(more)) =
                    (self.streams.get_mut(stream), protocol::number(payload, 1))
                {
                    stream.room = stream.room.saturating_add(more);
                }
            }
            Kind::Resize if self.is_terminal => {
                if let (Some(fd), &[r0, r1, c0, c1]) = (self.input, payload) {
                    set_size(fd, u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1]));
                }
            }
            Kind::Signal if self.ended.is_none() => {
                if let Some(signal) = payload.first() {
                    sys::kill_group(self.pid, *signal);
                }
            }
            _ => {}
        }
    }

    /// Carries what there is to carry; whether all is done, and the command has ended.
    pub fn serve(&mut self, out: &mut Vec<u8>) -> bool {
        self.feed(out);
        let mut is_dry = true;
        for (index, kind) in [Kind::Output, Kind::Errors].into_iter().enumerate() {
            is_dry &= self.drain(index, kind, out);
        }
        is_dry && self.ended.is_some()
    }

    fn feed(&mut self, out: &mut Vec<u8>) {
        let Some(fd) = self.input else {
            self.pending.clear();
            return;
        };
        while !self.pending.is_empty() {
            match sys::write(fd, &self.pending) {
                Ok(count) => {
                    self.pending.drain(..count);
                    let count = u32::try_from(count).unwrap_or(0);
                    protocol::put(out, Kind::InputGrant, self.id, &count.to_le_bytes());
                }
                Err(sys::EAGAIN) => return,
                Err(sys::EINTR) => {}
                Err(_) => {
                    // Nobody reads it.
                    let count = u32::try_from(self.pending.len()).unwrap_or(0);
                    self.pending.clear();
                    protocol::put(out, Kind::InputGrant, self.id, &count.to_le_bytes());
                }
            }
        }
        if self.input_ends && !self.is_terminal {
            sys::close(fd);
            self.input = None;
        }
    }

    /// Sends what a stream has; whether it has no more for now.
    fn drain(&mut self, index: usize, kind: Kind, out: &mut Vec<u8>) -> bool {
        // Errors that are not the terminal's have a pipe.
        let is_terminal = self.is_terminal && index == 0;
        let stream = &mut self.streams[index];
        let mut bytes = [0; 8192];
        if self.ended.is_some() && stream.rest.is_none() {
            stream.rest = Some(match is_terminal {
                // Of what is on its way through one there is no count.
                true => MOST_OF_TERMINAL,
                false => stream.fd.map_or(0, sys::waiting),
            });
        }
        while let Some(fd) = stream.fd {
            if stream.rest == Some(0) {
                return true;
            }
            let room = bytes.len().min(stream.room as usize).min(stream.rest.unwrap_or(usize::MAX));
            if room == 0 || out.len() > super::common::MOST_WAITING {
                return false;
            }
            match sys::read(fd, &mut bytes[..room]) {
                Ok(count) if count > 0 => {
                    stream.room -= count as u32;
                    stream.rest = stream.rest.map(|rest| rest.saturating_sub(count));
                    protocol::put(out, kind, self.id, &bytes[..count]);
                }
                Err(sys::EINTR) => {}
                Err(sys::EAGAIN) => return true,
                // Its end; for a terminal that is an error.
                _ => {
                    if !is_terminal {
                        sys::close(fd);
                    }
                    stream.fd = None;
                    protocol::put(out, kind, self.id, &[]);
                }
            }
        }
        true
    }

    /// How it has ended, as the host is told ([`Kind::Exit`]).
    pub fn end(&self) -> Vec<u8> {
        let mut told = [0; 8192];
        match (sys::read(self.refusal, &mut told), self.ended) {
            (Ok(count), _) if count > 0 => [&[2], &told[..count]].concat(),
            (_, Some(Ended::Signal(signal))) => [1, signal].into(),
            (_, Some(Ended::Exit(code))) => [0, code].into(),
            (_, None) => [0, 0].into(),
        }
    }

    /// Closes what is open.
    pub fn close(self) {
        let [output, errors] = self.streams;
        let input = self.input.filter(|fd| Some(*fd) != output.fd);
        for fd in [input, output.fd, errors.fd, Some(self.refusal)].into_iter().flatten() {
            sys::close(fd);
        }
    }
}
