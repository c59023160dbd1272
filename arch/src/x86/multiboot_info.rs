//! The information that a Multiboot 1 kernel finds at EBX.
//!
//! Source: Multiboot Specification 0.6.96, section 3.3, "Boot information format".

use super::layout::{self, MemoryMapEntry};
use crate::GuestPhys;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_BOOT_LOADER_NAME: u32 = 1 << 9;

const INFO_SIZE: u32 = 120;
const MODULE_SIZE: u32 = 16;
const BOOT_LOADER_NAME: &[u8] = b"vmm\0";

/// A module, from `--initrd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte, guest-physical, page-aligned.
    pub start: u32,
    /// End, guest-physical, exclusive.
    pub end: u32,
    /// The string that goes with it: the file's name.
    pub name: String,
}

/// The information and everything it points to, to be written at [`layout::BOOT_INFO`] as
/// one block of bytes. The command line is at [`layout::CMDLINE`].
///
/// Returns `None` when modules with very long names make the block larger than the 4 KiB
/// that are kept for it.
pub fn boot_information(modules: &[Module], memory_map: &[MemoryMapEntry]) -> Option<Vec<u8>> {
    let GuestPhys(base) = layout::BOOT_INFO;
    let base = u32::try_from(base).ok()?;
    let count = u32::try_from(modules.len()).ok()?;
    let modules_at = base + INFO_SIZE;

    let mut strings_and_map = Vec::new();
    let mut names = Vec::new();
    let tail_at = modules_at + count.checked_mul(MODULE_SIZE)?;
    let put_string = |text: &[u8], tail: &mut Vec<u8>| -> Option<u32> {
        let at = tail_at.checked_add(u32::try_from(tail.len()).ok()?)?;
        tail.extend(text);
        Some(at)
    };
    let loader_name = put_string(BOOT_LOADER_NAME, &mut strings_and_map)?;
    for module in modules {
        let mut name = module.name.clone().into_bytes();
        name.push(0);
        names.push(put_string(&name, &mut strings_and_map)?);
    }
    strings_and_map.resize(strings_and_map.len().next_multiple_of(4), 0);
    let map_at = tail_at + u32::try_from(strings_and_map.len()).ok()?;
    for entry in memory_map {
        strings_and_map.extend(20u32.to_le_bytes()); // size of what follows
        strings_and_map.extend(entry.range.start.0.to_le_bytes());
        strings_and_map.extend(entry.range.size.to_le_bytes());
        strings_and_map.extend((entry.kind as u32).to_le_bytes());
    }
    let map_size = tail_at + u32::try_from(strings_and_map.len()).ok()? - map_at;

    // "The value returned for upper memory is maximally the address of the first upper memory
    // hole minus 1 megabyte", in KiB.
    let upper_end = memory_map
        .iter()
        .find(|entry| entry.range.start == layout::HIGH_MEMORY)
        .map_or(layout::HIGH_MEMORY.0, |entry| entry.range.end().0);
    let mut info = [0u32; (INFO_SIZE / 4) as usize];
    info[0] = INFO_MEMORY
        | INFO_CMDLINE
        | if modules.is_empty() { 0 } else { INFO_MODULES }
        | INFO_MEMORY_MAP
        | INFO_BOOT_LOADER_NAME;
    info[1] = u32::try_from(layout::LOW_MEMORY_END / 1024).ok()?;
    info[2] = u32::try_from((upper_end - layout::HIGH_MEMORY.0) / 1024).ok()?;
    info[4] = u32::try_from(layout::CMDLINE.0).ok()?;
    info[5] = count;
    info[6] = modules_at;
    info[11] = map_size;
    info[12] = map_at;
    info[16] = loader_name;

    let mut bytes: Vec<u8> = info.into_iter().flat_map(u32::to_le_bytes).collect();
    for (module, name) in modules.iter().zip(names) {
        for word in [module.start, module.end, name, 0] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend(strings_and_map);
    (bytes.len() as u64 <= layout::ZERO_PAGE.0 - layout::BOOT_INFO.0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};

    #[test]
    fn modules_memory_map_and_names_are_where_the_pointers_say() {
        let map = layout::memory_map(64 << 20);
        let module = |start, end, name: &str| Module { start, end, name: name.into() };
        let modules = [module(0x20_0000, 0x20_1000, "first"), module(0x30_0000, 0x30_0001, "b")];
        let bytes = boot_information(&modules, &map).unwrap();
        let base = layout::BOOT_INFO.0;
        let word = |offset: usize| u32_at(&bytes, offset).unwrap();
        let inside = |address: u32| usize::try_from(u64::from(address) - base).unwrap();
        assert_eq!(word(0), 0b10_0100_1101);
        assert_eq!((word(4), word(8)), (639, 63 << 10));
        assert_eq!(word(20), 2);
        let second = inside(word(24)) + 16;
        assert_eq!((word(second), word(second + 4)), (0x30_0000, 0x30_0001));
        assert!(bytes[inside(word(second + 8))..].starts_with(b"b\0"));
        assert!(bytes[inside(word(64))..].starts_with(b"vmm\0"));
        let entries = inside(word(48));
        assert_eq!(word(44) as usize, map.len() * 24);
        assert_eq!(word(entries), 20);
        assert_eq!(u64_at(&bytes, entries + 12), Some(layout::LOW_MEMORY_END));
        assert_eq!(bytes.len(), entries + map.len() * 24);
    }

    #[test]
    fn too_much_for_the_page_is_refused() {
        let module = Module { start: 0, end: 1, name: "x".repeat(5000) };
        assert_eq!(boot_information(&[module], &[]), None);
    }
}
