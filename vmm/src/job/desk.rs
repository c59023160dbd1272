//! Running a job: the guest, the command in it, and what goes in and out of both.
//!
//! One loop waits for all of it, on the thread that calls [`run`]; standard streams have threads of their own
//! ([`streams`](super::streams)).

use super::dump_on::{self, DumpOn};
use super::ended::Ended;
use super::hold::{self, HoldOn};
use super::kernel_log::{KEPT, Lines, LogTo, Tail, Watch, line_of_record, trouble_of_first_process};
use super::memory_log::MemoryLog;
use super::protocol::{self, Command, Decoder, Frame, Kind, NO_SESSION};
use super::serial::Serial;
use super::session::{Session, TOO_LONG, next_signal};
use super::signals::{PASSED, stop, take_signals};
use super::stuck::{self, Stuck};
use super::verdict::{self, LAST_MOMENT, Verdict};
use super::visitors::Visitors;
use crate::cell::{self, Ending, Grant, Rule, Sandbox};
use crate::control::protocol::Event;
use crate::control::server::{About, ControlSocket};
use crate::error::Error;
use crate::logging;
use crate::logging::line_queue::LineQueue;
use crate::looks::AFTER_SIGN;
use crate::machine::LONGEST_LOOK;
use crate::machine::config::Config;
use crate::machine::{Backends, Guest};
use crate::outcome::{Outcome, StoppedBy};
use crate::run::bounds::{self, Files};
use crate::run::terminal;
use arch::words::{counted, verb};
use debug::dump::write::destination::Destination;
use debug::gdb::accept::Pause;
use debug::linux::trouble::Sign;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// The one session of a job.
const SESSION: u16 = protocol::MAIN;
/// How often the guest's port is read before others have their turn.
const PORT_TURN: usize = 8;
/// Bytes that wait for the guest, from which on nothing more is heard of it: one that only speaks and never listens
/// is to have no answers without end.
const MOST_OUT: usize = 1 << 20;
/// A kernel that has panicked resets itself at once; one that does not has taken so long.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// How long the log in memory is looked for while the guest goes on, which stands still meanwhile.
const LONGEST_GLANCE: Duration = Duration::from_secs(1);
/// Before the guest runs a program, every so many looks at its vCPUs its log is looked for: that may take a search.
const RARELY: u32 = 10;

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The machine.
    pub guest: Config,
    /// What runs in it.
    pub command: Command,
    /// How long the guest may take until it runs a program.
    pub boot_timeout: Duration,
    /// All times are so many times as long; they are in the others here.
    pub slow: u32,
    /// How long all of it may take.
    pub timeout: Option<Duration>,
    /// What ends it, of the kernel's log.
    pub watch: Watch,
    /// Where that goes.
    pub log: LogTo,
    /// What the guest is called.
    pub name: Option<String>,
    /// When it is kept.
    pub hold_on: HoldOn,
    /// When it is dumped.
    pub dump_on: Option<DumpOn>,
    /// Whether the monitor confines itself.
    pub sandbox: Sandbox,
    /// What came of it is told as JSON, also when the monitor's cell ends it.
    pub json: bool,
}

/// Runs a job to its end, of which `report` is told before a guest that is kept is.
///
/// # Errors
/// [`Error`] when it could not be begun.
pub fn run(job: &Job, report: impl FnOnce(&Ended)) -> Result<Ended, Error> {
    let command = job.command.encoded().ok_or_else(|| Error::Usage(TOO_LONG.into()))?;
    let memory = job.guest.memory.bytes();
    let dump_to = job.dump_on.as_ref().map(|on| on.destination(memory)).transpose()?;
    let signals = take_signals(job.command.terminal.is_some())?;
    let new_event = || {
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
    };
    let serial = Serial::new(new_event()?);
    let log = job.log.open()?;
    let visitors = Visitors::new(SESSION + 1).map_err(Error::system("cannot make an eventfd"))?;
    let is_awaited = job.hold_on.is_asked_for();
    let about = About { door: Some(visitors.door().clone()), is_awaited, ..About::new(&job.guest) };
    let control = ControlSocket::take(job.name.as_deref(), about)?;
    let is_debugged_later = job.name.is_some() || is_awaited;
    let socket = control.as_ref().map(|control| (control.path(), is_debugged_later));
    let mut rules = bounds::of_guest(&job.guest, Files::Once, socket, None);
    rules.extend(job.dump_on.as_ref().map(|on| Rule::folder_of(&on.path, Grant::Own)));
    let backends = Backends::before_cell(&job.guest)?;
    let ending = Ending { code: verdict::CELL, json: job.json, restore: terminal::restore };
    cell::begin(job.sandbox, rules, ending).map_err(Error::system("cannot confine the monitor"))?;
    let output: Box<dyn Write + Send> = Box::new(serial.clone());
    let output = match &control {
        Some(control) => control.feed().output(output),
        None => output,
    };
    let guest = Guest::with_backends(&job.guest, backends, output)?;
    let port = guest.take_port(protocol::PORT);
    let port = port.ok_or_else(|| Error::Usage("a job's guest has a port".into()))?;
    port.set_nonblocking(true).map_err(Error::system("cannot set up a port"))?;
    let session = Session::new(SESSION, job.command.terminal.is_some());
    let session = session.map_err(Error::system("cannot set up the standard streams"))?;
    let now = Instant::now();
    let desk = Desk {
        job,
        command: &command,
        guest: &guest,
        control: control.as_ref(),
        pause: Pause::default(),
        signals,
        is_port_open: true,
        port,
        serial,
        session: Some(session),
        visitors,
        out: Vec::new(),
        decoder: Decoder::default(),
        lines: Lines::default(),
        tail: Tail::default(),
        log,
        is_up: false,
        has_begun: false,
        was_told: false,
        told: None,
        sign: None,
        stuck: Stuck::default(),
        memory_log: MemoryLog::default(),
        told_of_lost: false,
        looks: 0,
        next_look: now + stuck::EVERY,
        began: now,
        booted_after: None,
        boot_ends: Some(now + job.boot_timeout),
        ends: job.timeout.map(|limit| now + limit),
        verdict: None,
        is_over: false,
        phase: Phase::Runs,
        was_debugged: false,
        dump_to,
    };
    cell::settle();
    if let Some(control) = &control {
        control.feed().begin(&guest);
    }
    guest.start();
    let ended = desk.live(report);
    if let Some(control) = &control {
        let (code, text) = match &ended {
            Ok(ended) => (ended.verdict.code(), ended.verdict.to_string()),
            Err(error) => (verdict::CANNOT, error.to_string()),
        };
        control.feed().end(&Event::Ended { code, text }, LAST_MOMENT);
    }
    ended
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What comes of it is to be seen.
    Runs,
    /// That is known; the last of its output waits for whoever reads it.
    Ends,
    /// The guest is kept.
    Kept,
}

/// All that is there while a job runs.
struct Desk<'a> {
    job: &'a Job,
    /// Its command, as the guest is told.
    command: &'a [u8],
    guest: &'a Guest,
    control: Option<&'a ControlSocket>,
    pause: Pause,
    signals: SignalFd,
    port: UnixStream,
    /// The guest has its end of it.
    is_port_open: bool,
    serial: Serial,
    /// Until the command has ended.
    session: Option<Session>,
    visitors: Visitors,
    /// What waits to be sent to the guest.
    out: Vec<u8>,
    decoder: Decoder,
    /// Of the serial port.
    lines: Lines,
    tail: Tail,
    log: Option<LineQueue>,
    /// The guest's first process is there.
    is_up: bool,
    /// The command may have begun.
    has_begun: bool,
    /// The command was sent a signal that ends it.
    was_told: bool,
    /// Which it was.
    told: Option<Signal>,
    /// What the log is a sign of, the line, and until when more is waited for.
    sign: Option<(Sign, String, Instant)>,
    stuck: Stuck,
    memory_log: MemoryLog,
    told_of_lost: bool,
    /// At vCPUs, so far.
    looks: u32,
    /// When vCPUs are looked at again.
    next_look: Instant,
    began: Instant,
    booted_after: Option<Duration>,
    boot_ends: Option<Instant>,
    ends: Option<Instant>,
    verdict: Option<Verdict>,
    /// The guest is.
    is_over: bool,
    phase: Phase,
    /// A debugger has had it.
    was_debugged: bool,
    /// Where a core of it is written.
    dump_to: Option<Destination>,
}

impl Desk<'_> {
    fn live(mut self, report: impl FnOnce(&Ended)) -> Result<Ended, Error> {
        let verdict = self.next_verdict()?;
        // What somebody has ended by a signal is no failure of its own.
        let was_told = self.told.is_some_and(|signal| verdict.is_of(signal));
        let holds = !self.is_over && !was_told && self.job.hold_on.holds(&verdict);
        let runs_on = holds && !hold::stands_still(&verdict);
        // What the guest is in the middle of is of no use to anybody; and a core is to have it as it is now.
        if !runs_on || self.dump_to.is_some() {
            self.guest.pause();
        }
        let mut ended = self.explained(verdict);
        let late = self.finish_output(&ended.verdict);
        let was_stopped = matches!(late, Some(Verdict::Stopped(_)));
        if let Some(late) = late.filter(|_| ended.verdict.patience().is_none()) {
            // Not all of its output was read.
            ended.verdict = late;
        }
        let session = self.session.take();
        ended.verdict = ended.verdict.of_output(session.as_ref().and_then(Session::unwritten));
        ended.is_line_open = session.is_some_and(|session| session.is_line_open());
        ended.took = self.began.elapsed();
        let is_due = self.job.dump_on.as_ref().is_some_and(|on| on.is_due(&ended.verdict));
        let was_stopped = is_due && !was_told && self.dump(&mut ended) || was_stopped;
        report(&ended);
        if runs_on && !was_stopped {
            self.guest.resume();
        }
        if holds {
            // Somebody may have ended the run, or the guest itself, while its last output waited.
            if !was_stopped && !self.is_over {
                self.hold(&ended.verdict)?;
            }
            self.guest.pause();
        }
        self.visitors.finish(LAST_MOMENT);
        Ok(ended)
    }

    /// A core of the guest, if one is asked for; whether somebody has ended the run meanwhile.
    fn dump(&self, ended: &mut Ended) -> bool {
        let Some(to) = &self.dump_to else { return false };
        if std::mem::take(&mut ended.is_line_open) {
            logging::print("\n");
        }
        let mut was_ended = false;
        let is_there = dump_on::write(self.guest, to, self.is_over, &mut || {
            while let Some(signal) = next_signal(&self.signals) {
                match signal {
                    Signal::SIGTSTP => stop(),
                    signal => was_ended |= PASSED.contains(&signal),
                }
            }
            was_ended
        });
        ended.dump = is_there.then(|| to.shown().to_path_buf());
        was_ended
    }

    /// Until there is one.
    fn next_verdict(&mut self) -> Result<Verdict, Error> {
        loop {
            self.turn()?;
            if let Some(verdict) = self.verdict.take() {
                return Ok(verdict);
            }
        }
    }

    /// Waits for something, and deals with all that there is.
    fn turn(&mut self) -> Result<(), Error> {
        self.wait()?;
        self.read_serial();
        self.receive();
        self.carry();
        self.send();
        self.hear_signals();
        self.serve_clients();
        self.look_at_guest();
        self.look_at_time();
        Ok(())
    }

    /// Waits until the last of the command's output is written, as long as somebody reads it, and as that may take: what
    /// has ended the waiting. Whoever asks of the guest is answered meanwhile.
    fn finish_output(&mut self, verdict: &Verdict) -> Option<Verdict> {
        self.phase = Phase::Ends;
        self.was_told = true;
        (self.boot_ends, self.sign) = (None, None);
        self.ends = verdict.patience().map(|limit| Instant::now() + limit).or(self.ends);
        if let Some(session) = &mut self.session {
            session.close();
        }
        while self.session.as_ref().is_some_and(|session| !session.is_over()) && self.verdict.is_none() {
            if let Err(error) = self.turn() {
                log::debug!("the last of the output is not waited for: {error}");
                break;
            }
        }
        // No longer than somebody reads it.
        self.log.as_ref().map(LineQueue::finish);
        self.verdict.take()
    }

    /// What there is to be said of it.
    fn explained(&mut self, verdict: Verdict) -> Ended {
        let (mut vcpus, mut why, mut tail) = (Vec::new(), None, std::mem::take(&mut self.tail));
        if verdict.shows_log() {
            let found = self.guest.why(LONGEST_LOOK * self.job.slow, || true);
            why = found.inspect_err(|why| log::debug!("nothing is known of the kernel: {why}")).ok();
            vcpus = self.guest.reports();
            if let Some(details) = verdict.details()
                && !vcpus.iter().any(|vcpu| vcpu.contains(details.trim()))
            {
                vcpus.insert(0, details);
            }
            // What the first process has told is as much as it could.
            let log = self.guest.dumper().log(KEPT, &mut || true);
            if !log.is_empty() {
                tail = log.into_iter().collect();
            }
        }
        let (took, booted_after) = (self.began.elapsed(), self.booted_after);
        Ended { verdict, log: tail, vcpus, why, took, booted_after, dump: None, is_line_open: false }
    }

    /// Keeps the guest, until its time is over, it ends, or somebody ends it. One that stands still does until a
    /// debugger has it.
    fn hold(&mut self, verdict: &Verdict) -> Result<(), Error> {
        self.phase = Phase::Kept;
        self.ends = self.job.hold_on.limit.map(|limit| Instant::now() + limit);
        let how_long =
            self.job.hold_on.limit.map_or_else(|| "until Ctrl-C".into(), |it| format!("for {it:?}"));
        logging::print(&format!("vmm: the guest is kept {how_long}: {verdict}\n"));
        if let Some(control) = self.control {
            let (name, answers) = (control.name(), self.is_up && self.is_port_open);
            for line in hold::ways_in(name, verdict, self.job.guest.gdb.is_some(), answers) {
                logging::print(&format!("  {line}\n"));
            }
        }
        self.next_verdict().map(|_| ())
    }

    /// The first verdict stands. Once it is told what came of the guest, people and time end the wait for whoever reads.
    fn decide(&mut self, verdict: Verdict) {
        if self.phase != Phase::Ends || matches!(verdict, Verdict::Stopped(_) | Verdict::TimeOver) {
            self.verdict.get_or_insert(verdict);
        }
    }

    /// The command has ended. What the first process has told is all of the log, or it says that it is not.
    fn decide_ended(&mut self, verdict: Verdict) {
        if self.memory_log.may_have_more() {
            self.look_at_memory(LONGEST_LOOK);
        }
        if self.memory_log.misses_some() {
            self.tell_of_lost();
        }
        self.decide_by_sign(verdict);
    }

    /// What the log is a sign of, it has told before, and that is what came of it.
    fn decide_by_sign(&mut self, verdict: Verdict) {
        let sign = self.sign.take().map(|(sign, line, _)| Verdict::of_sign(sign, line));
        self.decide(sign.unwrap_or(verdict));
    }

    /// The guest does not go on: its log may say why, of which nobody has heard.
    fn decide_standstill(&mut self, verdict: Verdict) {
        if self.memory_log.may_be_there() {
            self.look_at_memory(LONGEST_LOOK);
        }
        self.decide_by_sign(verdict);
    }

    fn deadline(&self) -> Option<Instant> {
        let sign = self.sign.as_ref().map(|(_, _, until)| *until);
        let now = Instant::now();
        let pause = self.pause.left(now).map(|left| now + left);
        [self.boot_ends, self.ends, sign, pause, Some(self.next_look)].into_iter().flatten().min()
    }

    fn wait(&self) -> Result<(), Error> {
        let timeout = self.deadline().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the time has come by then.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // SAFETY: none of these is closed while it is waited for.
        let event = |event: &EventFd| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        let mut events = vec![self.guest.wake(), self.serial.wake()];
        // They are let in when there is somebody for them.
        events.extend(self.is_up.then(|| self.visitors.wake()));
        let wakes = self.session.iter().flat_map(Session::wakes);
        let all = [self.signals.as_fd()].into_iter().chain(events.into_iter().map(event)).chain(wakes);
        let mut polls: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // A port whose other end is gone is always ready.
        if self.is_port_open {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.out.len() < MOST_OUT);
            flags.set(PollFlags::POLLOUT, !self.out.is_empty());
            polls.push(PollFd::new(self.port.as_fd(), flags));
        }
        for (stream, flags) in self.visitors.streams(self.out.len()) {
            polls.push(PollFd::new(stream.as_fd(), flags));
        }
        // Whoever could not be accepted is left alone for a while.
        if let Some(control) = self.control.filter(|_| self.pause.left(Instant::now()).is_none()) {
            polls.push(PollFd::new(control.listener().as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(Error::system("cannot wait")(error.into())),
        }
    }

    /// What the kernel prints.
    fn read_serial(&mut self) {
        let bytes = self.serial.take();
        for line in self.lines.push(&bytes) {
            self.look_at_line(&line);
            // From the command's beginning on anybody in the guest could say so.
            if !self.is_up
                && let Some(why) = trouble_of_first_process(&line)
            {
                self.decide_standstill(Verdict::NoRoot(why.into()));
            }
            // What is told by the first process as well is shown once. A kernel that panics has it tell nothing more.
            if !self.is_up || matches!(self.sign, Some((Sign::Panic, ..))) {
                self.show_line(line);
            }
        }
        let lost = self.serial.take_lost();
        if lost > 0 {
            let (bytes, were) = (counted(lost, "byte"), verb(lost, "was", "were"));
            self.show_line(format!(
                "vmm: {bytes} of the serial port {were} dropped here: they come too fast"
            ));
        }
    }

    fn show_line(&mut self, line: String) {
        if let Some(log) = &self.log {
            log.put_of_guest(format!("{line}\n").as_bytes());
        }
        self.tail.push(line);
    }

    fn look_at_line(&mut self, line: &str) {
        let Some(sign) = self.job.watch.sign(line).filter(|_| self.phase == Phase::Runs) else { return };
        let patience = if sign == Sign::Panic { AFTER_PANIC } else { AFTER_SIGN } * self.job.slow;
        // A panic behind an oops is the end; other signs are what comes of the first.
        let is_worse = matches!(&self.sign, Some((Sign::Trouble(_) | Sign::Hang, ..))) && sign == Sign::Panic;
        if self.sign.is_none() || is_worse {
            self.sign = Some((sign, line.to_string(), Instant::now() + patience));
        }
    }

    /// What has come in the log in memory of which nobody has told, as long as it is open what comes of the guest.
    fn look_at_memory(&mut self, limit: Duration) {
        let is_debugged = !self.is_over && self.guest.is_debugged();
        if self.phase != Phase::Runs || self.verdict.is_some() || is_debugged {
            return;
        }
        let begun = Instant::now();
        let has_panicked = |desk: &Self| matches!(desk.sign, Some((Sign::Panic, ..)));
        let knew = has_panicked(self);
        let (lines, lost) = self.memory_log.news(self.guest.dumper(), limit);
        self.memory_log.rest_after(begun.elapsed());
        lines.iter().for_each(|line| self.look_at_line(line));
        if !knew && has_panicked(self) {
            // There is nobody else who would show them.
            lines.into_iter().for_each(|line| self.show_line(line));
        }
        if lost > 0 {
            self.tell_of_lost();
        }
    }

    /// What was looked for in the log may have been in what nobody has seen of it.
    fn tell_of_lost(&mut self) {
        if !std::mem::replace(&mut self.told_of_lost, true) && !self.job.watch.troubles.is_empty() {
            log::warn!("records of the guest's log are gone before --fail-on has seen them");
        }
    }

    /// What the guest's first process says.
    fn receive(&mut self) {
        let mut bytes = [0; 16 << 10];
        for _ in 0..PORT_TURN {
            if !self.is_port_open || self.out.len() >= MOST_OUT {
                return;
            }
            match (&self.port).read(&mut bytes) {
                Ok(0) => {
                    self.is_port_open = false;
                    return self.out.clear();
                }
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::debug!("the guest's port: {error}");
                    self.is_port_open = false;
                    return self.out.clear();
                }
            }
            loop {
                match self.decoder.take() {
                    Ok(Some(frame)) => self.hear(frame),
                    Ok(None) => break,
                    Err(_) => {
                        // There is nothing more to be understood of it.
                        self.is_port_open = false;
                        self.out.clear();
                        return self.decide(Verdict::Lost);
                    }
                }
            }
        }
    }

    fn hear(&mut self, frame: Frame) {
        match (frame.kind, frame.session) {
            (Kind::Hello, NO_SESSION) => self.greet(),
            (Kind::Ready, NO_SESSION) if self.is_up => self.begin(),
            (Kind::Trouble, NO_SESSION) if !self.is_up => {
                self.decide_standstill(Verdict::NoRoot(String::from_utf8_lossy(&frame.payload).into_owned()));
            }
            (Kind::Log, NO_SESSION) => {
                if frame.payload == protocol::LOST_RECORDS {
                    self.memory_log.hear_of_lost();
                }
                if let Some((number, line)) = line_of_record(&frame.payload) {
                    self.memory_log.hear(number);
                    self.look_at_line(&line);
                    self.show_line(line);
                }
            }
            (_, SESSION) => {
                if let Some(end) = self.session.as_mut().and_then(|session| session.hear(frame)) {
                    self.decide_ended(end.into());
                }
            }
            (_, SESSION..) => self.visitors.tell(&frame, &mut self.out),
            _ => {}
        }
    }

    /// The guest is there: others may look at it.
    fn greet(&mut self) {
        if !std::mem::replace(&mut self.is_up, true) {
            self.booted_after = Some(self.began.elapsed());
            self.memory_log.hear_of_program();
        }
    }

    /// The command is started.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        self.boot_ends = None;
        // One of which it is known what came of it begins nothing.
        if let Some(session) = self.session.as_mut().filter(|_| self.phase == Phase::Runs) {
            session.begin(self.command, &mut self.out);
        }
    }

    /// What is typed, and what has been written.
    fn carry(&mut self) {
        if self.session.as_mut().is_some_and(|session| session.carry(&mut self.out)) {
            self.decide(Verdict::Stopped(StoppedBy::Console));
        }
        // Before the guest's first process is there, nobody can have a session.
        if self.is_up {
            self.visitors.hear(&mut self.out);
        }
    }

    fn send(&mut self) {
        while self.is_port_open && !self.out.is_empty() {
            match (&self.port).write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What it has said before is to be read still.
                Err(error) => {
                    log::debug!("the guest's port: {error}");
                    self.out.clear();
                }
            }
        }
    }

    fn hear_signals(&mut self) {
        while let Some(signal) = next_signal(&self.signals) {
            self.hear_signal(signal);
        }
    }

    fn hear_signal(&mut self, signal: Signal) {
        match (&mut self.session, signal) {
            (Some(session), signal) if session.hear_of_terminal(signal, &mut self.out) => {}
            // As without anybody to wait for it: the terminal is not a command's any more.
            (None, Signal::SIGTSTP) => stop(),
            (None, signal) if !PASSED.contains(&signal) => {}
            // The second time, or where there is nobody to hear it, it is the guest's end.
            (Some(session), signal) if self.has_begun && !std::mem::replace(&mut self.was_told, true) => {
                self.told = Some(signal);
                session.signal(signal, &mut self.out);
            }
            (_, signal) => self.decide(Verdict::Stopped(StoppedBy::Signal(signal as i32))),
        }
    }

    fn serve_clients(&mut self) {
        let Some(control) = self.control else { return };
        if let Err(error) = control.serve(self.guest, &mut self.pause) {
            log::debug!("a client of the control socket cannot be accepted: {error}");
        }
    }

    /// What a guest that has ended has said last may be on its way still: until there is nothing for a moment.
    fn hear_the_last(&mut self) {
        const MOMENT: u16 = 20;
        /// Its other vCPUs may say things without end.
        const ALL: Duration = Duration::from_secs(2);
        let until = Instant::now() + ALL;
        while Instant::now() < until {
            self.read_serial();
            // Nobody takes what would be answered.
            self.out.clear();
            self.receive();
            let mut more = [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)];
            let is_more = poll(&mut more, PollTimeout::from(MOMENT)).is_ok_and(|count| count > 0);
            // One that has gone may have left more than is read in one turn.
            if !is_more || !self.is_port_open {
                break;
            }
        }
        while !self.serial.is_empty() && Instant::now() < until {
            self.read_serial();
        }
    }

    fn look_at_guest(&mut self) {
        if self.guest.wake().read().is_err() {
            return;
        }
        let Some(outcome) = self.guest.outcome() else { return };
        if outcome == Outcome::Ended(arch::End::Reset) && self.guest.takes_restart() {
            // A command is run once. Its debugger is where it was.
            let why = "a guest of `vmm run` does not begin again: its command is run once";
            return self.guest.cannot_restart(&Error::Usage(why.into()));
        }
        self.is_over = true;
        self.hear_the_last();
        if self.memory_log.may_be_there() {
            self.look_at_memory(LONGEST_LOOK);
        }
        let sign = self.sign.take().map(|(sign, line, _)| Verdict::of_sign(sign, line));
        let has_panicked = matches!(outcome, Outcome::Ended(arch::End::Reset))
            && self.guest.dumper().has_panicked(&mut || true);
        self.decide(match (sign, Verdict::of_guest(outcome, has_panicked)) {
            (Some(panic @ Verdict::Panic(_)), _) => panic,
            // What it has come to is the worse of the two.
            (_, end @ Verdict::Panic(_)) | (None, end) => end,
            (Some(sign), _) => sign,
        });
    }

    /// Whether a debugger has the guest, or it waits for one, or somebody has stopped it: its times do not run then.
    fn is_debuggers(&mut self) -> bool {
        let is_debugged = self.guest.is_debugged();
        self.was_debugged |= is_debugged;
        is_debugged
            || self.guest.attachment().is_stopped()
            || !self.was_debugged && self.job.guest.waits_for_debugger()
    }

    /// Whether one of them stays where it is, with interrupts off. What a debugger holds stays, too.
    fn look_at_vcpus(&mut self) {
        if self.phase == Phase::Ends {
            return;
        }
        if self.phase == Phase::Kept {
            // Who has stopped them is a debugger from here on.
            if self.guest.is_debugged() {
                self.guest.resume();
            }
            return;
        }
        self.looks = self.looks.wrapping_add(1);
        let may_look = self.is_up || self.looks.is_multiple_of(RARELY);
        if may_look && self.memory_log.is_due() {
            self.look_at_memory(LONGEST_GLANCE);
        }
        if self.guest.attachment().debugger().is_some() {
            return self.stuck.forget();
        }
        let factor = if self.is_up { 1 } else { stuck::BOOT_FACTOR };
        let limit = stuck::LIMIT * factor * self.job.slow;
        if let Some((vcpu, place)) = self.stuck.look(&self.guest.deaf_places(), limit) {
            let seconds = limit.as_secs();
            let why = format!("vCPU {vcpu} has been at {place:#x} for {seconds} s, with interrupts off");
            self.decide_standstill(Verdict::Hang(why));
        }
    }

    fn look_at_time(&mut self) {
        if self.verdict.is_some() {
            return;
        }
        let now = Instant::now();
        // Behind it a panic may have come of which nobody tells.
        let is_due = |until: &Instant| *until <= now;
        let looks_behind =
            matches!(&self.sign, Some((sign, _, until)) if *sign != Sign::Panic && is_due(until));
        if looks_behind && self.memory_log.may_be_there() {
            self.look_at_memory(LONGEST_GLANCE);
        }
        let sign = self.sign.take_if(|(_, _, until)| *until <= now);
        if let Some((sign, line, _)) = sign {
            self.decide(Verdict::of_sign(sign, line));
        }
        if self.phase == Phase::Runs && self.is_debuggers() {
            // Its times begin anew when the debugger has gone.
            self.boot_ends = self.boot_ends.map(|_| now + self.job.boot_timeout);
            self.ends = self.job.timeout.map(|limit| now + limit).or(self.ends);
        }
        if self.next_look <= now {
            self.look_at_vcpus();
            self.next_look = Instant::now() + stuck::EVERY;
        }
        if self.boot_ends.is_some_and(|ends| ends <= now) {
            self.decide_standstill(Verdict::NoUserSpace);
        }
        if self.ends.is_some_and(|ends| ends <= now) {
            self.decide_standstill(Verdict::TimeOver);
        }
    }
}
