//! `vmm exec`: another command in a guest of `vmm run`.

use super::candidates::guests;
use super::job::{command_of, environment_of, warn_of_unset};
use super::refusal;
use super::values;
use crate::control::client::begin;
use crate::control::protocol::{Request, Response};
use crate::job::protocol::{Command, Decoder};
use crate::job::session::{
    CommandEnd, Session, TOO_LONG, has_errors_apart, has_terminal, next_signal, size_of_terminal,
};
use crate::job::signals::take_signals;
use crate::job::verdict::{CANNOT, Verdict};
use crate::outcome::StoppedBy;
use arch::plain::plain;
use clap::builder::ValueParser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
    /// How long the guest may take until it begins the command: it boots still, or a debugger holds it
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = ValueParser::new(values::duration))]
    wait: Duration,
    /// Give the command no terminal, though there is one
    #[arg(long)]
    no_tty: bool,
    /// The command and its arguments; a shell where there is none
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long whoever reads the output has, once somebody has ended this.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Runs it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let terminal = (has_terminal() && !args.no_tty).then(|| size_of_terminal().unwrap_or((24, 80)));
    let command = Command {
        words: command_of(&args.command),
        environment: environment_of(&args.env, terminal.is_some()),
        folder: args.cwd.clone().into_os_string().into_vec(),
        terminal,
        errors_apart: terminal.is_some() && has_errors_apart(),
    };
    warn_of_unset(&args.env);
    match visit(&args.guest, &command, args.wait) {
        Ok(verdict) => {
            match verdict {
                Verdict::Unwritten(_) | Verdict::NotBegun(..) => refusal::say(&verdict.to_string()),
                _ if verdict.is_ambiguous() => log::warn!("{verdict}"),
                _ => {}
            }
            verdict.code()
        }
        Err(error) => {
            refusal::say(&plain(&format!("{}: {error}", args.guest)));
            CANNOT
        }
    }
}

/// Asks for a session; the connection, which is one then.
fn enter(guest: &str) -> io::Result<UnixStream> {
    match begin(guest, &Request::Exec {})? {
        (stream, Response::Done(_)) => Ok(stream),
        (_, Response::Error(text)) => Err(io::Error::other(text)),
        _ => Err(io::Error::other("it answers something else")),
    }
}

fn ended() -> io::Error {
    io::Error::other("the guest has ended")
}

fn visit(guest: &str, command: &Command, wait: Duration) -> io::Result<Verdict> {
    let has_terminal = command.terminal.is_some();
    let command = command.encoded().ok_or_else(|| io::Error::other(TOO_LONG))?;
    // Until then signals end this, as they end any program.
    let stream = enter(guest)?;
    let signals = take_signals(has_terminal).map_err(io::Error::other)?;
    stream.set_nonblocking(true)?;
    let mut visit = Visit {
        stream,
        signals,
        session: Session::new(1, has_terminal)?,
        decoder: Decoder::default(),
        out: Vec::new(),
        begins_until: Some(Instant::now() + wait),
        was_told: false,
        is_over: false,
    };
    visit.session.begin(&command, &mut visit.out);
    let end = visit.live();
    // Who has ended it does not wait for whoever reads.
    let patience = matches!(end, Ok(End::Stopped(_))).then_some(LAST_MOMENT);
    let ended_by = visit.finish(patience);
    let verdict = match (end?, ended_by) {
        (End::Stopped(by), _) => Verdict::Stopped(by),
        (End::Command(_), Some(by)) => Verdict::Stopped(by),
        (End::Command(end), None) => end.into(),
    };
    Ok(verdict.of_output(visit.session.unwritten()))
}

/// How a visit ends.
#[derive(Debug)]
enum End {
    /// As the command does.
    Command(CommandEnd),
    /// Somebody here has had enough.
    Stopped(StoppedBy),
}

/// All that is there meanwhile.
struct Visit {
    stream: UnixStream,
    signals: SignalFd,
    session: Session,
    decoder: Decoder,
    out: Vec<u8>,
    /// Until when the guest has to have begun the command; none when it has.
    begins_until: Option<Instant>,
    /// The command was sent a signal that ends it.
    was_told: bool,
    /// Nothing more is heard of the guest.
    is_over: bool,
}

impl Visit {
    fn live(&mut self) -> io::Result<End> {
        loop {
            self.wait(self.begins_until)?;
            while let Some(signal) = self.next_signal() {
                // The second time, or where nobody can have heard it, it is the end of this.
                if self.begins_until.is_some() || std::mem::replace(&mut self.was_told, true) {
                    return Ok(End::Stopped(StoppedBy::Signal(signal as i32)));
                }
                self.session.signal(signal, &mut self.out);
            }
            if self.session.carry(&mut self.out) {
                return Ok(End::Stopped(StoppedBy::Console));
            }
            self.send()?;
            if let Some(end) = self.receive()? {
                return Ok(End::Command(end));
            }
            if self.begins_until.is_some_and(|until| until <= Instant::now()) {
                return Err(io::Error::other(
                    "the guest has not begun the command in time: it boots still, a debugger holds it, or it hangs (--wait)",
                ));
            }
        }
    }

    /// The next signal that is not about the terminal alone.
    fn next_signal(&mut self) -> Option<Signal> {
        while let Some(signal) = next_signal(&self.signals) {
            if !self.session.hear_of_terminal(signal, &mut self.out) {
                return Some(signal);
            }
        }
        None
    }

    /// Waits until all is written, as long as somebody reads it, it takes no longer than `patience`, and no signal or key
    /// ends the waiting: what has.
    fn finish(&mut self, patience: Option<Duration>) -> Option<StoppedBy> {
        let until = patience.map(|patience| Instant::now() + patience);
        self.is_over = true;
        self.session.close();
        while !self.session.is_over() && until.is_none_or(|until| Instant::now() < until) {
            if let Err(error) = self.wait(until) {
                log::debug!("the last of the output is not waited for: {error}");
                break;
            }
            if let Some(signal) = self.next_signal() {
                return Some(StoppedBy::Signal(signal as i32));
            }
            if self.session.carry(&mut self.out) {
                return Some(StoppedBy::Console);
            }
        }
        None
    }

    /// For news, until then at most.
    fn wait(&self, until: Option<Instant>) -> io::Result<()> {
        let wakes = self.session.wakes().chain([self.signals.as_fd()]);
        let mut polls: Vec<PollFd<'_>> = wakes.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Once all is told, the guest's end of it is of no more use.
        if !self.is_over {
            let sends = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            polls.push(PollFd::new(self.stream.as_fd(), PollFlags::POLLIN | sends));
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that the time has come by then.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polls, timeout) {
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
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.out.clear();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<CommandEnd>> {
        // Before signals and what is typed have their turn again.
        const TURN: usize = 16;
        let mut bytes = [0; 8192];
        for _ in 0..TURN {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Err(ended()),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // It has not read all that it was sent.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(ended()),
                Err(error) => return Err(error),
            }
            while let Some(frame) =
                self.decoder.take().map_err(|_| io::Error::other("what the guest says is not understood"))?
            {
                self.begins_until = None;
                if let Some(end) = self.session.hear(frame) {
                    return Ok(Some(end));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_ends_before_it_has_read_all_has_ended() {
        let (mut stream, guest) = UnixStream::pair().unwrap();
        stream.write_all(b"a command").unwrap();
        drop(guest);
        let mut visit = Visit {
            stream,
            signals: take_signals(false).unwrap(),
            session: Session::new(1, false).unwrap(),
            decoder: Decoder::default(),
            out: Vec::new(),
            begins_until: None,
            was_told: false,
            is_over: false,
        };
        assert_eq!(visit.receive().unwrap_err().to_string(), "the guest has ended");
    }
}
