//! Which pages two dumps of a guest differ in.

use super::contents::joined;
use crate::ram::Memory;
use arch::address::PhysRange;
use arch::paging::Regime;
use arch::{GuestPhys, GuestVirt};

/// Bytes of a page.
const PAGE: u64 = 4096;
const PAGE_SIZE: usize = 4096;
/// Bytes that are compared at a time.
const AT_ONCE: usize = 1 << 20;
/// Pages and blocks that a search of page tables looks at.
const MOST_MAPPINGS: usize = 1 << 22;

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages that both have, and that are not the same: guest-physical, sorted, neighbours joined.
    pub changed: Vec<PhysRange>,
    /// Memory that only one of them has.
    pub only_one: Vec<PhysRange>,
}

/// Compares memory, page by page.
pub fn compare(first: &dyn Memory, second: &dyn Memory) -> Difference {
    let (left, right) = (joined(first.ranges()), joined(second.ranges()));
    let both = common(&left, &right);
    let mut only_one = without(&left, &both);
    only_one.extend(without(&right, &both));
    // What neither has anything in is zeros in both.
    let populated = joined([first.populated(), second.populated()].concat());
    let (mut changed, mut a, mut b) = (Vec::new(), vec![0; AT_ONCE], vec![0; AT_ONCE]);
    for range in common(&both, &populated) {
        let mut at = range.start.0 & !(PAGE - 1);
        while at < range.end().0 {
            let wanted = usize::try_from(range.end().0 - at).map_or(AT_ONCE, |left| left.min(AT_ONCE));
            let there = [read_pages(first, at, &mut a[..wanted]), read_pages(second, at, &mut b[..wanted])];
            let pages = a[..wanted].chunks(PAGE_SIZE).zip(b[..wanted].chunks(PAGE_SIZE));
            let there = there[0].iter().zip(&there[1]);
            for ((page, (a, b)), there) in (at..).step_by(PAGE_SIZE).zip(pages).zip(there) {
                let range = PhysRange::new(page, a.len() as u64);
                match there {
                    (true, true) if a != b => changed.push(range),
                    (true, false) | (false, true) => only_one.push(range),
                    _ => {}
                }
            }
            at += wanted as u64;
        }
    }
    Difference { changed: joined(changed), only_one: joined(only_one) }
}

/// Reads pages, and says of each whether it could be read.
fn read_pages(memory: &dyn Memory, at: u64, bytes: &mut [u8]) -> Vec<bool> {
    let mut there = Vec::with_capacity(bytes.len().div_ceil(PAGE_SIZE));
    let mut done = 0;
    while done < bytes.len() {
        let read = memory.read(GuestPhys(at + done as u64), &mut bytes[done..]);
        let is_all = done + read == bytes.len();
        // A part of a page is none.
        let whole = if is_all { read.div_ceil(PAGE_SIZE) } else { read / PAGE_SIZE };
        there.resize(there.len() + whole, true);
        if !is_all {
            there.push(false);
        }
        done = there.len() * PAGE_SIZE;
    }
    there
}

/// What is in both of two lists, each sorted and without overlaps.
fn common(left: &[PhysRange], right: &[PhysRange]) -> Vec<PhysRange> {
    let mut result = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let (start, end) = (a.start.max(b.start), a.end().min(b.end()));
        if start < end {
            result.push(PhysRange::new(start.0, end.0 - start.0));
        }
        if a.end() < b.end() { i += 1 } else { j += 1 }
    }
    result
}

/// What is in `all` and not in `some`, which is part of it.
fn without(all: &[PhysRange], some: &[PhysRange]) -> Vec<PhysRange> {
    let mut result = Vec::new();
    for range in all {
        let mut at = range.start.0;
        for hole in some.iter().filter(|hole| hole.start < range.end() && hole.end() > range.start) {
            if hole.start.0 > at {
                result.push(PhysRange::new(at, hole.start.0 - at));
            }
            at = hole.end().0;
        }
        if at < range.end().0 {
            result.push(PhysRange::new(at, range.end().0 - at));
        }
    }
    result
}

/// A range of virtual addresses whose memory differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    /// Guest-virtual address.
    pub start: GuestVirt,
    /// The memory.
    pub range: PhysRange,
}

/// By which virtual addresses memory is mapped, in order; and what is mapped nowhere.
pub fn places(
    regime: &Regime,
    memory: &dyn Memory,
    changed: &[PhysRange],
) -> (Vec<ChangedRange>, Vec<PhysRange>) {
    let mut places: Vec<ChangedRange> = Vec::new();
    let mut looked = 0;
    for (first, last) in regime.ranges() {
        let mut at = first.0;
        while looked < MOST_MAPPINGS {
            looked += 1;
            let span = match regime.translate(memory, GuestVirt(at)) {
                Ok(mapping) => {
                    let left = mapping.bytes_left();
                    let page = [PhysRange::new(mapping.address.0, left)];
                    let from = changed.partition_point(|range| range.end() <= page[0].start);
                    let near: Vec<PhysRange> = changed[from..]
                        .iter()
                        .take_while(|range| range.start < page[0].end())
                        .copied()
                        .collect();
                    for range in common(&near, &page) {
                        let start = at + (range.start.0 - mapping.address.0);
                        match places.last_mut() {
                            Some(place)
                                if place.start.0 + place.range.size == start
                                    && place.range.end() == range.start =>
                            {
                                place.range.size += range.size;
                            }
                            _ => places.push(ChangedRange { start: GuestVirt(start), range }),
                        }
                    }
                    mapping.page_size
                }
                Err(fault) => fault.span(),
            };
            match (at | (span - 1)).checked_add(1) {
                Some(next) if next <= last.0 => at = next,
                _ => break,
            }
        }
    }
    let mapped = joined(places.iter().map(|place| place.range).collect());
    let unmapped = without(changed, &common(changed, &mapped));
    (places, unmapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Ram;

    fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
        pairs.iter().map(|(start, size)| PhysRange::new(*start, *size)).collect()
    }

    #[test]
    fn lists_of_ranges() {
        let (a, b) = (ranges(&[(0, 10), (20, 10)]), ranges(&[(5, 20), (28, 4)]));
        assert_eq!(common(&a, &b), ranges(&[(5, 5), (20, 5), (28, 2)]));
        assert_eq!(without(&a, &common(&a, &b)), ranges(&[(0, 5), (25, 3)]));
        assert_eq!(without(&a, &[]), a);
    }

    #[test]
    fn pages_that_differ() {
        let (a, b) = (Ram::new(0x8000), Ram::new(0x9000));
        for at in [0x1fff, 0x2000, 0x7000] {
            b.write(GuestPhys(at), b"x");
        }
        let found = compare(&a, &b);
        assert_eq!(found.changed, ranges(&[(0x1000, 0x2000), (0x7000, 0x1000)]));
        assert_eq!(found.only_one, ranges(&[(0x8000, 0x1000)]));
        assert_eq!(compare(&a, &a), Difference::default());
        // Without paging, addresses are what they are.
        let regime = Regime::X86(arch::paging::x86::Paging::new(0, 0, 0, 0));
        let (places, unmapped) = places(&regime, &a, &found.changed);
        assert!(unmapped.is_empty());
        let starts: Vec<(u64, u64)> = places.iter().map(|place| (place.start.0, place.range.size)).collect();
        assert_eq!(starts, [(0x1000, 0x2000), (0x7000, 0x1000)]);
    }
}
