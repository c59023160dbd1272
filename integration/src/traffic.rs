//! Traffic between a guest and the host beside it, of which each side knows what has to come: bytes by connections both
//! ways, datagrams and their answers, and how long all of it takes. Either side may be the guest.

use crate::context::Chance;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// `case --traffic ADDRESS BYTES PACKETS TURNS SEED` is the side that asks, `case --traffic-serve PORT` the other one.
pub const ASK: &str = "--traffic";
/// See [`ASK`].
pub const SERVE: &str = "--traffic-serve";

/// What comes again and again in a stream; no multiple of anything that packets are cut by.
const PERIOD: usize = 61_441;
/// Bytes of the longest datagram, and datagrams on their way at a time.
const LONGEST: usize = 1400;
const WINDOW: u32 = 32;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a connection is for.
const BULK: u8 = b'b';
const ECHO: u8 = b'e';

/// Content that both sides know.
struct Content(Vec<u8>);

impl Content {
    fn new(seed: u64) -> Content {
        let mut chance = Chance::new(seed);
        // Twice, so that each piece of a period is contiguous.
        let once: Vec<u8> = (0..PERIOD).map(|_| chance.below(256).to_le_bytes()[0]).collect();
        Content([&once[..], &once].concat())
    }

    /// What stands at an offset, so many bytes of a period at most.
    fn at(&self, offset: u64, size: usize) -> &[u8] {
        let at = usize::try_from(offset % PERIOD as u64).unwrap_or(0);
        &self.0[at..at + size.min(PERIOD)]
    }

    /// Sends so many bytes.
    fn send(&self, stream: &mut TcpStream, count: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < count {
            let size = usize::try_from(count - sent).unwrap_or(PERIOD).min(PERIOD);
            stream.write_all(self.at(sent, size))?;
            sent += size as u64;
        }
        Ok(())
    }

    /// Takes so many; where the first of them is that is another, if there is one.
    fn take(&self, stream: &mut TcpStream, count: u64) -> io::Result<Option<u64>> {
        let (mut taken, mut bytes, mut wrong) = (0, vec![0; PERIOD], None);
        while taken < count {
            let most = usize::try_from(count - taken).unwrap_or(PERIOD).min(PERIOD);
            let size = stream.read(&mut bytes[..most])?;
            if size == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if wrong.is_none() && bytes[..size] != *self.at(taken, size) {
                let same =
                    bytes.iter().zip(self.at(taken, size)).take_while(|(one, other)| one == other).count();
                wrong = Some(taken + same as u64);
            }
            taken += size as u64;
        }
        Ok(wrong)
    }
}

/// A datagram's size and what is in it behind its number.
fn datagram(content: &Content, number: u32, salt: u64) -> Vec<u8> {
    let size = 8 + usize::try_from(u64::from(number) * 37 % (LONGEST as u64 - 8)).unwrap_or(0);
    [&number.to_le_bytes()[..], content.at(u64::from(number) * 13 + salt, size)].concat()
}

/// The seed of what datagrams hold, which both sides know without asking.
const DATAGRAMS: u64 = 77;

/// Serves at a port of an address, connections and datagrams, until this process ends.
///
/// # Errors
/// When nobody can listen there.
pub fn serve(at: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at)?;
    let place = listener.local_addr()?;
    let socket = UdpSocket::bind(place)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    thread::spawn(move || answer_datagrams(&socket));
    Ok(place)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut head = [0; 17];
    stream.read_exact(&mut head)?;
    let (numbers, _) = head[1..].as_chunks();
    let [count, seed] = [numbers[0], numbers[1]].map(u64::from_le_bytes);
    stream.set_nodelay(true)?;
    if head[0] == ECHO {
        let mut byte = [0];
        for _ in 0..count {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        return Ok(());
    }
    Content::new(seed).send(&mut stream, count)?;
    let wrong = Content::new(seed + 1).take(&mut stream, count)?;
    stream.write_all(&wrong.unwrap_or(u64::MAX).to_le_bytes())
}

/// Answers each datagram with one of the same number, and whether it was as it has to be.
fn answer_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let (content, mut bytes) = (Content::new(DATAGRAMS), [0; 0x1_0000]);
    loop {
        let (size, from) = match socket.recv_from(&mut bytes) {
            // Somebody has gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            other => other?,
        };
        let Some((number, _)) = bytes[..size].split_first_chunk() else { continue };
        let number = u32::from_le_bytes(*number);
        let is_good = datagram(&content, number, 0) == bytes[..size];
        let answer = [datagram(&content, number, 5), vec![u8::from(is_good)]].concat();
        socket.send_to(&answer, from)?;
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes each way that are compared.
    pub bytes: u64,
    /// Bytes that have come before the first wrong one, if there is one, each way.
    pub wrong: [Option<u64>; 2],
    /// How long they took, each way: to the side that asks, and from it.
    pub took: [Duration; 2],
    /// Datagrams that were sent, answered, and wrong either way.
    pub sent: u32,
    /// See there.
    pub answered: u32,
    /// See there.
    pub corrupted: u32,
    /// How long it takes to hear of a byte that was sent.
    pub turn: Duration,
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |took: Duration| self.bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9);
        write!(
            f,
            "same={} received={:.1}MB/s sent={:.1}MB/s datagrams={} answered={} corrupted={} turn={}us",
            if self.wrong == [None; 2] { "yes".into() } else { format!("{:?}", self.wrong) },
            rate(self.took[0]),
            rate(self.took[1]),
            self.sent,
            self.answered,
            self.corrupted,
            self.turn.as_micros()
        )
    }
}

/// Asks whoever serves at an address: so many bytes each way, datagrams, and bytes of which each is waited for.
///
/// # Errors
/// When it cannot be reached, or ends.
pub fn ask(to: SocketAddr, bytes: u64, packets: u32, turns: u64, seed: u64) -> io::Result<Traffic> {
    let mut traffic = Traffic { bytes, ..Traffic::default() };
    if bytes > 0 {
        bulk(to, seed, &mut traffic)?;
    }
    datagrams(to, packets, &mut traffic)?;
    if turns > 0 {
        let mut stream = begin(to, ECHO, turns, 0)?;
        let start = Instant::now();
        for turn in 0..turns {
            let mut byte = [turn.to_le_bytes()[0]];
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        traffic.turn = start.elapsed() / u32::try_from(turns).unwrap_or(u32::MAX);
    }
    Ok(traffic)
}

fn begin(to: SocketAddr, what: u8, count: u64, seed: u64) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[&[what][..], &count.to_le_bytes(), &seed.to_le_bytes()].concat())?;
    Ok(stream)
}

fn bulk(to: SocketAddr, seed: u64, traffic: &mut Traffic) -> io::Result<()> {
    let mut stream = begin(to, BULK, traffic.bytes, seed)?;
    let (come, gone) = (Content::new(seed), Content::new(seed + 1));
    let start = Instant::now();
    traffic.wrong[0] = come.take(&mut stream, traffic.bytes)?;
    traffic.took[0] = start.elapsed();
    let start = Instant::now();
    gone.send(&mut stream, traffic.bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = [0; 8];
    stream.read_exact(&mut said)?;
    traffic.took[1] = start.elapsed();
    traffic.wrong[1] = Some(u64::from_le_bytes(said)).filter(|at| *at != u64::MAX);
    // The other side ends in order.
    match stream.read(&mut said)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more comes than has been sent")),
    }
}

fn datagrams(to: SocketAddr, packets: u32, traffic: &mut Traffic) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (content, mut bytes) = (Content::new(DATAGRAMS), [0; 0x1_0000]);
    for first in (0..packets).step_by(WINDOW as usize) {
        let last = packets.min(first + WINDOW);
        for number in first..last {
            socket.send(&datagram(&content, number, 0))?;
            traffic.sent += 1;
        }
        let mut left = last - first;
        while left > 0 {
            let size = match socket.recv(&mut bytes) {
                Ok(size) => size,
                // Some are lost.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let number = bytes.first_chunk().map_or(u32::MAX, |it| u32::from_le_bytes(*it));
            let wanted = [datagram(&content, number, 5), vec![1]].concat();
            match wanted == bytes[..size] {
                // One that has come later than it was waited for.
                true if number < first => traffic.answered += 1,
                true => (traffic.answered, left) = (traffic.answered + 1, left - 1),
                false => (traffic.corrupted, left) = (traffic.corrupted + 1, left - 1),
            }
        }
    }
    Ok(())
}

/// Does what words behind [`ASK`] say, and prints what came of it.
///
/// # Errors
/// When it cannot be done.
pub fn carry_out(words: &[&str]) -> io::Result<()> {
    let [to, bytes, packets, turns, seed] = words else {
        return Err(io::Error::other("usage: case --traffic ADDRESS BYTES PACKETS TURNS SEED"));
    };
    let wrong = |_| io::Error::other("a number is none");
    let to = to.parse().map_err(io::Error::other)?;
    let [bytes, turns, seed] = [bytes, turns, seed].map(|it| it.parse::<u64>().map_err(wrong));
    let traffic = ask(to, bytes?, packets.parse().map_err(wrong)?, turns?, seed?)?;
    println!("guest: traffic {traffic}.");
    Ok(())
}

/// Serves at a port of all addresses, as the word behind [`SERVE`] says, and does not end.
///
/// # Errors
/// When nobody can listen there.
pub fn carry_out_serving(port: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    serve(([0, 0, 0, 0], port).into())?;
    println!("guest: serves at {port}.");
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_compared() {
        let place = serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let traffic = ask(place, 300_000, 100, 10, 5).unwrap();
        assert_eq!((traffic.wrong, traffic.sent, traffic.corrupted), ([None; 2], 100, 0), "{traffic}");
        assert!(traffic.answered > 90 && traffic.to_string().starts_with("same=yes"), "{traffic}");
    }

    #[test]
    fn what_is_wrong_is_found() {
        let (one, other) = (Content::new(1), Content::new(2));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut to, _) = listener.accept().unwrap();
        one.send(&mut from, 100).unwrap();
        let mut bytes = one.at(0, 100).to_vec();
        bytes[70] ^= 1;
        from.write_all(&bytes).unwrap();
        assert_eq!(one.take(&mut to, 100).unwrap(), None);
        assert_eq!(one.take(&mut to, 100).unwrap(), Some(70));
        drop(from);
        assert!(other.take(&mut to, 1).is_err());
    }
}
