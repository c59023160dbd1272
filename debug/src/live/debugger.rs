//! A debugger of a live guest: it comes at any time, serves gdb, on a thread of its own ([`Debugger`]) or in the
//! monitor's event loop ([`Polled`]), and leaves at any time.

use super::link::{Link, Wake};
use super::machine::{Begun, HoldPlace, LiveMachine, Waiting};
use super::vcpus::{Hold, KICK_AGAIN, Monitor, Vcpus};
use crate::context::Listeners;
use crate::engine::Engine;
use crate::gdb::description::Believed;
use crate::gdb::endpoint::{Admission, ListeningSocket};
use crate::gdb::server::{self, OnLost, Service};
use crate::gdb::session::{NAME, Session};
use crate::ram::Memory;
use crate::symbols::SymbolFile;
use crate::threads;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

/// What a guest is to a debugger, beside its vCPUs.
pub struct Target {
    /// What judges its exits, made for its architecture, its host and its number of vCPUs.
    pub engine: Arc<Engine>,
    /// Its RAM.
    pub memory: Box<dyn Memory>,
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Target").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// How gdb is served.
#[derive(Debug)]
pub struct Options {
    /// Who is served.
    pub admission: Admission,
    /// What becomes of the guest when a debugger is lost.
    pub on_lost: OnLost,
    /// A debugger that comes second takes the place of the first.
    pub takeover: bool,
    /// What is believed of the guest before it says so.
    pub believed: Believed,
    /// The debugger's thread, where it has one, and the vCPU's that steps look for what comes at once, before they
    /// sleep: the end of the step, and what the debugger says to it. For as long as that was worth it, 50 us to 4 ms
    /// ([`Patience`](crate::patience::Patience)). It makes steps more than twice as quick, and costs these two threads'
    /// processors while somebody steps.
    pub looks: bool,
    /// The folder that `monitor dump` writes below; the current one where none is given.
    pub dump_folder: Option<PathBuf>,
    /// The file that the guest's kernel was linked to, for `monitor`.
    pub symbols: SymbolFile,
    /// What words to the debugger's user begin with: the monitor's name.
    pub name: String,
    /// What is told to one that is refused as another one is attached, in words: how that is let go, if there is a way
    /// for a user to have the monitor do so ([`Debugger::release`]).
    pub how_to_release: Option<String>,
}

impl Options {
    /// Whoever `admission` lets in is served, one at a time; the guest of a debugger that is lost runs on.
    pub fn new(admission: Admission) -> Options {
        let (on_lost, believed) = (OnLost::default(), Believed::default());
        Options {
            admission,
            on_lost,
            takeover: false,
            believed,
            looks: true,
            dump_folder: None,
            symbols: SymbolFile::Absent,
            name: NAME.into(),
            how_to_release: None,
        }
    }
}

/// Where a debugger is: the machine that the guest is in.
#[derive(Debug)]
struct Home<M: Monitor> {
    /// Its vCPUs, which are not kept by this.
    vcpus: Weak<Vcpus<M>>,
    /// What they share with the debugger.
    link: Arc<Link>,
    /// What holds them while the debugger does.
    hold: HoldPlace<M>,
    /// It has left, or leaves: it goes over to no other.
    is_left: bool,
}

impl<M: Monitor> Home<M> {
    fn of(begun: &Begun<M>) -> Home<M> {
        let Begun { vcpus, link, hold, .. } = begun;
        Home { vcpus: Arc::downgrade(vcpus), link: Arc::clone(link), hold: Arc::clone(hold), is_left: false }
    }

    /// The vCPUs, if they are there.
    fn there(&self) -> Option<(Arc<Vcpus<M>>, Arc<Link>)> {
        Some((self.vcpus.upgrade()?, Arc::clone(&self.link)))
    }

    /// What holds the guest for the debugger, which does not any more.
    fn take_hold(&self) -> Option<Hold<M>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a debugger and whoever runs the guest tell each other.
#[derive(Debug)]
struct Lines<M: Monitor> {
    engine: Arc<Engine>,
    wake: Wake,
    release: Wake,
    next: Sender<Result<Begun<M>, String>>,
    /// The debugger wants the guest to end, whichever machine it is in by then.
    wants_end: Arc<AtomicBool>,
    quit: Wake,
    place: Mutex<Home<M>>,
    /// vCPUs' threads look for what comes at once, wherever the guest is.
    looks: bool,
}

impl<M: Monitor> Lines<M> {
    /// Lets a debugger have its say in a guest: the machine that it debugs.
    fn new(
        vcpus: &Arc<Vcpus<M>>,
        target: Target,
        (waiting, looks): (Waiting, bool),
    ) -> io::Result<(Lines<M>, LiveMachine<M>)> {
        let (wake, release, quit) = (Wake::new()?, Wake::new()?, Wake::new()?);
        let engine = target.engine;
        let (sender, next) = channel();
        let wants_end = Arc::new(AtomicBool::new(false));
        if engine.vcpus() != vcpus.count() {
            let why = format!("the engine is for {} vCPUs, and there are {}", engine.vcpus(), vcpus.count());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let wakes = (wake.clone(), release.clone());
        let begun = begin(vcpus, &engine, target.memory, wakes, (waiting, looks))?;
        let place = Mutex::new(Home::of(&begun));
        let machine = LiveMachine::new(begun, next, (quit.clone(), Arc::clone(&wants_end)), waiting);
        Ok((Lines { engine, wake, release, next: sender, wants_end, quit, place, looks }, machine))
    }

    /// What the machine is served with to gdb.
    fn serve(
        &self,
        machine: LiveMachine<M>,
        options: Options,
    ) -> io::Result<(Session<LiveMachine<M>>, Service)> {
        let service = Service {
            quit: self.quit.duplicate()?,
            release: Some(self.release.duplicate()?),
            admission: options.admission,
            on_lost: options.on_lost,
            takeover: options.takeover,
            how_to_release: options.how_to_release,
            looks: options.looks,
        };
        let mut session = Session::new(machine, Arc::clone(&self.engine));
        (session.believed, session.name) = (options.believed, options.name);
        session.symbols = options.symbols;
        if let Some(folder) = options.dump_folder {
            session.dump_folder = folder;
        }
        Ok((session, service))
    }

    fn begin_again(&self, vcpus: &Arc<Vcpus<M>>, memory: Box<dyn Memory>, waiting: Waiting) {
        let (had, has) = (self.engine.vcpus(), vcpus.count());
        if had != has {
            return self.tell(Err(format!("a guest of {had} vCPUs does not begin again with {has}")));
        }
        let wakes = (self.wake.clone(), self.release.clone());
        // Who has it leave meanwhile waits, and has it leave the new one.
        let mut place = self.place();
        if place.is_left {
            return self.tell(Err("its debugger has left".into()));
        }
        let begun = begin(vcpus, &self.engine, memory, wakes, (waiting, self.looks));
        let begun = match begun {
            Ok(begun) => begun,
            Err(refused) => return self.tell(Err(refused.to_string())),
        };
        *place = Home::of(&begun);
        drop(place);
        self.tell(Ok(begun));
        // It may have ended the former machine when that was over already. Whoever does so behind this
        // look finds the new one.
        if self.wants_end.load(Ordering::SeqCst) {
            vcpus.monitor().quit();
        }
    }

    fn tell(&self, next: Result<Begun<M>, String>) {
        // Nobody hears it only when the server has ended, as it does when the guest is over.
        self.next.send(next).ok();
        self.wake.ring();
    }

    fn place(&self) -> MutexGuard<'_, Home<M>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPUs, if they are there.
    fn vcpus(&self) -> Option<Arc<Vcpus<M>>> {
        self.place().vcpus.upgrade()
    }

    /// The debugger leaves, and goes over to no other machine.
    fn leave(&self) {
        let mut place = self.place();
        place.is_left = true;
        let Some((vcpus, link)) = place.there() else { return };
        let hold = vcpus.hold();
        vcpus.detach(&link);
        drop(place.take_hold());
        drop(hold);
    }

    /// The same, and nobody waits for it.
    fn begin_leaving(&self) -> Option<Receiver<()>> {
        let mut place = self.place();
        place.is_left = true;
        let (vcpus, link) = place.there()?;
        Some(vcpus.begin_detach(&link, &self.wake, place.take_hold()))
    }

    /// It comes to nothing, and has done nothing.
    fn turn_away(&self) {
        if let Some((vcpus, link)) = self.place().there() {
            vcpus.turn_away(&link);
        }
    }

    /// The same, and nobody waits for it.
    fn begin_turning_away(&self) {
        if let Some((vcpus, link)) = self.place().there() {
            vcpus.begin_turning_away(&link);
        }
    }
}

/// The thread that serves gdb, or a program's say in a guest. Whoever drops it without [`leave`](Debugger::leave) means
/// that the guest is over: what is planted stays, and vCPUs that it has stopped stand still.
#[derive(Debug)]
pub struct Debugger<M: Monitor> {
    lines: Lines<M>,
    /// Of a guest that gdb is served for.
    listeners: Option<Listeners>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The thread's.
    id: Option<ThreadId>,
    /// Where gdb is served.
    address: Option<String>,
}

impl<M: Monitor> Debugger<M> {
    /// Comes to a guest, whether it runs or not, and serves gdb at `listener`.
    ///
    /// # Errors
    /// When the guest has a debugger already, `target` is for another number of vCPUs, or the system gives no more
    /// threads or descriptors. Then nothing of it is left in the guest.
    pub fn attach(
        vcpus: &Arc<Vcpus<M>>,
        target: Target,
        listener: ListeningSocket,
        options: Options,
    ) -> io::Result<Debugger<M>> {
        let waiting = if options.looks { Waiting::Awake } else { Waiting::Asleep };
        let address = Some(listener.address().to_string());
        let (lines, machine) = Lines::new(vcpus, target, (waiting, options.looks))?;
        let thread = lines.serve(machine, options).and_then(|(session, service)| {
            let listeners = session.debuggee.listeners().clone();
            let thread = thread::Builder::new().name("gdb".into());
            Ok((listeners, threads::start("gdb", thread, move || server::run(listener, session, service))?))
        });
        let (listeners, thread) = thread.inspect_err(|_| lines.turn_away())?;
        let id = Some(thread.thread().id());
        Ok(Debugger { lines, listeners: Some(listeners), thread: Mutex::new(Some(thread)), id, address })
    }

    /// Comes to a guest, whether it runs or not, for a program that debugs it by itself, on whichever thread it likes:
    /// with the machine that it debugs, for a [`Debuggee`](crate::context::Debuggee). When this has left, that
    /// answers that nobody debugs the guest. `looks` as [`Options::looks`], for that thread.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn join(
        vcpus: &Arc<Vcpus<M>>,
        target: Target,
        looks: bool,
    ) -> io::Result<(Debugger<M>, LiveMachine<M>)> {
        let waiting = if looks { Waiting::Awake } else { Waiting::Asleep };
        let (lines, machine) = Lines::new(vcpus, target, (waiting, looks))?;
        let debugger = Debugger { lines, listeners: None, thread: Mutex::new(None), id: None, address: None };
        Ok((debugger, machine))
    }

    /// What it judges exits with, and knows planted instructions by.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.lines.engine
    }

    /// Where gdb is served, as it is written; `None` of a program's.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Where whoever wants to hear what gdb's guest does adds a listener; none of a program's, whose `Debuggee` has
    /// them.
    pub fn listeners(&self) -> Option<&Listeners> {
        self.listeners.as_ref()
    }

    /// The guest begins again in another machine, with as many vCPUs, none of which has run: the debugger goes over to
    /// it, with all that it has asked for, and lets it run.
    pub fn begin_again(&self, vcpus: &Arc<Vcpus<M>>, memory: Box<dyn Memory>) {
        self.lines.begin_again(vcpus, memory, Waiting::Asleep);
    }

    /// The guest does not begin again though the debugger has asked for it; in words, why.
    pub fn cannot_begin_again(&self, why: String) {
        self.lines.tell(Err(why));
    }

    /// Has the gdb that is connected let go, so that another one may come.
    pub fn release(&self) {
        self.lines.release.ring();
    }

    /// Leaves: whoever is connected is let go, nothing is left in the guest, and it runs. One that has left already leaves
    /// nothing. Called on the debugger's own
    /// thread, as by [`Monitor::quit`], it is left when that returns.
    pub fn leave(&self) {
        self.lines.place().link.begin_leaving();
        self.end();
        self.lines.leave();
    }

    fn end(&self) {
        self.lines.quit.ring();
        // On the thread itself, as from what the monitor does for it, nobody waits for its end: it comes.
        if self.id == Some(thread::current().id()) {
            return;
        }
        // Who comes second waits as well.
        let mut place = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(thread) = place.take() else { return };
        if thread.join().is_err() {
            log::error!("the gdb server ended with a panic");
        }
    }
}

impl<M: Monitor> Drop for Debugger<M> {
    /// The guest is over: nothing of the debugger's is taken out of it.
    fn drop(&mut self) {
        self.end();
    }
}

/// A debugger without a thread: the monitor's event loop waits for its descriptor, and calls
/// [`process`](Polled::process) when that is readable. That never waits for a vCPU; where one is to answer first, the
/// descriptor becomes readable when it has. So the loop may be on the thread of the guest's only vCPU, as long as that
/// does the tasks that it is [posted](Monitor::post), and its monitor asks no vCPU where it is told that the guest
/// [stands still](Monitor::stands_still) or goes on: what it does there is waited for.
///
/// What somebody asks for may take as long as it takes: to search all memory, or to write a dump. Dropped without
/// having [left](Polled::leave), it means that the guest is over, as a [`Debugger`] does.
#[derive(Debug)]
pub struct Polled<M: Monitor> {
    lines: Lines<M>,
    listeners: Listeners,
    server: server::Polled<LiveMachine<M>>,
    state: Served,
}

/// How far a [`Polled`] debugger is.
#[derive(Debug)]
enum Served {
    Serves,
    /// It is to leave.
    WantsToLeave,
    /// Nobody is served any more; vCPUs have senders until they have let it go.
    Leaves(Receiver<()>),
    Over,
}

/// What becomes of a [`Polled`] debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It serves gdb, or is about to leave: its descriptor is to be waited for.
    Serving,
    /// It has left, or the guest is over: there is nothing more to wait for.
    Over,
}

impl<M: Monitor> Polled<M> {
    /// Comes to a guest, whether it runs or not, and serves gdb at `listener`.
    ///
    /// # Errors
    /// As [`Debugger::attach`].
    pub fn attach(
        vcpus: &Arc<Vcpus<M>>,
        target: Target,
        listener: ListeningSocket,
        options: Options,
    ) -> io::Result<Polled<M>> {
        let (lines, machine) = Lines::new(vcpus, target, (Waiting::Never, options.looks))?;
        let server = lines.serve(machine, options);
        let server = server.and_then(|(session, service)| {
            let listeners = session.debuggee.listeners().clone();
            Ok((listeners, server::Polled::new(listener, session, service)?))
        });
        let (listeners, server) = server.inspect_err(|_| lines.begin_turning_away())?;
        Ok(Polled { lines, listeners, server, state: Served::Serves })
    }

    /// Where whoever wants to hear what gdb's guest does adds a listener.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// As [`Debugger::engine`].
    pub fn engine(&self) -> &Arc<Engine> {
        &self.lines.engine
    }

    /// As [`Debugger::begin_again`].
    pub fn begin_again(&self, vcpus: &Arc<Vcpus<M>>, memory: Box<dyn Memory>) {
        self.lines.begin_again(vcpus, memory, Waiting::Never);
    }

    /// As [`Debugger::cannot_begin_again`].
    pub fn cannot_begin_again(&self, why: String) {
        self.lines.tell(Err(why));
    }

    /// As [`Debugger::release`].
    pub fn release(&self) {
        self.lines.release.ring();
    }

    /// Is to leave, as [`Debugger::leave`] does: [`Self::process`] is called on until it is over.
    pub fn leave(&mut self) {
        if let Served::Serves = self.state {
            self.state = Served::WantsToLeave;
            // Also where nobody waits for what vCPUs tell.
            if let Err(error) = self.server.wait_for_vcpus(Duration::ZERO) {
                log::error!("the gdb server cannot be woken, and leaves when it is next called: {error}");
            }
        }
    }

    /// Does what there is to do, for a bounded time but for what somebody asks for that takes long.
    ///
    /// # Errors
    /// What the system says when it is asked what there is to do.
    pub fn process(&mut self) -> io::Result<Status> {
        match &self.state {
            Served::Over => {}
            Served::Leaves(done) if done.try_recv() == Err(TryRecvError::Disconnected) => {
                self.state = Served::Over;
            }
            Served::Leaves(_) => {
                self.lines.wake.take();
                // One that a kick did not reach gets another.
                if let Some(vcpus) = self.lines.vcpus() {
                    (0..vcpus.count()).for_each(|vcpu| vcpus.monitor().kick(vcpu));
                }
                self.server.wait_for_vcpus(KICK_AGAIN)?;
            }
            Served::Serves | Served::WantsToLeave => self.serve()?,
        }
        Ok(if let Served::Over = self.state { Status::Over } else { Status::Serving })
    }

    fn serve(&mut self) -> io::Result<()> {
        let leaves = matches!(self.state, Served::WantsToLeave);
        // What was put off until all vCPUs stand still may have been done by the first.
        let mut goes_on = self.server.process()?;
        if goes_on && leaves {
            goes_on = self.server.leave()?;
        }
        if goes_on {
            return Ok(());
        }
        self.state = match leaves.then(|| self.lines.begin_leaving()).flatten() {
            Some(done) => {
                self.server.wait_for_vcpus(KICK_AGAIN)?;
                Served::Leaves(done)
            }
            None => Served::Over,
        };
        Ok(())
    }
}

impl<M: Monitor> AsFd for Polled<M> {
    /// Becomes readable when [`Self::process`] is to be called.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.server.as_fd()
    }
}

/// Lets a debugger have its say in a machine.
fn begin<M: Monitor>(
    vcpus: &Arc<Vcpus<M>>,
    engine: &Arc<Engine>,
    memory: Box<dyn Memory>,
    wakes: (Wake, Wake),
    (waiting, looks): (Waiting, bool),
) -> io::Result<Begun<M>> {
    let kick = vcpus.monitor().kick_among_vcpus();
    let (mut link, events) = Link::new(Arc::clone(engine), vcpus.count(), memory, kick, wakes);
    link.looks = looks;
    let link = Arc::new(link);
    match waiting {
        Waiting::Never => vcpus.begin_attach(&link)?,
        Waiting::Asleep | Waiting::Awake => vcpus.attach(&link)?,
    }
    Ok(Begun { vcpus: Arc::clone(vcpus), link, events, hold: Arc::default() })
}
