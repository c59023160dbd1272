//! Running a guest from the command line: console, signals, time, and the guest's own end.
//!
//! One event loop does all of it, on the thread that calls [`run`]. vCPU threads run guests
//! and nothing else.

mod input;
mod panicked;

use crate::console::{Console, ConsoleKind};
use crate::control::Control;
use crate::error::Error;
use crate::logging;
use crate::machine::Guest;
use crate::machine::config::{Config, DumpOn, OnReboot};
use crate::machine::dumper::{Moment, Reporter};
use crate::outcome::{Outcome, Stop};
use crate::panic_watch::PanicWatch;
use crate::terminal::{self, RawMode};
use debug::dump::write::destination::Destination;
use debug::gdb::accept::Pause;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use input::{Foreground, Input};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use panicked::Panicked;
use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// Signals that end a guest in order.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// What a process learns of its place among the jobs of a terminal. One in the background that reads
/// (SIGTTIN) gets an error instead of being stopped.
const JOBS: [Signal; 3] = [Signal::SIGCONT, Signal::SIGTSTP, Signal::SIGTTIN];

/// Runs the guest to its end.
///
/// # Errors
/// [`Error`] when it could not be started.
pub fn run(config: &Config) -> Result<Outcome, Error> {
    if let Some(on) = &config.dump_on {
        // The guest may have run for hours when it is written.
        Destination::anywhere(&on.path)?.check()?;
    }
    let signals = Rc::new(RefCell::new(take_signals(config)?));
    let console = Console::open(&config.console).map_err(|source| Error::Open {
        option: "--console",
        path: match &config.console {
            ConsoleKind::File(path) => path.clone(),
            _ => PathBuf::from("pty"),
        },
        source,
    })?;
    if let Some(hypercalls) = &config.hypercalls {
        hypercalls.begin().map_err(|source| hypercalls.cannot_open(source))?;
    }
    if let Some(path) = &console.pty_path {
        log::warn!("the guest's console is {path}");
    }
    let mut timer = TimerFd::new().map_err(|error| Error::system("cannot make a timer")(error.into()))?;
    if let Some(limit) = config.timeout {
        timer.reset(limit, None).map_err(|error| Error::system("cannot set a timer")(error.into()))?;
    }
    let timer = Rc::new(RefCell::new(timer));

    let control = config.name.as_deref().map(Control::new).transpose()?.map(Rc::new);
    let listens = config.dump_on.as_ref().is_some_and(|on| on.panic);
    let heard = Arc::new(
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::system("cannot make an eventfd"))?,
    );
    let output = || -> Box<dyn Write + Send> {
        match listens {
            true => Box::new(PanicWatch::new(console.output(), Arc::clone(&heard))),
            false => console.output(),
        }
    };
    let mut guest = Guest::new(config, output())?;
    loop {
        // The terminal is taken when nothing can be said wrong any more.
        let foreground = take_terminal(&console).map_err(Error::system("cannot set up the terminal"))?;
        let around = Around {
            config,
            console: &console,
            signals: &signals,
            timer: &timer,
            control: control.as_ref(),
            foreground,
            heard: listens.then(|| Arc::clone(&heard)),
            again: &|guest: &Guest| guest.again(config, output()),
        };
        match run_machine(guest, &around)? {
            End::Over(outcome) => return Ok(outcome),
            End::Again(next) => guest = *next,
        }
    }
}

/// Has the signals that matter wait for the event loop, on this thread and every one that is made later.
fn take_signals(config: &Config) -> Result<SignalFd, Error> {
    let is_terminal = config.console == ConsoleKind::Stdio && io::stdin().is_terminal();
    let jobs: &[Signal] = if is_terminal { &JOBS } else { &[] };
    let signals: SigSet = ENDING.iter().chain(jobs).copied().collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    terminal::install_handlers().map_err(Error::system("cannot install signal handlers"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))
}

/// Takes the terminal, if the console is one.
fn take_terminal(console: &Console) -> io::Result<Option<Rc<Foreground>>> {
    let Some(input) = console.input.as_ref().filter(|_| console.is_terminal) else { return Ok(None) };
    let raw = RawMode::enter(input.try_clone()?)?;
    Ok(Some(Rc::new(Foreground::new(raw)?)))
}

/// What the subscribers share: the machine and the verdict.
struct State {
    guest: Guest,
    verdict: RefCell<Option<Outcome>>,
}

impl State {
    /// The first verdict stands; but a guest that resets itself may begin again, so what ends the run comes
    /// before that. It was heard of once, and is not in the next machine.
    fn end(&self, outcome: Outcome) {
        let mut verdict = self.verdict.borrow_mut();
        if matches!(*verdict, None | Some(Outcome::Reset)) {
            *verdict = Some(outcome);
        }
    }
}

/// What is there for every machine of a run.
struct Around<'a> {
    config: &'a Config,
    console: &'a Console,
    signals: &'a Rc<RefCell<SignalFd>>,
    timer: &'a Rc<RefCell<TimerFd>>,
    control: Option<&'a Rc<Control>>,
    /// The terminal, if the console is one.
    foreground: Option<Rc<Foreground>>,
    /// The guest's kernel says on the console that it has panicked, and stays where it is.
    heard: Option<Arc<EventFd>>,
    /// Builds the machine in which the guest of another one begins again.
    again: &'a dyn Fn(&Guest) -> Result<Guest, Error>,
}

/// How a machine's run ends.
enum End {
    /// The guest is over.
    Over(Outcome),
    /// It begins again, in this one.
    Again(Box<Guest>),
}

/// Writes a core of a guest that has ended, if it has ended as `on` says. Answers the signal that has broken
/// that off, if one has.
fn dump(guest: &Guest, outcome: &Outcome, on: &DumpOn, signals: &RefCell<SignalFd>) -> Option<i32> {
    let ended_by = Cell::new(None);
    let is_ended = || {
        let signal = signals.borrow_mut().read_signal().ok().flatten();
        let signal = signal.filter(|signal| is_ending(signal.ssi_signo));
        let number = signal.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        ended_by.set(ended_by.get().or(number));
        number.is_some()
    };
    let is_due = match outcome {
        Outcome::TripleFault { .. } => on.triple_fault,
        Outcome::Timeout if on.timeout => true,
        Outcome::GuestCrash => on.panic,
        Outcome::Timeout | Outcome::Reset | Outcome::PowerOff => {
            on.panic && guest.dumper().has_panicked(&mut || !is_ended())
        }
        _ => false,
    };
    if !is_due {
        return ended_by.get();
    }
    let mut reporter = Reporter::new();
    let mut watch = |progress| {
        if let Some(percent) = reporter.percent(progress) {
            log::warn!("--dump-on {}: {percent} %", on.path.display());
        }
        if is_ended() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match guest.dumper().dump(&on.path, Moment::End, &mut watch) {
        Ok(summary) => log::warn!("dumped to {}: {summary}", on.path.display()),
        Err(error) => log::error!("--dump-on: {error}"),
    }
    ended_by.get()
}

/// Deals with a guest that has ended; `None` when it runs on.
fn end(guest: &Guest, outcome: Outcome, around: &Around<'_>) -> Result<Option<End>, Error> {
    let config = around.config;
    let over = || {
        guest.dumper().close();
        let wants_summary = config.hypercalls.as_ref().is_some_and(|hypercalls| hypercalls.summary);
        if let Some(hypercalls) = guest.hypercalls().filter(|_| wants_summary) {
            logging::print(&hypercalls.calls().summary());
        }
    };
    if outcome == Outcome::Reset && guest.takes_restart() {
        return Ok(match (around.again)(guest) {
            Ok(next) => {
                over();
                Some(End::Again(Box::new(next)))
            }
            // It is stopped at its debugger's prompt, and stays there.
            Err(error) => {
                guest.cannot_restart(&error);
                None
            }
        });
    }
    // The guest is over: what is typed now, Ctrl-C while it is dumped, is the terminal's business.
    terminal::restore();
    let ended_by = config.dump_on.as_ref().and_then(|on| dump(guest, &outcome, on, around.signals));
    over();
    let restarts = outcome == Outcome::Reset && config.on_reboot == OnReboot::Restart;
    let outcome = match ended_by {
        Some(signal) if restarts => Outcome::Stopped(Stop::Signal(signal)),
        None if restarts => {
            log::info!("the guest reset itself; it is booted again");
            return (around.again)(guest).map(|next| Some(End::Again(Box::new(next))));
        }
        _ => outcome,
    };
    guest.tell_debugger(&outcome);
    Ok(Some(End::Over(outcome)))
}

fn run_machine(guest: Guest, around: &Around<'_>) -> Result<End, Error> {
    let Around { console, signals, timer, control, foreground, heard, .. } = around;
    let state = Rc::new(State { guest, verdict: RefCell::new(None) });
    let mut events: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()
        .map_err(|error| Error::system("cannot make an event loop")(io::Error::other(error)))?;
    let guest_end = GuestEnd { state: Rc::clone(&state) };
    events.add_subscriber(Box::new(guest_end));
    events.add_subscriber(Box::new(Signals {
        state: Rc::clone(&state),
        signals: Rc::clone(signals),
        foreground: foreground.clone(),
    }));
    events.add_subscriber(Box::new(Timeout { state: Rc::clone(&state), timer: Rc::clone(timer) }));
    if let Some(control) = control {
        let again = TimerFd::new().map_err(|error| Error::system("cannot make a timer")(error.into()))?;
        let (state, control) = (Rc::clone(&state), Rc::clone(control));
        events.add_subscriber(Box::new(Clients { state, control, pause: Pause::default(), again }));
    }
    if let Some(heard) = heard {
        events.add_subscriber(Box::new(Panicked::new(&state, heard)?));
    }
    if let Some(input) = &console.input {
        let input = input.try_clone().map_err(Error::system("cannot duplicate the console"))?;
        let is_pty = console.pty_path.is_some();
        events.add_subscriber(Box::new(Input::new(&state, input, is_pty, foreground.clone())));
    }
    state.guest.start();
    loop {
        let verdict = state.verdict.borrow_mut().take();
        if let Some(outcome) = verdict
            && let Some(end) = end(&state.guest, outcome, around)?
        {
            return Ok(end);
        }
        events.run().map_err(|error| Error::system("the event loop failed")(io::Error::other(error)))?;
    }
}

/// Adds a descriptor to the loop. All of them are new there, so failure is the system's.
fn watch(ops: &mut EventOps, fd: RawFd, set: EventSet) -> bool {
    match ops.add(Events::new_raw(fd, set)) {
        Ok(()) => true,
        Err(error) => {
            log::error!("cannot watch descriptor {fd}: {error:?}");
            false
        }
    }
}

/// A vCPU says how the guest ended.
struct GuestEnd {
    state: Rc<State>,
}

impl MutEventSubscriber for GuestEnd {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.state.guest.wake().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        drain(self.state.guest.wake());
        if let Some(outcome) = self.state.guest.outcome() {
            self.state.end(outcome);
        }
    }
}

/// `vmm dump` and its like want something.
struct Clients {
    state: Rc<State>,
    control: Rc<Control>,
    pause: Pause,
    /// When those that wait are looked at again.
    again: TimerFd,
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.again.as_raw_fd(), EventSet::IN);
        watch(ops, self.control.listener().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let listener = self.control.listener().as_raw_fd();
        if events.fd() == self.again.as_raw_fd() {
            // This takes its count.
            if let Err(error) = self.again.clear() {
                log::error!("cannot clear a timer: {error}");
            }
            watch(ops, listener, EventSet::IN);
            return;
        }
        let Err(error) = self.control.serve(&self.state.guest, &mut self.pause) else { return };
        log::warn!("a client of the control socket cannot be accepted: {error}");
        let left = self.pause.left(Instant::now()).unwrap_or_default();
        if let Err(error) = self.again.reset(left.max(Duration::from_millis(1)), None) {
            log::error!("cannot wait for clients of the control socket: {error}");
        }
        if let Err(error) = ops.remove(Events::empty_raw(listener)) {
            log::error!("cannot stop watching the control socket: {error:?}");
        }
    }
}

/// Signals end the guest, or tell of the terminal.
struct Signals {
    state: Rc<State>,
    signals: Rc<RefCell<SignalFd>>,
    foreground: Option<Rc<Foreground>>,
}

/// Whether a signal ends the guest.
fn is_ending(number: u32) -> bool {
    i32::try_from(number).is_ok_and(|number| ENDING.iter().any(|signal| *signal as i32 == number))
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.signals.borrow().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Ok(Some(signal)) = self.signals.borrow_mut().read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            match &self.foreground {
                _ if is_ending(signal.ssi_signo) => self.state.end(Outcome::Stopped(Stop::Signal(number))),
                Some(foreground) if number == libc::SIGTSTP => foreground.stop(),
                Some(foreground) => foreground.look_soon(),
                None => {}
            }
        }
    }
}

/// `--timeout`.
struct Timeout {
    state: Rc<State>,
    timer: Rc<RefCell<TimerFd>>,
}

impl MutEventSubscriber for Timeout {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.timer.borrow().as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.state.end(Outcome::Timeout);
    }
}

/// Takes an event's count. It is non-blocking, and another reader there is none.
fn drain(event: &EventFd) {
    if let Err(error) = event.read() {
        log::debug!("an event was gone: {error}");
    }
}
