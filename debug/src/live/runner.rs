//! A vCPU thread's part: it enters the guest, by the monitor's callback, as far as it may, and lets a debugger have a
//! say about what comes back.
//!
//! The thread goes round: it does the tasks that others have left for it, each with the [`Runner`] and the vCPU; then
//! it calls [`Runner::run`], or waits for tasks while [`Runner::may_run`] says that there is nothing else to do. The
//! runner has no thread, no lock and no messages of its own. Without a [`Link`] it does nothing but call the callback.

use super::gate::{Gate, Pass};
use super::link::Link;
use super::step::{Armed, Entering, PlannedStep, Stepper, is_step, stepped};
use super::times::{Entry, Times};
use crate::arming::{Arming, Own, in_place};
use crate::engine::{Cpu, Stepped, Verdict};
use crate::machine::{Action, Event, MachineError, Memory, Order, StopReason};
use crate::trap::{Injection, Trap};
use crate::vcpu::Vcpu;
use arch::Isa;
use std::sync::Arc;

/// What the monitor's callback answers: why the vCPU is out of the guest again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It wanted something of the monitor (a port, device memory, a hypercall), and has it.
    Served,
    /// It was kicked, or was not entered at all; when [finishing](Turn::is_finish), nothing was left to be finished.
    Interrupted,
    /// Something that may be the debugger's.
    Trap(Trap),
    /// It is to stop here, for this reason, before what it is about to do; asked for by [`Visit::stops_at`].
    Stop(StopReason),
    /// aarch64: it accesses something that is no RAM by an instruction that the hardware does not describe. It gets
    /// the external abort that hardware has for that.
    Abort,
    /// The guest cannot or must not go on: its end is with the monitor.
    End {
        /// A debugger may want to look at the guest before that; in words, why.
        fatal: Option<String>,
    },
}

/// What the thread does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It looks for tasks, and runs again if [`Runner::may_run`].
    Look,
    /// It tells the guest's end, to which the callback has come ([`Exit::End`]) or [`Runner::end`]; in words, why the
    /// guest cannot go on, if that is why.
    End(Option<String>),
    /// The guest cannot go on: the vCPU raised something that nobody asked for. The monitor says so by
    /// [`Runner::end`].
    Unowned(Trap),
    /// The guest cannot go on, as the hypervisor refused something; in words. Likewise.
    Failed(String),
}

/// What an entry to the guest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Run,
    Step(Entry),
    Finish,
}

/// One entry to the guest, as the callback is given it.
#[derive(Debug)]
pub struct Turn<'a> {
    purpose: Purpose,
    gate: Option<(&'a Gate, u32)>,
    times: Option<&'a Times>,
    visit: Visit<'a>,
}

/// While it lives, the vCPU may be in the guest.
#[derive(Debug)]
pub struct Inside<'a> {
    // Left once the time is noted: a value is dropped before its fields.
    _pass: Pass<'a>,
    stepped: Option<&'a Times>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(times) = self.stepped {
            times.step();
        }
    }
}

/// What the callback may ask for once the vCPU is out of the guest.
#[derive(Debug)]
pub struct Visit<'a> {
    /// Whom a stop would be shown to.
    stops: Option<(&'a Link, &'a mut Shown)>,
}

/// What has been shown before it is done.
#[derive(Debug, Default)]
struct Shown {
    /// Where the last stop was asked for.
    asked: Option<u64>,
    /// Where the last one was shown.
    at: Option<u64>,
}

impl<'a> Turn<'a> {
    /// Only what the last exit has left is to be finished (for KVM, an access that was served: it does the
    /// instruction's last part when `KVM_RUN` is called, with `immediate_exit` set), and no instruction executed.
    pub fn is_finish(&self) -> bool {
        self.purpose == Purpose::Finish
    }

    /// The guest is stepped, not run.
    pub fn is_step(&self) -> bool {
        matches!(self.purpose, Purpose::Step(_))
    }

    /// What is for afterwards, without entering the guest.
    pub fn visit(self) -> Visit<'a> {
        self.visit
    }

    /// Waits until the vCPU may be in the guest. It may as long as the first of the results lives; the second is for
    /// afterwards.
    pub fn enter(self) -> (Inside<'a>, Visit<'a>) {
        let pass = match self.gate {
            Some((gate, vcpu)) => gate.enter(vcpu),
            None => Pass::unguarded(),
        };
        let stepped = match (self.purpose, self.times) {
            (Purpose::Run, Some(times)) => {
                times.enter(Entry::Run);
                None
            }
            (Purpose::Step(entry), Some(times)) => {
                times.enter(entry);
                Some(times)
            }
            _ => None,
        };
        (Inside { _pass: pass, stepped }, self.visit)
    }
}

impl Visit<'_> {
    /// Whether a stop in front of what the vCPU is about to do at `pc` ([`Exit::Stop`]) would be one: what has been
    /// shown is done when it is met again, and what is done in a step of the debugger's own is not shown. To be asked
    /// for everything that could be stopped at, wanted or not; without `pc` it is not wanted.
    pub fn stops_at(&mut self, pc: Option<u64>) -> bool {
        let Some((link, shown)) = &mut self.stops else { return false };
        // What has been shown is served now, whatever has been asked for since.
        let at = shown.at.take();
        shown.asked = pc;
        pc.is_some() && at != pc && link.is_attached()
    }
}

/// The monitor's callback: enters the guest, and serves what it wants.
pub type Enter<'a, V> = &'a mut dyn FnMut(&mut V, Turn<'_>) -> Exit;

/// An end of the guest that the debugger has a part in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeptEnd {
    /// It came up during a step of the engine's.
    Came { fatal: Option<String> },
    /// The hypervisor refused something in a step of the engine's; in words.
    Failed(String),
    /// The debugger looks at it; when it goes on, that is the end.
    Shown(String),
}

impl From<KeptEnd> for Next {
    fn from(end: KeptEnd) -> Next {
        match end {
            KeptEnd::Came { fatal } => Next::End(fatal),
            KeptEnd::Shown(text) => Next::End(Some(text)),
            KeptEnd::Failed(cause) => Next::Failed(cause),
        }
    }
}

/// Exits that are served one after the other without a look at what is posted: who posts kicks, but who is gone does
/// not.
const MOST_SERVED: u32 = 1000;

/// What a vCPU does whose debugger has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It runs, if the guest does, also where the debugger has stopped it, or it has waited for that one.
    Runs(bool),
    /// What it did: the debugger has done nothing yet.
    AsBefore,
}

/// A vCPU thread's part.
#[derive(Debug)]
pub struct Runner {
    link: Option<Arc<Link>>,
    /// It has come to the guest's end, and that was told.
    is_over: bool,
    /// Its thread is to end.
    is_retired: bool,
    /// The vCPU runs the guest...
    is_running: bool,
    /// ...once it has begun this...
    order: Option<Order>,
    /// The last one that it began was a step, and its thread has not looked for the next one yet.
    steps: bool,
    /// ...and unless this many hold it.
    holders: u32,
    /// The debugger has stopped it, and says when it runs, whether that is attached or about to be.
    is_stopped: bool,
    /// Somebody else has let it run, though it may not while a debugger has it.
    is_resumed: bool,
    armed: Armed,
    end: Option<KeptEnd>,
    /// What has been shown by a stop of [`Visit::stops_at`].
    shown: Shown,
    /// x86: the vCPU was kicked when it was last in the guest, and may have been waiting there.
    may_wait: bool,
    /// An access may have been served that is not finished.
    is_unfinished: bool,
    /// It was out of the guest for longer than an exit takes.
    was_out: bool,
    times: Arc<Times>,
}

impl Runner {
    /// For a vCPU of this architecture, which does not run.
    pub fn new(isa: Isa, times: Arc<Times>) -> Runner {
        Runner {
            link: None,
            is_over: false,
            is_retired: false,
            is_running: false,
            order: None,
            steps: false,
            holders: 0,
            is_stopped: false,
            is_resumed: false,
            armed: Armed::off(isa),
            end: None,
            shown: Shown::default(),
            may_wait: false,
            is_unfinished: false,
            was_out: true,
            times,
        }
    }

    /// Whether its thread is to look for what comes at once, before it sleeps: once behind each step, for a debugger that
    /// wants so.
    pub fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.steps) && self.link.as_ref().is_some_and(|link| link.looks)
    }

    /// Lets a debugger have its say from now on.
    pub fn attach(&mut self, link: Arc<Link>) {
        // What a former one has said is nobody's any more.
        (self.link, self.order, self.is_stopped) = (Some(link), None, false);
    }

    /// Whether the debugger that has its say here is the one with this link.
    pub(super) fn obeys(&self, link: &Arc<Link>) -> bool {
        self.link.as_ref().is_some_and(|its| Arc::ptr_eq(its, link))
    }

    /// The debugger with this link leaves, if it is there: nothing of its own is in force any more.
    pub fn detach<V: Vcpu>(&mut self, vcpu: &mut V, link: &Arc<Link>, then: Then) {
        let Some(link) = self.link.take_if(|its| Arc::ptr_eq(its, link)) else { return };
        self.armed.set(&Arming::off(vcpu.isa()));
        if let Err(error) = self.stepper(vcpu, &link).prepare() {
            log::warn!("guest debugging cannot be switched off: {error}");
        }
        (self.order, self.is_stopped) = (None, false);
        if let Then::Runs(runs) = then {
            // Who has let it run meanwhile has done so behind the question.
            self.is_running = (runs || self.is_resumed) && !self.is_over;
        }
    }

    /// Whether it may go on with the guest now.
    pub fn may_run(&self) -> bool {
        self.holders == 0 && (self.is_running || self.order.is_some())
    }

    /// Lets it run the guest, unless that is over, or a debugger has it, or has stopped it: then the debugger says when
    /// it runs.
    pub fn resume(&mut self) {
        self.is_resumed = true;
        let is_debugged = self.link.as_ref().is_some_and(|link| link.is_attached());
        if !self.is_over && !is_debugged && !self.is_stopped {
            self.is_running = true;
        }
    }

    /// Stops it for the debugger with this link, unless that has left.
    pub(super) fn stop_for(&mut self, link: &Arc<Link>) {
        if self.obeys(link) {
            self.stop();
            self.is_stopped = true;
        }
    }

    /// The debugger with this link has stopped it for nothing: it goes on, if the guest `runs`.
    pub(super) fn give_back(&mut self, link: &Arc<Link>, runs: bool) {
        if self.obeys(link) {
            self.is_stopped = false;
            if runs || self.is_resumed {
                self.resume();
            }
        }
    }

    /// Keeps it out of the guest until [`Self::release`] has been called as often; then it does what it did.
    pub fn hold(&mut self) {
        self.leave();
        self.holders += 1;
    }

    /// One who held it does so no more.
    pub fn release(&mut self) {
        self.holders = self.holders.saturating_sub(1);
    }

    /// Has it run the guest no more, before it is told to.
    pub fn pause(&mut self) {
        self.stop();
        self.is_resumed = false;
    }

    fn stop(&mut self) {
        self.leave();
        (self.is_running, self.order) = (false, None);
    }

    /// Has its thread end: nothing that is posted behind this is done any more.
    pub fn retire(&mut self) {
        self.is_retired = true;
    }

    /// Whether its thread is to end.
    pub fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Has it do what a debugger says, unless the guest is over.
    pub fn order(&mut self, order: Order) {
        if !self.is_over {
            (self.order, self.is_stopped) = (Some(order), false);
        }
    }

    /// Called when the thread waits for tasks.
    pub fn leave(&mut self) {
        self.times.leave();
        self.was_out = true;
    }

    /// Finishes an access that was served, with all of its parts; called before a task: whoever looks at the vCPU is
    /// to see it done.
    pub fn finish<V: Vcpu>(&mut self, vcpu: &mut V, enter: Enter<'_, V>) -> Next {
        if !std::mem::take(&mut self.is_unfinished) {
            return Next::Look;
        }
        for _ in 0..MOST_PARTS {
            match enter(vcpu, finishing()) {
                Exit::Served => {}
                // The device has heard of it, and will not again.
                Exit::End { fatal } => return self.end(vcpu, fatal),
                _ => break,
            }
        }
        Next::Look
    }

    /// Begins what it was told, or enters the guest once and deals with what comes of it. Without a debugger it enters
    /// the guest again when what comes of it is served, a thousand times: until the vCPU is kicked, as a rule.
    pub fn run<V: Vcpu>(&mut self, vcpu: &mut V, enter: Enter<'_, V>) -> Next {
        let Some(link) = self.link.clone() else { return self.run_free(vcpu, enter) };
        if let Some(order) = self.order.take() {
            return self.begin(vcpu, &link, enter, &order);
        }
        let exit = match self.enter(vcpu, &link, enter, false) {
            Ok(exit) => exit,
            Err(error) => return self.fail(&error),
        };
        match exit {
            Exit::Served | Exit::Abort | Exit::Interrupted => Next::Look,
            Exit::End { fatal } => self.end(vcpu, fatal),
            Exit::Stop(reason) => {
                self.shown.at = self.shown.asked;
                self.act(vcpu, &link, Verdict::Stop(reason))
            }
            Exit::Trap(trap) => {
                let verdict =
                    link.engine.judge(&mut Stopped { vcpu, link: &link, runner: self, enter }, &trap);
                match verdict {
                    Verdict::NotOurs => self.over(Next::Unowned(trap)),
                    verdict => self.act(vcpu, &link, verdict),
                }
            }
        }
    }

    /// Without a debugger.
    fn run_free<V: Vcpu>(&mut self, vcpu: &mut V, enter: Enter<'_, V>) -> Next {
        // A debugger that has left looked at it.
        if let Some(end) = self.end.take() {
            return self.over(end.into());
        }
        let mut left = MOST_SERVED;
        let exit = loop {
            let times = std::mem::take(&mut self.was_out).then_some(&*self.times);
            let visit = Visit { stops: None };
            let exit = enter(vcpu, Turn { purpose: Purpose::Run, gate: None, times, visit });
            self.note_unfinished(&exit);
            // Who has left a task meanwhile has kicked the vCPU: the next entry ends at once.
            if exit != Exit::Served || left == 0 {
                break exit;
            }
            left -= 1;
        };
        match exit {
            Exit::Served | Exit::Interrupted | Exit::Stop(_) => Next::Look,
            Exit::Abort => match vcpu.abort_access() {
                Ok(()) => Next::Look,
                Err(error) => self.fail(&error),
            },
            Exit::Trap(trap) => self.over(Next::Unowned(trap)),
            Exit::End { fatal } => self.end(vcpu, fatal),
        }
    }

    /// An access that was served is finished with the next entry; what was interrupted may not have been one.
    fn note_unfinished(&mut self, exit: &Exit) {
        self.is_unfinished = match exit {
            Exit::Served => true,
            Exit::Interrupted => self.is_unfinished,
            _ => false,
        };
    }

    fn fail(&mut self, error: &MachineError) -> Next {
        self.over(Next::Failed(error.to_string()))
    }

    /// The guest does not go on here: at its end never again, and else when the monitor says so.
    fn over(&mut self, next: Next) -> Next {
        (self.is_running, self.order) = (false, None);
        self.is_over = matches!(next, Next::End(_));
        next
    }

    /// Begins a debugger's order.
    fn begin<V: Vcpu>(&mut self, vcpu: &mut V, link: &Link, enter: Enter<'_, V>, order: &Order) -> Next {
        (self.is_running, self.steps) = (false, order.action.is_step());
        if order.action == Action::Stay {
            return Next::Look;
        }
        // The debugger has looked at the end that was kept from it, and goes on.
        if let Some(end) = self.end.take() {
            return self.over(end.into());
        }
        // One that waits for an interrupt is past the instruction that waits, and takes its step from there.
        if order.action.is_step()
            && std::mem::take(&mut self.may_wait)
            && let Err(error) = vcpu.end_halt()
        {
            return self.fail(&error);
        }
        let verdict = link.engine.start(&mut Stopped { vcpu, link, runner: self, enter }, order);
        self.act(vcpu, link, verdict)
    }

    /// Acts on a verdict.
    fn act<V: Vcpu>(&mut self, vcpu: &mut V, link: &Link, verdict: Verdict) -> Next {
        if verdict != Verdict::GoOn {
            self.leave();
        }
        if link.engine.requests().has_output() {
            link.wake().ring();
        }
        match self.end.take() {
            Some(KeptEnd::Came { fatal }) => return self.end(vcpu, fatal),
            Some(KeptEnd::Failed(cause)) => return self.over(Next::Failed(cause)),
            Some(KeptEnd::Shown(_)) | None => {}
        }
        // Nobody is there to look at it.
        if let Verdict::Stop(StopReason::Fatal(text)) = &verdict
            && !link.is_attached()
        {
            return self.over(Next::Failed(text.clone()));
        }
        (self.is_running, self.is_stopped) = (verdict == Verdict::GoOn, matches!(verdict, Verdict::Stop(_)));
        if let Verdict::Stop(reason) = verdict {
            let registers = vcpu.at_stop();
            link.tell(Event::Stopped { vcpu: vcpu.id(), reason, registers });
        }
        Next::Look
    }

    /// Deals with the guest's end; the vCPU does not run on. A debugger that is attached may look at a guest that died
    /// before that is told: then this is [`Next::Look`], and [`Next::End`] comes when it goes on.
    #[must_use = "where no debugger looks at it, this is the end, and nobody else tells it"]
    pub fn end<V: Vcpu>(&mut self, vcpu: &V, fatal: Option<String>) -> Next {
        self.is_running = false;
        let link = self.link.as_deref().filter(|link| link.is_attached());
        let (link, text) = match (link, fatal) {
            (Some(link), Some(text)) => (link, text),
            (_, fatal) => return self.over(Next::End(fatal)),
        };
        (self.end, self.is_over, self.is_stopped) = (Some(KeptEnd::Shown(text.clone())), false, true);
        let registers = vcpu.at_stop();
        link.tell(Event::Stopped { vcpu: vcpu.id(), reason: StopReason::Fatal(text), registers });
        Next::Look
    }

    fn stepper<'a>(&'a mut self, vcpu: &'a mut dyn Vcpu, link: &'a Link) -> Stepper<'a> {
        Stepper { vcpu, memory: &*link.memory, host: link.engine.abilities(), armed: &mut self.armed }
    }

    /// Enters the guest with what the vCPU is armed with; the trap of a step is that of the step that was asked for.
    fn enter<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        link: &Link,
        enter: Enter<'_, V>,
        is_exclusive: bool,
    ) -> Result<Exit, MachineError> {
        let step = match self.stepper(vcpu, link).prepare()? {
            Entering::Run => None,
            Entering::Step(step) => Some(step),
            Entering::Skip => return Ok(Exit::Trap(stepped(vcpu.isa()))),
        };
        let turn = Turn {
            purpose: step.as_ref().map_or(Purpose::Run, |step| Purpose::Step(step.entry())),
            gate: (!is_exclusive).then_some((&link.gate, vcpu.id())),
            times: Some(&self.times),
            visit: Visit { stops: (!is_exclusive).then_some((link, &mut self.shown)) },
        };
        let exit = enter(vcpu, turn);
        self.note_unfinished(&exit);
        let exit = match step {
            None => {
                self.may_wait = exit == Exit::Interrupted;
                exit
            }
            Some(step) => self.finish_step(vcpu, link, enter, &step, exit)?,
        };
        if exit == Exit::Abort {
            vcpu.abort_access()?;
        }
        Ok(exit)
    }

    /// Makes of a step's exit what it is to the engine.
    fn finish_step<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        link: &Link,
        enter: Enter<'_, V>,
        step: &PlannedStep,
        exit: Exit,
    ) -> Result<Exit, MachineError> {
        let exit = match exit {
            Exit::Served | Exit::Interrupted => {
                // The hypervisor may have been told otherwise.
                self.armed.is_new = true;
                self.end_step(vcpu, link, enter, step, exit)?
            }
            exit => exit,
        };
        let trap = match &exit {
            Exit::Trap(trap) => Some(trap.clone()),
            _ => None,
        };
        let trap = self.stepper(vcpu, link).finish(step, trap)?;
        Ok(trap.map_or(exit, Exit::Trap))
    }

    /// Ends a step that another exit has come before, if its instruction has been executed all the same. An access
    /// that was served is finished without entering the guest for that: some KVMs execute the next instruction
    /// too when they are entered.
    fn end_step<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        link: &Link,
        enter: Enter<'_, V>,
        step: &PlannedStep,
        exit: Exit,
    ) -> Result<Exit, MachineError> {
        let is_served = exit == Exit::Served;
        for _ in 0..MOST_PARTS {
            // Hypercalls have been executed when they come here, and accesses have not.
            if !is_served || self.stepper(vcpu, link).has_moved(step)? {
                break;
            }
            match enter(vcpu, finishing()) {
                Exit::Served => {}
                Exit::Interrupted => {
                    self.is_unfinished = false;
                    break;
                }
                other => return Ok(other),
            }
        }
        let is_done = self.stepper(vcpu, link).is_done(step, is_served)?;
        Ok(if is_done { Exit::Trap(stepped(vcpu.isa())) } else { exit })
    }
}

/// An entry that only finishes what is left.
fn finishing() -> Turn<'static> {
    let visit = Visit { stops: None };
    Turn { purpose: Purpose::Finish, gate: None, times: None, visit }
}

/// Parts of one access that are served without looking at anything else. An instruction has 64 bytes at most,
/// which KVM hands over in parts of 8 at most; a repeated one has as many as it likes.
const MOST_PARTS: usize = 16;

/// A vCPU on its own thread, out of the guest, as the engine sees it.
struct Stopped<'a, 'e, V> {
    vcpu: &'a mut V,
    link: &'a Link,
    runner: &'a mut Runner,
    enter: Enter<'e, V>,
}

impl<V: Vcpu> Stopped<'_, '_, V> {
    fn stepper(&mut self) -> Stepper<'_> {
        self.runner.stepper(self.vcpu, self.link)
    }
}

impl<V: Vcpu> Cpu for Stopped<'_, '_, V> {
    fn vcpu(&self) -> &dyn Vcpu {
        self.vcpu
    }

    fn vcpu_mut(&mut self) -> &mut dyn Vcpu {
        self.vcpu
    }

    fn memory(&self) -> &dyn Memory {
        &*self.link.memory
    }

    fn arm(&mut self, arming: &Arming) {
        // The hypervisor is told when the guest is entered ([`Stepper::prepare`]).
        self.runner.armed.set(arming);
    }

    fn inject(&mut self, injection: &Injection) -> Result<(), MachineError> {
        self.stepper().inject(injection)
    }

    fn is_own(&mut self, injection: &Injection) -> Result<bool, MachineError> {
        self.stepper().is_own(injection)
    }

    fn own_among_others(&self) -> Option<&[Own]> {
        self.runner.armed.own_among_others()
    }

    fn own_registers(&self) -> Vec<Own> {
        if let Some(own) = self.runner.armed.own_among_others() {
            return own.to_vec();
        }
        // In their own places, as the hypervisor has them when nothing else is armed.
        let guests = self.vcpu.own_debug_registers(self.link.engine.abilities());
        guests.map(|guests| in_place(&guests)).unwrap_or_default()
    }

    fn begin_exclusive(&mut self) {
        self.link.gate.begin_exclusive(self.vcpu.id());
    }

    fn end_exclusive(&mut self) {
        self.link.gate.end_exclusive();
    }

    fn faulted_at(&self) -> Option<u64> {
        self.runner.armed.faulted
    }

    fn step(&mut self) -> Result<Stepped, MachineError> {
        // The kick that came with a task just done may arrive late, so one says nothing; whoever waits for this vCPU
        // kicks again.
        let mut was_kicked = false;
        loop {
            let exit = match self.runner.enter(self.vcpu, self.link, self.enter, true) {
                Ok(exit) => exit,
                Err(error) => {
                    self.runner.end = Some(KeptEnd::Failed(error.to_string()));
                    return Ok(Stepped::Other);
                }
            };
            match exit {
                // What a debugger wants to be shown is not shown in steps of the engine's.
                Exit::Served | Exit::Stop(_) | Exit::Abort => {}
                // Others are not to wait for ever for a step that does not end.
                Exit::Interrupted if self.link.gate.is_overdue() => return Ok(Stepped::Other),
                Exit::Interrupted if !was_kicked => {
                    was_kicked = true;
                    self.vcpu.clear_kick();
                }
                // There is a task; the place is as it was before.
                Exit::Interrupted => return Ok(Stepped::Other),
                Exit::Trap(trap) if is_step(&trap) => {
                    let is_done = self.runner.armed.faulted.is_none();
                    return Ok(if is_done { Stepped::Done } else { Stepped::Faulted });
                }
                Exit::Trap(trap) => return Ok(Stepped::Trapped(trap)),
                Exit::End { fatal } => {
                    self.runner.end = Some(KeptEnd::Came { fatal });
                    return Ok(Stepped::Other);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
