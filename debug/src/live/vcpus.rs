//! All vCPUs of a guest, for whoever has something to ask of them or wants them to stand still.
//!
//! What is asked goes as a [`Task`] to the thread of each vCPU, by the monitor's own way ([`Monitor::post`]). No lock
//! is held while a guest runs, and no question is put to a thread under a lock that such a thread takes.

use super::gate::Kick;
use super::holders::{Held, Holders, PANICKED, Turn};
use super::link::{Link, Wake};
use super::runner::{Runner, Then};
use crate::machine::{MachineError, Order};
use crate::reply::{Arguments, Command, Refusal, Reply};
use crate::vcpu::Vcpu;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Something that a vCPU's thread does between two entries to the guest.
pub type Task<V> = Box<dyn FnOnce(&mut Runner, &mut V) + Send>;

/// Whoever runs the vCPUs of a guest, each on a thread of its own.
pub trait Monitor: Send + Sync + Sized + 'static {
    /// One of them.
    type Vcpu: Vcpu + 'static;

    /// Number of vCPUs.
    fn vcpus(&self) -> u32;

    /// Has a vCPU's thread do a task before it enters the guest again, in the order of their posting; one that is in
    /// the guest is kicked out of it. A task for a thread that has ended is dropped.
    fn post(&self, vcpu: u32, task: Task<Self::Vcpu>);

    /// Gets a vCPU out of the guest, if it is in it.
    fn kick(&self, vcpu: u32);

    /// What kicks vCPUs of their own threads: called by one of them, which may be the last to know of this monitor.
    fn kick_among_vcpus(&self) -> Kick;

    /// Whether the guest has been let run, or would have been if it did not wait for a debugger.
    fn is_started(&self) -> bool {
        true
    }

    /// Has the guest end, and begin again as a machine of its own, of which the debugger is told by
    /// [`Debugger::begin_again`](super::debugger::Debugger::begin_again) or `cannot_begin_again`.
    ///
    /// # Errors
    /// Why it does not.
    fn reset(&self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("this guest cannot begin again"))
    }

    /// Has the guest end.
    fn quit(&self);

    /// Reads an I/O port that it serves, for a debugger, while all vCPUs stand still: 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where it serves none.
    fn read_port(&self, _port: u16, _bytes: &mut [u8]) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("there are no ports here"))
    }

    /// Writes one likewise.
    ///
    /// # Errors
    /// As [`Self::read_port`].
    fn write_port(&self, _port: u16, _bytes: &[u8]) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("there are no ports here"))
    }

    /// Counts of exits by vCPU and reason, for `monitor exits`.
    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        Vec::new()
    }

    /// Commands of `monitor` that it adds.
    fn commands(&self) -> Vec<Command> {
        Vec::new()
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// Why it does not.
    fn run_command(&self, name: &str, _arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        Err(Refusal::Senseless(format!("there is no command '{name}' here")))
    }

    /// All vCPUs are out of the guest, and stay out until [`Self::goes_on`]: the guest's time is to stand still. Called
    /// by whoever holds the guest as the first, under a lock that no vCPU's thread takes.
    fn stands_still(&self, _vcpus: &Vcpus<Self>) {}

    /// The guest is held for longer than a debugger's step takes. Called under the same lock.
    fn stays(&self, _vcpus: &Vcpus<Self>) {}

    /// Called while a debugger holds the guest and waits, under the same lock: what is worth its while only when that
    /// lasts is done once it has. How long until it wants to be called again.
    fn settle(&self, _vcpus: &Vcpus<Self>) -> Option<Duration> {
        None
    }

    /// The last of those who held the guest lets it go. Called under the same lock.
    fn goes_on(&self, _vcpus: &Vcpus<Self>) {}
}

/// All vCPUs of a guest.
#[derive(Debug)]
pub struct Vcpus<M: Monitor> {
    monitor: M,
    /// Who holds the guest.
    holders: Holders<Vcpus<M>>,
    /// Of the debugger that has a say, if there is one.
    link: Seat,
    /// Some vCPU has been told to run its guest.
    is_let_run: AtomicBool,
}

impl<M: Monitor> Held for Vcpus<M> {
    fn holders(&self) -> &Holders<Vcpus<M>> {
        &self.holders
    }

    fn stands_still(&self) {
        self.monitor.stands_still(self);
    }

    fn goes_on(&self) {
        self.monitor.goes_on(self);
    }
}

/// While it is there, no vCPU is in the guest, and the guest's time stands still.
///
/// Any number of them may be there at once: a debugger's, a dump's, an embedder's. None waits for
/// another to go, so they cannot wait for each other.
#[derive(Debug)]
pub struct Hold<M: Monitor> {
    vcpus: Arc<Vcpus<M>>,
    /// The vCPUs' threads know of it; else they were told to pause.
    is_told: bool,
    /// It ends by itself.
    is_let_go: bool,
}

impl<M: Monitor> Hold<M> {
    fn new(vcpus: &Arc<Vcpus<M>>, is_told: bool) -> Hold<M> {
        Hold { vcpus: Arc::clone(vcpus), is_told, is_let_go: false }
    }

    /// Of vCPUs whose threads have been told to hold, and are out of the guest: it stays longer than a debugger's step
    /// takes.
    fn of_told(vcpus: &Arc<Vcpus<M>>) -> Hold<M> {
        // What threads have been told is taken back, whatever a monitor panics in.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| Turn::take(vcpus).begin())) {
            vcpus.tell_all(Runner::release);
            resume_unwind(panic);
        }
        let hold = Hold::new(vcpus, true);
        hold.stays();
        hold
    }

    /// Of vCPUs that have been told to pause, and are out of the guest.
    pub(super) fn of_paused(vcpus: &Arc<Vcpus<M>>) -> Hold<M> {
        Turn::take(vcpus).begin();
        Hold::new(vcpus, false)
    }

    /// The same, and nobody is waited for: `None` while somebody else begins or ends to hold them.
    fn try_of_paused(vcpus: &Arc<Vcpus<M>>) -> Option<Hold<M>> {
        Turn::try_take(vcpus)?.begin();
        Some(Hold::new(vcpus, false))
    }

    /// What is held.
    pub fn vcpus(&self) -> &Vcpus<M> {
        &self.vcpus
    }

    /// Called by whoever will hold the guest for longer than a debugger's step takes.
    pub fn stays(&self) {
        let _turn = Turn::take(&self.vcpus);
        self.vcpus.monitor.stays(&self.vcpus);
    }

    /// The same, and nobody is waited for.
    pub(super) fn stays_soon(&self) {
        Turn::soon(&self.vcpus, |turn| {
            // Else it has been let go meanwhile.
            if turn.is_held() {
                let vcpus = turn.held();
                vcpus.monitor.stays(vcpus);
            }
        });
    }

    /// Called by whoever holds the guest and waits, for nobody else. How long until it is to be called again.
    pub fn settle(&self) -> Option<Duration> {
        match Turn::try_take(&self.vcpus) {
            Some(_turn) => self.vcpus.monitor.settle(&self.vcpus),
            None => Some(KICK_AGAIN),
        }
    }

    /// Ends it and waits for nobody: `then` is called behind that, at once or by whoever has the turn.
    pub(super) fn let_go(mut self, then: impl FnOnce(&Arc<Vcpus<M>>) + Send + 'static) {
        self.is_let_go = true;
        let (vcpus, is_told) = (Arc::clone(&self.vcpus), self.is_told);
        Turn::soon(&vcpus, move |turn| Hold::end(turn, is_told, then));
    }

    /// One less holds the guest. What is to be done behind that is, whatever a monitor panics in.
    fn end(turn: &mut Turn<'_, Vcpus<M>>, is_told: bool, then: impl FnOnce(&Arc<Vcpus<M>>)) {
        let ended = catch_unwind(AssertUnwindSafe(|| turn.end()));
        if is_told {
            turn.held().tell_all(Runner::release);
        }
        then(turn.held());
        ended.unwrap_or_else(|panic| resume_unwind(panic));
    }
}

impl<M: Monitor> Drop for Hold<M> {
    fn drop(&mut self) {
        if self.is_let_go {
            return;
        }
        let end = || Hold::end(&mut Turn::take(&self.vcpus), self.is_told, |_| {});
        match thread::panicking() {
            false => end(),
            // A second panic would end the process.
            true if catch_unwind(AssertUnwindSafe(end)).is_err() => log::error!("{PANICKED}"),
            true => {}
        }
    }
}

/// A thread that is out of reach of one kick gets another after this time.
pub(super) const KICK_AGAIN: Duration = Duration::from_millis(20);

/// A vCPU's thread that has not done a task after this time has something in its way.
const LONG: Duration = Duration::from_secs(5);
const IN_THE_WAY: &str = "It waits for ever if it is a vCPU's thread itself, if it has a lock that one of them takes, \
                          or if they run without accepting kicks or without doing what they are posted";

/// The answer of a vCPU's thread: when it is dropped, given or not, whoever waits is woken behind that.
#[derive(Clone)]
struct Answer<R> {
    sender: Option<Sender<R>>,
    wake: Option<Wake>,
}

impl<R> Answer<R> {
    fn new(sender: Sender<R>, wake: Option<&Wake>) -> Answer<R> {
        Answer { sender: Some(sender), wake: wake.cloned() }
    }

    fn give(self, result: R) {
        if let Some(sender) = &self.sender {
            // Nobody waits for it any more only when the one who asked is gone.
            sender.send(result).ok();
        }
    }
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(wake) = &self.wake {
            wake.ring();
        }
    }
}

/// vCPUs that have been told to stop for a debugger.
#[derive(Debug)]
pub(super) struct Pausing<M: Monitor> {
    vcpus: Arc<Vcpus<M>>,
    /// Whoever has not stopped yet has a sender.
    done: Receiver<()>,
    kicked: Instant,
}

impl<M: Monitor> Pausing<M> {
    /// What holds them, once they have stopped. To be called again after [`KICK_AGAIN`] at the latest.
    pub fn look(&mut self) -> Option<Hold<M>> {
        if self.done.try_recv() == Err(TryRecvError::Disconnected) {
            return Hold::try_of_paused(&self.vcpus);
        }
        if self.kicked.elapsed() >= KICK_AGAIN {
            (0..self.vcpus.count()).for_each(|vcpu| self.vcpus.monitor.kick(vcpu));
            self.kicked = Instant::now();
        }
        None
    }
}

/// Has a vCPU stop for the debugger with this link.
fn stop_for<V>(link: &Arc<Link>) -> impl Fn(&mut Runner, &mut V) + Clone + Send + 'static + use<V> {
    let link = Arc::clone(link);
    move |runner: &mut Runner, _: &mut V| runner.stop_for(&link)
}

/// Why a vCPU is not debugged.
const OTHER_VCPUS: &str =
    "the engine is for another architecture, or a vCPU's number is not below their count";

/// Where the debugger is that has a say.
type Seat = Arc<Mutex<Option<Arc<Link>>>>;

/// A debugger that leaves, while some vCPUs know of it. Its last one is dropped on a vCPU's thread, so it keeps no more than
/// the place.
struct Leaving {
    place: Seat,
    link: Arc<Link>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.take_if(|its| Arc::ptr_eq(its, &self.link));
    }
}

impl<M: Monitor> Vcpus<M> {
    /// Those of a monitor, none of which runs its guest yet.
    pub fn new(monitor: M) -> Vcpus<M> {
        Vcpus {
            monitor,
            holders: Holders::default(),
            link: Seat::default(),
            is_let_run: AtomicBool::new(false),
        }
    }

    /// Who runs them.
    pub fn monitor(&self) -> &M {
        &self.monitor
    }

    /// Number of vCPUs.
    pub fn count(&self) -> u32 {
        self.monitor.vcpus()
    }

    /// What vCPUs' threads share with the debugger that has a say, if there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a debugger have its say from the next entry of each vCPU on; returns when that is so.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when another one has it: two would not know of each other's planted
    /// instructions. One that was dropped without having left has it still. [`io::ErrorKind::InvalidInput`] when what it
    /// judges exits with is for another architecture, or a vCPU has a number that is not below their count.
    pub fn attach(self: &Arc<Self>, link: &Arc<Link>) -> io::Result<()> {
        self.take_place(link)?;
        let is_refused = Arc::new(AtomicBool::new(false));
        self.wait_for(&self.post_attach(link, &is_refused));
        if is_refused.load(Ordering::Acquire) {
            self.turn_away(link);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, OTHER_VCPUS));
        }
        Ok(())
    }

    /// Has threads let a debugger have its say, unless their vCPUs are none that it is for.
    fn post_attach(&self, link: &Arc<Link>, is_refused: &Arc<AtomicBool>) -> Receiver<()> {
        let (link, is_refused, count) = (Arc::clone(link), Arc::clone(is_refused), self.count());
        let attach = move |runner: &mut Runner, vcpu: &mut M::Vcpu| {
            if vcpu.isa() == link.engine.isa() && vcpu.id() < count {
                runner.attach(Arc::clone(&link));
            } else {
                is_refused.store(true, Ordering::Release);
                log::error!("vCPU {} is not debugged: {OTHER_VCPUS}", vcpu.id());
            }
        };
        self.post_to(|_| true, attach, None)
    }

    /// The debugger with this link has had vCPUs stop for nothing: they go on if the guest has been let run; nobody is
    /// waited for.
    pub(super) fn give_back(self: &Arc<Self>, link: &Arc<Link>, hold: Option<Hold<M>>) {
        let link = Arc::clone(link);
        let give_back = move |vcpus: &Arc<Vcpus<M>>| {
            let runs = vcpus.is_let_run();
            for vcpu in 0..vcpus.count() {
                let link = Arc::clone(&link);
                vcpus.monitor.post(vcpu, Box::new(move |runner, _| runner.give_back(&link, runs)));
            }
        };
        match hold {
            Some(hold) => hold.let_go(give_back),
            None => self.behind_those_gone(give_back),
        }
    }

    /// Makes a debugger the one that has a say.
    fn take_place(&self, link: &Arc<Link>) -> io::Result<()> {
        let mut place = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_some() {
            let why = "the guest has a debugger already: that one is to leave first";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        *place = Some(Arc::clone(link));
        Ok(())
    }

    /// The debugger that has come with this link leaves: no vCPU runs with anything of its own any more, and those that
    /// it has stopped run, if the guest is to ([`Monitor::is_started`]). When it returns, another one may come. One that
    /// has left already, or has never come, leaves nothing.
    pub fn detach(self: &Arc<Self>, link: &Arc<Link>) {
        self.detach_then(link, Then::Runs(self.monitor.is_started()));
    }

    /// The same of one that has done nothing yet: each vCPU does what it did.
    pub(super) fn turn_away(self: &Arc<Self>, link: &Arc<Link>) {
        self.detach_then(link, Then::AsBefore);
    }

    fn detach_then(self: &Arc<Self>, link: &Arc<Link>, then: Then) {
        if !self.is_here(link) {
            return;
        }
        let hold = self.hold();
        if let Then::Runs(_) = then {
            link.leave();
        }
        let (sender, dones) = channel();
        self.post_detach(link, then, Answer::new(sender, None));
        self.wait_for(&dones);
        drop(hold);
    }

    /// Whether the debugger that has a say is the one with this link.
    fn is_here(&self, link: &Arc<Link>) -> bool {
        let place = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().is_some_and(|its| Arc::ptr_eq(its, link))
    }

    /// Has threads let go of a debugger. Its place is free when the last one has, and not before: who would come in
    /// between would have vCPUs that do not know of him.
    fn post_detach(self: &Arc<Self>, link: &Arc<Link>, then: Then, answer: Answer<()>) {
        if then == Then::Runs(true) {
            self.let_run();
        }
        let leaving = Arc::new(Leaving { place: Arc::clone(&self.link), link: Arc::clone(link) });
        self.post_for(answer, |_| true, move |runner, vcpu| runner.detach(vcpu, &leaving.link, then));
    }

    /// Has something done behind what holders have [let go](Hold::let_go) before, and waits for nobody.
    pub(super) fn behind_those_gone(self: &Arc<Self>, then: impl FnOnce(&Arc<Self>) + Send + 'static) {
        Turn::soon(self, move |turn| then(turn.held()));
    }

    /// Whether somebody keeps them out of the guest, a debugger among them; who is about to does already. Nobody is waited
    /// for.
    pub fn is_held(&self) -> bool {
        self.holders.are_there()
    }

    /// Whether somebody has let the guest run; else it waits in front of its first instruction.
    pub fn is_let_run(&self) -> bool {
        self.is_let_run.load(Ordering::SeqCst)
    }

    pub(super) fn let_run(&self) {
        self.is_let_run.store(true, Ordering::SeqCst);
    }

    /// Gets all vCPUs out of the guest and keeps them out as long as the result is there; then they do
    /// what they did. Questions to them are answered meanwhile.
    pub fn hold(self: &Arc<Self>) -> Hold<M> {
        self.ask(|_| true, |runner, _| runner.hold());
        Hold::of_told(self)
    }

    /// Has those vCPUs that `may_run` stop for the debugger with this link, as long as it has not left: they do not obey it
    /// then. It gives each an order when it goes on.
    pub(super) fn stop_for(&self, link: &Arc<Link>, may_run: impl Fn(u32) -> bool) {
        self.ask(may_run, stop_for(link));
    }

    /// Has them stop, and holds them, as a debugger does: of which there is none.
    #[cfg(test)]
    pub(crate) fn pause(self: &Arc<Self>, may_run: impl Fn(u32) -> bool) -> Hold<M> {
        self.ask(may_run, |runner, _| runner.pause());
        Hold::of_paused(self)
    }

    /// Begins to have vCPUs stop for a debugger and does not wait for it: `wake` is rung when it is worth looking whether it
    /// is done.
    pub(super) fn begin_pause(
        self: &Arc<Self>,
        link: &Arc<Link>,
        may_run: impl Fn(u32) -> bool,
        wake: &Wake,
    ) -> Pausing<M> {
        let (sender, done) = channel();
        let (answer, stop) = (Answer::new(sender, Some(wake)), stop_for(link));
        let whom: Vec<bool> = (0..self.count()).map(may_run).collect();
        // Orders that it has given before are to be there by then.
        self.behind_those_gone(move |vcpus| {
            vcpus.post_for(answer, |vcpu| whom.get(vcpu as usize) == Some(&true), stop);
        });
        Pausing { vcpus: Arc::clone(self), done, kicked: Instant::now() }
    }

    /// Has threads do something, and waits until they have.
    fn ask(
        &self,
        whom: impl Fn(u32) -> bool,
        what: impl Fn(&mut Runner, &mut M::Vcpu) + Clone + Send + 'static,
    ) {
        self.wait_for(&self.post_to(whom, what, None));
    }

    /// Has threads do something; all senders of the result are gone when they have, and `wake` is rung.
    fn post_to(
        &self,
        whom: impl Fn(u32) -> bool,
        what: impl Fn(&mut Runner, &mut M::Vcpu) + Clone + Send + 'static,
        wake: Option<&Wake>,
    ) -> Receiver<()> {
        let (sender, dones) = channel();
        self.post_for(Answer::new(sender, wake), whom, what);
        dones
    }

    /// The same, of which `all` is the answer: one that waits for nobody is given, too.
    fn post_for(
        &self,
        all: Answer<()>,
        whom: impl Fn(u32) -> bool,
        what: impl Fn(&mut Runner, &mut M::Vcpu) + Clone + Send + 'static,
    ) {
        for vcpu in (0..self.count()).filter(|vcpu| whom(*vcpu)) {
            let (answer, what) = (all.clone(), what.clone());
            self.monitor.post(
                vcpu,
                Box::new(move |runner, vcpu| {
                    what(runner, vcpu);
                    // Whoever waits finds that it is not kept by this any more.
                    drop(what);
                    drop(answer);
                }),
            );
        }
        drop(what);
        drop(all);
    }

    /// Has one vCPU's thread call `call` with it, and does not wait for that: `wake` is rung when the result is there,
    /// or will never be.
    pub(super) fn post_question<R: Send + 'static>(
        &self,
        vcpu: u32,
        call: impl FnOnce(&mut M::Vcpu) -> R + Send + 'static,
        wake: &Wake,
    ) -> Receiver<R> {
        let (sender, results) = channel();
        let answer = Answer::new(sender, Some(wake));
        self.monitor.post(vcpu, Box::new(move |_, vcpu| answer.give(call(vcpu))));
        results
    }

    /// The debugger leaves a guest in which nothing of its own is planted any more; nobody waits for it: `wake` is
    /// rung when all senders of the result are gone, and the vCPUs run if the guest is to.
    pub(super) fn begin_detach(
        self: &Arc<Self>,
        link: &Arc<Link>,
        wake: &Wake,
        hold: Option<Hold<M>>,
    ) -> Receiver<()> {
        let (sender, dones) = channel();
        let (link, answer) = (Arc::clone(link), Answer::new(sender, Some(wake)));
        // Not asked in another's turn, who may have locks of the monitor's.
        let then = Then::Runs(self.monitor.is_started());
        let detach = move |vcpus: &Arc<Vcpus<M>>| vcpus.post_detach(&link, then, answer);
        match hold {
            Some(hold) => hold.let_go(detach),
            // It may have let go before, and not be through with that.
            None => self.behind_those_gone(detach),
        }
        dones
    }

    /// As [`Self::turn_away`], but does not wait.
    pub(super) fn begin_turning_away(self: &Arc<Self>, link: &Arc<Link>) {
        let (sender, _) = channel();
        self.post_detach(link, Then::AsBefore, Answer::new(sender, None));
    }

    /// As [`Self::attach`], but does not wait: what is posted to vCPUs behind it finds it done.
    pub(super) fn begin_attach(&self, link: &Arc<Link>) -> io::Result<()> {
        self.take_place(link)?;
        drop(self.post_attach(link, &Arc::default()));
        Ok(())
    }

    fn tell_all(&self, what: fn(&mut Runner)) {
        for vcpu in 0..self.count() {
            self.monitor.post(vcpu, Box::new(move |runner, _| what(runner)));
        }
    }

    /// Lets all vCPUs run their guest.
    pub fn resume(&self) {
        self.let_run();
        self.tell_all(Runner::resume);
    }

    /// Has all threads end that live in their inboxes: what is posted to one behind this is dropped. May be called
    /// anywhere, as it does not wait for them; whoever wants to know that they have ended joins them.
    pub fn retire(&self) {
        self.tell_all(Runner::retire);
    }

    /// Gives one vCPU an order of the debugger with this link, which it obeys unless that has left.
    pub fn order(&self, link: &Arc<Link>, vcpu: u32, order: Order) {
        self.let_run();
        let link = Arc::clone(link);
        let give = move |runner: &mut Runner, _: &mut M::Vcpu| {
            if runner.obeys(&link) {
                runner.order(order);
            }
        };
        self.monitor.post(vcpu, Box::new(give));
    }

    /// Has one vCPU's thread call `call` with it, whether held or not. `None` when there is no such vCPU, or its
    /// thread has ended.
    pub fn call<R: Send + 'static>(
        &self,
        vcpu: u32,
        call: impl FnOnce(&mut M::Vcpu) -> R + Send + 'static,
    ) -> Option<R> {
        if vcpu >= self.count() {
            return None;
        }
        let (result, results) = channel();
        self.monitor.post(
            vcpu,
            Box::new(move |_, vcpu| {
                // Nobody waits for the result any more only when the caller is gone.
                result.send(call(vcpu)).ok();
            }),
        );
        self.wait_for(&results)
    }

    /// Has every vCPU's thread call `call` with its vCPU, whether held or not, and collects the results in
    /// the order of vCPUs. A vCPU whose thread has ended gives none.
    pub fn for_each<R: Send + 'static>(
        &self,
        call: impl Fn(&mut M::Vcpu) -> R + Send + Sync + 'static,
    ) -> Vec<R> {
        let call = Arc::new(call);
        let begin = |vcpu| {
            let (result, results) = channel();
            let call = Arc::clone(&call);
            self.monitor.post(
                vcpu,
                Box::new(move |_, vcpu| {
                    // As above.
                    result.send(call(vcpu)).ok();
                }),
            );
            results
        };
        let results: Vec<Receiver<R>> = (0..self.count()).map(begin).collect();
        results.iter().filter_map(|results| self.wait_for(results)).collect()
    }

    /// Has every vCPU's thread call `call` with its vCPU before that enters the guest again, and does not wait for it.
    pub fn post_each(&self, call: impl Fn(&mut M::Vcpu) + Send + Sync + 'static) {
        let call = Arc::new(call);
        for vcpu in 0..self.count() {
            let call = Arc::clone(&call);
            self.monitor.post(vcpu, Box::new(move |_, vcpu| call(vcpu)));
        }
    }

    /// Waits until all senders of `answers` are gone, for the last answer. Whoever waits in vain is told why that may
    /// be.
    fn wait_for<R>(&self, answers: &Receiver<R>) -> Option<R> {
        let (mut last, mut begin) = (None, Some(Instant::now()));
        loop {
            match answers.recv_timeout(KICK_AGAIN) {
                Ok(answer) => last = Some(answer),
                Err(RecvTimeoutError::Disconnected) => return last,
                Err(RecvTimeoutError::Timeout) => (0..self.count()).for_each(|vcpu| self.monitor.kick(vcpu)),
            }
            if begin.is_some_and(|begin| begin.elapsed() >= LONG) {
                begin = None;
                let thread = thread::current();
                let name = thread.name().unwrap_or("without a name");
                log::warn!(
                    "the thread {name} has waited {LONG:?} for vCPUs' threads, which do no tasks. {IN_THE_WAY}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
