//! `breakpoints`: how each is noticed, and how often it was hit; and which tasks those at an address are for.

#[cfg(feature = "linux")]
mod tasks;

#[cfg(feature = "linux")]
pub use tasks::ForTasks;

use super::operator::Operator;
use crate::breakpoint::{Breakpoint, Kind, NOT_MAPPED, NOT_RAM, Place, Purpose};
use crate::engine::Filters;
#[cfg(feature = "linux")]
use crate::reply::Flag;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::words::counted;
use std::fmt;

/// `breakpoints`.
#[cfg(not(feature = "linux"))]
pub const BREAKPOINTS: Command =
    Command::new("breakpoints", "", "each breakpoint: kind, place, hits, and why this kind").running();

/// `breakpoints`.
#[cfg(feature = "linux")]
pub const BREAKPOINTS: Command = Command::new(
    "breakpoints",
    "[ADDRESS]",
    "each breakpoint: kind, place, hits, and why this kind; with an address, whom those there stop",
)
.running()
.flags(&[
    Flag {
        name: PID,
        short: None,
        value: Some("N"),
        what: "a process, or one thread, of the guest's Linux kernel",
    },
    Flag { name: COMM, short: None, value: Some("NAME"), what: "tasks of this name" },
    Flag { name: ANY, short: None, value: None, what: "whoever comes there" },
]);

#[cfg(feature = "linux")]
const PID: &str = "--pid";
#[cfg(feature = "linux")]
const COMM: &str = "--comm";
#[cfg(feature = "linux")]
const ANY: &str = "--any";

/// A breakpoint that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakpointEntry {
    /// What was asked for.
    pub kind: Kind,
    /// Where, guest-virtual.
    pub address: u64,
    /// Bytes that are watched, of a watchpoint.
    pub length: Option<u64>,
    /// How it is noticed, in words.
    pub place: String,
    /// It has conditions.
    pub is_conditional: bool,
    /// Whom alone it stops, in words.
    pub stops: Option<String>,
    /// How often it was hit, false conditions included.
    pub hits: u64,
    /// It is there; else the debugger has taken it out since.
    pub is_inserted: bool,
}

/// All breakpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Points {
    /// Those that were taken.
    pub taken: Vec<BreakpointEntry>,
    /// Those that were not: kind, address, and why.
    pub refused: Vec<(Kind, u64, String)>,
    /// Addresses without breakpoints, and whom one there would stop.
    pub to_come: Vec<(u64, String)>,
}

impl Points {
    /// Those of the machine that is looked at.
    pub fn of(view: &View<'_>, refused: Vec<(Kind, u64, String)>) -> Points {
        // Reasons are those of now, which the engine knows under the same lock.
        let (inserted, former, filters): (Vec<(Breakpoint, bool)>, Vec<Breakpoint>, Filters) = {
            let requests = view.engine.requests();
            let asked = requests.table.entries().filter(|(_, it)| it.purpose == Purpose::Asked);
            let inserted = asked.map(|(id, it)| (it.clone(), requests.is_guarded(id)));
            (inserted.collect(), requests.table.former().cloned().collect(), requests.filters.clone())
        };
        let words = |it: &Breakpoint| filters.of(it).map(|filter| filter.words.clone());
        let entry = |it: &Breakpoint, is_guarded, is_inserted| BreakpointEntry {
            stops: words(it),
            ..point(view, it, is_guarded, is_inserted)
        };
        let inserted = inserted.iter().map(|(it, is_guarded)| entry(it, *is_guarded, true));
        let former = former.iter().map(|it| entry(it, false, false));
        let taken: Vec<BreakpointEntry> = inserted.chain(former).collect();
        let is_there = |address: u64| {
            taken.iter().any(|it| it.address == address) || refused.iter().any(|it| it.1 == address)
        };
        let to_come = filters.iter().map(|(address, filter)| (address.0, filter.words.clone()));
        let to_come = to_come.filter(|(address, _)| !is_there(*address)).collect();
        Points { taken, refused, to_come }
    }
}

fn point(view: &View<'_>, breakpoint: &Breakpoint, is_guarded: bool, is_inserted: bool) -> BreakpointEntry {
    BreakpointEntry {
        kind: breakpoint.kind,
        address: breakpoint.address.0,
        length: breakpoint.kind.access().map(|_| breakpoint.length),
        place: place(view, breakpoint, is_guarded),
        is_conditional: !breakpoint.conditions.is_empty(),
        stops: None,
        hits: breakpoint.hits,
        is_inserted,
    }
}

/// How a breakpoint is noticed, in words.
fn place(view: &View<'_>, breakpoint: &Breakpoint, is_guarded: bool) -> String {
    match breakpoint.place {
        Place::Planted(place) if is_guarded => format!(
            "instruction planted at {place:#x}, and a debug register, because its code is still to come"
        ),
        Place::Planted(place) => format!("instruction planted at {place:#x}"),
        Place::Register => "debug register".into(),
        Place::Off => "switched off".into(),
        // What it waited for may have come.
        Place::Fallback(NOT_MAPPED | NOT_RAM) => match view.place(breakpoint.kind, breakpoint.address) {
            Place::Fallback(why) => format!("debug register, because {why}"),
            _ => "debug register, until the guest runs on: then an instruction is planted".into(),
        },
        Place::Fallback(why) => format!("debug register, because {why}"),
        Place::NotExecutable { vector: None } => "debug register, because its page cannot be executed".into(),
        Place::NotExecutable { vector: Some(vector) } => format!(
            "debug register, and one on the vector at {vector:#x}, because its page cannot be executed"
        ),
    }
}

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for BreakpointEntry { kind, address, length, place, is_conditional, stops, hits, is_inserted } in
            &self.taken
        {
            let length = length.map_or(String::new(), |length| format!(", {}", counted(length, "byte")));
            let conditions = if *is_conditional { ", conditional" } else { "" };
            let note = if *is_inserted { "" } else { " (not inserted now)" };
            let kind = kind.name();
            let stops = stops.as_ref().map_or(String::new(), |whom| format!(", stops {whom} alone"));
            writeln!(f, "{kind} at {address:#x}{length}: {place}{conditions}{stops}; hits: {hits}{note}")?;
        }
        for (kind, address, why) in &self.refused {
            writeln!(f, "{} at {address:#x}: refused, because {why}", kind.name())?;
        }
        for (address, whom) in &self.to_come {
            writeln!(f, "a breakpoint at {address:#x} would stop {whom} alone")?;
        }
        if self.taken.is_empty() && self.refused.is_empty() && self.to_come.is_empty() {
            writeln!(f, "there is none (gdb inserts its breakpoints when it resumes the guest)")
        } else {
            Ok(())
        }
    }
}

impl Value for Points {
    fn json(&self) -> Json {
        let taken = self.taken.iter().map(|point| {
            json!({
                "kind": point.kind.name(), "address": hex(point.address), "length": point.length,
                "place": point.place, "conditional": point.is_conditional, "stops": point.stops,
                "hits": point.hits, "inserted": point.is_inserted, "refused": null,
            })
        });
        let refused = self.refused.iter().map(|(kind, address, why)| {
            json!({
                "kind": kind.name(), "address": hex(*address), "length": null, "place": null,
                "conditional": null, "stops": null, "hits": 0, "inserted": false, "refused": why,
            })
        });
        taken.chain(refused).collect()
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    #[cfg(feature = "linux")]
    if let Some(wanted) = ForTasks::parse(operator, arguments)? {
        wanted.run(&operator.view())?;
        return Ok(Box::new(Points::of(&operator.view(), operator.refused())));
    }
    arguments.none()?;
    Ok(Box::new(Points::of(&operator.view(), operator.refused())))
}
