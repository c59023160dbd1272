//! A family's calls as data: what is parsed from a `.calls` file.
//!
//! The language: `names N { value label ... }` and `bits N { bit label ... }` name values;
//! `struct N { fields }` is a structure in the guest's memory; `ops N { number label(arguments) }`
//! are sub-operations with the arguments that follow; `control N offset { header } { number label @
//! from..to struct }` are operations of a structure that states its interface version;
//! `call number name count architectures (arguments)` is a hypercall. Commas, semicolons and line
//! ends mean nothing, `#` starts a remark.
//!
//! A field is a type and a name: `u8` to `u64` (decimal), `i8` to `i64`, `x8` to `x64`
//! (hexadecimal), `ulong` and `xlong` of the caller's word, a structure's name, `char NAME[N]`,
//! `ptr` (not followed), `&struct` and `&struct[count]` (followed; `count` is another field or
//! argument), `union SELECTOR { value struct ... }`. Behind a type, `:N` names its values; an `a` at
//! its end, or `ptr64`, makes it eight bytes aligned to eight on every architecture. Behind a name,
//! `[N]` makes an array, `<` says that the call writes it, `<>` that it does both. `_` is padding.

use arch::hypercall::Abi;
use std::collections::HashMap;

/// How an integer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Without a sign.
    Decimal,
    /// With one.
    Signed,
    /// In hexadecimal.
    Hex,
}

/// How wide an integer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// This many bytes.
    Bytes(usize),
    /// The caller's word.
    Word,
    /// Eight bytes, aligned to eight on every architecture.
    Aligned8,
}

/// What a field or an argument is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Integer {
        /// How wide.
        width: Width,
        /// How shown.
        show: Show,
        /// Names of its values.
        names: Option<&'static str>,
    },
    /// So many characters, ended by a zero if they are fewer.
    Chars(usize),
    /// A structure.
    Struct(&'static str),
    /// So many of a kind.
    Array(Box<Kind>, usize),
    /// A guest's pointer.
    Pointer {
        /// How wide it is in a structure.
        width: Width,
        /// What it points to; `None` is not followed.
        to: Option<Box<Kind>>,
        /// The field or argument that says to how many.
        count: Option<&'static str>,
    },
    /// The structure that another field selects.
    Union {
        /// That field.
        selector: &'static str,
        /// Its values, and the structures.
        cases: Vec<(u64, &'static str)>,
    },
    /// An argument: a pointer to as many characters as another argument says.
    Text(&'static str),
    /// An argument: a pointer to as many calls as another argument says.
    Calls(&'static str),
    /// An argument: a sub-operation, whose own arguments follow.
    Ops(&'static str),
    /// An argument: a pointer to a structure that states its interface version.
    Control(&'static str),
}

/// A field of a structure, or an argument.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The call reads it.
    pub is_input: bool,
    /// The call writes it.
    pub is_output: bool,
}

/// Names of values.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Values, or numbers of bits.
    pub values: Vec<(u64, &'static str)>,
    /// They are numbers of bits.
    pub are_bits: bool,
}

/// A sub-operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// Its number.
    pub number: u64,
    /// Its name, without the table's.
    pub label: &'static str,
    /// Its name, with the table's.
    pub name: String,
    /// The arguments behind it.
    pub arguments: Vec<Field>,
}

/// An operation of a structure that states its interface version.
#[derive(Clone, Debug)]
pub struct ControlOp {
    /// Its number.
    pub number: u64,
    /// Its name, without the table's.
    pub label: &'static str,
    /// Interface versions that it is known for.
    pub versions: std::ops::RangeInclusive<u64>,
    /// Its structure; none if it has nothing for the hypervisor to read.
    pub body: Option<&'static str>,
}

/// A structure that starts with a command and an interface version, 32 bits each.
#[derive(Clone, Debug)]
pub struct ControlStructure {
    /// Where the operation's structure is, bytes.
    pub body_at: usize,
    /// Fields between.
    pub header: Vec<Field>,
    /// Operations.
    pub ops: Vec<ControlOp>,
}

/// A hypercall.
#[derive(Clone, Debug)]
pub struct CallRow {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: &'static str,
    /// The arguments that it can have at most, on 64-bit architectures.
    pub count: usize,
    /// Who can make it.
    pub callers: Vec<Abi>,
    /// Its arguments.
    pub arguments: Vec<Field>,
    /// Its sub-operations, by number.
    pub ops: Vec<Op>,
}

/// A family's calls.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By number.
    pub calls: Vec<CallRow>,
    /// Places in it, by number, for each caller.
    index: Vec<[Option<u16>; Abi::ALL.len()]>,
    structs: HashMap<&'static str, Vec<Field>>,
    names: HashMap<&'static str, Names>,
    ops: HashMap<&'static str, Vec<Op>>,
    controls: HashMap<&'static str, ControlStructure>,
}

/// Why a table cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TableError {
    /// Counted from 1.
    pub line: usize,
    /// In words.
    pub what: String,
}

impl CallRow {
    /// A sub-operation by its number.
    pub fn op(&self, number: u64) -> Option<&Op> {
        self.ops.binary_search_by_key(&number, |op| op.number).ok().map(|place| &self.ops[place])
    }
}

impl Table {
    /// Parses a table.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn parse(text: &'static str) -> Result<Table, TableError> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut table = Table::default();
        while let Some(word) = parser.next() {
            match word {
                "names" | "bits" => {
                    let (name, are_bits) = (parser.word()?, word == "bits");
                    let values = parser.block("{", "}", |p| Ok((p.number()?, p.word()?)))?;
                    table.names.insert(name, Names { values, are_bits });
                }
                "struct" => {
                    let name = parser.word()?;
                    table.structs.insert(name, parser.block("{", "}", Parser::field)?);
                }
                "ops" => {
                    let table_name = parser.word()?;
                    let ops = parser.block("{", "}", |p| {
                        let (number, label) = (p.number()?, p.word()?);
                        let name = format!("{table_name}_{label}");
                        Ok(Op { number, label, name, arguments: p.block("(", ")", Parser::field)? })
                    })?;
                    let values = ops.iter().map(|op| (op.number, op.label)).collect();
                    table.names.insert(table_name, Names { values, are_bits: false });
                    table.ops.insert(table_name, ops);
                }
                "control" => {
                    let (name, body_at) = (parser.word()?, parser.size()?);
                    let header = parser.block("{", "}", Parser::field)?;
                    let ops = parser.block("{", "}", Parser::control_op)?;
                    table.controls.insert(name, ControlStructure { body_at, header, ops });
                }
                "call" => {
                    let row = parser.call()?;
                    table.calls.push(row);
                }
                other => return Err(parser.error(format!("'{other}' starts nothing"))),
            }
        }
        table.calls.sort_by_key(|call| call.number);
        table.check(&parser)?;
        table.index();
        Ok(table)
    }

    /// Makes look-ups quick.
    fn index(&mut self) {
        for (place, call) in (0u16..).zip(&mut self.calls) {
            for argument in &call.arguments {
                if let Kind::Ops(name) = argument.kind {
                    call.ops = self.ops.get(name).cloned().unwrap_or_default();
                    call.ops.sort_by_key(|op| op.number);
                }
            }
            let number = usize::try_from(call.number).unwrap_or(usize::MAX).min(MOST_NUMBERS);
            self.index.resize(self.index.len().max(number + 1), [None; Abi::ALL.len()]);
            for caller in &call.callers {
                self.index[number][*caller as usize] = Some(place);
            }
        }
    }

    /// Whether everything that is named is there.
    fn check(&self, parser: &Parser) -> Result<(), TableError> {
        let arguments = self.calls.iter().flat_map(|call| &call.arguments);
        let ops = self.ops.values().flatten().flat_map(|op| &op.arguments);
        let headers = self.controls.values().flat_map(|control| &control.header);
        for field in self.structs.values().flatten().chain(arguments).chain(ops).chain(headers) {
            if let Some(name) = self.missing(&field.kind) {
                return Err(parser.error(format!("{}: there is no {name}", field.name)));
            }
        }
        let bodies = self.controls.values().flat_map(|control| &control.ops).filter_map(|op| op.body);
        match bodies.into_iter().find(|name| !self.structs.contains_key(name)) {
            Some(name) => Err(parser.error(format!("there is no {name}"))),
            None => Ok(()),
        }
    }

    fn missing(&self, kind: &Kind) -> Option<&'static str> {
        match kind {
            Kind::Integer { names: Some(name), .. } => (!self.names.contains_key(name)).then_some(name),
            Kind::Struct(name) => (!self.structs.contains_key(name)).then_some(name),
            Kind::Array(kind, _) => self.missing(kind),
            Kind::Pointer { to: Some(to), .. } => self.missing(to),
            Kind::Union { cases, .. } => {
                cases.iter().map(|(_, name)| *name).find(|name| !self.structs.contains_key(name))
            }
            Kind::Ops(name) => (!self.ops.contains_key(name)).then_some(name),
            Kind::Control(name) => (!self.controls.contains_key(name)).then_some(name),
            _ => None,
        }
    }

    /// Where in [`Self::calls`] the call of a number is that a caller can make.
    pub fn place(&self, number: u64, abi: Abi) -> Option<usize> {
        self.index.get(usize::try_from(number).ok()?)?[abi as usize].map(usize::from)
    }

    /// The call of a number that a caller can make.
    pub fn call(&self, number: u64, abi: Abi) -> Option<&CallRow> {
        self.calls.get(self.place(number, abi)?)
    }

    /// A structure's fields; none if there is no such structure.
    pub fn fields(&self, name: &str) -> &[Field] {
        self.structs.get(name).map_or(&[], Vec::as_slice)
    }

    /// Names of values.
    pub fn names(&self, name: &str) -> Option<&Names> {
        self.names.get(name)
    }

    /// All sub-operations of a table.
    pub fn ops(&self, table: &str) -> &[Op] {
        self.ops.get(table).map_or(&[], Vec::as_slice)
    }

    /// Whether there is a call of this name, or an operation, with or without its table's name.
    pub fn has(&self, name: &str) -> bool {
        let mut ops = self.ops.values().flatten();
        self.calls.iter().any(|call| call.name == name) || ops.any(|op| name == op.label || name == op.name)
    }

    /// A structure with an interface version.
    pub fn control(&self, name: &str) -> Option<&ControlStructure> {
        self.controls.get(name)
    }
}

/// Numbers of calls are below it.
const MOST_NUMBERS: usize = 4096;

fn tokens(text: &'static str) -> Vec<(usize, &'static str)> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut rest = line.split('#').next().unwrap_or("");
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("..") {
                2
            } else {
                first.len_utf8()
            };
            let (token, behind) = rest.split_at(length);
            rest = behind;
            if !token.trim().is_empty() && token != "," && token != ";" {
                tokens.push((index + 1, token));
            }
        }
    }
    tokens
}

struct Parser {
    tokens: Vec<(usize, &'static str)>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<&'static str> {
        let (_, token) = self.tokens.get(self.at)?;
        self.at += 1;
        Some(token)
    }

    fn error(&self, what: String) -> TableError {
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or(0, |(line, _)| *line);
        TableError { line, what }
    }

    fn word(&mut self) -> Result<&'static str, TableError> {
        self.next().ok_or_else(|| self.error("it ends too early".into()))
    }

    fn has(&mut self, wanted: &str) -> bool {
        let there = self.tokens.get(self.at).is_some_and(|(_, token)| *token == wanted);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, wanted: &str) -> Result<(), TableError> {
        match self.word()? {
            token if token == wanted => Ok(()),
            token => Err(self.error(format!("'{token}' instead of '{wanted}'"))),
        }
    }

    fn number(&mut self) -> Result<u64, TableError> {
        let word = self.word()?;
        let number = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        number.map_err(|_| self.error(format!("'{word}' is no number")))
    }

    fn size(&mut self) -> Result<usize, TableError> {
        let number = self.number()?;
        usize::try_from(number).map_err(|_| self.error(format!("{number} is too large")))
    }

    fn block<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Parser) -> Result<T, TableError>,
    ) -> Result<Vec<T>, TableError> {
        self.expect(open)?;
        let mut items = Vec::new();
        while !self.has(close) {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn bracketed(&mut self) -> Result<&'static str, TableError> {
        self.expect("[")?;
        let word = self.word()?;
        self.expect("]")?;
        Ok(word)
    }

    fn field(&mut self) -> Result<Field, TableError> {
        let word = self.word()?;
        let mut kind = match word {
            "union" => {
                let selector = self.word()?;
                let cases = self.block("{", "}", |p| Ok((p.number()?, p.word()?)))?;
                let kind = Kind::Union { selector, cases };
                return Ok(Field { name: "", kind, is_input: true, is_output: false });
            }
            "&" => {
                let to = self.word()?;
                let to = integer(to, None).unwrap_or(Kind::Struct(to));
                let is_counted = self.tokens.get(self.at).is_some_and(|(_, token)| *token == "[");
                let count = if is_counted { Some(self.bracketed()?) } else { None };
                Kind::Pointer { width: Width::Word, to: Some(Box::new(to)), count }
            }
            "text" => Kind::Text(self.bracketed()?),
            "calls" => Kind::Calls(self.bracketed()?),
            "ops" => Kind::Ops(self.word()?),
            "control" => Kind::Control(self.word()?),
            "char" => Kind::Chars(0),
            word => {
                let names = if self.has(":") { Some(self.word()?) } else { None };
                integer(word, names).unwrap_or(Kind::Struct(word))
            }
        };
        let name = self.word()?;
        if self.has("[") {
            let count = self.size()?;
            self.expect("]")?;
            kind = match kind {
                Kind::Chars(_) => Kind::Chars(count),
                kind => Kind::Array(Box::new(kind), count),
            };
        }
        let is_output = self.has("<");
        let is_both = is_output && self.has(">");
        Ok(Field { name, kind, is_input: !is_output || is_both, is_output })
    }

    fn control_op(&mut self) -> Result<ControlOp, TableError> {
        let (number, label) = (self.number()?, self.word()?);
        self.expect("@")?;
        let first = self.number()?;
        self.expect("..")?;
        let versions = first..=self.number()?;
        let is_name = |token: &str| token.starts_with(|c: char| c.is_ascii_alphabetic());
        let body = self.tokens.get(self.at).map(|(_, token)| *token).filter(|token| is_name(token));
        self.at += usize::from(body.is_some());
        Ok(ControlOp { number, label, versions, body })
    }

    fn call(&mut self) -> Result<CallRow, TableError> {
        let (number, name, count) = (self.number()?, self.word()?, self.size()?);
        let mut callers = Vec::new();
        loop {
            match self.word()? {
                "x86" => callers.extend([Abi::X86_64, Abi::X86_32]),
                "x86_64" => callers.push(Abi::X86_64),
                "x86_32" => callers.push(Abi::X86_32),
                "arm" => callers.push(Abi::Aarch64),
                "(" => break,
                other => return Err(self.error(format!("'{other}' is no architecture"))),
            }
        }
        self.at -= 1;
        Ok(CallRow {
            number,
            name,
            count,
            callers,
            arguments: self.block("(", ")", Parser::field)?,
            ops: Vec::new(),
        })
    }
}

fn integer(word: &str, names: Option<&'static str>) -> Option<Kind> {
    let simple = |width, show| Some(Kind::Integer { width, show, names });
    match word {
        "domid" => {
            return Some(Kind::Integer { width: Width::Bytes(2), show: Show::Decimal, names: Some("DOMID") });
        }
        "ulong" => return simple(Width::Word, Show::Decimal),
        "xlong" => return simple(Width::Word, Show::Hex),
        "ptr" => return Some(Kind::Pointer { width: Width::Word, to: None, count: None }),
        "ptr64" => return Some(Kind::Pointer { width: Width::Aligned8, to: None, count: None }),
        _ => {}
    }
    let (show, rest) = match word.split_at_checked(1)? {
        ("u", rest) => (Show::Decimal, rest),
        ("i", rest) => (Show::Signed, rest),
        ("x", rest) => (Show::Hex, rest),
        _ => return None,
    };
    let width = match rest {
        "8" => Width::Bytes(1),
        "16" => Width::Bytes(2),
        "32" => Width::Bytes(4),
        "64" => Width::Bytes(8),
        "64a" => Width::Aligned8,
        _ => return None,
    };
    simple(width, show)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "names N { 1 one 0x10 sixteen } # remark\n\
        struct inner { u8 a; u64 b }\n\
        struct outer { u16:N a, inner i; char text[5]; union a { 1 inner }; ptr p; u64a c < }\n\
        ops OP { 0 none() 7 some(&outer arg, u32 n) }\n\
        control C 8 { } { 1 first @ 3..4 inner 2 second @ 3..9 }\n\
        call 3 three 3 x86 arm (ops OP cmd) call 4 four 1 x86_32 (control C c)";

    #[test]
    fn layouts_follow_the_architecture() {
        let table = Table::parse(SMALL).unwrap();
        let offsets = |abi| table.places("outer", abi).iter().map(|(_, at, ..)| *at).collect::<Vec<_>>();
        assert_eq!(offsets(Abi::X86_64), [0, 8, 24, 32, 48, 56]);
        assert_eq!(offsets(Abi::X86_32), [0, 4, 16, 24, 36, 40]);
        assert_eq!(table.layout_of("outer", Abi::X86_64), (64, 8));
        assert_eq!(table.layout_of("outer", Abi::X86_32), (48, 8));
        assert_eq!(table.layout_of("inner", Abi::X86_32), (12, 4));
    }

    #[test]
    fn calls_are_found_by_number_and_caller() {
        let table = Table::parse(SMALL).unwrap();
        assert_eq!(table.call(3, Abi::Aarch64).map(|call| call.name), Some("three"));
        assert!(table.call(4, Abi::X86_64).is_none() && table.call(4, Abi::X86_32).is_some());
        let call = table.call(3, Abi::X86_64).unwrap();
        assert_eq!(call.ops.iter().find(|op| op.number == 7).unwrap().arguments.len(), 2);
        assert!(table.call(u64::MAX, Abi::X86_64).is_none());
        let control = table.control("C").unwrap();
        assert_eq!((control.ops.len(), control.ops[1].body), (2, None));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, line, what) in [
            ("names N { 1 one\n x two }", 2, "'x' is no number"),
            ("struct s {\n u32:M a }", 2, "a: there is no M"),
            ("call 1 a 0 mips ()", 1, "'mips' is no architecture"),
            ("nonsense", 1, "'nonsense' starts nothing"),
            ("struct s { u8", 1, "it ends too early"),
        ] {
            let error = Table::parse(text).unwrap_err();
            assert_eq!((error.line, error.what.as_str()), (line, what));
        }
    }
}
