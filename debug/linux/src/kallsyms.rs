//! The table of symbols that a kernel has in its own memory (`CONFIG_KALLSYMS`), for its traces and `/proc/kallsyms`.
//!
//! Names are compressed by a table of 256 tokens, each of which stands for a few characters; the first character of a
//! name is what `nm(1)` says of the symbol. Addresses are offsets from a base, or in kernels without
//! `CONFIG_KALLSYMS_BASE_RELATIVE` addresses.
//!
//! A kernel says where it is from 6.0 on; in others it is found by its shape.
//!
//! Source: Linux, `scripts/kallsyms.c`, which writes the table, and `kernel/kallsyms.c`, which reads it.

#[cfg(test)]
mod made;
mod search;

use crate::info::VmCoreInfo;
use crate::symbols::{Builder, Kind, Symbol, Symbols};
use crate::text::IMAGE_ALIGNMENT;
use crate::translate::LARGEST_IMAGE;

/// Why a kernel's table of symbols is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KallsymsError {
    /// The kernel does not say where it is, and in its image none is found that agrees with itself.
    #[error("no symbols of its own are found in the kernel's image (CONFIG_KALLSYMS)")]
    Lacks,
    /// Memory is not mapped, or not in the dump.
    #[error("the kernel's symbols cannot be read at {0:#x}")]
    NotMapped(u64),
    /// What is there is no such table.
    #[error("the kernel's table of symbols is damaged: {0}")]
    Damaged(&'static str),
}

use KallsymsError::Damaged;

/// Tokens of names.
const TOKENS: usize = 256;
/// Symbols that are read at most: a kernel with all drivers built in has about half a million.
const MOST_SYMBOLS: usize = 1 << 20;
/// Bytes of all names, and of what they are compressed to, at most: half a million symbols have fifteen million.
const MOST_NAMES: usize = 64 << 20;
/// Bytes of a name, at most (`KSYM_NAME_LEN`, from 6.1 on; before, 128).
const LONGEST_NAME: usize = 512;
/// Bytes of all tokens, at most: each has fewer than a name.
const MOST_TOKENS: usize = TOKENS * LONGEST_NAME;
/// Bytes of names that are read at once.
const PIECE: usize = 64 << 10;

/// Where a kernel has the parts of its table, guest-virtual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// How many symbols there are, 32 bits.
    pub count: u64,
    /// Names, one behind the other: how many tokens it has, and these, a byte each.
    pub names: u64,
    /// The tokens' characters, each behind the other, and a zero behind each.
    pub token_table: u64,
    /// Where each token begins there, 16 bits each.
    pub token_index: u64,
    /// Where the addresses are.
    pub addresses: Addresses,
}

/// How a kernel has its symbols' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// As they are, 64 bits each, from here on.
    Absolute(u64),
    /// As offsets, 32 bits each.
    Relative {
        /// From here on...
        offsets: u64,
        /// ...to what is here, 64 bits.
        base: u64,
    },
}

impl Parts {
    /// Where a kernel says that it is: from Linux 6.0 on.
    pub fn described(info: &VmCoreInfo) -> Option<Parts> {
        let address = |name| info.address(name);
        let relative = address("kallsyms_offsets").zip(address("kallsyms_relative_base"));
        Some(Parts {
            count: address("kallsyms_num_syms")?,
            names: address("kallsyms_names")?,
            token_table: address("kallsyms_token_table")?,
            token_index: address("kallsyms_token_index")?,
            addresses: match relative {
                Some((offsets, base)) => Addresses::Relative { offsets, base },
                None => Addresses::Absolute(address("kallsyms_addresses")?),
            },
        })
    }
}

/// The kernel's symbols. `read` reads guest-virtual memory and says how many bytes are good. Those of modules are not
/// among them.
///
/// # Errors
/// [`KallsymsError`].
pub fn symbols(place: &Parts, read: impl Fn(u64, &mut [u8]) -> usize) -> Result<Symbols, KallsymsError> {
    let memory = Memory(read);
    let count = memory.count(place.count)?;
    let tokens = Tokens::read(place, &memory)?;
    let addresses = memory.addresses(place.addresses, count)?;
    let (mut names, mut builder) = (Names::new(place.names, &memory), Builder::default());
    let (mut name, mut length) = (Name::default(), 0);
    for (address, is_absolute) in addresses {
        name.length = 0;
        names.next(&tokens, &mut name)?;
        let name = name.text()?;
        length += name.len();
        if length > MOST_NAMES {
            return Err(Damaged("its names are longer than any kernel's"));
        }
        let mut rest = name.chars();
        let letter = rest.next().ok_or(Damaged("a symbol without a name"))?;
        builder.add(Symbol {
            name: rest.as_str(),
            address,
            kind: match letter.to_ascii_lowercase() {
                _ if is_absolute => Kind::Absolute,
                'a' => Kind::Absolute,
                // Weak ones are functions as a rule.
                't' | 'w' | 'i' => Kind::Text,
                _ => Kind::Data,
            },
            is_global: letter.is_ascii_uppercase(),
        });
    }
    Ok(builder.finish())
}

/// The symbols of a kernel that does not say where they are ([`Parts::described`]): the table is looked for in its image,
/// of which no more than 256 MiB are read, and believed if all of its parts agree with each other, its addresses ascend, and
/// its `_stext` is where the kernel's description has it.
///
/// # Errors
/// [`KallsymsError::Lacks`].
pub fn searched(info: &VmCoreInfo, read: impl Fn(u64, &mut [u8]) -> usize) -> Result<Symbols, KallsymsError> {
    /// Those that are looked at at most, of which each has some megabytes of addresses, and of those that look good: a kernel
    /// has one, for which there are a few places where its addresses may be.
    const MOST_TRIED: usize = 64;
    const MOST_TABLES: usize = 4;
    const BEGIN: &str = "_stext";
    let text = info.address(BEGIN).ok_or(KallsymsError::Lacks)?;
    let memory = Memory(read);
    let is_place = |place: &Parts, count: usize| {
        let addresses = memory.addresses(place.addresses, count).unwrap_or_default();
        addresses.is_sorted_by_key(|(address, _)| *address) && addresses.contains(&(text, false))
    };
    let start = text & !(IMAGE_ALIGNMENT - 1);
    let tables = search::tables(start..start.saturating_add(LARGEST_IMAGE), &memory);
    let places = tables.into_iter().take(MOST_TRIED).filter(|(place, count)| is_place(place, *count));
    let all = places.take(MOST_TABLES).filter_map(|(place, _)| symbols(&place, &memory.0).ok());
    let mut good = all.filter(|symbols| symbols.named(BEGIN).any(|symbol| symbol.address == text));
    good.next().ok_or(KallsymsError::Lacks)
}

/// The kernel's memory.
struct Memory<R>(R);

impl<R: Fn(u64, &mut [u8]) -> usize> Memory<R> {
    fn bytes(&self, at: u64, size: usize) -> Result<Vec<u8>, KallsymsError> {
        let mut bytes = vec![0; size];
        let good = (self.0)(at, &mut bytes);
        if good == size { Ok(bytes) } else { Err(KallsymsError::NotMapped(at.wrapping_add(good as u64))) }
    }

    fn count(&self, at: u64) -> Result<usize, KallsymsError> {
        let bytes = self.bytes(at, 4)?;
        let count = words::<4>(&bytes).next().map_or(0, u32::from_le_bytes);
        match usize::try_from(count) {
            Ok(count @ 1..=MOST_SYMBOLS) => Ok(count),
            _ => Err(Damaged("there cannot be so many symbols")),
        }
    }

    /// Each symbol's address, and whether it is a number.
    fn addresses(&self, place: Addresses, count: usize) -> Result<Vec<(u64, bool)>, KallsymsError> {
        let (offsets, base) = match place {
            Addresses::Absolute(at) => {
                let bytes = self.bytes(at, count * 8)?;
                return Ok(words(&bytes).map(|word| (u64::from_le_bytes(word), false)).collect());
            }
            Addresses::Relative { offsets, base } => (offsets, base),
        };
        let bytes = self.bytes(base, 8)?;
        let base = words(&bytes).next().map_or(0, u64::from_le_bytes);
        let bytes = self.bytes(offsets, count * 4)?;
        let offsets: Vec<i32> = words(&bytes).map(i32::from_le_bytes).collect();
        // With CONFIG_KALLSYMS_ABSOLUTE_PERCPU those in the image are negative, and others the numbers themselves. No
        // image has two gigabytes.
        let has_numbers = offsets.iter().filter(|offset| **offset < 0).count() > count / 2;
        let address = |offset: i32| match (has_numbers, offset) {
            (false, _) => (base.wrapping_add(u64::from(offset.cast_unsigned())), false),
            (true, 0..) => (u64::from(offset.cast_unsigned()), true),
            // From -1 down.
            (true, _) => (base.wrapping_add(u64::from((!offset).cast_unsigned())), false),
        };
        Ok(offsets.into_iter().map(address).collect())
    }
}

/// Little-endian words of `N` bytes; what is left over is left out.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

/// What each token stands for.
struct Tokens(Vec<Token>);

/// Bytes of a token that are appended at once, which takes no longer than to append one: as many as most have.
const AT_ONCE: usize = 16;

struct Token {
    text: Box<[u8]>,
    /// What it begins with, and zeros.
    begin: [u8; AT_ONCE],
}

impl Token {
    /// A text that is a name, or a part of one.
    fn new(text: &[u8]) -> Option<Token> {
        // Symbols of C, Rust and assembly are plain ASCII.
        text.iter().all(u8::is_ascii_graphic).then(|| {
            let mut begin = [0; AT_ONCE];
            begin.iter_mut().zip(text).for_each(|(to, byte)| *to = *byte);
            Token { text: text.into(), begin }
        })
    }
}

/// A name as it is put together, what `nm` says in front.
struct Name {
    bytes: [u8; LONGEST_NAME + 1 + AT_ONCE],
    length: usize,
}

impl Default for Name {
    fn default() -> Name {
        Name { bytes: [0; LONGEST_NAME + 1 + AT_ONCE], length: 0 }
    }
}

impl Name {
    /// Appends a token. A kernel has millions of them, of a few bytes each: a call to copy them would be most of the work.
    fn push(&mut self, token: &Token) -> Result<(), KallsymsError> {
        let length = self.length + token.text.len();
        if length > LONGEST_NAME + 1 {
            return Err(Damaged("a name is longer than any"));
        }
        // What is too much of it is written over by the next one.
        match self.bytes[self.length..].first_chunk_mut() {
            Some(end) if token.text.len() <= AT_ONCE => *end = token.begin,
            _ => self.bytes[self.length..length].copy_from_slice(&token.text),
        }
        self.length = length;
        Ok(())
    }

    fn text(&self) -> Result<&str, KallsymsError> {
        str::from_utf8(&self.bytes[..self.length]).map_err(|_| Damaged("a name is none"))
    }
}

impl Tokens {
    fn read<R: Fn(u64, &mut [u8]) -> usize>(
        place: &Parts,
        memory: &Memory<R>,
    ) -> Result<Tokens, KallsymsError> {
        let index = memory.bytes(place.token_index, TOKENS * 2)?;
        let index: Vec<usize> = words(&index).map(|word| u16::from_le_bytes(word).into()).collect();
        // The last one's end is not known, and the table may be at the end of what is mapped.
        let last = index.last().copied().unwrap_or_default();
        let mut table = vec![0; (last + LONGEST_NAME).min(MOST_TOKENS)];
        let good = (memory.0)(place.token_table, &mut table);
        table.truncate(good);
        let token = |at: &usize| {
            let rest = table.get(*at..).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == 0).filter(|end| *end <= LONGEST_NAME)?;
            Token::new(&rest[..end])
        };
        let tokens: Option<Vec<Token>> = index.iter().map(token).collect();
        tokens.map(Tokens).ok_or(Damaged("no table of tokens is where it should be"))
    }
}

/// From here on the length of a name has a second byte, with the upper bits (from 6.1 on; no name before had as many).
const LONG: u8 = 0x80;

/// How many tokens a name has, by what it begins with, and how many bytes tell that.
fn length(first: u8, second: u8) -> (usize, usize) {
    match first & LONG {
        0 => (first.into(), 1),
        _ => (usize::from(first & !LONG) | usize::from(second) << 7, 2),
    }
}

/// Compressed names, one behind the other, read a piece at a time.
struct Names<'a, R> {
    memory: &'a Memory<R>,
    /// Where the next piece is.
    next: u64,
    piece: Vec<u8>,
    /// How far it has been read.
    at: usize,
    /// Bytes of the pieces.
    read: usize,
}

impl<'a, R: Fn(u64, &mut [u8]) -> usize> Names<'a, R> {
    fn new(next: u64, memory: &'a Memory<R>) -> Names<'a, R> {
        Names { memory, next, piece: Vec::new(), at: 0, read: 0 }
    }

    fn byte(&mut self) -> Result<u8, KallsymsError> {
        if self.at == self.piece.len() {
            self.piece.resize(PIECE, 0);
            let good = (self.memory.0)(self.next, &mut self.piece);
            if good == 0 {
                return Err(KallsymsError::NotMapped(self.next));
            }
            self.read += good;
            if self.read > MOST_NAMES {
                return Err(Damaged("its names are longer than any kernel's"));
            }
            self.piece.truncate(good);
            (self.next, self.at) = (self.next.wrapping_add(good as u64), 0);
        }
        self.at += 1;
        Ok(self.piece[self.at - 1])
    }

    /// Appends the next one.
    fn next(&mut self, tokens: &Tokens, name: &mut Name) -> Result<(), KallsymsError> {
        let first = self.byte()?;
        let (count, _) = length(first, if first & LONG == 0 { 0 } else { self.byte()? });
        for _ in 0..count {
            name.push(&tokens.0[usize::from(self.byte()?)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
