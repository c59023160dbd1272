//! Running a guest from the command line: console, signals, time, and the guest's own end.
//!
//! One event loop does all of it, on the thread that calls [`run`]. vCPU threads run guests
//! and nothing else.

mod at_end;
pub(crate) mod bounds;
pub mod config;
pub mod console;
pub(crate) mod escape;
mod events;
pub(crate) mod foreground;
mod input;
mod sign_look;
mod sign_watch;
pub mod signals;
pub mod terminal;

use crate::cell::{self, Ending, Grant, Rule};
use crate::control::protocol::Event;
use crate::control::server::{About, ControlSocket};
use crate::error::Error;
use crate::machine::debugger::check_dump_folder;
use crate::machine::{Backends, Guest};
use crate::outcome::{DUMP_FAILED, Outcome, VIOLATION};
use at_end::Sequel;
use bounds::Files;
use config::RunConfig;
use console::{Console, ConsoleKind};
use debug::dump::write::destination::Destination;
use debug::gdb::accept::Pause;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use events::{Clients, GuestEnd, Running, Signals, Timeout};
use foreground::Foreground;
use input::Input;
use kvm::probe;
use nix::sys::signalfd::SignalFd;
use sign_look::SignLook;
use sign_watch::{Listens, SignWatch};
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use terminal::RawMode;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// A run that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How the guest ended.
    pub outcome: Outcome,
    /// A core of it was to be written, and could not be, this time or before it began again.
    pub lacks_dump: bool,
}

impl Ended {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        if self.lacks_dump { DUMP_FAILED } else { self.outcome.code() }
    }
}

/// How long those who follow the guest may take to hear of its end.
pub(crate) const LAST_NEWS: Duration = Duration::from_millis(500);

/// Runs the guest to its end.
///
/// # Errors
/// [`Error`] when it could not be started.
pub fn run(config: &RunConfig) -> Result<Ended, Error> {
    // The guest may have run for hours when it is written.
    let memory = config.guest.memory.bytes();
    let dump_to = config.dump_on.as_ref().map(|on| dump_destination(&on.path, memory)).transpose()?;
    let signals = Arc::new(signals::take(config)?);
    let mut console = Console::open(&config.console).map_err(|source| Error::Open {
        option: "--console",
        path: match &config.console {
            ConsoleKind::File(path) => path.clone(),
            _ => PathBuf::from("pty"),
        },
        source,
    })?;
    if let Some(hypercalls) = &config.guest.hypercalls {
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
    let about = About { dump_folder: config.dump_folder.clone(), ..About::new(&config.guest) };
    let control = ControlSocket::take(config.name.as_deref(), about)?.map(Rc::new);
    let backends = confine(config, control.as_deref())?;
    console.prepare_input().map_err(Error::system("cannot read the console's input"))?;
    let listens = config.dump_on.as_ref().and_then(Listens::of);
    let heard = Arc::new(
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::system("cannot make an eventfd"))?,
    );
    let output = || -> Box<dyn Write + Send> {
        let output = match &control {
            Some(control) => control.feed().output(console.output()),
            None => console.output(),
        };
        match listens {
            Some(listens) => Box::new(SignWatch::new(output, listens, Arc::clone(&heard))),
            None => output,
        }
    };
    let guest = Guest::with_backends(&config.guest, backends, output())?;
    cell::settle();
    let lacks_dump = Cell::new(false);
    if guest.is_linux() && probe::lacks_instructions() {
        log::warn!(
            "this host's KVM does not run Linux guests, and this is one: `vmm check` says what it lacks"
        );
    }
    let mut around = Around {
        config,
        console: &console,
        signals: &signals,
        timer: &timer,
        control: control.as_ref(),
        foreground: None,
        heard: listens.map(|listens| (listens, Arc::clone(&heard))),
        lacks_dump: &lacks_dump,
        dump_to: dump_to.as_ref(),
        again: &|guest: &Guest| guest.again(&config.guest, output()),
    };
    let ended = live(guest, &mut around);
    if let Some(control) = &control {
        control.feed().end(&end_of(&ended), LAST_NEWS);
    }
    ended
}

/// Where `--dump-on` has a core written at the guest's end. It is found before the guest is there: one that may write to
/// its folder cannot have it led elsewhere by a link.
pub(crate) fn dump_destination(path: &Path, memory: u64) -> Result<Destination, Error> {
    let destination = Destination::anywhere(path)?;
    if let Some(shortage) = destination.check(memory)? {
        log::warn!("--dump-on {}: {shortage}", path.display());
    }
    Ok(destination)
}

/// What those are told who follow a guest, also when it could not go on.
fn end_of(ended: &Result<Ended, Error>) -> Event {
    match ended {
        Ok(ended) => Event::Ended { code: ended.code(), text: ended.outcome.to_string() },
        Err(error) => Event::Ended { code: error.code(), text: error.to_string() },
    }
}

/// Runs a guest, and those that it begins again as, to the last one's end.
fn live(mut guest: Guest, around: &mut Around<'_>) -> Result<Ended, Error> {
    let mut is_first = true;
    loop {
        // The terminal is taken when nothing can be said wrong any more.
        around.foreground =
            take_terminal(around.console).map_err(Error::system("cannot set up the terminal"))?;
        let is_typed_at = around.foreground.is_some();
        if std::mem::take(&mut is_first) && is_typed_at && around.config.guest.waits_for_debugger() {
            log::warn!("Ctrl-A x ends it before, Ctrl-A h shows the keys");
        }
        match run_guest(guest, around)? {
            Sequel::Over(outcome) => return Ok(Ended { outcome, lacks_dump: around.lacks_dump.get() }),
            Sequel::Again(next) => guest = *next,
        }
        // It is taken anew, as it is then.
        around.foreground = None;
    }
}

/// Begins the process's cell; what had to be opened before.
fn confine(config: &RunConfig, control: Option<&ControlSocket>) -> Result<Backends, Error> {
    if let Some(folder) = &config.dump_folder {
        if config.guest.gdb.is_none() && control.is_none() {
            return Err(Error::Usage(
                "--dump-dir: nobody can debug the guest and have a dump written there: add --gdb :1234, or --name NAME for \
                 `vmm gdb NAME`"
                    .into(),
            ));
        }
        check_dump_folder(folder)?;
    }
    let control = control.map(|control| (control.path(), config.name.is_some()));
    let mut rules = bounds::of_guest(&config.guest, Files::Again, control, config.dump_folder.as_deref());
    rules.extend(config.dump_on.as_ref().map(|on| Rule::folder_of(&on.path, Grant::Own)));
    let backends = Backends::before_cell(&config.guest)?;
    let ending = Ending { code: VIOLATION, json: false, restore: terminal::restore };
    cell::begin(config.sandbox, rules, ending).map_err(Error::system("cannot confine the monitor"))?;
    Ok(backends)
}

/// Takes the terminal, if the console is one.
fn take_terminal(console: &Console) -> io::Result<Option<Rc<Foreground>>> {
    let Some(input) = console.input.as_ref().filter(|_| console.is_terminal) else { return Ok(None) };
    let raw = RawMode::enter(input.try_clone()?)?;
    Ok(Some(Rc::new(Foreground::new(raw)?)))
}

/// What is there for a guest, each time that it begins again.
struct Around<'a> {
    config: &'a RunConfig,
    console: &'a Console,
    signals: &'a Arc<SignalFd>,
    timer: &'a Rc<RefCell<TimerFd>>,
    control: Option<&'a Rc<ControlSocket>>,
    /// The terminal, if the console is one.
    foreground: Option<Rc<Foreground>>,
    /// The guest's kernel says on the console that it has panicked, and stays where it is, or that it hangs.
    heard: Option<(Listens, Arc<EventFd>)>,
    /// See [`Ended::lacks_dump`].
    lacks_dump: &'a Cell<bool>,
    /// Where `--dump-on` has a core written.
    dump_to: Option<&'a Destination>,
    /// Makes the guest that another one begins again as.
    again: &'a dyn Fn(&Guest) -> Result<Guest, Error>,
}

fn run_guest(guest: Guest, around: &Around<'_>) -> Result<Sequel, Error> {
    let Around { console, signals, timer, control, foreground, heard, .. } = around;
    let running = Rc::new(Running { guest, verdict: RefCell::new(None) });
    let mut events: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()
        .map_err(|error| Error::system("cannot make an event loop")(io::Error::other(error)))?;
    let guest_end = GuestEnd { running: Rc::clone(&running) };
    events.add_subscriber(Box::new(guest_end));
    events.add_subscriber(Box::new(Signals {
        running: Rc::clone(&running),
        signals: Arc::clone(signals),
        foreground: foreground.clone(),
    }));
    events.add_subscriber(Box::new(Timeout { running: Rc::clone(&running), timer: Rc::clone(timer) }));
    if let Some(control) = control {
        let again = TimerFd::new().map_err(|error| Error::system("cannot make a timer")(error.into()))?;
        let (running, control) = (Rc::clone(&running), Rc::clone(control));
        events.add_subscriber(Box::new(Clients { running, control, pause: Pause::default(), again }));
    }
    if let Some((listens, heard)) = heard {
        events.add_subscriber(Box::new(SignLook::new(&running, *listens, heard)?));
    }
    if let Some(input) = &console.input {
        let input = input.try_clone().map_err(Error::system("cannot duplicate the console"))?;
        let is_pty = console.pty_path.is_some();
        events.add_subscriber(Box::new(Input::new(&running, input, is_pty, foreground.clone())));
    }
    if let Some(foreground) = foreground {
        running.tell_size(foreground);
    }
    if let Some(control) = control {
        control.feed().begin(&running.guest);
    }
    running.guest.start();
    loop {
        let verdict = running.verdict.borrow_mut().take();
        if let Some(outcome) = verdict
            && let Some(sequel) = at_end::deal_with(&running.guest, outcome, around)?
        {
            return Ok(sequel);
        }
        events.run().map_err(|error| Error::system("the event loop failed")(io::Error::other(error)))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_cannot_begin_again_is_told_to_have_ended() {
        let error = Error::system("cannot make a vCPU")(io::Error::other("so"));
        let Event::Ended { code, text } = end_of(&Err(error)) else { panic!("it has not ended") };
        assert_eq!((code, text.as_str()), (crate::outcome::HOST, "cannot make a vCPU: so"));
    }
}
