//! Sessions of other processes, which have commands run in a job's guest (`vmm exec`): their frames are passed on, with a
//! session of the guest's for each.

use super::protocol::{self, Decoder, Frame, Kind, NO_SESSION};
use crate::control::door::{Comer, Door};
use nix::sys::signal::Signal;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
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
    comers: Receiver<Comer>,
    all: Vec<Visitor>,
    /// The first that is a visitor's, and the next one's if nobody has it.
    first: u16,
    next: u16,
}

/// The most at a time, and the most bytes that wait for one: it has granted no more room than that.
const MOST: usize = 32;
const MOST_OUT: usize = 1 << 20;

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

    /// Their streams, and whether something waits to be sent by each.
    pub fn streams(&self) -> impl Iterator<Item = (&UnixStream, bool)> {
        self.all.iter().map(|visitor| (&visitor.stream, !visitor.out.is_empty()))
    }

    /// Lets those in that have come, and passes on what they all say.
    pub fn hear(&mut self, to_guest: &mut Vec<u8>) {
        self.door.wake().read().ok();
        while let Ok(comer) = self.comers.try_recv() {
            let stream = match comer {
                Comer::Session(stream) => stream,
                Comer::Key(key) => {
                    protocol::put(to_guest, Kind::Key, NO_SESSION, &[key]);
                    continue;
                }
            };
            if self.all.len() < MOST && stream.set_nonblocking(true).is_ok() {
                let (session, decoder) = (self.free_session(), Decoder::default());
                self.all.push(Visitor { stream, session, decoder, out: Vec::new(), is_over: false });
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
            Some(visitor) if !visitor.is_over && visitor.out.len() < MOST_OUT => {
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

    /// Sends what waits, and forgets those that are done.
    pub fn send(&mut self) {
        self.all.retain_mut(|visitor| {
            let is_sent = visitor.send();
            !(visitor.is_over && is_sent)
        });
    }
}

impl Visitor {
    fn hear(&mut self, to_guest: &mut Vec<u8>) {
        let mut bytes = [0; 8192];
        while !self.is_over {
            match (&self.stream).read(&mut bytes) {
                Ok(count) if count > 0 => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => return self.leave(to_guest),
            }
            loop {
                match self.decoder.take() {
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
        assert_eq!(visitors.streams().count(), 0);
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
            assert_eq!(visitors.streams().count(), 0);
            // What its command prints is read, so that it comes to its end.
            to_guest.clear();
            let printed = Frame { kind: Kind::Errors, session: 2, payload: vec![0; 5] };
            visitors.tell(&printed, &mut to_guest);
            assert_eq!(frames(&to_guest)[0].payload, [protocol::ERRORS, 5, 0, 0, 0]);
        }
    }
}
