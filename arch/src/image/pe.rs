//! The sections of a PE program, which EFI-bootable kernels are.
//!
//! Source: PE Format, "COFF File Header (Object and Image)" and "Section Table (Section Headers)".

use crate::bytes::{array_at, u16_at, u32_at};

/// Offset of the PE headers' place.
const E_LFANEW: usize = 0x3c;
const SIGNATURE: &[u8] = b"PE\0\0";
const FILE_HEADER_SIZE: usize = 20;
const SECTION_HEADER_SIZE: usize = 40;

/// A section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, with zeros behind it.
    pub name: [u8; 8],
    /// Where it starts in the file, bytes.
    pub offset: u64,
    /// Its length in the file, bytes.
    pub size: u64,
}

/// The sections of a file whose headers are in `head`; `None` where they are not, or it is no PE program.
pub fn sections(head: &[u8]) -> Option<Vec<Section>> {
    let start = usize::try_from(u32_at(head, E_LFANEW)?).ok()?;
    if !head.starts_with(b"MZ") || head.get(start..start.checked_add(4)?)? != SIGNATURE {
        return None;
    }
    let count = usize::from(u16_at(head, start + 6)?);
    let optional_header = usize::from(u16_at(head, start + 20)?);
    let table = start + SIGNATURE.len() + FILE_HEADER_SIZE + optional_header;
    let section = |index: usize| {
        let entry = table + index * SECTION_HEADER_SIZE;
        let (size, offset) = (u32_at(head, entry + 16)?, u32_at(head, entry + 20)?);
        Some(Section { name: array_at(head, entry)?, offset: offset.into(), size: size.into() })
    };
    (0..count).map(section).collect()
}

/// Whether there is a section of this name.
pub fn has_section(head: &[u8], name: &[u8]) -> bool {
    let is_it = |section: &Section| {
        section.name.starts_with(name) && section.name[name.len()..].iter().all(|byte| *byte == 0)
    };
    name.len() <= 8 && sections(head).is_some_and(|sections| sections.iter().any(is_it))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A program that has headers only.
    pub fn program(names: &[&[u8]]) -> Vec<u8> {
        let mut file = vec![0; 0x80];
        file[..2].copy_from_slice(b"MZ");
        file[E_LFANEW] = 0x80;
        file.extend(SIGNATURE);
        file.extend([0x8664, u16::try_from(names.len()).unwrap()].map(u16::to_le_bytes).concat());
        file.resize(file.len() + 16, 0);
        for name in names {
            let mut entry = name.to_vec();
            entry.resize(SECTION_HEADER_SIZE, 0);
            entry[16..24].copy_from_slice(&[0x10, 0, 0, 0, 0, 2, 0, 0]);
            file.extend(entry);
        }
        file.resize(0x400, 0);
        file
    }

    #[test]
    fn sections_are_found_by_their_whole_name() {
        let file = program(&[b".text", b".linux"]);
        assert!(has_section(&file, b".linux") && has_section(&file, b".text"));
        assert!(!has_section(&file, b".lin") && !has_section(&file, b".linux123"));
        assert_eq!(sections(&file).unwrap()[1].offset + sections(&file).unwrap()[1].size, 0x210);
        assert_eq!(sections(&file[..0x90]), None);
        let mut far = file;
        far[E_LFANEW..E_LFANEW + 4].fill(0xff);
        assert_eq!(sections(&far), None);
    }
}
