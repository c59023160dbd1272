//! ELF kernels of either architecture and class: what to load, where to enter, and by which
//! boot protocol.
//!
//! Sources: System V gABI chapters 4 (sections) and 5 (program header); Xen `docs/misc/pvh.pandoc` and
//! `xen/include/public/elfnote.h` for the PVH entry note; [`super::multiboot`], [`super::multiboot2`].

use super::{ImageError, Source, multiboot, multiboot2};
use crate::Isa;
use crate::bytes::u32_at;
use ::elf::abi::{
    EM_386, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP, PT_LOAD, PT_NOTE, SHF_ALLOC, SHT_NOBITS,
    SHT_NULL,
};
use ::elf::endian::AnyEndian;
use ::elf::file::{Class, FileHeader, parse_ident};
use ::elf::section::SectionHeaderTable;
use ::elf::segment::{ProgramHeader, SegmentTable};

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of the PVH boot protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Notes are a few hundred bytes; more than this is not looked at.
const NOTES_LIMIT: u64 = 1 << 20;

/// One piece of the file that goes to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file, bytes.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Guest-physical address of its first byte.
    pub physical: u64,
    /// Bytes in memory; what the file lacks is zero.
    pub memory_size: u64,
}

/// The table of section headers, as Multiboot hands it to a kernel that wants its own symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sections {
    /// Number of headers.
    pub count: u32,
    /// Size of each, bytes.
    pub entry_size: u32,
    /// Which of them has the names.
    pub names: u32,
    /// The headers as they stand in the file.
    pub headers: Vec<u8>,
    /// Those that are part of no segment: symbols, strings, debug information.
    pub unloaded: Vec<UnloadedSection>,
}

/// A section of the file that is part of no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnloadedSection {
    /// Which it is.
    pub index: usize,
    /// Where it starts in the file, bytes.
    pub file_offset: u64,
    /// Its length, bytes.
    pub size: u64,
    /// Alignment in memory, bytes, a power of two.
    pub alignment: u64,
}

impl Sections {
    /// Says in a section's header where it lies in memory, guest-physical.
    pub fn set_address(&mut self, index: usize, address: u64) {
        // `sh_addr` (gABI, figure 4-8): behind two words and the flags.
        let (field, width) = if self.entry_size == ELF64_SECTION_HEADER { (16, 8) } else { (12, 4) };
        let at = index * self.entry_size as usize + field;
        if let Some(bytes) = self.headers.get_mut(at..at + width) {
            bytes.copy_from_slice(&address.to_le_bytes()[..width]);
        }
    }
}

const ELF64_SECTION_HEADER: u32 = 64;
const ELF32_SECTION_HEADER: u32 = 40;

/// An ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// The architecture of its machine field. A 32-bit x86 file counts as x86_64: that is
    /// the processor it runs on.
    pub isa: Isa,
    /// Whether the file is of class ELFCLASS32.
    pub is_32_bit: bool,
    /// Entry point as the file gives it, made physical through the segment it lies in.
    pub entry: u64,
    /// The PVH entry point, where the file has that note.
    pub pvh_entry: Option<u64>,
    /// The Multiboot header, where the file has one.
    pub multiboot: Option<multiboot::Header>,
    /// The Multiboot 2 header, where the file has one.
    pub multiboot2: Option<multiboot2::Header>,
    /// The table of sections, where the file has a header of Multiboot and a table that is whole.
    pub sections: Option<Sections>,
    /// What to load, in file order. Never empty.
    pub segments: Vec<Segment>,
}

fn malformed(why: impl Into<String>) -> ImageError {
    ImageError::malformed("ELF", why)
}

impl Elf {
    /// Parses the headers; `head` is the first [`super::HEAD_SIZE`] bytes of `source`.
    ///
    /// # Errors
    /// [`ImageError`] for a file that is truncated, big-endian, of another machine, or not a
    /// program that can be loaded at fixed addresses.
    pub fn parse<S: Source + ?Sized>(source: &S, head: &[u8]) -> Result<Elf, ImageError> {
        let (ident, tail) = head.split_at_checked(16).ok_or(ImageError::Truncated {
            what: "the ELF header",
            needed: 52,
            actual: source.size(),
        })?;
        let ident = parse_ident::<AnyEndian>(ident).map_err(|error| malformed(error.to_string()))?;
        let class = ident.1;
        let tail_size = if class == Class::ELF64 { 48 } else { 36 };
        let tail = tail.get(..tail_size).ok_or(ImageError::Truncated {
            what: "the ELF header",
            needed: 16 + tail_size as u64,
            actual: source.size(),
        })?;
        let header = FileHeader::parse_tail(ident, tail).map_err(|error| malformed(error.to_string()))?;
        let isa = match header.e_machine {
            EM_X86_64 | EM_386 => Isa::X86_64,
            EM_AARCH64 => Isa::Aarch64,
            other => {
                return Err(ImageError::Unsupported(format!(
                    "the ELF file is for machine {other}; x86_64 (62) and aarch64 (183) are supported"
                )));
            }
        };
        if header.endianness != AnyEndian::Little {
            return Err(ImageError::Unsupported("the ELF file is big-endian".into()));
        }
        if header.e_type != ET_EXEC && header.e_type != ET_DYN {
            return Err(ImageError::Unsupported(format!(
                "the ELF file is not a program (type {}); an object file or a core cannot be booted",
                header.e_type
            )));
        }

        let program = Program::read(source, &header)?;
        let loads = program.loads;
        let contains = |address: u64| {
            loads
                .iter()
                .any(|load| address.checked_sub(load.physical).is_some_and(|at| at < load.memory_size))
        };
        // A kernel linked high (vmlinux) gives its entry as a physical address already: it lies
        // in no virtual range, but in a physical one.
        let entry = program.entry.unwrap_or(header.e_entry);
        if !contains(entry) {
            return Err(malformed(format!("the entry point {entry:#x} is in no segment")));
        }
        let is_x86 = isa == Isa::X86_64;
        let pvh_entry = program.pvh_entry.filter(|_| is_x86);
        if let Some(entry) = pvh_entry.filter(|entry| !contains(*entry)) {
            return Err(malformed(format!("the PVH entry point {entry:#x} is in no segment")));
        }
        let (multiboot, multiboot2) = if is_x86 { super::multiboot_headers(head)? } else { (None, None) };
        let has_multiboot = multiboot.is_some() || multiboot2.is_some();
        Ok(Elf {
            isa,
            is_32_bit: class == Class::ELF32,
            entry,
            pvh_entry,
            multiboot,
            multiboot2,
            sections: has_multiboot.then(|| sections(source, &header)).flatten(),
            segments: loads,
        })
    }
}

/// What the program headers say.
#[derive(Default)]
struct Program {
    loads: Vec<Segment>,
    /// The entry point, physical, if it lies in a segment's virtual range.
    entry: Option<u64>,
    pvh_entry: Option<u64>,
}

impl Program {
    fn read<S: Source + ?Sized>(source: &S, header: &FileHeader<AnyEndian>) -> Result<Program, ImageError> {
        let mut program = Program::default();
        for segment in program_headers(source, header)? {
            let file_end = segment
                .p_offset
                .checked_add(segment.p_filesz)
                .ok_or_else(|| malformed("a segment's place in the file wraps"))?;
            let is_read =
                matches!(segment.p_type, PT_LOAD | PT_NOTE) && segment.p_memsz.max(segment.p_filesz) > 0;
            if is_read && file_end > source.size() {
                return Err(ImageError::Truncated {
                    what: "an ELF segment",
                    needed: file_end,
                    actual: source.size(),
                });
            }
            match segment.p_type {
                PT_LOAD if segment.p_memsz > 0 => program.load(header, &segment)?,
                PT_NOTE => program.pvh_entry = program.pvh_entry.or(find_pvh_note(source, &segment)?),
                PT_INTERP => {
                    return Err(ImageError::Unsupported(
                        "the ELF file is a dynamically linked user program, not a kernel".into(),
                    ));
                }
                _ => {}
            }
        }
        if program.loads.is_empty() {
            return Err(ImageError::Unsupported("the ELF file has nothing to load".into()));
        }
        Ok(program)
    }

    fn load(&mut self, header: &FileHeader<AnyEndian>, segment: &ProgramHeader) -> Result<(), ImageError> {
        if segment.p_filesz > segment.p_memsz || segment.p_paddr.checked_add(segment.p_memsz).is_none() {
            return Err(malformed("a segment's sizes contradict each other"));
        }
        let offset = header.e_entry.checked_sub(segment.p_vaddr).filter(|offset| *offset < segment.p_memsz);
        self.entry = self.entry.or(offset.map(|offset| segment.p_paddr + offset));
        self.loads.push(Segment {
            file_offset: segment.p_offset,
            file_size: segment.p_filesz,
            physical: segment.p_paddr,
            memory_size: segment.p_memsz,
        });
        Ok(())
    }
}

/// Reads the table of program headers.
fn program_headers<S: Source + ?Sized>(
    source: &S,
    header: &FileHeader<AnyEndian>,
) -> Result<Vec<ProgramHeader>, ImageError> {
    let expected = if header.class == Class::ELF64 { 56 } else { 32 };
    if header.e_phnum == 0 || header.e_phentsize != expected {
        return Err(malformed(format!(
            "{} program headers of {} bytes each",
            header.e_phnum, header.e_phentsize
        )));
    }
    let mut table = vec![0; usize::from(header.e_phnum) * usize::from(header.e_phentsize)];
    let end = header.e_phoff.saturating_add(table.len() as u64);
    if end > source.size() {
        return Err(ImageError::Truncated {
            what: "the ELF program headers",
            needed: end,
            actual: source.size(),
        });
    }
    source.read_at(header.e_phoff, &mut table).map_err(ImageError::Read)?;
    Ok(SegmentTable::new(header.endianness, header.class, &table).iter().collect())
}

/// Looks for the PVH entry note in one PT_NOTE segment.
///
/// The segment's alignment does not tell how its notes are padded: linkers put notes aligned to 4 and to 8
/// (`.note.gnu.property`) into one segment, with gaps between. So the note is looked for wherever one may
/// begin.
fn find_pvh_note<S: Source + ?Sized>(source: &S, segment: &ProgramHeader) -> Result<Option<u64>, ImageError> {
    const NAME: &[u8] = b"Xen\0";
    let size = usize::try_from(segment.p_filesz.min(NOTES_LIMIT)).unwrap_or(0);
    let mut notes = vec![0; size];
    source.read_at(segment.p_offset, &mut notes).map_err(ImageError::Read)?;
    for at in (0..notes.len()).step_by(4) {
        let word = |index: usize| u32_at(&notes, at + index * 4);
        let (Some(4), Some(length @ (4 | 8)), Some(XEN_ELFNOTE_PHYS32_ENTRY)) = (word(0), word(1), word(2))
        else {
            continue;
        };
        if notes.get(at + 12..at + 16) != Some(NAME) {
            continue;
        }
        // "Xen" with its zero ends at a multiple of 8 from the note's start: either padding adds nothing.
        let low = word(4).ok_or_else(|| malformed("the PVH entry note is cut short"))?;
        let high = if length == 8 { word(5).unwrap_or(0) } else { 0 };
        return Ok(Some(u64::from(high) << 32 | u64::from(low)));
    }
    Ok(None)
}

/// The table of sections; `None` where the file has none, or what it has is of no use to a kernel.
fn sections<S: Source + ?Sized>(source: &S, header: &FileHeader<AnyEndian>) -> Option<Sections> {
    let expected = if header.class == Class::ELF64 { ELF64_SECTION_HEADER } else { ELF32_SECTION_HEADER };
    if header.e_shnum == 0 || u32::from(header.e_shentsize) != expected {
        return None;
    }
    let mut headers = vec![0; usize::from(header.e_shnum) * usize::from(header.e_shentsize)];
    source.read_at(header.e_shoff, &mut headers).ok()?;
    let unloaded = SectionHeaderTable::new(header.endianness, header.class, &headers)
        .iter()
        .enumerate()
        .filter(|(_, section)| section.sh_flags & u64::from(SHF_ALLOC) == 0 && section.sh_size > 0)
        .filter(|(_, section)| !matches!(section.sh_type, SHT_NULL | SHT_NOBITS))
        .filter(|(_, section)| {
            section.sh_offset.checked_add(section.sh_size).is_some_and(|end| end <= source.size())
        })
        .map(|(index, section)| UnloadedSection {
            index,
            file_offset: section.sh_offset,
            size: section.sh_size,
            alignment: Some(section.sh_addralign).filter(|by| by.is_power_of_two()).unwrap_or(1).min(4096),
        })
        .collect();
    Some(Sections {
        count: u32::from(header.e_shnum),
        entry_size: expected,
        names: u32::from(header.e_shstrndx),
        headers,
        unloaded,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Format, detect};
    use super::*;

    fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        if file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn program_header(kind: u32, offset: u64, virt: u64, phys: u64, file_size: u64, size: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for word in [offset, virt, phys, file_size, size, 4] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// An ELF64 file for `machine` with the given program headers, entered at `entry`.
    fn elf64(machine: u16, entry: u64, headers: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &2u16.to_le_bytes());
        put(&mut file, 18, &machine.to_le_bytes());
        put(&mut file, 20, &1u32.to_le_bytes());
        put(&mut file, 24, &entry.to_le_bytes());
        put(&mut file, 32, &64u64.to_le_bytes());
        put(&mut file, 52, &64u16.to_le_bytes());
        put(&mut file, 54, &56u16.to_le_bytes());
        put(&mut file, 56, &u16::try_from(headers.len()).unwrap().to_le_bytes());
        put(&mut file, 58, &[64, 0]);
        for (index, header) in headers.iter().enumerate() {
            put(&mut file, 64 + index * 56, header);
        }
        file.resize(0x400, 0);
        file
    }

    /// A kernel linked high and loaded at 16 MiB, with a PVH note.
    pub fn image() -> Vec<u8> {
        let load = program_header(PT_LOAD, 0x200, 0xffff_ffff_8100_0000, 0x100_0000, 0x100, 0x2000);
        let note = program_header(PT_NOTE, 0x300, 0, 0, 20, 20);
        let mut file = elf64(EM_X86_64, 0x100_0040, &[load, note]);
        put(&mut file, 0x300, &pvh_note(0x100_0080));
        file
    }

    fn note(name: &[u8], kind: u32, value: &[u8], alignment: usize) -> Vec<u8> {
        let sizes = [name.len(), value.len()].map(|size| u32::try_from(size).unwrap());
        let mut bytes: Vec<u8> = [sizes[0], sizes[1], kind].into_iter().flat_map(u32::to_le_bytes).collect();
        for part in [name, value] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
        }
        bytes
    }

    fn pvh_note(entry: u32) -> Vec<u8> {
        note(b"Xen\0", 18, &entry.to_le_bytes(), 4)
    }

    /// The same kernel with these notes, in a segment aligned to `alignment`.
    fn with_notes(notes: &[u8], alignment: u64) -> Result<Option<u64>, ImageError> {
        let load = program_header(PT_LOAD, 0x200, 0xffff_ffff_8100_0000, 0x100_0000, 0x100, 0x2000);
        let size = notes.len() as u64;
        let mut segment = program_header(PT_NOTE, 0x300, 0, 0, size, size);
        segment[48..].copy_from_slice(&alignment.to_le_bytes());
        let mut file = elf64(EM_X86_64, 0x100_0040, &[load, segment]);
        put(&mut file, 0x300, notes);
        detect(&file[..]).map(|format| match format {
            Format::Elf(elf) => elf.pvh_entry,
            _ => panic!("not ELF"),
        })
    }

    #[test]
    fn a_pvh_note_is_found_behind_others_however_they_are_aligned() {
        let entry = 0x100_0080u32;
        let build_id = |alignment| note(b"GNU\0", 3, &[7; 20], alignment);
        let property = note(b"GNU\0", 5, &[1; 16], 8);
        for (name, notes, alignment) in [
            ("alone", pvh_note(entry), 4),
            ("as wide", note(b"Xen\0", 18, &u64::from(entry).to_le_bytes(), 8), 8),
            ("behind one aligned to 8", [build_id(8), pvh_note(entry)].concat(), 8),
            ("all of them aligned to 4", [build_id(4), pvh_note(entry)].concat(), 8),
            ("between others", [build_id(4), property, pvh_note(entry), build_id(4)].concat(), 4),
            ("of another number", [note(b"Xen\0", 6, b"linux\0\0\0", 8), pvh_note(entry)].concat(), 8),
        ] {
            assert_eq!(with_notes(&notes, alignment), Ok(Some(entry.into())), "{name}");
        }
        assert_eq!(with_notes(&build_id(8), 8), Ok(None));
        let cut = with_notes(&pvh_note(entry)[..16], 4).unwrap_err().to_string();
        assert!(cut.contains("cut short"), "{cut}");
    }

    #[test]
    fn a_pvh_entry_outside_every_segment_is_refused() {
        for entry in [0u32, 0xff_ffff, 0x100_2000, u32::MAX] {
            let error = with_notes(&pvh_note(entry), 4).unwrap_err().to_string();
            assert!(error.contains("PVH entry point"), "{error}");
        }
        assert_eq!(with_notes(&pvh_note(0x100_1fff), 4), Ok(Some(0x100_1fff)));
        let mut missing = image();
        // Notes that the file has not.
        missing[64 + 56 + 32..64 + 56 + 40].copy_from_slice(&0x1_0000u64.to_le_bytes());
        assert!(matches!(detect(&missing[..]), Err(ImageError::Truncated { .. })));
    }

    /// Section headers: the empty one, one that is loaded, a table of strings, debug information that is
    /// not all there.
    #[test]
    fn sections_are_listed_for_kernels_with_a_multiboot_header() {
        let load = program_header(PT_LOAD, 0x200, 0x10_0000, 0x10_0000, 0x100, 0x2000);
        let mut file = elf64(EM_X86_64, 0x10_0040, &[load]);
        put(&mut file, 40, &0x400u64.to_le_bytes());
        put(&mut file, 58, &64u16.to_le_bytes());
        put(&mut file, 60, &4u16.to_le_bytes());
        put(&mut file, 62, &2u16.to_le_bytes());
        for (index, [kind, flags, address, offset, size]) in [
            [0, 0, 0, 0, 0],
            [1, 2, 0x10_0000, 0x200, 0x100],
            [3, 0, 0, 0x300, 0x20],
            [1, 0, 0, 0x300, 0x1_0000],
        ]
        .into_iter()
        .enumerate()
        {
            let mut header = vec![0, 0, 0, 0];
            header.extend(u32::try_from(kind).unwrap().to_le_bytes());
            header.extend([flags, address, offset, size, 0, 8, 0u64].into_iter().flat_map(u64::to_le_bytes));
            header.truncate(64);
            put(&mut file, 0x400 + index * 64, &header);
        }
        let Ok(Format::Elf(elf)) = detect(&file[..]) else { panic!("not ELF") };
        assert_eq!(elf.sections, None);
        put(&mut file, 0x200, &multiboot2::tests::header(0, &[vec![0, 0, 0, 0, 8, 0, 0, 0]]));
        let Ok(Format::Elf(elf)) = detect(&file[..]) else { panic!("not ELF") };
        assert!(elf.multiboot2.is_some());
        let mut sections = elf.sections.unwrap();
        assert_eq!((sections.count, sections.entry_size, sections.names), (4, 64, 2));
        assert_eq!(sections.unloaded.len(), 1);
        assert_eq!((sections.unloaded[0].index, sections.unloaded[0].size), (2, 0x20));
        sections.set_address(2, 0x12_3456_7890);
        assert_eq!(crate::bytes::u64_at(&sections.headers, 2 * 64 + 16), Some(0x12_3456_7890));
    }

    #[test]
    fn a_high_linked_kernel_with_a_pvh_note_is_read() {
        let Ok(Format::Elf(elf)) = detect(&image()[..]) else { panic!("not ELF") };
        assert_eq!(elf.isa, Isa::X86_64);
        assert_eq!(elf.entry, 0x100_0040);
        assert_eq!(elf.pvh_entry, Some(0x100_0080));
        assert_eq!(
            elf.segments,
            [Segment { file_offset: 0x200, file_size: 0x100, physical: 0x100_0000, memory_size: 0x2000 }]
        );
    }

    #[test]
    fn a_virtual_entry_is_made_physical() {
        let load = program_header(PT_LOAD, 0x200, 0xffff_8000_0000_0000, 0x4000_0000, 0x100, 0x100);
        let file = elf64(EM_AARCH64, 0xffff_8000_0000_0010, &[load]);
        let Ok(Format::Elf(elf)) = detect(&file[..]) else { panic!("not ELF") };
        assert_eq!((elf.isa, elf.entry, elf.pvh_entry), (Isa::Aarch64, 0x4000_0010, None));
    }

    #[test]
    fn hostile_files_are_refused() {
        let load = |phys, file_size, size| program_header(PT_LOAD, 0x200, 0, phys, file_size, size);
        let refused = |file: Vec<u8>| detect(&file[..]).unwrap_err().to_string();
        let far = refused(elf64(EM_X86_64, 0, &[load(0, 0x1_0000, 0x1_0000)]));
        assert!(far.contains("truncated"), "{far}");
        let shrinks = refused(elf64(EM_X86_64, 0, &[load(0, 0x100, 0x10)]));
        assert!(shrinks.contains("contradict"), "{shrinks}");
        let wraps = refused(elf64(EM_X86_64, 0, &[load(u64::MAX, 0x10, 0x10)]));
        assert!(wraps.contains("contradict"), "{wraps}");
        let nowhere = refused(elf64(EM_X86_64, 0x5000, &[load(0, 0x100, 0x100)]));
        assert!(nowhere.contains("entry point"), "{nowhere}");
        let sparc = refused(elf64(43, 0, &[load(0, 0x100, 0x100)]));
        assert!(sparc.contains("machine 43"), "{sparc}");
        let empty = refused(elf64(EM_X86_64, 0, &[program_header(PT_NOTE, 0x200, 0, 0, 0, 0)]));
        assert!(empty.contains("nothing to load"), "{empty}");
        let user = refused(elf64(EM_X86_64, 0, &[program_header(PT_INTERP, 0x200, 0, 0, 4, 4)]));
        assert!(user.contains("user program"), "{user}");
        let mut object = elf64(EM_X86_64, 0, &[load(0, 0x100, 0x100)]);
        object[16] = 1;
        assert!(refused(object).contains("not a program"));
        let mut headerless = elf64(EM_X86_64, 0, &[]);
        headerless[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(refused(headerless).contains("program headers"));
    }
}
