//! A dump of a job's guest, when the job went wrong.

use super::verdict::Verdict;
use super::ways::Ways;
use crate::error::Error;
use crate::logging::progress::Reporter;
use crate::machine::Guest;
use crate::machine::dumper::Moment;
use crate::run::dump_destination;
use debug::dump::write::destination::Destination;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// When a core of the guest is written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOn {
    ways: Ways,
    /// The file.
    pub path: PathBuf,
}

impl DumpOn {
    /// As it is written: `panic,oops,hang,fail=PATH`.
    ///
    /// # Errors
    /// What has to be written.
    pub fn parse(text: &str, path: impl Fn(&str) -> Result<PathBuf, String>) -> Result<DumpOn, String> {
        let (list, to) = text
            .split_once('=')
            .filter(|(_, path)| !path.is_empty())
            .ok_or("write LIST=PATH: panic=guest.core, or several, as in panic,oops,hang=guest.core")?;
        Ok(DumpOn { ways: Ways::parse(list)?, path: path(to)? })
    }

    /// Whether a core is written of a guest of which this came.
    pub fn is_due(&self, verdict: &Verdict) -> bool {
        self.ways.include(verdict)
    }

    /// Where it is written, before anything is booted.
    ///
    /// # Errors
    /// Why no file of so many bytes of memory can be there.
    pub fn destination(&self, memory: u64) -> Result<Destination, Error> {
        dump_destination(&self.path, memory)
    }
}

/// Writes a core of a guest that stands still, until `is_ended` says that somebody has ended the run; whether it is there.
pub fn write(guest: &Guest, to: &Destination, is_over: bool, is_ended: &mut dyn FnMut() -> bool) -> bool {
    let mut reporter = Reporter::new();
    let mut watch = |progress| {
        if let Some(percent) = reporter.percent(progress) {
            log::warn!("--dump-on {}: {percent} %", to.shown().display());
        }
        if is_ended() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let moment = if is_over { Moment::End } else { Moment::Running };
    match guest.dumper().dump(to, moment, &mut watch) {
        Ok(summary) => {
            log::warn!("dumped to {}: {summary}", to.shown().display());
            true
        }
        Err(error) => {
            log::error!("--dump-on: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_written_of_what_is_named() {
        let parse = |text: &str| DumpOn::parse(text, |path| Ok(path.into()));
        let some = parse("panic,fail=a=b.core").unwrap();
        assert_eq!(some.path, PathBuf::from("a=b.core"));
        for (verdict, is_due) in [
            (Verdict::Panic(None), true),
            (Verdict::Command(1), true),
            (Verdict::TimeOver, true),
            (Verdict::Ended(crate::outcome::Outcome::Ended(arch::End::PowerOff)), true),
            (Verdict::Command(0), false),
            (Verdict::Hang("x".into()), false),
            (Verdict::Stopped(crate::outcome::StoppedBy::Console), false),
        ] {
            assert_eq!(some.is_due(&verdict), is_due, "{verdict}");
        }
        for (wrong, says) in
            [("panic", "write LIST=PATH"), ("panic=", "write LIST=PATH"), ("heat=x", "'heat' is none of")]
        {
            assert!(parse(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }
}
