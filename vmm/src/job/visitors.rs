//! Sessions of other processes, which have commands run in a job's guest (`vmm exec`): their frames are passed on, with a
//! session of the guest's for each.

use super::protocol::{self, Decoder, Frame, Kind, NO_SESSION};
use super::verdict::CANNOT;
use crate::control::door::{Comer, Comers, Door};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// A process that has a session.
#[derive(Debug)]
struct Visitor {
    stream: UnixStream,
    session: u16,
    decoder: Decoder,
    /// What waits to be sent to it.
    out: Vec<u8>,
    /// Its command has ended, or it has gone itself.
    is_over: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Visitors {
    door: Door,
    comers: Comers,
    all: Vec<Visitor>,
    /// The first that is a visitor's, and the next one's if nobody has it.
    first: u16,
    next: u16,
}

/// The most at a time, and the most bytes that wait for one: it has granted no more room than that.
const MOST: usize = 32;
const MOST_OUT: usize = 1 << 20;
/// Bytes that wait for the guest, from which on nothing more is heard of visitors.
const MOST_WAITING: usize = 256 << 10;
/// How often one is read before others, the guest and signals have their turn.
const TURN: usize = 8;

impl Visitors {
    /// None; the first gets this session.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(session: u16) -> io::Result<Visitors> {
        let (door, comers) = Door::new()?;
        Ok(Visitors { door, comers, all: Vec::new(), first: session, next: session })
    }

    /// By which they come.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Becomes readable when one has come.
    pub fn wake(&self) -> &EventFd {
        self.door.wake()
    }

    /// Their streams, and what each is waited for: one whose command is over is heard no more, and neither are those that
    /// say more than the guest takes, of which so many bytes `wait`. One that nothing is waited for is none of them: that
    /// it has gone would be reported without end.
    pub fn streams(&self, wait: usize) -> impl Iterator<Item = (&UnixStream, PollFlags)> {
        let all = self.all.iter().map(move |visitor| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !visitor.is_over && wait < MOST_WAITING);
            flags.set(PollFlags::POLLOUT, !visitor.out.is_empty());
            (&visitor.stream, flags)
        });
        all.filter(|(_, flags)| !flags.is_empty())
    }

    /// Lets those in that have come, and passes on what they all say, as far as the guest takes it.
    pub fn hear(&mut self, to_guest: &mut Vec<u8>) {
        // Of the count nothing is to be known.
        self.door.wake().read().ok();
        while let Some(comer) = self.comers.take() {
            let stream = match comer {
                Comer::Session(stream) => stream,
                Comer::Key(key) => {
                    protocol::put(to_guest, Kind::Key, NO_SESSION, &[key]);
                    continue;
                }
            };
            if let Err(error) = stream.set_nonblocking(true) {
                log::info!("whoever wants a command run cannot be let in: {error}");
                continue;
            }
            let (session, decoder) = (self.free_session(), Decoder::default());
            let mut visitor = Visitor { stream, session, decoder, out: Vec::new(), is_over: false };
            if self.all.len() < MOST {
                self.all.push(visitor);
            } else {
                visitor.refuse();
            }
        }
        for visitor in &mut self.all {
            visitor.hear(to_guest);
        }
        self.send();
    }

    /// A number that no session has: there are fewer of them.
    fn free_session(&mut self) -> u16 {
        loop {
            let session = self.next;
            self.next = session.wrapping_add(1).max(self.first);
            if !self.all.iter().any(|visitor| visitor.session == session) {
                return session;
            }
        }
    }

    /// Something the guest says to one of them.
    pub fn tell(&mut self, frame: &Frame, to_guest: &mut Vec<u8>) {
        let visitor = self.all.iter_mut().find(|visitor| visitor.session == frame.session);
        match visitor {
            // That it is over is always told.
            Some(visitor)
                if !visitor.is_over && (visitor.out.len() < MOST_OUT || frame.kind == Kind::Exit) =>
            {
                protocol::put(&mut visitor.out, frame.kind, frame.session, &frame.payload);
                visitor.is_over = frame.kind == Kind::Exit;
            }
            // What nobody reads any more is not to keep the command.
            _ => {
                let stream = match frame.kind {
                    Kind::Output => protocol::OUTPUT,
                    Kind::Errors => protocol::ERRORS,
                    _ => return,
                };
                let count = u32::try_from(frame.payload.len()).unwrap_or(0);
                let grant = [&[stream][..], &count.to_le_bytes()].concat();
                protocol::put(to_guest, Kind::Grant, frame.session, &grant);
            }
        }
    }

    /// Sends what waits, for as long at most, to those that read it.
    pub fn finish(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            self.send();
            let waits = self.all.iter().filter(|visitor| !visitor.out.is_empty());
            let mut polls: Vec<PollFd<'_>> =
                waits.map(|visitor| PollFd::new(visitor.stream.as_fd(), PollFlags::POLLOUT)).collect();
            let left = until.saturating_duration_since(Instant::now());
            if polls.is_empty() || left.is_zero() {
                return;
            }
            // Rounded up, so that the time has come by then.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut polls, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return log::debug!("cannot wait for those who have commands: {error}"),
            }
        }
    }

    /// Sends what waits, and forgets those that are done.
    pub fn send(&mut self) {
        self.all.retain_mut(|visitor| {
            let is_sent = visitor.send();
            !(visitor.is_over && is_sent)
        });
    }
}

impl Visitor {
    /// Tells one that is too many so, as a command of its that has ended.
    fn refuse(&mut self) {
        let words = format!("vmm: {MOST} others have commands in the guest already: try again later\n");
        protocol::put(&mut self.out, Kind::Errors, self.session, words.as_bytes());
        protocol::put(&mut self.out, Kind::Exit, self.session, &[0, CANNOT]);
        // It is the first that is said to it, for which there is room.
        self.send();
    }

    /// Whether the other end has been closed, with words that were not read yet or without.
    fn has_gone(&self) -> bool {
        let mut polls = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut polls, PollTimeout::ZERO).is_ok()
            && polls[0].revents().is_some_and(|came| came.contains(PollFlags::POLLHUP))
    }

    fn hear(&mut self, to_guest: &mut Vec<u8>) {
        let mut bytes = [0; 8192];
        for _ in 0..TURN {
            if self.is_over || to_guest.len() >= MOST_WAITING {
                return;
            }
            match (&self.stream).read(&mut bytes) {
                Ok(count) if count > 0 => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => return self.leave(to_guest),
            }
            loop {
                match self.decoder.take() {
                    // It has given up meanwhile: its command is not to begin.
                    Ok(Some(frame)) if frame.kind == Kind::Start && self.has_gone() => {
                        return self.leave(to_guest);
                    }
                    Ok(Some(frame)) if is_sessions(frame.kind) => {
                        protocol::put(to_guest, frame.kind, self.session, &frame.payload);
                    }
                    Ok(Some(_)) | Err(_) => return self.leave(to_guest),
                    Ok(None) => break,
                }
            }
        }
    }

    /// It has gone, or speaks another language: its command is told as one whose terminal has gone.
    fn leave(&mut self, to_guest: &mut Vec<u8>) {
        self.is_over = true;
        self.out.clear();
        let hang_up = u8::try_from(Signal::SIGHUP as i32).unwrap_or(0);
        protocol::put(to_guest, Kind::Signal, self.session, &[hang_up]);
    }

    /// Whether all is sent that can be.
    fn send(&mut self) -> bool {
        while !self.out.is_empty() {
            match (&self.stream).write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => self.out.clear(),
            }
        }
        true
    }
}

/// What a client may say of its session.
fn is_sessions(kind: Kind) -> bool {
    matches!(kind, Kind::Start | Kind::Input | Kind::Grant | Kind::Resize | Kind::Signal | Kind::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        std::iter::from_fn(|| decoder.take().unwrap()).collect()
    }

    #[test]
    fn frames_are_passed_on_both_ways() {
        let mut visitors = Visitors::new(2).unwrap();
        let (theirs, mut client) = UnixStream::pair().unwrap();
        assert!(visitors.door().clone().enter(Comer::Session(theirs)));
        let mut said = Vec::new();
        protocol::put(&mut said, Kind::Input, 77, b"typed");
        client.write_all(&said).unwrap();
        let mut to_guest = Vec::new();
        visitors.hear(&mut to_guest);
        assert_eq!(frames(&to_guest), [Frame { kind: Kind::Input, session: 2, payload: b"typed".to_vec() }]);
        for (kind, payload) in [(Kind::Output, &b"printed"[..]), (Kind::Exit, &[0, 3])] {
            visitors.tell(&Frame { kind, session: 2, payload: payload.to_vec() }, &mut to_guest);
        }
        visitors.send();
        assert_eq!(visitors.streams(0).count(), 0);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        let kinds: Vec<Kind> = frames(&heard).iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [Kind::Output, Kind::Exit]);
    }

    #[test]
    fn one_that_goes_or_is_hostile_leaves_its_command_a_signal() {
        for said in [&b""[..], b"nonsense that is no frame", &[6, 0, 0, 0, 0, 0, 0, 0]] {
            let mut visitors = Visitors::new(2).unwrap();
            let (theirs, mut client) = UnixStream::pair().unwrap();
            visitors.door().enter(Comer::Session(theirs));
            client.write_all(said).unwrap();
            drop(client);
            let mut to_guest = Vec::new();
            visitors.hear(&mut to_guest);
            assert_eq!(frames(&to_guest), [Frame { kind: Kind::Signal, session: 2, payload: vec![1] }]);
            assert_eq!(visitors.streams(0).count(), 0);
            // What its command prints is read, so that it comes to its end.
            to_guest.clear();
            let printed = Frame { kind: Kind::Errors, session: 2, payload: vec![0; 5] };
            visitors.tell(&printed, &mut to_guest);
            assert_eq!(frames(&to_guest)[0].payload, [protocol::ERRORS, 5, 0, 0, 0]);
        }
    }

    #[test]
    fn one_that_says_without_end_keeps_nobody_waiting() {
        let mut visitors = Visitors::new(2).unwrap();
        let mut clients = Vec::new();
        for _ in 0..2 {
            let (theirs, client) = UnixStream::pair().unwrap();
            visitors.door().clone().enter(Comer::Session(theirs));
            client.set_nonblocking(true).unwrap();
            clients.push(client);
        }
        let mut flood = Vec::new();
        protocol::put(&mut flood, Kind::Input, 1, &[b'x'; 4000]);
        let mut said = Vec::new();
        protocol::put(&mut said, Kind::Input, 1, b"short");
        clients[1].write_all(&said).unwrap();
        let mut to_guest = Vec::new();
        // A guest that takes nothing: what waits for it has an end, and the flood waits where it comes from.
        for turn in 0..200 {
            let before = to_guest.len();
            for _ in 0..40 {
                if clients[0].write(&flood).is_err() {
                    break;
                }
            }
            visitors.hear(&mut to_guest);
            assert!(to_guest.len() - before <= (TURN + 1) * 2 * 8192, "{turn}: {}", to_guest.len() - before);
        }
        assert!(to_guest.len() < 2 * MOST_WAITING);
        assert!(frames(&to_guest).iter().any(|frame| frame.session == 3 && frame.payload == b"short"));
        let listens = |visitors: &Visitors, wait| {
            visitors.streams(wait).filter(|(_, flags)| flags.contains(PollFlags::POLLIN)).count()
        };
        assert_eq!((listens(&visitors, to_guest.len()), listens(&visitors, 0)), (0, 2));
        // One whose command is over says nothing more, though it does not read what is left for it.
        for _ in 0..40 {
            let printed = Frame { kind: Kind::Output, session: 3, payload: vec![0; 30_000] };
            visitors.tell(&printed, &mut to_guest);
        }
        visitors.tell(&Frame { kind: Kind::Exit, session: 3, payload: vec![0, 0] }, &mut to_guest);
        visitors.send();
        let waits = visitors.streams(0).map(|(_, flags)| flags);
        assert!(waits.into_iter().any(|flags| flags == PollFlags::POLLOUT));
    }

    /// One that has come, and its client.
    fn visit(visitors: &Visitors) -> UnixStream {
        let (theirs, client) = UnixStream::pair().unwrap();
        assert!(visitors.door().enter(Comer::Session(theirs)));
        client
    }

    #[test]
    fn a_command_of_one_that_has_gone_is_not_begun() {
        let mut visitors = Visitors::new(2).unwrap();
        let mut said = Vec::new();
        protocol::put(&mut said, Kind::Start, 1, b"a command");
        let kinds = |to_guest: &[u8]| frames(to_guest).iter().map(|frame| frame.kind).collect::<Vec<_>>();
        let mut client = visit(&visitors);
        client.write_all(&said).unwrap();
        let mut to_guest = Vec::new();
        visitors.hear(&mut to_guest);
        assert_eq!(kinds(&to_guest), [Kind::Start]);
        // This one has typed more than is read in one turn.
        let mut gone = visit(&visitors);
        for _ in 0..20 {
            protocol::put(&mut said, Kind::Input, 1, &[b'x'; 4000]);
        }
        gone.write_all(&said).unwrap();
        drop(gone);
        to_guest.clear();
        visitors.hear(&mut to_guest);
        assert_eq!(kinds(&to_guest), [Kind::Signal]);
    }

    #[test]
    fn one_that_nothing_is_waited_for_is_not_polled_and_goes_in_the_end() {
        let mut visitors = Visitors::new(2).unwrap();
        let client = visit(&visitors);
        let mut to_guest = Vec::new();
        visitors.hear(&mut to_guest);
        drop(client);
        // The guest takes nothing.
        assert_eq!(visitors.streams(MOST_WAITING).count(), 0);
        assert_eq!(visitors.streams(0).count(), 1);
        visitors.hear(&mut to_guest);
        assert!(visitors.all.is_empty());
    }

    #[test]
    fn one_too_many_is_told_so() {
        let mut visitors = Visitors::new(2).unwrap();
        let mut clients = Vec::new();
        for _ in 0..=MOST {
            clients.push(visit(&visitors));
            visitors.hear(&mut Vec::new());
        }
        let mut heard = Vec::new();
        clients.pop().unwrap().read_to_end(&mut heard).unwrap();
        let heard = frames(&heard);
        assert!(String::from_utf8_lossy(&heard[0].payload).contains("32 others"));
        assert_eq!((heard[1].kind, &*heard[1].payload), (Kind::Exit, &[0, CANNOT][..]));
        assert_eq!(visitors.all.len(), MOST);
    }

    #[test]
    fn what_is_left_for_one_that_reads_is_sent_in_the_end() {
        let mut visitors = Visitors::new(2).unwrap();
        let (mut client, deaf) = (visit(&visitors), visit(&visitors));
        let mut to_guest = Vec::new();
        visitors.hear(&mut to_guest);
        for session in [2, 3] {
            for _ in 0..30 {
                let printed = Frame { kind: Kind::Output, session, payload: vec![0; 30_000] };
                visitors.tell(&printed, &mut to_guest);
            }
            visitors.tell(&Frame { kind: Kind::Exit, session, payload: vec![0, 3] }, &mut to_guest);
        }
        let reads = std::thread::spawn(move || {
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).unwrap();
            frames(&heard).len()
        });
        // The other one reads nothing, and has its time.
        visitors.finish(Duration::from_millis(500));
        drop((visitors, deaf));
        assert_eq!(reads.join().unwrap(), 31);
    }

    #[test]
    fn those_who_wait_at_the_door_are_no_more_than_have_room() {
        let mut visitors = Visitors::new(2).unwrap();
        let door = visitors.door().clone();
        let came = (0..1000).filter(|_| door.enter(Comer::Key(b'h'))).count();
        assert!((1..=64).contains(&came), "{came}");
        visitors.hear(&mut Vec::new());
        assert!(door.enter(Comer::Key(b'h')));
    }
}
