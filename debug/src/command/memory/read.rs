//! `read`: memory, in hexadecimal.

use super::super::address::{address, count, size};
use super::super::operator::Operator;
use crate::memory::{self, Translation};
use crate::reply::{Arguments, Command, Flag, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::GuestVirt;
use arch::words::counted;
use std::fmt;

/// `read`.
pub const READ: Command =
    Command::new("read", "ADDRESS LENGTH", "memory, in hexadecimal: so many bytes from an address on").flags(
        &[Flag { name: "--physical", short: None, value: None, what: "the address is guest-physical" }],
    );

/// Bytes of a line.
const LINE: usize = 16;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Memory that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The first byte.
    pub address: u64,
    /// How many.
    pub length: u64,
    /// The address is guest-physical.
    pub is_physical: bool,
}

impl Read {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`], also for more than one answer may have.
    pub fn parse(operator: &dyn Operator, arguments: &Arguments<'_>) -> Result<Read, Refusal> {
        let [at, length] = arguments.words()[..] else {
            return Err(Refusal::Usage("write an address, and how many bytes from there on".into()));
        };
        let (length, most) = (count(length)?, operator.most_bytes());
        if length > most {
            return Err(Refusal::Usage(format!("at most {} are read at a time", size(most))));
        }
        Ok(Read { address: address(operator, at)?, length, is_physical: arguments.has("--physical") })
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], where nothing says how to translate; [`Refusal::Cancelled`].
    pub fn run(&self, view: &View<'_>) -> Result<Bytes, Refusal> {
        let space = match self.is_physical || view.is_physical {
            true => Translation::Physical,
            false => Translation::Virtual(view.translation()?.0),
        };
        let (mut bytes, mut piece) =
            (Vec::new(), vec![0; usize::try_from(self.length).map_or(PIECE, |length| length.min(PIECE))]);
        while (bytes.len() as u64) < self.length {
            view.cancel.check()?;
            let left = self.length - bytes.len() as u64;
            let wanted = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let at = self.address.wrapping_add(bytes.len() as u64);
            let count = view.read_in(&space, at, &mut piece[..wanted]);
            bytes.extend(&piece[..count]);
            if count < wanted {
                break;
            }
        }
        let end = GuestVirt(self.address.wrapping_add(bytes.len() as u64));
        let is_short = (bytes.len() as u64) < self.length;
        let why = || memory::why_not(view.memory(), &space, end);
        let why = is_short.then(|| why().unwrap_or_else(|| "it cannot be read".into()));
        Ok(Bytes { address: self.address, length: self.length, bytes, why })
    }
}

/// Memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes {
    /// The first byte.
    pub address: u64,
    /// How many were asked for.
    pub length: u64,
    /// As many as there are in one piece.
    pub bytes: Vec<u8>,
    /// Why there are no more, if fewer than that; in words.
    pub why: Option<String>,
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bytes { address, length, bytes, why } = self;
        write!(f, "Bytes({} of {length} at {address:#x}, {why:?})", bytes.len())
    }
}

fn digits(bytes: &[u8], between: &str) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * (2 + between.len()));
    for (index, byte) in bytes.iter().enumerate() {
        // Writing to a String cannot fail.
        write!(text, "{}{byte:02x}", if index == 0 { "" } else { between }).ok();
    }
    text
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (line, at) in self.bytes.chunks(LINE).zip((0..).step_by(LINE)) {
            let plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
            let text: String =
                line.iter().map(|byte| if plain(byte) { char::from(*byte) } else { '.' }).collect();
            let at = self.address.wrapping_add(at);
            writeln!(f, "{at:#018x}  {:47}  {text}", digits(line, " "))?;
        }
        Ok(())
    }
}

impl Value for Bytes {
    fn json(&self) -> Json {
        json!({ "address": hex(self.address), "bytes": digits(&self.bytes, "") })
    }

    fn shortfall(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        let (done, at) = (self.bytes.len(), self.address.wrapping_add(self.bytes.len() as u64));
        Some(format!("{done} of {}, up to {at:#x}: {why}", counted(self.length, "byte")))
    }
}

pub(in crate::command) fn run(
    operator: &mut dyn Operator,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    Ok(Box::new(Read::parse(operator, arguments)?.run(&operator.view())?))
}
