//! `breakpoints`: how each is noticed, and how often it was hit.

use super::operator::Operator;
use crate::breakpoint::{Breakpoint, Kind, NOT_MAPPED, NOT_RAM, Place, Purpose};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::words::counted;
use std::fmt;

/// `breakpoints`.
pub const BREAKPOINTS: Command =
    Command::new("breakpoints", "", "each breakpoint: kind, place, hits, and why this kind").running();

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
}

impl Points {
    /// Those of the machine that is looked at.
    pub fn of(view: &View<'_>, refused: Vec<(Kind, u64, String)>) -> Points {
        // Reasons are those of now, which the engine knows under the same lock.
        let (inserted, former): (Vec<(Breakpoint, bool)>, Vec<Breakpoint>) = {
            let requests = view.engine.requests();
            let asked = requests.table.entries().filter(|(_, it)| it.purpose == Purpose::Asked);
            let inserted = asked.map(|(id, it)| (it.clone(), requests.is_guarded(id)));
            (inserted.collect(), requests.table.former().cloned().collect())
        };
        let inserted = inserted.iter().map(|(it, is_guarded)| point(view, it, *is_guarded, true));
        let former = former.iter().map(|it| point(view, it, false, false));
        Points { taken: inserted.chain(former).collect(), refused }
    }
}

fn point(view: &View<'_>, breakpoint: &Breakpoint, is_guarded: bool, is_inserted: bool) -> BreakpointEntry {
    BreakpointEntry {
        kind: breakpoint.kind,
        address: breakpoint.address.0,
        length: breakpoint.kind.access().map(|_| breakpoint.length),
        place: place(view, breakpoint, is_guarded),
        is_conditional: !breakpoint.conditions.is_empty(),
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
        for BreakpointEntry { kind, address, length, place, is_conditional, hits, is_inserted } in &self.taken
        {
            let length = length.map_or(String::new(), |length| format!(", {}", counted(length, "byte")));
            let conditions = if *is_conditional { ", conditional" } else { "" };
            let note = if *is_inserted { "" } else { " (not inserted now)" };
            let kind = kind.name();
            writeln!(f, "{kind} at {address:#x}{length}: {place}{conditions}; hits: {hits}{note}")?;
        }
        for (kind, address, why) in &self.refused {
            writeln!(f, "{} at {address:#x}: refused, because {why}", kind.name())?;
        }
        if self.taken.is_empty() && self.refused.is_empty() {
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
                "place": point.place, "conditional": point.is_conditional, "hits": point.hits,
                "inserted": point.is_inserted, "refused": null,
            })
        });
        let refused = self.refused.iter().map(|(kind, address, why)| {
            json!({
                "kind": kind.name(), "address": hex(*address), "length": null, "place": null,
                "conditional": null, "hits": 0, "inserted": false, "refused": why,
            })
        });
        taken.chain(refused).collect()
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Box::new(Points::of(&operator.view(), operator.refused())))
}
