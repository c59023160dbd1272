//! `translate`, `read`, `map` and `mem`: the guest's memory, and where it is mapped.

mod map;
mod read;
mod translate;

pub use map::{MAP, Map, Mapped, MappedRange};
pub use read::{Bytes, READ, Read};
pub use translate::{TRANSLATE, Translate, Walk};

pub(super) use map::run as run_map;
pub(super) use read::run as run_read;
pub(super) use translate::run as run_translate;

use super::address::size;
use super::operator::Operator;
use crate::machine::Tables;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::address::PhysRange;
use std::fmt;

/// `mem`.
pub const MEM: Command = Command::new("mem", "", "the guest's RAM");

/// Ranges of guest-physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram(pub Vec<PhysRange>);

impl fmt::Display for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|range| {
            writeln!(f, "{:#014x}-{:#014x} {}", range.start, range.end().0 - 1, size(range.size))
        })
    }
}

impl Value for Ram {
    fn json(&self) -> Json {
        self.0.iter().map(range_json).collect()
    }
}

/// `{"start": "0x0", "size": 4096}`.
pub(super) fn range_json(range: &PhysRange) -> Json {
    json!({ "start": hex(range.start.0), "size": range.size })
}

pub(super) fn run_mem(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Box::new(Ram(operator.view().memory().ranges())))
}

/// A line that says whose tables translate, where they are not the vCPU's own.
fn whose_tables(view: &View<'_>, tables: Tables) -> Option<String> {
    use crate::machine::Activity::NotStarted;
    let Tables::Vcpu(other) = tables else { return None };
    let vcpu = view.vcpu;
    let why = match view.machine.activity(vcpu) {
        NotStarted => format!("vCPU {vcpu} has not been started"),
        _ => format!("paging is off in vCPU {vcpu}"),
    };
    Some(format!("{why}; by the tables of vCPU {other}:"))
}
