//! A network by passt(1): another program, started before the guest runs, which ends when its socket is closed. It has
//! the same addresses for the guest as our own has.
//!
//! passt connects to whatever address stands in a packet, with `--no-map-gw` too: a guest's frame to 127.0.0.1 reaches
//! this host's loopback (tried with Debian 12's). So frames go through a guard before it sees them.

use crate::error::NetError;
use crate::machine::config::UserNetConfig;
use devices::tell;
use devices::virtio::net::{HEADER, LONGEST_PACKET, Sent};
use net::{GATEWAY, GUEST, Guard, PREFIX, Protocol, RESOLVER, Reach, Stack};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// Bytes before each frame: its length (QEMU's `-netdev stream`).
const LENGTH: usize = 4;

/// Year, month, day.
type Day = (u32, u32, u32);

/// The day of the oldest version that is taken unasked. One of 2023-03-09 (Debian 12's) was seen to bring a connection what
/// was never sent, or nothing from 128 KiB on.
const TRUSTED: Day = (2025, 5, 3);

/// Whether the passt that is installed is one to take unasked.
///
/// # Errors
/// [`NetError::Passt`] why it is not.
pub fn is_trusted() -> Result<(), NetError> {
    let output =
        Command::new("passt").arg("--version").stdin(Stdio::null()).output().map_err(cannot_start)?;
    let said = String::from_utf8_lossy(&output.stdout);
    match day_of(said.lines().next().unwrap_or_default()) {
        Some(day) if day >= TRUSTED => Ok(()),
        Some(_) => Err(NetError::Passt("is too old to be relied on: it is from before 2025-05-03".into())),
        None => Err(NetError::Passt("does not say its version: it may be too old to be relied on".into())),
    }
}

fn cannot_start(error: io::Error) -> NetError {
    match error.kind() {
        io::ErrorKind::NotFound => NetError::Passt("is not installed".into()),
        _ => NetError::Passt(format!("cannot be started: {error}")),
    }
}

/// The day that a version is called by: of `2025_05_03.587980c`, `0.0~git20250503.587980c-2` and the
/// like.
fn day_of(version: &str) -> Option<Day> {
    let digits = version.replace(['_', '-'], "");
    let mut numbers = digits.split(|it: char| !it.is_ascii_digit());
    let number: u32 = numbers.find(|it| it.len() == 8 && it.starts_with("20"))?.parse().ok()?;
    Some((number / 10_000, number / 100 % 100, number % 100))
}

/// A network that passt makes.
#[derive(Debug)]
pub struct Passt {
    stream: UnixStream,
    guard: Guard,
    /// What of the last frame has not gone yet.
    unsent: Vec<u8>,
    /// What has come of frames, and how much of it is done with.
    come: Vec<u8>,
    done: usize,
    is_over: bool,
}

impl Passt {
    /// Starts it; it is ready then.
    ///
    /// # Errors
    /// [`NetError`], with what it says.
    pub fn start(config: &UserNetConfig) -> Result<Passt, NetError> {
        let reach = if config.host_loopback { Reach::Host } else { Reach::Others };
        let guard = Guard::new(reach)?;
        let (stream, its) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        // For it alone: no other program is started meanwhile.
        fcntl(&its, FcntlArg::F_SETFD(FdFlag::empty())).map_err(io::Error::from)?;
        let mut command = Command::new("passt");
        command.args(words(config, its.as_raw_fd())).stdin(Stdio::null());
        // It goes on in the background when it is ready, and says nothing any more.
        let output = command.output().map_err(cannot_start)?;
        drop(its);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            // What it could not tell the system's log is nobody's business.
            let said = said.lines().rfind(|line| !line.is_empty() && !line.contains("syslog"));
            return Err(NetError::Passt(format!("cannot: {}", said.unwrap_or("it does not say why"))));
        }
        Ok(Passt { stream, guard, unsent: Vec::new(), come: Vec::new(), done: 0, is_over: false })
    }

    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn is_up(&self) -> bool {
        !self.is_over
    }

    fn end(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_over, true) {
            tell!(Warn, "the guest's network has gone: passt {why}");
        }
    }

    /// Writes what has not gone yet; whether all has.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() && !self.is_over {
            match (&self.stream).write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => self.end(&error.to_string()),
            }
        }
        true
    }

    pub fn send(&mut self, packet: &[u8]) -> Sent {
        if !self.flush() {
            return Sent::NoRoom;
        }
        let Some(frame) = packet.get(HEADER..).filter(|frame| self.guard.lets_pass(frame)) else {
            return Sent::Gone;
        };
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        self.unsent.clear();
        self.unsent.extend(length);
        self.unsent.extend(frame);
        // What is left goes first the next time.
        self.flush();
        Sent::Gone
    }

    pub fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        // There is room again, maybe, for what waits.
        self.flush();
        loop {
            if let Some(size) = self.next(packet) {
                return Some(size);
            }
            if self.is_over {
                return None;
            }
            self.come.drain(..self.done);
            self.done = 0;
            let at = self.come.len();
            self.come.resize(at + LONGEST_PACKET, 0);
            let result = (&self.stream).read(&mut self.come[at..]);
            self.come.truncate(at + result.as_ref().map_or(0, |count| *count));
            match result {
                Ok(0) => self.end("has ended"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => self.end(&error.to_string()),
            }
        }
    }

    /// The next frame of those that have come whole.
    fn next(&mut self, packet: &mut [u8]) -> Option<usize> {
        let rest = &self.come[self.done..];
        let (length, frame) = rest.split_first_chunk::<LENGTH>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some(place) = packet.get_mut(..HEADER.saturating_add(length)) else {
            self.end("sends what is no frame");
            return None;
        };
        let frame = frame.get(..length)?;
        place[..HEADER].fill(0);
        place[HEADER..].copy_from_slice(frame);
        self.done += LENGTH + length;
        Some(HEADER + length)
    }
}

/// Its words (passt(1)).
fn words(config: &UserNetConfig, descriptor: RawFd) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: Option<String>| {
        words.push(option.into());
        words.extend(value);
    };
    add("--quiet", None);
    add("--one-off", None);
    add("--ipv4-only", None);
    add("--fd", Some(descriptor.to_string()));
    add("--address", Some(GUEST.to_string()));
    add("--netmask", Some(PREFIX.to_string()));
    add("--gateway", Some(GATEWAY.to_string()));
    add("--dns-forward", Some(RESOLVER.to_string()));
    add("--dns", Some(RESOLVER.to_string()));
    add("--mtu", Some(Stack::MTU.to_string()));
    if !config.host_loopback {
        add("--no-map-gw", None);
    }
    for forward in &config.forwards {
        let option = match forward.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let (address, port) = (forward.host.ip(), forward.host.port());
        add(option, Some(format!("{address}/{port}:{}", forward.guest)));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_days() {
        for (version, day) in [
            ("passt 0.0~git20250503.587980c-2+deb13u1", Some((2025, 5, 3))),
            ("passt 2024_12_11.09478d5", Some((2024, 12, 11))),
            ("passt 0^20250611.g0293c6f-1.fc42.x86_64", Some((2025, 6, 11))),
            ("passt 2025-06-11", Some((2025, 6, 11))),
            ("passt unknown version", None),
            ("passt 1234567890", None),
            ("", None),
        ] {
            assert_eq!(day_of(version), day, "{version}");
        }
    }

    #[test]
    fn its_words() {
        let forwards = vec!["udp:0.0.0.0:53-:5353".parse().unwrap(), "tcp::2222-:22".parse().unwrap()];
        let config = UserNetConfig { forwards, ..UserNetConfig::default() };
        let all = words(&config, 7).join(" ");
        assert!(all.contains("--fd 7 --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2"), "{all}");
        assert!(
            all.ends_with("--no-map-gw --udp-ports 0.0.0.0/53:5353 --tcp-ports 127.0.0.1/2222:22"),
            "{all}"
        );
        assert!(!words(&UserNetConfig { host_loopback: true, ..config }, 7).contains(&"--no-map-gw".into()));
    }

    /// Frames that come in pieces are put together, what is blocked is not sent, and one that is too long ends it.
    #[test]
    fn frames_on_a_stream() {
        let (stream, its) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        its.set_nonblocking(true).unwrap();
        let guard = Guard::new(Reach::Others).unwrap();
        let mut passt =
            Passt { stream, guard, unsent: Vec::new(), come: Vec::new(), done: 0, is_over: false };
        let mut packet = vec![0xff; LONGEST_PACKET];
        assert_eq!(passt.receive(&mut packet), None);
        (&its).write_all(&[0, 0, 0, 3, 1, 2]).unwrap();
        assert_eq!(passt.receive(&mut packet), None);
        (&its).write_all(&[3, 0, 0, 0, 1, 9]).unwrap();
        assert_eq!(passt.receive(&mut packet), Some(HEADER + 3));
        assert_eq!(packet[..HEADER + 3], [[0; HEADER].as_slice(), &[1, 2, 3]].concat());
        assert_eq!((passt.receive(&mut packet), packet[HEADER]), (Some(HEADER + 1), 9));
        let arp = [&[0; HEADER + 12][..], &[8, 6], &[0; 46]].concat();
        let ipv6 = [&[0; HEADER + 12][..], &[0x86, 0xdd], &[0; 46]].concat();
        assert_eq!([passt.send(&ipv6), passt.send(&arp)], [Sent::Gone, Sent::Gone]);
        let mut got = [0; 100];
        assert_eq!((&its).read(&mut got).unwrap(), LENGTH + 60);
        // It does not read: what it has no room for waits with the guest.
        let mut sent = 0;
        while passt.send(&arp) == Sent::Gone {
            sent += 1;
        }
        let mut all = vec![0; 1 << 20];
        let count = (&its).read(&mut all).unwrap();
        assert!(count > LENGTH + 60 && sent > 1);
        passt.receive(&mut packet);
        assert_eq!(passt.send(&arp), Sent::Gone);
        assert!(passt.is_up());
        (&its).write_all(&[0, 2, 0, 0, 1]).unwrap();
        assert_eq!((passt.receive(&mut packet), passt.is_up()), (None, false));
        assert_eq!(passt.send(&arp), Sent::Gone);
    }
}
