//! Types as a kernel has them in its memory (`CONFIG_DEBUG_INFO_BTF`), for tracers and BPF; and those of its modules
//! (`CONFIG_DEBUG_INFO_BTF_MODULES`), which stand on the kernel's.
//!
//! Source: Linux, `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`; `kernel/bpf/btf.c`, `btf_parse_module`.

pub mod modules;

use crate::image;
use crate::info::VmCoreInfo;
use crate::translate::LARGEST_IMAGE;
use crate::types::{Enumerator, Member, Shape, TypeId, Types};
use std::sync::Arc;

/// Why types are not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It does not begin as BTF does.
    #[error("not BTF")]
    Format,
    /// It is of a version that nobody knows.
    #[error("BTF of version {0}, of which nothing is known")]
    Version(u8),
    /// It is cut off, or contradicts itself.
    #[error("damaged BTF: {0}")]
    Damaged(&'static str),
}

use BtfError::Damaged;

/// What BTF begins with.
const MAGIC: u16 = 0xeb9f;
/// Bytes of its header that are known.
const HEADER: usize = 24;
/// Bytes of a type in front of what its kind has more.
const TYPE: usize = 12;

/// Kinds of types (`BTF_KIND_*`).
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// A little-endian reader of 32-bit words.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u32, BtfError> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Damaged("it ends within a type"))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }
}

/// Bytes of types that are read at most, as of those that a kernel takes (`BTF_MAX_SIZE`): a distribution's kernel has
/// five million.
pub const MOST_BYTES: usize = 16 << 20;
/// Bytes of a name, at most (`KSYM_NAME_LEN`).
const LONGEST_NAME: usize = 512;
/// Bytes of all names: each may be told of as often as it likes, and is kept as often.
const MOST_NAMES: usize = 32 << 20;

/// Names.
struct Strings<'a> {
    /// Those of what it stands on, which offsets begin with.
    base: &'a [u8],
    bytes: &'a [u8],
    /// Bytes of those that were told.
    told: usize,
}

impl<'a> Strings<'a> {
    /// The name at an offset. C's names, and those of Rust and assembly, are plain ASCII.
    fn at(&mut self, offset: u32) -> Result<&'a str, BtfError> {
        let offset = offset as usize;
        let rest = match offset.checked_sub(self.base.len()) {
            Some(own) => self.bytes.get(own..),
            None => self.base.get(offset..),
        };
        let rest = rest.ok_or(Damaged("a name is not there"))?;
        let rest = &rest[..rest.len().min(LONGEST_NAME)];
        let end = rest.iter().position(|byte| *byte == 0).ok_or(Damaged("a name has no end"))?;
        self.told += end;
        if self.told > MOST_NAMES {
            return Err(Damaged("its names are longer than any kernel's"));
        }
        let name = str::from_utf8(&rest[..end]).ok();
        name.filter(|it| it.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()))
            .ok_or(Damaged("a name is none"))
    }
}

/// Reads the kernel's types: all of `.BTF`, which is between `__start_BTF` and `__stop_BTF`.
///
/// # Errors
/// [`BtfError`].
pub fn types(bytes: &[u8]) -> Result<Types, BtfError> {
    let (words, bytes) = sections(bytes)?;
    // Both architectures have addresses of eight bytes.
    all(Types::new(8), words, Strings { base: &[], bytes, told: 0 })
}

/// Reads a module's types, which count on from the kernel's, as its names do from the kernel's ([`names`]).
///
/// # Errors
/// [`BtfError`].
pub fn split(bytes: &[u8], base: Arc<Types>, base_names: &[u8]) -> Result<Types, BtfError> {
    let (words, bytes) = sections(bytes)?;
    all(Types::on(base), words, Strings { base: base_names, bytes, told: 0 })
}

/// The names of what [`types`] reads.
///
/// # Errors
/// [`BtfError`].
pub fn names(bytes: &[u8]) -> Result<&[u8], BtfError> {
    sections(bytes).map(|(_, names)| names)
}

/// Its types, and their names.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    if bytes.len() > MOST_BYTES {
        return Err(Damaged("it is larger than a kernel takes"));
    }
    let (head, _) = bytes.split_at_checked(HEADER).ok_or(BtfError::Format)?;
    if head[..2] != MAGIC.to_le_bytes() {
        return Err(BtfError::Format);
    }
    if head[2] != 1 {
        return Err(BtfError::Version(head[2]));
    }
    let mut header = Words(&head[4..]);
    let length = header.next()?;
    let mut section = || {
        let (begin, size) = (length as usize + header.next()? as usize, header.next()? as usize);
        let end = begin.checked_add(size);
        end.and_then(|end| bytes.get(begin..end)).ok_or(Damaged("it is shorter than it says"))
    };
    Ok((section()?, section()?))
}

fn all(mut types: Types, words: &[u8], mut strings: Strings<'_>) -> Result<Types, BtfError> {
    let mut words = Words(words);
    while !words.0.is_empty() {
        read(&mut types, &mut words, &mut strings)?;
    }
    Ok(types)
}

/// Whether a kind of types has names of its own: half of all are functions, whose names are symbols'.
fn is_named(kind: u32) -> bool {
    !matches!(kind, kind::FUNC | kind::DATASEC | kind::DECL_TAG)
}

/// The kernel's types as it has them, where no symbol tells where that is: all of `.BTF`, which is looked for in its image, of
/// no more than 256 MiB, and believed if it can be read and has a kernel's tasks; `None` where none is.
pub fn searched(info: &VmCoreInfo, read: impl Fn(u64, &mut [u8]) -> usize) -> Option<Vec<u8>> {
    /// Its header: magic, version 1, no flags, as many bytes as are known, and types right behind it.
    const BEGIN: [u8; 12] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0];
    /// Places that look like one and are read, at most: a kernel has one.
    const MOST_TRIED: usize = 8;
    let start = info.image_start()?;
    let bytes = |at: u64, size: usize| {
        let mut bytes = vec![0; size];
        (read(at, &mut bytes) == size).then_some(bytes)
    };
    let whole = |at: u64| {
        let head = bytes(at, HEADER)?;
        let mut words = Words(&head[12..]);
        let (types, names_at, names) = (words.next().ok()?, words.next().ok()?, words.next().ok()?);
        let size = HEADER + usize::try_from(types).ok()? + usize::try_from(names).ok()?;
        let is_whole = names_at == types && types % 4 == 0 && size <= MOST_BYTES;
        is_whole.then(|| bytes(at, size)).flatten()
    };
    let is_kernels = |bytes: &Vec<u8>| types(bytes).is_ok_and(|it| it.tagged("task_struct").is_some());
    let places = image::places(start..start.saturating_add(LARGEST_IMAGE), &BEGIN, MOST_TRIED, &read);
    places.into_iter().filter(|at| at % 4 == 0).filter_map(whole).find(is_kernels)
}

/// Reads one type.
fn read(types: &mut Types, words: &mut Words<'_>, strings: &mut Strings<'_>) -> Result<(), BtfError> {
    if words.0.len() < TYPE {
        return Err(Damaged("it ends within a type"));
    }
    let (name, info, size) = (words.next()?, words.next()?, words.next()?);
    let (count, kind, has_flag) = (info & 0xffff, info >> 24 & 0x1f, info >> 31 != 0);
    let name = if is_named(kind) { strings.at(name)? } else { "" };
    // As many words of each, which the whole has at least: what it says is not believed before.
    let there = |words: &Words<'_>, each: usize| match count as usize * each * 4 <= words.0.len() {
        true => Ok(()),
        false => Err(Damaged("it ends within a type")),
    };
    let shape = match kind {
        kind::INT => {
            // BTF_INT_SIGNED, BTF_INT_BOOL, above eight bits of offset and eight of bits.
            const SIGNED: u32 = 1 << 24;
            const BOOL: u32 = 4 << 24;
            let encoding = words.next()?;
            Shape::Integer { size, is_signed: encoding & SIGNED != 0, is_bool: encoding & BOOL != 0 }
        }
        kind::FLOAT => Shape::Float(size),
        kind::PTR => Shape::Pointer(TypeId(size)),
        kind::ARRAY => {
            let (of, _index, count) = (words.next()?, words.next()?, words.next()?);
            Shape::Array(TypeId(of), count)
        }
        kind::STRUCT | kind::UNION => {
            there(words, 3)?;
            let members: Result<Vec<Member>, BtfError> = (0..count)
                .map(|_| {
                    let (name, of, at) =
                        (strings.at(words.next()?)?.into(), TypeId(words.next()?), words.next()?);
                    let bits = u8::try_from(at >> 24).ok().filter(|bits| has_flag && *bits != 0);
                    Ok(Member { name, of, at: if has_flag { at & 0xff_ffff } else { at }, bits })
                })
                .collect();
            let members = types.add_members(members?.into_iter());
            Shape::Compound { size, is_union: kind == kind::UNION, members }
        }
        kind::ENUM | kind::ENUM64 => {
            let is_long = kind == kind::ENUM64;
            there(words, if is_long { 3 } else { 2 })?;
            let values: Result<Vec<Enumerator>, BtfError> = (0..count)
                .map(|_| {
                    let (name, low) = (strings.at(words.next()?)?.into(), words.next()?);
                    let value = match (is_long, has_flag) {
                        (true, _) => u64::from(words.next()?) << 32 | u64::from(low),
                        (false, true) => i64::from(low.cast_signed()).cast_unsigned(),
                        (false, false) => low.into(),
                    };
                    Ok(Enumerator { name, value })
                })
                .collect();
            let values = types.add_values(values?.into_iter());
            Shape::Enumeration { size, is_signed: has_flag, values }
        }
        kind::FWD => Shape::Forward,
        kind::TYPEDEF => Shape::Alias(TypeId(size)),
        kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => Shape::Qualified(TypeId(size)),
        kind::FUNC => Shape::Function,
        kind::FUNC_PROTO => {
            skip(words, count as usize * 2)?;
            Shape::Function
        }
        kind::VAR => {
            skip(words, 1)?;
            Shape::Variable(TypeId(size))
        }
        kind::DATASEC => {
            skip(words, count as usize * 3)?;
            Shape::Other
        }
        kind::DECL_TAG => {
            skip(words, 1)?;
            Shape::Other
        }
        // How long one is that is not known is not known either.
        _ => return Err(Damaged("a type of an unknown kind")),
    };
    types.add(name, shape);
    Ok(())
}

fn skip(words: &mut Words<'_>, count: usize) -> Result<(), BtfError> {
    words.0 = words.0.get(count * 4..).ok_or(Damaged("it ends within a type"))?;
    Ok(())
}

#[cfg(test)]
mod tests;
