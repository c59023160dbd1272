//! `print`: what is in a Linux kernel's memory, by the types that it has in memory itself.
//!
//! What is asked for is written as in C: symbols and numbers, `*`, `&`, `.`, `->`, `[N]`, and `(struct T *)` in front of
//! where something is; a symbol without a type of its own stands for its address there. Of what every processor has one of,
//! `per_cpu(SYMBOL, N)` is processor N's. `list(HEAD, struct T, MEMBER)` is what is linked to a `struct list_head` by a
//! member, and a member of that is one of each.

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::reader::Reader;
use crate::linux::symbols::Kind;
use crate::linux::typed::{Bounds, Data, Look, Of, by_name, converted, is_char, type_name};
use crate::linux::types::{Part, TypeId};
use crate::linux::{Symbols, Types};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use std::fmt;

/// `print`.
pub const PRINT: Command = Command::new(
    "print",
    "EXPRESSION",
    "data of the kernel's by its own types: print *(struct task_struct *)init_task, print per_cpu(runqueues, 0).nr_running",
);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// Each thing: several of a list.
    pub things: Vec<Thing>,
    /// What of a list could not be had, a line each.
    pub remarks: Vec<String>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// Its type's name.
    pub type_name: String,
    /// Where it is, if it is in memory.
    pub address: Option<u64>,
    /// What it is.
    pub data: Data,
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Thing { type_name, address, data } in &self.things {
            write!(f, "({type_name}) ")?;
            if let Some(address) = address {
                write!(f, "{address:#x}: ")?;
            }
            writeln!(f, "{data}")?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}

fn as_json(data: &Data) -> Json {
    match data {
        Data::Number { value, is_signed: true } => json!(value.cast_signed()),
        Data::Number { value, .. } => json!(value),
        Data::Truth(is_true) => json!(is_true),
        Data::Address(at, None) => json!(hex(*at)),
        Data::Address(at, Some(symbol)) => json!({ "address": hex(*at), "symbol": symbol }),
        Data::Text { text, is_cut: false } => json!(text),
        Data::Text { text, is_cut: true } => json!({ "text": text, "more": true }),
        Data::Named(value, name) => json!({ "value": value.cast_signed(), "name": name }),
        Data::Members(members) => {
            let mut object = serde_json::Map::new();
            for (name, value) in members {
                match (name.is_empty(), as_json(value)) {
                    // Members of one without a name are the outer one's.
                    (true, Json::Object(inner)) => object.extend(inner),
                    (true, _) => {}
                    (false, value) => drop(object.insert(name.clone(), value)),
                }
            }
            Json::Object(object)
        }
        Data::Elements(elements, more) => {
            let elements = elements.iter().map(as_json).collect::<Vec<_>>();
            if *more == 0 { json!(elements) } else { json!({ "elements": elements, "more": more }) }
        }
        Data::NotThere(_) | Data::Unknown | Data::TooMuch => Json::Null,
    }
}

impl Value for Printed {
    fn json(&self) -> Json {
        let thing = |it: &Thing| json!({ "type": it.type_name, "address": it.address.map(hex), "value": as_json(&it.data) });
        json!({ "things": self.things.iter().map(thing).collect::<Vec<_>>(), "remarks": self.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        let missing = self.things.iter().find_map(|thing| match thing.data {
            Data::NotThere(at) => Some(format!("the kernel's memory cannot be read at {at:#x}")),
            _ => None,
        });
        missing.or_else(|| (!self.remarks.is_empty()).then(|| self.remarks.join("; ")))
    }
}

/// A part of what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Number(u64),
    Symbol(String),
    PerCpu(String, u64),
    List { head: Box<Expression>, of: Vec<String>, member: String },
    Cast { to: Vec<String>, stars: u32, what: Box<Expression> },
    Target(Box<Expression>),
    Address(Box<Expression>),
    Member(Box<Expression>, String),
    Element(Box<Expression>, u64),
}

/// Parts within parts, at most.
const DEEPEST: usize = 32;
/// Members of a list that are told, at most.
const MOST_LISTED: usize = 1000;

/// Reads an expression.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn whole(text: &str) -> Result<Expression, String> {
        let mut parser = Parser { rest: text, depth: 0 };
        let expression = parser.unary()?;
        match parser.peek() {
            "" => Ok(expression),
            rest => Err(format!("'{rest}' is one too many")),
        }
    }

    /// What is next: a name or number, `->`, or one character; empty at the end.
    fn peek(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let word = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let length = match word {
            0 if self.rest.starts_with("->") => 2,
            0 => self.rest.chars().next().map_or(0, char::len_utf8),
            word => word,
        };
        &self.rest[..length]
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.rest = &self.rest[token.len()..];
        token
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        match self.next() {
            token if token == wanted => Ok(()),
            "" => Err(format!("'{wanted}' is missing at the end")),
            token => Err(format!("'{wanted}' is missing in front of '{token}'")),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.next() {
            token if is_name(token) => Ok(token.into()),
            "" => Err("a name is missing at the end".into()),
            token => Err(format!("'{token}' is no name")),
        }
    }

    fn number(&mut self) -> Result<u64, String> {
        let token = self.next();
        crate::reply::number(token).map_err(|_| format!("'{token}' is no number"))
    }

    fn unary(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("no more than {DEEPEST} within each other"));
        }
        let result = match self.peek() {
            "*" => {
                self.next();
                Expression::Target(Box::new(self.unary()?))
            }
            "&" => {
                self.next();
                Expression::Address(Box::new(self.unary()?))
            }
            _ => self.cast_or_postfix()?,
        };
        self.depth -= 1;
        Ok(result)
    }

    /// `(TYPE *)` in front of something, or something.
    fn cast_or_postfix(&mut self) -> Result<Expression, String> {
        let before = self.rest;
        if self.peek() == "(" {
            self.next();
            if let Ok((to, stars)) = self.type_in_cast() {
                return Ok(Expression::Cast { to, stars, what: Box::new(self.unary()?) });
            }
            self.rest = before;
        }
        self.postfix()
    }

    /// Names and stars up to a closing bracket; one name without a star is a type where something stands behind it.
    fn type_in_cast(&mut self) -> Result<(Vec<String>, u32), String> {
        let to = self.type_words()?;
        let stars = self.stars();
        self.expect(")")?;
        let is_type = stars > 0 || to.len() > 1 || {
            let next = self.peek();
            is_name(next) || next.starts_with(|c: char| c.is_ascii_digit()) || matches!(next, "(" | "*" | "&")
        };
        if is_type { Ok((to, stars)) } else { Err("it is no type".into()) }
    }

    fn type_words(&mut self) -> Result<Vec<String>, String> {
        let mut words = vec![self.name()?];
        while is_name(self.peek()) {
            words.push(self.name()?);
        }
        Ok(words)
    }

    fn stars(&mut self) -> u32 {
        let mut stars = 0;
        while self.peek() == "*" {
            self.next();
            stars += 1;
        }
        stars
    }

    fn postfix(&mut self) -> Result<Expression, String> {
        let mut so_far = self.primary()?;
        for _ in 0..DEEPEST {
            let inner = Box::new(so_far);
            so_far = match self.peek() {
                "." | "->" => {
                    self.next();
                    Expression::Member(inner, self.name()?)
                }
                "[" => {
                    self.next();
                    let index = self.number()?;
                    self.expect("]")?;
                    Expression::Element(inner, index)
                }
                _ => return Ok(*inner),
            };
        }
        Err(format!("no more than {DEEPEST} behind each other"))
    }

    fn primary(&mut self) -> Result<Expression, String> {
        match self.peek() {
            "(" => {
                self.next();
                let inner = self.unary()?;
                self.expect(")")?;
                Ok(inner)
            }
            token if token.starts_with(|c: char| c.is_ascii_digit()) => self.number().map(Expression::Number),
            _ => {
                let name = self.name()?;
                match (&*name, self.peek()) {
                    ("per_cpu", "(") => {
                        self.next();
                        let symbol = self.name()?;
                        self.expect(",")?;
                        let cpu = self.number()?;
                        self.expect(")")?;
                        Ok(Expression::PerCpu(symbol, cpu))
                    }
                    ("list", "(") => {
                        self.next();
                        let head = Box::new(self.unary()?);
                        self.expect(",")?;
                        let of = self.type_words()?;
                        self.expect(",")?;
                        let mut member = self.name()?;
                        while self.peek() == "." {
                            self.next();
                            member = format!("{member}.{}", self.name()?);
                        }
                        self.expect(")")?;
                        Ok(Expression::List { head, of, member })
                    }
                    _ => Ok(Expression::Symbol(name)),
                }
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// What an expression comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Something in memory; of which type is not always known.
    Place { at: u64, of: Option<Of>, part: Option<Part> },
    /// A number that is not.
    Number { value: u64, of: Option<Of> },
    /// Several, of a list.
    Several(Vec<Found>),
}

/// What expressions are about.
struct Kernel<'a> {
    types: &'a Types,
    symbols: &'a Symbols,
    reader: &'a Reader<'a>,
    remarks: Vec<String>,
}

impl Kernel<'_> {
    fn find(&mut self, expression: &Expression) -> Result<Found, String> {
        Ok(match expression {
            Expression::Number(value) => Found::Number { value: *value, of: None },
            Expression::Symbol(name) => self.symbol(name)?,
            Expression::PerCpu(name, cpu) => self.per_cpu(name, *cpu)?,
            Expression::List { head, of, member } => self.list(head, of, member)?,
            Expression::Cast { to, stars, what } => {
                let of = Of { id: self.type_of(to)?, stars: *stars };
                let what = self.find(what)?;
                each(what, &mut |it| Ok(Found::Number { value: self.as_number(&it)?, of: Some(of) }))?
            }
            Expression::Target(what) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.target(&it))?
            }
            Expression::Address(what) => {
                let what = self.find(what)?;
                each(what, &mut |it| match it {
                    Found::Place { at, of, part: None } => {
                        let of = of.map(|of| Of { stars: of.stars + 1, ..of });
                        Ok(Found::Number { value: at, of })
                    }
                    _ => Err("only what is in memory has an address".into()),
                })?
            }
            Expression::Member(what, name) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.member(&it, name))?
            }
            Expression::Element(what, index) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.element(&it, *index))?
            }
        })
    }

    fn type_of(&self, words: &[String]) -> Result<TypeId, String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        by_name(self.types, &words).ok_or_else(|| format!("the kernel has no type '{}'", words.join(" ")))
    }

    /// The one symbol of a name.
    fn one(&self, name: &str) -> Result<(u64, Kind), String> {
        let mut all = self.symbols.named(name);
        match (all.next(), all.next()) {
            (None, _) => Err(format!("the kernel has no symbol '{name}' in memory")),
            (Some(symbol), None) => Ok((symbol.address, symbol.kind)),
            _ => Err(format!("there are several symbols '{name}': 'sym {name}' has their addresses")),
        }
    }

    /// The type of a variable, where the kernel has one: of what every processor has one of, as a rule.
    fn type_of_variable(&self, name: &str) -> Option<Of> {
        self.types.variable(name).map(Of::plain)
    }

    fn is_per_cpu(&self, at: u64) -> bool {
        // Numbers, and no places, where processors' data is counted from 0.
        let bound = |name| self.symbols.named(name).next().map(|symbol| symbol.address);
        match (bound("__per_cpu_start"), bound("__per_cpu_end")) {
            (Some(start), Some(end)) => (start..end).contains(&at),
            _ => false,
        }
    }

    fn symbol(&self, name: &str) -> Result<Found, String> {
        let (at, _) = self.one(name)?;
        if self.is_per_cpu(at) {
            return Err(format!("every processor has a '{name}' of its own: write per_cpu({name}, 0)"));
        }
        Ok(Found::Place { at, of: self.type_of_variable(name), part: None })
    }

    fn per_cpu(&self, name: &str, cpu: u64) -> Result<Found, String> {
        let (at, _) = self.one(name)?;
        if !self.is_per_cpu(at) {
            return Err(format!("there is one '{name}' for all processors"));
        }
        // Of what is no processor there is an offset as well, or what stands behind the offsets.
        let count = self.symbols.address("nr_cpu_ids").and_then(|at| self.reader.number(at, 4).ok());
        if count.is_some_and(|count| cpu >= count) {
            return Err(format!("the kernel has no processor {cpu}"));
        }
        let offsets = self.symbols.address("__per_cpu_offset");
        let offsets =
            offsets.ok_or("the kernel does not say where its processors' data is (__per_cpu_offset)")?;
        let most = self.types.variable("__per_cpu_offset").and_then(|id| Of::plain(id).elements(self.types));
        if cpu >= most.map_or(8192, |(_, count)| count) {
            return Err(format!("the kernel has no processor {cpu}"));
        }
        let offset = self.reader.address(offsets.wrapping_add(8 * cpu)).map_err(|error| error.to_string())?;
        // Processors that are not there have what the linker has put there, or nothing.
        Ok(Found::Place { at: at.wrapping_add(offset), of: self.type_of_variable(name), part: None })
    }

    fn list(&mut self, head: &Expression, of: &[String], member: &str) -> Result<Found, String> {
        let id = self.type_of(of)?;
        let field = self.types.part(id, member).and_then(|part| part.offset());
        let field =
            field.ok_or_else(|| format!("{} has no '{member}'", type_name(self.types, Of::plain(id))))?;
        let head = match self.find(head)? {
            Found::Place { at, .. } => at,
            Found::Number { value, .. } => value,
            Found::Several(_) => return Err("a list of lists is not gone through".into()),
        };
        let (members, remarks) = crate::linux::linked(head, self.reader, MOST_LISTED);
        self.remarks.extend(remarks);
        let of = Some(Of::plain(id));
        let place = |at: u64| Found::Place { at: at.wrapping_sub(field), of, part: None };
        Ok(Found::Several(members.into_iter().map(place).collect()))
    }

    /// What stands for an address or a number.
    fn as_number(&self, found: &Found) -> Result<u64, String> {
        match found {
            Found::Number { value, of } => Ok(of.map_or(*value, |of| converted(self.types, *value, of))),
            // Where something is, where nothing else is known of it.
            Found::Place { at, of: None, .. } => Ok(*at),
            Found::Place { at, of: Some(of), .. } if of.elements(self.types).is_some() => Ok(*at),
            Found::Place { at, of: Some(of), part } => {
                if part.is_some_and(|part| part.bits.is_some()) {
                    return Err("a bit field is printed by itself alone".into());
                }
                let Some(size) = of.size(self.types).filter(|size| (1..=8).contains(size)) else {
                    // As `(struct T *)init_task` means where it is.
                    return Ok(*at);
                };
                let value = self.reader.number(*at, size).map_err(|error| error.to_string())?;
                Ok(converted(self.types, value, *of))
            }
            Found::Several(_) => Err("there are several".into()),
        }
    }

    fn target(&self, found: &Found) -> Result<Found, String> {
        let of = match found {
            Found::Number { of, .. } | Found::Place { of, .. } => *of,
            Found::Several(_) => None,
        };
        let of = of.ok_or("of what type it is is not known: write *(struct T *) in front of it")?;
        let element = of.elements(self.types).map(|(element, _)| element);
        let target = element.or_else(|| of.target(self.types));
        let target = target.ok_or_else(|| format!("a {} is no address", type_name(self.types, of)))?;
        Ok(Found::Place { at: self.as_number(found)?, of: Some(target), part: None })
    }

    fn member(&self, found: &Found, name: &str) -> Result<Found, String> {
        let found = match found {
            Found::Place { of: Some(of), .. } | Found::Number { of: Some(of), .. }
                if of.target(self.types).is_some() =>
            {
                self.target(found)?
            }
            found => found.clone(),
        };
        let Found::Place { at, of: Some(of), part: None } = found else {
            return Err(format!(
                "of what type that is that has a '{name}' is not known: write ((struct T *)ADDRESS)->{name}"
            ));
        };
        let part = self.types.member(of.id, name).filter(|_| of.stars == 0);
        let part = part.ok_or_else(|| format!("{} has no '{name}'", type_name(self.types, of)))?;
        let place = at.wrapping_add(part.at / 8);
        // A bit field is looked at as a part of what it is in.
        let rest = part.bits.is_some().then_some(Part { at: part.at % 8, ..part });
        Ok(Found::Place { at: place, of: Some(Of::plain(part.of)), part: rest })
    }

    fn element(&self, found: &Found, index: u64) -> Result<Found, String> {
        let first = self.target(found)?;
        let Found::Place { at, of: Some(of), .. } = first else { return Err("it has no elements".into()) };
        if let Found::Place { of: Some(of), .. } = found
            && let Some((_, count)) = of.elements(self.types)
            // One at a structure's end has as many as there are.
            && count > 1
            && index >= count
        {
            return Err(format!("it has {count} elements, from 0 on"));
        }
        let size = of.size(self.types);
        let size =
            size.ok_or_else(|| format!("how large a {} is is not known", type_name(self.types, of)))?;
        Ok(Found::Place { at: at.wrapping_add(size.wrapping_mul(index)), of: Some(of), part: None })
    }

    /// What there is to be told of what was found: of all of it together, as much as there is room for.
    fn tell(&mut self, found: &Found, bounds: Bounds) -> Vec<Thing> {
        let symbol = |at: u64| {
            let (symbol, _) = self.symbols.at(at).filter(|(_, size)| *size != u64::MAX)?;
            let behind = at - symbol.address;
            Some(if behind == 0 { symbol.name.into() } else { format!("{}+{behind:#x}", symbol.name) })
        };
        let mut things = Vec::new();
        let mut look = Look::new(self.types, self.reader, &symbol, bounds);
        self.tell_each(found, &mut look, &mut things);
        if look.is_cut() {
            let Bounds { values, bytes, .. } = Bounds::USUAL;
            let text =
                format!("no more than {values} values and {} MiB are told: ask for a part", bytes >> 20);
            self.remarks.push(text);
        }
        things
    }

    fn tell_each(&self, found: &Found, look: &mut Look<'_>, things: &mut Vec<Thing>) {
        if !look.has_room() {
            return;
        }
        let name = |of: &Of| type_name(self.types, *of);
        let thing = match found {
            Found::Several(all) => return all.iter().for_each(|it| self.tell_each(it, look, things)),
            Found::Place { at, of: Some(of), part } => {
                let data = match part {
                    Some(part) => look.part(*at, *part),
                    None => look.at(*at, *of),
                };
                Thing { type_name: name(of), address: Some(*at), data }
            }
            Found::Place { at, of: None, .. } => {
                Thing { type_name: "void".into(), address: Some(*at), data: Data::Unknown }
            }
            Found::Number { value, of: Some(of) } => {
                let is_text = of.target(self.types).is_some_and(|target| is_char(self.types, target));
                let data = if is_text { look.text(*value) } else { look.number(*value, *of) };
                Thing { type_name: name(of), address: None, data }
            }
            Found::Number { value, of: None } => {
                let data = Data::Address(*value, (look.symbol)(*value));
                Thing { type_name: "unsigned long".into(), address: None, data }
            }
        };
        // With its address, and what stands around both.
        look.spend(thing.type_name.len() + "() 0xffffffffffffffff: \n".len());
        things.push(thing);
    }
}

/// Does something with one, or with each of several.
fn each(found: Found, work: &mut dyn FnMut(Found) -> Result<Found, String>) -> Result<Found, String> {
    match found {
        Found::Several(all) => Ok(Found::Several(all.into_iter().map(work).collect::<Result<_, _>>()?)),
        one => work(one),
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let text = arguments.words().join(" ");
    if text.is_empty() {
        return Err(Refusal::Usage("write what is to be printed: *(struct task_struct *)init_task".into()));
    }
    let expression = Parser::whole(&text).map_err(Refusal::Usage)?;
    let view = operator.view();
    let printed = of_kernel(&view, |info| {
        let (symbols, types) = (view.kernel_symbols(info)?, view.kernel_types(info)?);
        // Of what one vCPU does not see, as one in user space with tables of its own, another may see all.
        let landmark = symbols.address("init_task");
        let print = |landmark: Option<u64>| {
            view.by_kernel(info, |read| {
                let reader = Reader::new(read);
                landmark.map_or(Ok(0), |at| reader.address(at)).map_err(|error| error.to_string())?;
                let mut kernel =
                    Kernel { types: &types, symbols: &symbols, reader: &reader, remarks: Vec::new() };
                let found = kernel.find(&expression)?;
                let things = kernel.tell(&found, Bounds::USUAL);
                Ok::<_, String>(Printed { things, remarks: kernel.remarks })
            })
        };
        print(landmark).or_else(|why| if landmark.is_some() { print(None) } else { Err(why) })
    })?;
    Ok(Box::new(printed))
}

#[cfg(test)]
mod tests;
