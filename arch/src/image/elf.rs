//! ELF kernels of either architecture and class: what to load, where to enter, and by which
//! boot protocol.
//!
//! Sources: System V gABI chapter 5 (program header); Xen `docs/misc/pvh.pandoc` and
//! `xen/include/public/elfnote.h` for the PVH entry note; [`super::multiboot`].

use super::{ImageError, Source, multiboot};
use crate::Isa;
use ::elf::abi::{EM_386, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP, PT_LOAD, PT_NOTE};
use ::elf::endian::AnyEndian;
use ::elf::file::{Class, FileHeader, parse_ident};
use ::elf::note::{Note, NoteIterator};
use ::elf::segment::SegmentTable;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of the PVH boot protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
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

        let segments = program_headers(source, &header)?;
        let mut loads = Vec::new();
        let mut entry = None;
        let mut pvh_entry = None;
        for segment in segments.iter() {
            let file_end = segment
                .p_offset
                .checked_add(segment.p_filesz)
                .ok_or_else(|| malformed("a segment's place in the file wraps"))?;
            match segment.p_type {
                PT_LOAD if segment.p_memsz > 0 => {
                    if file_end > source.size() {
                        return Err(ImageError::Truncated {
                            what: "an ELF segment",
                            needed: file_end,
                            actual: source.size(),
                        });
                    }
                    if segment.p_filesz > segment.p_memsz
                        || segment.p_paddr.checked_add(segment.p_memsz).is_none()
                    {
                        return Err(malformed("a segment's sizes contradict each other"));
                    }
                    let physical = |address: u64| {
                        let offset = address.checked_sub(segment.p_vaddr)?;
                        (offset < segment.p_memsz).then(|| segment.p_paddr + offset)
                    };
                    entry = entry.or_else(|| physical(header.e_entry));
                    loads.push(Segment {
                        file_offset: segment.p_offset,
                        file_size: segment.p_filesz,
                        physical: segment.p_paddr,
                        memory_size: segment.p_memsz,
                    });
                }
                PT_NOTE if file_end <= source.size() && segment.p_filesz <= NOTES_LIMIT => {
                    pvh_entry = pvh_entry.or(find_pvh_note(source, &header, segment)?);
                }
                PT_INTERP => {
                    return Err(ImageError::Unsupported(
                        "the ELF file is a dynamically linked user program, not a kernel".into(),
                    ));
                }
                _ => {}
            }
        }
        if loads.is_empty() {
            return Err(ImageError::Unsupported("the ELF file has nothing to load".into()));
        }
        // A kernel linked high (vmlinux) gives its entry as a physical address already: it lies
        // in no virtual range, but in a physical one.
        let entry = entry.unwrap_or(header.e_entry);
        let entry_is_loaded = loads.iter().any(|load| entry.wrapping_sub(load.physical) < load.memory_size);
        if !entry_is_loaded {
            return Err(malformed(format!("the entry point {entry:#x} is in no segment")));
        }
        Ok(Elf {
            isa,
            is_32_bit: class == Class::ELF32,
            entry,
            pvh_entry: pvh_entry.filter(|_| isa == Isa::X86_64),
            multiboot: if isa == Isa::X86_64 { multiboot::Header::find(head)? } else { None },
            segments: loads,
        })
    }
}

/// Reads the table of program headers.
fn program_headers<S: Source + ?Sized>(
    source: &S,
    header: &FileHeader<AnyEndian>,
) -> Result<Vec<::elf::segment::ProgramHeader>, ImageError> {
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
fn find_pvh_note<S: Source + ?Sized>(
    source: &S,
    header: &FileHeader<AnyEndian>,
    segment: &::elf::segment::ProgramHeader,
) -> Result<Option<u64>, ImageError> {
    let size = usize::try_from(segment.p_filesz).map_err(|_| malformed("a note segment is too large"))?;
    let mut notes = vec![0; size];
    source.read_at(segment.p_offset, &mut notes).map_err(ImageError::Read)?;
    // gABI: notes are 4-byte aligned; 8 occurs for GNU properties only.
    let alignment = if segment.p_align == 8 { 8 } else { 4 };
    for note in NoteIterator::new(header.endianness, header.class, alignment, &notes) {
        let Note::Unknown(note) = note else { continue };
        if note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.name.starts_with(b"Xen") {
            let mut value = [0; 8];
            let length = note.desc.len().min(8);
            value[..length].copy_from_slice(&note.desc[..length]);
            return Ok(Some(u64::from_le_bytes(value)));
        }
    }
    Ok(None)
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
        let mut bytes: Vec<u8> = [4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(b"Xen\0");
        bytes.extend(0x100_0080u32.to_le_bytes());
        put(&mut file, 0x300, &bytes);
        file
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
