//! The thread that serves debuggers: who is let in, who is attached, and what becomes of the guest
//! when that one has gone.
//!
//! One client at a time. Whoever connects stands at the door until its first bytes have come: one
//! that does not begin as a debugger does is let go without a word, one that may not come in, or comes
//! second, is told why in the answer to its first packet. Until then the guest is not touched.

mod door;
mod poller;

pub use super::readiness::is_readable;

use super::client::{Client, Goodbye, Ready};
use super::endpoint::{Admission, ListeningSocket, Peer, Stream};
use super::session::{Process, Session};
use crate::machine::{Extent, Machine};
use crate::patience::Patience;
use door::Door;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use poller::Poller;
use std::io;
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
    pub admission: Admission,
    /// What becomes of the guest when a debugger is lost.
    pub on_lost: OnLost,
    /// A debugger that comes second takes the place of the first.
    pub takeover: bool,
    /// What is told to one that is refused as another one is attached, in words: how that is let go.
    pub how_to_release: Option<String>,
    /// It looks for what a debugger says to a stop, for a bounded time, before it sleeps.
    pub looks: bool,
}

impl Service {
    /// Everybody is served until `quit` becomes readable, and nothing else is special.
    pub fn plain(quit: OwnedFd) -> Service {
        Service {
            quit,
            release: None,
            admission: Admission::open(),
            on_lost: OnLost::default(),
            takeover: false,
            how_to_release: None,
            looks: true,
        }
    }
}

/// Once a debugger that steps has been listened to alone for so long, others are looked at before it is again.
const OTHERS: Duration = Duration::from_millis(5);

type IsOver = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves debuggers until it is to end or the guest is over; returns then.
pub fn run<M: Machine>(listener: ListeningSocket, session: Session<M>, service: Service) {
    let mut server = match Server::new(listener, session, service) {
        Ok(server) => server,
        Err(error) => {
            log::error!("the gdb server cannot start: {error}");
            return;
        }
    };
    loop {
        match server.turn(None) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log::error!("the gdb server cannot wait for events: {error}");
                return;
            }
        }
    }
}

/// A timeout that is over when `left` is.
fn until(left: Option<Duration>) -> PollTimeout {
    let Some(left) = left else { return PollTimeout::NONE };
    // Rounded up, or it would spin through the last part.
    PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX)
}

/// Serves debuggers, a turn at a time.
pub(super) struct Server<M: Machine> {
    listener: ListeningSocket,
    service: Service,
    session: Session<M>,
    door: Door,
    client: Option<Client<M>>,
    is_over: IsOver,
    /// What is done as soon as all vCPUs stand still.
    deferred: Option<Deferred>,
    /// With what a debugger says to a stop...
    patience: Patience,
    /// ...and since when that is waited for, not awake any more.
    asleep: Option<Instant>,
    /// When it looked last for what others than the debugger want.
    polled: Instant,
}

/// What takes all vCPUs' standing still.
enum Deferred {
    /// Somebody comes in who has begun as a debugger does.
    Enter(Stream, Peer, Vec<u8>),
    /// The client is let go.
    LetGo(Goodbye),
    /// Likewise, because the user has asked for it.
    Release,
    /// The server ends, and the guest is debugged no more.
    Leave,
}

/// A server in somebody else's event loop.
pub(crate) struct Polled<M: Machine> {
    server: Server<M>,
    poller: Poller,
}

impl<M: Machine> std::fmt::Debug for Polled<M> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Polled").field("poller", &self.poller).finish_non_exhaustive()
    }
}

impl<M: Machine> Polled<M> {
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(listener: ListeningSocket, session: Session<M>, service: Service) -> io::Result<Polled<M>> {
        let mut polled = Polled { server: Server::new(listener, session, service)?, poller: Poller::new()? };
        polled.arm()?;
        Ok(polled)
    }

    fn arm(&mut self) -> io::Result<()> {
        let timeout = self.server.timeout();
        let interests = self.server.interests();
        self.poller.arm(&interests, timeout)
    }

    /// Nobody is served any more: waits for vCPUs' answers alone, and no longer than `most`.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn wait_for_vcpus(&mut self, most: Duration) -> io::Result<()> {
        let none = self.server.interests().into_iter().map(|(fd, _)| (fd, PollFlags::empty()));
        let mut interests: Vec<_> = none.collect();
        interests.push((self.server.session.debuggee.machine.event_fd(), PollFlags::POLLIN));
        self.poller.arm(&interests, Some(most))
    }

    /// Becomes readable when [`Self::process`] has something to do.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// Does what there is to do, for a bounded time; whether to go on.
    ///
    /// # Errors
    /// What the system says when it is asked what there is.
    pub fn process(&mut self) -> io::Result<bool> {
        let goes_on = self.server.turn(Some(Duration::ZERO))?;
        if goes_on {
            self.arm()?;
        }
        Ok(goes_on)
    }

    /// Lets whoever is connected go, as soon as all vCPUs stand still; whether to go on.
    ///
    /// # Errors
    /// As [`Self::process`].
    pub fn leave(&mut self) -> io::Result<bool> {
        let goes_on = match self.server.deferred {
            Some(_) => true,
            None => self.server.carry_out(Deferred::Leave),
        };
        if goes_on {
            self.arm()?;
        }
        Ok(goes_on)
    }
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

impl<M: Machine> Server<M> {
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(listener: ListeningSocket, session: Session<M>, service: Service) -> io::Result<Server<M>> {
        // Duplicates, as commands that take long look at them.
        let quit = service.quit.try_clone()?;
        let release = service.release.as_ref().map(OwnedFd::try_clone).transpose()?;
        let is_over: IsOver = Arc::new(move || {
            is_readable(quit.as_fd()) || release.as_ref().is_some_and(|release| is_readable(release.as_fd()))
        });
        let (door, client, deferred) = (Door::default(), None, None);
        Ok(Server {
            listener,
            service,
            session,
            door,
            client,
            is_over,
            deferred,
            patience: Patience::default(),
            asleep: None,
            polled: Instant::now(),
        })
    }

    /// Waits for something, for no longer than `most`, and serves it; whether to go on.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn turn(&mut self, most: Option<Duration>) -> io::Result<bool> {
        let found = self.wait(most)?;
        self.session.debuggee.machine.look();
        if found.quit {
            // The guest's end may be told yet.
            if let Some(client) = &mut self.client {
                client.tell_events(&mut self.session).ok();
                client.flush().ok();
            }
            self.end_killed();
            if self.session.process != Process::Killed {
                self.session.debuggee.tell_if_leaving();
            }
            return Ok(false);
        }
        if let Some(deferred) = self.deferred.take() {
            return Ok(self.carry_out(deferred) && (!self.door.has_turns() || self.look_at_door()));
        }
        // The client first: one that has gone makes room for the one that knocks.
        if let Some(client) = &mut self.client {
            if let Err(goodbye) = client.serve(&mut self.session, found.client)
                && !self.carry_out(Deferred::LetGo(goodbye))
            {
                return Ok(false);
            }
        } else {
            // Nobody is told; the queue stays short.
            self.session.idle();
        }
        if found.release && self.deferred.is_none() && !self.carry_out(Deferred::Release) {
            return Ok(false);
        }
        if found.listener {
            self.accept();
        }
        Ok(!(found.door || self.door.has_turns()) || self.look_at_door())
    }

    /// Lets those in who have begun as a debugger does; whether to go on. Whoever comes in waits for what is deferred,
    /// and for the last words of one that has gone, and is not refused for his sake.
    fn look_at_door(&mut self) -> bool {
        if self.deferred.is_some() {
            return true;
        }
        for one in self.door.look() {
            let has_gone = !self.service.takeover && self.client.as_ref().is_some_and(Client::has_hung_up);
            if self.deferred.is_some() || has_gone && !one.is_overdue() {
                self.door.keep(one);
            } else if !self.carry_out(Deferred::Enter(one.stream, one.peer, one.begun)) {
                return false;
            }
        }
        true
    }

    /// Does something that takes all vCPUs' standing still, or puts it off until they do; whether to go on.
    fn carry_out(&mut self, what: Deferred) -> bool {
        let is_debugged = self.session.process == Process::Attached;
        let takes_stillness = match &what {
            Deferred::Enter(..) => self.client.is_none() || self.service.takeover,
            Deferred::LetGo(Goodbye::Ended | Goodbye::Kill) => false,
            Deferred::LetGo(Goodbye::Lost(_)) => is_debugged && self.service.on_lost != OnLost::Quit,
            Deferred::LetGo(Goodbye::Detach) | Deferred::Release | Deferred::Leave => is_debugged,
        };
        if takes_stillness && self.session.debuggee.machine.prepare(Extent::Whole).is_pending() {
            self.deferred = Some(what);
            return true;
        }
        match what {
            Deferred::Enter(stream, peer, begun) => self.enter(stream, peer, &begun),
            Deferred::LetGo(goodbye) => self.let_go(&goodbye),
            Deferred::Release => {
                self.release();
                true
            }
            Deferred::Leave => {
                if let Some(mut client) = self.client.take() {
                    client.flush().ok();
                }
                if self.session.process == Process::Attached {
                    self.session.detach();
                }
                self.end_killed();
                false
            }
        }
    }

    /// What is waited for, and for what of it.
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        // While the target stands still for a client, an event is nobody's business yet, unless vCPUs have been asked
        // something.
        let has_let_go = self.session.process != Process::Attached;
        let is_served = self.client.as_ref().is_some_and(|client| !client.is_running());
        let wants_events = has_let_go || !is_served || self.session.debuggee.machine.is_asking();
        let when = |wanted: bool, flags| if wanted { flags } else { PollFlags::empty() };
        let is_free = self.deferred.is_none();
        let is_open = self.door.pause.left(Instant::now()).is_none();
        let mut interests = vec![
            (self.service.quit.as_fd(), PollFlags::POLLIN),
            (self.listener.as_fd(), when(is_open, PollFlags::POLLIN)),
            (self.session.debuggee.machine.event_fd(), when(wants_events, PollFlags::POLLIN)),
        ];
        let release = self.service.release.iter();
        interests.extend(release.map(|release| (release.as_fd(), when(is_free, PollFlags::POLLIN))));
        interests.extend(self.client.iter().map(|client| {
            let input = when(is_free && client.wants_input() && !client.is_held_up(), PollFlags::POLLIN);
            (client.as_fd(), when(client.has_output(), PollFlags::POLLOUT) | input)
        }));
        let waiting = self.door.waiting.iter();
        let looks = |it: &door::Waiting| when(is_free && !it.is_in_turn(), PollFlags::POLLIN);
        interests.extend(waiting.map(|it| (it.stream.as_fd(), looks(it))));
        interests
    }

    /// How long until there is something to do though nothing has happened.
    pub fn timeout(&mut self) -> Option<Duration> {
        let settles = self.session.debuggee.machine.settle();
        match &self.client {
            Some(client) if client.is_waiting() && self.deferred.is_none() => Some(Duration::ZERO),
            // Nobody is looked at while something is put off.
            _ => [
                self.door.timeout().filter(|_| self.deferred.is_none()),
                self.door.pause.left(Instant::now()),
                settles,
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }

    fn wait(&mut self, most: Option<Duration>) -> io::Result<Found> {
        let timeout = match self.timeout().into_iter().chain(most).min() {
            Some(Duration::ZERO) => PollTimeout::ZERO,
            left => until(left),
        };
        // A debugger that steps has its next words there as soon as it has read of the stop.
        let is_told = self.client.as_mut().is_some_and(Client::take_told_stop);
        if self.service.looks && is_told && timeout != PollTimeout::ZERO && self.deferred.is_none() {
            if self.polled.elapsed() >= OTHERS
                && let Some(found) = self.poll(PollTimeout::ZERO)?
            {
                self.asleep = None;
                return Ok(found);
            }
            if let Some(client) = self.client.as_ref().filter(|client| client.is_to_speak()) {
                let begin = Instant::now();
                self.asleep = None;
                if self.patience.look(|| client.hears().then_some(())).is_some() {
                    // What it has said is read; that it has gone is for whoever serves it.
                    let client = Ready { input: client.is_at_end(), ..Ready::default() };
                    return Ok(Found { client, door: self.door.is_overdue(), ..Found::default() });
                }
                self.asleep = Some(begin);
            }
        }
        let found = self.poll(timeout)?.unwrap_or_default();
        // What else has come says nothing of the debugger.
        if found.client.input
            && let Some(begin) = self.asleep.take()
        {
            self.patience.slept(begin.elapsed());
        }
        Ok(found)
    }

    /// What there is; `None` where nothing has come, and nothing is to be waited for.
    fn poll(&mut self, timeout: PollTimeout) -> io::Result<Option<Found>> {
        let interests = self.interests();
        // In the order of the interests.
        let release = self.service.release.as_ref().map(|_| 3);
        let client = self.client.as_ref().map(|_| 3 + usize::from(release.is_some()));
        let door = 3 + usize::from(release.is_some()) + usize::from(client.is_some());
        // Of one at the door who is not looked at, `poll` would tell all the same that it has gone, again and again.
        let is_listed = |index: usize, flags: &PollFlags| index < door || !flags.is_empty();
        let listed = interests.iter().enumerate().filter(|(index, (_, flags))| is_listed(*index, flags));
        let mut fds: Vec<PollFd<'_>> = listed.map(|(_, (fd, flags))| PollFd::new(*fd, *flags)).collect();
        let ready = match poll(&mut fds, timeout) {
            Ok(0) => false,
            Ok(_) => true,
            Err(nix::errno::Errno::EINTR) => return Ok(Some(Found::default())),
            Err(error) => return Err(error.into()),
        };
        let events = |index: usize| fds.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let is_ready = |index: usize| !events(index).is_empty();
        let of_client = client.map_or(PollFlags::empty(), events);
        let broken = of_client.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        let (listener, input) = (is_ready(1), of_client.intersects(PollFlags::POLLIN));
        let found = Found {
            quit: is_ready(0),
            listener,
            release: release.is_some_and(is_ready),
            // What it has sent before is served first.
            client: Ready { input, knock: listener, broken: broken && !input },
            door: (door..fds.len()).any(is_ready) || self.door.is_overdue(),
        };
        self.polled = Instant::now();
        Ok((ready || found.door).then_some(found))
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, peer)) => {
                let asked = self.service.admission.ask(&peer);
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
                let how =
                    self.service.how_to_release.as_ref().map(|how| format!("; {how}")).unwrap_or_default();
                let since = ago(client.since);
                let why = format!("another debugger is attached: {}, since {since}{how}", client.peer);
                self.door.say(&format!("{peer} is not served: {why}"));
                self.door.refuse(stream, peer, why, begun);
                return true;
            }
            log::warn!("{peer} takes the place of {}", client.peer);
            self.client = None;
            // The next one stops the guest anyway.
            self.session.leave_held();
        }
        self.session.attach();
        log::info!("a debugger has attached: {peer}");
        let mut client = Client::new(stream, peer, begun, Arc::clone(&self.is_over));
        client.arm(&mut self.session);
        let goodbye = client.serve(&mut self.session, Ready { input: true, ..Ready::default() });
        self.client = Some(client);
        match goodbye {
            Ok(()) => true,
            // It may have let the guest run before it went.
            Err(goodbye) => self.carry_out(Deferred::LetGo(goodbye)),
        }
    }

    /// The server ends: a guest that its debugger has ended does not begin again any more.
    fn end_killed(&mut self) {
        if self.session.process == Process::Killed {
            self.session.kill();
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
            // It may have been about to attach again.
            Process::Detached => return self.session.debuggee.give_back(),
            // It has ended the guest, and the user wants that debugger gone.
            Process::Killed => return self.session.kill(),
            Process::Attached => {}
        }
        match self.service.on_lost {
            OnLost::Continue => self.session.detach(),
            OnLost::Hold | OnLost::Quit => self.session.leave_held(),
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
            (Goodbye::Detach | Goodbye::Lost(_), _) if session.process == Process::Detached => {
                // It may have been about to attach again.
                session.debuggee.give_back();
            }
            (Goodbye::Detach, _) => {
                session.detach();
                log::info!("the debugger has detached; the guest runs on");
            }
            (Goodbye::Lost(why), OnLost::Continue) => {
                session.detach();
                log::warn!("the debugger is lost ({why}); the guest runs on");
            }
            (Goodbye::Lost(why), OnLost::Hold) => {
                session.leave_held();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::fake::{Still, host};
    use crate::gdb::endpoint::Endpoint;
    use crate::gdb::packet::frame;
    use crate::live::link::Wake;
    use crate::socket::Audience;
    use arch::Isa;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A debugger that has its next step there whenever it is looked for keeps nobody else waiting.
    #[test]
    #[cfg_attr(miri, ignore = "it has a socket")]
    fn who_steps_on_and_on_does_not_keep_others() {
        let quit = Wake::new().unwrap();
        let session = Session::new(
            Still::new(Isa::X86_64, 1, 4096).unwrap(),
            Arc::new(Engine::new(Isa::X86_64, host(), 1)),
        );
        let path = std::env::temp_dir().join(format!("debug-steps-{}.sock", std::process::id()));
        let address = Endpoint::parse(&format!("unix:{}", path.display())).unwrap();
        let listener = ListeningSocket::bind(&address, Audience::Owner).unwrap();
        let mut server = Server::new(listener, session, Service::plain(quit.duplicate().unwrap())).unwrap();
        let mut debugger = UnixStream::connect(&path).unwrap();
        debugger.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        let mut ask = |server: &mut Server<Still>, packet: &str| {
            debugger.write_all(&frame(packet.as_bytes())).unwrap();
            let begun = read.len();
            while !read[begun..].contains(&b'#') {
                if !server.turn(None).unwrap() {
                    return false;
                }
                let mut bytes = [0; 256];
                let count = debugger.read(&mut bytes).unwrap_or(0);
                read.extend(&bytes[..count]);
            }
            true
        };
        assert!(ask(&mut server, "QStartNoAckMode"));
        assert!(ask(&mut server, "vCont;s:1"));
        let other = UnixStream::connect(&path).unwrap();
        let begin = Instant::now();
        while server.door.waiting.is_empty() && begin.elapsed() < Duration::from_secs(60) {
            assert!(ask(&mut server, "vCont;s:1"));
        }
        assert!(!server.door.waiting.is_empty(), "nobody else gets in");
        quit.ring();
        while ask(&mut server, "vCont;s:1") {
            assert!(begin.elapsed() < Duration::from_secs(60), "it does not end");
        }
        drop(other);
    }

    #[test]
    fn moments_in_words() {
        let text = ago(SystemTime::now() - Duration::from_secs(600));
        assert!(text.ends_with("UTC (10 min ago)"), "{text}");
        assert!(ago(SystemTime::now()).ends_with(" s ago)"));
    }
}
