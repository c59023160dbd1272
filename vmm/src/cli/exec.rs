//! `vmm exec`: another command in a guest of `vmm run`.

use super::candidates::guests;
use super::job::{command_of, environment_of};
use crate::control::names::socket_of;
use crate::control::protocol::{Request, Response, send};
use crate::job::desk::take_signals;
use crate::job::protocol::{Command, Decoder};
use crate::job::session::{CommandEnd, Session, has_terminal, size_of_terminal};
use crate::job::verdict::{CANNOT, Verdict};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Run another command in a guest of `vmm run`
///
/// Its output, errors and exit code are this program's, as those of `vmm run` are. It ends with the guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's --name, or the path of its control socket
    #[arg(add = guests())]
    guest: String,
    /// A variable of the command's environment: NAME as it is here, or NAME=VALUE; may be given more than once
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Where the command runs
    #[arg(long, value_name = "DIR", default_value = "/")]
    cwd: PathBuf,
    /// Give the command no terminal, though there is one
    #[arg(long)]
    no_tty: bool,
    /// The command and its arguments; a shell where there is none
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The most bytes of the guest's answer to the request.
const LONGEST_ANSWER: usize = 4096;

/// Runs it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let terminal = (has_terminal() && !args.no_tty).then(|| size_of_terminal().unwrap_or((24, 80)));
    let command = Command {
        words: command_of(&args.command),
        environment: environment_of(&args.env, terminal.is_some()),
        folder: args.cwd.clone().into_os_string().into_vec(),
        terminal,
    };
    match visit(&args.guest, &command) {
        Ok(verdict) => {
            if verdict.is_ambiguous() {
                log::warn!("{verdict}");
            }
            verdict.code()
        }
        Err(error) => {
            log::error!("{}: {error}", args.guest);
            CANNOT
        }
    }
}

/// Asks for a session; the connection, which is one then.
fn enter(guest: &str) -> io::Result<UnixStream> {
    let socket = if guest.contains('/') { PathBuf::from(guest) } else { socket_of(guest)? };
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => io::Error::other("no guest of this name runs"),
        _ => error,
    })?;
    send(&stream, &Request::Exec {})?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < LONGEST_ANSWER {
        let mut byte = [0];
        // What is behind the line is a frame's.
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    match serde_json::from_slice(&line)? {
        Response::Done(_) => Ok(stream),
        Response::Error(text) => Err(io::Error::other(text)),
        Response::Percent(_) => Err(io::Error::other("it answers something else")),
    }
}

fn visit(guest: &str, command: &Command) -> io::Result<Verdict> {
    let signals = take_signals().map_err(io::Error::other)?;
    let stream = enter(guest)?;
    stream.set_nonblocking(true)?;
    let mut visit = Visit {
        stream,
        signals,
        session: Session::new(1, command.terminal.is_some())?,
        decoder: Decoder::default(),
        out: Vec::new(),
    };
    if !visit.session.begin(command, &mut visit.out) {
        return Err(io::Error::other("the command and its environment are too long"));
    }
    let end = visit.live();
    visit.session.finish();
    match end? {
        CommandEnd::Code(code) => Ok(Verdict::Command(code)),
        CommandEnd::Signal(signal) => Ok(Verdict::Signal(signal)),
    }
}

/// All that is there meanwhile.
struct Visit {
    stream: UnixStream,
    signals: SignalFd,
    session: Session,
    decoder: Decoder,
    out: Vec<u8>,
}

impl Visit {
    fn live(&mut self) -> io::Result<CommandEnd> {
        loop {
            self.wait()?;
            while let Ok(Some(signal)) = self.signals.read_signal() {
                match Signal::try_from(i32::try_from(signal.ssi_signo).unwrap_or(0)) {
                    Ok(Signal::SIGWINCH) => self.session.resize(&mut self.out),
                    Ok(Signal::SIGTTIN) | Err(_) => {}
                    Ok(signal) => self.session.signal(signal, &mut self.out),
                }
            }
            if self.session.carry(&mut self.out) {
                return Ok(CommandEnd::Signal(u8::try_from(Signal::SIGINT as i32).unwrap_or(0)));
            }
            self.send()?;
            if let Some(end) = self.receive()? {
                return Ok(end);
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let sends = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        // SAFETY: it is not closed while it is waited for.
        let news = unsafe { BorrowedFd::borrow_raw(self.session.wake().as_raw_fd()) };
        let mut polls = [
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN | sends),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(news, PollFlags::POLLIN),
        ];
        match poll(&mut polls, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match (&self.stream).write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // What it has said before is to be heard.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.out.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<CommandEnd>> {
        let mut bytes = [0; 8192];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Err(io::Error::other("the guest has ended")),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            while let Some(frame) =
                self.decoder.take().map_err(|_| io::Error::other("what the guest says is not understood"))?
            {
                if let Some(end) = self.session.hear(frame) {
                    return Ok(Some(end));
                }
            }
        }
    }
}
