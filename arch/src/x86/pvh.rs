//! The start info that a PVH kernel finds at EBX.
//!
//! Source: Xen `xen/include/public/arch-x86/hvm/start_info.h`, version 1.

use super::layout::{self, MemoryMapEntry};
use crate::GuestPhys;

const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const MEMORY_MAP_ENTRY_SIZE: u64 = 24;

/// A module of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte, guest-physical.
    pub start: u64,
    /// Length, bytes.
    pub size: u64,
    /// The string that goes with it, if there is one.
    pub string: Option<String>,
}

/// The start info, its module list with strings and its memory map, to be written at
/// [`layout::BOOT_INFO`] as one block of bytes.
pub fn start_info(list: &[Module], memory_map: &[MemoryMapEntry]) -> Vec<u8> {
    let GuestPhys(base) = layout::BOOT_INFO;
    let modules = base + START_INFO_SIZE;
    let map = modules + MODULE_SIZE * list.len() as u64;
    let mut strings_at = map + MEMORY_MAP_ENTRY_SIZE * memory_map.len() as u64;
    let mut bytes = Vec::new();
    let put32 = |bytes: &mut Vec<u8>, word: u32| bytes.extend(word.to_le_bytes());
    let put64 = |bytes: &mut Vec<u8>, word: u64| bytes.extend(word.to_le_bytes());

    put32(&mut bytes, XEN_HVM_START_MAGIC_VALUE);
    put32(&mut bytes, VERSION);
    put32(&mut bytes, 0); // flags
    put32(&mut bytes, u32::try_from(list.len()).unwrap_or(u32::MAX)); // nr_modules
    put64(&mut bytes, if list.is_empty() { 0 } else { modules });
    put64(&mut bytes, layout::CMDLINE.0);
    put64(&mut bytes, layout::ACPI_TABLES.0);
    put64(&mut bytes, map);
    put32(&mut bytes, u32::try_from(memory_map.len()).unwrap_or(0));
    put32(&mut bytes, 0); // reserved

    let mut strings = Vec::new();
    for module in list {
        put64(&mut bytes, module.start);
        put64(&mut bytes, module.size);
        put64(&mut bytes, if module.string.is_some() { strings_at } else { 0 });
        put64(&mut bytes, 0); // reserved
        if let Some(string) = &module.string {
            strings.extend(string.bytes().chain([0]));
            strings_at += string.len() as u64 + 1;
        }
    }

    for entry in memory_map {
        put64(&mut bytes, entry.range.start.0);
        put64(&mut bytes, entry.range.size);
        put32(&mut bytes, entry.kind as u32);
        put32(&mut bytes, 0);
    }
    bytes.extend(strings);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};

    #[test]
    fn the_block_points_into_itself() {
        let map = layout::memory_map(512 << 20);
        let module = |start, string| Module { start, size: 0x2000, string };
        let modules = [module(0x1000_0000, None), module(0x1100_0000, Some("a b".to_string()))];
        let bytes = start_info(&modules, &map);
        let base = layout::BOOT_INFO.0;
        assert_eq!(u32_at(&bytes, 0), Some(0x336e_c578));
        assert_eq!(u32_at(&bytes, 12), Some(2));
        assert_eq!(u64_at(&bytes, 24), Some(layout::CMDLINE.0));
        let module = usize::try_from(u64_at(&bytes, 16).unwrap() - base).unwrap();
        assert_eq!((u64_at(&bytes, module), u64_at(&bytes, module + 8)), (Some(0x1000_0000), Some(0x2000)));
        let map_at = usize::try_from(u64_at(&bytes, 40).unwrap() - base).unwrap();
        assert_eq!(u64_at(&bytes, map_at + 8), Some(layout::LOW_MEMORY_END));
        assert_eq!(u64_at(&bytes, module + 16), Some(0));
        let string = usize::try_from(u64_at(&bytes, module + 32 + 16).unwrap() - base).unwrap();
        assert_eq!((string, &bytes[string..]), (map_at + map.len() * 24, &b"a b\0"[..]));
        assert!(base + (bytes.len() as u64) <= layout::ZERO_PAGE.0);
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let bytes = start_info(&[], &[]);
        assert_eq!((u32_at(&bytes, 12), u64_at(&bytes, 16)), (Some(0), Some(0)));
    }
}
