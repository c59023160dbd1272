//! A kernel's log, by its description of itself.
//!
//! Source: Linux, `Documentation/admin-guide/kdump/gdbmacros.txt`, `kernel/printk/printk_ringbuffer.h`.

mod before_5_10;
mod level;
mod ring;

pub use level::{Caller, Level, Levels};

use crate::error::LogError;
use crate::info::VmCoreInfo;
use crate::reader::Reader;
use arch::plain::plain_lines;
use arch::words::{counted, verb};
use before_5_10::Records;
use ring::{Place, Raw, Ring};
use std::fmt;

/// What of a log is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Lines, the last ones.
    pub most: usize,
    /// Records of these levels.
    pub levels: Levels,
    /// Records from this number on, for whoever asks again: up to the first one that is written still, as the kernel's
    /// own readers have it.
    pub since: Option<u64>,
}

impl Wanted {
    /// The last lines, of whatever level.
    pub fn last(most: usize) -> Wanted {
        Wanted { most, levels: Levels::ALL, since: None }
    }
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number, counted from the kernel's start on; of a log that is [`Log::is_unnumbered`], from the oldest record that
    /// is there.
    pub sequence: u64,
    /// When it was written, nanoseconds of the kernel's clock.
    pub time: u64,
    /// How urgent it is, if the kernel tells.
    pub level: Option<Level>,
    /// What it is from, as syslog(3) counts: 0 is the kernel, 1 a program.
    pub facility: Option<u8>,
    /// Who has written it.
    pub caller: Option<Caller>,
    /// The text, of one line or more; it does nothing to a terminal.
    pub text: String,
}

impl Record {
    /// Its lines as `dmesg` prints them: what stands in front of each, and the line.
    pub fn lines(&self) -> impl Iterator<Item = (String, &str)> {
        let stamp = format!("[{:5}.{:06}] ", self.time / 1_000_000_000, self.time / 1000 % 1_000_000);
        // Further lines of a record stand below its first.
        let indent = " ".repeat(stamp.len());
        let front = std::iter::once(stamp).chain(std::iter::repeat(indent));
        front.zip(self.text.split('\n'))
    }

    /// Leaves its last lines.
    fn shorten(&mut self, lines: usize) {
        if let Some((end, _)) = self.text.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
            self.text.drain(..=end);
        }
    }
}

/// A log, or what of it was wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Its records, the oldest first.
    pub records: Vec<Record>,
    /// There are older ones, for which there was no room ([`Log::ROOM`]).
    pub is_cut: bool,
    /// Records that were overwritten before they were asked for, behind [`Wanted::since`].
    pub lost: u64,
    /// The number of the record that is wanted next.
    pub next: u64,
    /// Numbers are none of the kernel's, and mean nothing to another look: a log before 5.10 that was read without the kernel's
    /// symbols ([`VmCoreInfo::log_with`]).
    pub is_unnumbered: bool,
}

impl Log {
    /// Bytes that its lines may take: a record may be nothing but ends of lines, each of which becomes a line with an
    /// indent.
    pub const ROOM: usize = 32 << 20;

    /// What there is to be said of records that are not there, lines.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.is_cut {
            remarks.push("(older lines are left out)".into());
        }
        if self.lost > 0 {
            let were = verb(self.lost, "was", "were");
            remarks.push(format!("({} {were} lost)", counted(self.lost, "message")));
        }
        remarks
    }

    /// All of it in lines, as `dmesg` prints them.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.records.iter().flat_map(Record::lines).map(|(front, line)| front + line);
        self.remarks().into_iter().chain(lines).collect()
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl VmCoreInfo {
    /// The kernel's log, or what of it is wanted. `read` reads guest-virtual memory and says how many bytes are good.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn log(&self, read: impl Fn(u64, &mut [u8]) -> usize, wanted: &Wanted) -> Result<Log, LogError> {
        self.log_with(read, wanted, &|_| None)
    }

    /// Whether the numbers of the log's records are in variables that the description does not tell of, so that symbols are
    /// needed for them: before 5.10.
    pub fn is_log_unnumbered(&self) -> bool {
        before_5_10::is_one(self)
    }

    /// The same, with the addresses of variables of the kernel's by their names, for a log of [that
    /// kind](Self::is_log_unnumbered). Without them its records are counted from the oldest one that is there.
    ///
    /// # Errors
    /// [`LogError`]; where records from a number on are wanted and they have none, [`LogError::Unnumbered`].
    pub fn log_with(
        &self,
        read: impl Fn(u64, &mut [u8]) -> usize,
        wanted: &Wanted,
        symbol: &dyn Fn(&str) -> Option<u64>,
    ) -> Result<Log, LogError> {
        let reader = Reader::new(&read);
        let of_levels = |has_levels: bool, where_they_are: &str| {
            let has_them = has_levels || wanted.levels == Levels::ALL;
            has_them.then_some(()).ok_or_else(|| LogError::Lacks(where_they_are.into()))
        };
        let mut is_unnumbered = false;
        let mut found = if self.is_log_unnumbered() {
            let Records { all, size, has_levels, are_numbered } = Records::find(self, symbol, &reader)?;
            of_levels(has_levels, "printk_log.dict_len")?;
            is_unnumbered = !are_numbered;
            if wanted.since.is_some() && is_unnumbered {
                return Err(LogError::Unnumbered);
            }
            Found::look(size, all.into_iter().rev().map(|raw| Ok(Place::Record(raw))), wanted)?
        } else {
            let ring = Ring::find(self, &reader)?;
            of_levels(ring.has_levels, "printk_info.caller_id")?;
            Found::look(ring.size, ring.ids().map(|id| ring.place(&reader, id)), wanted)?
        };
        let (mut lost, mut next) = (0, found.newest().map_or(0, |raw| raw.sequence.saturating_add(1)));
        if let Some(since) = found.since {
            found.settle();
            next = found.newest().map_or(since, |raw| raw.sequence.saturating_add(1));
            let there = found.places.iter().flatten().count() as u64;
            // What is older than all that was ever asked for is not missed.
            lost = if since == 0 { 0 } else { next.saturating_sub(since).saturating_sub(there) };
        }
        let (records, is_cut) = found.into_records(wanted);
        Ok(Log { records, is_cut, lost, next, is_unnumbered })
    }
}

/// What a ring has, the newest first.
struct Found {
    /// Records; nothing for one that is being written.
    places: Vec<Option<Raw>>,
    /// [`Wanted::since`], or 0 where the log has not come so far: another kernel has begun.
    since: Option<u64>,
}

impl Found {
    /// Goes back from the newest one as far as is wanted, through a ring of `size` bytes of text.
    fn look(
        size: u64,
        places: impl Iterator<Item = Result<Place, LogError>>,
        wanted: &Wanted,
    ) -> Result<Found, LogError> {
        let mut found = Found { places: Vec::new(), since: wanted.since };
        // Records do not share text, so all of it is no more than the ring holds.
        let (mut room, mut lines) = (size, 0);
        for place in places {
            let raw = match place? {
                Place::Record(raw) => raw,
                Place::Written => {
                    found.places.push(None);
                    continue;
                }
                Place::Gone => continue,
            };
            if found.newest().is_none() {
                found.since =
                    found.since.map(|since| if since > raw.sequence.saturating_add(1) { 0 } else { since });
            }
            if found.since.is_some_and(|since| raw.sequence < since) {
                break;
            }
            room = room.checked_sub(raw.text.len() as u64).ok_or(LogError::Nonsense)?;
            if raw.level.is_none_or(|level| wanted.levels.has(level)) {
                lines += 1 + raw.text.iter().filter(|byte| **byte == b'\n').count();
            }
            found.places.push(Some(raw));
            if found.since.is_none() && lines >= wanted.most {
                break;
            }
        }
        Ok(found)
    }

    fn newest(&self) -> Option<&Raw> {
        self.places.iter().flatten().next()
    }

    /// Leaves out what is not finished, and what is behind that: it is for the next time. What has not been finished while
    /// others have been for a second is not waited for, as who was writing it may be the one that hangs.
    fn settle(&mut self) {
        const PATIENCE: u64 = 1_000_000_000;
        let newest = self.newest().map_or(0, |raw| raw.time);
        let (mut behind, mut unsettled) = (newest, 0);
        for (index, place) in self.places.iter().enumerate() {
            match place {
                Some(raw) if raw.is_final => behind = raw.time,
                _ if newest.saturating_sub(behind) <= PATIENCE => unsettled = index + 1,
                _ => {}
            }
        }
        self.places.drain(..unsettled);
    }

    /// Those that are wanted, the oldest first, as far as there is room for them, and whether there was not.
    fn into_records(self, wanted: &Wanted) -> (Vec<Record>, bool) {
        /// What a line takes beside its text: what stands in front of it, and its place in a list.
        const BESIDE: usize = 80;
        let (mut records, mut left, mut room, mut is_cut) = (Vec::new(), wanted.most, Log::ROOM, false);
        let is_wanted = |raw: &Raw| raw.level.is_none_or(|level| wanted.levels.has(level));
        for raw in self.places.into_iter().flatten().filter(is_wanted) {
            let mut record = Record::from(raw);
            if left == 0 {
                break;
            }
            record.shorten(left);
            let lines = record.text.split('\n').count();
            let Some(rest) = room.checked_sub(record.text.len() + lines * BESIDE) else {
                is_cut = true;
                break;
            };
            (room, left) = (rest, left - lines.min(left));
            records.push(record);
        }
        records.reverse();
        (records, is_cut)
    }
}

impl From<Raw> for Record {
    fn from(raw: Raw) -> Record {
        let Raw { sequence, time, level, facility, caller, text, .. } = raw;
        Record { sequence, time, level, facility, caller, text: plain_lines(&String::from_utf8_lossy(&text)) }
    }
}

#[cfg(test)]
mod tests;
