//! How much memory a process has: what it has mapped, and how much of that is in RAM.
//!
//! Source: Linux, `include/linux/mm_types.h` (`struct mm_struct`), `include/linux/mm_types_task.h` (`MM_FILEPAGES` and the
//! others), `include/linux/percpu_counter.h`.

use crate::reader::{NotThere, Reader};
use crate::types::{Field, Part, Shape, Types};

/// A process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Pages that are mapped.
    pub mapped: u64,
    /// Those of them that are in RAM: of files, of its own, and shared.
    pub resident: u64,
    /// What processors have counted and not yet added is in that number.
    pub is_exact: bool,
}

/// What is counted of pages in RAM: those of files, those of nobody else, and shared ones. Behind the second are those
/// that were swapped out.
const COUNTED: [u64; 3] = [0, 1, 3];

/// Where pages in RAM are counted.
#[derive(Clone, Copy, Debug)]
enum Counters {
    /// Before 6.2: a number each.
    Plain(Field),
    /// From 6.2 on: a number and one more of each processor, which is added to it when it is large enough.
    PerCpu { first: u64, size: u64, count: Field, own: Field },
}

/// How a process's memory is described.
#[derive(Debug)]
pub struct MmLayout {
    mapped: Field,
    counters: Counters,
    /// Tasks keep some pages of each for themselves, and add them later (before 6.2, `SPLIT_RSS_COUNTING`).
    is_split: bool,
}

impl MmLayout {
    /// By the kernel's types.
    ///
    /// # Errors
    /// What they do not have, in words.
    pub fn new(types: &Types) -> Result<MmLayout, String> {
        let lacks = |what: &str| format!("the kernel's types do not have struct mm_struct's {what}");
        let mm = types.tagged("mm_struct").ok_or("the kernel's types do not have struct mm_struct")?;
        let mapped = types.field(mm, "total_vm").ok_or_else(|| lacks("total_vm"))?;
        let plain = types.part(mm, "rss_stat.count").or_else(|| types.part(mm, "rss_stat"));
        let counters = plain.and_then(|part| counters(types, part)).ok_or_else(|| lacks("rss_stat"))?;
        let is_split = types.tagged("task_struct").is_some_and(|id| types.part(id, "rss_stat").is_some());
        Ok(MmLayout { mapped, counters, is_split })
    }

    /// The memory that is described at `mm`. `offsets` are how far each processor's own data is from where it is linked; with
    /// none of them, what processors have counted for themselves is left out.
    ///
    /// # Errors
    /// [`NotThere`].
    pub fn memory(&self, mm: u64, offsets: &[u64], reader: &Reader<'_>) -> Result<Memory, NotThere> {
        let mut resident = 0u64;
        for index in COUNTED {
            // As in the kernel, what is counted to less than nothing is nothing.
            let count = self.count(mm, index, offsets, reader)?.max(0);
            resident = resident.saturating_add(count.unsigned_abs());
        }
        let is_exact = match self.counters {
            Counters::Plain(_) => !self.is_split,
            Counters::PerCpu { .. } => !offsets.is_empty(),
        };
        Ok(Memory { mapped: reader.field(mm, self.mapped)?, resident, is_exact })
    }

    /// Reads that one process's memory takes of processors' own data.
    pub fn reads(&self, cpus: usize) -> usize {
        match self.counters {
            Counters::Plain(_) => 0,
            Counters::PerCpu { .. } => COUNTED.len() * cpus,
        }
    }

    fn count(&self, mm: u64, index: u64, offsets: &[u64], reader: &Reader<'_>) -> Result<i64, NotThere> {
        match self.counters {
            Counters::Plain(first) => {
                let at = Field { at: first.at.wrapping_add(index.wrapping_mul(first.size)), ..first };
                Ok(reader.field(mm, at)?.cast_signed())
            }
            Counters::PerCpu { first, size, count, own } => {
                let counter = mm.wrapping_add(first).wrapping_add(index.wrapping_mul(size));
                let mut sum = reader.field(counter, count)?.cast_signed();
                let linked = reader.field(counter, own)?;
                for offset in offsets {
                    let [a, b, c, d, ..] = reader.number(linked.wrapping_add(*offset), 4)?.to_le_bytes();
                    sum = sum.wrapping_add(i32::from_le_bytes([a, b, c, d]).into());
                }
                Ok(sum)
            }
        }
    }
}

/// Counters by the type of an array of them; `None` for what is none.
fn counters(types: &Types, part: Part) -> Option<Counters> {
    let Shape::Array(of, many) = *types.shape(types.plain(part.of)) else { return None };
    // As many as are read.
    (u64::from(many) > COUNTED[COUNTED.len() - 1]).then_some(())?;
    let (first, size) = (part.offset()?, types.size(of)?);
    let field = |name: &str| types.field(of, name);
    match (field("count"), field("counters")) {
        (Some(count), Some(own)) => Some(Counters::PerCpu { first, size, count, own }),
        _ => (size == 8).then_some(Counters::Plain(Field { at: first, size })),
    }
}

/// How far each processor's own data is from where it is linked, of so many processors: `offsets` is the address of
/// `__per_cpu_offset`.
///
/// # Errors
/// [`NotThere`].
pub fn cpu_offsets(offsets: u64, count: u64, reader: &Reader<'_>) -> Result<Vec<u64>, NotThere> {
    /// `CONFIG_NR_CPUS` is no larger.
    const MOST: u64 = 8192;
    (0..count.min(MOST)).map(|cpu| reader.address(offsets.wrapping_add(8 * cpu))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::{self, BASE, INT, LIST, Made, POINTER, compound};
    use crate::types::TypeId;

    const LONG: u32 = 5;

    /// The kernel's types, with counters as they were before 6.2 or from then on.
    fn types(is_old: bool) -> Types {
        let mut types = made::types();
        types.add("long", Shape::Integer { size: 8, is_signed: true, is_bool: false }); // 5
        compound(&mut types, "", 8, &[("counter", LONG, 0)]); // 6
        types.add("atomic_long_t", Shape::Alias(TypeId(6))); // 7
        types.add("", Shape::Array(TypeId(7), 4)); // 8
        compound(&mut types, "mm_rss_stat", 32, &[("count", 8, 0)]); // 9
        let members = [("lock", INT, 0), ("count", LONG, 8), ("list", LIST, 16), ("counters", POINTER, 32)];
        compound(&mut types, "percpu_counter", 40, &members); // 10
        types.add("", Shape::Array(TypeId(10), 4)); // 11
        let stat = if is_old { 9 } else { 11 };
        compound(&mut types, "", 200, &[("total_vm", LONG, 8), ("rss_stat", stat, 16)]); // 12
        compound(&mut types, "mm_struct", 256, &[("", 12, 32)]); // 13
        types
    }

    const MM: u64 = BASE + 0x100;
    const STAT: u64 = MM + 48;

    fn memory(made: &Made, is_old: bool, offsets: &[u64]) -> Result<Memory, NotThere> {
        let read = made.read();
        MmLayout::new(&types(is_old)).unwrap().memory(MM, offsets, &Reader::new(&read))
    }

    #[test]
    fn before_6_2_numbers_are_added() {
        let made = Made::new(0x1000);
        made.put(MM + 40, 1000);
        // What was swapped out is not in RAM, and less than nothing is nothing.
        (0..).zip([30, 500, 7, u64::MAX]).for_each(|(index, count)| made.put(STAT + 8 * index, count));
        let expected = Memory { mapped: 1000, resident: 530, is_exact: true };
        assert_eq!(memory(&made, true, &[]), Ok(expected));
        assert_eq!(MmLayout::new(&types(true)).unwrap().reads(4), 0);
    }

    #[test]
    fn from_6_2_on_processors_have_counted_as_well() {
        let made = Made::new(0x1000);
        made.put(MM + 40, 1000);
        for (index, count) in (0..).zip([32, 64, 7, 0]) {
            made.put(STAT + 40 * index + 8, count);
            made.put(STAT + 40 * index + 32, 0x10 + 4 * index);
        }
        let offsets = [BASE + 0x600, BASE + 0x700];
        // Of files one has counted 3 and the other 5 less; of what is shared, one has counted -2.
        for (at, count) in [(0x610, 3), (0x710, -5), (0x714, 31), (0x61c, -2)] {
            let bytes = i32::to_le_bytes(count);
            (BASE + at..).zip(bytes).for_each(|(at, byte)| made.byte(at, byte));
        }
        let expected = Memory { mapped: 1000, resident: 32 - 2 + 64 + 31, is_exact: true };
        assert_eq!(memory(&made, false, &offsets), Ok(expected));
        let without = Memory { mapped: 1000, resident: 96, is_exact: false };
        assert_eq!(memory(&made, false, &[]), Ok(without));
        assert!(memory(&made, false, &[0x1000]).is_err());
        assert_eq!(MmLayout::new(&types(false)).unwrap().reads(4), 12);
    }

    #[test]
    fn offsets_are_as_many_as_there_are_processors() {
        let made = Made::new(0x20000);
        made.put(BASE + 8, 0x1000);
        made.put(BASE + 16, 0x2000);
        let read = made.read();
        let reader = Reader::new(&read);
        assert_eq!(cpu_offsets(BASE + 8, 2, &reader), Ok(vec![0x1000, 0x2000]));
        assert_eq!(cpu_offsets(BASE + 8, u64::MAX, &reader).map(|all| all.len()), Ok(8192));
        assert!(cpu_offsets(BASE + 0x1fff0, 3, &reader).is_err());
    }

    #[test]
    fn types_that_are_no_counters_are_said() {
        let lacks = |types: &Types| MmLayout::new(types).unwrap_err();
        assert!(lacks(&made::types()).ends_with("do not have struct mm_struct"));
        let mut types = made::types();
        compound(&mut types, "mm_struct", 64, &[("total_vm", POINTER, 0), ("rss_stat", LIST, 8)]);
        assert!(lacks(&types).ends_with("struct mm_struct's rss_stat"));
        let mut types = made::types();
        types.add("", Shape::Array(TypeId(POINTER), 2));
        compound(&mut types, "mm_struct", 64, &[("total_vm", POINTER, 0), ("rss_stat", 5, 8)]);
        assert!(lacks(&types).ends_with("struct mm_struct's rss_stat"));
    }
}
