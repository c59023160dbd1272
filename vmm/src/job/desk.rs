//! Running a job: the guest, the command in it, and what goes in and out of both.
//!
//! One loop waits for all of it, on the thread that calls [`run`]; standard streams have threads of their own
//! ([`Streams`]).

use super::kernel_log::{Lines, Sign, Tail, Watch, line_of_record};
use super::protocol::{self, Command, Decoder, Frame, Kind, NO_SESSION};
use super::streams::{News, Streams};
use super::verdict::Verdict;
use crate::control::server::ControlSocket;
use crate::error::Error;
use crate::logging;
use crate::machine::Guest;
use crate::machine::config::Config;
use crate::outcome::{Outcome, StoppedBy};
use crate::run::escape::{Escape, HELP, Key};
use crate::run::terminal::{self, RawMode};
use debug::gdb::accept::Pause;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// The one session of a job.
const SESSION: u16 = 1;
/// The most bytes of the serial port's output that wait for the loop.
const MOST_SERIAL: usize = 1 << 20;
/// As much output waits for the guest at most.
const MOST_OUT: usize = 256 << 10;
/// How long what is behind a sign in the log is waited for: the rest of what the kernel has to say of it.
const AFTER_SIGN: Duration = Duration::from_millis(500);
/// A kernel that has panicked resets itself at once; one that does not has taken so long.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Where the kernel's log goes as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTo {
    /// Its end is shown when something went wrong.
    #[default]
    Nowhere,
    /// Standard error.
    Errors,
    /// A file.
    File(PathBuf),
}

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The machine.
    pub guest: Config,
    /// What runs in it.
    pub command: Command,
    /// How long the guest may take until it runs a program.
    pub boot_timeout: Duration,
    /// How long all of it may take.
    pub timeout: Option<Duration>,
    /// What ends it, of the kernel's log.
    pub watch: Watch,
    /// Where that goes.
    pub log: LogTo,
    /// What the guest is called.
    pub name: Option<String>,
}

/// A job that is over.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub verdict: Verdict,
    /// The last lines of the kernel's log.
    pub log: Tail,
}

/// What the guest prints on its serial port, on its way to the loop.
#[derive(Clone, Debug)]
struct Serial {
    bytes: Arc<Mutex<Vec<u8>>>,
    wake: Arc<EventFd>,
}

impl Serial {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_SERIAL.saturating_sub(waiting.len());
        waiting.extend_from_slice(&bytes[..bytes.len().min(room)]);
        drop(waiting);
        // What is behind that is lost: whoever prints so much is not read by anybody.
        self.wake.write(1)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Signals that are the command's, the first time.
const PASSED: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

fn take_signals() -> Result<SignalFd, Error> {
    let signals: SigSet = PASSED.into_iter().chain([Signal::SIGWINCH, Signal::SIGTTIN]).collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    terminal::install_handlers().map_err(Error::system("cannot install signal handlers"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))
}

/// A standard stream as a file of its own; `None` for one that is closed.
fn own(stream: BorrowedFd<'_>) -> Option<File> {
    stream.try_clone_to_owned().ok().map(File::from)
}

/// Where nothing goes.
fn nowhere() -> Result<File, Error> {
    File::options().write(true).open("/dev/null").map_err(Error::system("cannot open /dev/null"))
}

/// Runs a job to its end.
///
/// # Errors
/// [`Error`] when it could not be begun.
pub fn run(job: &Job) -> Result<Ended, Error> {
    let signals = take_signals()?;
    let new_event = || {
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
    };
    let serial = Serial { bytes: Arc::default(), wake: Arc::new(new_event()?) };
    let log = match &job.log {
        LogTo::Nowhere => None,
        LogTo::Errors => own(io::stderr().as_fd()),
        LogTo::File(path) => Some(File::create(path).map_err(|source| Error::Open {
            option: "--kernel-log",
            path: path.clone(),
            source,
        })?),
    };
    let control = job.name.as_deref().map(ControlSocket::new).transpose()?;
    let guest = Guest::new(&job.guest, Box::new(serial.clone()))?;
    let port = guest.take_port(protocol::PORT);
    let port = port.ok_or_else(|| Error::Usage("a job's guest has a port".into()))?;
    port.set_nonblocking(true).map_err(Error::system("cannot set up a port"))?;
    let outputs = [own(io::stdout().as_fd()), own(io::stderr().as_fd())];
    let [output, errors] = outputs.map(|file| file.map_or_else(nowhere, Ok));
    let streams = Streams::start(own(io::stdin().as_fd()), [output?, errors?]);
    let raw = match job.command.terminal {
        Some(_) => {
            let input = io::stdin().as_fd().try_clone_to_owned();
            let input = input.map_err(Error::system("cannot duplicate standard input"))?;
            Some(RawMode::enter(input).map_err(Error::system("cannot set up the terminal"))?)
        }
        None => None,
    };
    let now = Instant::now();
    let desk = Desk {
        job,
        guest: &guest,
        control: control.as_ref(),
        pause: Pause::default(),
        signals,
        port,
        serial,
        streams: streams.map_err(Error::system("cannot start a thread"))?,
        out: Vec::new(),
        decoder: Decoder::default(),
        escape: raw.is_some().then(Escape::default),
        lines: Lines::default(),
        tail: Tail::default(),
        log,
        is_up: false,
        was_told: false,
        sign: None,
        boot_ends: now + job.boot_timeout,
        ends: job.timeout.map(|limit| now + limit),
        verdict: None,
    };
    guest.start();
    let ended = desk.live();
    drop(raw);
    ended
}

/// All that is there while a job runs.
struct Desk<'a> {
    job: &'a Job,
    guest: &'a Guest,
    control: Option<&'a ControlSocket>,
    pause: Pause,
    signals: SignalFd,
    port: UnixStream,
    serial: Serial,
    streams: Streams,
    /// What waits to be sent to the guest.
    out: Vec<u8>,
    decoder: Decoder,
    /// For a terminal.
    escape: Option<Escape>,
    /// Of the serial port.
    lines: Lines,
    tail: Tail,
    log: Option<File>,
    /// The guest's first process is there.
    is_up: bool,
    /// The command was sent a signal that ends it.
    was_told: bool,
    /// What the log is a sign of, the line, and until when more is waited for.
    sign: Option<(Sign, String, Instant)>,
    boot_ends: Instant,
    ends: Option<Instant>,
    verdict: Option<Verdict>,
}

impl Desk<'_> {
    fn live(mut self) -> Result<Ended, Error> {
        loop {
            self.wait()?;
            self.read_serial();
            self.receive();
            self.carry();
            self.send();
            self.hear_signals();
            self.serve_clients();
            self.look_at_guest();
            self.look_at_time();
            if let Some(verdict) = self.verdict.take() {
                // What the guest is in the middle of is of no use to anybody.
                self.guest.pause();
                self.streams.finish();
                return Ok(Ended { verdict, log: self.tail });
            }
        }
    }

    /// The first verdict stands.
    fn decide(&mut self, verdict: Verdict) {
        self.verdict.get_or_insert(verdict);
    }

    fn deadline(&self) -> Option<Instant> {
        let boot = (!self.is_up).then_some(self.boot_ends);
        let sign = self.sign.as_ref().map(|(_, _, until)| *until);
        [boot, self.ends, sign].into_iter().flatten().min()
    }

    fn wait(&self) -> Result<(), Error> {
        let timeout = self.deadline().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the time has come by then.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let sends = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        // SAFETY: none of these is closed while it is waited for.
        let event =
            |event: &EventFd| unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) };
        let (end, serial, news) =
            (event(self.guest.wake()), event(&self.serial.wake), event(self.streams.wake()));
        let mut polls = vec![
            PollFd::new(self.port.as_fd(), PollFlags::POLLIN | sends),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        polls.extend([end, serial, news].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if let Some(control) = self.control {
            polls.push(PollFd::new(control.listener().as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(Error::system("cannot wait")(error.into())),
        }
    }

    /// What the kernel prints.
    fn read_serial(&mut self) {
        self.serial.wake.read().ok();
        for line in self.lines.push(&self.serial.take()) {
            self.look_at_line(&line);
            // What is told by the first process as well is shown once.
            if !self.is_up {
                self.show_line(line);
            }
        }
    }

    fn show_line(&mut self, line: String) {
        if let Some(log) = &mut self.log
            && let Err(error) = writeln!(log, "{line}")
        {
            log::warn!("--kernel-log: {error}");
            self.log = None;
        }
        self.tail.push(line);
    }

    fn look_at_line(&mut self, line: &str) {
        let Some(sign) = self.job.watch.sign(line) else { return };
        let patience = if sign == Sign::Panic { AFTER_PANIC } else { AFTER_SIGN };
        // A panic behind an oops is the end; other signs are what comes of the first.
        let is_worse = matches!(&self.sign, Some((Sign::Trouble(_) | Sign::Hang, ..))) && sign == Sign::Panic;
        if self.sign.is_none() || is_worse {
            self.sign = Some((sign, line.to_string(), Instant::now() + patience));
        }
    }

    /// What the guest's first process says.
    fn receive(&mut self) {
        let mut bytes = [0; 16 << 10];
        loop {
            match (&self.port).read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::debug!("the guest's port: {error}");
                    return;
                }
            }
            loop {
                match self.decoder.take() {
                    Ok(Some(frame)) => self.hear(frame),
                    Ok(None) => break,
                    Err(_) => {
                        let why = "what it says on the job's port is not understood";
                        return self.decide(Verdict::NoRoot(why.into()));
                    }
                }
            }
        }
    }

    fn hear(&mut self, frame: Frame) {
        match (frame.kind, frame.session) {
            (Kind::Hello, NO_SESSION) => self.begin(),
            (Kind::Trouble, NO_SESSION) => {
                self.decide(Verdict::NoRoot(String::from_utf8_lossy(&frame.payload).into_owned()));
            }
            (Kind::Log, NO_SESSION) => {
                if let Some(line) = line_of_record(&frame.payload) {
                    self.look_at_line(&line);
                    self.show_line(line);
                }
            }
            (Kind::Output, SESSION) if !frame.payload.is_empty() => self.streams.write(0, frame.payload),
            (Kind::Errors, SESSION) if !frame.payload.is_empty() => self.streams.write(1, frame.payload),
            (Kind::InputGrant, SESSION) => {
                self.streams.make_room(protocol::number(&frame.payload, 0).unwrap_or(0));
            }
            (Kind::Exit, SESSION) => match frame.payload[..] {
                [1, signal] => self.decide(Verdict::Signal(signal)),
                [_, code] => self.decide(Verdict::Command(code)),
                _ => {}
            },
            _ => {}
        }
    }

    /// The guest is there: the command is started.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.is_up, true) {
            return;
        }
        match self.job.command.encoded() {
            Some(command) => {
                protocol::put(&mut self.out, Kind::Start, SESSION, &command);
                self.streams.make_room(protocol::WINDOW);
            }
            None => self.decide(Verdict::NoRoot("the command and its environment are too long".into())),
        }
    }

    /// What is typed, and what has been written.
    fn carry(&mut self) {
        self.streams.wake().read().ok();
        while let Some(news) = self.streams.next() {
            match news {
                News::Input(bytes) => self.type_in(&bytes),
                News::Written(index, count) => {
                    let stream = if index == 0 { protocol::OUTPUT } else { protocol::ERRORS };
                    let grant = [&[stream][..], &count.to_le_bytes()].concat();
                    protocol::put(&mut self.out, Kind::Grant, SESSION, &grant);
                }
                // As for a program whose output nobody reads.
                News::Broken(0) => self.signal(Signal::SIGPIPE),
                News::Broken(_) => {}
            }
        }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let Some(escape) = &mut self.escape else {
            return protocol::put(&mut self.out, Kind::Input, SESSION, bytes);
        };
        let (typed, keys) = escape.filter(bytes);
        // What is not sent leaves room.
        self.streams.make_room(u32::try_from(bytes.len() - typed.len()).unwrap_or(0));
        if !typed.is_empty() && self.out.len() < MOST_OUT {
            protocol::put(&mut self.out, Kind::Input, SESSION, &typed);
        }
        for key in keys {
            match key {
                Key::Quit => self.decide(Verdict::Stopped(StoppedBy::Console)),
                Key::Help => logging::print(&format!("{}\r\n", HELP.replace('\n', "\r\n"))),
            }
        }
    }

    fn send(&mut self) {
        while !self.out.is_empty() {
            match (&self.port).write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::debug!("the guest's port: {error}");
                    self.out.clear();
                }
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        let number = u8::try_from(signal as i32).unwrap_or(0);
        protocol::put(&mut self.out, Kind::Signal, SESSION, &[number]);
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            let Ok(signal) = Signal::try_from(number) else { continue };
            match signal {
                Signal::SIGWINCH => self.resize(),
                Signal::SIGTTIN => {}
                // The second time, or where there is nobody to hear it, it is the guest's end.
                _ if !self.is_up || std::mem::replace(&mut self.was_told, true) => {
                    self.decide(Verdict::Stopped(StoppedBy::Signal(number)));
                }
                signal => self.signal(signal),
            }
        }
    }

    fn resize(&mut self) {
        if let Some((rows, columns)) = self.escape.is_some().then(size_of_terminal).flatten() {
            let size = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
            protocol::put(&mut self.out, Kind::Resize, SESSION, &size);
        }
    }

    fn serve_clients(&mut self) {
        let Some(control) = self.control else { return };
        if let Err(error) = control.serve(self.guest, &mut self.pause) {
            log::debug!("a client of the control socket cannot be accepted: {error}");
        }
    }

    fn look_at_guest(&mut self) {
        if self.guest.wake().read().is_err() {
            return;
        }
        let Some(outcome) = self.guest.outcome() else { return };
        // What it said last is on the way still.
        std::thread::sleep(Duration::from_millis(20));
        self.read_serial();
        self.receive();
        let line = self.sign.take().filter(|(sign, ..)| *sign == Sign::Panic).map(|(_, line, _)| line);
        let has_panicked = line.is_some()
            || matches!(outcome, Outcome::Ended(arch::End::Reset))
                && self.guest.dumper().has_panicked(&mut || true);
        self.decide(match line {
            Some(line) => Verdict::Panic(Some(line)),
            None => Verdict::of_guest(outcome, has_panicked),
        });
    }

    fn look_at_time(&mut self) {
        let now = Instant::now();
        let sign = self.sign.take_if(|(_, _, until)| *until <= now);
        if let Some((sign, line, _)) = sign {
            self.decide(match sign {
                Sign::Panic => Verdict::Panic(Some(line)),
                Sign::Hang => Verdict::Hang(line),
                Sign::Trouble(trouble) => Verdict::Trouble(trouble, line),
            });
        }
        if !self.is_up && self.boot_ends <= now {
            self.decide(Verdict::NoUserSpace);
        }
        if self.ends.is_some_and(|ends| ends <= now) {
            self.decide(Verdict::TimeOver);
        }
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
