//! `map`: ranges of addresses that are mapped.

use super::super::address::{address, count, size};
use super::super::operator::Operator;
use super::{Ram, whose_tables};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::{Page, View};
use arch::paging::Permissions;
use std::fmt;
use std::ops::ControlFlow;

/// `map`.
pub const MAP: Command =
    Command::new("map", "[ADDRESS [LENGTH]]", "ranges that are mapped, with permissions");

/// Ranges that one answer has.
const MOST_RANGES: usize = 512;

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// The first one.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Map {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(operator: &dyn Operator, arguments: &Arguments<'_>) -> Result<Map, Refusal> {
        let (first, length) = match arguments.words()[..] {
            [] => (0, None),
            [start] => (address(operator, start)?, None),
            [start, length] => (address(operator, start)?, Some(count(length)?)),
            _ => return Err(Refusal::Usage("write an address and a length at most".into())),
        };
        let last = length.map_or(u64::MAX, |length| first.saturating_add(length.saturating_sub(1)));
        Ok(Map { first, last })
    }

    /// Looks what is mapped.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], where nothing says how to translate; [`Refusal::Cancelled`].
    pub fn run(&self, view: &View<'_>) -> Result<Mapped, Refusal> {
        let (regime, tables) = view.translation()?;
        let (whose, words) = (whose_tables(view, tables), regime.describe());
        if !regime.is_on() {
            let ram = Some(Ram(view.memory().ranges()));
            return Ok(Mapped { whose, regime: words, ram, ranges: Vec::new(), is_cut_off: false });
        }
        let mut ranges: Vec<MappedRange> = Vec::new();
        view.pages(&regime, (self.first, self.last), &mut |Page { start, last, mapping, .. }| {
            let permissions = mapping.permissions;
            match ranges.last_mut() {
                Some(range)
                    if range.permissions == permissions && range.last.checked_add(1) == Some(start) =>
                {
                    range.last = last;
                }
                _ => ranges.push(MappedRange { start, last, permissions }),
            }
            if ranges.len() > MOST_RANGES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let is_cut_off = ranges.len() > MOST_RANGES;
        ranges.truncate(MOST_RANGES);
        Ok(Mapped { whose, regime: words, ram: None, ranges, is_cut_off })
    }
}

/// A range of addresses with the same permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// The first address.
    pub start: u64,
    /// The last one.
    pub last: u64,
    /// What may be done there.
    pub permissions: Permissions,
}

/// What is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Whose tables they are, where they are not the vCPU's own; in words.
    pub whose: Option<String>,
    /// How addresses are translated, in words.
    pub regime: String,
    /// Without paging: the guest's RAM, which addresses are of then.
    pub ram: Option<Ram>,
    /// Ranges that are mapped.
    pub ranges: Vec<MappedRange>,
    /// There are more behind them.
    pub is_cut_off: bool,
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(whose) = &self.whose {
            writeln!(f, "{whose}")?;
        }
        writeln!(f, "{}", self.regime)?;
        if let Some(ram) = &self.ram {
            return write!(f, "{ram}");
        }
        for MappedRange { start, last, permissions } in &self.ranges {
            let length = (last - start).checked_add(1).map_or_else(|| "16 EiB".into(), size);
            writeln!(f, "{start:#018x}-{last:#018x} {permissions} {length}")?;
        }
        if self.is_cut_off { writeln!(f, "(and more; give an address to start from)") } else { Ok(()) }
    }
}

impl Value for Mapped {
    fn json(&self) -> Json {
        let range = |MappedRange { start, last, permissions }: &MappedRange| json!({ "start": hex(*start), "last": hex(*last), "permissions": permissions.to_string() });
        json!({
            "regime": self.regime,
            "memory": self.ram.as_ref().map(Ram::json),
            "ranges": self.ranges.iter().map(range).collect::<Vec<_>>(),
            "more": self.is_cut_off,
        })
    }
}

pub(in crate::command) fn run(
    operator: &mut dyn Operator,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    Ok(Box::new(Map::parse(operator, arguments)?.run(&operator.view())?))
}
