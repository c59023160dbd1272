//! The ring buffer that a kernel's log is in.

use super::level::{Caller, Level};
use crate::error::LogError;
use crate::info::VmCoreInfo;
use crate::reader::Reader;

/// A record as it is in the ring.
#[derive(Debug)]
pub(super) struct Raw {
    /// Its number, counted from the kernel's start on.
    pub sequence: u64,
    /// Nanoseconds.
    pub time: u64,
    /// Who has written it, with which level and facility, where the kernel's description tells.
    pub caller: Option<Caller>,
    pub level: Option<Level>,
    pub facility: Option<u8>,
    pub text: Vec<u8>,
    /// It may not become longer any more.
    pub is_final: bool,
}

/// What is at a record's place.
#[derive(Debug)]
pub(super) enum Place {
    /// The record.
    Record(Raw),
    /// One that is being written.
    Written,
    /// None any more.
    Gone,
}

/// Where the ring buffer is, and where the parts of a record are in their structures.
pub(super) struct Ring {
    /// Records that it holds, and bytes of text.
    count: u64,
    pub size: u64,
    descriptors: u64,
    descriptor_size: u64,
    infos: u64,
    info_size: u64,
    text: u64,
    state_at: u64,
    begin_at: u64,
    next_at: u64,
    sequence_at: u64,
    time_at: u64,
    length_at: u64,
    caller_at: Option<u64>,
    /// Facility and level stand where they have always stood.
    pub has_levels: bool,
    /// Ids of the first record and of the last.
    tail: u64,
    head: u64,
}

/// A descriptor's state is in the two highest bits of its state variable.
const STATE_SHIFT: u32 = 62;
/// An id has the others.
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
const REUSABLE: u64 = 3;
/// The largest rings that are read, 2^18 records and 32 MiB of text: a guest that claims more must
/// not keep the debugger busy. Distributions' kernels have 2^13 and 256 KiB.
const MOST_COUNT_BITS: u64 = 18;
pub(super) const MOST_SIZE_BITS: u64 = 25;
/// In `struct printk_info`, the level is in the highest three bits of the byte in front of `caller_id`.
pub(super) const LEVEL_SHIFT: u8 = 5;

impl Ring {
    pub fn find(info: &VmCoreInfo, reader: &Reader<'_>) -> Result<Ring, LogError> {
        let field =
            |of: u64, name: &str| -> Result<u64, LogError> { Ok(of.wrapping_add(info.offset(name)?)) };
        let buffer = reader.address(info.symbol("prb")?)?;
        let ring = field(buffer, "printk_ringbuffer.desc_ring")?;
        let text_ring = field(buffer, "printk_ringbuffer.text_data_ring")?;
        let count_bits = reader.number(field(ring, "prb_desc_ring.count_bits")?, 4)?;
        let size_bits = reader.number(field(text_ring, "prb_data_ring.size_bits")?, 4)?;
        if count_bits > MOST_COUNT_BITS || size_bits > MOST_SIZE_BITS {
            return Err(LogError::Nonsense);
        }
        let counter = info.offset("atomic_long_t.counter").unwrap_or(0);
        let position_at = info.offset("prb_desc.text_blk_lpos")?;
        let length_at = info.offset("printk_info.text_len")?;
        let caller_at = info.offset("printk_info.caller_id").ok();
        Ok(Ring {
            count: 1 << count_bits,
            size: 1 << size_bits,
            descriptors: reader.address(field(ring, "prb_desc_ring.descs")?)?,
            descriptor_size: info.size("prb_desc")?,
            infos: reader.address(field(ring, "prb_desc_ring.infos")?)?,
            info_size: info.size("printk_info")?,
            text: reader.address(field(text_ring, "prb_data_ring.data")?)?,
            state_at: field(counter, "prb_desc.state_var")?,
            begin_at: field(position_at, "prb_data_blk_lpos.begin")?,
            next_at: field(position_at, "prb_data_blk_lpos.next")?,
            sequence_at: info.offset("printk_info.seq")?,
            time_at: info.offset("printk_info.ts_nsec")?,
            length_at,
            caller_at,
            // Two bytes of length, one of facility, one of level and flags; the description does not name these.
            has_levels: caller_at == length_at.checked_add(4),
            tail: reader.address(field(ring, "prb_desc_ring.tail_id")?.wrapping_add(counter))? & ID_MASK,
            head: reader.address(field(ring, "prb_desc_ring.head_id")?.wrapping_add(counter))? & ID_MASK,
        })
    }

    /// The ids of records, the newest first: as many as there may be.
    pub fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        let (head, tail) = (self.head, self.tail);
        let count = (head.wrapping_sub(tail) & ID_MASK).saturating_add(1).min(self.count);
        (0..count).map(move |back| head.wrapping_sub(back) & ID_MASK)
    }

    /// What is at the place of an id.
    pub fn place(&self, reader: &Reader<'_>, id: u64) -> Result<Place, LogError> {
        let index = id % self.count;
        let descriptor = self.descriptors.wrapping_add(index.wrapping_mul(self.descriptor_size));
        let state = reader.address(descriptor.wrapping_add(self.state_at))?;
        let begin = reader.address(descriptor.wrapping_add(self.begin_at))?;
        let next = reader.address(descriptor.wrapping_add(self.next_at))?;
        // Whoever reads while the kernel writes may find a later record at the place.
        let ahead = (state & ID_MASK).wrapping_sub(id) & ID_MASK;
        match state >> STATE_SHIFT {
            REUSABLE => return Ok(Place::Gone),
            COMMITTED | FINALIZED if ahead == 0 => {}
            _ if ahead != 0 && ahead <= ID_MASK / 2 => return Ok(Place::Gone),
            _ => return Ok(Place::Written),
        }
        let info = self.infos.wrapping_add(index.wrapping_mul(self.info_size));
        let number = |at: u64, size: u64| reader.number(info.wrapping_add(at), size);
        let length = number(self.length_at, 2)?;
        let [_, _, facility, level, ..] = number(self.length_at, 4)?.to_le_bytes();
        let caller = self.caller_at.map(|at| number(at, 4)).transpose()?;
        let mut text = Vec::new();
        if let Some((start, room)) = block(begin, next, self.size) {
            text.resize(usize::try_from(length.min(room)).unwrap_or(0), 0);
            reader.bytes(self.text.wrapping_add(start), &mut text)?;
        }
        Ok(Place::Record(Raw {
            sequence: number(self.sequence_at, 8)?,
            time: number(self.time_at, 8)?,
            caller: caller.and_then(|id| u32::try_from(id).ok()).map(Caller::of_id),
            level: Level::of_number(level >> LEVEL_SHIFT).filter(|_| self.has_levels),
            facility: self.has_levels.then_some(facility),
            text,
            is_final: state >> STATE_SHIFT == FINALIZED,
        }))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_wrap_and_may_be_empty() {
        assert_eq!(block(64, 96, 64), Some((8, 24)));
        assert_eq!(block(48, 64, 64), Some((56, 8)));
        // From 56 a block of 24 does not fit: it is at the start.
        assert_eq!(block(56, 64 + 24, 64), Some((8, 16)));
        assert_eq!((block(1, 1, 64), block(0, 4, 64)), (None, None));
    }
}
