//! What is in a kernel's memory, as its types have it: numbers, names, members, for whoever prints it.

use crate::reader::Reader;
use crate::types::{Part, Shape, TypeId, Types};
use arch::plain::plain;
use arch::words::counted;
use std::fmt;

mod comparison;

pub use comparison::{Comparison, NotCompared};

/// A type, or an address of one, or an address of such an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Of {
    /// The type.
    pub id: TypeId,
    /// How often `*` stands behind it.
    pub stars: u32,
}

impl Of {
    /// The type itself.
    pub fn plain(id: TypeId) -> Of {
        Of { id, stars: 0 }
    }

    /// What is at an address of this type; `None` for what is no address.
    pub fn target(self, types: &Types) -> Option<Of> {
        match (self.stars.checked_sub(1), types.shape(types.plain(self.id))) {
            (Some(stars), _) => Some(Of { stars, ..self }),
            (None, Shape::Pointer(to)) => Some(Of::plain(*to)),
            (None, _) => None,
        }
    }

    /// Bytes.
    pub fn size(self, types: &Types) -> Option<u64> {
        if self.stars > 0 { Some(types.pointer_size().into()) } else { types.size(self.id) }
    }

    /// The elements of an array, and how many.
    pub fn elements(self, types: &Types) -> Option<(Of, u64)> {
        match types.shape(types.plain(self.id)) {
            Shape::Array(of, count) if self.stars == 0 => Some((Of::plain(*of), (*count).into())),
            _ => None,
        }
    }
}

/// Names that are nested, at most.
const DEEPEST_NAME: usize = 16;

/// A type's name as C has it (`struct list_head *`, `char [16]`).
pub fn type_name(types: &Types, of: Of) -> String {
    let mut name = name_of(types, of.id, 0);
    if of.stars > 0 {
        if !name.ends_with('*') {
            name.push(' ');
        }
        (0..of.stars).for_each(|_| name.push('*'));
    }
    name
}

fn name_of(types: &Types, id: TypeId, depth: usize) -> String {
    if depth == DEEPEST_NAME {
        return "...".into();
    }
    let own = types.name(id);
    let of =
        |prefix: &str| if own.is_empty() { format!("{prefix} {{...}}") } else { format!("{prefix} {own}") };
    match types.shape(id) {
        Shape::Compound { is_union: true, .. } => of("union"),
        Shape::Compound { .. } | Shape::Forward => of("struct"),
        Shape::Enumeration { .. } => of("enum"),
        Shape::Pointer(to) => {
            let to = name_of(types, *to, depth + 1);
            if to.ends_with('*') { format!("{to}*") } else { format!("{to} *") }
        }
        Shape::Array(of, count) => format!("{} [{count}]", name_of(types, *of, depth + 1)),
        Shape::Qualified(of) | Shape::Variable(of) => name_of(types, *of, depth + 1),
        Shape::Function => "function".into(),
        _ if own.is_empty() => "?".into(),
        _ => own.into(),
    }
}

/// What tells a type from others of its name, in words: how large it is, and what its first members are called.
pub fn make(types: &Types, id: TypeId) -> String {
    const MOST_NAMED: usize = 4;
    let size = Of::plain(id).size(types).map_or_else(|| "of no size".into(), |size| counted(size, "byte"));
    let names = types.members(id).iter().map(|member| &*member.name);
    let names: Vec<&str> =
        names.chain(types.values(id).iter().map(|value| &*value.name)).filter(|it| !it.is_empty()).collect();
    let more = if names.len() > MOST_NAMED { ", ..." } else { "" };
    match names.is_empty() {
        true => size,
        false => format!("{size}: {}{more}", names[..names.len().min(MOST_NAMED)].join(", ")),
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A number.
    Number {
        /// It, sign-extended.
        value: u64,
        /// It has a sign.
        is_signed: bool,
    },
    /// A truth.
    Truth(bool),
    /// An address, and what is there: a symbol, with how far it is behind that.
    Address(u64, Option<String>),
    /// An array of characters, up to its zero; it does nothing to a terminal.
    Text {
        /// What is told of it.
        text: String,
        /// There is more.
        is_cut: bool,
    },
    /// A number that has a name, if it has one.
    Named(u64, Option<String>),
    /// Members with their names, of a structure or a union.
    Members(Vec<(String, Data)>),
    /// Elements, of which so many more are not told.
    Elements(Vec<Data>, u64),
    /// It cannot be read, from this address on.
    NotThere(u64),
    /// Of what it is made is not known.
    Unknown,
    /// There is no more room to tell it.
    TooMuch,
}

/// How much is told, at most: values and bytes, and of an array elements; and how deep members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Values in all.
    pub values: usize,
    /// Bytes of all as they are printed, with the last value whole.
    pub bytes: usize,
    /// Elements of one array.
    pub elements: u64,
    /// Members of members.
    pub depth: usize,
}

impl Bounds {
    /// For a person: a task's structure is told whole.
    pub const USUAL: Bounds = Bounds { values: 20_000, bytes: 1 << 20, elements: 64, depth: 12 };
}

/// Looks at memory by types.
pub struct Look<'a> {
    /// The types.
    pub types: &'a Types,
    /// Memory.
    pub reader: &'a Reader<'a>,
    /// What is at an address, in words, if that is code or data with a name.
    pub symbol: &'a dyn Fn(u64) -> Option<String>,
    /// What is left of them.
    bounds: Bounds,
    is_cut: bool,
}

impl fmt::Debug for Look<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

/// Bytes of a text that are told.
const LONGEST_TEXT: u64 = 4096;

impl<'a> Look<'a> {
    /// At what these have.
    pub fn new(
        types: &'a Types,
        reader: &'a Reader<'a>,
        symbol: &'a dyn Fn(u64) -> Option<String>,
        bounds: Bounds,
    ) -> Look<'a> {
        Look { types, reader, symbol, bounds, is_cut: false }
    }

    /// Whether there is room for one more value; where there is not, something is left out.
    pub fn has_room(&mut self) -> bool {
        let has_room = self.bounds.values > 0 && self.bounds.bytes > 0;
        self.is_cut |= !has_room;
        has_room
    }

    /// Whether something was left out, as there was no room for it.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What room there is left.
    pub fn left(&self) -> Bounds {
        self.bounds
    }

    /// Takes room for what is printed beside values, bytes.
    pub fn spend(&mut self, bytes: usize) {
        self.bounds.bytes = self.bounds.bytes.saturating_sub(bytes);
    }

    /// What there is of a type at an address.
    pub fn at(&mut self, address: u64, of: Of) -> Data {
        self.value(address, of, None, 0)
    }

    /// A part of what is at an address.
    pub fn part(&mut self, address: u64, part: Part) -> Data {
        self.value(address.wrapping_add(part.at / 8), Of::plain(part.of), bit_field(part), 0)
    }

    /// A number as a type has it, which is not in memory.
    pub fn number(&self, value: u64, of: Of) -> Data {
        let value = converted(self.types, value, of);
        if of.target(self.types).is_some() {
            return Data::Address(value, (self.symbol)(value));
        }
        let id = self.types.plain(of.id);
        match self.types.shape(id) {
            Shape::Integer { is_bool: true, .. } => Data::Truth(value != 0),
            Shape::Integer { is_signed, .. } => Data::Number { value, is_signed: *is_signed },
            Shape::Enumeration { .. } => {
                let named = self.types.values(id).iter().find(|it| it.value == value);
                Data::Named(value, named.map(|it| it.name.to_string()))
            }
            _ => Data::Number { value, is_signed: false },
        }
    }

    fn value(&mut self, at: u64, of: Of, bits: Option<(u64, u64)>, depth: usize) -> Data {
        if depth > self.bounds.depth {
            return Data::TooMuch;
        }
        if !self.has_room() {
            return Data::TooMuch;
        }
        self.bounds.values -= 1;
        let id = self.types.plain(of.id);
        let leaf = match self.types.shape(id) {
            _ if of.stars > 0 => self.word(at, of, None),
            Shape::Compound { .. } => return self.members(at, id, depth),
            Shape::Array(element, count) => {
                return self.array(at, Of::plain(*element), (*count).into(), depth);
            }
            Shape::Integer { .. } | Shape::Enumeration { .. } | Shape::Pointer(_) => self.word(at, of, bits),
            Shape::Float(_) | Shape::Void | Shape::Forward | Shape::Function | Shape::Other => Data::Unknown,
            Shape::Alias(_) | Shape::Qualified(_) | Shape::Variable(_) => Data::Unknown,
        };
        self.told(leaf)
    }

    /// Takes the room for a value that has no others within.
    fn told(&mut self, leaf: Data) -> Data {
        self.spend(leaf.to_string().len());
        leaf
    }

    fn members(&mut self, at: u64, id: TypeId, depth: usize) -> Data {
        let types = self.types;
        let mut members = Vec::new();
        for member in types.members(id) {
            if !self.has_room() {
                members.push((String::new(), Data::TooMuch));
                break;
            }
            // With the indent, and what stands around the name and its value.
            self.spend(2 * depth + member.name.len() + "   = ,\n".len());
            let part = Part { of: member.of, at: member.at.into(), bits: member.bits };
            let place = at.wrapping_add(part.at / 8);
            let value = self.value(place, Of::plain(part.of), bit_field(part), depth + 1);
            members.push((member.name.to_string(), value));
        }
        Data::Members(members)
    }

    /// A number, of up to 16 bytes of which the lower eight are told; of a bit field its first bit, and how many.
    fn word(&self, at: u64, of: Of, bits: Option<(u64, u64)>) -> Data {
        let size = of.size(self.types).unwrap_or(8).min(8);
        let Some((first, count)) = bits else {
            return match self.reader.number(at, size) {
                Ok(value) => self.number(value, of),
                Err(error) => Data::NotThere(error.0),
            };
        };
        // As many bytes as it touches: nine, where 64 bits begin within one.
        let mut bytes = [0; 16];
        let touched = usize::try_from((first + count).div_ceil(8)).unwrap_or(0).min(bytes.len());
        if let Err(error) = self.reader.bytes(at, &mut bytes[..touched]) {
            return Data::NotThere(error.0);
        }
        let value = u128::from_le_bytes(bytes) >> first;
        let value = u64::try_from(value & u128::from(u64::MAX >> (64 - count.clamp(1, 64)))).unwrap_or(0);
        let is_signed = matches!(
            self.types.shape(self.types.plain(of.id)),
            Shape::Integer { is_signed: true, .. } | Shape::Enumeration { is_signed: true, .. }
        );
        self.number(extended(value, count, is_signed), of)
    }

    fn array(&mut self, at: u64, element: Of, count: u64, depth: usize) -> Data {
        let Some(size) = element.size(self.types).filter(|size| *size > 0) else { return Data::Unknown };
        if size == 1 && is_char(self.types, element) {
            let text = self.characters(at, count);
            return self.told(text);
        }
        let told = count.min(self.bounds.elements);
        let mut elements = Vec::new();
        for index in 0..told {
            if !self.has_room() {
                break;
            }
            self.spend(2 * depth + "  ,\n".len());
            elements.push(self.value(at.wrapping_add(index.wrapping_mul(size)), element, None, depth + 1));
        }
        let rest = count - elements.len() as u64;
        Data::Elements(elements, rest)
    }

    /// Characters up to a zero, whose first address this is: not many of them.
    pub fn text(&self, at: u64) -> Data {
        const MOST: u64 = 256;
        self.some_characters(at, MOST, true)
    }

    /// An array of so many characters, which need have no zero.
    fn characters(&self, at: u64, count: u64) -> Data {
        self.some_characters(at, count.min(LONGEST_TEXT), count > LONGEST_TEXT)
    }

    fn some_characters(&self, at: u64, most: u64, has_more: bool) -> Data {
        let mut bytes = vec![0; usize::try_from(most).unwrap_or(0)];
        let good = self.reader.some(at, &mut bytes);
        let end = bytes[..good].iter().position(|byte| *byte == 0);
        match end {
            None if good < bytes.len() => Data::NotThere(at.wrapping_add(good as u64)),
            end => Data::Text {
                text: plain(&String::from_utf8_lossy(&bytes[..end.unwrap_or(good)])),
                is_cut: end.is_none() && has_more,
            },
        }
    }
}

/// Whether a type is C's `char`, by any name: what has its sign otherwise is a number.
pub fn is_char(types: &Types, of: Of) -> bool {
    of.stars == 0 && types.name(types.plain(of.id)) == "char"
}

/// Of a bit field: its first bit in the byte that it begins in, and how many it has.
fn bit_field(part: Part) -> Option<(u64, u64)> {
    part.bits.map(|bits| (part.at % 8, bits.into()))
}

/// What C makes of a number that is converted to a type: as many bits as that has, and its sign above them; of a truth 0
/// or 1 (C11, 6.3.1).
pub fn converted(types: &Types, value: u64, of: Of) -> u64 {
    if of.target(types).is_some() {
        return value;
    }
    let bits = of.size(types).unwrap_or(8).min(8) * 8;
    match types.shape(types.plain(of.id)) {
        Shape::Integer { is_bool: true, .. } => u64::from(value != 0),
        Shape::Integer { is_signed, .. } | Shape::Enumeration { is_signed, .. } => {
            extended(value, bits, *is_signed)
        }
        _ => value,
    }
}

/// A number of so many bits.
fn extended(value: u64, bits: u64, is_signed: bool) -> u64 {
    let above = 64 - u32::try_from(bits.clamp(1, 64)).unwrap_or(64);
    if is_signed { (value.cast_signed() << above >> above).cast_unsigned() } else { value << above >> above }
}

/// As C would have it written, with what is within braces on lines of its own.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl Data {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let (indent, end) = ("  ".repeat(depth + 1), "  ".repeat(depth));
        match self {
            Data::Number { value, is_signed: true } => write!(f, "{}", value.cast_signed()),
            Data::Number { value, .. } => write!(f, "{value}"),
            Data::Truth(is_true) => write!(f, "{is_true}"),
            Data::Address(at, None) => write!(f, "{at:#x}"),
            Data::Address(at, Some(symbol)) => write!(f, "{at:#x} <{symbol}>"),
            Data::Text { text, is_cut } => write!(f, "{text:?}{}", if *is_cut { "..." } else { "" }),
            Data::Named(value, None) => write!(f, "{value}"),
            Data::Named(_, Some(name)) => f.write_str(name),
            Data::Members(members) => {
                writeln!(f, "{{")?;
                for (name, value) in members {
                    f.write_str(&indent)?;
                    if !name.is_empty() {
                        write!(f, "{name} = ")?;
                    }
                    value.write(f, depth + 1)?;
                    writeln!(f, ",")?;
                }
                write!(f, "{end}}}")
            }
            Data::Elements(elements, more) => {
                let is_long = elements.iter().any(|it| matches!(it, Data::Members(_) | Data::Elements(..)));
                f.write_str("{")?;
                for (index, element) in elements.iter().enumerate() {
                    match is_long {
                        true => write!(f, "\n{indent}")?,
                        false if index > 0 => f.write_str(", ")?,
                        false => {}
                    }
                    element.write(f, depth + 1)?;
                    if is_long {
                        f.write_str(",")?;
                    }
                }
                match more {
                    0 => {}
                    more if is_long => write!(f, "\n{indent}... {more} more")?,
                    more => write!(f, "{}... {more} more", if elements.is_empty() { "" } else { ", " })?,
                }
                if is_long {
                    write!(f, "\n{end}")?;
                }
                f.write_str("}")
            }
            Data::NotThere(at) => write!(f, "<not there: {at:#x}>"),
            Data::Unknown => f.write_str("<of what it is made is not known>"),
            Data::TooMuch => f.write_str("..."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::{self, BASE, CHAR, INT, LIST, Made, POINTER, compound};
    use crate::types::{Enumerator, Member};

    /// What is looked at: a structure with one of each.
    pub(super) fn types() -> Types {
        let mut types = made::types();
        types.add("", Shape::Array(TypeId(CHAR), 8)); // 5
        types.add("", Shape::Array(TypeId(INT), 100)); // 6
        let values =
            [("ON", 1), ("OFF", u64::MAX)].map(|(name, value)| Enumerator { name: name.into(), value });
        let values = types.add_values(values.into_iter());
        types.add("mode", Shape::Enumeration { size: 4, is_signed: true, values }); // 7
        types.add("_Bool", Shape::Integer { size: 1, is_signed: false, is_bool: true }); // 8
        compound(&mut types, "", 8, &[("inner", INT, 0)]); // 9
        let bits =
            |name: &str, of, at, bits| Member { name: name.into(), of: TypeId(of), at, bits: Some(bits) };
        let member =
            |name: &str, of, at: u32| Member { name: name.into(), of: TypeId(of), at: at * 8, bits: None };
        let members = [
            member("name", 5, 0),
            member("mode", 7, 8),
            bits("low", INT, 99, 3),
            bits("all", 10, 101, 64),
            member("is_set", 8, 24),
            member("", 9, 28),
            member("list", LIST, 40),
            member("numbers", 6, 56),
            member("code", 11, 456),
        ];
        types.add("long int", Shape::Integer { size: 8, is_signed: true, is_bool: false }); // 10
        types.add("", Shape::Pointer(TypeId(12))); // 11
        types.add("", Shape::Function); // 12
        let members = types.add_members(members.into_iter());
        types.add("thing", Shape::Compound { size: 464, is_union: false, members }); // 13
        types.add("thing_t", Shape::Alias(TypeId(13))); // 14
        types
    }

    fn look(memory: &Made, at: u64, of: Of, bounds: Bounds) -> Data {
        let (types, read) = (types(), memory.read());
        let reader = Reader::new(&read);
        let symbol = |at: u64| (at == 0x1234).then(|| "schedule+0x4".to_string());
        Look::new(&types, &reader, &symbol, bounds).at(at, of)
    }

    const THING: Of = Of { id: TypeId(13), stars: 0 };

    fn memory() -> Made {
        let memory = Made::new(0x1000);
        memory.text(BASE, "a\u{9b}z");
        memory.put(BASE + 8, 0xffff_ffff);
        // 99 is bit 3 of byte 12, 101 bit 5.
        memory.byte(BASE + 12, 0b0001_1111);
        memory.put(BASE + 13, 0x1000_0000_0000_0001);
        memory.byte(BASE + 24, 1);
        memory.put(BASE + 28, 7);
        memory.put(BASE + 40, 0x1234);
        (0..100).for_each(|index| memory.byte(BASE + 56 + 4 * index, 9));
        memory.put(BASE + 456, 0x1234);
        memory
    }

    #[test]
    fn a_structure_is_told_member_by_member() {
        let bounds = Bounds { elements: 3, ..Bounds::USUAL };
        let found = look(&memory(), BASE, THING, bounds);
        let expected = "{\n  name = \"a\u{fffd}z\",\n  mode = OFF,\n  low = 3,\n  all = -9223372036854775800,\n  \
                        is_set = true,\n  {\n    inner = 7,\n  },\n  list = {\n    next = 0x1234 <schedule+0x4>,\n    \
                        prev = 0x0,\n  },\n  numbers = {9, 9, 9, ... 97 more},\n  code = 0x1234 <schedule+0x4>,\n}";
        assert_eq!(found.to_string(), expected);
        // By another name, and what is no more than an address.
        assert_eq!(look(&memory(), BASE, Of::plain(TypeId(14)), bounds), found);
        let pointer = Of { stars: 2, ..THING };
        assert_eq!(look(&memory(), BASE + 40, pointer, bounds).to_string(), "0x1234 <schedule+0x4>");
    }

    #[test]
    fn a_text_says_whether_there_is_more() {
        let memory = Made::new(0x3000);
        (0..0x2000).for_each(|at| memory.byte(BASE + at, b'x'));
        memory.byte(BASE + 0x1ff0, 0);
        let read = memory.read();
        let (types, reader) = (types(), Reader::new(&read));
        let look = Look::new(&types, &reader, &|_| None, Bounds::USUAL);
        let is_cut = |data: Data| matches!(data, Data::Text { is_cut: true, .. });
        assert!(is_cut(look.text(BASE)) && !is_cut(look.text(BASE + 0x1ff0 - 100)));
        // An array has as many as it has.
        assert!(!is_cut(look.characters(BASE, 8)) && !is_cut(look.characters(BASE, LONGEST_TEXT)));
        assert!(is_cut(look.characters(BASE, LONGEST_TEXT + 1)));
        assert!(look.text(BASE).to_string().ends_with("xx\"..."));
    }

    #[test]
    fn it_has_bounds() {
        let few = look(&memory(), BASE, THING, Bounds { values: 3, ..Bounds::USUAL });
        assert!(few.to_string().ends_with("mode = OFF,\n  ...,\n}"), "{few}");
        let flat = look(&memory(), BASE, THING, Bounds { depth: 0, ..Bounds::USUAL });
        assert!(flat.to_string().contains("name = ...,"), "{flat}");
        let cut = look(&memory(), BASE + 0x1000 - 16, THING, Bounds::USUAL);
        assert!(cut.to_string().contains("is_set = <not there: 0xffff800000001008>"), "{cut}");
        // As many bytes, and one value more.
        let numbers = Of::plain(TypeId(6));
        let bounds = Bounds { bytes: 30, elements: 100, ..Bounds::USUAL };
        let short = look(&memory(), BASE + 56, numbers, bounds).to_string();
        assert!(short.len() < 60 && short.ends_with(" more}"), "{short}");
        assert!(short.starts_with("{9, 9, "), "{short}");
        let bounds = Bounds { bytes: 20, ..Bounds::USUAL };
        let short = look(&memory(), BASE, THING, bounds).to_string();
        assert_eq!(short, "{\n  name = \"a\u{fffd}z\",\n  mode = ...,\n  ...,\n}");
        // A type within itself, as hostile ones are.
        let mut types = Types::new(8);
        types.add("", Shape::Array(TypeId(1), 1000));
        let members =
            types.add_members(std::iter::once(Member { name: "x".into(), of: TypeId(2), at: 0, bits: None }));
        types.add("round", Shape::Compound { size: 8, is_union: false, members });
        let made = Made::new(64);
        let read = made.read();
        let reader = Reader::new(&read);
        for id in [1, 2] {
            let text = Look::new(&types, &reader, &|_| None, Bounds::USUAL)
                .at(BASE, Of::plain(TypeId(id)))
                .to_string();
            assert!(text.len() < 1 << 16, "{}", text.len());
        }
        assert!(type_name(&types, Of::plain(TypeId(1))).len() < 1000);
    }

    #[test]
    fn types_have_names() {
        let types = types();
        let name = |id, stars| type_name(&types, Of { id: TypeId(id), stars });
        assert_eq!([name(13, 0), name(13, 2), name(5, 0)], ["struct thing", "struct thing **", "char [8]"]);
        assert_eq!([name(POINTER, 1), name(11, 0), name(9, 0)], ["void **", "function *", "struct {...}"]);
    }
}
