//! Where the table is in the image of a kernel that does not tell: before 6.0.
//!
//! Its parts stand behind one another, and which of them are neighbours is the same in all versions: what is found first is
//! the table of tokens, in which each digit stands for itself, with the index behind it; in front of it are the markers,
//! which tell of every 256th name where it begins, the names, and how many these are. Addresses are in front of that, or
//! from 6.4 on behind the index. Each part has to agree with the one that was found before it.
//!
//! Source: Linux, `scripts/kallsyms.c` (`write_src`, `output_label`) of 4.19, 5.18 and 6.12. In 4.19 the number of symbols
//! and markers have 64 bits, later 32; labels are aligned to 8 bytes, but with `.align 8`, as 4.19 has it, to 256 where
//! the assembler counts in powers of two, as aarch64's does. Until 6.3, and in 6.1 as it is maintained, three bytes for each
//! symbol are between markers and tokens, for whoever looks for a name (`kallsyms_seqs_of_names`).

use super::{Addresses, LONGEST_NAME, MOST_NAMES, MOST_SYMBOLS, MOST_TOKENS, Memory, Parts, TOKENS, words};
use crate::image;
use std::ops::Range;

/// Where a table of tokens has its digits, and what it looks like there: each is a token of its own, as there are names
/// with each.
const FIRST_DIGIT: usize = 0x30;
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
/// Places that look like a table of tokens, that are looked at at most.
const MOST_CANDIDATES: usize = 64;
/// What labels are aligned to.
const ALIGNMENTS: [u64; 3] = [4, 8, 256];
/// Bytes between two parts, at most.
const PADDING: usize = 256;
/// Names between two markers, and how many markers there are at most.
const BETWEEN_MARKERS: usize = 256;
const MOST_MARKERS: usize = MOST_SYMBOLS / BETWEEN_MARKERS;
/// Bytes of names between two markers, at most: each is one of tokens, with two bytes in front.
const MOST_BETWEEN: usize = BETWEEN_MARKERS * (LONGEST_NAME + 3);
/// Bytes of names that are read at most, and names that are gone through, in all tries together.
const MOST_WALKED: usize = 2 * MOST_NAMES;

/// All parts but the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    count_at: u64,
    count: usize,
    names: u64,
    token_table: u64,
    token_index: u64,
}

/// The tables that an image has which is in some addresses: those that agree with themselves, one for each place where the
/// addresses may be.
pub(super) fn tables<R: Fn(u64, &mut [u8]) -> usize>(
    image: Range<u64>,
    memory: &Memory<R>,
) -> Vec<(Parts, usize)> {
    let mut left = MOST_WALKED;
    let mut found = Vec::new();
    for digits in image::places(image, DIGITS, MOST_CANDIDATES, &memory.0) {
        let Some((token_table, token_index)) = tokens(digits, memory) else { continue };
        let all = [4, 8].map(|width| markers(token_table, width, memory));
        let behind = markers_in_front_of_order(token_table, memory, &mut left);
        for (markers_at, markers) in all.into_iter().chain([behind]).flatten() {
            let named = names(markers_at, &markers, memory, &mut left);
            found.extend(named.into_iter().flat_map(|(count_at, count, names)| {
                let named = Named { count_at, count, names, token_table, token_index };
                places(&named, memory).into_iter().map(move |addresses| {
                    (Parts { count: count_at, names, token_table, token_index, addresses }, count)
                })
            }));
        }
    }
    found
}

/// The table of tokens that has its digits at an address, and its index.
fn tokens<R: Fn(u64, &mut [u8]) -> usize>(digits: u64, memory: &Memory<R>) -> Option<(u64, u64)> {
    let mut bytes = vec![0; MOST_TOKENS];
    let good = (memory.0)(digits, &mut bytes);
    bytes.truncate(good);
    // Each of the tokens from there on, and the end of the last one, counted from there.
    let ends = (1..).zip(&bytes).filter(|(_, byte)| **byte == 0).map(|(end, _)| end);
    let begins: Vec<usize> = std::iter::once(0).chain(ends).take(TOKENS - FIRST_DIGIT + 1).collect();
    let (end, begins) = begins.split_last().filter(|(_, begins)| begins.len() == TOKENS - FIRST_DIGIT)?;
    let end = digits.checked_add(u64::try_from(*end).ok()?)?;
    ALIGNMENTS.into_iter().find_map(|alignment| {
        let token_index = end.checked_next_multiple_of(alignment)?;
        let index = memory.bytes(token_index, TOKENS * 2).ok()?;
        let index: Vec<usize> = words(&index).map(|word| u16::from_le_bytes(word).into()).collect();
        let (front, from_digits) = index.split_at_checked(FIRST_DIGIT)?;
        let first = *from_digits.first()?;
        let agrees = from_digits.iter().zip(begins).all(|(at, begin)| *at == first + begin);
        let token_table = digits.checked_sub(first as u64).filter(|_| agrees)?;
        let before = memory.bytes(token_table, first).ok()?;
        let ends = (1..).zip(&before).filter(|(_, byte)| **byte == 0).map(|(end, _)| end);
        let begins = std::iter::once(0).chain(ends);
        begins.eq(front.iter().copied().chain([first])).then_some((token_table, token_index))
    })
}

/// The markers in front of a table of tokens, of so many bytes each, and where they begin.
fn markers<R: Fn(u64, &mut [u8]) -> usize>(
    token_table: u64,
    width: usize,
    memory: &Memory<R>,
) -> Option<(u64, Vec<usize>)> {
    let bytes = in_front(token_table, MOST_MARKERS * width + PADDING, memory);
    let padding = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    // The last one's upper bytes may be zeros as well.
    let end = bytes.len() - padding / width * width;
    (bytes.len() - end <= PADDING).then_some(())?;
    let mut markers = Vec::new();
    for word in bytes[..end].rchunks_exact(width) {
        let word = word.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let marker = usize::try_from(word).ok().filter(|marker| *marker <= MOST_NAMES)?;
        if markers.last().is_some_and(|behind| !is_step(marker, *behind)) {
            return None;
        }
        markers.push(marker);
        if marker == 0 {
            break;
        }
    }
    markers.reverse();
    // With one there would be nothing to hold against the names; and no kernel has so few of these.
    (markers.len() >= 2 && markers[0] == 0).then_some(())?;
    let size = (bytes.len() - end + markers.len() * width) as u64;
    Some((token_table.checked_sub(size)?, markers))
}

/// The same of 32 bits each, with three bytes for each symbol behind them.
fn markers_in_front_of_order<R: Fn(u64, &mut [u8]) -> usize>(
    token_table: u64,
    memory: &Memory<R>,
    left: &mut usize,
) -> Option<(u64, Vec<usize>)> {
    const MOST: usize = 3 * MOST_SYMBOLS + 4 * MOST_MARKERS + PADDING;
    *left = left.checked_sub(MOST)?;
    let bytes = in_front(token_table, MOST, memory);
    let first = token_table.checked_sub(bytes.len() as u64)?;
    // Labels are aligned.
    let skipped = usize::try_from(first.wrapping_neg() % 4).unwrap_or(0);
    let number = |word: [u8; 4]| u32::from_le_bytes(word) as usize;
    let all: Vec<usize> = words(bytes.get(skipped..)?).map(number).collect();
    let mut begin = 0;
    while let Some(next) = all.get(begin..)?.windows(2).position(|pair| pair[0] == 0 && is_step(0, pair[1])) {
        begin += next;
        let run = all[begin..].windows(2).take_while(|pair| is_step(pair[0], pair[1]));
        let markers = &all[begin..=begin + run.take(MOST_MARKERS).count()];
        let order = bytes.len() - (skipped + (begin + markers.len()) * 4);
        let most = 3 * BETWEEN_MARKERS * markers.len();
        if (most - 3 * BETWEEN_MARKERS..=most + 2 * PADDING).contains(&order) {
            return Some((first.checked_add((skipped + begin * 4) as u64)?, markers.to_vec()));
        }
        begin += 1;
    }
    None
}

/// Whether markers may follow each other.
fn is_step(marker: usize, next: usize) -> bool {
    next.checked_sub(marker).is_some_and(|between| (2 * BETWEEN_MARKERS..=MOST_BETWEEN).contains(&between))
}

/// The names in front of markers: where there is how many there are, that, and where they begin.
fn names<R: Fn(u64, &mut [u8]) -> usize>(
    markers_at: u64,
    markers: &[usize],
    memory: &Memory<R>,
    left: &mut usize,
) -> Option<(u64, usize, u64)> {
    let last = *markers.last()?;
    let most = last + MOST_BETWEEN + 2 * PADDING;
    *left = left.checked_sub(most)?;
    let bytes = in_front(markers_at, most, memory);
    let first = markers_at.checked_sub(bytes.len() as u64)?;
    let most = markers.len() * BETWEEN_MARKERS;
    for begin in (0..bytes.len().saturating_sub(last)).rev() {
        if first.wrapping_add(begin as u64) % ALIGNMENTS[0] != 0 {
            continue;
        }
        for gap in ALIGNMENTS.map(|gap| usize::try_from(gap).unwrap_or(PADDING)) {
            let Some((count, rest)) =
                begin.checked_sub(gap).and_then(|at| bytes[at..begin].split_at_checked(4))
            else {
                continue;
            };
            let count = words(count).next().map_or(0, u32::from_le_bytes) as usize;
            let is_count =
                (most - BETWEEN_MARKERS + 1..=most).contains(&count) && rest.iter().all(|byte| *byte == 0);
            if is_count && are_names(&bytes[begin..], count, markers, left) {
                let names = first.checked_add(begin as u64)?;
                return Some((names.checked_sub(gap as u64)?, count, names));
            }
        }
    }
    None
}

/// Whether so many names are at the beginning, as markers say, and nothing behind.
fn are_names(bytes: &[u8], count: usize, markers: &[usize], left: &mut usize) -> bool {
    let mut at = 0;
    for number in 0..count {
        if number % BETWEEN_MARKERS == 0 && markers.get(number / BETWEEN_MARKERS) != Some(&at) {
            return false;
        }
        let (Some([first, second, ..]), Some(rest)) = (bytes.get(at..), left.checked_sub(1)) else {
            return false;
        };
        *left = rest;
        let (length, head) = super::length(*first, *second);
        at += length + head;
        if length == 0 || at > bytes.len() {
            return false;
        }
    }
    bytes.get(at..).is_some_and(|rest| rest.len() < PADDING && rest.iter().all(|byte| *byte == 0))
}

/// Where the addresses may be, by where the other parts are.
fn places<R: Fn(u64, &mut [u8]) -> usize>(named: &Named, memory: &Memory<R>) -> Vec<Addresses> {
    let count = named.count as u64;
    let are_zeros = |from: u64, to: u64| {
        let size = to.checked_sub(from).and_then(|size| usize::try_from(size).ok());
        let zeros = size.filter(|size| *size < PADDING).and_then(|size| memory.bytes(from, size).ok());
        zeros.is_some_and(|zeros| zeros.iter().all(|byte| *byte == 0))
    };
    let mut found = Vec::new();
    for alignment in ALIGNMENTS.into_iter().filter(|alignment| *alignment >= 8) {
        let before = |at: u64, size: u64| {
            let begin = at.checked_sub(size)? & !(alignment - 1);
            are_zeros(begin + size, at).then_some(begin)
        };
        if let Some(base) = before(named.count_at, 8)
            && let Some(offsets) = before(base, count * 4)
        {
            found.push(Addresses::Relative { offsets, base });
        }
        found.extend(before(named.count_at, count * 8).map(Addresses::Absolute));
        let index_size = 2 * TOKENS as u64;
        let behind = |at: u64, size: u64| at.checked_add(size)?.checked_next_multiple_of(alignment);
        if let Some(offsets) = behind(named.token_index, index_size) {
            found.extend(behind(offsets, count * 4).map(|base| Addresses::Relative { offsets, base }));
            found.push(Addresses::Absolute(offsets));
        }
    }
    // Where the alignments come to the same.
    let mut different: Vec<Addresses> = Vec::new();
    for place in found {
        if !different.contains(&place) {
            different.push(place);
        }
    }
    different
}

/// The bytes in front of an address, as many as are there, at most so many.
fn in_front<R: Fn(u64, &mut [u8]) -> usize>(at: u64, most: usize, memory: &Memory<R>) -> Vec<u8> {
    let start = at.saturating_sub(most as u64);
    let mut bytes = vec![0; usize::try_from(at - start).unwrap_or(0)];
    // Where something is missing, what is behind that counts.
    let (mut from, mut good) = (0, 0);
    while from < bytes.len() {
        let address = start.wrapping_add(from as u64);
        let read = (memory.0)(address, &mut bytes[from..]).min(bytes.len() - from);
        if from + read == bytes.len() {
            good = read;
            break;
        }
        let hole = address.wrapping_add(read as u64);
        from += read + usize::try_from((hole | (image::PAGE - 1)) - hole).unwrap_or(0) + 1;
    }
    bytes.split_off(bytes.len() - good)
}

#[cfg(test)]
mod tests;
