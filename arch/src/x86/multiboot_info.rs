//! The information that a Multiboot 1 kernel finds at EBX.
//!
//! Source: Multiboot Specification 0.6.96, section 3.3, "Boot information format".

use super::layout::{self, MemoryMapEntry};
use crate::image::elf::Sections;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_ELF_SECTIONS: u32 = 1 << 5;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_BOOT_LOADER_NAME: u32 = 1 << 9;

const INFO_SIZE: u32 = 120;
const MODULE_SIZE: u32 = 16;
/// How we are called to kernels.
pub const LOADER_NAME: &str = "vmm";

/// A module, from `--initrd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte, guest-physical, page-aligned.
    pub start: u32,
    /// End, guest-physical, exclusive.
    pub end: u32,
    /// The string that goes with it.
    pub string: String,
}

/// What the information is made of.
#[derive(Clone, Debug)]
pub struct Information<'a> {
    /// The command line.
    pub cmdline: &'a str,
    /// Modules, in their order.
    pub modules: &'a [Module],
    /// RAM and reserved ranges.
    pub memory_map: &'a [MemoryMapEntry],
    /// The kernel's sections, those that are not loaded with an address.
    pub sections: Option<&'a Sections>,
}

/// Memory below 1 MiB, and from there on to the first hole, in KiB: "the value returned for upper memory is
/// maximally the address of the first upper memory hole minus 1 megabyte".
pub fn lower_and_upper(memory_map: &[MemoryMapEntry]) -> [u32; 2] {
    let upper_end = memory_map
        .iter()
        .find(|entry| entry.range.start == layout::HIGH_MEMORY)
        .map_or(layout::HIGH_MEMORY.0, |entry| entry.range.end().0);
    [layout::LOW_MEMORY_END, upper_end - layout::HIGH_MEMORY.0]
        .map(|bytes| u32::try_from(bytes / 1024).unwrap_or(u32::MAX))
}

impl Information<'_> {
    /// The bytes, with everything they point to but modules, to be written to `base`, which is a multiple
    /// of 8. Their number is the same for any base. `None` where they would reach beyond 4 GiB.
    pub fn bytes(&self, base: u32) -> Option<Vec<u8>> {
        let count = u32::try_from(self.modules.len()).ok()?;
        let modules_at = base.checked_add(INFO_SIZE)?;
        let tail_at = modules_at.checked_add(count.checked_mul(MODULE_SIZE)?)?;
        let mut tail = Vec::new();
        let put = |bytes: &[u8], tail: &mut Vec<u8>| -> Option<u32> {
            let at = tail_at.checked_add(u32::try_from(tail.len()).ok()?)?;
            tail.extend(bytes);
            Some(at)
        };
        let string = |text: &str| [text.as_bytes(), &[0]].concat();
        let cmdline = put(&string(self.cmdline), &mut tail)?;
        let loader_name = put(&string(LOADER_NAME), &mut tail)?;
        let strings: Option<Vec<u32>> =
            self.modules.iter().map(|module| put(&string(&module.string), &mut tail)).collect();
        tail.resize(tail.len().next_multiple_of(8), 0);
        let map: Vec<u8> = self.memory_map.iter().flat_map(map_entry).collect();
        let map_at = put(&map, &mut tail)?;
        tail.resize(tail.len().next_multiple_of(8), 0);
        let sections_at = put(self.sections.map_or(&[][..], |sections| &sections.headers), &mut tail)?;

        let mut info = [0u32; (INFO_SIZE / 4) as usize];
        info[0] = INFO_MEMORY
            | INFO_CMDLINE
            | if self.modules.is_empty() { 0 } else { INFO_MODULES }
            | if self.sections.is_some() { INFO_ELF_SECTIONS } else { 0 }
            | INFO_MEMORY_MAP
            | INFO_BOOT_LOADER_NAME;
        [info[1], info[2]] = lower_and_upper(self.memory_map);
        info[4] = cmdline;
        (info[5], info[6]) = (count, modules_at);
        if let Some(sections) = self.sections {
            info[7..11].copy_from_slice(&[sections.count, sections.entry_size, sections_at, sections.names]);
        }
        (info[11], info[12]) = (u32::try_from(map.len()).ok()?, map_at);
        info[16] = loader_name;

        let mut bytes: Vec<u8> = info.into_iter().flat_map(u32::to_le_bytes).collect();
        for (module, string) in self.modules.iter().zip(strings?) {
            bytes.extend([module.start, module.end, string, 0].into_iter().flat_map(u32::to_le_bytes));
        }
        bytes.extend(tail);
        base.checked_add(u32::try_from(bytes.len()).ok()?)?;
        Some(bytes)
    }
}

fn map_entry(entry: &MemoryMapEntry) -> Vec<u8> {
    const SIZE_OF_THE_REST: u32 = 20;
    let range = [entry.range.start.0, entry.range.size].map(u64::to_le_bytes).concat();
    [&SIZE_OF_THE_REST.to_le_bytes()[..], &range, &(entry.kind as u32).to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};

    #[test]
    fn modules_memory_map_and_names_are_where_the_pointers_say() {
        let map = layout::memory_map(64 << 20);
        let module = |start, end, string: &str| Module { start, end, string: string.into() };
        let modules = [module(0x20_0000, 0x20_1000, "first"), module(0x30_0000, 0x30_0001, "b c")];
        let sections =
            Sections { count: 2, entry_size: 40, names: 1, headers: vec![7; 80], unloaded: Vec::new() };
        let information = Information {
            cmdline: "kernel caf\u{e9}",
            modules: &modules,
            memory_map: &map,
            sections: Some(&sections),
        };
        let base = 0x9_0000;
        let bytes = information.bytes(base).unwrap();
        let word = |offset: usize| u32_at(&bytes, offset).unwrap();
        let inside = |address: u32| (address - base) as usize;
        assert_eq!(word(0), 0b10_0110_1101);
        assert_eq!((word(4), word(8)), (639, 63 << 10));
        assert!(bytes[inside(word(16))..].starts_with("kernel caf\u{e9}\0".as_bytes()));
        assert_eq!(word(20), 2);
        let second = inside(word(24)) + 16;
        assert_eq!((word(second), word(second + 4)), (0x30_0000, 0x30_0001));
        assert!(bytes[inside(word(second + 8))..].starts_with(b"b c\0"));
        assert!(bytes[inside(word(64))..].starts_with(b"vmm\0"));
        let entries = inside(word(48));
        assert_eq!(word(44) as usize, map.len() * 24);
        assert_eq!(word(entries), 20);
        assert_eq!(u64_at(&bytes, entries + 12), Some(layout::LOW_MEMORY_END));
        assert_eq!((word(28), word(32), word(40)), (2, 40, 1));
        assert_eq!(&bytes[inside(word(36))..], &[7; 80]);
        assert_eq!(information.bytes(0x10_0000).map(|bytes| bytes.len()), Some(bytes.len()));
    }

    #[test]
    fn what_would_reach_beyond_4_gib_is_refused() {
        let information = Information { cmdline: "x", modules: &[], memory_map: &[], sections: None };
        let size = u32::try_from(information.bytes(0).unwrap().len()).unwrap();
        assert!(information.bytes(u32::MAX - size).is_some());
        assert_eq!(information.bytes(u32::MAX - size + 1), None);
    }
}
