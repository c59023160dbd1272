//! A job that is over, and what is told of it.

use super::kernel_log::Tail;
use super::verdict::Verdict;
use debug::command::why::Why;
use std::path::PathBuf;
use std::time::Duration;

/// A job that is over.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub verdict: Verdict,
    /// The last lines of the kernel's log.
    pub log: Tail,
    /// What each vCPU was doing, if the guest was stopped in the middle of it.
    pub vcpus: Vec<String>,
    /// What the kernel was doing, likewise, if that is known.
    pub why: Option<Why>,
    /// From the guest's first instruction.
    pub took: Duration,
    /// Until it ran a program.
    pub booted_after: Option<Duration>,
    /// Where a dump of the guest is, if one was asked for and written.
    pub dump: Option<PathBuf>,
    /// The command's errors have ended within a line: what is said of it begins another.
    pub is_line_open: bool,
}

impl Ended {
    /// In one line, for programs: `verdict` is a word, `code` the exit code, `seconds` how long the guest was there and
    /// `boot_seconds` how long it took until it ran a program; `dump` is where a core of it is.
    pub fn as_json(&self) -> String {
        let seconds = |time: Duration| time.as_millis() as f64 / 1000.0;
        serde_json::json!({
            "verdict": self.verdict.word(),
            "code": self.verdict.code(),
            "text": self.verdict.to_string(),
            "seconds": seconds(self.took),
            "boot_seconds": self.booted_after.map(seconds),
            "dump": self.dump.as_ref().map(|path| path.display().to_string()),
        })
        .to_string()
    }
}
