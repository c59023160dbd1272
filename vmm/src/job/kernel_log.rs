//! The guest's kernel's log as it goes, and what in it is worth ending a job for.
//!
//! It comes by `/dev/kmsg` from the guest's first process while that runs, by the serial console, to which the kernel
//! prints what is serious, and as far as neither has told of it from memory (`memory_log`). Who can
//! write to any of these can say what he likes; whoever tests a kernel runs what he trusts to say the truth.

use super::ktap::without_time;
use super::protocol;
use crate::error::Error;
use crate::given_file;
use crate::logging;
use crate::logging::line_queue::LineQueue;
use arch::plain::plain_lines;
use arch::words::{counted, verb};
use debug::linux::trouble::{self, Sign, Trouble};
use regex_lite::Regex;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

/// Lines that are kept for a report.
pub const KEPT: usize = 1000;
/// The most bytes of a line.
const MOST_LINE: usize = 4096;

/// Which signs are looked for.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Troubles that end the job.
    pub troubles: Vec<Trouble>,
    /// A line that one of these finds something in is none.
    pub allowed: Vec<Regex>,
}

impl Watch {
    /// What a line is a sign of.
    pub fn sign(&self, line: &str) -> Option<Sign> {
        if self.allowed.iter().any(|it| it.is_match(line)) {
            return None;
        }
        trouble::sign(line, &self.troubles)
    }
}

/// Lines as they come.
#[derive(Debug, Default)]
pub struct Lines {
    /// What has come of one that has no end yet.
    begun: Vec<u8>,
}

impl Lines {
    /// Those that are whole by these bytes, as they may be shown; one that is too long ends where it may.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => lines.push(plain_lines(&String::from_utf8_lossy(&std::mem::take(&mut self.begun)))),
                b'\r' => {}
                _ => self.begun.push(*byte),
            }
            if self.begun.len() >= MOST_LINE {
                lines.push(plain_lines(&String::from_utf8_lossy(&std::mem::take(&mut self.begun))));
            }
        }
        lines
    }
}

/// A record of `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`: priority, sequence number, microseconds, flags; text; and
/// what it was about, which is left out): its number, and it as a line of the log.
pub fn line_of_record(record: &[u8]) -> Option<(u64, String)> {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.split_once(';')?;
    let text = plain_lines(text.split('\n').next().unwrap_or_default());
    let mut numbers = head.split(',').skip(1).map(str::parse);
    let (number, microseconds): (u64, u64) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((number, format!("[{:5}.{:06}] {text}", microseconds / 1_000_000, microseconds % 1_000_000)))
}

/// Why the guest's first process has no command run, if a line of the console is what it says where it has no port
/// ([`protocol::TROUBLE_LINE`]).
pub fn trouble_of_first_process(line: &str) -> Option<&str> {
    without_time(line).strip_prefix(protocol::TROUBLE_LINE)
}

/// The last lines.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl FromIterator<String> for Tail {
    fn from_iter<I: IntoIterator<Item = String>>(lines: I) -> Tail {
        let mut tail = Tail::default();
        lines.into_iter().for_each(|line| tail.push(line));
        tail
    }
}

impl Tail {
    /// One more.
    pub fn push(&mut self, line: String) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// The last `count`.
    pub fn last(&self, count: usize) -> impl Iterator<Item = &str> {
        self.0.iter().skip(self.0.len().saturating_sub(count)).map(String::as_str)
    }
}

/// Where the kernel's log goes as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTo {
    /// Its end is shown when something went wrong.
    #[default]
    Nowhere,
    /// Standard error.
    Errors,
    /// A file.
    File(PathBuf),
}

impl LogTo {
    /// A queue for it: no loop waits for whoever reads it.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::System`].
    pub fn open(&self) -> Result<Option<LineQueue>, Error> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Open { option: "--kernel-log", path, source }
        };
        let queue = match self {
            LogTo::Nowhere => return Ok(None),
            // All that is said there is one queue.
            LogTo::Errors => logging::stderr().map_err(Error::system("cannot write the kernel's log"))?,
            LogTo::File(path) => {
                let file = given_file::create(path).map_err(failed(path))?;
                let failure = |error: &io::Error| log::warn!("--kernel-log: {error}");
                LineQueue::start(file, lost_lines, failure).map_err(failed(path))?
            }
        };
        Ok(Some(queue))
    }
}

fn lost_lines(count: u64) -> String {
    let (lines, were) = (counted(count, "line"), verb(count, "was", "were"));
    format!("vmm: {lines} of the log {were} dropped here: they are not read as fast as they come\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_lines() {
        let record = b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n";
        assert_eq!(line_of_record(record).unwrap(), (339, "[    5.140900] NET: Registered".into()));
        let plain = line_of_record(b"6,1,0,-;\x1b[2J\tx").unwrap();
        assert_eq!(plain, (1, "[    0.000000] \u{fffd}[2J\tx".into()));
        for wrong in [&b""[..], b"6,1;x", b"6,1,z,-;x", b"6,z,1,-;x", b"no record"] {
            assert_eq!(line_of_record(wrong), None);
        }
    }

    #[test]
    fn what_the_first_process_says_on_the_console_is_told_from_all_else() {
        let why = "the module virtio_pci cannot be loaded: it is not for this kernel, or is damaged";
        let line = format!("{}{why}", protocol::TROUBLE_LINE);
        for front in ["", "[    1.500000] ", "[    1.500000][    T1] "] {
            assert_eq!(trouble_of_first_process(&format!("{front}{line}")), Some(why), "{front}");
        }
        for other in [format!("echo {line}"), "[    1.5] vmm: try loopback: no such device".into()] {
            assert_eq!(trouble_of_first_process(&other), None, "{other}");
        }
    }

    #[test]
    fn lines_end_at_their_ends() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n\n"), ["two", ""]);
        assert_eq!(lines.push(b"\x1b[1mbold\n"), ["\u{fffd}[1mbold"]);
        assert_eq!(lines.push(&[b'x'; MOST_LINE + 1]).len(), 1);
    }

    #[test]
    fn signs() {
        let watch = Watch {
            troubles: vec![Trouble::Oops, Trouble::Warn],
            allowed: vec![Regex::new("drivers/gpu/.*x.c:[0-9]$").unwrap()],
        };
        for (line, sign) in [
            ("[    1.0] Kernel panic - not syncing: Attempted to kill init!", Some(Sign::Panic)),
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [dd:88]", Some(Sign::Hang)),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", Some(Sign::Hang)),
            ("INFO: task dd:88 blocked for more than 120 seconds.", Some(Sign::Hang)),
            ("BUG: kernel NULL pointer dereference, address: 0000", Some(Sign::Trouble(Trouble::Oops))),
            ("Internal error: Oops - BUG: 00000000f2000800 [#1] SMP", Some(Sign::Trouble(Trouble::Oops))),
            ("WARNING: CPU: 0 PID: 1 at mm/slab.c:1", Some(Sign::Trouble(Trouble::Warn))),
            ("WARNING: CPU: 0 PID: 1 at drivers/gpu/drm/x.c:1", None),
            ("UBSAN: shift-out-of-bounds", None),
            (
                "Oops: general protection fault, probably for non-canonical address",
                Some(Sign::Trouble(Trouble::Oops)),
            ),
            // A program's.
            ("traps: a.out[12] general protection fault ip:40113a sp:7ffd error:0 in a.out", None),
            ("BUG: workqueue lockup - pool cpus=0 node=0", Some(Sign::Hang)),
            ("all is well", None),
        ] {
            assert_eq!(watch.sign(line), sign, "{line}");
        }
    }
}
