//! The thread that serves a debugger: sockets, packets, and the events of the target.
//!
//! One client at a time; another one is told so and let go. A client that vanishes, does not
//! read, or sends what cannot be understood is detached, and the next one is served.

use super::accept::Pause;
use super::front::{self, Answer};
use super::packet::{Framer, Item, LONGEST, frame, push_escaped, push_frame, push_hex};
use super::session::{RegisterNumber, Session, Stop, errno};
use crate::target::Machine;
use arch::Isa;
use arch::register::Bank;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::convert::Infallible;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes of replies that wait for a client to read them, before it is let go.
const MOST_WAITING: usize = 8 << 20;

/// Pieces of input that are read before anything else is looked at.
const MOST_READS: usize = 64;

/// Where a debugger connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Parses `:PORT`, `HOST:PORT` or `unix:PATH`. Without a host it is loopback.
    ///
    /// # Errors
    /// A message that shows how it is written.
    pub fn parse(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: needs a path behind it".into()),
                path => Ok(Address::Unix(path.into())),
            };
        }
        let wrong = || format!("'{text}' is not an address: write :1234, 127.0.0.1:1234 or unix:PATH");
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| wrong())?;
            return Ok(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        text.to_socket_addrs().ok().and_then(|mut found| found.next()).map(Address::Tcp).ok_or_else(wrong)
    }

    /// Whether others than this machine's own users can reach it.
    pub fn is_open(&self) -> bool {
        matches!(self, Address::Tcp(address) if !address.ip().is_loopback())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that waits for debuggers.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A socket in the file system, which is removed at the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Opens the socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
            Address::Unix(path) => {
                // A socket that nobody listens on any more is in the way.
                if UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                {
                    fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it is; a port that was 0 has become a real one.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |it| it.to_string()),
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // It may have been removed already.
            fs::remove_file(path).ok();
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => Write::write(stream, bytes),
            Stream::Unix(stream) => Write::write(stream, bytes),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// What gdbstub writes, until it is sent.
#[derive(Debug, Default)]
struct Outbox(Vec<u8>);

impl Connection for Outbox {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Stub<M> = GdbStubStateMachine<'static, Session<M>, Outbox>;

/// Why a client is let go.
#[derive(Debug, PartialEq, Eq)]
enum Goodbye {
    /// It asked for it, vanished, or cannot be understood; the guest runs on.
    Detach,
    /// It wants the guest to end.
    Kill,
    /// The guest is over.
    Ended,
}

/// A debugger that is attached.
struct Client<M: Machine> {
    stream: Stream,
    framer: Framer,
    /// `None` only while it is being changed.
    stub: Option<Stub<M>>,
    /// Bytes to be sent.
    out: Vec<u8>,
    /// The last packet, in case it has to be sent again; empty without acknowledgements.
    last: Vec<u8>,
    /// Kept from one read of memory to the next.
    memory: Vec<u8>,
    acknowledges: bool,
}

/// Serves debuggers until `quit` becomes readable or the guest is over.
pub fn run<M: Machine>(listener: &Listener, mut session: Session<M>, quit: &OwnedFd) {
    let mut client: Option<Client<M>> = None;
    let mut pause = Pause::default();
    loop {
        let settles = match &client {
            Some(client) if !client.is_running() => session.machine.settle(),
            _ => None,
        };
        let ready = match wait(listener, &mut pause, client.as_ref(), &session, quit, settles) {
            Ok(ready) => ready,
            Err(error) => {
                log::error!("the gdb server cannot wait for events: {error}");
                return;
            }
        };
        if ready.quit {
            // The guest's end may be told yet.
            if let Some(client) = &mut client {
                client.tell_events(&mut session).ok();
                client.flush().ok();
            }
            return;
        }
        // The client first: one that has gone makes room for the one that knocks.
        if let Some(attached) = &mut client {
            if let Err(goodbye) = attached.serve(&mut session, &ready) {
                attached.flush().ok();
                client = None;
                match goodbye {
                    Goodbye::Detach => {
                        session.detach();
                        log::info!("the debugger has detached; the guest runs on");
                    }
                    Goodbye::Kill => {
                        session.kill();
                        return;
                    }
                    Goodbye::Ended => return,
                }
            }
        } else {
            // Nobody is told; the queue stays short.
            while session.machine.next_event().is_some() {}
        }
        if ready.listener {
            match (listener.accept(), &client) {
                (Ok(stream), Some(_)) => refuse(stream),
                (Ok(stream), None) => {
                    session.attach();
                    client = Client::new(stream, &mut session);
                    log::info!("a debugger has attached");
                }
                (Err(error), _) if pause.after(&error, Instant::now()) => {
                    log::warn!("a debugger waits that cannot be accepted: {error}");
                }
                (Err(_), _) => {}
            }
        }
    }
}

/// Serves one client that sends `input` all at once and goes; what it is sent. For tests and
/// fuzzing: it stops where a real client would be waited for.
///
/// # Errors
/// When the system gives no more sockets.
pub fn converse<M: Machine>(session: &mut Session<M>, input: &[u8]) -> io::Result<Vec<u8>> {
    let (ours, mut theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    session.attach();
    let Some(mut client) = Client::new(Stream::Unix(ours), session) else { return Ok(Vec::new()) };
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut rest = input;
    while !rest.is_empty() {
        // To the end of a packet, so that a stop is told before the next one; and less than a
        // socket holds, so that nothing waits.
        let end = rest.iter().position(|byte| *byte == b'#').map_or(rest.len(), |at| at + 3);
        let (piece, after) = rest.split_at(end.min(rest.len()).min(16 << 10));
        rest = after;
        Write::write_all(&mut theirs, piece)?;
        let ready = Ready { quit: false, listener: true, input: true };
        let served = client.serve(session, &ready);
        while let Ok(count) = Read::read(&mut theirs, &mut buffer)
            && count > 0
        {
            answer.extend(&buffer[..count]);
        }
        if served.is_err() {
            break;
        }
    }
    session.detach();
    Ok(answer)
}

/// What `poll` found.
struct Ready {
    quit: bool,
    listener: bool,
    input: bool,
}

fn wait<M: Machine>(
    listener: &Listener,
    pause: &mut Pause,
    client: Option<&Client<M>>,
    session: &Session<M>,
    quit: &OwnedFd,
    settles: Option<Duration>,
) -> io::Result<Ready> {
    let events = session.machine.event_fd();
    // While the target stands still for a client, an event is nobody's business yet.
    let wants_events = client.is_none_or(Client::is_running);
    let paused = pause.left(Instant::now());
    let knocks = if paused.is_none() { PollFlags::POLLIN } else { PollFlags::empty() };
    // Rounded up, or it would spin through the last part.
    let settles = settles.map(|left| left + Duration::from_millis(1));
    let left = [paused, settles].into_iter().flatten().min();
    let timeout = left.map_or(PollTimeout::NONE, |left| left.try_into().unwrap_or(PollTimeout::MAX));
    let mut fds = vec![
        PollFd::new(quit.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener.as_fd(), knocks),
        PollFd::new(events, if wants_events { PollFlags::POLLIN } else { PollFlags::empty() }),
    ];
    if let Some(client) = client {
        let out = if client.out.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        fds.push(PollFd::new(client.stream.as_fd(), PollFlags::POLLIN | out));
    }
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(nix::errno::Errno::EINTR) => return Ok(Ready { quit: false, listener: false, input: false }),
        Err(error) => return Err(error.into()),
    }
    let is_ready =
        |index: usize| fds.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
    Ok(Ready { quit: is_ready(0), listener: is_ready(1), input: is_ready(3) })
}

/// Tells a second client that there is one already.
fn refuse(mut stream: Stream) {
    log::info!("a second debugger is refused: one is attached");
    // A client that is gone already needs no words.
    stream.write(&frame(b"E.another debugger is attached")).ok();
}

impl<M: Machine> Client<M> {
    fn new(stream: Stream, session: &mut Session<M>) -> Option<Client<M>> {
        let stub = GdbStub::builder(Outbox::default())
            .packet_buffer_size(LONGEST + 4)
            .build()
            .map_err(|error| error.to_string())
            .and_then(|stub| stub.run_state_machine(session).map_err(|error| error.to_string()));
        match stub {
            Ok(stub) => Some(Client {
                stream,
                framer: Framer::default(),
                stub: Some(stub),
                out: Vec::new(),
                last: Vec::new(),
                memory: Vec::new(),
                acknowledges: true,
            }),
            Err(error) => {
                log::error!("gdbstub does not start: {error}");
                session.detach();
                None
            }
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.stub, Some(GdbStubStateMachine::Running(_)))
    }

    fn serve(&mut self, session: &mut Session<M>, ready: &Ready) -> Result<(), Goodbye> {
        // When another client knocks, to the end of what there is, so that one that has gone is
        // not taken for one that is there; but a flood does not hold up the rest.
        for _ in 0..if ready.input { MOST_READS } else { 0 } {
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Goodbye::Detach),
                Ok(count) => {
                    let mut items = Vec::new();
                    self.framer.feed(&buffer[..count], |item| items.push(item));
                    for item in items {
                        self.take(session, item)?;
                    }
                    if count < buffer.len() && !ready.listener {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Goodbye::Detach),
            }
        }
        self.tell_events(session)?;
        self.flush()
    }

    /// Sends as much as the client takes.
    fn flush(&mut self) -> Result<(), Goodbye> {
        let mut sent = 0;
        while sent < self.out.len() {
            match self.stream.write(&self.out[sent..]) {
                Ok(0) => return Err(Goodbye::Detach),
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Goodbye::Detach),
            }
        }
        self.out.drain(..sent);
        if self.out.len() > MOST_WAITING {
            log::warn!("the debugger does not read what it is sent; it is detached");
            return Err(Goodbye::Detach);
        }
        Ok(())
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

    /// Sends memory, or an error where nothing of it is there.
    fn send_memory(&mut self, session: &Session<M>, address: u64, length: usize, is_binary: bool) {
        let mut bytes = std::mem::take(&mut self.memory);
        bytes.resize(length, 0);
        let count = session.read(session.current, address, &mut bytes);
        if count == 0 && length > 0 {
            self.send(format!("E{:02x}", errno::EFAULT).as_bytes());
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

    fn take(&mut self, session: &mut Session<M>, item: Item) -> Result<(), Goodbye> {
        match item {
            Item::Ack => Ok(()),
            Item::Nack => {
                self.out.extend(&self.last);
                Ok(())
            }
            Item::Damaged => {
                self.out.extend(if self.acknowledges { &b"-"[..] } else { b"" });
                Ok(())
            }
            Item::TooLong => {
                self.acknowledge();
                self.send(format!("E{:02x}", errno::EINVAL).as_bytes());
                Ok(())
            }
            Item::Interrupt => {
                if self.is_running() {
                    let stop = session.interrupt();
                    self.report(session, &stop)?;
                }
                Ok(())
            }
            Item::Packet(data) => self.packet(session, &data),
        }
    }

    fn acknowledge(&mut self) {
        if self.acknowledges {
            self.out.push(b'+');
        }
    }

    fn packet(&mut self, session: &mut Session<M>, data: &[u8]) -> Result<(), Goodbye> {
        log::trace!(target: "debug::rsp", "<- {}", String::from_utf8_lossy(data));
        // While the target runs, only an interrupt and the end make sense.
        if self.is_running() && data != b"vCtrlC" && data != b"k" && !data.starts_with(b"vKill") {
            self.acknowledge();
            self.send(format!("E{:02x}", errno::EINVAL).as_bytes());
            return Ok(());
        }
        match front::serve(session, data) {
            Answer::Reply(reply) => {
                self.acknowledge();
                self.send(&reply);
                Ok(())
            }
            Answer::Memory { address, length, is_binary } => {
                self.acknowledge();
                self.send_memory(session, address, length, is_binary);
                Ok(())
            }
            Answer::Kill(reply) => {
                self.acknowledge();
                if !reply.is_empty() {
                    self.send(&reply);
                }
                Err(Goodbye::Kill)
            }
            Answer::Interrupt(reply) => {
                self.acknowledge();
                self.send(&reply);
                if self.is_running() {
                    let stop = session.interrupt();
                    self.report(session, &stop)?;
                }
                Ok(())
            }
            Answer::PassOn(addition) => self.pass_on(session, data, addition),
        }
    }

    /// Has gdbstub serve a packet.
    fn pass_on(&mut self, session: &mut Session<M>, data: &[u8], addition: &str) -> Result<(), Goodbye> {
        for byte in frame(data) {
            let stub = match self.stub.take() {
                Some(GdbStubStateMachine::Idle(stub)) => stub.incoming_data(session, byte),
                Some(GdbStubStateMachine::Running(stub)) => stub.incoming_data(session, byte),
                Some(other) => Ok(other),
                None => return Err(Goodbye::Detach),
            };
            match stub {
                Ok(stub) => self.stub = Some(stub),
                Err(error) => {
                    let data = String::from_utf8_lossy(data);
                    log::warn!("the debugger is detached after the packet '{data}': {error}");
                    return Err(Goodbye::Detach);
                }
            }
        }
        let mut written = self.take_written();
        if data == b"QStartNoAckMode" {
            self.acknowledges = false;
        }
        if !addition.is_empty() {
            written = added(&written, addition);
        }
        self.queue(&written);
        match &self.stub {
            Some(GdbStubStateMachine::Disconnected(stub)) => Err(match stub.get_reason() {
                DisconnectReason::Kill => Goodbye::Kill,
                DisconnectReason::Disconnect => Goodbye::Detach,
                DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_) => Goodbye::Ended,
            }),
            _ => Ok(()),
        }
    }

    /// What gdbstub has written.
    fn take_written(&mut self) -> Vec<u8> {
        let conn = match &mut self.stub {
            Some(GdbStubStateMachine::Idle(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::Running(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::CtrlCInterrupt(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::Disconnected(stub)) => stub.borrow_conn(),
            None => return Vec::new(),
        };
        std::mem::take(&mut conn.0)
    }

    fn queue(&mut self, written: &[u8]) {
        log::trace!(target: "debug::rsp", "-> {}", String::from_utf8_lossy(written));
        if self.acknowledges
            && let Some(start) = written.iter().position(|byte| *byte == b'$')
        {
            self.last = written[start..].to_vec();
        }
        self.out.extend(written);
    }

    /// Tells what happened since the target was resumed.
    fn tell_events(&mut self, session: &mut Session<M>) -> Result<(), Goodbye> {
        if !self.is_running() {
            return Ok(());
        }
        let stop = session.next_stop();
        self.tell_output(session);
        match stop {
            Some(stop) => self.report(session, &stop),
            None => Ok(()),
        }
    }

    fn tell_output(&mut self, session: &mut Session<M>) {
        let output = session.engine.state().take_output();
        for text in output {
            self.send(&front::console(&text));
        }
    }

    fn report(&mut self, session: &mut Session<M>, stop: &Stop) -> Result<(), Goodbye> {
        self.tell_output(session);
        let mut registers = Vec::new();
        match stop {
            Stop::Vcpu(vcpu, reason) => {
                if let Some(words) = front::words(*vcpu, reason) {
                    self.send(&front::console(&words));
                }
                registers = expedited(session, *vcpu);
            }
            Stop::Ended(ended) => self.send(&front::console(&format!("vmm: {}\n", ended.text))),
        }
        let stub = match self.stub.take() {
            Some(GdbStubStateMachine::Running(stub)) => stub,
            other => {
                self.stub = other;
                return Ok(());
            }
        };
        let reason: MultiThreadStopReason<u64> = stop.reason();
        let mut values = registers.iter().map(|(row, bytes)| (RegisterNumber::new(*row), bytes.as_slice()));
        match stub.report_stop_with_regs(session, reason, &mut values) {
            Ok(stub) => self.stub = Some(stub),
            Err(error) => {
                log::error!("a stop cannot be reported: {error}");
                return Err(Goodbye::Detach);
            }
        }
        let written = self.take_written();
        self.queue(&written);
        match stop {
            Stop::Ended(_) => Err(Goodbye::Ended),
            Stop::Vcpu(..) => Ok(()),
        }
    }
}

/// Registers that go with every stop, so that a step costs one packet: program counter, stack
/// pointer, frame pointer.
fn expedited<M: Machine>(session: &Session<M>, vcpu: u32) -> Vec<(usize, Vec<u8>)> {
    let names = match session.isa() {
        Isa::X86_64 => ["rip", "rsp", "rbp"],
        Isa::Aarch64 => ["pc", "sp", "x29"],
    };
    let Ok(file) = session.machine.registers(vcpu, &[Bank::General]) else { return Vec::new() };
    names
        .into_iter()
        .filter_map(|name| {
            let row = arch::register::row(session.isa(), name)?;
            let mut bytes = file.bytes(row)?;
            bytes.truncate(session.registers.size(row));
            Some((row, bytes))
        })
        .collect()
}

/// A reply with `addition` behind its data.
fn added(written: &[u8], addition: &str) -> Vec<u8> {
    let start = written.iter().position(|byte| *byte == b'$');
    let end = written.iter().rposition(|byte| *byte == b'#');
    let (Some(start), Some(end)) = (start, end) else { return written.to_vec() };
    let data = [&written[start + 1..end], addition.as_bytes()].concat();
    [&written[..start], &frame(&data)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| match Address::parse(text) {
            Ok(Address::Tcp(address)) => address.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(tcp(":1234"), "127.0.0.1:1234");
        assert_eq!(tcp("127.0.0.1:0"), "127.0.0.1:0");
        assert_eq!(tcp("[::1]:1234"), "[::1]:1234");
        assert_eq!(Address::parse("unix:/tmp/x"), Ok(Address::Unix("/tmp/x".into())));
        for wrong in ["", "unix:", "1234", ":", ":99999", ":x"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
        assert!(!Address::parse(":1").unwrap().is_open());
        assert!(Address::parse("0.0.0.0:1").unwrap().is_open());
    }

    #[test]
    fn additions_go_into_the_reply() {
        assert_eq!(added(b"+$a=1#xx", ";b+"), [&b"+"[..], &frame(b"a=1;b+")].concat());
        assert_eq!(added(b"+", ";b+"), b"+");
    }
}
