//! The kernel's log as it is in the guest's memory, read as far as it was not before: a kernel that has panicked has its
//! first process tell nothing more, and need not print by the serial port.

use crate::machine::dumper::Dumper;
use arch::words::{counted, verb};
use std::time::{Duration, Instant};

/// Lines that are looked at in one go; a log with more has not been looked at for long.
const MOST: usize = 50_000;
/// Looks that find no log, after which it is looked for no more while the guest goes on.
const MISSES: u32 = 3;

/// How far it is known.
#[derive(Debug, Default)]
pub struct MemoryLog {
    /// The number of the record that is next.
    next: u64,
    misses: u32,
    is_found: bool,
    /// The first process has missed some.
    misses_some: bool,
}

impl MemoryLog {
    /// Whether it is worth looking for while the guest goes on.
    pub fn is_there(&self) -> bool {
        self.misses < MISSES
    }

    /// The first process has told of a record: it need not be read.
    pub fn hear(&mut self, number: u64) {
        self.next = self.next.max(number.saturating_add(1));
    }

    /// It has missed some.
    pub fn hear_of_lost(&mut self) {
        self.misses_some = true;
    }

    /// Whether it may have more than the first process has told, which is still there: to look costs little when it has been
    /// found, and a search otherwise.
    pub fn may_have_more(&self) -> bool {
        self.is_found || self.misses_some
    }

    /// Lines of the records that nobody has told or read, as far as they can be had within `limit`; and what there is to be
    /// said of those that cannot, because they were overwritten.
    pub fn news(&mut self, dumper: &Dumper, limit: Duration) -> (Vec<String>, Option<String>) {
        let begun = Instant::now();
        // Where some were missed, those before the last one that was told.
        let since = if self.misses_some { 0 } else { self.next };
        let Some(log) = dumper.log_since(since, MOST, limit) else {
            self.misses += 1;
            return (Vec::new(), None);
        };
        (self.next, self.misses, self.is_found, self.misses_some) = (log.next, 0, true, false);
        log::debug!("the log in memory: {} more records, in {:?}", log.records.len(), begun.elapsed());
        let lines = log.records.iter().flat_map(|record| record.lines().map(|(front, line)| front + line));
        let lost = (log.lost > 0).then(|| {
            let (records, were) = (counted(log.lost, "record"), verb(log.lost, "was", "were"));
            format!("vmm: {records} of the log {were} overwritten before anybody looked at them")
        });
        (lines.collect(), lost)
    }
}
