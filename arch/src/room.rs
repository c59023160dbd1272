//! What of a guest's memory is taken before it runs, and where there is room for more.
//!
//! Kernels say where they go; everything else that a guest is handed (modules, initrd, device tree, boot
//! information) goes where they leave room. Pure arithmetic on ranges; the monitor's boot code writes.

use crate::address::PhysRange;

/// The ranges of guest-physical memory that something lies in already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Start and exclusive end of each.
    taken: Vec<(u64, u64)>,
}

impl Room {
    /// Takes `size` bytes from `start`. What reaches past the last address ends there.
    pub fn take(&mut self, start: u64, size: u64) {
        if size > 0 {
            self.taken.push((start, start.saturating_add(size)));
        }
    }

    /// What of the ranges taken meets `size` bytes from `start`: the first that was taken, if any does.
    pub fn clash(&self, start: u64, size: u64) -> Option<PhysRange> {
        let end = start.saturating_add(size);
        let meets = |&&(first, last): &&(u64, u64)| size > 0 && first < end && start < last;
        self.taken.iter().find(meets).map(|&(first, last)| PhysRange::new(first, last - first))
    }

    /// The end of what is taken highest, exclusive; 0 where nothing is.
    pub fn end(&self) -> u64 {
        self.taken.iter().map(|&(_, end)| end).max().unwrap_or(0)
    }

    /// The lowest place within `within` for `size` bytes at a multiple of `alignment`, a power of two.
    pub fn lowest(&self, within: PhysRange, size: u64, alignment: u64) -> Option<u64> {
        let mut at = within.start.0.checked_next_multiple_of(alignment)?;
        loop {
            let fits = at.checked_add(size).is_some_and(|end| end <= within.end().0);
            match self.clash(at, size) {
                _ if !fits => return None,
                None => return Some(at),
                Some(taken) => at = taken.end().0.checked_next_multiple_of(alignment)?,
            }
        }
    }

    /// The highest such place.
    pub fn highest(&self, within: PhysRange, size: u64, alignment: u64) -> Option<u64> {
        let below = |end: u64| end.checked_sub(size).map(|start| start & !(alignment - 1));
        let mut at = below(within.end().0)?;
        loop {
            match self.clash(at, size) {
                _ if at < within.start.0 => return None,
                None => return Some(at),
                Some(taken) => at = below(taken.start.0)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        let mut room = Room::default();
        room.take(0x3000, 0x1000);
        room.take(0x1000, 0x1800);
        room.take(0x9000, 0);
        room
    }

    #[test]
    fn the_lowest_and_the_highest_place_miss_what_is_taken() {
        let (room, all) = (room(), PhysRange::new(0x800, 0x7800));
        for (size, alignment, lowest, highest) in [
            (0x800, 0x100, Some(0x800), Some(0x7800)),
            (0x801, 0x1000, Some(0x4000), Some(0x7000)),
            (0x800, 0x800, Some(0x800), Some(0x7800)),
            (0x4000, 0x1000, Some(0x4000), Some(0x4000)),
            (0x4001, 1, None, None),
            (u64::MAX, 1, None, None),
        ] {
            assert_eq!(room.lowest(all, size, alignment), lowest, "{size:#x}");
            assert_eq!(room.highest(all, size, alignment), highest, "{size:#x}");
        }
        let gap = PhysRange::new(0x1000, 0x3000);
        assert_eq!(room.lowest(gap, 0x800, 0x800), Some(0x2800));
        assert_eq!(room.highest(gap, 0x800, 0x100), Some(0x2800));
        assert_eq!(room.highest(PhysRange::new(0x1000, 0x1000), 1, 1), None);
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let room = room();
        assert_eq!(room.clash(0x2fff, 2), Some(PhysRange::new(0x3000, 0x1000)));
        assert_eq!(room.clash(0x2800, 0x800), None);
        assert_eq!(room.clash(0x3000, 0), None);
        assert_eq!(room.end(), 0x4000);
        let mut all = Room::default();
        all.take(1, u64::MAX);
        assert_eq!(all.lowest(PhysRange::new(0, 0x1000), 2, 1), None);
    }
}
