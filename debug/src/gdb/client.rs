//! A debugger that is attached: its packets, one after the other, and what it is sent.
//!
//! What waits to be sent is bounded by what is read: while more than `MOST_WAITING` bytes wait, no
//! packet is served and nothing further is read. So neither a client that does not read, nor one that
//! asks for the same again and again, has anything grow.

mod answers;
mod input;
mod output;
mod script;

#[cfg(test)]
pub(crate) use script::Scripted;
pub use script::{converse, misbehave};

use super::answer::errno;
use super::endpoint::{Peer, Stream};
use super::front;
use super::packet::Item;
use super::session::{self, Process, Session, Stop};
use super::stop::{self, console};
use super::stub::Stub;
use crate::cancel::Cancel;
use crate::machine::{Extent, Machine, MachineError, StopReason};
use input::Input;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

/// Bytes that wait to be sent before nothing more is read.
const MOST_WAITING: usize = 512 << 10;
/// Pieces of input that are read before anything else is looked at.
const MOST_READS: usize = 64;
/// How long one client is served before anything else is looked at, but for the command at hand.
const TURN: Duration = Duration::from_millis(50);

/// Why a client is let go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// It asked for it; the guest runs on.
    Detach,
    /// It has vanished, or does not speak the protocol; in words.
    Lost(&'static str),
    /// It wants the guest to end.
    Kill,
    /// The guest is over.
    Ended,
}

/// What the kernel says of a client's stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    /// It can be read.
    pub input: bool,
    /// Another client knocks.
    pub knock: bool,
    /// It is broken.
    pub broken: bool,
}

/// A debugger that is attached.
pub(super) struct Client<M: Machine> {
    /// Who.
    pub peer: Peer,
    /// Since when.
    pub since: SystemTime,
    stream: Arc<Stream>,
    input: Arc<Mutex<Input>>,
    stub: Stub<M>,
    /// Bytes to be sent.
    out: Vec<u8>,
    /// The last packet, in case it has to be sent again; empty without acknowledgements.
    last: Vec<u8>,
    /// Kept from one read of memory to the next.
    memory: Vec<u8>,
    acknowledges: bool,
    /// The target runs, and the debugger waits for its stop.
    is_running: bool,
    /// It has been told of a stop, and whoever waits for it does not know that yet.
    has_told_stop: bool,
    /// The target has run for it before.
    has_run: bool,
    /// It has interrupted a target that stood still already: the next time it runs, it stops.
    has_interrupted: bool,
    /// vCPUs have been asked for what the next packet needs, and have not answered.
    is_held_up: bool,
    /// What the last packet's answer hangs on.
    withheld: Option<Withheld>,
    /// The next packet has been served before, and put back: that it has arrived was said then.
    is_acknowledged: bool,
    /// What the guest was to it before it was to begin again.
    before: Option<Process>,
    /// What else makes a command superfluous that takes long.
    is_over: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// A packet that has been answered before what it asks for is done.
struct Withheld {
    packet: Vec<u8>,
    /// Where its answer begins in what is to be sent.
    from: usize,
}

/// What has been stopped for a packet that was to take the guest, and has not, goes on.
fn give_back<M: Machine>(session: &mut Session<M>) {
    if session.process == Process::Detached {
        session.debuggee.give_back();
    }
}

fn lock(input: &Mutex<Input>) -> MutexGuard<'_, Input> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Machine> Client<M> {
    /// A client who has sent `begun` already. `is_over` tells that commands of its need not be finished.
    pub fn new(
        stream: Stream,
        peer: Peer,
        begun: &[u8],
        is_over: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Client<M> {
        let stream = Arc::new(stream);
        let mut input = Input::new(Arc::clone(&stream));
        input.feed(begun);
        Client {
            peer,
            since: SystemTime::now(),
            stream,
            input: Arc::new(Mutex::new(input)),
            stub: Stub::new(),
            out: Vec::new(),
            last: Vec::new(),
            memory: Vec::new(),
            acknowledges: true,
            is_running: false,
            has_told_stop: false,
            has_run: false,
            has_interrupted: false,
            is_held_up: false,
            withheld: None,
            is_acknowledged: false,
            before: None,
            is_over,
        }
    }

    /// Its stream, for whoever polls.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether it has gone, though what it sent before that may not have been served.
    pub fn has_hung_up(&self) -> bool {
        self.stream.has_hung_up()
    }

    /// Whether the target runs for it.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Whether it has been told of a stop since this was asked last.
    pub fn take_told_stop(&mut self) -> bool {
        std::mem::take(&mut self.has_told_stop)
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether it has sent something that can be served now.
    pub fn is_waiting(&self) -> bool {
        !self.is_held_up && self.wants_input() && lock(&self.input).is_waiting()
    }

    /// Whether what it has sent cannot be served before vCPUs have answered.
    pub fn is_held_up(&self) -> bool {
        self.is_held_up
    }

    /// Reads what it has said by now; whether there is something to serve, its going included.
    pub fn hears(&self) -> bool {
        let mut input = lock(&self.input);
        input.read();
        input.is_waiting() || input.is_over()
    }

    /// Whether the target stands still for it, it has been told all that there is, and may say something.
    pub fn is_to_speak(&self) -> bool {
        !self.is_running && self.out.is_empty()
    }

    /// Whether nothing more comes of it; what it has said before that may not have been served.
    pub fn is_at_end(&self) -> bool {
        lock(&self.input).is_over()
    }

    /// Whether it is to be read from.
    pub fn wants_input(&self) -> bool {
        self.out.len() < MOST_WAITING
    }

    /// Gives the session a token for the commands of this client.
    pub fn arm(&self, session: &mut Session<M>) {
        // The token stays with the session, and must not keep the connection open.
        let (input, is_over) = (Arc::downgrade(&self.input), Arc::clone(&self.is_over));
        let wants_no_more = move || input.upgrade().is_none_or(|input| lock(&input).wants_no_more());
        session.debuggee.set_cancel(&Cancel::new(move || is_over() || wants_no_more()));
    }

    /// Serves what there is.
    pub fn serve(&mut self, session: &mut Session<M>, ready: Ready) -> Result<(), Goodbye> {
        // When another client knocks, to the end of what there is, so that one that has gone is
        // not taken for one that is there; but a flood does not hold up the rest.
        let mut may_read = ready.input || ready.knock || ready.broken;
        let until = Instant::now() + TURN;
        for _ in 0..MOST_READS {
            self.serve_items(session, until)?;
            self.flush()?;
            if !self.wants_input() || self.is_held_up || Instant::now() >= until {
                break;
            }
            let mut input = lock(&self.input);
            if input.is_waiting() {
                continue;
            }
            if !may_read {
                break;
            }
            let has_more = input.read();
            if input.is_over() && !input.is_waiting() {
                return Err(Goodbye::Lost("it has gone"));
            }
            may_read = has_more || ready.knock && input.is_waiting();
        }
        if ready.broken {
            return Err(Goodbye::Lost("its connection is broken"));
        }
        self.tell_events(session)?;
        self.flush()
    }

    /// Serves what was read, until a moment. Commands that take long read on, so it may never become less.
    fn serve_items(&mut self, session: &mut Session<M>, until: Instant) -> Result<(), Goodbye> {
        // Nothing is done for one that sends what no debugger does, however it began.
        if lock(&self.input).is_noise() {
            return Err(Goodbye::Lost("it does not speak gdb's protocol"));
        }
        self.is_held_up = false;
        while self.wants_input() {
            if self.is_to_wait(session) {
                self.is_held_up = true;
                break;
            }
            let Some(item) = lock(&self.input).next() else { break };
            self.take(session, item)?;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Whether what comes next has to wait for vCPUs: for what has been written, for those of a machine in which the guest
    /// has begun again, or until they stand still and what it needs of them is known.
    fn is_to_wait(&mut self, session: &mut Session<M>) -> bool {
        if let Some(withheld) = self.withheld.take() {
            self.end_answer(session, withheld);
            if self.withheld.is_some() {
                return true;
            }
        }
        // Nobody has the debugger told what becomes of a guest that stands still for it, until it asks.
        if !self.is_running && session.go_over().is_pending() {
            return true;
        }
        let extent = match lock(&self.input).peek() {
            Some(Item::Interrupt) => self.is_running.then_some(Extent::Near),
            Some(Item::Packet(data)) => front::takes(session, self.is_running, data),
            _ => None,
        };
        extent.is_some_and(|extent| session.debuggee.machine.prepare(extent).is_pending())
    }

    /// Ends the answer to a packet by what has become of what it has written, or withholds it until that is known.
    fn end_answer(&mut self, session: &mut Session<M>, answered: Withheld) {
        let refused = match session.debuggee.machine.written() {
            Poll::Pending => return self.withheld = Some(answered),
            Poll::Ready(Ok(())) => return give_back(session),
            Poll::Ready(Err(refused)) => refused,
        };
        if self.is_running {
            // What it answers is a stop.
            return self.send(&console(&session.signed(&refused.to_string())));
        }
        self.out.truncate(answered.from);
        match refused {
            MachineError::Later => {
                lock(&self.input).put_back(Item::Packet(answered.packet));
                self.is_acknowledged = true;
            }
            refused => {
                self.send(format!("E.{refused}").as_bytes());
                give_back(session);
            }
        }
    }

    fn take(&mut self, session: &mut Session<M>, item: Item) -> Result<(), Goodbye> {
        match item {
            Item::Ack => {}
            // What has not been sent cannot have arrived damaged; and without acknowledgements there is
            // nothing to send again.
            Item::Nack if self.out.is_empty() => self.out.extend(&self.last),
            Item::Nack => {}
            Item::Damaged => self.out.extend(if self.acknowledges { &b"-"[..] } else { b"" }),
            Item::TooLong => {
                self.acknowledge();
                self.send_error(errno::EINVAL);
            }
            // It may have crossed a stop that the debugger goes on from by itself, as it does from a
            // breakpoint whose condition it evaluates (GDB manual, "Interrupts": they are queued). One
            // with which a debugger begins has been served by stopping the target for it.
            Item::Interrupt if !self.is_running => self.has_interrupted = self.has_run,
            Item::Interrupt => self.interrupt(session)?,
            Item::Packet(data) => self.packet(session, &data)?,
            Item::Noise(_) => return Err(Goodbye::Lost("it does not speak gdb's protocol")),
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        if self.acknowledges {
            self.out.push(b'+');
        }
    }

    fn interrupt(&mut self, session: &mut Session<M>) -> Result<(), Goodbye> {
        if self.is_running {
            let stop = session.interrupt();
            // Where something else has stopped it first, the debugger may go on from that by itself.
            self.has_interrupted = !matches!(stop, Stop::Vcpu(_, StopReason::Interrupt));
            self.report(session, &stop)?;
        }
        Ok(())
    }

    fn packet(&mut self, session: &mut Session<M>, data: &[u8]) -> Result<(), Goodbye> {
        log::trace!(target: "debug::rsp", "<- {}", String::from_utf8_lossy(data));
        if !std::mem::take(&mut self.is_acknowledged) {
            self.acknowledge();
        }
        // While the target runs, only an interrupt and the end make sense.
        if self.is_running && !front::is_urgent(data) {
            self.send_error(errno::EINVAL);
            return Ok(());
        }
        let from = self.out.len();
        let result = self.answer_in_time(session, data);
        match session.debuggee.machine.is_asking() {
            true => self.end_answer(session, Withheld { packet: data.to_vec(), from }),
            false => give_back(session),
        }
        result
    }

    fn answer_in_time(&mut self, session: &mut Session<M>, data: &[u8]) -> Result<(), Goodbye> {
        if !front::may_take_long(session, data) {
            return self.answer(session, data);
        }
        // The debugger knows that the packet has arrived before it waits for the answer.
        self.flush()?;
        lock(&self.input).begin_long((session.client == session::Client::Gdb) && self.out.is_empty());
        let result = self.answer(session, data);
        lock(&self.input).end_long();
        if session.debuggee.cancel.is_cancelled() {
            self.arm(session);
        }
        result
    }

    /// Tells what happened since the target was resumed.
    pub fn tell_events(&mut self, session: &mut Session<M>) -> Result<(), Goodbye> {
        if session.process != Process::Attached {
            // gdb is not told of what it has let go; the end is that of the connection.
            return session.idle().map_or(Ok(()), |_| Err(Goodbye::Ended));
        }
        if !self.is_running {
            return Ok(());
        }
        if session.has_stopped() && session.debuggee.machine.prepare(Extent::Near).is_pending() {
            return Ok(());
        }
        let stop = session.next_stop();
        self.tell_output(session);
        if self.is_running
            && let Some(words) = session.take_words()
        {
            self.send(&console(&words));
        }
        match stop {
            Some(stop) => self.report(session, &stop),
            None => Ok(()),
        }
    }

    /// Tells what `dprintf` has printed, as far as it is read.
    fn tell_output(&mut self, session: &mut Session<M>) {
        while self.wants_input() {
            let text = session.debuggee.engine.requests().take_output(MOST_WAITING / 4);
            let Some(text) = text else { break };
            self.send(&console(&text));
        }
    }

    fn report(&mut self, session: &mut Session<M>, stop: &Stop) -> Result<(), Goodbye> {
        self.tell_output(session);
        if let Some(words) = session::words(stop) {
            self.send(&console(&session.signed(&words)));
        }
        if let Stop::Vcpu(vcpu, _) = stop
            && let Some(words) = session.outgrown(*vcpu)
        {
            self.send(&console(&words));
        }
        if let Stop::Vcpu(vcpu, _) = stop
            && let Some(words) = session.signs(*vcpu)
        {
            self.send(&console(&words));
        }
        (self.is_running, self.has_told_stop) = (false, true);
        self.send(&stop::reply(stop, session));
        match stop {
            Stop::Ended(_) => Err(Goodbye::Ended),
            Stop::Vcpu(..) => Ok(()),
        }
    }
}
