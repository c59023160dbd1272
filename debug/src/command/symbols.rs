//! `sym`: names of addresses and addresses of names.

use super::address::{address, number_or_register, unknown};
use super::names::{Names, Sought, in_modules};
use super::operator::Operator;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::symbols::{Frame, MOST_FOUND, Role, Symbol, SymbolsError};
use arch::words::counted;
use std::fmt;

/// `sym`.
pub const SYM: Command =
    Command::new("sym", "ADDRESS|NAME", "what is at an address, or where a symbol is: function, source line");

/// What is known of a name, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Symbols, each with its source lines, those of inlined functions first.
    pub symbols: Vec<(Symbol, Vec<Frame>)>,
    /// What was asked for is a place within the symbol, not its name.
    pub is_place: bool,
    /// What else there is to say, a line each.
    pub remarks: Vec<String>,
}

impl Found {
    /// Of an address, in the kernel or in a module.
    ///
    /// # Errors
    /// [`Refusal::NotThere`]; [`Refusal::Cancelled`].
    pub fn at(operator: &dyn Operator, names: &Names, address: u64) -> Result<Found, Refusal> {
        if let Some(symbol) = names.at(address)? {
            return Ok(Found::of(names, vec![symbol], true));
        }
        let (symbols, remarks) = in_modules(operator, Sought::Address(address))?;
        match symbols.is_empty() {
            true => Err(Refusal::NotThere(with(format!("{address:#x} is in no symbol"), &remarks))),
            false => Ok(Found::of(names, symbols, true)),
        }
    }

    /// Of a name that the kernel has.
    fn named(names: &Names, name: &str) -> Result<Option<Found>, Refusal> {
        let symbols = names.find(name)?;
        Ok((!symbols.is_empty()).then(|| Found::of(names, symbols, false)))
    }

    /// Of a name that only modules have; of `why` there is no other.
    fn in_modules(operator: &dyn Operator, names: &Names, name: &str, why: &str) -> Result<Found, Refusal> {
        let (symbols, remarks) = in_modules(operator, Sought::Name(name))?;
        match symbols.is_empty() {
            true => Err(Refusal::Usage(format!("{why}; {}", unknown(names, &remarks)))),
            false => Ok(Found::of(names, symbols, false)),
        }
    }

    fn of(names: &Names, symbols: Vec<Symbol>, is_place: bool) -> Found {
        let mut remarks = Vec::new();
        if symbols.len() == MOST_FOUND {
            remarks.push(format!("there may be more: {MOST_FOUND} are told"));
        }
        let mut why_no_lines = None;
        let mut with_lines = |symbol: Symbol| {
            let frames = match symbol.role {
                // As with others, and each would take as long.
                _ if why_no_lines == Some(SymbolsError::TooMuchWork) => Ok(Vec::new()),
                // No file has them.
                _ if symbol.module.is_some() => Ok(Vec::new()),
                Role::Function if !is_place => first_frames(names, &symbol),
                Role::Function | Role::Label => names.frames(symbol.address.wrapping_add(symbol.offset)),
                Role::Variable | Role::PerCpu | Role::Absolute => Ok(Vec::new()),
            };
            let frames = frames.unwrap_or_else(|error| {
                why_no_lines = Some(error);
                Vec::new()
            });
            (symbol, frames)
        };
        let symbols = symbols.into_iter().map(&mut with_lines).collect();
        remarks.extend(why_no_lines.map(|why| format!("no source lines: {why}")));
        Found { symbols, is_place, remarks }
    }
}

/// What is said, and what else there is to say of it.
fn with(text: String, remarks: &[String]) -> String {
    std::iter::once(text).chain(remarks.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// The line that a function begins at. What is in front of it for tracers to patch has none.
fn first_frames(names: &Names, symbol: &Symbol) -> Result<Vec<Frame>, SymbolsError> {
    for offset in (0..symbol.size.clamp(1, 32)).step_by(4) {
        let frames = names.frames(symbol.address.wrapping_add(offset))?;
        if !frames.is_empty() {
            return Ok(frames);
        }
    }
    Ok(Vec::new())
}

/// What a symbol is, where that is not plain.
fn aside(role: Role) -> &'static str {
    match role {
        Role::Function | Role::Variable | Role::Label => "",
        Role::PerCpu => ", every processor has its own",
        Role::Absolute => ", a number",
    }
}

struct Line<'a>(&'a Frame);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.file.as_deref().unwrap_or("?"))?;
        self.0.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (symbol, frames) in &self.symbols {
            match self.is_place {
                true => write!(
                    f,
                    "{:#x} is {}+{:#x}",
                    symbol.address.wrapping_add(symbol.offset),
                    symbol.name,
                    symbol.offset
                )?,
                false => write!(f, "{} is at {:#x}", symbol.name, symbol.address)?,
            }
            if symbol.size > 0 {
                write!(f, ", of {}", counted(symbol.size, "byte"))?;
            }
            write!(f, "{}", aside(symbol.role))?;
            if let Some(module) = &symbol.module {
                write!(f, " [{module}]")?;
            }
            match frames.as_slice() {
                [] => writeln!(f)?,
                [frame] => writeln!(f, ", {}", Line(frame))?,
                frames => {
                    writeln!(f)?;
                    for (at, frame) in frames.iter().enumerate() {
                        let inlined = if at + 1 < frames.len() { ", inlined" } else { "" };
                        let function = frame.function.as_deref().unwrap_or("?");
                        writeln!(f, "  {function} at {}{inlined}", Line(frame))?;
                    }
                }
            }
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}

impl Value for Found {
    fn json(&self) -> Json {
        let role = |role| match role {
            Role::Function => "function",
            Role::Variable => "variable",
            Role::Label => "label",
            Role::PerCpu => "per-cpu",
            Role::Absolute => "absolute",
        };
        let frame = |it: &Frame| json!({ "function": it.function, "file": it.file, "line": it.line, "column": it.column });
        let symbol = |(it, frames): &(Symbol, Vec<Frame>)| {
            json!({
                "name": it.name, "address": hex(it.address), "offset": it.offset, "size": it.size,
                "role": role(it.role), "module": it.module, "lines": frames.iter().map(frame).collect::<Vec<_>>(),
            })
        };
        json!({ "symbols": self.symbols.iter().map(symbol).collect::<Vec<_>>(), "remarks": self.remarks })
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let [what] = arguments.words()[..] else {
        return Err(Refusal::Usage("write one address, or one name".into()));
    };
    let operator = &*operator;
    let none = |why| {
        Refusal::NotThere(format!("no file with symbols was given ({}); {why}", operator.about_symbols()))
    };
    let names = Names::of(operator)?.map_err(none)?;
    // What is a symbol's name is taken for it: there are kernels with a function `sp`.
    let is_name = what.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let named = if is_name { Found::named(&names, what)? } else { None };
    // A register is no module's; and those take longer.
    let mut found = match named {
        Some(found) => found,
        None if is_name && !what.contains(['+', '-']) => match number_or_register(operator, what) {
            Ok(address) => Found::at(operator, &names, address)?,
            Err(why) => Found::in_modules(operator, &names, what, &why)?,
        },
        None => Found::at(operator, &names, address(operator, what)?)?,
    };
    found.remarks.extend(names.doubt(operator)?);
    Ok(Box::new(found))
}

#[cfg(all(test, feature = "disassembly", feature = "dump", feature = "dwarf"))]
mod tests;
