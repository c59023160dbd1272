//! `vmm attach`: a guest's console, from another terminal.

use super::named_guest::NamedGuest;
use crate::control::client::{ask_within, begin, was_killed};
use crate::control::pending::Pending;
use crate::control::protocol::{Request, Response};
use crate::job::session::next_signal;
use crate::job::signals::take_signals;
use crate::logging;
use crate::outcome;
use crate::run::escape::{Escape, Key};
use crate::run::terminal::RawMode;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::signalfd::SignalFd;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Be the console of a guest that runs, beside the one that it has
///
/// What it prints from now on is seen by everybody who is attached, and one of them types. It ends with the guest, and by
/// Ctrl-A x.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Watch, and type nothing
    #[arg(long)]
    watch: bool,
}

/// The keys.
const HELP: &str = "\
Ctrl-A x       leave the console; the guest goes on
Ctrl-A b KEY   press a key of the kernel's (SysRq), for example w or l (in a guest of vmm run)
Ctrl-A h       this help
Ctrl-A Ctrl-A  send Ctrl-A to the guest";

/// What is typed and waits for the guest at most, bytes: a terminal is read on for the keys.
const MOST_TYPED: usize = 64 << 10;
/// How long the guest's monitor may take to press a key.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a process in the background looks whether it is in the foreground, milliseconds.
const LOOK_AGAIN: u16 = 200;

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let mut connection = None;
    let answer = args.guest.ask_of(|guest| {
        let (stream, answer) = begin(guest, &Request::Attach { watch: args.watch })?;
        connection = Some((stream, guest.to_string()));
        Ok(answer)
    });
    let (words, stream, guest) = match (answer, connection) {
        (Ok(Response::Done(words)), Some((stream, guest))) => (words, stream, guest),
        (answer, _) => return args.guest.tell(answer),
    };
    let types = words == "types";
    if !types && !args.watch {
        log::warn!("{words}: this only watches");
    }
    match Visit::new(stream, guest, types).and_then(Visit::live) {
        Ok(code) => code,
        Err(error) => {
            log::error!("the console cannot be had: {error}");
            outcome::FILE
        }
    }
}

/// Somebody at a guest's console. It waits for neither end: signals and keys are heard whoever does not read.
struct Visit {
    stream: UnixStream,
    guest: String,
    signals: SignalFd,
    /// What is typed; not by the buffer that the standard library has.
    input: File,
    /// There may be more to be typed.
    is_input_open: bool,
    /// A person's terminal: then the keys count, also of whoever only watches.
    terminal: Option<RawMode>,
    escape: Escape,
    /// What is typed is the guest's.
    types: bool,
    /// What waits for the guest...
    typed: Pending,
    /// ...some of which was dropped, since it last had taken all there was.
    told_drop: bool,
    /// What waits for whoever reads standard output.
    printed: Pending,
    output: File,
    /// The guest prints nothing more.
    is_over: bool,
}

/// Why a visit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// The guest has ended.
    Guest,
    /// Somebody wants to: by the keys, or as nobody reads what is printed.
    Wanted,
    /// A signal.
    Signal(Signal),
}

/// What there is to be dealt with.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    typed: bool,
    /// The guest has printed something, or can be typed to.
    stream: bool,
    /// What is printed has room, or nobody who reads it.
    output: bool,
}

impl Visit {
    fn new(stream: UnixStream, guest: String, types: bool) -> io::Result<Visit> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let input = File::from(stdin.as_fd().try_clone_to_owned()?);
        let output = File::from(stdout.as_fd().try_clone_to_owned()?);
        let is_terminal = stdin.is_terminal() && stdout.is_terminal();
        let signals = take_signals(is_terminal).map_err(io::Error::other)?;
        let terminal = match is_terminal {
            true => Some(RawMode::enter(stdin.as_fd().try_clone_to_owned()?)?),
            false => None,
        };
        if terminal.is_some() {
            logging::print("vmm: Ctrl-A x leaves the console, Ctrl-A h shows the keys\n");
        }
        stream.set_nonblocking(true)?;
        Ok(Visit {
            stream,
            guest,
            signals,
            input,
            is_input_open: types || is_terminal,
            terminal,
            escape: Escape::default(),
            types,
            typed: Pending::default(),
            told_drop: false,
            printed: Pending::default(),
            output,
            is_over: false,
        })
    }

    /// The exit code.
    fn live(mut self) -> io::Result<u8> {
        let left = loop {
            if let Some(left) = self.turn()? {
                break left;
            }
        };
        // What is said is said at a terminal as it was.
        drop(self.terminal.take());
        Ok(match left {
            Leave::Wanted => 0,
            Leave::Signal(signal) => 128 + u8::try_from(signal as i32).unwrap_or(0),
            Leave::Guest if was_killed(&self.guest) => {
                log::error!("the guest's monitor was killed");
                outcome::FILE
            }
            Leave::Guest => {
                logging::print("\nvmm: the guest has ended\n");
                0
            }
        })
    }

    /// Waits for something, and deals with it.
    fn turn(&mut self) -> io::Result<Option<Leave>> {
        let is_ours = self.terminal.as_ref().is_none_or(|raw| raw.take().unwrap_or(false));
        let ready = self.wait(is_ours)?;
        while let Some(signal) = next_signal(&self.signals) {
            if hear(signal)? {
                return Ok(Some(Leave::Signal(signal)));
            }
        }
        if ready.typed && is_ours && self.read_input()? {
            return Ok(Some(Leave::Wanted));
        }
        if ready.stream {
            self.send()?;
            self.receive()?;
        }
        if ready.output && !self.print()? {
            return Ok(Some(Leave::Wanted));
        }
        Ok((self.is_over && self.printed.is_empty()).then_some(Leave::Guest))
    }

    /// Waits for something.
    fn wait(&self, is_ours: bool) -> io::Result<Ready> {
        let wanted = |flags: PollFlags, is_wanted: bool| if is_wanted { flags } else { PollFlags::empty() };
        let mut stream = wanted(PollFlags::POLLIN, self.printed.is_empty());
        stream |= wanted(PollFlags::POLLOUT, !self.typed.is_empty());
        // A terminal's keys count however much waits; what else is typed waits where it comes from.
        let has_room = self.terminal.is_some() || self.typed.is_empty();
        let input = wanted(PollFlags::POLLIN, self.is_input_open && is_ours && has_room);
        let mut polls = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.output.as_fd(), wanted(PollFlags::POLLOUT, !self.printed.is_empty())),
        ];
        // One that has gone would be told again and again.
        let stream_at = (!self.is_over && !stream.is_empty()).then_some(polls.len());
        polls.extend(stream_at.map(|_| PollFd::new(self.stream.as_fd(), stream)));
        let input_at = (!input.is_empty()).then_some(polls.len());
        polls.extend(input_at.map(|_| PollFd::new(self.input.as_fd(), input)));
        let timeout = if is_ours { PollTimeout::NONE } else { PollTimeout::from(LOOK_AGAIN) };
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: Option<usize>| at.and_then(|at| polls[at].any()).unwrap_or(false);
        Ok(Ready { typed: is_ready(input_at), stream: is_ready(stream_at), output: is_ready(Some(1)) })
    }

    /// Sends what is typed, as far as there is room for it.
    fn send(&mut self) -> io::Result<()> {
        match self.typed.write_some(&self.stream, usize::MAX) {
            Ok(_) => self.told_drop &= !self.typed.is_empty(),
            // The guest hears nothing more; what it has said is to be seen.
            Err(error) if is_gone(&error) => {
                self.types = false;
                self.typed.clear();
            }
            Err(error) => return Err(error),
        }
        if !self.is_input_open && self.types && self.typed.is_empty() {
            // Somebody else may type, and the guest is watched on.
            self.types = false;
            self.stream.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    }

    /// Takes what the guest has printed, when all before has gone out.
    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 8192];
        if !self.printed.is_empty() {
            return Ok(());
        }
        match self.stream.read(&mut bytes) {
            Ok(0) => self.is_over = true,
            Ok(count) => self.printed.push(&bytes[..count]),
            Err(error) if is_gone(&error) => self.is_over = true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Prints some of that; whether somebody reads it.
    fn print(&mut self) -> io::Result<bool> {
        if self.printed.is_empty() {
            // Then nothing but its end is waited for.
            return Ok(false);
        }
        // What has room at all has it for so much (pipe(7)): others have it open as well, so that it is not to be made
        // non-blocking.
        match self.printed.write_some(&self.output, libc::PIPE_BUF) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}")))
            }
        }
    }

    /// Takes what is typed; whether somebody wants to leave.
    fn read_input(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 1024];
        let count = match self.input.read(&mut bytes) {
            Ok(0) => {
                self.is_input_open = false;
                self.send()?;
                return Ok(false);
            }
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            // It is another job's terminal by now.
            Err(_) if self.terminal.as_ref().is_some_and(|raw| !raw.is_ours()) => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.terminal.is_none() {
            self.type_in(&bytes[..count])?;
            return Ok(false);
        }
        let (typed, keys) = self.escape.filter(&bytes[..count]);
        self.type_in(&typed)?;
        Ok(keys.into_iter().any(|key| self.press(key)))
    }

    /// Has the guest type something, as far as it may wait and this one types.
    fn type_in(&mut self, typed: &[u8]) -> io::Result<()> {
        if !self.types {
            return Ok(());
        }
        let kept = typed.len().min(MOST_TYPED.saturating_sub(self.typed.len()));
        self.typed.push(&typed[..kept]);
        if kept < typed.len() && !std::mem::replace(&mut self.told_drop, true) {
            log::warn!("what is typed is dropped: the guest does not read it (Ctrl-A x leaves the console)");
        }
        self.send()
    }

    /// Does what a key is for; whether that is to leave.
    fn press(&self, key: Key) -> bool {
        match key {
            Key::Quit => return true,
            Key::Help => logging::print(&format!("\n{HELP}\n")),
            Key::Kernels(key) => {
                // The guest's monitor has nothing to wait for.
                match ask_within(&self.guest, &Request::Sysrq { key: char::from(key) }, PATIENCE) {
                    Ok(Response::Error(why)) => log::warn!("{why}"),
                    Ok(_) => {}
                    Err(error) => log::warn!("{error}"),
                }
            }
        }
        false
    }
}

/// Hears a signal; whether it is the end of this.
fn hear(signal: Signal) -> io::Result<bool> {
    match signal {
        Signal::SIGTSTP => {
            crate::run::terminal::restore();
            raise(Signal::SIGSTOP)?;
            Ok(false)
        }
        Signal::SIGCONT | Signal::SIGWINCH | Signal::SIGTTIN | Signal::SIGTTOU => Ok(false),
        _ => Ok(true),
    }
}

/// Whether the other end has gone; it may have left something unread.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::SfdFlags;
    use std::io::{PipeReader, PipeWriter, Write};
    use std::os::fd::OwnedFd;

    struct Setting {
        visit: Visit,
        guest: UnixStream,
        keyboard: PipeWriter,
        screen: PipeReader,
    }

    /// Somebody who types, not at a terminal, at a guest that is the other end of a socket.
    fn setting(types: bool) -> Setting {
        let (stream, guest) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let ((input, keyboard), (screen, output)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let signals = SigSet::from(Signal::SIGUSR2);
        signals.thread_block().unwrap();
        let visit = Visit {
            stream,
            guest: "/nonexistent/guest.sock".into(),
            signals: SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK).unwrap(),
            input: OwnedFd::from(input).into(),
            is_input_open: types,
            terminal: None,
            escape: Escape::default(),
            types,
            typed: Pending::default(),
            told_drop: false,
            printed: Pending::default(),
            output: OwnedFd::from(output).into(),
            is_over: false,
        };
        Setting { visit, guest, keyboard, screen }
    }

    /// Neither a guest that does not read nor a reader that does not keeps it from hearing of signals.
    #[test]
    fn signals_are_heard_whoever_does_not_read() {
        let Setting { mut visit, mut guest, mut keyboard, screen } = setting(true);
        guest.set_nonblocking(true).unwrap();
        let typing = std::thread::spawn(move || {
            // Ends with the other end.
            while keyboard.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let has_room = |fd: &dyn AsFd| {
            let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
        };
        let is_stuck = |pending: &Pending, fd: &dyn AsFd| !pending.is_empty() && !has_room(fd);
        while !is_stuck(&visit.typed, &visit.stream) || !is_stuck(&visit.printed, &visit.output) {
            while guest.write(&[b'y'; 4096]).is_ok() {}
            assert_eq!(visit.turn().unwrap(), None);
        }
        raise(Signal::SIGUSR2).unwrap();
        assert_eq!(visit.turn().unwrap(), Some(Leave::Signal(Signal::SIGUSR2)));
        drop((visit, screen));
        typing.join().unwrap();
    }

    #[test]
    fn all_is_carried_both_ways_to_the_guests_end() {
        let Setting { mut visit, mut guest, mut keyboard, mut screen } = setting(true);
        keyboard.write_all(b"typed").unwrap();
        drop(keyboard);
        guest.write_all(b"printed").unwrap();
        while visit.is_input_open || visit.types {
            assert_eq!(visit.turn().unwrap(), None);
        }
        let mut heard = String::new();
        guest.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "typed");
        guest.write_all(b" more").unwrap();
        drop(guest);
        let left = loop {
            if let Some(left) = visit.turn().unwrap() {
                break left;
            }
        };
        assert_eq!(left, Leave::Guest);
        drop(visit);
        let mut seen = String::new();
        screen.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "printed more");
    }

    #[test]
    fn a_watcher_sends_nothing_and_leaves_when_nobody_reads() {
        let Setting { mut visit, guest, keyboard, screen } = setting(false);
        visit.type_in(b"typed").unwrap();
        assert!(visit.typed.is_empty());
        drop(screen);
        assert_eq!(visit.turn().unwrap(), Some(Leave::Wanted));
        drop((guest, keyboard));
    }
}
