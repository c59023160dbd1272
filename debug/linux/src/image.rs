//! What is looked for in a kernel's image, as nothing tells where it is.

use std::ops::Range;

/// Bytes of a page, which are there or not.
pub(crate) const PAGE: u64 = 4096;
/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Where in some addresses there are these bytes, `most` places at most. `read` reads guest-virtual memory and says how many
/// bytes are good.
pub(crate) fn places(
    image: Range<u64>,
    wanted: &[u8],
    most: usize,
    read: &impl Fn(u64, &mut [u8]) -> usize,
) -> Vec<u64> {
    let Some((first, _)) = wanted.split_first() else { return Vec::new() };
    let most_kept = wanted.len() - 1;
    let mut found = Vec::new();
    // What is read now is behind the end of what was read before, as what is wanted may be in both.
    let (mut bytes, mut kept) = (vec![0; most_kept + PIECE], 0);
    let Range { start: mut at, end } = image;
    while at < end {
        let size = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let good = read(at, &mut bytes[kept..kept + size]).min(size);
        let there = kept + good;
        let mut from = 0;
        while let Some(next) = bytes[from..there].iter().position(|byte| byte == first) {
            if bytes[from + next..there].starts_with(wanted) {
                found.push(at.wrapping_sub(kept as u64).wrapping_add((from + next) as u64));
                if found.len() == most {
                    return found;
                }
            }
            from += next + 1;
        }
        at += good as u64;
        if good < size {
            // What is behind a hole has nothing to do with what is in front of it.
            at = (at | (PAGE - 1)).saturating_add(1);
            kept = 0;
        } else {
            kept = there.min(most_kept);
            bytes.copy_within(there - kept..there, 0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are wanted stand in two pieces that are read, beside a hole, and at the end.
    #[test]
    fn all_places_are_found_and_no_more_than_are_wanted() {
        const BASE: u64 = 0xffff_8000_0000_0000;
        let size = 2 * PIECE + 3 * 4096;
        let mut memory = vec![0; size];
        let hole = PIECE + 0x10000..PIECE + 0x11000;
        for at in [0, PIECE - 1, hole.end, size - 4] {
            memory[at..at + 4].copy_from_slice(b"BTF!");
        }
        // One that a hole parts is none.
        memory[hole.start - 2..hole.start].copy_from_slice(b"BT");
        let read = |at: u64, bytes: &mut [u8]| {
            let from = usize::try_from(at - BASE).unwrap();
            if hole.contains(&from) {
                return 0;
            }
            let end = if from < hole.start { hole.start } else { size };
            let good = bytes.len().min(end.saturating_sub(from));
            bytes[..good].copy_from_slice(&memory[from..from + good]);
            good
        };
        let found = |most| -> Vec<usize> {
            let places = places(BASE..BASE + size as u64, b"BTF!", most, &read);
            places.into_iter().map(|at| usize::try_from(at - BASE).unwrap()).collect()
        };
        assert_eq!(found(9), [0, PIECE - 1, hole.end, size - 4]);
        assert_eq!(found(2), [0, PIECE - 1]);
        // However it stands in two pieces.
        for before in 0..4 {
            let places = places(BASE + before..BASE + size as u64, b"BTF!", 9, &read);
            assert!(places.contains(&(BASE + PIECE as u64 - 1)), "{before}");
        }
        assert_eq!(places(BASE..BASE, b"BTF!", 9, &read), [0; 0]);
        assert_eq!(places(BASE..BASE + 4, b"", 9, &read), [0; 0]);
    }
}
