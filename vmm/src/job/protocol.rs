//! What the host and the first process of a job's guest say to each other, over a port of the console device.
//!
//! Frames go both ways: a kind, a session (a command that runs in the guest), and a payload. A session's streams of
//! bytes are sent as far as whoever receives them has granted room, so that one that nobody reads keeps no other
//! waiting. Both ends are compiled from this file; the guest's has no `std`.

use alloc::vec::Vec;

/// The port's name.
pub const PORT: &str = "vmm";
/// Of the protocol, in [`Kind::Hello`].
pub const VERSION: u8 = 1;
/// The most bytes of a payload.
pub const MOST_PAYLOAD: usize = 32 << 10;
/// Room for bytes of a stream that is granted at its beginning.
pub const WINDOW: u32 = 64 << 10;
/// Bytes before a payload: kind, 0, session (2), length (4), little-endian.
const HEADER: usize = 8;
/// The session of what is of no session.
pub const NO_SESSION: u16 = 0;
/// That of the command that the guest is there for.
pub const MAIN: u16 = 1;

/// Makes of a list of kinds the enumeration and the way back from a number.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            fn of(number: u8) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    // From the host.
    /// A session begins: a [`Command`].
    Start = 1,
    /// Bytes for its standard input; none: its end.
    Input = 2,
    /// Room for so many more bytes (4) of a stream (1: output, 2: errors).
    Grant = 3,
    /// The terminal's size: rows, columns (2 each).
    Resize = 4,
    /// A signal (1) for the command.
    Signal = 5,
    /// The guest is to switch itself off.
    PowerOff = 6,
    /// A key of the kernel's (1), as if it were pressed with SysRq (`Documentation/admin-guide/sysrq.rst`).
    Key = 7,
    // From the guest.
    /// It is there: [`VERSION`], and the kernel's release.
    Hello = 65,
    /// Bytes of the session's standard output; none: its end.
    Output = 66,
    /// Bytes of its standard error; none: its end.
    Errors = 67,
    /// Room for so many more bytes (4) of input; none when the command has begun.
    InputGrant = 68,
    /// The command has ended: 0 and its exit code, or 1 and the signal that ended it. Or it has never begun: 2, the exit
    /// code for that, and why, in words.
    Exit = 69,
    /// A record of the kernel's log, as `/dev/kmsg` has it.
    Log = 70,
    /// What goes wrong before a command can be run, in words; the guest switches itself off then.
    Trouble = 71,
    /// The main command may begin: the system's own first process takes orders, if there is one of which that is known.
    Ready = 72,
}

/// Streams of a session, in [`Kind::Grant`].
pub const OUTPUT: u8 = 1;
/// See [`OUTPUT`].
pub const ERRORS: u8 = 2;

/// What stands in [`Kind::Log`] for records that the first process does not tell: they were overwritten before it has read
/// them, or there was no room for them.
pub const LOST_RECORDS: &[u8] = b"4,0,0,-;vmm: records of the kernel's log may be missing here\n";

/// What stands in front of the words on the console and in the kernel's log where there is no port for [`Kind::Trouble`].
pub const TROUBLE_LINE: &str = "vmm: the guest cannot be made ready: ";

/// What is said at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Of which session.
    pub session: u16,
    /// The rest.
    pub payload: Vec<u8>,
}

/// Bytes that are no frames: the other end is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Appends a frame to what is to be sent. What is longer than a payload may be is cut off.
pub fn put(to: &mut Vec<u8>, kind: Kind, session: u16, payload: &[u8]) {
    let payload = &payload[..payload.len().min(MOST_PAYLOAD)];
    to.extend_from_slice(&[kind as u8, 0]);
    to.extend_from_slice(&session.to_le_bytes());
    to.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
    to.extend_from_slice(payload);
}

/// Makes frames of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How many of them are done with.
    done: usize,
}

impl Decoder {
    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..core::mem::take(&mut self.done));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if it is there whole.
    ///
    /// # Errors
    /// [`Damaged`], from then on.
    pub fn take(&mut self) -> Result<Option<Frame>, Damaged> {
        let rest = &self.bytes[self.done..];
        let Some((header, rest)) = rest.split_at_checked(HEADER) else { return Ok(None) };
        let &[kind, _, s0, s1, l0, l1, l2, l3] = header else { return Ok(None) };
        let kind = Kind::of(kind).ok_or(Damaged)?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MOST_PAYLOAD {
            return Err(Damaged);
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame { kind, session: u16::from_le_bytes([s0, s1]), payload: payload.to_vec() };
        self.done += HEADER + length;
        Ok(Some(frame))
    }
}

/// A number of a payload, behind `at` bytes of it.
pub fn number(payload: &[u8], at: usize) -> Option<u32> {
    let bytes = payload.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// A command to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub words: Vec<Vec<u8>>,
    /// `NAME=VALUE`.
    pub environment: Vec<Vec<u8>>,
    /// Where it runs.
    pub folder: Vec<u8>,
    /// Its terminal's size in rows and columns, if it has one.
    pub terminal: Option<(u16, u16)>,
    /// Its errors do not go to that.
    pub errors_apart: bool,
}

impl Command {
    /// As a payload. `None` when it is too long for one.
    pub fn encoded(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (rows, columns) = self.terminal.unwrap_or_default();
        bytes.push(u8::from(self.terminal.is_some()) | u8::from(self.errors_apart) << 1);
        bytes.extend_from_slice(&rows.to_le_bytes());
        bytes.extend_from_slice(&columns.to_le_bytes());
        put_list(&mut bytes, core::slice::from_ref(&self.folder));
        put_list(&mut bytes, &self.words);
        put_list(&mut bytes, &self.environment);
        (bytes.len() <= MOST_PAYLOAD).then_some(bytes)
    }

    /// From a payload.
    pub fn decoded(bytes: &[u8]) -> Option<Command> {
        let (head, mut rest) = bytes.split_at_checked(5)?;
        let &[flags, r0, r1, c0, c1] = head else { return None };
        let terminal =
            (flags & 1 != 0).then_some((u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1])));
        let errors_apart = flags & 2 != 0;
        let folder = take_list(&mut rest)?.pop()?;
        let (words, environment) = (take_list(&mut rest)?, take_list(&mut rest)?);
        Some(Command { words, environment, folder, terminal, errors_apart })
    }
}

/// How many, and each with its length in front.
fn put_list(bytes: &mut Vec<u8>, list: &[Vec<u8>]) {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(&count(list.len()));
    for item in list {
        bytes.extend_from_slice(&count(item.len()));
        bytes.extend_from_slice(item);
    }
}

fn take_list(rest: &mut &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut take = |count: usize| {
        let (item, behind) = rest.split_at_checked(count)?;
        *rest = behind;
        Some(item)
    };
    let mut list = Vec::new();
    for _ in 0..number(take(4)?, 0)? {
        let length = number(take(4)?, 0)?;
        list.push(take(length as usize)?.to_vec());
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = Vec::new();
        put(&mut bytes, Kind::Output, 7, b"abc");
        put(&mut bytes, Kind::Exit, 7, &[0, 3]);
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            frames.extend(decoder.take().unwrap());
        }
        let frame = |kind, payload: &[u8]| Frame { kind, session: 7, payload: payload.to_vec() };
        assert_eq!(frames, [frame(Kind::Output, b"abc"), frame(Kind::Exit, &[0, 3])]);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [[99, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            assert_eq!(decoder.take(), Err(Damaged));
        }
    }

    #[test]
    fn commands_come_out_as_they_went_in() {
        for (terminal, errors_apart) in [(None, false), (Some((24, 80)), false), (Some((24, 80)), true)] {
            let command = Command {
                words: vec![b"sh".to_vec(), b"-c".to_vec(), b"exit 7".to_vec(), Vec::new()],
                environment: vec![b"A=b".to_vec()],
                folder: b"/tmp".to_vec(),
                terminal,
                errors_apart,
            };
            let bytes = command.encoded().unwrap();
            assert_eq!(Command::decoded(&bytes), Some(command));
            for end in 0..bytes.len() {
                assert_eq!(Command::decoded(&bytes[..end]), None);
            }
        }
        let long = Command { words: vec![vec![b'x'; MOST_PAYLOAD]], ..Command::default() };
        assert_eq!(long.encoded(), None);
    }
}
