//! A log in memory made here.

use super::*;
use crate::info::MOST_TEXT;
use crate::made::{BASE, Made};

const INFO: &str = "OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=1a000000\nSYMBOL(prb)=ffff800000001000\n\
    OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
    OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n\
    OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\nOFFSET(prb_data_ring.size_bits)=0\n\
    OFFSET(prb_data_ring.data)=8\nSIZE(prb_desc)=24\nSIZE(printk_info)=24\nOFFSET(prb_desc.state_var)=0\n\
    OFFSET(prb_desc.text_blk_lpos)=8\nOFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\n\
    OFFSET(printk_info.seq)=0\nOFFSET(printk_info.ts_nsec)=8\nOFFSET(printk_info.text_len)=16\n\
    OFFSET(printk_info.caller_id)=20\n";

/// Where the buffer is, its descriptors, what is known of records, and their text.
const BUFFER: u64 = BASE + 0x2000;
const DESCRIPTORS: u64 = BASE + 0x3000;
const INFOS: u64 = BASE + 0x4000;
const TEXT: u64 = BASE + 0x5000;
/// States of a descriptor.
const RESERVED: u64 = 0;
const COMMITTED: u64 = 1;
const FINAL: u64 = 2;
const REUSABLE: u64 = 3;

/// A ring of eight descriptors and 128 bytes of text.
struct Kernel(Made);

impl Kernel {
    /// With records: time, level, text, and the state that each is in; the first has the number 0.
    fn new(records: &[(u64, u8, &str, u64)]) -> Kernel {
        let made = Made::new(0x1_0000);
        made.put(BASE + 0x1000, BUFFER);
        for (at, value) in [(0, 3), (8, DESCRIPTORS), (16, INFOS), (0x30, 7), (0x38, TEXT)] {
            made.put(BUFFER + at, value);
        }
        made.put(BUFFER + 24, records.len() as u64 - 1);
        let mut at = 0;
        for (id, (time, level, text, state)) in (0u64..).zip(records) {
            let end = at + 8 + (text.len() as u64).next_multiple_of(8);
            made.put(DESCRIPTORS + id * 24, state << 62 | id);
            made.put(DESCRIPTORS + id * 24 + 8, at);
            made.put(DESCRIPTORS + id * 24 + 16, end);
            made.put(INFOS + id * 24, id);
            made.put(INFOS + id * 24 + 8, *time);
            let caller = if id == 1 { 0x8000_0002 } else { 77 };
            made.put(INFOS + id * 24 + 16, caller << 32 | u64::from(level << 5) << 24 | text.len() as u64);
            made.text(TEXT + at + 8, text);
            at = end;
        }
        Kernel(made)
    }

    /// The first record that is there, and from which number on they are counted.
    fn numbered(self, tail: u64, first: u64) -> Kernel {
        self.0.put(BUFFER + 32, tail);
        (0..8).for_each(|id| self.0.put(INFOS + id * 24, first + id));
        self
    }

    fn log(&self, wanted: &Wanted) -> Result<Log, LogError> {
        self.log_by(INFO, wanted)
    }

    fn log_by(&self, info: &str, wanted: &Wanted) -> Result<Log, LogError> {
        VmCoreInfo::parse(info.as_bytes()).unwrap().log(self.0.read(), wanted)
    }

    /// Texts of records from a number on, how many are lost, and which is next.
    fn since(&self, since: u64) -> (Vec<String>, u64, u64) {
        let log = self.log(&Wanted { since: Some(since), ..ALL }).unwrap();
        (log.records.into_iter().map(|record| record.text).collect(), log.lost, log.next)
    }
}

const ALL: Wanted = Wanted { most: usize::MAX, levels: Levels::ALL, since: None };

fn lines(log: &Log) -> Vec<String> {
    log.lines()
}

#[test]
fn the_log_is_read_in_order() {
    let kernel = Kernel::new(&[
        (1_500_000_000, 6, "first", FINAL),
        (2_000_001_000, 3, "two\nlines\x1b\u{202e}\t.", COMMITTED),
        (3, 0, "none", RESERVED),
    ]);
    let log = kernel.log(&ALL).unwrap();
    let expected = ["[    1.500000] first", "[    2.000001] two", "               lines\u{fffd}\u{fffd}\t."];
    assert_eq!(lines(&log), expected);
    assert_eq!(log.to_string(), expected.map(|line| format!("{line}\n")).concat());
    let second = Record {
        sequence: 1,
        time: 2_000_001_000,
        level: Some(Level::Error),
        facility: Some(0),
        caller: Some(Caller::Cpu(2)),
        text: "two\nlines\u{fffd}\u{fffd}\t.".into(),
    };
    assert_eq!(log.records[1], second);
    assert_eq!((log.records[0].caller, log.next, log.lost), (Some(Caller::Task(77)), 2, 0));
    // The last lines, of which the first is within a record.
    assert_eq!(lines(&kernel.log(&Wanted::last(1)).unwrap()), ["[    2.000001] lines\u{fffd}\u{fffd}\t."]);
    assert_eq!(lines(&kernel.log(&Wanted::last(2)).unwrap()), expected[1..]);
    assert_eq!(lines(&kernel.log(&Wanted::last(3)).unwrap()), expected);
}

#[test]
fn records_of_some_levels() {
    let kernel =
        Kernel::new(&[(0, 3, "error", FINAL), (1, 6, "info\nmore", FINAL), (2, 4, "warning", FINAL)]);
    let of = |levels: &str, most| {
        let wanted = Wanted { most, levels: Levels::parse(levels).unwrap(), since: None };
        let log = kernel.log(&wanted).unwrap();
        log.records.into_iter().map(|record| record.text).collect::<Vec<_>>()
    };
    assert_eq!(of("warn+", usize::MAX), ["error", "warning"]);
    assert_eq!(of("err,info", 2), ["info\nmore"]);
    assert_eq!(of("err", 1), ["error"]);
    assert_eq!(of("emerg", 1), [""; 0]);
    // Not known where the level stands: all, and for some of them an error.
    let elsewhere = INFO.replace("caller_id)=20", "caller_id)=24");
    let log = kernel.log_by(&elsewhere, &ALL).unwrap();
    assert_eq!((log.records.len(), log.records[0].level, log.records[0].facility), (3, None, None));
    let wanted = Wanted { levels: Levels::parse("err").unwrap(), ..ALL };
    let lacks = LogError::Lacks("printk_info.caller_id".into());
    assert_eq!(kernel.log_by(&elsewhere, &wanted), Err(lacks));
}

#[test]
fn who_asks_again_gets_what_has_come() {
    let text = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let kernel = Kernel::new(&[(0, 6, "a", FINAL), (1, 6, "b", FINAL), (2, 6, "c", FINAL)]);
    assert_eq!(kernel.since(0), (text(&["a", "b", "c"]), 0, 3));
    assert_eq!(kernel.since(2), (text(&["c"]), 0, 3));
    assert_eq!(kernel.since(3), (Vec::new(), 0, 3));
    // Counted from 40 on, of which the first is overwritten.
    let later = Kernel::new(&[(0, 6, "x", REUSABLE), (1, 6, "b", FINAL), (2, 6, "c", FINAL)]).numbered(0, 40);
    assert_eq!(later.since(40), (text(&["b", "c"]), 1, 43));
    assert_eq!(later.since(30), (text(&["b", "c"]), 11, 43));
    assert_eq!(later.since(0), (text(&["b", "c"]), 0, 43));
    let log = later.log(&Wanted { since: Some(30), ..ALL }).unwrap();
    assert_eq!(lines(&log)[0], "(11 messages were lost)");
    // Another kernel has begun.
    assert_eq!(kernel.since(40), (text(&["a", "b", "c"]), 0, 3));
}

#[test]
fn what_is_not_finished_is_for_the_next_time() {
    let texts = |kernel: &Kernel| kernel.since(0).0.join(" ");
    // A line that goes on, and one that is written while others are finished.
    let open = Kernel::new(&[(0, 6, "a", FINAL), (1, 6, "b", COMMITTED)]);
    assert_eq!((texts(&open), open.since(0).2), ("a".into(), 1));
    let written = [(0, 6, "a", FINAL), (1, 6, "b", RESERVED), (2, 6, "c", FINAL), (3, 6, "d", FINAL)];
    let kernel = Kernel::new(&written);
    assert_eq!((texts(&kernel), kernel.since(0).2, kernel.since(1).2), ("a".into(), 1, 1));
    // For more than a second: it is not waited for, and is lost.
    let mut stuck = written;
    stuck[3].0 = 2_000_000_000;
    let kernel = Kernel::new(&stuck);
    assert_eq!((texts(&kernel), kernel.since(1).1, kernel.since(1).2), ("a c d".into(), 1, 4));
    // Nothing is finished yet.
    let none = Kernel::new(&[(0, 6, "a", RESERVED)]);
    assert_eq!(none.since(0), (Vec::new(), 0, 0));
}

/// A kernel that goes on while it is read has a later record where one was looked for: that one is gone, and not unfinished.
#[test]
fn what_is_written_over_while_it_is_read_is_gone() {
    for state in [RESERVED, COMMITTED, FINAL] {
        let kernel = Kernel::new(&[(0, 6, "a", FINAL), (1, 6, "b", FINAL), (2, 6, "c", FINAL)]);
        kernel.0.put(DESCRIPTORS, state << 62 | 8);
        assert_eq!(kernel.since(0), (vec!["b".into(), "c".into()], 0, 3));
    }
}

#[test]
fn damage_is_told() {
    let kernel = Kernel::new(&[(0, 6, "x", FINAL)]);
    let log = |info: &str| kernel.log_by(info, &ALL);
    let without = INFO.replace("SYMBOL(prb)=ffff800000001000", "");
    assert_eq!(log(&without), Err(LogError::Lacks("prb".into())));
    let elsewhere = INFO.replace("SYMBOL(prb)=ffff800000001000", "SYMBOL(prb)=fffffffff0");
    assert!(matches!(log(&elsewhere), Err(LogError::NotMapped(_))));
    kernel.0.put(BUFFER, u64::MAX);
    assert_eq!(log(INFO), Err(LogError::Nonsense));
    // Three records that all claim the same text, which is nearly all of the ring.
    let text = "x".repeat(112);
    let kernel = Kernel::new(&[(0, 6, &text, FINAL), (0, 6, "", FINAL), (0, 6, "", FINAL)]);
    for id in 1..3 {
        kernel.0.put(DESCRIPTORS + id * 24 + 8, 0);
        kernel.0.put(DESCRIPTORS + id * 24 + 16, 120);
        kernel.0.put(INFOS + id * 24 + 16, 112);
    }
    assert_eq!(kernel.log(&ALL), Err(LogError::Nonsense));
}

#[test]
fn it_is_parsed_up_to_a_size() {
    let info = VmCoreInfo::parse(INFO.as_bytes()).unwrap();
    assert_eq!((info.release(), info.slide()), ("6.12.0", Some(0x1a00_0000)));
    assert_eq!(VmCoreInfo::parse(b"OSRELEASE=not whole"), None);
    for release in ["6\x1b[2J", "6\u{202e}2"] {
        assert_eq!(VmCoreInfo::parse(INFO.replace("6.12.0", release).as_bytes()), None);
    }
    let long = format!("{INFO}{}", "X=\n".repeat(MOST_TEXT / 3));
    assert_eq!(VmCoreInfo::parse(long.as_bytes()), None);
}

#[test]
fn a_log_of_ends_of_lines_takes_no_more_than_its_room() {
    let raw = |sequence| {
        let text = vec![b'\n'; 65_535];
        Raw { sequence, time: 0, caller: None, level: None, facility: None, text, is_final: true }
    };
    let found =
        |count| Found { places: (0..count).rev().map(|number| Some(raw(number))).collect(), since: None };
    let (records, is_cut) = found(32).into_records(&ALL);
    assert!(is_cut && records.len() < 8, "{}", records.len());
    assert_eq!(records.last().map(|record| record.sequence), Some(31));
    let log = Log { records, is_cut, ..Log::default() };
    assert_eq!(log.lines()[0], "(older lines are left out)");
    assert!(log.to_string().len() < Log::ROOM);
    // Those that were asked for are not missed.
    let (last, is_cut) = found(32).into_records(&Wanted::last(2));
    assert_eq!((last.len(), last[0].text.as_str(), is_cut), (1, "\n", false));
}
