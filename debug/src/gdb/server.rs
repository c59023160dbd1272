//! The thread that serves debuggers: who is let in, who is attached, and what becomes of the guest
//! when that one has gone.
//!
//! One client at a time. Whoever connects stands at the door until its first bytes have come: one
//! that does not begin as a debugger does is let go without a word, one that may not come in, or comes
//! second, is told why in the answer to its first packet. Until then the guest is not touched.

mod door;

pub use super::readiness::is_readable;

use super::client::{Client, Goodbye, Ready};
use super::listener::{Admission, Listener, Peer, Stream};
use super::session::{Process, Session};
use crate::machine::Machine;
use door::Door;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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
        }
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
        let settles = self.session.debuggee.machine.settle();
        let paused = self.door.pause.left(Instant::now());
        let events = self.session.debuggee.machine.event_fd();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_words() {
        let text = ago(SystemTime::now() - Duration::from_secs(600));
        assert!(text.ends_with("UTC (10 min ago)"), "{text}");
        assert!(ago(SystemTime::now()).ends_with(" s ago)"));
    }
}
