//! `translate`: a page walk, entry by entry.

use super::super::address::{address, count, size};
use super::super::operator::Operator;
use super::whose_tables;
use crate::memory::{self, Translation};
use crate::reply::{Arguments, Command, Flag, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::paging::{Fault, Mapping, TableEntry};
use arch::{GuestPhys, GuestVirt};
use std::fmt;

/// `translate`.
pub const TRANSLATE: Command = Command::new(
    "translate",
    "ADDRESS",
    "the page walk for an address, entry by entry; 0x1000, 4096, $rsp and $rsp+0x10 are addresses",
)
.flags(&[Flag {
    name: "--table",
    short: None,
    value: Some("ADDRESS"),
    what: "by this top-level table of a process, guest-physical, instead of the vCPU's",
}]);

/// A page walk that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translate {
    /// Guest-virtual address.
    pub address: u64,
    /// The top-level table of a process, instead of the vCPU's.
    pub table: Option<GuestPhys>,
}

impl Translate {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(operator: &dyn Operator, arguments: &Arguments<'_>) -> Result<Translate, Refusal> {
        let [text] = arguments.words()[..] else { return Err(Refusal::Usage("write one address".into())) };
        let table = arguments.value("--table").map(count).transpose()?;
        Ok(Translate { address: address(operator, text)?, table: table.map(GuestPhys) })
    }

    /// Walks.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], where nothing says how to translate.
    pub fn run(&self, view: &View<'_>) -> Result<Walk, Refusal> {
        let (regime, whose) = match self.table {
            Some(table) => (view.user_regime(table)?, None),
            None => {
                let (regime, tables) = view.translation()?;
                (regime, whose_tables(view, tables))
            }
        };
        let mut entries = Vec::new();
        let result = regime.walk(view.memory(), GuestVirt(self.address), |entry| entries.push(entry));
        // Also where a page is mapped that is not there.
        let why = memory::why_not(view.memory(), &Translation::Virtual(regime), GuestVirt(self.address));
        Ok(Walk { whose, regime: regime.describe(), address: self.address, entries, result, why })
    }
}

/// A page walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Whose tables they are, where they are not the vCPU's own; in words.
    pub whose: Option<String>,
    /// How addresses are translated, in words.
    pub regime: String,
    /// What is translated, guest-virtual.
    pub address: u64,
    /// The entries that were read.
    pub entries: Vec<TableEntry>,
    /// Where that leads.
    pub result: Result<Mapping, Fault>,
    /// Why the byte there cannot be read, in words.
    pub why: Option<String>,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(whose) = &self.whose {
            writeln!(f, "{whose}")?;
        }
        writeln!(f, "{}", self.regime)?;
        for TableEntry { name, at, value } in &self.entries {
            writeln!(f, "  {name:8} at {at:#014x}: {value:#018x}")?;
        }
        let Ok(Mapping { address: place, page_size, permissions }) = self.result else { return Ok(()) };
        writeln!(f, "{:#x} is at {place:#x}, {} page, {permissions}", self.address, size(page_size))?;
        self.why.as_ref().map_or(Ok(()), |why| writeln!(f, "{why}"))
    }
}

impl Value for Walk {
    fn json(&self) -> Json {
        let entry = |entry: &TableEntry| json!({ "name": entry.name, "at": hex(entry.at.0), "value": hex(entry.value) });
        let mapping = self.result.as_ref().ok();
        json!({
            "address": hex(self.address),
            "regime": self.regime,
            "steps": self.entries.iter().map(entry).collect::<Vec<_>>(),
            "physical": mapping.map(|mapping| hex(mapping.address.0)),
            "page_size": mapping.map(|mapping| mapping.page_size),
            "permissions": mapping.map(|mapping| mapping.permissions.to_string()),
            "fault": self.result.as_ref().err().map(Fault::to_string),
        })
    }

    fn shortfall(&self) -> Option<String> {
        let fault = self.result.as_ref().err()?;
        let why = self.why.clone().unwrap_or_else(|| fault.to_string());
        Some(format!("{:#x}: {why}", self.address))
    }
}

pub(in crate::command) fn run(
    operator: &mut dyn Operator,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    Ok(Box::new(Translate::parse(operator, arguments)?.run(&operator.view())?))
}
