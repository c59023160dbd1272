//! `sym`: names of addresses and addresses of names, by the kernel's own file.

use super::operator::Operator;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::symbols::{Frame, MOST_FOUND, Moved, Role, Symbol, SymbolsError};
use arch::words::counted;
use std::fmt;

/// `sym`.
pub const SYM: Command =
    Command::new("sym", "ADDRESS|NAME", "what is at an address, or where a symbol is: function, source line");

/// What the kernel's file says.
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
    /// Of an address.
    ///
    /// # Errors
    /// [`Refusal::NotThere`].
    pub fn at(moved: &Moved, address: u64) -> Result<Found, Refusal> {
        let symbol = moved.at(address)?;
        let symbol = symbol.ok_or_else(|| Refusal::NotThere(format!("{address:#x} is in no symbol")))?;
        Ok(Found::of(moved, vec![symbol], true))
    }

    /// Of a name.
    ///
    /// # Errors
    /// [`Refusal::NotThere`].
    pub fn named(moved: &Moved, name: &str) -> Result<Found, Refusal> {
        match moved.find(name)? {
            symbols if symbols.is_empty() => Err(Refusal::NotThere(format!("there is no symbol '{name}'"))),
            symbols => Ok(Found::of(moved, symbols, false)),
        }
    }

    fn of(moved: &Moved, symbols: Vec<Symbol>, is_place: bool) -> Found {
        let mut remarks = Vec::new();
        if symbols.len() == MOST_FOUND {
            remarks.push(format!("there may be more: {MOST_FOUND} are told"));
        }
        let mut why_no_lines = None;
        let mut with_lines = |symbol: Symbol| {
            let frames = match symbol.role {
                // As with others, and each would take as long.
                _ if why_no_lines == Some(SymbolsError::TooMuchWork) => Ok(Vec::new()),
                Role::Function if !is_place => first_frames(moved, &symbol),
                Role::Function | Role::Label => moved.frames(symbol.address.wrapping_add(symbol.offset)),
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

/// The line that a function begins at. What is in front of it for tracers to patch has none.
fn first_frames(moved: &Moved, symbol: &Symbol) -> Result<Vec<Frame>, SymbolsError> {
    for offset in (0..symbol.size.clamp(1, 32)).step_by(4) {
        let frames = moved.frames(symbol.address.wrapping_add(offset))?;
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
                "role": role(it.role), "lines": frames.iter().map(frame).collect::<Vec<_>>(),
            })
        };
        json!({ "symbols": self.symbols.iter().map(symbol).collect::<Vec<_>>(), "remarks": self.remarks })
    }
}

impl From<SymbolsError> for Refusal {
    fn from(error: SymbolsError) -> Refusal {
        Refusal::NotThere(error.to_string())
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let [what] = arguments.words()[..] else {
        return Err(Refusal::Usage("write one address, or one name".into()));
    };
    let operator = &*operator;
    let none = || Refusal::NotThere("no file with symbols was given (--symbols vmlinux)".into());
    let moved = super::address::moved(operator)?.ok_or_else(none)?;
    // What is a symbol's name is taken for it: there are kernels with a function `sp`.
    let is_named = what.starts_with(|c: char| c.is_alphabetic() || c == '_') && !moved.find(what)?.is_empty();
    let mut found = match is_named {
        true => Found::named(&moved, what),
        false => Found::at(&moved, super::address::address(operator, what)?),
    }?;
    found.remarks.extend(doubt(operator)?);
    Ok(Box::new(found))
}

/// Why the file may not be the guest's kernel's, or the addresses not where it is now.
#[cfg(feature = "linux")]
fn doubt(operator: &dyn Operator) -> Result<Option<String>, Refusal> {
    let known = operator.view().kernel(crate::linux::described::Scope::Running)?;
    let Some(info) = &known.info else {
        return Ok(Some("no Linux kernel has described itself in memory (yet): taken as not moved".into()));
    };
    let build_id = operator.symbols().and_then(crate::symbols::Symbols::build_id);
    let ours = build_id.map(|it| it.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(match (info.build_id(), ours) {
        (Some(theirs), Some(ours)) if *theirs != ours => {
            Some(format!("the guest's kernel is another build ({theirs}; the file is {ours})"))
        }
        _ => None,
    })
}

#[cfg(not(feature = "linux"))]
fn doubt(_operator: &dyn Operator) -> Result<Option<String>, Refusal> {
    Ok(Some("the kernel is taken as not moved".into()))
}

#[cfg(all(test, feature = "disassembly", feature = "dump"))]
mod tests;
