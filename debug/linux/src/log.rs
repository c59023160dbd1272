//! A kernel's log, by its description of itself.
//!
//! Source: Linux, `Documentation/admin-guide/kdump/gdbmacros.txt`, `kernel/printk/printk_ringbuffer.h`.

use super::error::LogError;
use super::info::VmCoreInfo;
use std::collections::VecDeque;

impl VmCoreInfo {
    /// The kernel's log, oldest line first, as `dmesg` prints it: its last lines, `most` of them. `read`
    /// reads guest-virtual memory and says how many bytes are good. What is older than 32 MiB of lines is
    /// left out, and the first line says so.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn log(&self, read: impl Fn(u64, &mut [u8]) -> usize, most: usize) -> Result<Vec<String>, LogError> {
        let reader = Reader(read);
        let ring = Ring::find(self, &reader)?;
        let mut lines = Lines::new(most);
        // Records do not share text, so all of it is no more than the ring holds.
        let mut left = ring.size;
        let mut id = ring.tail & ID_MASK;
        // A record may be written while this looks, so the number of rounds is what ends it.
        for _ in 0..ring.count {
            if let Some(record) = ring.record(&reader, id)? {
                left = left.checked_sub(record.text.len() as u64).ok_or(LogError::Nonsense)?;
                lines.push_record(record.time, &String::from_utf8_lossy(&record.text));
            }
            if id == ring.head & ID_MASK {
                break;
            }
            id = id.wrapping_add(1) & ID_MASK;
        }
        Ok(lines.finish())
    }
}

/// A record of the log.
struct Record {
    /// Nanoseconds.
    time: u64,
    text: Vec<u8>,
}

/// Where the ring buffer is, and where the parts of a record are in their structures.
struct Ring {
    /// Records that it holds, and bytes of text.
    count: u64,
    size: u64,
    descriptors: u64,
    descriptor_size: u64,
    infos: u64,
    info_size: u64,
    text: u64,
    state_at: u64,
    begin_at: u64,
    next_at: u64,
    time_at: u64,
    length_at: u64,
    /// Ids of the first record and of the last.
    tail: u64,
    head: u64,
}

impl Ring {
    fn find<R: Fn(u64, &mut [u8]) -> usize>(info: &VmCoreInfo, reader: &Reader<R>) -> Result<Ring, LogError> {
        let field =
            |of: u64, name: &str| -> Result<u64, LogError> { Ok(of.wrapping_add(info.offset(name)?)) };
        let buffer = reader.word(info.symbol("prb")?)?;
        let ring = field(buffer, "printk_ringbuffer.desc_ring")?;
        let text_ring = field(buffer, "printk_ringbuffer.text_data_ring")?;
        let count_bits = reader.half(field(ring, "prb_desc_ring.count_bits")?)?;
        let size_bits = reader.half(field(text_ring, "prb_data_ring.size_bits")?)?;
        if count_bits > MOST_COUNT_BITS || size_bits > MOST_SIZE_BITS {
            return Err(LogError::Nonsense);
        }
        let counter = info.offset("atomic_long_t.counter").unwrap_or(0);
        let position_at = info.offset("prb_desc.text_blk_lpos")?;
        Ok(Ring {
            count: 1 << count_bits,
            size: 1 << size_bits,
            descriptors: reader.word(field(ring, "prb_desc_ring.descs")?)?,
            descriptor_size: info.size("prb_desc")?,
            infos: reader.word(field(ring, "prb_desc_ring.infos")?)?,
            info_size: info.size("printk_info")?,
            text: reader.word(field(text_ring, "prb_data_ring.data")?)?,
            state_at: field(counter, "prb_desc.state_var")?,
            begin_at: field(position_at, "prb_data_blk_lpos.begin")?,
            next_at: field(position_at, "prb_data_blk_lpos.next")?,
            time_at: info.offset("printk_info.ts_nsec")?,
            length_at: info.offset("printk_info.text_len")?,
            tail: reader.word(field(ring, "prb_desc_ring.tail_id")?.wrapping_add(counter))?,
            head: reader.word(field(ring, "prb_desc_ring.head_id")?.wrapping_add(counter))?,
        })
    }

    /// The record of an id, if it is there.
    fn record<R: Fn(u64, &mut [u8]) -> usize>(
        &self,
        reader: &Reader<R>,
        id: u64,
    ) -> Result<Option<Record>, LogError> {
        let index = id % self.count;
        let descriptor = self.descriptors.wrapping_add(index.wrapping_mul(self.descriptor_size));
        let state = reader.word(descriptor.wrapping_add(self.state_at))?;
        let begin = reader.word(descriptor.wrapping_add(self.begin_at))?;
        let next = reader.word(descriptor.wrapping_add(self.next_at))?;
        if !matches!(state >> STATE_SHIFT, COMMITTED | FINALIZED) || state & ID_MASK != id {
            return Ok(None);
        }
        let info = self.infos.wrapping_add(index.wrapping_mul(self.info_size));
        let time = reader.word(info.wrapping_add(self.time_at))?;
        let mut length = [0; 2];
        reader.bytes(info.wrapping_add(self.length_at), &mut length)?;
        let mut text = Vec::new();
        if let Some((start, room)) = block(begin, next, self.size) {
            text.resize(usize::from(u16::from_le_bytes(length)).min(usize::try_from(room).unwrap_or(0)), 0);
            reader.bytes(self.text.wrapping_add(start), &mut text)?;
        }
        Ok(Some(Record { time, text }))
    }
}

/// The last lines of a log, as many as are wanted and as there is room for: a record may be nothing but ends of
/// lines, each of which becomes a line with an indent.
struct Lines {
    lines: VecDeque<String>,
    most: usize,
    /// Bytes of what is kept.
    size: usize,
    /// Lines that there was no room for.
    left_out: u64,
}

impl Lines {
    /// Bytes that all of them may take.
    const ROOM: usize = 32 << 20;
    /// What a line takes beside its text: its place in the list, and what an allocator adds.
    const BESIDE: usize = 64;

    fn new(most: usize) -> Lines {
        Lines { lines: VecDeque::new(), most, size: 0, left_out: 0 }
    }

    fn push_record(&mut self, time: u64, record: &str) {
        let stamp = format!("[{:5}.{:06}] ", time / 1_000_000_000, time / 1000 % 1_000_000);
        // Further lines of a record stand below its first.
        let indent = " ".repeat(stamp.len());
        for (number, line) in record.split('\n').enumerate() {
            let line: String = line.chars().map(printable).collect();
            self.push(format!("{}{line}", if number == 0 { &stamp } else { &indent }));
        }
    }

    fn push(&mut self, line: String) {
        self.size += line.len() + Lines::BESIDE;
        self.lines.push_back(line);
        while self.lines.len() > self.most || self.size > Lines::ROOM {
            if self.lines.len() <= self.most {
                self.left_out += 1;
            }
            let Some(oldest) = self.lines.pop_front() else { return };
            self.size -= oldest.len() + Lines::BESIDE;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.lines.push_front(format!("({} older lines are left out)", self.left_out));
        }
        self.lines.into()
    }
}

/// A descriptor's state is in the two highest bits of its state variable.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
/// The largest rings that are read, 2^18 records and 32 MiB of text: a guest that claims more must
/// not keep the debugger busy. Distributions' kernels have 2^13 and 256 KiB.
const MOST_COUNT_BITS: u32 = 18;
const MOST_SIZE_BITS: u32 = 25;

/// A control character could do something to a terminal.
fn printable(character: char) -> char {
    if character.is_control() && character != '\t' { '?' } else { character }
}

/// Where a record's text is in a ring of `size` bytes, behind the id that begins its block, and
/// how much room there is; `None` for a record without text.
fn block(begin: u64, next: u64, size: u64) -> Option<(u64, u64)> {
    const ID: u64 = 8;
    // Odd positions stand for no data.
    if begin & 1 != 0 {
        return None;
    }
    // A block that would wrap begins at the start of the ring.
    let (start, end) = (begin % size, next % size);
    let start = if start > end && end != 0 { 0 } else { start };
    let end = if end == 0 { size } else { end };
    let room = end.checked_sub(start + ID)?;
    Some((start + ID, room))
}

struct Reader<R>(R);

impl<R: Fn(u64, &mut [u8]) -> usize> Reader<R> {
    fn bytes(&self, at: u64, bytes: &mut [u8]) -> Result<(), LogError> {
        if (self.0)(at, bytes) == bytes.len() { Ok(()) } else { Err(LogError::NotMapped(at)) }
    }

    fn word(&self, at: u64) -> Result<u64, LogError> {
        let mut bytes = [0; 8];
        self.bytes(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn half(&self, at: u64) -> Result<u32, LogError> {
        let mut bytes = [0; 4];
        self.bytes(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::MOST_TEXT;
    use arch::GuestPhys;
    use arch::ram::Memory;
    use arch::ram::fake::Ram;

    const INFO: &str = "OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=1a000000\nSYMBOL(prb)=1000\n\
        OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
        OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n\
        OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\nOFFSET(prb_data_ring.size_bits)=0\n\
        OFFSET(prb_data_ring.data)=8\nSIZE(prb_desc)=24\nSIZE(printk_info)=16\nOFFSET(prb_desc.state_var)=0\n\
        OFFSET(prb_desc.text_blk_lpos)=8\nOFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\n\
        OFFSET(printk_info.ts_nsec)=0\nOFFSET(printk_info.text_len)=8\n";

    /// A ring of four descriptors and 64 bytes of text, at 0x2000.
    fn ram(records: &[(u64, &str, u64)]) -> Ram {
        let ram = Ram::new(0x1_0000);
        let word = |at: u64, value: u64| assert_eq!(ram.write(GuestPhys(at), &value.to_le_bytes()), 8);
        word(0x1000, 0x2000);
        word(0x2000, 2);
        word(0x2008, 0x3000);
        word(0x2010, 0x4000);
        word(0x2018, records.len() as u64 - 1);
        word(0x2020, 0);
        word(0x2030, 6);
        word(0x2038, 0x5000);
        let mut at = 0;
        for (id, (time, text, state)) in (0u64..).zip(records) {
            let end = at + 8 + (text.len() as u64).next_multiple_of(8);
            word(0x3000 + id * 24, state << 62 | id);
            word(0x3008 + id * 24, at);
            word(0x3010 + id * 24, end);
            word(0x4000 + id * 16, *time);
            word(0x4008 + id * 16, text.len() as u64);
            ram.write(GuestPhys(0x5000 + at + 8), text.as_bytes());
            at = end;
        }
        ram
    }

    fn log(ram: &Ram, info: &str) -> Result<Vec<String>, LogError> {
        let info = VmCoreInfo::parse(info.as_bytes()).unwrap();
        info.log(|at, bytes| Memory::read(ram, GuestPhys(at), bytes), usize::MAX)
    }

    #[test]
    fn the_log_is_read_in_order() {
        let ram = ram(&[(1_500_000_000, "first", 2), (2_000_001_000, "two\nlines\x1b", 1), (3, "none", 0)]);
        let lines = ["[    1.500000] first", "[    2.000001] two", "               lines?"];
        assert_eq!(log(&ram, INFO).unwrap(), lines);
    }

    #[test]
    fn damage_is_told() {
        let ram = ram(&[(0, "x", 2)]);
        assert_eq!(log(&ram, &INFO.replace("SYMBOL(prb)=1000", "")), Err(LogError::Lacks("prb".into())));
        let elsewhere = INFO.replace("SYMBOL(prb)=1000", "SYMBOL(prb)=fffffffff0");
        assert!(matches!(log(&ram, &elsewhere), Err(LogError::NotMapped(_))));
        ram.write(GuestPhys(0x2000), &[0xff; 4]);
        assert_eq!(log(&ram, INFO), Err(LogError::Nonsense));
        // Four records that all claim the same text, which is nearly all of the ring.
        let text = "x".repeat(48);
        let ram = ram_of_copies(&text);
        assert_eq!(log(&ram, INFO), Err(LogError::Nonsense));
    }

    fn ram_of_copies(text: &str) -> Ram {
        let ram = ram(&[(0, text, 2), (0, "", 2), (0, "", 2)]);
        for id in 1..3u64 {
            for (at, value) in [(0x3008 + id * 24, 0), (0x3010 + id * 24, 56), (0x4008 + id * 16, 48)] {
                assert_eq!(ram.write(GuestPhys(at), &u64::to_le_bytes(value)), 8);
            }
        }
        ram
    }

    #[test]
    fn blocks_wrap_and_may_be_empty() {
        assert_eq!(block(64, 96, 64), Some((8, 24)));
        assert_eq!(block(48, 64, 64), Some((56, 8)));
        // From 56 a block of 24 does not fit: it is at the start.
        assert_eq!(block(56, 64 + 24, 64), Some((8, 16)));
        assert_eq!((block(1, 1, 64), block(0, 4, 64)), (None, None));
    }

    #[test]
    fn it_is_parsed_up_to_a_size() {
        let info = VmCoreInfo::parse(INFO.as_bytes()).unwrap();
        assert_eq!((info.release(), info.slide()), ("6.12.0", Some(0x1a00_0000)));
        assert_eq!(VmCoreInfo::parse(b"OSRELEASE=not whole"), None);
        assert_eq!(VmCoreInfo::parse(INFO.replace("6.12.0", "6\x1b[2J").as_bytes()), None);
        let long = format!("{INFO}{}", "X=\n".repeat(MOST_TEXT / 3));
        assert_eq!(VmCoreInfo::parse(long.as_bytes()), None);
    }

    #[test]
    fn a_log_of_ends_of_lines_takes_no_more_than_its_room() {
        let mut lines = Lines::new(usize::MAX);
        let record = "\n".repeat(65_535);
        for _ in 0..512 {
            lines.push_record(0, &record);
            assert!(lines.size <= Lines::ROOM);
        }
        let kept = lines.lines.len();
        assert!(kept < 1 << 19, "{kept}");
        let lines = lines.finish();
        assert_eq!(lines[0], format!("({} older lines are left out)", 512 * 65_536 - kept));
        // Those that were asked for are not missed.
        let mut last = Lines::new(2);
        last.push_record(0, &record);
        assert_eq!(last.finish(), ["               ", "               "]);
    }
}
