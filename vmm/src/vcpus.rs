//! The threads that run vCPUs.
//!
//! Each thread owns its vCPU. Others talk to it by messages and kick it out of `KVM_RUN`
//! ([`kick`] says why no kick is lost); no lock is held while a guest runs. A vCPU that can
//! not go on reports its [`Outcome`] and waits for messages, so that its registers can still
//! be looked at.

use crate::attention::{self, Attention};
use crate::debugger::{self, DebugShared, GuestCpu, ThreadDebug};
use crate::guest_clock::{Entry, Standstill, Threads, Timekeeper, Times};
use crate::kvm::{Vcpu, kick};
use crate::outcome::Outcome;
use crate::serve::{Left, Shared, cannot_run, finish, report, run_guest};
use arch::register::Bank;
use debug::engine::Verdict;
use debug::target::{Action, Event, Order, StopReason};
use debug::trap::Trap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vmm_sys_util::signal::Killable;

type Call = Box<dyn FnOnce(&mut Vcpu) + Send>;

enum Message {
    /// Stay out of the guest, then answer, until [`Message::Release`] has come as often.
    Hold(Sender<()>),
    /// One who held the guest does so no more.
    Release,
    /// Run the guest no more, then answer.
    Pause(Sender<()>),
    /// Run the guest.
    Resume,
    /// Do what a debugger says.
    Order(Order),
    /// Do this with the vCPU.
    Call(Call),
    /// End the thread; the sender is dropped when it has ended.
    Stop(Sender<()>),
}

#[derive(Debug)]
struct Thread {
    inbox: Sender<Message>,
    handle: JoinHandle<()>,
    /// The thread waits for messages outside the guest, and needs no kick to see one.
    attention: Arc<Attention>,
    times: Arc<Times>,
}

impl Thread {
    fn send(&self, message: Message) {
        // A thread that has ended has dropped its inbox; it needs no message any more.
        if self.inbox.send(message).is_ok() && !self.attention.is_there() {
            self.kick();
        }
    }

    fn kick(&self) {
        if let Err(error) = self.handle.kill(kick::signal()) {
            log::error!("cannot kick a vCPU thread: {error}");
        }
    }
}

/// Somewhere to leave things for a vCPU's thread to do. It is used by vCPUs' threads only, which have
/// all ended when the first of them is waited for for good ([`Vcpus`]'s end), and not before.
#[derive(Clone, Debug)]
pub struct Mailbox {
    inbox: Sender<Message>,
    attention: Arc<Attention>,
    thread: kick::Thread,
}

impl Mailbox {
    /// Has the vCPU's thread call `call` with it before it enters the guest again.
    pub fn post(&self, call: impl FnOnce(&mut Vcpu) + Send + 'static) {
        let is_sent = self.inbox.send(Message::Call(Box::new(call))).is_ok();
        if is_sent && !self.attention.is_there() {
            // SAFETY: the thread has not been joined, as said above.
            unsafe { self.thread.kick() };
        }
    }
}

/// While it is there, no vCPU is in the guest, and the guest's time stands still.
///
/// Any number of them may be there at once: a debugger's, a dump's, an embedder's. None waits for
/// another to go, so they cannot wait for each other.
#[derive(Debug)]
pub struct Hold {
    vcpus: Arc<Vcpus>,
    /// The vCPUs' threads know of it; else they were told to pause.
    is_told: bool,
}

impl Hold {
    /// What is held.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.vcpus.release(self.is_told);
    }
}

/// A vCPU thread's end of its messages.
struct Inbox {
    messages: Receiver<Message>,
    attention: Arc<Attention>,
}

impl Inbox {
    /// The next message, which may have to be waited for; `None` when nobody can send one. The
    /// caller looks for messages once more before it enters the guest.
    fn wait(&self) -> Option<Message> {
        self.attention.begin();
        let message = attention::poll(|| self.messages.try_recv().ok()).or_else(|| self.messages.recv().ok());
        self.attention.end();
        message
    }
}

/// A guest's vCPUs, each on a thread of its own.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<Thread>,
    /// Locked by whoever holds the guest or lets it go, one after the other; never by vCPUs' threads.
    standstill: Mutex<Standstill>,
    time: Timekeeper,
}

/// A thread that waits for whoever reads its guest's output may see a kick only if it comes during the
/// wait; so whoever waits for the thread kicks again after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);

impl Vcpus {
    /// Starts a thread for each vCPU. None runs its guest before [`Self::resume`].
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn spawn(vcpus: Vec<Vcpu>, shared: &Arc<Shared>, time: Timekeeper) -> io::Result<Vcpus> {
        kick::install_handler()?;
        let mut result = Vcpus { threads: Vec::new(), standstill: Mutex::default(), time };
        for vcpu in vcpus {
            let (inbox, messages) = channel();
            let attention = Arc::new(Attention::default());
            let inbox_end = Inbox { messages, attention: Arc::clone(&attention) };
            let shared = Arc::clone(shared);
            let times = Arc::new(Times::default());
            let its_times = Arc::clone(&times);
            let handle = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(256 << 10)
                .spawn(move || run_vcpu(vcpu, &inbox_end, &shared, &its_times))?;
            result.threads.push(Thread { inbox, handle, attention, times });
        }
        Ok(result)
    }

    fn standstill(&self) -> MutexGuard<'_, Standstill> {
        self.standstill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets all vCPUs out of the guest and keeps them out as long as the result is there; then they do
    /// what they did. Questions to them are answered meanwhile.
    pub fn hold(self: &Arc<Vcpus>) -> Hold {
        let mut still = self.standstill();
        self.ask(|_| true, Message::Hold);
        self.begin(&mut still);
        self.time.freeze_now(&mut still, self.as_ref());
        Hold { vcpus: Arc::clone(self), is_told: true }
    }

    /// The same for a debugger, who gives each vCPU an order when it goes on: those that `may_run` are
    /// stopped, and the others are known to stand still.
    pub fn pause(self: &Arc<Vcpus>, may_run: impl Fn(usize) -> bool) -> Hold {
        let mut still = self.standstill();
        self.ask(may_run, Message::Pause);
        self.begin(&mut still);
        Hold { vcpus: Arc::clone(self), is_told: false }
    }

    /// Has threads do what they answer to, and waits for the answers.
    fn ask(&self, whom: impl Fn(usize) -> bool, message: impl Fn(Sender<()>) -> Message) {
        let (ack, acks) = channel();
        for (_, thread) in self.threads.iter().enumerate().filter(|(vcpu, _)| whom(*vcpu)) {
            thread.send(message(ack.clone()));
        }
        drop(ack);
        self.wait_for(&acks);
    }

    fn begin(&self, still: &mut Standstill) {
        if still.holders == 0 {
            self.time.begin(still, self.threads.iter().map(|thread| thread.times.as_ref()));
        }
        still.holders += 1;
    }

    fn release(&self, is_told: bool) {
        let mut still = self.standstill();
        still.holders -= 1;
        if still.holders == 0 {
            self.time.end(&mut still, self);
        }
        if is_told {
            self.threads.iter().for_each(|thread| thread.send(Message::Release));
        }
    }

    /// Called by a debugger's thread that has nothing to do, while it holds the guest: takes the guest's
    /// time once it is worth it. How long until then.
    pub fn settle(&self) -> Option<Duration> {
        self.time.settle(&mut self.standstill(), self)
    }

    /// What becomes of the guest's time while it is held, in words.
    pub fn clock_in_words(&self) -> String {
        self.time.in_words()
    }

    /// The threads' mailboxes, in the order of vCPUs.
    pub fn mailboxes(&self) -> Vec<Mailbox> {
        let mailbox = |thread: &Thread| Mailbox {
            inbox: thread.inbox.clone(),
            attention: Arc::clone(&thread.attention),
            thread: kick::Thread::of(&thread.handle),
        };
        self.threads.iter().map(mailbox).collect()
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Lets all vCPUs run their guest.
    pub fn resume(&self) {
        for thread in &self.threads {
            thread.send(Message::Resume);
        }
    }

    /// Gives one vCPU a debugger's order.
    pub fn order(&self, vcpu: u32, order: Order) {
        if let Some(thread) = self.threads.get(vcpu as usize) {
            thread.send(Message::Order(order));
        }
    }

    /// Has one vCPU's thread call `call` with it, whether paused or not. `None` when there is no
    /// such vCPU, or its thread has ended.
    pub fn call<R: Send + 'static>(
        &self,
        vcpu: u32,
        call: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Option<R> {
        let (result, results) = channel();
        self.threads.get(vcpu as usize)?.send(Message::Call(Box::new(move |vcpu| {
            // Nobody waits for the result any more only when the caller is gone.
            drop(result.send(call(vcpu)));
        })));
        self.wait_for(&results)
    }

    /// Has every vCPU's thread call `call` with it, whether paused or not, and collects the
    /// results in the order of vCPUs. A vCPU whose thread has ended gives none.
    pub fn for_each<R: Send + 'static>(
        &self,
        call: impl Fn(&mut Vcpu) -> R + Send + Sync + 'static,
    ) -> Vec<R> {
        let call = Arc::new(call);
        let receivers: Vec<Receiver<R>> = self
            .threads
            .iter()
            .map(|thread| {
                let (result, results) = channel();
                let call = Arc::clone(&call);
                thread.send(Message::Call(Box::new(move |vcpu| {
                    // Nobody waits for the result any more only when the caller is gone.
                    drop(result.send(call(vcpu)));
                })));
                results
            })
            .collect();
        receivers.iter().filter_map(|results| self.wait_for(results)).collect()
    }

    /// Waits until all senders of `answers` are gone, for the last answer.
    fn wait_for<R>(&self, answers: &Receiver<R>) -> Option<R> {
        let mut last = None;
        loop {
            match answers.recv_timeout(KICK_AGAIN) {
                Ok(answer) => last = Some(answer),
                Err(RecvTimeoutError::Disconnected) => return last,
                Err(RecvTimeoutError::Timeout) => self.threads.iter().for_each(Thread::kick),
            }
        }
    }
}

impl Threads for Vcpus {
    fn each<R: Send + 'static>(&self, call: impl Fn(&mut Vcpu) -> R + Send + Sync + 'static) -> Vec<R> {
        self.for_each(call)
    }

    fn post(&self, call: impl Fn(&mut Vcpu) + Send + Sync + 'static) {
        let call = Arc::new(call);
        for thread in &self.threads {
            let call = Arc::clone(&call);
            thread.send(Message::Call(Box::new(move |vcpu| call(vcpu))));
        }
    }
}

impl Drop for Vcpus {
    /// Ends all threads and waits for them.
    fn drop(&mut self) {
        let (alive, ended) = channel();
        for thread in &self.threads {
            thread.send(Message::Stop(alive.clone()));
        }
        drop(alive);
        self.wait_for(&ended);
        for thread in self.threads.drain(..) {
            if thread.handle.join().is_err() {
                log::error!("a vCPU thread ended with a panic");
            }
        }
    }
}

/// What a vCPU's thread is there for at the moment.
#[derive(Debug, Default)]
struct Duty {
    /// It runs the guest...
    is_running: bool,
    /// ...once it has begun this...
    order: Option<Order>,
    /// ...and unless this many hold it.
    holders: u32,
}

impl Duty {
    /// Whether it may go on with the guest now.
    fn may_run(&self) -> bool {
        self.holders == 0 && (self.is_running || self.order.is_some())
    }

    /// Takes a message that changes it.
    fn change(&mut self, message: Message, vcpu: &mut Vcpu, shared: &Shared) {
        // An access that was served is finished: whoever looks at the vCPU is to see it done.
        if matches!(message, Message::Hold(_) | Message::Pause(_)) && self.may_run() {
            finish(vcpu, shared);
        }
        match message {
            Message::Hold(ack) => {
                self.holders += 1;
                // Whoever asked waits for it.
                ack.send(()).ok();
            }
            Message::Release => self.holders = self.holders.saturating_sub(1),
            Message::Pause(ack) => {
                (self.is_running, self.order) = (false, None);
                ack.send(()).ok();
            }
            Message::Resume => self.is_running = true,
            Message::Order(order) => self.order = Some(order),
            Message::Call(_) | Message::Stop(_) => {}
        }
    }
}

/// A vCPU thread's life.
fn run_vcpu(mut vcpu: Vcpu, inbox: &Inbox, shared: &Shared, times: &Arc<Times>) {
    let _kicks = vcpu.accept_kicks();
    if shared.hypercalls.as_ref().is_some_and(|hypercalls| hypercalls.looks_at_registers()) {
        vcpu.always_sync();
    }
    if shared.keeps_registers {
        vcpu.keep_before();
    }
    if let Some(debug) = &shared.debug {
        debug.world.introduce(vcpu.id());
    }
    let mut thread = ThreadDebug::new(Arc::clone(times));
    let mut duty = Duty::default();
    let mut was_out = true;
    loop {
        kick::clear();
        while let Some(message) = match duty.may_run() {
            true => match inbox.messages.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            },
            false => {
                times.leave();
                was_out = true;
                match inbox.wait() {
                    Some(message) => Some(message),
                    None => return,
                }
            }
        } {
            match message {
                Message::Call(call) => call(&mut vcpu),
                Message::Stop(_alive) => return,
                message => {
                    if matches!(message, Message::Hold(_) | Message::Pause(_)) {
                        times.leave();
                        was_out = true;
                    }
                    duty.change(message, &mut vcpu, shared);
                }
            }
        }
        // With a debugger there is more to do before the vCPU enters the guest, and that is not its time.
        if shared.debug.is_none() && std::mem::take(&mut was_out) {
            times.enter(Entry::Run);
        }
        if let Some(order) = duty.order.take() {
            duty.is_running = begin(&mut vcpu, shared, &mut thread, &order);
            continue;
        }
        let debug = shared.debug.as_deref().map(|debug| (debug, &mut thread));
        duty.is_running = match run_guest(&mut vcpu, shared, debug, false) {
            Left::Served | Left::Interrupted => true,
            Left::Ended(outcome) => end(&vcpu, shared, &mut thread, outcome),
            Left::Trap(trap) => judge(&mut vcpu, shared, &mut thread, &trap),
            Left::Caught(text) => caught(&vcpu, shared, &mut thread, text),
            // It has been given to the guest.
            Left::Undescribed { .. } => true,
        };
    }
}

/// Stops at a hypercall that a debugger wants to see.
fn caught(vcpu: &Vcpu, shared: &Shared, thread: &mut ThreadDebug, text: String) -> bool {
    let Some(debug) = shared.debug.as_deref() else { return true };
    act(vcpu, shared, thread, debug, Verdict::Stop(StopReason::Hypercall(text)))
}

/// Begins a debugger's order; whether the vCPU runs.
fn begin(vcpu: &mut Vcpu, shared: &Shared, thread: &mut ThreadDebug, order: &Order) -> bool {
    let Some(debug) = shared.debug.as_deref() else { return false };
    if order.action == Action::Stay {
        return false;
    }
    // The debugger has looked at the end that was kept from it, and goes on.
    if let Some(outcome) = thread.outcome.take() {
        shared.end(outcome);
        return false;
    }
    // One that waits for an interrupt is past the instruction that waits, and takes its step from there.
    if order.action.is_step()
        && std::mem::take(&mut thread.may_wait)
        && let Err(error) = vcpu.end_halt()
    {
        return end(vcpu, shared, thread, cannot_run(vcpu, shared, &error));
    }
    let engine = &debug.engine;
    let verdict = engine.start(&mut GuestCpu { vcpu, shared, debug, thread }, order);
    act(vcpu, shared, thread, debug, verdict)
}

/// Has the debugger judge an exit; whether the vCPU runs on.
fn judge(vcpu: &mut Vcpu, shared: &Shared, thread: &mut ThreadDebug, trap: &Trap) -> bool {
    let Some(debug) = shared.debug.as_deref() else { return false };
    let engine = &debug.engine;
    let verdict = engine.judge(&mut GuestCpu { vcpu, shared, debug, thread }, trap);
    if verdict == Verdict::NotOurs {
        let outcome = match trap {
            Trap::EmulationFailure { instruction } => {
                Outcome::EmulationFailure { report: report(vcpu, shared, instruction) }
            }
            _ => {
                let cause = format!("a debug exit that is nobody's: {trap:?}");
                Outcome::InternalError { cause, report: report(vcpu, shared, &[]) }
            }
        };
        return end(vcpu, shared, thread, outcome);
    }
    act(vcpu, shared, thread, debug, verdict)
}

/// Acts on a verdict; whether the vCPU runs on.
fn act(
    vcpu: &Vcpu,
    shared: &Shared,
    thread: &mut ThreadDebug,
    debug: &DebugShared,
    verdict: Verdict,
) -> bool {
    if verdict != Verdict::GoOn {
        thread.times.leave();
    }
    if debug.engine.state().has_output() {
        debug.wake();
    }
    // An end of the guest that came up during a step over a breakpoint.
    if let Some(outcome) = thread.outcome.take() {
        return end(vcpu, shared, thread, outcome);
    }
    match verdict {
        Verdict::GoOn => true,
        Verdict::Stop(reason) => {
            let registers = vcpu.registers(&[Bank::General]);
            debug.tell(Event::Stopped { vcpu: vcpu.id(), reason, registers });
            false
        }
        Verdict::NotOurs => false,
    }
}

/// Deals with the guest's end; the vCPU does not run on. A debugger that is attached may look
/// at a guest that died before the run ends.
fn end(vcpu: &Vcpu, shared: &Shared, thread: &mut ThreadDebug, outcome: Outcome) -> bool {
    if let Some(debug) = &shared.debug
        && debug.is_attached()
        && let Some(reason) = debugger::fatal(&outcome)
    {
        thread.outcome = Some(outcome);
        let registers = vcpu.registers(&[Bank::General]);
        debug.tell(Event::Stopped { vcpu: vcpu.id(), reason, registers });
    } else {
        shared.end(outcome);
    }
    false
}
