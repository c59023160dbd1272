//! A log as 4.19 and 5.4 have it, made here.

use super::super::{Levels, Log, Wanted};
use super::*;
use crate::made::{BASE, Made};

const BUFFER: u64 = BASE + 0x1000;
const SIZE: u64 = 256;
/// Bytes in front of a record's text, without a caller.
const HEADER: u64 = 16;

/// A buffer of 256 bytes.
struct Kernel {
    made: Made,
    has_callers: bool,
}

impl Kernel {
    fn new(has_callers: bool) -> Kernel {
        let kernel = Kernel { made: Made::new(0x2000), has_callers };
        kernel.made.put(BASE + 0x100, BUFFER);
        kernel.made.put(BASE + 0x108, SIZE);
        kernel
    }

    fn info(&self) -> VmCoreInfo {
        let (size, caller) = match self.has_callers {
            true => (24, "OFFSET(printk_log.caller_id)=16\n"),
            false => (HEADER, ""),
        };
        let text = format!(
            "OSRELEASE=5.4.0\nPAGESIZE=4096\nSYMBOL(log_buf)={:x}\nSYMBOL(log_buf_len)={:x}\n\
             SYMBOL(log_first_idx)={:x}\nSYMBOL(log_next_idx)={:x}\nSIZE(printk_log)={size}\n\
             OFFSET(printk_log.ts_nsec)=0\nOFFSET(printk_log.len)=8\nOFFSET(printk_log.text_len)=10\n\
             OFFSET(printk_log.dict_len)=12\n{caller}",
            BASE + 0x100,
            BASE + 0x108,
            BASE + 0x110,
            BASE + 0x118
        );
        VmCoreInfo::parse(text.as_bytes()).unwrap()
    }

    /// The first record and the one behind the last, and their numbers.
    fn holds(&self, first: u64, next: u64, numbers: [u64; 2]) {
        self.made.put(BASE + 0x110, first);
        self.made.put(BASE + 0x118, next);
        self.made.put(BASE + 0x120, numbers[0]);
        self.made.put(BASE + 0x128, numbers[1]);
    }

    /// Writes a record; what follows begins where it says.
    fn put(&self, at: u64, time: u64, level: u64, text: &str) -> u64 {
        let header = if self.has_callers { 24 } else { HEADER };
        // Something is behind the text, in a dictionary.
        let length = (header + text.len() as u64 + 3).next_multiple_of(8);
        self.made.put(BUFFER + at, time);
        self.made.put(
            BUFFER + at + 8,
            level << 61 | 2 << 56 | 1 << 48 | 3 << 32 | (text.len() as u64) << 16 | length,
        );
        if self.has_callers {
            self.made.put(BUFFER + at + 16, 0x8000_0003);
        }
        self.made.text(BUFFER + at + header, text);
        at + length
    }

    fn log(&self, wanted: &Wanted) -> Result<Log, LogError> {
        let symbol = |name: &str| {
            let place = [("log_first_seq", BASE + 0x120), ("log_next_seq", BASE + 0x128)];
            place.into_iter().find(|(known, _)| *known == name).map(|(_, at)| at)
        };
        self.info().log_with(self.made.read(), wanted, &symbol)
    }
}

const ALL: Wanted = Wanted { most: usize::MAX, levels: Levels::ALL, since: None };

fn told(log: &Log) -> Vec<(u64, &str)> {
    log.records.iter().map(|record| (record.sequence, record.text.as_str())).collect()
}

#[test]
fn records_are_told_with_their_times_levels_and_callers() {
    for has_callers in [false, true] {
        let kernel = Kernel::new(has_callers);
        let second = kernel.put(0, 1_000_001_000, 6, "one");
        let end = kernel.put(second, 2_000_002_000, 3, "two\nlines");
        kernel.holds(0, end, [40, 42]);
        let log = kernel.log(&ALL).unwrap();
        assert_eq!(log.to_string(), "[    1.000001] one\n[    2.000002] two\n               lines\n");
        let record = &log.records[1];
        assert_eq!((record.level, record.facility, record.sequence), (Some(Level::Error), Some(1), 41));
        assert_eq!(record.caller, has_callers.then_some(Caller::Cpu(3)));
        let urgent = kernel.log(&Wanted { levels: Levels::parse("err+").unwrap(), ..ALL }).unwrap();
        assert_eq!(told(&urgent), [(41, "two\nlines")]);
        assert_eq!(told(&kernel.log(&Wanted::last(1)).unwrap()), [(41, "lines")]);
    }
}

#[test]
fn records_go_on_at_the_beginning() {
    let kernel = Kernel::new(false);
    let first = kernel.put(64, 1, 6, "old");
    let marker = kernel.put(first, 2, 6, "older");
    kernel.made.put(BUFFER + marker + 8, 0);
    let end = kernel.put(0, 3, 6, "new");
    kernel.holds(64, end, [7, 10]);
    assert_eq!(told(&kernel.log(&ALL).unwrap()), [(7, "old"), (8, "older"), (9, "new")]);
    // None at all.
    kernel.holds(end, end, [10, 10]);
    assert_eq!(told(&kernel.log(&ALL).unwrap()), []);
}

#[test]
fn numbers_are_the_kernels_or_none() {
    let kernel = Kernel::new(false);
    let second = kernel.put(0, 1, 6, "one");
    let end = kernel.put(second, 2, 6, "two");
    kernel.holds(0, end, [40, 42]);
    let since = |number| kernel.log(&Wanted { since: Some(number), ..ALL });
    let log = since(41).unwrap();
    assert_eq!((told(&log), log.next, log.lost), (vec![(41, "two")], 42, 0));
    assert_eq!((since(42).unwrap().records.len(), since(30).unwrap().lost), (0, 10));
    // They do not fit the records, or nobody knows where they are.
    kernel.holds(0, end, [40, 43]);
    assert_eq!(since(41), Err(LogError::Unnumbered));
    assert_eq!(told(&kernel.log(&ALL).unwrap()), [(0, "one"), (1, "two")]);
    kernel.holds(0, end, [40, 42]);
    let without = kernel.info().log(kernel.made.read(), &Wanted { since: Some(41), ..ALL });
    assert_eq!(without, Err(LogError::Unnumbered));
    assert_eq!(told(&kernel.info().log(kernel.made.read(), &ALL).unwrap()), [(0, "one"), (1, "two")]);
}

#[test]
fn a_log_that_lies_is_told() {
    let good = || {
        let kernel = Kernel::new(false);
        let end = kernel.put(0, 1, 6, "one");
        kernel.holds(0, end, [0, 1]);
        kernel
    };
    let told = |change: &dyn Fn(&Kernel)| {
        let kernel = good();
        change(&kernel);
        kernel.log(&ALL).map(|log| log.records.len())
    };
    assert_eq!(told(&|_| {}), Ok(1));
    for (what, change) in [
        ("two ends of the buffer", &(|it: &Kernel| it.made.put(BUFFER + 8, 0)) as &dyn Fn(&Kernel)),
        ("a text longer than its record", &|it| it.made.put(BUFFER + 8, 100 << 16 | 24)),
        ("a record shorter than its head", &|it| it.made.put(BUFFER + 8, 8)),
        ("a record that goes over the end", &|it| it.made.put(BUFFER + 8, 0xfff0)),
        ("a record over the next", &|it| it.made.put(BUFFER + 8, 3 << 16 | 40)),
        ("an end behind the buffer", &|it| it.made.put(BASE + 0x118, SIZE)),
        ("a beginning behind it", &|it| it.made.put(BASE + 0x110, 0xffff_ffff)),
        ("a buffer larger than any", &|it| it.made.put(BASE + 0x108, 1 << 31)),
    ] {
        assert_eq!(told(change), Err(LogError::Nonsense), "{what}");
    }
    assert_eq!(told(&|it| it.made.put(BASE + 0x100, 0x1000)), Err(LogError::NotMapped(0x1000)));
    // A description that does not tell all, or something else.
    let info = |from: &str, to: &str| {
        let text = good().info().text().replace(from, to);
        VmCoreInfo::parse(text.as_bytes()).unwrap().log(good().made.read(), &Wanted { ..ALL })
    };
    assert_eq!(info("log_buf_len", "other"), Err(LogError::Lacks("log_buf_len".into())));
    assert_eq!(info("ts_nsec)=0", "ts_nsec)=999"), Err(LogError::Nonsense));
    let elsewhere = info("dict_len)=12", "dict_len)=14").unwrap();
    assert_eq!((elsewhere.records[0].level, elsewhere.records[0].facility), (None, None));
}

/// Nothing but records without text, as many as there is room for.
#[test]
fn more_records_than_any_log_has_are_not_kept() {
    let size = (MOST_RECORDS as u64 + 1000) * HEADER;
    let info = Kernel::new(false).info();
    let read = |at: u64, bytes: &mut [u8]| {
        let word = |at: u64| match at.wrapping_sub(BASE) {
            0x100 => BUFFER,
            0x108 => size,
            0x110 => 0,
            0x118 => size - HEADER,
            0x120 => 5,
            0x128 => 5 + MOST_RECORDS as u64 + 999,
            _ if (at - BUFFER).is_multiple_of(HEADER) => 1,
            _ => HEADER,
        };
        (at..).step_by(8).zip(bytes.chunks_mut(8)).for_each(|(at, to)| {
            to.copy_from_slice(&word(at).to_le_bytes()[..to.len()]);
        });
        bytes.len()
    };
    let symbol = |name: &str| Some(if name == "log_first_seq" { BASE + 0x120 } else { BASE + 0x128 });
    let records = Records::find(&info, &symbol, &Reader::new(&read)).unwrap();
    let numbers = [records.all.front(), records.all.back()].map(|raw| raw.unwrap().sequence);
    assert_eq!((records.all.len(), numbers), (MOST_RECORDS, [5 + 999, 5 + MOST_RECORDS as u64 + 998]));
}
