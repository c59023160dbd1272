//! `vmm attach`: a guest's console, from another terminal.

use super::named_guest::NamedGuest;
use super::stdout;
use crate::control::client::{ask, begin};
use crate::control::protocol::{Request, Response};
use crate::job::desk::take_signals;
use crate::job::session::next_signal;
use crate::logging;
use crate::outcome;
use crate::run::escape::{Escape, Key};
use crate::run::terminal::RawMode;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::signalfd::SignalFd;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

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
    match Visit::new(stream, guest, types).and_then(|visit| visit.live()) {
        Ok(code) => code,
        Err(error) => {
            log::error!("the console cannot be had: {error}");
            outcome::FILE
        }
    }
}

/// Somebody at a guest's console.
struct Visit {
    stream: UnixStream,
    guest: String,
    signals: SignalFd,
    /// What is typed; not by the buffer that the standard library has.
    input: File,
    /// A person's terminal: then the keys count.
    terminal: Option<RawMode>,
    escape: Escape,
    /// There may be more to be typed.
    types: bool,
}

impl Visit {
    fn new(stream: UnixStream, guest: String, types: bool) -> io::Result<Visit> {
        let stdin = io::stdin();
        let input = File::from(stdin.as_fd().try_clone_to_owned()?);
        let is_terminal = stdin.is_terminal() && io::stdout().is_terminal();
        let signals = take_signals(is_terminal).map_err(io::Error::other)?;
        let terminal = match is_terminal {
            true => Some(RawMode::enter(stdin.as_fd().try_clone_to_owned()?)?),
            false => None,
        };
        if terminal.is_some() {
            logging::print("vmm: Ctrl-A x leaves the console, Ctrl-A h shows the keys\n");
        }
        // A person's keys count also where nothing is typed.
        let types = types || terminal.is_some();
        Ok(Visit { stream, guest, signals, input, terminal, escape: Escape::default(), types })
    }

    /// The exit code.
    fn live(mut self) -> io::Result<u8> {
        loop {
            let is_ours = self.terminal.as_ref().is_none_or(|raw| raw.take().unwrap_or(false));
            let [typed, printed] = self.wait(is_ours)?;
            while let Some(signal) = next_signal(&self.signals) {
                if self.hear(signal)? {
                    return Ok(0);
                }
            }
            if printed && let Some(code) = self.print()? {
                return Ok(code);
            }
            if typed && is_ours && self.type_on()? {
                return Ok(0);
            }
        }
    }

    /// Waits for something: whether something is typed, and printed.
    fn wait(&self, is_ours: bool) -> io::Result<[bool; 2]> {
        let mut polls = vec![
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if self.types && is_ours {
            polls.push(PollFd::new(self.input.as_fd(), PollFlags::POLLIN));
        }
        let timeout = if is_ours { PollTimeout::NONE } else { PollTimeout::from(LOOK_AGAIN) };
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |index: usize| polls.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok([is_ready(2), is_ready(0)])
    }

    /// Hears a signal; whether it is the end of this.
    fn hear(&self, signal: Signal) -> io::Result<bool> {
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

    /// Shows what the guest has printed; the exit code when there is nothing more, or nobody to see it.
    fn print(&mut self) -> io::Result<Option<u8>> {
        let mut bytes = [0; 8192];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                drop(self.terminal.take());
                logging::print("\nvmm: the guest has ended\n");
                Ok(Some(0))
            }
            Ok(count) => {
                let mut out = io::stdout().lock();
                let written = out.write_all(&bytes[..count]).and_then(|()| out.flush());
                Ok(written.is_err().then(|| stdout::written(written, 0)))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Passes on what is typed; whether somebody wants to leave.
    fn type_on(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 1024];
        let count = match self.input.read(&mut bytes) {
            Ok(0) => {
                // The guest hears nothing more, and is watched on.
                self.types = false;
                self.stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(false);
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(false),
            // It is another job's terminal by now.
            Err(_) if self.terminal.as_ref().is_some_and(|raw| !raw.is_ours()) => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.terminal.is_none() {
            self.stream.write_all(&bytes[..count])?;
            return Ok(false);
        }
        let (typed, keys) = self.escape.filter(&bytes[..count]);
        self.stream.write_all(&typed)?;
        for key in keys {
            match key {
                Key::Quit => return Ok(true),
                Key::Help => logging::print(&format!("\n{HELP}\n")),
                Key::Kernels(key) => match ask(&self.guest, &Request::Sysrq { key: char::from(key) }) {
                    Ok(Response::Error(why)) => log::warn!("{why}"),
                    Ok(_) => {}
                    Err(error) => log::warn!("{error}"),
                },
            }
        }
        Ok(false)
    }
}
