//! A live guest's vCPUs, as whoever debugs them sees them.
//!
//! What only a vCPU's thread can tell it waits for (`waited`), or, where whoever debugs must not wait, has asked for
//! before (`ahead`).

use super::ahead::Ahead;
use super::link::{Link, Wake};
use super::vcpus::{Hold, KICK_AGAIN, Monitor, Vcpus};
use super::waited::Waited;
use crate::abilities::Abilities;
use crate::machine::{Action, Activity, Code, Control, Event, Extent, Machine, MachineError, Order};
use crate::patience::Patience;
use crate::ram::Memory;
use crate::reply::{Arguments, Command, Refusal, Reply};
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

/// All vCPUs of a guest, for one thread that debugs it.
#[derive(Debug)]
pub struct LiveMachine<M: Monitor> {
    vcpus: Arc<Vcpus<M>>,
    link: Arc<Link>,
    events: Receiver<Event>,
    /// Events that have arrived and were not asked for yet. What they say of vCPUs is known already.
    happened: VecDeque<Event>,
    /// Which vCPUs may be running: what need not be paused is not asked to.
    running: Vec<bool>,
    /// While none of them may.
    hold: HoldPlace<M>,
    answers: Answers<M>,
    /// How it gets at what vCPUs' threads say.
    waiting: Waiting,
    /// Where it looks before it sleeps.
    patience: Patience,
    /// Since when something is waited for that was looked for in vain.
    asleep: Option<Instant>,
    /// Likewise: since when the guest is to begin again, and what has come of that.
    restarting: Option<Restarting>,
    /// Machines in which the guest begins again, or why there is none.
    next: Receiver<Result<Begun<M>, String>>,
    /// The debugger's thread is to end.
    quit: Wake,
    /// The debugger wants the guest to end.
    wants_end: Arc<AtomicBool>,
}

/// A machine whose guest begins, as far as a debugger needs it.
#[derive(Debug)]
pub struct Begun<M: Monitor> {
    /// Its vCPUs.
    pub vcpus: Arc<Vcpus<M>>,
    /// What their threads share with the debugger.
    pub link: Arc<Link>,
    /// What they tell it.
    pub events: Receiver<Event>,
    /// What holds the guest while the debugger does.
    pub hold: HoldPlace<M>,
}

/// What holds a guest while its debugger does: shared with whoever has the debugger leave.
pub type HoldPlace<M> = Arc<Mutex<Option<Hold<M>>>>;

fn locked<M: Monitor>(place: &HoldPlace<M>) -> MutexGuard<'_, Option<Hold<M>>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a debugger is told that has left.
const LEFT: MachineError = MachineError::Unsupported("its debugger has left the guest");

/// The guest is to begin again, and nobody waits for that.
#[derive(Clone, Debug)]
enum Restarting {
    Since(Instant),
    Done(Result<(), MachineError>),
}

/// How whoever debugs gets at what vCPUs' threads say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It waits, asleep.
    Asleep,
    /// It waits, and looks for what comes at once, for a bounded time, before it sleeps.
    Awake,
    /// It never waits.
    Never,
}

/// Longer than a kernel takes to be read and unpacked; a program that has the machine may not obey at all.
const PATIENCE: Duration = Duration::from_secs(60);

fn impatient() -> MachineError {
    MachineError::Host("whoever runs the guest does not have it begin again".into())
}

/// What vCPUs' threads have said.
#[derive(Debug)]
enum Answers<M: Monitor> {
    /// When they were asked, for whoever waited.
    Waited(Waited),
    /// Before anybody wanted to know.
    Ahead(RefCell<Ahead<M>>),
}

impl<M: Monitor> Answers<M> {
    fn new(vcpus: u32, waiting: Waiting) -> Answers<M> {
        match waiting {
            Waiting::Never => Answers::Ahead(RefCell::new(Ahead::new(vcpus))),
            Waiting::Asleep | Waiting::Awake => Answers::Waited(Waited::new(vcpus)),
        }
    }
}

impl<M: Monitor> LiveMachine<M> {
    /// The machine as it begins; those that `next` tells of take its place.
    pub fn new(
        begun: Begun<M>,
        next: Receiver<Result<Begun<M>, String>>,
        (quit, wants_end): (Wake, Arc<AtomicBool>),
        waiting: Waiting,
    ) -> LiveMachine<M> {
        let Begun { vcpus, link, events, hold } = begun;
        LiveMachine {
            events,
            happened: VecDeque::new(),
            // Until the first pause nobody knows.
            running: vec![true; vcpus.count() as usize],
            hold,
            answers: Answers::new(vcpus.count(), waiting),
            waiting,
            patience: Patience::default(),
            asleep: None,
            restarting: None,
            next,
            quit,
            wants_end,
            vcpus,
            link,
        }
    }

    /// Goes over to a machine in which the guest begins again, and lets go of the old one.
    fn adopt(&mut self, begun: Begun<M>) {
        self.let_go(|_| {});
        let Begun { vcpus, link, events, hold } = begun;
        (self.vcpus, self.link, self.events, self.hold) = (vcpus, link, events, hold);
        self.happened.clear();
        // Nobody has stopped them for this debugger, though none may have run.
        self.running.fill(true);
        self.answers = Answers::new(self.vcpus.count(), self.waiting);
    }

    /// Whether the debugger holds the guest.
    fn holds(&self) -> bool {
        locked(&self.hold).is_some()
    }

    /// It does not any more; `then` is called behind that.
    fn let_go(&self, then: impl FnOnce(&Arc<Vcpus<M>>) + Send + 'static) {
        let hold = locked(&self.hold).take();
        match (hold, self.waiting) {
            (Some(hold), Waiting::Never) => hold.let_go(then),
            (None, Waiting::Never) => self.vcpus.behind_those_gone(then),
            (hold, Waiting::Asleep | Waiting::Awake) => {
                drop(hold);
                then(&self.vcpus);
            }
        }
    }

    /// Whether what a vCPU says of itself holds until it is let run.
    fn stands_still(&self, vcpu: u32) -> bool {
        self.running.get(vcpu as usize) == Some(&false)
    }

    /// Has the guest begin again, and waits for that.
    fn restart(&mut self) -> Result<(), MachineError> {
        /// Between two looks whether this thread is to end.
        const LOOK: Duration = Duration::from_millis(20);
        let begin = Instant::now();
        self.vcpus.monitor().reset()?;
        loop {
            match self.next.recv_timeout(LOOK) {
                Ok(Ok(begun)) => {
                    self.adopt(begun);
                    return Ok(());
                }
                Ok(Err(words)) => return Err(MachineError::Host(words)),
                // One that comes later is taken as a reset of the guest's own.
                Err(RecvTimeoutError::Timeout) if begin.elapsed() > PATIENCE => return Err(impatient()),
                Err(RecvTimeoutError::Timeout) if !self.quit.is_rung() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(MachineError::Host("the guest has ended".into()));
                }
            }
        }
    }

    /// Has the guest begin again where nobody waits for that: it is [`MachineError::Later`] until it is done.
    fn restart_ahead(&mut self) -> Result<(), MachineError> {
        match self.restarting.take() {
            None => {
                self.vcpus.monitor().reset()?;
                self.restarting = Some(Restarting::Since(Instant::now()));
                Err(MachineError::Later)
            }
            Some(Restarting::Done(result)) => result,
            Some(since) => {
                self.restarting = Some(since);
                Err(MachineError::Later)
            }
        }
    }

    /// A machine in which the guest begins again, or why there is none, if that has come.
    fn look_for_next(&mut self) {
        let Ok(next) = self.next.try_recv() else { return };
        match (next, self.restarting.take()) {
            (Ok(begun), None) => {
                let had_run = self.vcpus.is_let_run();
                self.adopt(begun);
                self.happened.push_back(Event::Restarted { had_run });
            }
            (Ok(begun), Some(_)) => {
                self.adopt(begun);
                self.restarting = Some(Restarting::Done(Ok(())));
            }
            (Err(words), None) => log::error!("the guest does not begin again: {words}"),
            (Err(words), Some(_)) => {
                self.restarting = Some(Restarting::Done(Err(MachineError::Host(words))));
            }
        }
    }

    /// Takes what has come, for a debugger that does not wait.
    fn take_answers(&mut self) {
        let Answers::Ahead(ahead) = &mut self.answers else { return };
        ahead.get_mut().look();
        self.look_for_next();
        if matches!(self.restarting, Some(Restarting::Since(begin)) if begin.elapsed() > PATIENCE) {
            self.restarting = Some(Restarting::Done(Err(impatient())));
        }
        self.take_events();
    }

    /// Takes what vCPUs have told. What stops stands still from then on, and not from when somebody asks for its stop:
    /// by then it may have been let run again.
    fn take_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.take_event(event);
        }
    }

    fn take_event(&mut self, mut event: Event) {
        if let (Event::Stopped { .. }, Some(begin)) = (&event, self.asleep.take()) {
            self.patience.slept(begin.elapsed());
        }
        if let Event::Stopped { vcpu, registers, .. } = &mut event {
            self.running[*vcpu as usize] = false;
            if let Answers::Waited(waited) = &self.answers {
                let known = std::mem::replace(registers, RegisterFile::new(registers.isa()));
                waited.stopped(*vcpu, known);
            }
        }
        self.happened.push_back(event);
    }
}

impl<M: Monitor> Drop for LiveMachine<M> {
    /// Who never waits does not to let go, either.
    fn drop(&mut self) {
        if self.waiting == Waiting::Never {
            self.let_go(|_| {});
        }
    }
}

impl<M: Monitor> Machine for LiveMachine<M> {
    fn isa(&self) -> Isa {
        self.link.engine.isa()
    }

    fn vcpus(&self) -> u32 {
        self.vcpus.count()
    }

    fn activity(&self, vcpu: u32) -> Activity {
        match &self.answers {
            // What waits for an interrupt may get it while others run.
            Answers::Waited(waited) => waited.activity(&self.vcpus, vcpu, self.holds()),
            Answers::Ahead(ahead) => ahead.borrow().facts(vcpu).activity,
        }
    }

    fn registers(&self, vcpu: u32, banks: &[Bank]) -> Result<RegisterFile, MachineError> {
        match &self.answers {
            Answers::Waited(waited) => waited.registers(&self.vcpus, vcpu, banks, self.stands_still(vcpu)),
            Answers::Ahead(ahead) => ahead.borrow().facts(vcpu).registers,
        }
    }

    fn at_stop(&self, vcpu: u32) -> Result<RegisterFile, MachineError> {
        match &self.answers {
            Answers::Waited(waited) => waited.at_stop(&self.vcpus, vcpu, self.stands_still(vcpu)),
            Answers::Ahead(ahead) => ahead.borrow().facts(vcpu).registers,
        }
    }

    fn code(&self, vcpu: u32) -> Result<Code, MachineError> {
        match &self.answers {
            Answers::Waited(waited) => waited.code(&self.vcpus, vcpu, self.stands_still(vcpu)),
            Answers::Ahead(ahead) => ahead.borrow().facts(vcpu).code,
        }
    }

    fn regime(&self, vcpu: u32) -> Result<Regime, MachineError> {
        match &self.answers {
            Answers::Waited(waited) => waited.regime(&self.vcpus, vcpu, self.stands_still(vcpu)),
            Answers::Ahead(ahead) => ahead.borrow().facts(vcpu).regime,
        }
    }

    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), MachineError> {
        if self.link.is_left() {
            return Err(LEFT);
        }
        self.link.engine.requests().changed(vcpu);
        match &self.answers {
            Answers::Waited(waited) => waited.set_registers(&self.vcpus, vcpu, file),
            Answers::Ahead(ahead) => {
                ahead.borrow_mut().set_registers(&self.vcpus, vcpu, file, self.link.wake());
                Ok(())
            }
        }
    }

    fn memory(&self) -> &dyn Memory {
        &*self.link.memory
    }

    fn abilities(&self) -> &Abilities {
        self.link.engine.abilities()
    }

    fn resume(&mut self, orders: Vec<Order>) -> Result<(), MachineError> {
        if self.link.is_left() {
            return Err(LEFT);
        }
        // What has been told by now is from before.
        self.asleep = None;
        self.take_events();
        match &mut self.answers {
            Answers::Waited(waited) => waited.forget_activities(),
            Answers::Ahead(ahead) => {
                ahead.get_mut().forget();
                ahead.get_mut().pause_no_more();
            }
        }
        let looks = self.waiting == Waiting::Awake && orders.iter().any(|order| order.action == Action::Step);
        if looks {
            self.link.attention().begin();
        }
        let orders = (0..).zip(orders).filter(|(_, order)| order.action != Action::Stay);
        let orders: Vec<(u32, Order)> = orders.collect();
        for (vcpu, _) in &orders {
            if let Answers::Waited(waited) = &self.answers {
                waited.forget(*vcpu);
            }
            self.running[*vcpu as usize] = true;
        }
        if !orders.is_empty() {
            self.vcpus.let_run();
        }
        let link = Arc::clone(&self.link);
        self.let_go(move |vcpus| {
            for (vcpu, order) in orders {
                vcpus.order(&link, vcpu, order);
            }
        });
        if looks {
            let begin = Instant::now();
            let first = self.patience.look(|| self.events.try_recv().ok());
            self.asleep = first.is_none().then_some(begin);
            self.link.attention().end();
            first.into_iter().for_each(|event| self.take_event(event));
            self.take_events();
        }
        Ok(())
    }

    fn pause(&mut self) {
        if self.holds() || self.link.is_left() {
            return;
        }
        debug_assert!(self.waiting != Waiting::Never, "somebody waits who must not");
        self.asleep = None;
        self.vcpus.stop_for(&self.link, |vcpu| self.running[vcpu as usize]);
        self.running.fill(false);
        // Who has it leave looks there behind having said so.
        let mut place = locked(&self.hold);
        if !self.link.is_left() {
            *place = Some(Hold::of_paused(&self.vcpus));
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        match self.waiting {
            // While vCPUs run, what comes behind the last look ([`Machine::look`], [`Machine::has_stopped`]) is for the
            // next one: whoever takes a stop from here has all vCPUs stand still, and those were to be asked before.
            Waiting::Never if !self.holds() => {}
            Waiting::Never => self.take_answers(),
            Waiting::Asleep | Waiting::Awake => {
                self.look_for_next();
                if self.happened.is_empty() {
                    // As in `look`.
                    self.link.wake().take();
                    self.take_events();
                }
            }
        }
        self.happened.pop_front()
    }

    fn settle(&mut self) -> Option<Duration> {
        let settles = locked(&self.hold).as_ref().and_then(Hold::settle);
        settles.into_iter().chain(self.is_asking().then_some(KICK_AGAIN)).min()
    }

    fn look(&mut self) {
        if let Answers::Ahead(_) = &self.answers {
            // Nothing there is no error; the count is of no interest. Nowhere else is it taken: what comes while
            // somebody is served has him called again.
            self.link.wake().take();
            self.take_answers();
        }
    }

    fn is_asking(&self) -> bool {
        match &self.answers {
            Answers::Waited(_) => false,
            Answers::Ahead(ahead) => ahead.borrow().is_asking() || self.restarting.is_some(),
        }
    }

    fn prepare(&mut self, extent: Extent) -> Poll<()> {
        self.take_answers();
        let Answers::Ahead(ahead) = &mut self.answers else { return Poll::Ready(()) };
        if matches!(self.restarting, Some(Restarting::Since(_))) {
            return Poll::Pending;
        }
        let vcpus = (&self.vcpus, &self.link);
        let mut hold = locked(&self.hold);
        let is_ready = ahead.get_mut().prepare(vcpus, (&mut hold, &mut self.running), extent);
        let left = hold.take_if(|_| self.link.is_left());
        drop(hold);
        if let Some(left) = left {
            left.let_go(|_| {});
        }
        is_ready
    }

    fn give_back(&mut self) {
        let Answers::Ahead(ahead) = &mut self.answers else { return };
        let was_pausing = ahead.get_mut().pause_no_more();
        let hold = locked(&self.hold).take();
        if hold.is_none() && !was_pausing {
            return;
        }
        ahead.get_mut().forget();
        self.running.fill(true);
        self.vcpus.give_back(&self.link, hold);
    }

    fn is_left(&self) -> bool {
        self.link.is_left()
    }

    fn is_leaving(&self) -> bool {
        self.link.is_leaving()
    }

    fn ring(&mut self) {
        self.link.wake().ring();
    }

    fn has_restarted(&mut self) -> bool {
        self.look_for_next();
        matches!(self.happened.front(), Some(Event::Restarted { .. }))
    }

    fn has_stopped(&mut self) -> bool {
        self.take_answers();
        let is_told_still = |event: &Event| matches!(event, Event::Stopped { .. } | Event::Restarted { .. });
        match self.waiting {
            Waiting::Never => self.happened.front().is_some_and(is_told_still),
            // Whatever was taken is told by nobody else.
            Waiting::Asleep | Waiting::Awake => !self.happened.is_empty(),
        }
    }

    fn written(&mut self) -> Poll<Result<(), MachineError>> {
        self.take_answers();
        let Answers::Ahead(ahead) = &mut self.answers else { return Poll::Ready(Ok(())) };
        match self.restarting {
            Some(Restarting::Since(_)) => Poll::Pending,
            Some(Restarting::Done(_)) => Poll::Ready(Err(MachineError::Later)),
            None => ahead.get_mut().written(),
        }
    }

    fn stays(&mut self) {
        match (&*locked(&self.hold), self.waiting) {
            (Some(hold), Waiting::Never) => hold.stays_soon(),
            (Some(hold), _) => hold.stays(),
            (None, _) => {}
        }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.link.wake().as_fd()
    }

    fn disarm(&mut self) {
        // Whoever had the guest begin again has gone. That it has, or will have, is news then, as of a reset of its own.
        match self.restarting.take() {
            Some(Restarting::Done(Ok(()))) => {
                self.happened.push_back(Event::Restarted { had_run: true });
                self.link.wake().ring();
            }
            Some(Restarting::Done(Err(refused))) => log::error!("the guest does not begin again: {refused}"),
            Some(Restarting::Since(_)) | None => {}
        }
        if self.link.is_left() {
            return;
        }
        match &self.answers {
            Answers::Waited(_) => Waited::disarm(&self.vcpus, self.isa()),
            Answers::Ahead(_) => Ahead::disarm(&self.vcpus, self.isa()),
        }
    }

    fn control(&mut self, control: Control) -> Result<(), MachineError> {
        if self.link.is_left() {
            return Err(LEFT);
        }
        match (control, &mut self.answers) {
            (Control::Nmi(vcpu), Answers::Waited(waited)) => waited.nmi(&self.vcpus, vcpu),
            (Control::Nmi(vcpu), Answers::Ahead(ahead)) => {
                ahead.get_mut().nmi(&self.vcpus, vcpu, self.link.wake());
                Ok(())
            }
            (Control::Reset, Answers::Waited(_)) => self.restart(),
            (Control::Reset, Answers::Ahead(_)) => self.restart_ahead(),
            (Control::Quit, _) => {
                self.wants_end.store(true, Ordering::SeqCst);
                if let Ok(Ok(begun)) = self.next.try_recv() {
                    self.adopt(begun);
                }
                self.vcpus.monitor().quit();
                Ok(())
            }
        }
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.vcpus.monitor().exits()
    }

    fn read_port(&self, port: u16, bytes: &mut [u8]) -> Result<(), MachineError> {
        self.vcpus.monitor().read_port(port, bytes)
    }

    fn write_port(&self, port: u16, bytes: &[u8]) -> Result<(), MachineError> {
        self.vcpus.monitor().write_port(port, bytes)
    }

    fn commands(&self) -> Vec<Command> {
        self.vcpus.monitor().commands()
    }

    fn run_command(&mut self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        self.vcpus.monitor().run_command(name, arguments)
    }
}
