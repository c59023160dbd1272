//! `dump`: the guest, or a dump of one, written as a core; and how two dumps differ.

mod diff;

pub use diff::Changes;

use super::operator::Operator;
use crate::dump::write::{self, Subject, Summary, WriteError};
use crate::dump::{self, Unplanted};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, json};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

/// `dump`.
pub const DUMP: Command = Command::new(
    "dump",
    "PATH",
    "write a core, on the host that the guest runs on; a debugger's user names a new file below the folder that its monitor allows; PATH.gz and PATH.zst compress",
);

/// A core that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// The path, as it was asked for.
    pub path: String,
    /// What is in it.
    pub summary: Summary,
}

impl fmt::Display for Dumped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.path, self.summary)
    }
}

impl Value for Dumped {
    fn json(&self) -> Json {
        let Summary { memory, stored, missing, has_info } = self.summary;
        json!({
            "path": self.path, "memory": memory, "stored": stored, "missing": missing, "described": has_info,
        })
    }
}

impl From<WriteError> for Refusal {
    fn from(error: WriteError) -> Refusal {
        Refusal::Failed(error.to_string())
    }
}

/// Writes a core where the operator may write one.
pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let [path] = arguments.words()[..] else { return Err(Refusal::Usage("write one path".into())) };
    let destination = operator.destination(Path::new(path))?;
    let view = operator.view();
    let cpus = dump::cpus(view.machine)?;
    // For each piece anew: vCPUs' threads are not to wait for a disk.
    let unmask = |address, bytes: &mut [u8]| view.engine.requests().table.unmask(address, bytes);
    let memory = Unplanted { memory: view.memory(), unmask: &unmask };
    let subject = Subject { isa: view.isa(), cpus: &cpus, memory: &memory };
    let summary = write::to_destination(&subject, &destination, &mut |_| match view.cancel.check() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })?;
    Ok(Box::new(Dumped { path: path.to_string(), summary }))
}
