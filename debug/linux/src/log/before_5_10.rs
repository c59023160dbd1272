//! The buffer that a log before 5.10 is in: records of `struct printk_log`, one behind the other, each with its text.
//!
//! Where one has no length, the next is at the beginning. Each is one that was written whole, also what goes on a line
//! (`LOG_CONT`): from 4.10 on the kernel collects these before, or shows them by themselves. Records have no numbers: the
//! kernel has that of the next one in a variable, of which its description does not tell.
//!
//! Source: Linux 4.19 and 5.4, `kernel/printk/printk.c` (`struct printk_log`, `log_next`, `log_store`,
//! `log_buf_vmcoreinfo_setup`).

use super::level::{Caller, Level};
use super::ring::{LEVEL_SHIFT, MOST_SIZE_BITS, Raw};
use crate::error::LogError;
use crate::info::VmCoreInfo;
use crate::reader::Reader;
use std::collections::VecDeque;

/// Records that are kept, the last ones: of the largest buffer that is read, one that lies may make two million.
const MOST_RECORDS: usize = 1 << 18;

/// A log's records, the oldest first.
pub(super) struct Records {
    pub all: VecDeque<Raw>,
    /// Bytes of the buffer.
    pub size: u64,
    /// Facility and level stand where they have always stood.
    pub has_levels: bool,
    /// Their numbers are the kernel's own, and not counted from the oldest one that is there.
    pub are_numbered: bool,
}

/// Where a record has what is told of it.
struct Layout {
    size: usize,
    time: usize,
    length: usize,
    text_length: usize,
    caller: Option<usize>,
    has_levels: bool,
}

impl Layout {
    fn new(info: &VmCoreInfo) -> Result<Layout, LogError> {
        /// No kernel's is as large.
        const MOST: u64 = 256;
        let number = |name: &str| -> Result<usize, LogError> {
            let at = info.offset(name)?;
            usize::try_from(at).ok().filter(|_| at < MOST).ok_or(LogError::Nonsense)
        };
        let size = usize::try_from(info.size("printk_log")?.min(MOST)).map_err(|_| LogError::Nonsense)?;
        let (length, text_length) = (number("printk_log.len")?, number("printk_log.text_len")?);
        let dictionary = number("printk_log.dict_len")?;
        Ok(Layout {
            size,
            time: number("printk_log.ts_nsec")?,
            length,
            text_length,
            caller: number("printk_log.caller_id").ok(),
            // Three lengths, a byte of facility, one of level and flags; the description does not name these.
            has_levels: text_length == length + 2 && dictionary == length + 4 && length + 8 <= size,
        })
    }

    /// The record that begins with these bytes, and how many it has; `None` where the next is at the beginning.
    fn record(&self, bytes: &[u8]) -> Result<Option<(Raw, usize)>, LogError> {
        let header = bytes.get(..self.size).ok_or(LogError::Nonsense)?;
        let number = |at: usize, size: usize| {
            let bytes = header.get(at..at + size).ok_or(LogError::Nonsense)?;
            Ok::<u64, LogError>(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
        };
        let length = |at| number(at, 2).map(|length| usize::try_from(length).unwrap_or(0));
        let (whole, text) = (length(self.length)?, length(self.text_length)?);
        if whole == 0 {
            return Ok(None);
        }
        let text = bytes.get(..whole).and_then(|record| record.get(self.size..)?.get(..text));
        let text = text.ok_or(LogError::Nonsense)?.to_vec();
        let caller = self.caller.map(|at| number(at, 4)).transpose()?;
        let of_levels = |behind: usize| {
            let byte = header.get(self.length + behind).filter(|_| self.has_levels);
            byte.copied()
        };
        let raw = Raw {
            sequence: 0,
            time: number(self.time, 8)?,
            caller: caller.and_then(|id| u32::try_from(id).ok()).map(Caller::of_id),
            level: of_levels(7).and_then(|byte| Level::of_number(byte >> LEVEL_SHIFT)),
            facility: of_levels(6),
            text,
            is_final: true,
        };
        Ok(Some((raw, whole)))
    }
}

/// Whether a kernel has its log so.
pub(super) fn is_one(info: &VmCoreInfo) -> bool {
    info.address("prb").is_none() && info.address("log_first_idx").is_some()
}

impl Records {
    /// `symbol` is the address of a variable of the kernel's, by its name.
    pub fn find(
        info: &VmCoreInfo,
        symbol: &dyn Fn(&str) -> Option<u64>,
        reader: &Reader<'_>,
    ) -> Result<Records, LogError> {
        let layout = Layout::new(info)?;
        let number = |name: &str| Ok::<u64, LogError>(reader.number(info.symbol(name)?, 4)?);
        let (size, first, next) = (number("log_buf_len")?, number("log_first_idx")?, number("log_next_idx")?);
        if size > 1 << MOST_SIZE_BITS || first >= size || next >= size {
            return Err(LogError::Nonsense);
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| LogError::Nonsense)?];
        reader.bytes(reader.address(info.symbol("log_buf")?)?, &mut bytes)?;
        let index = |index: u64| usize::try_from(index).map_err(|_| LogError::Nonsense);
        let (mut at, next, mut all, mut has_wrapped) = (index(first)?, index(next)?, VecDeque::new(), false);
        let mut count = 0u64;
        while at != next {
            // Behind the end of the last one there is room for what has no length.
            match layout.record(bytes.get(at..).unwrap_or_default())? {
                Some((raw, length)) => {
                    if all.len() == MOST_RECORDS {
                        all.pop_front();
                    }
                    all.push_back(raw);
                    count += 1;
                    // The last one does not go on over the first.
                    let is_over = |end: usize| at < next && end > next;
                    at = at.checked_add(length).filter(|end| !is_over(*end)).ok_or(LogError::Nonsense)?;
                }
                None if has_wrapped => return Err(LogError::Nonsense),
                None => (at, has_wrapped) = (0, true),
            }
        }
        let variable = |name| symbol(name).and_then(|at| reader.address(at).ok());
        // What was read while the kernel wrote, or lies, does not fit the records.
        let numbers = variable("log_first_seq").zip(variable("log_next_seq"));
        let numbers = numbers.filter(|(first, next)| next.checked_sub(*first) == Some(count));
        let begin = numbers.map_or(0, |(first, _)| first).saturating_add(count - all.len() as u64);
        (begin..).zip(&mut all).for_each(|(number, raw)| raw.sequence = number);
        Ok(Records { all, size, has_levels: layout.has_levels, are_numbered: numbers.is_some() })
    }
}

#[cfg(test)]
mod tests;
