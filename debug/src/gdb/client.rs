//! A debugger that is attached: its packets, one after the other, and what it is sent.
//!
//! What waits to be sent is bounded by what is read: while more than `MOST_WAITING` bytes wait, no
//! packet is served and nothing further is read. So neither a client that does not read, nor one that
//! asks for the same again and again, has anything grow.

use super::answer::{Answer, errno};
use super::front;
use super::input::Input;
use super::listener::{Peer, Stream};
use super::packet::{Item, push_escaped, push_frame, push_hex};
use super::session::{self, Process, Session, Stop};
use super::stop::{self, console};
use super::stub::Stub;
use crate::cancel::Cancel;
use crate::target::{Machine, StopReason};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// The target has run for it before.
    has_run: bool,
    /// It has interrupted a target that stood still already: the next time it runs, it stops.
    has_interrupted: bool,
    /// What else makes a command superfluous that takes long.
    is_over: Arc<dyn Fn() -> bool + Send + Sync>,
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
            has_run: false,
            has_interrupted: false,
            is_over,
        }
    }

    /// Its stream, for whoever polls.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether the target runs for it.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether it has sent something that can be served now.
    pub fn is_waiting(&self) -> bool {
        self.wants_input() && lock(&self.input).is_waiting()
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
        session.set_cancel(&Cancel::new(move || is_over() || wants_no_more()));
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
            if !self.wants_input() || Instant::now() >= until {
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
        while self.wants_input() {
            let Some(item) = lock(&self.input).next() else { break };
            self.take(session, item)?;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Sends as much as the client takes.
    pub fn flush(&mut self) -> Result<(), Goodbye> {
        let mut sent = 0;
        let result = loop {
            if sent == self.out.len() {
                break Ok(());
            }
            match self.stream.write(&self.out[sent..]) {
                Ok(0) => break Err(Goodbye::Lost("it takes nothing any more")),
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    break Err(Goodbye::Lost("it has vanished"));
                }
                Err(_) => break Err(Goodbye::Lost("it has gone")),
            }
        };
        self.out.drain(..sent);
        result
    }

    fn send(&mut self, data: &[u8]) {
        self.send_with(|packet| packet.extend(data));
    }

    /// Sends a packet whose data `push` appends.
    fn send_with(&mut self, push: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        push_frame(&mut self.out, push);
        let packet = &self.out[start..];
        log::trace!(target: "debug::rsp", "-> {}", String::from_utf8_lossy(packet));
        if self.acknowledges {
            self.last = packet.to_vec();
        }
    }

    fn send_error(&mut self, code: u8) {
        self.send(format!("E{code:02x}").as_bytes());
    }

    /// Sends memory, or an error where nothing of it is there.
    fn send_memory(&mut self, session: &Session<M>, address: u64, length: usize, is_binary: bool) {
        let mut bytes = std::mem::take(&mut self.memory);
        bytes.resize(length, 0);
        let count = session.view().read(address, &mut bytes);
        if count == 0 && length > 0 {
            self.send_unreadable(session, address);
        } else {
            self.send_with(|packet| match is_binary {
                true => {
                    packet.push(b'b');
                    push_escaped(packet, &bytes[..count]);
                }
                false => push_hex(packet, &bytes[..count]),
            });
        }
        self.memory = bytes;
    }

    /// Says that memory cannot be read: in words where they are more than "nothing is mapped", and the
    /// debugger takes them (GDB manual, "error-message").
    fn send_unreadable(&mut self, session: &Session<M>, address: u64) {
        match session.view().absence(address) {
            Some(why) if session.takes_words => self.send(format!("E.{why}").as_bytes()),
            _ => self.send_error(errno::EFAULT),
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
        self.acknowledge();
        // While the target runs, only an interrupt and the end make sense.
        if self.is_running && !front::is_urgent(data) {
            self.send_error(errno::EINVAL);
            return Ok(());
        }
        if !front::may_take_long(data) {
            return self.answer(session, data);
        }
        // The debugger knows that the packet has arrived before it waits for the answer.
        self.flush()?;
        lock(&self.input).begin_long((session.client == session::Client::Gdb) && self.out.is_empty());
        let result = self.answer(session, data);
        lock(&self.input).end_long();
        if session.cancel.is_cancelled() {
            self.arm(session);
        }
        result
    }

    fn answer(&mut self, session: &mut Session<M>, data: &[u8]) -> Result<(), Goodbye> {
        match front::serve(session, data) {
            Answer::Reply(reply) => self.send(&reply),
            Answer::Memory { address, length, is_binary } => {
                self.send_memory(session, address, length, is_binary);
            }
            Answer::Kill(reply) => {
                if !reply.is_empty() {
                    self.send(&reply);
                }
                if !session.is_extended {
                    return Err(Goodbye::Kill);
                }
                self.is_running = false;
                session.end();
            }
            Answer::Detach(reply) => {
                self.send(&reply);
                if !session.is_extended {
                    return Err(Goodbye::Detach);
                }
                self.is_running = false;
                session.detach();
            }
            Answer::Attach => {
                // What was typed while the guest was not debugged was not meant for it.
                self.has_interrupted = false;
                session.take();
                self.arm(session);
                self.send(&stop::reply(&Stop::Vcpu(session.current, StopReason::Interrupt), session));
            }
            Answer::Restart(replies) => {
                self.has_interrupted = false;
                let before = session.process;
                if before != Process::Attached {
                    session.take();
                    self.arm(session);
                }
                let result = session.restart();
                if result.is_err() {
                    // To the debugger there is no more of a process than there was.
                    match before {
                        Process::Attached => {}
                        Process::Detached => session.detach(),
                        Process::Killed => session.end(),
                    }
                }
                match result {
                    Ok(()) if replies => self.send(&stop::reply(&Stop::Vcpu(0, StopReason::Step), session)),
                    Ok(()) => {}
                    Err(refused) if replies => self.send(format!("E.{refused}").as_bytes()),
                    Err(refused) => log::warn!("the guest does not begin again: {refused}"),
                }
            }
            Answer::Interrupt(reply) => {
                self.send(&reply);
                self.interrupt(session)?;
            }
            Answer::Resume(actions) => match session.run(&actions) {
                Ok(()) => {
                    (self.is_running, self.has_run) = (true, true);
                    if std::mem::take(&mut self.has_interrupted) {
                        self.interrupt(session)?;
                    }
                }
                Err(error) => self.send(format!("E.{error}").as_bytes()),
            },
            Answer::NoAcknowledgements => {
                self.send(b"OK");
                self.acknowledges = false;
                self.last.clear();
            }
            Answer::PassOn => {
                let written = self.stub.serve(session, data);
                self.queue(&written);
                if session.is_done {
                    return Err(Goodbye::Kill);
                }
            }
        }
        Ok(())
    }

    fn queue(&mut self, written: &[u8]) {
        log::trace!(target: "debug::rsp", "-> {}", String::from_utf8_lossy(written));
        if self.acknowledges {
            // Of several packets the last one is the answer.
            let start = written.iter().rposition(|byte| *byte == b'$').unwrap_or(0);
            self.last = written[start..].to_vec();
        }
        self.out.extend(written);
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
            let text = session.engine.state().take_output(MOST_WAITING / 4);
            let Some(text) = text else { break };
            self.send(&console(&text));
        }
    }

    fn report(&mut self, session: &mut Session<M>, stop: &Stop) -> Result<(), Goodbye> {
        self.tell_output(session);
        if let Some(words) = stop.words() {
            self.send(&console(&words));
        }
        if let Stop::Vcpu(vcpu, _) = stop
            && let Some(words) = session.outgrown(*vcpu)
        {
            self.send(&console(words));
        }
        if let Stop::Vcpu(vcpu, _) = stop
            && let Some(words) = session.signs(*vcpu)
        {
            self.send(&console(words));
        }
        self.is_running = false;
        self.send(&stop::reply(stop, session));
        match stop {
            Stop::Ended(_) => Err(Goodbye::Ended),
            Stop::Vcpu(..) => Ok(()),
        }
    }
}

/// Serves one client that sends `input` a packet at a time and goes; what it is sent. For tests and
/// fuzzing: it stops where a real client would be waited for.
///
/// # Errors
/// When the system gives no more sockets.
pub fn converse<M: Machine>(session: &mut Session<M>, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut steps = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        // To the end of a packet, so that a stop is told before the next one; and less than a
        // socket holds, so that nothing waits.
        let end = rest.iter().position(|byte| *byte == b'#').map_or(rest.len(), |at| at + 3);
        let (piece, after) = rest.split_at(end.min(rest.len()).min(16 << 10));
        rest = after;
        steps.push((piece, true));
    }
    misbehave(session, &steps).map(|(answer, _)| answer)
}

/// Serves one client that sends these pieces, and behind each reads what it was sent, or does not.
/// What it has read in the end, and how many bytes waited to be sent to it at most.
///
/// # Errors
/// When the system gives no more sockets.
pub fn misbehave<M: Machine>(
    session: &mut Session<M>,
    steps: &[(&[u8], bool)],
) -> io::Result<(Vec<u8>, usize)> {
    use std::io::{Read, Write};
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    session.attach();
    let peer = Peer::Unix { user: None, process: None };
    let mut client = Client::new(Stream::Unix(ours), peer, &[], Arc::new(|| false));
    client.arm(session);
    let (mut answer, mut most) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    let mut read = |theirs: &mut std::os::unix::net::UnixStream| {
        while let Ok(count @ 1..) = theirs.read(&mut buffer) {
            answer.extend(&buffer[..count]);
        }
    };
    for (piece, reads) in steps {
        // What the server does not read any more does not fit.
        theirs.write_all(piece).ok();
        let ready = Ready { input: client.wants_input(), knock: true, broken: false };
        let mut served = client.serve(session, ready);
        // What a turn had no time for comes in the next ones.
        while served.is_ok()
            && (client.is_waiting() || client.wants_input() && super::server::is_readable(client.as_fd()))
        {
            served = client.serve(session, Ready { input: client.wants_input(), ..Ready::default() });
        }
        most = most.max(client.out.len());
        if *reads {
            read(&mut theirs);
        }
        if served.is_err() {
            break;
        }
    }
    // As the server does it.
    client.flush().ok();
    read(&mut theirs);
    session.detach();
    Ok((answer, most))
}
