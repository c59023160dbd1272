//! The kernel's log as it is in the guest's memory, read as far as nobody has told of it: a kernel that has panicked has its
//! first process tell nothing more, and need not print by the serial port.

use super::stuck;
use crate::looks;
use crate::machine::dumper::{Dumper, Looked};
use debug::linux::log::{Log, Record};
use std::time::Duration;

/// Lines that are looked at in one go, the last ones.
const MOST: usize = 16_000;
/// Searches of all memory for a log that is not there.
const MOST_SEARCHES: u32 = 3;
/// Looks that are left out at most, after some that have found nothing.
const LONGEST_PAUSE: u32 = 60;

/// How far it is known.
#[derive(Debug, Default)]
pub struct MemoryLog {
    /// The number of the record that is next.
    next: u64,
    is_found: bool,
    /// From where on the first process has missed some.
    missed_from: Option<u64>,
    /// The guest runs a program.
    has_program: bool,
    /// Looks in succession that have found nothing, and those of them that had time enough.
    vain: u32,
    searches: u32,
    /// Looks that are left out.
    pause: u32,
}

impl MemoryLog {
    /// The first process has told of a record: it need not be read.
    pub fn hear(&mut self, number: u64) {
        self.next = self.next.max(number.saturating_add(1));
    }

    /// It has missed some.
    pub fn hear_of_lost(&mut self) {
        self.missed_from.get_or_insert(self.next);
    }

    /// The guest runs a program: its kernel has described itself by now, if it does.
    pub fn hear_of_program(&mut self) {
        (self.vain, self.searches, self.pause, self.has_program) = (0, 0, 0, true);
    }

    /// A look has taken so long that the next ones are left out: it is not most of what is done.
    pub fn rest_after(&mut self, took: Duration) {
        // One interval is between two looks anyway.
        let rests = looks::rest_after(took).as_nanos().div_ceil(stuck::EVERY.as_nanos()).saturating_sub(1);
        self.pause = self.pause.max(u32::try_from(rests).unwrap_or(u32::MAX));
    }

    /// Whether the first process has missed some that nobody has read.
    pub fn misses_some(&self) -> bool {
        self.missed_from.is_some()
    }

    /// Whether it is time to look while the guest goes on. A search holds the guest up, so one that has found nothing is made
    /// again after a while that becomes longer.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_due
    }

    /// Whether it is worth a look at the end: another search of all memory finds nothing new.
    pub fn may_be_there(&self) -> bool {
        self.searches < MOST_SEARCHES
    }

    /// Whether it may have more than the first process has told: to look costs little when it has been found, and a search
    /// otherwise.
    pub fn may_have_more(&self) -> bool {
        self.is_found || self.misses_some() && self.may_be_there()
    }

    /// Lines of the records that nobody has told or read, as far as they can be had, and how many records cannot, because
    /// they were overwritten. A guest whose kernel is not known yet stands still meanwhile, for `limit` at most.
    pub fn news(&mut self, dumper: &Dumper, limit: Duration) -> (Vec<String>, u64) {
        self.take(dumper.log_since(self.missed_from.unwrap_or(self.next), MOST, limit))
    }

    fn take(&mut self, looked: Looked) -> (Vec<String>, u64) {
        let Looked::Found(Log { records, lost, next, .. }) = looked else {
            self.vain += 1;
            // Before that its kernel may not have come so far as to describe itself.
            self.searches += u32::from(self.has_program && matches!(looked, Looked::NotThere));
            self.pause = 2u32.saturating_pow(self.vain).min(LONGEST_PAUSE);
            return (Vec::new(), 0);
        };
        (self.next, self.is_found, self.missed_from) = (next, true, None);
        (self.vain, self.searches, self.pause) = (0, 0, 0);
        let lines =
            records.iter().flat_map(|record: &Record| record.lines().map(|(front, line)| front + line));
        let lines: Vec<String> = lines.collect();
        // There may have been more of them.
        let cut = u64::from(lines.len() >= MOST);
        (lines, lost + cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(numbers: std::ops::Range<u64>, lost: u64) -> Looked {
        let record = |sequence| Record {
            sequence,
            time: 0,
            level: None,
            facility: None,
            caller: None,
            text: format!("{sequence}\nmore"),
        };
        Looked::Found(Log {
            next: numbers.end,
            records: numbers.map(record).collect(),
            lost,
            ..Log::default()
        })
    }

    #[test]
    fn what_was_told_is_not_read() {
        let mut memory = MemoryLog::default();
        memory.hear(6);
        memory.hear(2);
        assert_eq!((memory.next, memory.may_have_more()), (7, false));
        let (lines, lost) = memory.take(log(7..9, 3));
        assert_eq!((lines.len(), lost, memory.next, memory.may_have_more()), (4, 3, 9, true));
        assert!(lines[2].ends_with("] 8"), "{lines:?}");
        memory.hear_of_lost();
        memory.hear(20);
        memory.hear_of_lost();
        assert_eq!(memory.missed_from, Some(9));
        memory.take(log(0..0, 0));
        // A kernel that has begun anew counts anew.
        assert_eq!((memory.next, memory.missed_from), (0, None));
        memory.hear(u64::MAX);
        assert_eq!(memory.next, u64::MAX);
    }

    #[test]
    fn looks_that_take_long_are_rare() {
        for (took, left_out) in [(0, 0), (100, 0), (101, 1), (1000, 9), (5000, 49)] {
            let mut memory = MemoryLog::default();
            memory.rest_after(Duration::from_millis(took));
            assert_eq!((0..100).take_while(|_| !memory.is_due()).count(), left_out, "{took} ms");
        }
    }

    #[test]
    fn what_is_not_there_is_searched_for_less_and_less() {
        let mut memory = MemoryLog::default();
        memory.hear_of_lost();
        (0..9).for_each(|_| drop(memory.take(Looked::NotThere)));
        assert!(memory.may_be_there());
        memory.hear_of_program();
        for (looks, may_be_there) in [(2, true), (4, true), (8, false), (16, false)] {
            assert!(memory.is_due());
            memory.take(Looked::NotThere);
            assert_eq!((memory.may_be_there(), memory.may_have_more()), (may_be_there, may_be_there));
            assert_eq!((0..100).take_while(|_| !memory.is_due()).count(), looks);
            memory.pause = 0;
        }
        memory.hear_of_program();
        (0..9).for_each(|_| drop(memory.take(Looked::CutOff)));
        assert_eq!((memory.may_be_there(), memory.pause), (true, LONGEST_PAUSE));
        memory.take(log(0..1, 0));
        assert_eq!((memory.is_due(), memory.is_due()), (true, true));
    }
}
