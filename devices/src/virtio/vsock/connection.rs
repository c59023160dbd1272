//! One stream between a program of the guest's and one of the host's.
//!
//! A program of the host's that wants a port of the guest's writes `CONNECT PORT` and the end of a line, and reads
//! `OK PORT` and the end of a line when it has it, with the port that it has itself (as with Firecracker, docs/vsock.md).

use super::packet::{Header, op, shutdown};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vmm_sys_util::epoll::EventSet;

/// Bytes from the guest that wait to be taken by the host's program.
const ROOM: u32 = 256 << 10;
/// The guest hears that there is room again when so much has been taken since it was told last.
const WORTH_TELLING: u32 = ROOM / 4;
/// The most bytes of a program's word.
const LONGEST_WORD: usize = 32;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The host's program says what it wants.
    Asking,
    /// The guest has been asked, and has not answered.
    Asked,
    /// Bytes go both ways.
    Open,
}

/// What becomes of a connection by what the guest has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Stays,
    /// It is over, as the guest knows.
    Over,
    /// It is over, as the guest is to be told.
    Refused,
}

/// What is to be said to the guest of it, a bit each.
mod to_say {
    pub const REQUEST: u8 = 1;
    pub const RESPONSE: u8 = 1 << 1;
    pub const CREDIT: u8 = 1 << 2;
    pub const CREDIT_REQUEST: u8 = 1 << 3;
    pub const SHUTDOWN: u8 = 1 << 4;
    pub const RST: u8 = 1 << 5;
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    stage: Stage,
    host_port: u32,
    /// Of the word that a program of the host's is saying.
    word: Vec<u8>,
    to_say: u8,
    /// From the guest, for the stream.
    waiting: VecDeque<u8>,
    /// Bytes that have been taken by the stream, and those of which the guest has been told.
    taken: u32,
    told: u32,
    /// What the guest has room for, and has taken; bytes that were sent to it.
    peer_room: u32,
    peer_taken: u32,
    sent: u32,
    /// It has been asked for room, and has no more since.
    has_asked: bool,
    /// There may be something to read.
    is_readable: bool,
    /// Flags of shutdowns that the guest, and we, have said.
    guest_shut: u32,
    our_shut: u32,
}

impl Connection {
    fn new(stream: UnixStream, stage: Stage, host_port: u32) -> Connection {
        Connection {
            stream,
            stage,
            host_port,
            word: Vec::new(),
            to_say: 0,
            waiting: VecDeque::new(),
            taken: 0,
            told: 0,
            peer_room: 0,
            peer_taken: 0,
            sent: 0,
            has_asked: false,
            is_readable: true,
            guest_shut: 0,
            our_shut: 0,
        }
    }

    /// A program of the host's, which has said nothing yet, and gets this port.
    pub fn asking(stream: UnixStream, port: u32) -> Connection {
        Connection::new(stream, Stage::Asking, port)
    }

    /// One that the guest has asked for, and gets.
    pub fn asked(stream: UnixStream, header: &Header) -> Connection {
        let mut connection = Connection::new(stream, Stage::Open, header.dst_port);
        connection.to_say = to_say::RESPONSE;
        connection.credit(header);
        connection
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The port of the guest's that the host's program wants; none yet.
    ///
    /// # Errors
    /// It has gone, or says something else.
    pub fn asked_for(&mut self) -> io::Result<Option<u32>> {
        let wrong = || io::Error::other("it is to say CONNECT and a port");
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) if self.word.len() >= LONGEST_WORD => return Err(wrong()),
                Ok(_) => self.word.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let word = std::mem::take(&mut self.word);
        let word = std::str::from_utf8(&word).map_err(|_| wrong())?.trim_end_matches('\r');
        let (verb, port) = word.split_once(' ').ok_or_else(wrong)?;
        let port = port.trim().parse().map_err(|_| wrong())?;
        if !verb.eq_ignore_ascii_case("connect") || port == 0 {
            return Err(wrong());
        }
        (self.stage, self.to_say) = (Stage::Asked, to_say::REQUEST);
        Ok(Some(port))
    }

    /// The stream has news.
    pub fn has_news(&mut self, news: EventSet) {
        self.is_readable |= news.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP);
        self.flush();
        if self.stage == Stage::Asked && news.contains(EventSet::HANG_UP) {
            // It has not waited for the guest's answer, which may never come.
            self.to_say |= to_say::RST;
        }
    }

    fn credit(&mut self, header: &Header) {
        let credit = (header.buf_alloc, header.fwd_cnt);
        if credit != (self.peer_room, self.peer_taken) {
            (self.peer_room, self.peer_taken) = credit;
            // It is asked again when that is used up, too.
            self.has_asked = false;
            self.to_say &= !to_say::CREDIT_REQUEST;
        }
    }

    /// The guest has gone in order, and what it has sent has not been taken yet.
    pub fn is_owed(&self) -> bool {
        !self.waiting.is_empty()
            && self.guest_shut & shutdown::SENDS_NO_MORE != 0
            && self.to_say & to_say::RST == 0
    }

    /// What the guest says.
    pub fn hear(&mut self, header: &Header, bytes: &[u8]) -> Fate {
        self.credit(header);
        match (header.op, self.stage) {
            (op::RST, _) => return Fate::Over,
            (op::RESPONSE, Stage::Asked) => {
                self.stage = Stage::Open;
                let word = format!("OK {}\n", self.host_port);
                self.waiting.extend(word.bytes());
                // It is none of the guest's bytes.
                self.taken = self.taken.wrapping_sub(u32::try_from(word.len()).unwrap_or(0));
                self.flush();
            }
            (op::RW, Stage::Open) if self.guest_shut & shutdown::SENDS_NO_MORE == 0 => {
                // More than it was told that there is room for.
                if self.waiting.len() + bytes.len() > ROOM as usize + LONGEST_WORD {
                    return Fate::Refused;
                }
                self.waiting.extend(bytes);
                self.flush();
            }
            (op::CREDIT_REQUEST, _) => self.to_say |= to_say::CREDIT,
            (op::CREDIT_UPDATE, _) => {}
            (op::SHUTDOWN, Stage::Open) => {
                self.guest_shut |= header.flags & shutdown::BOTH;
                if self.guest_shut & shutdown::RECEIVES_NO_MORE != 0 {
                    // The stream's end of it is the peer's: what it writes goes nowhere.
                    self.stream.shutdown(Shutdown::Read).ok();
                }
                self.flush();
            }
            _ => return Fate::Refused,
        }
        Fate::Stays
    }

    /// Has the stream take what waits.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match self.stream.write(first) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    self.taken = self.taken.wrapping_add(u32::try_from(count).unwrap_or(0));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.to_say |= to_say::RST;
                    return;
                }
            }
        }
        if self.taken.wrapping_sub(self.told) >= WORTH_TELLING && self.stage == Stage::Open {
            self.to_say |= to_say::CREDIT;
        }
        if self.waiting.is_empty() && self.guest_shut & shutdown::SENDS_NO_MORE != 0 {
            self.stream.shutdown(Shutdown::Write).ok();
            // Both have said all (5.10.6.5).
            if self.guest_shut == shutdown::BOTH || self.our_shut & shutdown::SENDS_NO_MORE != 0 {
                self.to_say |= to_say::RST;
            }
        }
    }

    /// What is next for the guest: the fields of a header that are the connection's, and so many of `bytes`.
    pub fn say(&mut self, bytes: &mut [u8]) -> Option<(Header, usize)> {
        for (bit, op) in [
            (to_say::REQUEST, op::REQUEST),
            (to_say::RESPONSE, op::RESPONSE),
            (to_say::CREDIT, op::CREDIT_UPDATE),
        ] {
            if self.to_say & bit != 0 {
                self.to_say &= !bit;
                return Some((self.header(op, 0), 0));
            }
        }
        if self.to_say & to_say::RST != 0 {
            return Some((self.header(op::RST, 0), 0));
        }
        if let Some(count) = self.read(bytes) {
            return Some((self.header(op::RW, 0), count));
        }
        for (bit, op) in [(to_say::CREDIT_REQUEST, op::CREDIT_REQUEST), (to_say::SHUTDOWN, op::SHUTDOWN)] {
            if self.to_say & bit != 0 {
                self.to_say &= !bit;
                let flags = if bit == to_say::SHUTDOWN { self.our_shut } else { 0 };
                return Some((self.header(op, flags), 0));
            }
        }
        None
    }

    fn header(&mut self, op: u16, flags: u32) -> Header {
        self.told = self.taken;
        Header { op, flags, buf_alloc: ROOM, fwd_cnt: self.taken, ..Header::default() }
    }

    /// What the stream has for the guest, as far as that has room.
    fn read(&mut self, bytes: &mut [u8]) -> Option<usize> {
        let takes = self.stage == Stage::Open
            && self.is_readable
            && self.guest_shut & shutdown::RECEIVES_NO_MORE == 0
            && self.our_shut & shutdown::SENDS_NO_MORE == 0;
        if !takes {
            return None;
        }
        let on_its_way = self.sent.wrapping_sub(self.peer_taken);
        let room = self.peer_room.saturating_sub(on_its_way) as usize;
        let room = room.min(bytes.len());
        if room == 0 {
            // Once: a guest that takes nothing has nothing new to say.
            if !bytes.is_empty() && !std::mem::replace(&mut self.has_asked, true) {
                self.to_say |= to_say::CREDIT_REQUEST;
            }
            return None;
        }
        loop {
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => {
                    self.is_readable = false;
                    self.our_shut |= shutdown::SENDS_NO_MORE;
                    self.to_say |= to_say::SHUTDOWN;
                    self.flush();
                    return None;
                }
                Ok(count) => {
                    self.sent = self.sent.wrapping_add(u32::try_from(count).unwrap_or(0));
                    return Some(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    return None;
                }
                Err(_) => {
                    self.to_say |= to_say::RST;
                    return None;
                }
            }
        }
    }
}
