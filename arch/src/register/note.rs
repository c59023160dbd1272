//! The notes of core files that hold registers. Where each register stands in them is in the
//! [table of registers](crate::register), from which notes are built, and by which they are read.
//!
//! Notes of the name `CORE` are Linux's ([`Note::Status`], [`Note::Float`]); `QEMU` is what QEMU's
//! `dump-guest-memory` adds on x86_64, and has the control registers that a page walk needs. Values are
//! little-endian.
//!
//! Sources: Linux, `include/linux/elfcore.h` (`struct elf_prstatus`), `arch/x86/include/asm/user_64.h`
//! (`user_regs_struct`, `user_i387_struct`), `arch/arm64/include/uapi/asm/ptrace.h`
//! (`user_pt_regs`, `user_fpsimd_state`, `user_pac_mask`), `include/uapi/linux/elf.h`; QEMU,
//! `target/i386/arch_dump.c` (`QEMUCPUState`) and `target/arm/arch_dump.c`.

use crate::Isa;
use crate::register::{RegisterFile, table};

/// `e_machine`: EM_X86_64.
const EM_X86_64: u16 = 62;
/// `e_machine`: EM_AARCH64.
const EM_AARCH64: u16 = 183;

/// The architecture of an ELF file's `e_machine`.
pub const fn isa_of_machine(machine: u16) -> Option<Isa> {
    match machine {
        EM_X86_64 => Some(Isa::X86_64),
        EM_AARCH64 => Some(Isa::Aarch64),
        _ => None,
    }
}

/// An architecture's `e_machine`.
pub const fn machine_of_isa(isa: Isa) -> u16 {
    match isa {
        Isa::X86_64 => EM_X86_64,
        Isa::Aarch64 => EM_AARCH64,
    }
}

/// A kind of note that holds registers of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// `NT_PRSTATUS`: general registers.
    Status,
    /// `NT_PRFPREG`: floating point and vectors.
    Float,
    /// `NT_ARM_PAC_MASK`: which bits of pointers are authentication codes, aarch64 only. Linux has the
    /// masks of a process in it, we the kernel's: gdb, from 14 on, sets or clears what is masked as bit
    /// 55 of the pointer says.
    PointerMasks,
    /// QEMU's CPU state, x86_64 only.
    Qemu,
}

impl Note {
    /// All kinds, in the order that a core has them.
    pub const ALL: [Note; 4] = [Note::Status, Note::Float, Note::PointerMasks, Note::Qemu];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Note::Status | Note::Float => "CORE",
            Note::PointerMasks => "LINUX",
            Note::Qemu => "QEMU",
        }
    }

    /// Its type in the file.
    pub const fn number(self) -> u32 {
        match self {
            Note::Status => 1,
            Note::Float => 2,
            Note::PointerMasks => 0x406,
            Note::Qemu => 0,
        }
    }

    /// The kind of a note's name and type.
    pub fn of(name: &[u8], number: u32) -> Option<Note> {
        Note::ALL.into_iter().find(|note| note.name().as_bytes() == name && note.number() == number)
    }

    /// Its size, bytes; `None` where the architecture has none.
    pub const fn size(self, isa: Isa) -> Option<usize> {
        match (self, isa) {
            (Note::Status, Isa::X86_64) => Some(336),
            (Note::Status, Isa::Aarch64) => Some(392),
            (Note::Float, Isa::X86_64) => Some(512),
            (Note::Float, Isa::Aarch64) => Some(528),
            (Note::Qemu, Isa::X86_64) => Some(440),
            (Note::PointerMasks, Isa::Aarch64) => Some(16),
            (Note::PointerMasks, Isa::X86_64) | (Note::Qemu, Isa::Aarch64) => None,
        }
    }

    /// Makes the note of a vCPU, if it has one; what is not known is 0. `vcpu` is its number; `width`
    /// says for how many bits the code is that it executes, 64, 32 or 16.
    pub fn build(self, file: &RegisterFile, vcpu: u32, width: u32) -> Option<Vec<u8>> {
        let isa = file.isa();
        let mut bytes = vec![0; self.size(isa)?];
        if self == Note::PointerMasks {
            file.get("pauth_cmask_high")?;
        }
        for (row, register) in file.rows() {
            if let (Some((offset, size)), Some(value)) = (register.place(self), file.bytes(row)) {
                let size = size.min(value.len());
                bytes[offset..offset + size].copy_from_slice(&value[..size]);
            }
        }
        match (self, isa) {
            // Linux's numbers of processes begin with 1.
            (Note::Status, _) => bytes[PID..PID + 4].copy_from_slice(&(vcpu + 1).to_le_bytes()),
            (Note::Float, Isa::X86_64) => {
                let tags = file.get("ftag").unwrap_or(0xffff);
                bytes[X87_TAGS] = abridged(tags);
            }
            (Note::Qemu, _) => {
                bytes[0..4].copy_from_slice(&1u32.to_le_bytes());
                bytes[4..8].copy_from_slice(&440u32.to_le_bytes());
                for (index, name) in SEGMENTS.into_iter().enumerate() {
                    let (limit, flags) = segment(file, name, width);
                    let offset = QEMU_SEGMENTS + QEMU_SEGMENT * index;
                    bytes[offset + 4..offset + 8].copy_from_slice(&limit.to_le_bytes());
                    bytes[offset + 8..offset + 12].copy_from_slice(&flags.to_le_bytes());
                }
            }
            (Note::Float, Isa::Aarch64) | (Note::PointerMasks, _) => {}
        }
        Some(bytes)
    }

    /// Takes a note's registers into a file. A note that is shorter gives what it has.
    pub fn parse(self, bytes: &[u8], file: &mut RegisterFile) {
        let isa = file.isa();
        for (row, register) in table(isa).iter().enumerate() {
            let value = register.place(self).and_then(|(offset, size)| bytes.get(offset..offset + size));
            if let Some(value) = value {
                file.set_bytes(row, value);
            }
        }
        if self == Note::Qemu {
            for (index, name) in SEGMENTS.into_iter().enumerate() {
                let offset = QEMU_SEGMENTS + QEMU_SEGMENT * index;
                if let Some(flags) = crate::bytes::u32_at(bytes, offset + 8) {
                    let unusable = if flags & PRESENT == 0 { UNUSABLE } else { 0 };
                    file.set(&format!("{name}_ar"), (flags >> 8 & RIGHTS | unusable).into());
                }
            }
        }
        if (self, isa) == (Note::Float, Isa::X86_64)
            && let Some(tags) = bytes.get(X87_TAGS)
        {
            // Which kind of number a register that is in use holds is not told; gdb does not need it.
            let full =
                (0..8).filter(|bit| tags >> bit & 1 == 0).fold(0, |full, bit| full | 3u64 << (2 * bit));
            file.set("ftag", full);
        }
    }
}

/// Where `NT_PRSTATUS` has the number of the process, here the vCPU's and 1.
const PID: usize = 32;
/// Where `NT_PRFPREG` of x86_64 has the abridged tags, a byte.
const X87_TAGS: usize = 4;

/// The tag word as FXSAVE has it: a bit for each register that is in use (Intel SDM vol. 1, "FXSAVE").
fn abridged(tags: u64) -> u8 {
    (0..8).filter(|bit| tags >> (2 * bit) & 3 != 3).fold(0, |short, bit| short | 1 << bit)
}

/// Segments in the order of `QEMUCPUState`.
const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr"];
/// Access rights that a descriptor has as well, there 8 bits higher.
const RIGHTS: u32 = 0xf0ff;
/// Access rights: the segment cannot be used.
const UNUSABLE: u32 = 1 << 16;
/// Second word of a descriptor: the segment is present.
const PRESENT: u32 = 1 << 15;

/// A segment's limit, and the second word of its descriptor without limit and base (Intel SDM vol. 3,
/// "Segment Descriptors"). One of which nothing is known is taken to be flat.
fn segment(file: &RegisterFile, name: &str, width: u32) -> (u32, u32) {
    const DATA: u32 = 0x00c0_9300;
    const CODE: u32 = 0x0000_9b00;
    const GRANULAR: u32 = 1 << 23;
    let get = |name: &str| file.get(name).and_then(|value| u32::try_from(value).ok());
    if let (Some(limit), Some(rights)) = (get(&format!("{name}_limit")), get(&format!("{name}_ar"))) {
        return (limit, if rights & UNUSABLE == 0 { (rights & RIGHTS) << 8 } else { 0 });
    }
    let width = match width {
        64 => LONG,
        32 => WIDE,
        _ => 0,
    };
    let level = get("cs").map_or(0, |cs| (cs & 3) << 13);
    match name {
        "cs" => (u32::MAX, CODE | GRANULAR | width | level),
        "ldt" | "tr" => (0, 0),
        _ => (u32::MAX, DATA | level),
    }
}

/// Bits of a code segment's descriptor: 64-bit code, 32-bit code.
const LONG: u32 = 1 << 21;
const WIDE: u32 = 1 << 22;

/// For how many bits the code is that the vCPU of a `QEMU` note executes, 64, 32 or 16; `None` if the
/// note is too short to tell.
pub fn code_width(qemu: &[u8]) -> Option<u32> {
    let flags = crate::bytes::u32_at(qemu, QEMU_SEGMENTS + 8)?;
    Some(match flags {
        _ if flags & LONG != 0 => 64,
        _ if flags & WIDE != 0 => 32,
        _ => 16,
    })
}

/// Where `QEMUCPUState` has its segments, and the size of each, bytes.
const QEMU_SEGMENTS: usize = 152;
const QEMU_SEGMENT: usize = 24;

/// The type of the note of the name `CORE` that has a process's auxiliary vector, `NT_AUXV`.
pub const VECTOR_NUMBER: u32 = 6;

/// An auxiliary vector that says that pointers are authenticated; without it, gdb looks at no
/// [`Note::PointerMasks`].
pub fn authenticating_vector() -> Vec<u8> {
    const AT_NULL: u64 = 0;
    const AT_HWCAP: u64 = 16;
    const HWCAP_PACA: u64 = 1 << 30;
    [AT_HWCAP, HWCAP_PACA, AT_NULL, 0].map(u64::to_le_bytes).concat()
}

/// A note of our own, of the name [`ALL_NAME`] and the type [`ALL_NUMBER`]: every register of the
/// [table](crate::register) that has a value. For each, a byte with the length of its name, the name, two
/// bytes with the length of its value (little-endian), the value. So a reader needs no table of places,
/// and one that does not know a name skips it. `more` is what the writer has to say beside registers, in
/// the same form.
pub fn build_all(file: &RegisterFile, more: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |name: &[u8], value: &[u8]| {
        if let (Ok(length), Ok(size)) = (u8::try_from(name.len()), u16::try_from(value.len())) {
            bytes.push(length);
            bytes.extend(name);
            bytes.extend(size.to_le_bytes());
            bytes.extend(value);
        }
    };
    for (row, register) in file.rows() {
        push(register.name.as_bytes(), &file.bytes(row).unwrap_or_default());
    }
    more.iter().for_each(|(name, value)| push(name, value));
    bytes
}

/// The name of our own note.
pub const ALL_NAME: &str = "VMM";
/// The type of our own note: `VM`, and the version of its layout.
pub const ALL_NUMBER: u32 = 0x564d_0001;

/// Takes the registers of such a note into a file, and tells what else is in it; `false` for one that is
/// cut off or damaged, of which what is in front of that is taken.
pub fn parse_all(mut bytes: &[u8], file: &mut RegisterFile, mut tell: impl FnMut(&[u8], &[u8])) -> bool {
    let mut next = |count: usize| {
        let (taken, rest) = bytes.split_at_checked(count)?;
        bytes = rest;
        Some(taken)
    };
    loop {
        let Some(&[length]) = next(1) else { return true };
        let Some(name) = next(length.into()) else { return false };
        let Some(&[low, high]) = next(2) else { return false };
        let Some(value) = next(u16::from_le_bytes([low, high]).into()) else { return false };
        let known = table(file.isa()).iter().position(|register| register.name.as_bytes() == name);
        match known {
            Some(row) => file.set_bytes(row, value),
            None => tell(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every register its own value.
    fn filled(isa: Isa) -> RegisterFile {
        let mut file = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate() {
            let byte = u8::try_from(row % 251).unwrap() + 1;
            file.set_bytes(row, &vec![byte; register.bytes()]);
        }
        file
    }

    #[test]
    fn what_is_built_is_parsed() {
        for isa in Isa::ALL {
            let file = filled(isa);
            for note in Note::ALL {
                let Some(bytes) = note.build(&file, 3, 64) else { continue };
                assert_eq!(Some(bytes.len()), note.size(isa));
                let mut back = RegisterFile::new(isa);
                note.parse(&bytes, &mut back);
                let mut count = 0;
                // What is converted has a test of its own.
                let is_copied = |name: &str| name != "ftag" && !name.ends_with("_ar");
                for (row, register) in back.rows().filter(|(_, register)| is_copied(register.name)) {
                    // A note may have less of a register than gdb.
                    let (mut found, wanted) = (back.bytes(row).unwrap(), file.bytes(row).unwrap());
                    found.truncate(found.iter().rposition(|byte| *byte != 0).unwrap() + 1);
                    assert!(wanted.starts_with(&found), "{isa} {note:?} {}", register.name);
                    count += 1;
                }
                let wanted = match (note, isa) {
                    (Note::Status, Isa::X86_64) => 26,
                    (Note::Status, Isa::Aarch64) => 34,
                    (Note::Float, Isa::X86_64) => 32,
                    (Note::Float, Isa::Aarch64) => 34,
                    (Note::PointerMasks, _) => 2,
                    (Note::Qemu, _) => 18 + 8 * 3 + 2 + 2 + 5,
                };
                assert_eq!(count, wanted, "{isa} {note:?}");
                // One that is cut off gives less, and is no trouble.
                (0..bytes.len()).for_each(|end| note.parse(&bytes[..end], &mut RegisterFile::new(isa)));
            }
        }
    }

    #[test]
    fn places_are_within_their_notes_and_do_not_overlap() {
        for isa in Isa::ALL {
            for note in Note::ALL {
                let mut places: Vec<(usize, usize)> =
                    table(isa).iter().filter_map(|register| register.place(note)).collect();
                places.sort_unstable();
                let ends = places.iter().map(|(offset, size)| offset + size);
                assert!(ends.clone().all(|end| Some(end) <= note.size(isa)), "{isa} {note:?}");
                assert!(
                    ends.zip(places.iter().skip(1)).all(|(end, (next, _))| end <= *next),
                    "{isa} {note:?}"
                );
            }
        }
    }

    #[test]
    fn all_registers_survive() {
        for isa in Isa::ALL {
            let file = filled(isa);
            let bytes = build_all(&file, &[(b"abc", &[9])]);
            let mut back = RegisterFile::new(isa);
            let mut told = Vec::new();
            assert!(parse_all(&bytes, &mut back, |name, value| told.push((name.to_vec(), value.to_vec()))));
            assert_eq!((back, told), (file, vec![(b"abc".to_vec(), vec![9])]));
            for cut in 1..6 {
                let mut back = RegisterFile::new(isa);
                assert!(!parse_all(&bytes[..bytes.len() - cut], &mut back, |_, _| ()));
            }
        }
    }

    #[test]
    fn places_of_qemus_note() {
        let mut file = RegisterFile::new(Isa::X86_64);
        file.set("cr3", 0x1234_5000);
        file.set("idt_base", 0xffff_fe00_0000_0000);
        file.set("efer", 0xd01);
        file.set("cs", 0x10);
        let bytes = Note::Qemu.build(&file, 0, 64).unwrap();
        assert_eq!(bytes[0..8], [1, 0, 0, 0, 184, 1, 0, 0]);
        assert_eq!(bytes[416..424], 0x1234_5000u64.to_le_bytes());
        assert_eq!(bytes[384..392], 0xffff_fe00_0000_0000u64.to_le_bytes());
        // 64-bit code.
        assert_eq!(bytes[160..164], 0x00a0_9b00u32.to_le_bytes());
        // Real segments, if they are known: 16-bit code that reaches far, and one that cannot be used.
        file.set("cs_limit", 0xffff);
        file.set("cs_ar", 0x9b);
        file.set("ds_limit", 0);
        file.set("ds_ar", 0x1_0000);
        let bytes = Note::Qemu.build(&file, 0, 64).unwrap();
        assert_eq!(bytes[156..164], [0xffffu32, 0x9b00].map(u32::to_le_bytes).concat());
        assert_eq!(code_width(&bytes), Some(16));
        let mut back = RegisterFile::new(Isa::X86_64);
        Note::Qemu.parse(&bytes, &mut back);
        let values = ["cs_limit", "cs_ar", "ds_limit", "ds_ar", "ss_ar"].map(|name| back.get(name).unwrap());
        assert_eq!(values, [0xffff, 0x9b, 0, 0x1_0000, 0xc093]);
        let mut file = RegisterFile::new(Isa::X86_64);
        for width in [64, 32, 16] {
            file.set("cs", 0x10);
            assert_eq!(code_width(&Note::Qemu.build(&file, 0, width).unwrap()), Some(width));
        }
    }

    #[test]
    fn tags_are_abridged_and_back() {
        assert_eq!((abridged(0xffff), abridged(0), abridged(0xfffc)), (0, 0xff, 1));
        let mut file = RegisterFile::new(Isa::X86_64);
        let mut bytes = vec![0; 512];
        bytes[X87_TAGS] = 1;
        Note::Float.parse(&bytes, &mut file);
        assert_eq!(file.get("ftag"), Some(0xfffc));
    }
}
