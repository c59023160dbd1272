//! The thread that serves debuggers: who is let in, who is attached, and what becomes of the guest
//! when that one has gone.
//!
//! One client at a time. Whoever connects stands at the door until its first bytes have come: one
//! that does not begin as a debugger does is let go without a word, one that may not come in, or comes
//! second, is told why in the answer to its first packet. Until then the guest is not touched.

use super::accept::Pause;
use super::client::{Client, Goodbye, Ready};
use super::listener::{Gate, Listener, Peer, Stream};
use super::packet::{Framer, Item, frame, may_begin};
use super::session::{Process, Session};
use crate::target::Machine;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What becomes of the guest when a debugger has gone without saying so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// It runs on.
    #[default]
    Continue,
    /// It is held until the next debugger comes.
    Hold,
    /// It ends.
    Quit,
}

/// How debuggers are served.
#[derive(Debug)]
pub struct Service {
    /// Becomes readable when the server is to end.
    pub quit: OwnedFd,
    /// Has a count in it when whoever is attached is to be let go (`eventfd(2)`).
    pub release: Option<OwnedFd>,
    /// Who is served.
    pub gate: Gate,
    /// What becomes of the guest when a debugger is lost.
    pub on_lost: OnLost,
    /// A debugger that comes second takes the place of the first.
    pub takeover: bool,
}

impl Service {
    /// Everybody is served until `quit` becomes readable, and nothing else is special.
    pub fn plain(quit: OwnedFd) -> Service {
        Service { quit, release: None, gate: Gate::open(), on_lost: OnLost::default(), takeover: false }
    }
}

/// Serves debuggers until it is to end or the guest is over.
pub fn run<M: Machine>(listener: &Listener, session: Session<M>, service: &Service) {
    // A duplicate, as commands that take long look at it.
    let duplicates = service.quit.try_clone().and_then(|quit| {
        let release = service.release.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok((quit, release))
    });
    let (quit, release) = match duplicates {
        Ok(duplicates) => duplicates,
        Err(error) => {
            log::error!("the gdb server cannot start: {error}");
            return;
        }
    };
    let is_over: IsOver = Arc::new(move || {
        is_readable(quit.as_fd()) || release.as_ref().is_some_and(|release| is_readable(release.as_fd()))
    });
    let mut server = Server { listener, service, session, door: Door::default(), client: None, is_over };
    loop {
        match server.turn() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log::error!("the gdb server cannot wait for events: {error}");
                return;
            }
        }
    }
}

type IsOver = Arc<dyn Fn() -> bool + Send + Sync>;

/// Whether there is something to read from a descriptor.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// A timeout that is over when the first of these is.
fn until(times: [Option<Duration>; 3]) -> PollTimeout {
    let Some(left) = times.into_iter().flatten().min() else { return PollTimeout::NONE };
    // Rounded up, or it would spin through the last part.
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

struct Server<'a, M: Machine> {
    listener: &'a Listener,
    service: &'a Service,
    session: Session<M>,
    door: Door,
    client: Option<Client<M>>,
    is_over: IsOver,
}

/// What `poll` found.
#[derive(Default)]
struct Found {
    quit: bool,
    listener: bool,
    release: bool,
    client: Ready,
    /// Somebody at the door has said something, or has been there for long.
    door: bool,
}

impl<M: Machine> Server<'_, M> {
    /// Waits for something and serves it; whether to go on.
    fn turn(&mut self) -> io::Result<bool> {
        let found = self.wait()?;
        if found.quit {
            // The guest's end may be told yet.
            if let Some(client) = &mut self.client {
                client.tell_events(&mut self.session).ok();
                client.flush().ok();
            }
            return Ok(false);
        }
        // The client first: one that has gone makes room for the one that knocks.
        if let Some(client) = &mut self.client {
            if let Err(goodbye) = client.serve(&mut self.session, found.client)
                && !self.let_go(&goodbye)
            {
                return Ok(false);
            }
        } else {
            // Nobody is told; the queue stays short.
            self.session.idle();
        }
        if found.release {
            self.release();
        }
        if found.listener {
            self.accept();
        }
        if found.door {
            for (stream, peer, begun) in self.door.look() {
                if !self.enter(stream, peer, &begun) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn wait(&mut self) -> io::Result<Found> {
        let settles = self.session.machine.settle();
        let paused = self.door.pause.left(Instant::now());
        let events = self.session.machine.event_fd();
        // While the target stands still for a client, an event is nobody's business yet.
        let has_let_go = self.session.process != Process::Attached;
        let wants_events = has_let_go || self.client.as_ref().is_none_or(Client::is_running);
        let when = |wanted: bool, flags| if wanted { flags } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.service.quit.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), when(paused.is_none(), PollFlags::POLLIN)),
            PollFd::new(events, when(wants_events, PollFlags::POLLIN)),
        ];
        let release = self.service.release.as_ref().map(|release| {
            fds.push(PollFd::new(release.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let client = self.client.as_ref().map(|client| {
            let flags =
                when(client.has_output(), PollFlags::POLLOUT) | when(client.wants_input(), PollFlags::POLLIN);
            fds.push(PollFd::new(client.as_fd(), flags));
            fds.len() - 1
        });
        let door = fds.len();
        fds.extend(
            self.door.waiting.iter().map(|waiting| PollFd::new(waiting.stream.as_fd(), PollFlags::POLLIN)),
        );
        let timeout = match &self.client {
            Some(client) if client.is_waiting() => PollTimeout::ZERO,
            _ => until([self.door.timeout(), paused, settles]),
        };
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Found::default()),
            Err(error) => return Err(error.into()),
        }
        let events = |index: usize| fds.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let is_ready = |index: usize| !events(index).is_empty();
        let of_client = client.map_or(PollFlags::empty(), events);
        let broken = of_client.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        let listener = is_ready(1);
        Ok(Found {
            quit: is_ready(0),
            listener,
            release: release.is_some_and(is_ready),
            client: Ready {
                input: of_client.intersects(PollFlags::POLLIN),
                knock: listener,
                // What it has sent before is served first.
                broken: broken && !of_client.intersects(PollFlags::POLLIN),
            },
            door: (door..fds.len()).any(is_ready) || self.door.is_overdue(),
        })
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, peer)) => {
                let asked = self.service.gate.ask(&peer);
                // Asked behind the question: it was about this peer if it is there still.
                let refusal = match stream.is_connected() {
                    true => asked.err(),
                    false => Some("it has gone".into()),
                };
                if let Some(why) = &refusal {
                    self.door.say(&format!("{peer} is not served: {why}"));
                }
                self.door.add(stream, peer, refusal);
            }
            Err(error) => {
                if self.door.pause.after(&error, Instant::now()) {
                    self.door.say(&format!("a debugger cannot be let in: {error}"));
                }
            }
        }
    }

    /// Lets somebody in who has begun as a debugger does; whether to go on.
    fn enter(&mut self, stream: Stream, peer: Peer, begun: &[u8]) -> bool {
        if let Some(client) = &self.client {
            if !self.service.takeover {
                let how = match self.service.release {
                    Some(_) => "; 'vmm release' or --gdb-takeover let another one in",
                    None => "",
                };
                let since = ago(client.since);
                let why = format!("another debugger is attached: {}, since {since}{how}", client.peer);
                self.door.say(&format!("{peer} is not served: {why}"));
                self.door.refuse(stream, peer, why, begun);
                return true;
            }
            log::warn!("{peer} takes the place of {}", client.peer);
            self.client = None;
            // The next one stops the guest anyway.
            self.session.leave();
        }
        self.session.attach();
        log::info!("a debugger has attached: {peer}");
        let mut client = Client::new(stream, peer, begun, Arc::clone(&self.is_over));
        client.arm(&mut self.session);
        let goodbye = client.serve(&mut self.session, Ready { input: true, ..Ready::default() });
        self.client = Some(client);
        match goodbye {
            Ok(()) => true,
            Err(goodbye) => self.let_go(&goodbye),
        }
    }

    /// Whoever is attached is let go, because the user has asked for it: the guest does what it does when
    /// a debugger is lost, but does not end.
    fn release(&mut self) {
        if let Some(release) = &self.service.release {
            // The count is of no interest.
            nix::unistd::read(release, &mut [0; 8]).ok();
        }
        let Some(client) = self.client.take() else { return };
        log::warn!("the debugger is let go, as it was asked for: {}", client.peer);
        match self.session.process {
            Process::Detached => return,
            // It has ended the guest, and the user wants that debugger gone.
            Process::Killed => return self.session.kill(),
            Process::Attached => {}
        }
        match self.service.on_lost {
            OnLost::Continue => self.session.detach(),
            OnLost::Hold | OnLost::Quit => self.session.leave(),
        }
    }

    /// Lets the client go, and does with the guest what is to be done; whether to go on.
    fn let_go(&mut self, goodbye: &Goodbye) -> bool {
        if let Some(mut client) = self.client.take() {
            client.flush().ok();
        }
        let session = &mut self.session;
        match (goodbye, self.service.on_lost) {
            // It has ended the guest, and has not had it begin again.
            (Goodbye::Detach | Goodbye::Lost(_), _) if session.process == Process::Killed => {
                session.kill();
                return false;
            }
            (Goodbye::Detach | Goodbye::Lost(_), _) if session.process == Process::Detached => {}
            (Goodbye::Detach, _) => {
                session.detach();
                log::info!("the debugger has detached; the guest runs on");
            }
            (Goodbye::Lost(why), OnLost::Continue) => {
                session.detach();
                log::warn!("the debugger is lost ({why}); the guest runs on");
            }
            (Goodbye::Lost(why), OnLost::Hold) => {
                session.leave();
                log::warn!("the debugger is lost ({why}); the guest is held for the next one");
            }
            (Goodbye::Lost(why), OnLost::Quit) => {
                log::warn!("the debugger is lost ({why}); the guest ends");
                session.kill();
                return false;
            }
            (Goodbye::Kill, _) => {
                session.kill();
                return false;
            }
            (Goodbye::Ended, _) => return false,
        }
        true
    }
}

/// A moment in words: the time of day, and how long ago that was.
fn ago(since: SystemTime) -> String {
    let day = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % (24 * 60 * 60);
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    let (hours, minutes, rest) = (day / 3600, day / 60 % 60, day % 60);
    let long = match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    };
    format!("{hours:02}:{minutes:02}:{rest:02} UTC ({long} ago)")
}

/// Clients at the door, at most; then the one that has been there longest is let go.
const MOST_WAITING: usize = 16;
/// How long one may stand there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often something is said about those at the door, at most: anybody can knock as often as he likes.
const BETWEEN_WORDS: Duration = Duration::from_secs(1);
/// Bytes of a first packet that is refused.
const LONGEST_REFUSED: usize = 8 << 10;

/// Those who have connected, and have not begun or are being refused.
#[derive(Debug, Default)]
struct Door {
    waiting: Vec<Waiting>,
    /// While nobody is accepted.
    pause: Pause,
    /// Nothing more is said until then, and what was not is counted.
    silent_until: Option<Instant>,
    unsaid: u64,
}

/// Somebody at the door.
#[derive(Debug)]
struct Waiting {
    stream: Stream,
    peer: Peer,
    until: Instant,
    /// Why it is not let in.
    refusal: Option<String>,
    /// What it has sent, if it is refused.
    said: Vec<u8>,
}

/// What becomes of one at the door.
enum Next {
    Stay,
    Enter(Vec<u8>),
    Go,
    /// It has begun as no debugger does.
    Stranger(u8),
}

/// The first byte that no debugger sends.
fn noise(bytes: &[u8]) -> Option<u8> {
    let mut noise = None;
    Framer::default().feed(bytes, |item| {
        if let Item::Noise(byte) = item {
            noise.get_or_insert(byte);
        }
    });
    noise
}

impl Waiting {
    fn look(&mut self) -> Next {
        let mut buffer = [0; 4096];
        let begun = match self.stream.read(&mut buffer) {
            Ok(0) => return Next::Go,
            Ok(count) => &buffer[..count],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return if Instant::now() < self.until { Next::Stay } else { Next::Go };
            }
            Err(_) => return Next::Go,
        };
        match (self.said.first().or(begun.first()), &self.refusal) {
            (Some(first), _) if !may_begin(*first) => Next::Stranger(*first),
            // A method of HTTP may look like a packet; then the rest of its line comes with it.
            (_, None) => noise(begun).map_or_else(|| Next::Enter(begun.to_vec()), Next::Stranger),
            (_, Some(_)) => {
                self.said.extend(begun);
                self.answer()
            }
        }
    }

    /// Answers the first packet of one that is refused.
    fn answer(&self) -> Next {
        let Some(why) = &self.refusal else { return Next::Stay };
        let mut has_packet = false;
        Framer::default().feed(&self.said, |item| {
            has_packet |= matches!(item, Item::Packet(_) | Item::Damaged | Item::TooLong)
        });
        if !has_packet && self.said.len() < LONGEST_REFUSED {
            return Next::Stay;
        }
        // gdb shows it as the failure of its first question. If it is gone already, it needs no words.
        self.stream.write(&[b"+", &frame(format!("E.{why}").as_bytes())[..]].concat()).ok();
        Next::Go
    }
}

impl Door {
    /// How long until it is looked at without being asked to.
    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let ends = self.waiting.iter().map(|waiting| waiting.until);
        ends.min().map(|next| next.saturating_duration_since(now))
    }

    fn is_overdue(&self) -> bool {
        self.waiting.iter().any(|waiting| Instant::now() >= waiting.until)
    }

    fn add(&mut self, stream: Stream, peer: Peer, refusal: Option<String>) {
        if self.waiting.len() == MOST_WAITING {
            // One that is refused anyway, if there is: others of this machine may knock as often as they like.
            let refused = self.waiting.iter().position(|waiting| waiting.refusal.is_some());
            let first = self.waiting.remove(refused.unwrap_or(0));
            self.say(&format!("{} has said nothing, and others wait; it is let go", first.peer));
        }
        let until = Instant::now() + PATIENCE;
        self.waiting.push(Waiting { stream, peer, until, refusal, said: Vec::new() });
    }

    /// Refuses one that has begun.
    fn refuse(&mut self, stream: Stream, peer: Peer, why: String, begun: &[u8]) {
        self.add(stream, peer, Some(why));
        if let Some(last) = self.waiting.last_mut() {
            last.said.extend(begun);
            if matches!(last.answer(), Next::Go) {
                self.waiting.pop();
            }
        }
    }

    /// Looks what they have said; who comes in, and how it has begun.
    fn look(&mut self) -> Vec<(Stream, Peer, Vec<u8>)> {
        let mut entering = Vec::new();
        let mut words = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            match waiting.look() {
                Next::Stay => self.waiting.push(waiting),
                Next::Enter(begun) => entering.push((waiting.stream, waiting.peer, begun)),
                Next::Go => {}
                Next::Stranger(byte) => words.push(format!(
                    "{} is let go: it begins with byte {byte:#04x}, as no debugger does",
                    waiting.peer
                )),
            }
        }
        words.iter().for_each(|words| self.say(words));
        entering
    }

    /// Says something about somebody at the door, unless something was just said.
    fn say(&mut self, words: &str) {
        let now = Instant::now();
        if self.silent_until.is_some_and(|until| now < until) {
            self.unsaid += 1;
            return;
        }
        self.silent_until = Some(now + BETWEEN_WORDS);
        match std::mem::take(&mut self.unsaid) {
            0 => log::warn!("gdb's port: {words}"),
            more => log::warn!("gdb's port: {words} ({more} more such lines are left out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_whose_method_is_a_packet_is_no_debuggers() {
        for request in [&b"$k#6b / HTTP/1.1\r\n"[..], b"+ / HTTP/1.1\r\n", b"-$?#3f\r\n"] {
            assert!(noise(request).is_some());
        }
        for begun in [&b"+$qSupported#37"[..], b"$qSup", b"\x03", b"\xff\xf3g+", b"+"] {
            assert_eq!(noise(begun), None);
        }
    }

    #[test]
    fn moments_in_words() {
        let text = ago(SystemTime::now() - Duration::from_secs(600));
        assert!(text.ends_with("UTC (10 min ago)"), "{text}");
        assert!(ago(SystemTime::now()).ends_with(" s ago)"));
    }
}
