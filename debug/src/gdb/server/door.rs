//! Those who have connected, and have not begun or are being refused.

use crate::gdb::accept::Pause;
use crate::gdb::endpoint::{Peer, Stream};
use crate::gdb::packet::{Framer, Item, frame, may_begin};
use arch::words::{counted, verb};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

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
pub(super) struct Door {
    pub(super) waiting: Vec<Waiting>,
    /// While nobody is accepted.
    pub(super) pause: Pause,
    /// Nothing more is said until then, and what was not is counted.
    silent_until: Option<Instant>,
    unsaid: u64,
}

/// Somebody at the door.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) stream: Stream,
    peer: Peer,
    until: Instant,
    /// Why it is not let in.
    refusal: Option<String>,
    /// What it has sent, if it is refused, or has begun and waits for its turn.
    said: Vec<u8>,
}

/// Somebody who has begun as a debugger does.
#[derive(Debug)]
pub(super) struct Entering {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
    pub(super) begun: Vec<u8>,
    /// How long it may wait for its turn.
    until: Instant,
}

impl Entering {
    /// Whether it has waited for as long as it may.
    pub(super) fn is_overdue(&self) -> bool {
        Instant::now() >= self.until
    }
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
    /// Whether it has begun as a debugger does, and is to come in when it can: what it says from then on stays in its
    /// socket.
    pub(super) fn is_in_turn(&self) -> bool {
        self.refusal.is_none() && !self.said.is_empty()
    }

    fn look(&mut self) -> Next {
        if self.is_in_turn() {
            // One that has gone meanwhile wants nothing any more.
            let has_gone = self.stream.has_hung_up();
            return if has_gone { Next::Go } else { Next::Enter(std::mem::take(&mut self.said)) };
        }
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
    pub(super) fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let ends = self.waiting.iter().map(|waiting| waiting.until);
        ends.min().map(|next| next.saturating_duration_since(now))
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.waiting.iter().any(|waiting| Instant::now() >= waiting.until)
    }

    pub(super) fn add(&mut self, stream: Stream, peer: Peer, refusal: Option<String>) {
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
    pub(super) fn refuse(&mut self, stream: Stream, peer: Peer, why: String, begun: &[u8]) {
        self.add(stream, peer, Some(why));
        if let Some(last) = self.waiting.last_mut() {
            last.said.extend(begun);
            if matches!(last.answer(), Next::Go) {
                self.waiting.pop();
            }
        }
    }

    /// One that has begun waits for its turn, until then at most.
    pub(super) fn keep(&mut self, one: Entering) {
        self.add(one.stream, one.peer, None);
        if let Some(last) = self.waiting.last_mut() {
            (last.said, last.until) = (one.begun, one.until);
        }
    }

    /// Whether somebody waits for his turn.
    pub(super) fn has_turns(&self) -> bool {
        self.waiting.iter().any(Waiting::is_in_turn)
    }

    /// Looks what they have said; who comes in.
    pub(super) fn look(&mut self) -> Vec<Entering> {
        let mut entering = Vec::new();
        let mut words = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            match waiting.look() {
                Next::Stay => self.waiting.push(waiting),
                Next::Enter(begun) => {
                    let Waiting { stream, peer, until, .. } = waiting;
                    entering.push(Entering { stream, peer, begun, until });
                }
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
    pub(super) fn say(&mut self, words: &str) {
        let now = Instant::now();
        if self.silent_until.is_some_and(|until| now < until) {
            self.unsaid += 1;
            return;
        }
        self.silent_until = Some(now + BETWEEN_WORDS);
        match std::mem::take(&mut self.unsaid) {
            0 => log::warn!("gdb's port: {words}"),
            more => {
                let (lines, verb) = (counted(more, "more such line"), verb(more, "is", "are"));
                log::warn!("gdb's port: {words} ({lines} {verb} left out)");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// Whoever waits for his turn has it when he is still there, and is told apart from who waits for too long.
    #[test]
    fn one_in_turn_comes_in_unless_it_has_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let peer = Peer::Unix { user: None, process: None };
        let mut door = Door::default();
        let until = Instant::now() + PATIENCE;
        door.keep(Entering { stream: Stream::Unix(ours), peer, begun: b"$?#3f".to_vec(), until });
        assert!(door.has_turns() && door.waiting[0].until == until);
        let mut entering = door.look();
        assert_eq!(
            (entering.len(), &entering[0].begun[..], entering[0].is_overdue()),
            (1, &b"$?#3f"[..], false)
        );
        entering[0].until = Instant::now();
        assert!(entering[0].is_overdue());
        door.keep(entering.remove(0));
        drop(theirs);
        assert!(door.look().is_empty() && door.waiting.is_empty());
    }

    #[test]
    fn a_request_whose_method_is_a_packet_is_no_debuggers() {
        for request in [&b"$k#6b / HTTP/1.1\r\n"[..], b"+ / HTTP/1.1\r\n", b"-$?#3f\r\n"] {
            assert!(noise(request).is_some());
        }
        for begun in [&b"+$qSupported#37"[..], b"$qSup", b"\x03", b"\xff\xf3g+", b"+"] {
            assert_eq!(noise(begun), None);
        }
    }
}
