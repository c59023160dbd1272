//! How two dumps of a guest differ: pages, by virtual address.

use super::super::memory::range_json;
use crate::dump::diff::{self, ChangedRange, Difference};
use crate::machine::Machine;
use crate::reply::{Json, Refusal, Value, hex, json};
use crate::view::View;
use arch::address::PhysRange;
use arch::words::{counted, verb};
use std::fmt;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Pages that both have and that are not the same, by the virtual addresses that they are mapped at.
    pub mapped: Vec<ChangedRange>,
    /// Those of them that are mapped nowhere.
    pub unmapped: Vec<PhysRange>,
    /// Memory that only one of the dumps has.
    pub only_one: Vec<PhysRange>,
    /// Pages that are not the same.
    pub pages: u64,
    /// Why virtual addresses are not known, in words.
    pub unknown: Option<String>,
}

impl Changes {
    /// Compares what is looked at with another dump of the same guest.
    ///
    /// # Errors
    /// [`Refusal::Usage`] for one of another architecture.
    pub fn between(view: &View<'_>, other: &dyn Machine) -> Result<Changes, Refusal> {
        if view.isa() != other.isa() {
            let text = format!("one dump is of {}, the other of {}", view.isa(), other.isa());
            return Err(Refusal::Usage(text));
        }
        let Difference { changed, only_one } = diff::compare(view.memory(), other.memory());
        let pages = changed.iter().map(|range| range.size.div_ceil(PAGE)).sum();
        let (mapped, unmapped, unknown) = match view.translation() {
            Ok((regime, _)) => {
                let (mapped, unmapped) = diff::places(&regime, view.memory(), &changed);
                (mapped, unmapped, None)
            }
            Err(error) => (Vec::new(), changed, Some(error.to_string())),
        };
        Ok(Changes { mapped, unmapped, only_one, pages, unknown })
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.unknown {
            writeln!(f, "virtual addresses are not known: {why}")?;
        }
        for ChangedRange { start, range } in &self.mapped {
            let (last, pages) = (start.0 + (range.size - 1), range.size.div_ceil(PAGE));
            writeln!(f, "{:#018x}-{last:#018x} {} at {:#x}", start.0, counted(pages, "page"), range.start.0)?;
        }
        for (ranges, why) in
            [(&self.unmapped, "mapped nowhere"), (&self.only_one, "in one of the dumps only")]
        {
            for range in ranges {
                writeln!(f, "{:#x}-{:#x}, guest-physical: {why}", range.start.0, range.end().0 - 1)?;
            }
        }
        writeln!(f, "{} {}", counted(self.pages, "page"), verb(self.pages, "differs", "differ"))
    }
}

impl Value for Changes {
    fn json(&self) -> Json {
        let place = |ChangedRange { start, range }: &ChangedRange| json!({ "virtual": hex(start.0), "physical": hex(range.start.0), "size": range.size });
        json!({
            "pages": self.pages,
            "mapped": self.mapped.iter().map(place).collect::<Vec<_>>(),
            "unmapped": self.unmapped.iter().map(range_json).collect::<Vec<_>>(),
            "only_in_one": self.only_one.iter().map(range_json).collect::<Vec<_>>(),
        })
    }
}
