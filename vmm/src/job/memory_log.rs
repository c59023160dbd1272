//! The kernel's log as it is in the guest's memory, read as far as it was not before: a kernel that has panicked has its
//! first process tell nothing more, and need not print by the serial port.

use crate::machine::dumper::Dumper;
use arch::words::{counted, verb};
use std::time::{Duration, Instant};

/// Lines that are looked at in one go; a log with more has not been looked at for long.
const MOST: usize = 50_000;
/// Looks that find no log, after which it is looked for no more while the guest goes on.
const MISSES: u32 = 3;

/// How far it was read.
#[derive(Debug, Default)]
pub struct MemoryLog {
    /// The number of the record that is next.
    next: u64,
    misses: u32,
}

impl MemoryLog {
    /// Whether it is worth looking for while the guest goes on.
    pub fn is_there(&self) -> bool {
        self.misses < MISSES
    }

    /// Lines of the records that have come since it was read last, as far as they can be had within `limit`; and what there
    /// is to be said of those that cannot, because they were overwritten.
    pub fn news(&mut self, dumper: &Dumper, limit: Duration) -> (Vec<String>, Option<String>) {
        let begun = Instant::now();
        let Some(log) = dumper.log_since(self.next, MOST, limit) else {
            self.misses += 1;
            return (Vec::new(), None);
        };
        (self.next, self.misses) = (log.next, 0);
        log::debug!("the log in memory: {} more records, in {:?}", log.records.len(), begun.elapsed());
        let lines = log.records.iter().flat_map(|record| record.lines().map(|(front, line)| front + line));
        let lost = (log.lost > 0).then(|| {
            let (records, were) = (counted(log.lost, "record"), verb(log.lost, "was", "were"));
            format!("vmm: {records} of the log {were} overwritten before anybody looked at them")
        });
        (lines.collect(), lost)
    }
}
