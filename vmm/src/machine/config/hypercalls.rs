//! Which hypercalls are answered, and where they are written.

use crate::error::Error;
use crate::given_file;
use crate::logging;
use crate::logging::line_queue::{Last, LineQueue, Lost};
use crate::machine::hypercalls::family::FamilyName;
use arch::words::{counted, verb};
use devices::hypercall::trace::{Filter, Sink, Style, Tracer};
use std::path::PathBuf;

/// A family of hypercalls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypercallConfig {
    /// Which.
    pub family: FamilyName,
    /// Where they are written.
    pub trace: Trace,
    /// How.
    pub style: Style,
    /// Which of them.
    pub filter: Filter,
    /// Counts are told at the end.
    pub summary: bool,
    /// x86: by the monitor's own hypercall page, though KVM could do better.
    pub page_only: bool,
}

/// Where a trace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Nowhere.
    Off,
    /// Standard error.
    Stderr,
    /// A file.
    File(PathBuf),
}

impl HypercallConfig {
    /// The error of a trace that cannot be opened.
    pub fn cannot_open(&self, source: std::io::Error) -> Error {
        let path = match &self.trace {
            Trace::File(path) => path.clone(),
            Trace::Off | Trace::Stderr => PathBuf::from("standard error"),
        };
        Error::Open { option: "--hypercalls trace=", path, source }
    }

    /// Empties the file of the trace, once: a guest that is booted again adds to it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self) -> std::io::Result<()> {
        match &self.trace {
            Trace::File(path) => given_file::empty(path),
            Trace::Off | Trace::Stderr => Ok(()),
        }
    }

    /// The trace that is asked for, behind what its file has already.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn tracer(&self) -> std::io::Result<Tracer> {
        let sink: Option<Sink> = match &self.trace {
            Trace::Off => None,
            Trace::Stderr => Some(Box::new(logging::stderr()?)),
            Trace::File(path) => {
                let file = given_file::append(path)?;
                let lost: Lost = match self.style {
                    Style::Lines => |count| {
                        format!("({} {} not shown here)\n", counted(count, "call"), verb(count, "is", "are"))
                    },
                    Style::Json => |count| format!("{{\"not_shown\":{count}}}\n"),
                };
                let path = path.display().to_string();
                let failed = move |error: &std::io::Error| {
                    log::warn!("calls are lost: cannot write to --hypercalls trace={path}: {error}");
                };
                Some(Box::new(Last(LineQueue::start(file, lost, failed)?)))
            }
        };
        Ok(Tracer::new(sink, self.style, self.filter.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given_file::tests::Fifo;

    #[test]
    fn a_trace_to_a_named_pipe_waits_for_no_reader() {
        let fifo = Fifo::new("trace");
        let config = HypercallConfig {
            family: FamilyName::named("xen").unwrap(),
            trace: Trace::File(fifo.0.clone()),
            style: Style::Lines,
            filter: Filter::default(),
            summary: false,
            page_only: false,
        };
        config.begin().unwrap();
        // Twice: a guest that begins again opens its own before the former one's is closed.
        let tracers = [config.tracer().unwrap(), config.tracer().unwrap()];
        drop(tracers);
    }
}
