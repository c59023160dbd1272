//! The information that a Multiboot 2 kernel finds at EBX.
//!
//! Source: Multiboot2 Specification 2.0, section 3.6, "Boot information format". The words of the ELF
//! sections' tag are 32 bits wide, as GRUB, its `multiboot2.h` and every kernel have them; the
//! specification's drawing has 16. There is no framebuffer, no VBE, no APM and no EFI, so there are no tags
//! for them.

use super::layout::MemoryMapEntry;
use super::multiboot_info::{LOADER_NAME, Module, lower_and_upper};
use crate::board::acpi::RSDP_SIZE;
use crate::image::elf::Sections;

/// Types of tags.
mod tag {
    pub const END: u32 = 0;
    pub const CMDLINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const ELF_SECTIONS: u32 = 9;
    pub const ACPI_OLD_RSDP: u32 = 14;
    pub const ACPI_NEW_RSDP: u32 = 15;
    pub const LOAD_BASE: u32 = 21;
}

/// What of the information a kernel may ask for we have ([`crate::image::multiboot2::Header::requests`]).
pub const PROVIDED: &[u32] = &[
    tag::END,
    tag::CMDLINE,
    tag::LOADER_NAME,
    tag::MODULE,
    tag::BASIC_MEMORY,
    tag::MEMORY_MAP,
    tag::ELF_SECTIONS,
    tag::ACPI_OLD_RSDP,
    tag::ACPI_NEW_RSDP,
    tag::LOAD_BASE,
];

/// Bytes of the RSDP that revision 1 has.
const OLD_RSDP_SIZE: usize = 20;
const TAG_ALIGNMENT: usize = 8;
const MEMORY_MAP_ENTRY_SIZE: u32 = 24;

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
    /// The RSDP, whole.
    pub rsdp: &'a [u8; RSDP_SIZE],
    /// Where a kernel that can be moved lies, guest-physical.
    pub load_base: Option<u32>,
}

impl Information<'_> {
    /// The bytes, to be written to an address that is a multiple of 8. They point to nothing beside them but
    /// modules.
    pub fn bytes(&self) -> Vec<u8> {
        // The total size, which follows, and a reserved word.
        let mut bytes = vec![0; 8];
        put(&mut bytes, tag::CMDLINE, &[], &string(self.cmdline));
        put(&mut bytes, tag::LOADER_NAME, &[], &string(LOADER_NAME));
        for module in self.modules {
            put(&mut bytes, tag::MODULE, &[module.start, module.end], &string(&module.string));
        }
        put(&mut bytes, tag::BASIC_MEMORY, &lower_and_upper(self.memory_map), &[]);
        let map: Vec<u8> = self.memory_map.iter().flat_map(map_entry).collect();
        put(&mut bytes, tag::MEMORY_MAP, &[MEMORY_MAP_ENTRY_SIZE, 0], &map);
        if let Some(sections) = self.sections {
            let words = [sections.count, sections.entry_size, sections.names];
            put(&mut bytes, tag::ELF_SECTIONS, &words, &sections.headers);
        }
        put(&mut bytes, tag::ACPI_OLD_RSDP, &[], &self.rsdp[..OLD_RSDP_SIZE]);
        put(&mut bytes, tag::ACPI_NEW_RSDP, &[], self.rsdp);
        if let Some(base) = self.load_base {
            put(&mut bytes, tag::LOAD_BASE, &[base], &[]);
        }
        put(&mut bytes, tag::END, &[], &[]);
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&size.to_le_bytes());
        bytes
    }
}

fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn map_entry(entry: &MemoryMapEntry) -> Vec<u8> {
    let range = [entry.range.start.0, entry.range.size].map(u64::to_le_bytes).concat();
    [range, [entry.kind as u32, 0].map(u32::to_le_bytes).concat()].concat()
}

/// Adds a tag with some words and bytes behind them.
fn put(bytes: &mut Vec<u8>, kind: u32, words: &[u32], rest: &[u8]) {
    let size = 8 + words.len() * 4 + rest.len();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(rest);
    bytes.resize(bytes.len().next_multiple_of(TAG_ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::board::{Board, acpi};
    use crate::bytes::{u32_at, u64_at};
    use crate::x86::layout;

    /// Types, and what is behind type and size.
    fn tags(bytes: &[u8]) -> Vec<(u32, &[u8])> {
        let (mut at, mut tags) = (8, Vec::new());
        loop {
            let (kind, size) = (u32_at(bytes, at).unwrap(), u32_at(bytes, at + 4).unwrap() as usize);
            tags.push((kind, &bytes[at + 8..at + size]));
            at = (at + size).next_multiple_of(8);
            if kind == tag::END {
                assert_eq!(at, bytes.len());
                return tags;
            }
        }
    }

    #[test]
    fn a_reader_finds_every_tag() {
        let map = layout::memory_map(6 << 30);
        let rsdp = acpi::rsdp(&acpi::tables(1, &Board::new(Isa::X86_64)));
        let modules = [
            Module { start: 0x20_0000, end: 0x20_0005, string: "initrd.img root=x".into() },
            Module { start: 0x30_0000, end: 0x30_0001, string: String::new() },
        ];
        let sections =
            Sections { count: 2, entry_size: 40, names: 1, headers: vec![7; 80], unloaded: Vec::new() };
        let bytes = Information {
            cmdline: "kernel.elf caf\u{e9}",
            modules: &modules,
            memory_map: &map,
            sections: Some(&sections),
            rsdp: &rsdp,
            load_base: Some(0x40_0000),
        }
        .bytes();
        assert_eq!(
            (u32_at(&bytes, 0).map(|size| size as usize), u32_at(&bytes, 4)),
            (Some(bytes.len()), Some(0))
        );
        let tags = tags(&bytes);
        let kinds: Vec<u32> = tags.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 2, 3, 3, 4, 6, 9, 14, 15, 21, 0]);
        assert!(kinds.iter().all(|kind| PROVIDED.contains(kind)));
        assert_eq!(tags[0].1, "kernel.elf caf\u{e9}\0".as_bytes());
        assert_eq!(tags[1].1, b"vmm\0");
        assert_eq!((u32_at(tags[2].1, 0), u32_at(tags[2].1, 4)), (Some(0x20_0000), Some(0x20_0005)));
        assert_eq!(&tags[2].1[8..], b"initrd.img root=x\0");
        assert_eq!(&tags[3].1[8..], b"\0");
        assert_eq!((u32_at(tags[4].1, 0), u32_at(tags[4].1, 4)), (Some(639), Some((3 << 20) - 1024)));
        assert_eq!((u32_at(tags[5].1, 0), tags[5].1.len()), (Some(24), 8 + map.len() * 24));
        let last = 8 + (map.len() - 1) * 24;
        assert_eq!((u64_at(tags[5].1, last), u32_at(tags[5].1, last + 16)), (Some(4 << 30), Some(1)));
        assert_eq!((u32_at(tags[6].1, 0), u32_at(tags[6].1, 8), tags[6].1.len()), (Some(2), Some(1), 92));
        assert_eq!((&tags[7].1[..8], tags[7].1.len(), tags[8].1.len()), (&b"RSD PTR "[..], 20, 36));
        assert_eq!(u32_at(tags[9].1, 0), Some(0x40_0000));
    }

    #[test]
    fn what_is_not_there_has_no_tag() {
        let rsdp = acpi::rsdp(&acpi::tables(1, &Board::new(Isa::X86_64)));
        let information = Information {
            cmdline: "",
            modules: &[],
            memory_map: &[],
            sections: None,
            rsdp: &rsdp,
            load_base: None,
        };
        let bytes = information.bytes();
        let kinds: Vec<u32> = tags(&bytes).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 2, 4, 6, 14, 15, 0]);
    }
}
