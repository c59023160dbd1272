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
    use arch::register::Bank;
    use arch::{GuestPhys, Isa};
    use debug::cancel::Cancel;
    use debug::engine::Engine;
    use debug::fake::Still;
    use debug::linux::LogError;
    use debug::machine::Machine;
    use debug::view::View;

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

    /// A guest that runs it, of either architecture.
    fn guest(isa: Isa, width: usize) -> Still {
        const TABLES: u64 = 0x1000;
        const IMAGE: u64 = 0x20_0000;
        let machine = Still::new(isa, 1, 1 << 22).unwrap();
        let block = if isa == Isa::X86_64 { 0x83 } else { 0x701 };
        let (top, image_at) = ((BASE >> 39 & 511) * 8, GuestPhys(IMAGE));
        for (at, word) in [(TABLES + top, 0x2003), (0x2000, 0x3003), (0x3000, IMAGE | block)] {
            assert_eq!(machine.memory().write(GuestPhys(at), &u64::to_le_bytes(word)), 8);
        }
        let image = image(width);
        assert_eq!(machine.memory().write(image_at, &image), image.len());
        let mut file = machine.registers(0, &Bank::ALL).unwrap();
        let x86 = [("cr0", 0x8000_0011), ("cr3", TABLES), ("cr4", 0x20), ("efer", 0xd00)];
        let tcr = ("TCR_EL1", 2 << 30 | 16 << 16 | 16);
        let aarch64 = [("SCTLR_EL1", 1), tcr, ("TTBR1_EL1", TABLES), ("cpsr", 0x3c5)];
        for (name, value) in if isa == Isa::X86_64 { x86 } else { aarch64 } {
            file.set(name, value);
        }
        machine.set_registers(0, &file).unwrap();
        machine
    }

    #[test]
    fn a_guest_that_runs_it_is_looked_at_through_its_vcpu() {
        let info = VmCoreInfo::parse(INFO.as_bytes()).unwrap();
        for (isa, width) in [(Isa::X86_64, 8), (Isa::Aarch64, 4)] {
            let machine = guest(isa, width);
            let engine = Engine::new(isa, machine.abilities().clone(), 1);
            let cancel = Cancel::default();
            let view =
                View { machine: &machine, engine: &engine, vcpu: 0, is_physical: false, cancel: &cancel };
            assert_eq!(view.kernel_symbols(&info).unwrap().count(), usize::from(COUNT), "{isa}");
            // The table has no such symbols: records are counted from the first.
            let log = view.kernel_log(&info, &Wanted::last(usize::MAX)).unwrap();
            assert_eq!((log.records.len(), log.next), (11, 11), "{isa}");
            let since = view.kernel_log(&info, &Wanted { since: Some(1), ..Wanted::last(usize::MAX) });
            assert_eq!(since, Err(LogError::Unnumbered), "{isa}");
            let why = view.kernel_types(&info).unwrap_err();
            assert!(why.contains("no symbol '__start_BTF'"), "{isa}: {why}");
        }
    }
}
