//! Clients that send what a script says, for tests and fuzzing, over a connection in memory.

use super::{Client, Goodbye, Ready};
use crate::gdb::endpoint::{Peer, Stream};
use crate::gdb::memory_stream::MemoryStream;
use crate::gdb::session::Session;
use crate::machine::Machine;
use std::io;
use std::sync::Arc;

/// A client that has attached, and whoever serves it, on one thread: nothing is served but by [`Self::serve`].
pub(crate) struct Scripted<'a, M: Machine> {
    /// What serves it.
    pub session: &'a mut Session<M>,
    client: Client<M>,
    theirs: MemoryStream,
    /// Bytes that waited to be sent to it, at most.
    pub most: usize,
}

impl<'a, M: Machine> Scripted<'a, M> {
    /// One that has said nothing yet.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(session: &'a mut Session<M>) -> io::Result<Scripted<'a, M>> {
        let (ours, theirs) = MemoryStream::pair()?;
        session.attach();
        let peer = Peer::Unix { user: None, process: None };
        let client = Client::new(Stream::Memory(ours), peer, &[], Arc::new(|| false));
        client.arm(session);
        Ok(Scripted { session, client, theirs, most: 0 })
    }

    /// Sends it, as far as there is room.
    pub fn send(&self, bytes: &[u8]) {
        // What the server does not read any more does not fit.
        let mut rest = bytes;
        while let Ok(count @ 1..) = self.theirs.write(rest) {
            rest = &rest[count..];
        }
    }

    /// Serves what there is; whether the client stays.
    pub fn serve(&mut self) -> bool {
        self.session.debuggee.machine.look();
        let ready = Ready { input: self.client.wants_input(), knock: true, broken: false };
        let mut served = self.turn(ready);
        // What a turn had no time for comes in the next ones.
        while served.is_ok() && self.has_more() {
            let ready = Ready { input: self.client.wants_input(), ..Ready::default() };
            served = self.turn(ready);
        }
        self.most = self.most.max(self.client.out.len());
        if served.is_err() {
            // As the server does it with one that it lets go.
            self.client.flush().ok();
        }
        served.is_ok()
    }

    fn turn(&mut self, ready: Ready) -> Result<(), Goodbye> {
        self.client.serve(self.session, ready)
    }

    /// Whether there is more that can be served at once.
    fn has_more(&self) -> bool {
        let is_readable = match &*self.client.stream {
            Stream::Memory(stream) => stream.is_readable(),
            Stream::Tcp(_) | Stream::Unix(_) => false,
        };
        self.client.is_waiting() || self.client.wants_input() && is_readable
    }

    /// What it has been sent and has not read.
    pub fn read(&self) -> Vec<u8> {
        let (mut read, mut buffer) = (Vec::new(), [0; 4 << 10]);
        while let Ok(count @ 1..) = self.theirs.read(&mut buffer) {
            read.extend(&buffer[..count]);
        }
        read
    }

    /// It goes, and reads what there is before.
    pub fn go(mut self) -> Vec<u8> {
        self.client.flush().ok();
        let read = self.read();
        self.session.detach();
        read
    }
}

/// Serves one client that sends `input` a packet at a time and goes; what it is sent. For tests and
/// fuzzing: it stops where a real client would be waited for.
///
/// # Errors
/// When the system gives no more descriptors.
pub fn converse<M: Machine>(session: &mut Session<M>, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut steps = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        // To the end of a packet, so that a stop is told before the next one; and less than a
        // connection holds, so that nothing waits.
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
/// When the system gives no more descriptors.
pub fn misbehave<M: Machine>(
    session: &mut Session<M>,
    steps: &[(&[u8], bool)],
) -> io::Result<(Vec<u8>, usize)> {
    let mut client = Scripted::new(session)?;
    let mut answer = Vec::new();
    for (piece, reads) in steps {
        client.send(piece);
        let stays = client.serve();
        if *reads {
            answer.extend(client.read());
        }
        if !stays {
            break;
        }
    }
    let most = client.most;
    answer.extend(client.go());
    Ok((answer, most))
}
