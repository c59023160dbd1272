//! A kernel that does not tell where its symbols are, and has its log as before 5.10.

use super::change;
use arch::plain::is_plain;
use debug::linux::VmCoreInfo;
use debug::linux::kallsyms;
use debug::linux::log::{Levels, Wanted};

/// Where its image is, the table of symbols in it, and the log and the variables that lead to it.
const BASE: u64 = 0xffff_8000_0000_0000;
const TABLE: usize = 0x1000;
const VARIABLES: usize = 0x100;
const LOG: usize = 0x200;
/// Bytes of the log, behind the last record of which there is room for what has no length.
const LOG_SIZE: u64 = 0x210;
/// How many symbols there are.
const COUNT: u16 = 600;

const INFO: &str = "OSRELEASE=5.4.0\nPAGESIZE=4096\nSYMBOL(_stext)=ffff800000000000\nSYMBOL(log_buf)=ffff800000000100\n\
    SYMBOL(log_buf_len)=ffff800000000108\nSYMBOL(log_first_idx)=ffff800000000110\nSYMBOL(log_next_idx)=ffff800000000118\n\
    SIZE(printk_log)=16\nOFFSET(printk_log.ts_nsec)=0\nOFFSET(printk_log.len)=8\nOFFSET(printk_log.text_len)=10\n\
    OFFSET(printk_log.dict_len)=12\n";

/// An image with all of it: the number of symbols and markers have so many bytes.
fn image(width: usize) -> Vec<u8> {
    let mut image = vec![0; TABLE];
    let mut put = |at: usize, word: u64| image[at..at + 8].copy_from_slice(&word.to_le_bytes());
    let numbers = [BASE + LOG as u64, LOG_SIZE, 0x100, 0x60, 40, 51];
    (0..).zip(numbers).for_each(|(index, word)| put(VARIABLES + 8 * index, word));
    // Eight records from the middle to the end, and three at the beginning.
    for at in (0x100..0x200).step_by(32).chain((0..0x60).step_by(32)) {
        put(LOG + at, 1_000_000);
        put(LOG + at + 8, 3 << 61 | 8 << 16 | 32);
        put(LOG + at + 16, u64::from_le_bytes(*b"Oops\n\x1b[m"));
    }
    let align = |image: &mut Vec<u8>| image.resize(image.len().next_multiple_of(8), 0);
    let word = |number: usize| number.to_le_bytes()[..width].to_vec();
    image.extend((0..u32::from(COUNT)).flat_map(|number| (number * 16).to_le_bytes()));
    align(&mut image);
    image.extend(BASE.to_le_bytes());
    image.extend(word(COUNT.into()));
    align(&mut image);
    let (begin, mut markers) = (image.len(), Vec::new());
    for number in 0..COUNT {
        if number % 256 == 0 {
            markers.extend(word(image.len() - begin));
        }
        let name = if number == 0 { "T_stext".into() } else { format!("tname{number}") };
        image.push(u8::try_from(name.len()).unwrap_or(0));
        image.extend(name.bytes());
    }
    align(&mut image);
    image.extend(markers);
    align(&mut image);
    let mut index = Vec::new();
    for token in 0..=255u8 {
        index.extend((u16::from(token) * 2).to_le_bytes());
        image.extend([if token.is_ascii_graphic() { token } else { b'?' }, 0]);
    }
    align(&mut image);
    image.extend(index);
    image
}

/// Reads an image; how many bytes are good.
fn copy(image: &[u8], at: u64, bytes: &mut [u8]) -> usize {
    let from = usize::try_from(at.wrapping_sub(BASE)).unwrap_or(usize::MAX);
    let rest = image.get(from..).unwrap_or_default();
    let count = rest.len().min(bytes.len());
    bytes[..count].copy_from_slice(&rest[..count]);
    count
}

/// The first byte chooses how wide numbers are, the others change the image.
pub fn old_kernels(data: &[u8]) {
    let (choice, changes) = data.split_first().unwrap_or((&0, &[]));
    let Some(info) = VmCoreInfo::parse(INFO.as_bytes()) else { return };
    let mut image = image(if choice & 1 == 0 { 8 } else { 4 });
    change(&mut image, changes);
    let read = |at: u64, bytes: &mut [u8]| copy(&image, at, bytes);
    if let Ok(symbols) = kallsyms::searched(&info, read) {
        assert_eq!(symbols.address("_stext"), Some(BASE));
        assert!(symbols.iter().all(|symbol| symbol.name.chars().all(is_plain)));
    }
    for since in [None, Some(0), Some(45), Some(u64::MAX)] {
        let wanted = Wanted { most: usize::MAX, levels: Levels::ALL, since };
        let lines = info.log_with(read, &wanted, &numbers).map_or(Vec::new(), |log| log.lines());
        assert!(lines.iter().all(|line| line.replace('\t', " ").chars().all(is_plain)));
    }
}

/// Where the numbers of records are.
fn numbers(name: &str) -> Option<u64> {
    let variables = BASE + VARIABLES as u64;
    let known = [("log_first_seq", variables + 32), ("log_next_seq", variables + 40)];
    known.into_iter().find(|(known, _)| *known == name).map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_found() {
        let info = VmCoreInfo::parse(INFO.as_bytes()).unwrap();
        for width in [4, 8] {
            let image = image(width);
            let read = |at: u64, bytes: &mut [u8]| copy(&image, at, bytes);
            assert_eq!(kallsyms::searched(&info, read).unwrap().count(), usize::from(COUNT));
            let wanted = Wanted { most: usize::MAX, levels: Levels::ALL, since: Some(45) };
            let log = info.log_with(read, &wanted, &numbers).unwrap();
            assert_eq!((log.records.len(), log.next), (6, 51));
        }
    }
}
