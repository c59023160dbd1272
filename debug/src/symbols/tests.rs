//! Files of kernels as they are written here, and one that a compiler has written: this program.

use super::table::{Entry, Table};
use super::{Frame, MOST_FOUND, ModuleFile, Role, Symbols, SymbolsError};
use arch::Isa;
use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationEncoding, RelocationFlags, RelocationKind, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope,
};
use std::fs::{self, File};

/// Where the text of a kernel is that is written here; `object` writes no addresses of sections.
const TEXT: u64 = 0;

fn entry(name: &str, address: u64, size: u64, role: Role) -> Entry {
    Entry { name: name.into(), address, size, end: u64::MAX, role, is_global: false }
}

fn name_at(table: &Table, address: u64) -> Option<(&str, u64)> {
    table.at(address).map(|it| (&*it.name, address - it.address))
}

#[test]
fn an_address_is_in_the_symbol_that_reaches_it() {
    let table = Table::new(vec![
        entry("label_of_f", 0x1008, 0, Role::Label),
        entry("f", 0x1000, 0x20, Role::Function),
        entry("also_f", 0x1000, 0x20, Role::Function),
        entry("begin", 0x1000, 0, Role::Label),
        entry("asm", 0x1020, 0, Role::Label),
        entry("g", 0x1030, 0x10, Role::Function),
        entry("per_cpu", 0x10, 8, Role::PerCpu),
        entry("number", 0x1004, 0, Role::Absolute),
    ]);
    assert_eq!(name_at(&table, 0xfff), None);
    assert_eq!(name_at(&table, 0x1000), Some(("also_f", 0)));
    assert_eq!(name_at(&table, 0x1004), Some(("also_f", 4)));
    assert_eq!(name_at(&table, 0x1009), Some(("label_of_f", 1)));
    assert_eq!(name_at(&table, 0x102f), Some(("asm", 0xf)));
    assert_eq!(name_at(&table, 0x103f), Some(("g", 0xf)));
    // Behind the last one that says how large it is nothing is.
    assert_eq!(name_at(&table, 0x1040), None);
    // What is no place is found by its name alone.
    assert_eq!(name_at(&table, 0x10), None);
    let found: Vec<_> = table.named("per_cpu").map(|it| (it.address, it.role)).collect();
    assert_eq!(found, [(0x10, Role::PerCpu)]);
}

#[test]
fn a_slide_moves_places_and_nothing_else() {
    let of = |role| entry("x", 0x10, 8, role).symbol(0x1000, 0).address;
    assert_eq!([Role::Function, Role::Variable, Role::Label].map(of), [0x1010; 3]);
    assert_eq!([Role::PerCpu, Role::Absolute].map(of), [0x10; 2]);
}

#[test]
fn of_a_name_that_many_have_so_many_are_told() {
    let all = (0..100).map(|at| entry("init", 0x1000 + at * 16, 16, Role::Function)).collect();
    let table = Table::new(all);
    assert_eq!(table.named("init").count(), MOST_FOUND);
    assert_eq!(table.named("ini").count() + table.named("init1").count(), 0);
}

/// Where either has no build id, nothing says that they are of one build.
#[test]
#[cfg(feature = "linux")]
fn a_file_is_of_a_build_if_it_says_so() {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = object.add_section(Vec::new(), b".note.gnu.build-id".to_vec(), SectionKind::Note);
    // Bytes of the name and of what it is about, NT_GNU_BUILD_ID (elf.h), and both.
    let mut note = [4, 4, 3].map(u32::to_le_bytes).concat();
    note.extend(b"GNU\0\x01\xab\x00\xff");
    object.append_section_data(section, &note, 4);
    let mut bytes = object.write().unwrap();
    // As of `linked`.
    bytes[16..18].copy_from_slice(&2u16.to_le_bytes());
    let file = Symbols::new(bytes).unwrap().moved(0);
    assert!(file.is_build("01ab00ff"));
    assert!(!file.is_build("01ab00fe") && !file.is_build(""));
    let none = Symbols::new(kernel(Architecture::X86_64)).unwrap().moved(0);
    assert!(!none.is_build("01ab00ff") && !none.is_build(""));
}

/// A file of either architecture, as a linker leaves it.
pub(crate) fn kernel(architecture: Architecture) -> Vec<u8> {
    linked(architecture, &[])
}

/// The same, with debug information.
fn linked(architecture: Architecture, debug: &[(&str, &[u8])]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    object.append_section_data(text, &[0; 0x100], 16);
    let per_cpu = object.add_section(Vec::new(), b".data..percpu".to_vec(), SectionKind::Data);
    object.append_section_data(per_cpu, &[0; 0x40], 16);
    let mut add = |name: &str, value, size, kind, section| {
        let (scope, weak) = (SymbolScope::Linkage, false);
        let name = name.as_bytes().to_vec();
        object.add_symbol(Symbol { name, value, size, kind, scope, weak, section, flags: SymbolFlags::None });
    };
    let text = SymbolSection::Section(text);
    add("start_kernel", 0x10, 0x40, SymbolKind::Text, text);
    add("\x1b]0;hostile", 0x80, 0x10, SymbolKind::Text, text);
    add("$x", 0x20, 0, SymbolKind::Label, text);
    add("entry", 0xf0, 0, SymbolKind::Label, text);
    add("current_task", 0x8, 8, SymbolKind::Data, SymbolSection::Section(per_cpu));
    add("elsewhere", 0, 0, SymbolKind::Text, SymbolSection::Undefined);
    for (name, bytes) in debug {
        let section = object.add_section(Vec::new(), name.as_bytes().to_vec(), SectionKind::Debug);
        object.append_section_data(section, bytes, 1);
    }
    let mut bytes = object.write().unwrap();
    // e_type: ET_EXEC (gABI, figure 4-3).
    bytes[16..18].copy_from_slice(&2u16.to_le_bytes());
    bytes
}

#[test]
fn a_file_of_either_architecture_is_read() {
    for (architecture, isa) in [(Architecture::X86_64, Isa::X86_64), (Architecture::Aarch64, Isa::Aarch64)] {
        let symbols = Symbols::new(kernel(architecture)).unwrap();
        assert_eq!((symbols.isa(), symbols.build_id()), (isa, None));
        let moved = symbols.moved(0x10_0000);
        let found = moved.find("start_kernel").unwrap();
        assert_eq!((found.len(), found[0].address, found[0].size), (1, TEXT + 0x10_0010, 0x40));
        let inside = moved.at(TEXT + 0x10_0024).unwrap().unwrap();
        assert_eq!((&*inside.name, inside.offset, inside.role), ("start_kernel", 0x14, Role::Function));
        // A label at the end reaches to where its section ends.
        assert_eq!(moved.at(TEXT + 0x10_00ff).unwrap().map(|it| it.name), Some("entry".into()));
        assert_eq!(moved.at(TEXT + 0x10_0100).unwrap(), None);
        assert_eq!(moved.at(TEXT + 0x10_0080).unwrap().map(|it| it.name), Some("\u{fffd}]0;hostile".into()));
        let per_cpu = moved.find("current_task").unwrap();
        assert_eq!((per_cpu[0].address, per_cpu[0].role), (8, Role::PerCpu));
        assert!(moved.find("elsewhere").unwrap().is_empty() && moved.find("$x").unwrap().is_empty());
        assert_eq!(moved.frames(TEXT + 0x10_0010), Err(SymbolsError::NoLines));
    }
}

#[test]
fn whoever_has_symbols_has_those_of_the_file_that_took_its_place() {
    let symbols = Symbols::new(kernel(Architecture::X86_64)).unwrap();
    let before = symbols.moved(0);
    let mut other = kernel(Architecture::X86_64);
    let at = other.windows(12).position(|it| it == b"start_kernel").unwrap();
    other[at..at + 5].copy_from_slice(b"begin");
    symbols.replace(&Symbols::new(other).unwrap());
    assert!(symbols.moved(0).find("start_kernel").unwrap().is_empty());
    assert_eq!(symbols.moved(0).find("begin_kernel").unwrap().len(), 1);
    // Who is just looking goes on with the one before.
    assert_eq!(before.find("start_kernel").unwrap().len(), 1);
}

#[test]
fn what_is_no_kernels_file_is_refused_in_words() {
    let mut module = kernel(Architecture::X86_64);
    module[16] = 1;
    let text = |bytes: Vec<u8>| Symbols::new(bytes).unwrap_err().to_string();
    assert!(text(module).contains("it was not linked"));
    assert!(text(kernel(Architecture::Riscv64)).contains("it is for Riscv64"));
    assert!(text(Vec::new()).starts_with("not an ELF file"), "{}", text(Vec::new()));
    assert!(text(b"\x7fELF\x02\x01\x01".to_vec()).starts_with("not an ELF file"));
    assert!(text(vec![0; 4096]).starts_with("not an ELF file"));
    let folder = Symbols::open(File::open("/").unwrap()).unwrap_err();
    assert!(folder.to_string().contains("not a regular file"), "{folder}");
}

#[test]
fn a_file_that_is_cut_off_or_damaged_ends_no_one() {
    let whole = kernel(Architecture::Aarch64);
    let ask = |bytes: Vec<u8>| {
        let symbols = Symbols::new(bytes)?;
        symbols.moved(0).find("start_kernel")?;
        symbols.moved(0).frames(TEXT + 0x10)
    };
    for length in 0..whole.len() {
        assert!(ask(whole[..length].to_vec()).is_err(), "{length}");
    }
    for at in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            assert!(ask(bytes).is_err(), "there are no lines in it");
        }
    }
}

/// What lines are asked of.
#[inline(never)]
fn measured(value: u64) -> u64 {
    std::hint::black_box(value).wrapping_mul(3)
}
const LINE_OF_MEASURED: u32 = line!() - 4;

#[inline(always)]
fn inlined(value: u64) -> u64 {
    measured(value) + measured(value + 1)
}

#[inline(never)]
fn outer(value: u64) -> u64 {
    inlined(std::hint::black_box(value))
}

#[test]
fn the_lines_of_a_program_that_a_compiler_has_made() {
    assert_eq!(outer(1), 9);
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    let symbols = Symbols::open(file).unwrap();
    // Where this program has moved to: as a kernel would tell.
    let slide = 0x5555_0000_0000;
    let moved = symbols.moved(slide);
    let table = moved.symbols_table();
    let one = |part: &str| {
        let is_it = |name: &str| name.contains("symbols") && name.contains("tests") && name.contains(part);
        let name = table.names().find(|name| is_it(name)).unwrap_or_else(|| panic!("there is no {part}"));
        moved.find(name).unwrap().remove(0)
    };
    let measured = one("8measured");
    let frames = moved.frames(measured.address).unwrap();
    let [Frame { function: Some(function), file: Some(file), line: Some(line), .. }] = &frames[..] else {
        panic!("{frames:?}")
    };
    // With its path in front where there is more than lines.
    let is = |function: &str, name: &str| function.rsplit("::").next() == Some(name);
    assert!(is(function, "measured"), "{function}");
    assert!(file.ends_with("debug/src/symbols/tests.rs"), "{file}");
    assert!((LINE_OF_MEASURED - 1..=LINE_OF_MEASURED + 1).contains(line), "{line}");
    let range = moved.line(measured.address).unwrap().unwrap();
    let end = measured.address + measured.size;
    assert!(range.contains(&measured.address) && range.end <= end, "{range:x?}");

    let outer = one("5outer");
    let inlined = (outer.address..outer.address + outer.size).map(|at| moved.frames(at).unwrap());
    let names: Vec<Vec<String>> =
        inlined.map(|frames| frames.into_iter().filter_map(|it| it.function).collect()).collect();
    let is_inlined =
        |names: &Vec<String>| names.len() == 2 && is(&names[0], "inlined") && is(&names[1], "outer");
    assert!(names.iter().any(is_inlined), "{names:?}");
    assert_eq!(moved.frames(slide.wrapping_sub(0x1000)), Ok(Vec::new()));
}

#[test]
fn a_section_that_says_more_than_there_is_is_refused() {
    let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
    let length = bytes.len();
    // The table of sections is at the end.
    bytes.truncate(length - 64);
    assert!(Symbols::new(bytes).and_then(|it| it.moved(0).frames(0x1000)).is_err());
}

/// A file whose one function has so many inlined into each other.
fn nested(depth: usize) -> Vec<u8> {
    let unit = unit_of(0, depth);
    linked(Architecture::X86_64, &[(".debug_abbrev", ABBREVIATIONS), (".debug_info", &unit)])
}

// DW_TAG_compile_unit and DW_TAG_subprogram with DW_AT_low_pc (DW_FORM_addr) and DW_AT_high_pc (DW_FORM_data8),
// DW_TAG_inlined_subroutine with nothing; all with children (DWARF 5, section 7.5.3).
const ABBREVIATIONS: &[u8] = &[
    1, 0x11, 1, 0x11, 1, 0x12, 7, 0, 0, // a unit
    2, 0x2e, 1, 0x11, 1, 0x12, 7, 0, 0, // a function
    3, 0x1d, 1, 0, 0, 0,
];

/// A unit of 0x100 bytes of code from `begin` on, whose one function has so many inlined into each other.
fn unit_of(begin: u64, depth: usize) -> Vec<u8> {
    let range = [begin.to_le_bytes(), 0x100u64.to_le_bytes()].concat();
    // Version 4, abbreviations at 0, addresses of 8 bytes.
    let mut unit = vec![4, 0, 0, 0, 0, 0, 8];
    for code in [1, 2] {
        unit.push(code);
        unit.extend(&range);
    }
    unit.resize(unit.len() + depth, 3);
    unit.resize(unit.len() + depth + 2, 0);
    let length = u32::try_from(unit.len()).unwrap().to_le_bytes();
    [&length[..], &unit].concat()
}

/// A set of `.debug_aranges`: 0x100 bytes of code from `begin` on are of the unit at an offset (DWARF 5, section 7.21).
fn arange(begin: u64, unit: u32) -> Vec<u8> {
    let mut set = vec![2, 0];
    set.extend(unit.to_le_bytes());
    // Addresses of 8 bytes without segments, and what aligns the first to 16.
    set.extend([8, 0, 0, 0, 0, 0]);
    for word in [begin, 0x100, 0, 0] {
        set.extend(word.to_le_bytes());
    }
    [u32::try_from(set.len()).unwrap().to_le_bytes().to_vec(), set].concat()
}

/// Of a file that says where its units are, no other unit than the one that is asked for is read.
#[test]
fn a_unit_is_read_by_itself() {
    // Two, of which the second is refused.
    let (good, bad) = (unit_of(0, 3), unit_of(0x100, 1000));
    let second = u32::try_from(good.len()).unwrap();
    let info = [good, bad].concat();
    let file = |architecture, aranges: &[u8]| {
        let sections =
            [(".debug_abbrev", ABBREVIATIONS), (".debug_info", &info[..]), (".debug_aranges", aranges)];
        Symbols::new(linked(architecture, &sections)).unwrap()
    };
    let count = |symbols: &Symbols, at: u64| symbols.moved(0x1000).frames(0x1000 + at).map(|it| it.len());
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        let both = [arange(0x100, second), arange(0, 0)].concat();
        let symbols = file(architecture, &both);
        assert_eq!((count(&symbols, 0), count(&symbols, 0xff)), (Ok(1), Ok(1)));
        assert!(count(&symbols, 0x100).is_err() && count(&symbols, 0x1ff).is_err());
        assert_eq!(count(&symbols, 0x80), Ok(1));
        // Where it does not say, all is read, unless nobody wants that.
        assert!(count(&symbols, 0x200).is_err());
        let symbols = file(architecture, &both).by_units();
        assert_eq!((count(&symbols, 0x200), count(&symbols, 0)), (Ok(0), Ok(1)));
        assert_eq!(symbols.moved(0).line(0x300), Ok(None));
        for aranges in [&[][..], &arange(0, 0)[..20]] {
            assert!(count(&file(architecture, aranges), 0).is_err());
            assert_eq!(count(&file(architecture, aranges).by_units(), 0), Ok(0));
        }
        // Units that are not there, or in the middle of one.
        for odd in [1, 7, second + 1, u32::try_from(info.len()).unwrap() - 4, u32::MAX] {
            assert!(count(&file(architecture, &arange(0, odd)), 0).is_err(), "{odd}");
        }
    }
}

#[test]
fn functions_inlined_into_each_other_without_end_are_refused() {
    let frames = |depth| Symbols::new(nested(depth)).unwrap().moved(0).frames(0x10);
    assert_eq!(frames(100).map(|it| it.len()), Ok(1));
    let error = frames(1 << 20).unwrap_err();
    assert!(error.to_string().contains("within each other"), "{error}");
}

/// Call frame information of one function of 0x40 bytes at 0x10, of version 4: until its first instruction has pushed two
/// words its frame is the stack pointer's, and then so many bytes above it.
#[cfg(feature = "linux")]
fn debug_frame(architecture: Architecture, rest: &[u8]) -> Vec<u8> {
    // The stack pointer's number, what a call has pushed, and where the return address is a column of its own.
    let (sp, pushed, column, first) = match architecture {
        Architecture::X86_64 => (7, 8, 16, &[0x90, 1][..]),
        _ => (31, 0, 30, &[][..]),
    };
    // DW_CFA_def_cfa; DW_CFA_offset (DWARF 5, section 7.24).
    let initial = [&[0x0c, sp, pushed][..], first].concat();
    let entry = |body: Vec<u8>| {
        let mut body = body;
        body.resize(body.len().next_multiple_of(8) + 4, 0);
        [u32::try_from(body.len()).unwrap().to_le_bytes().to_vec(), body].concat()
    };
    // CIE_id, version, no augmentation, addresses of 8 bytes without segments, code in bytes, data in -8 bytes.
    let mut cie = vec![0xff, 0xff, 0xff, 0xff, 4, 0, 8, 0, 1, 0x78, column];
    cie.extend(&initial);
    let mut fde = vec![0, 0, 0, 0];
    fde.extend(0x10u64.to_le_bytes());
    fde.extend(0x40u64.to_le_bytes());
    // DW_CFA_advance_loc 4, DW_CFA_def_cfa_offset, and the frame pointer saved two words below.
    let fp = if architecture == Architecture::X86_64 { 6 } else { 29 };
    fde.extend([0x44, 0x0e, pushed + 16, 0x80 | fp, 2]);
    fde.extend(rest);
    [entry(cie), entry(fde)].concat()
}

#[cfg(feature = "linux")]
#[test]
fn frames_are_read_of_a_kernels_file() {
    use crate::linux::unwind::cfi::{Row, Rule};
    let with = |architecture, frames: &[u8]| {
        Symbols::new(linked(architecture, &[(".debug_frame", frames)])).unwrap().moved(0x1000)
    };
    for (architecture, sp, pushed, pc) in
        [(Architecture::X86_64, 7, 8, Rule::Saved(-8)), (Architecture::Aarch64, 31, 0, Rule::Same)]
    {
        let moved = with(architecture, &debug_frame(architecture, &[]));
        let begin = Row { frame: (sp, pushed), pc, fp: Rule::Same };
        let row = Row { frame: (sp, pushed + 16), pc, fp: Rule::Saved(-16) };
        for (at, expected) in [
            (0x100f, None),
            (0x1010, Some(begin)),
            (0x1013, Some(begin)),
            (0x1014, Some(row)),
            (0x104f, Some(row)),
            (0x1050, None),
            (0, None),
            (u64::MAX, None),
        ] {
            assert_eq!(moved.call_frame(at), Ok(expected), "{architecture:?} {at:#x}");
        }
        // No other debug information is needed.
        assert_eq!(moved.frames(0x1010), Err(SymbolsError::NoLines));
        // DW_CFA_AARCH64_negate_ra_state: that it is signed changes nothing of where it is. x86 has no such thing.
        let signed = with(architecture, &debug_frame(architecture, &[0x2d]));
        let is_known = architecture == Architecture::Aarch64;
        assert_eq!(signed.call_frame(0x1020).unwrap().is_some(), is_known);
        // By a program of its own (DW_CFA_def_cfa_expression), or without end (DW_CFA_remember_state).
        for odd in [&[0x0f, 1, 0x9c][..], &[0x0a; 1000][..]] {
            assert_eq!(with(architecture, &debug_frame(architecture, odd)).call_frame(0x1020), Ok(None));
        }
        let whole = debug_frame(architecture, &[]);
        for length in 0..whole.len() {
            with(architecture, &whole[..length]).call_frame(0x1020).unwrap();
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                with(architecture, &bytes).call_frame(0x1020).unwrap();
            }
        }
        let none = Symbols::new(kernel(architecture)).unwrap().moved(0);
        assert_eq!(none.call_frame(0x20), Ok(None));
    }
}

/// A compiler has written that: a function's caller is where the ABI has it.
#[cfg(feature = "linux")]
#[test]
fn frames_are_read_of_a_program() {
    use crate::linux::unwind::cfi::Rule;
    assert_eq!(outer(1), 9);
    let symbols = Symbols::open(File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
    let moved = symbols.moved(0);
    let is_it = |name: &&str| name.contains("symbols") && name.contains("tests") && name.contains("5outer");
    let name = moved.symbols_table().names().find(is_it).unwrap().to_string();
    let outer = moved.find(&name).unwrap().remove(0);
    let first = moved.call_frame(outer.address).unwrap().unwrap();
    let (frame, pc) = match symbols.isa() {
        Isa::X86_64 => ((7, 8), Rule::Saved(-8)),
        Isa::Aarch64 => ((31, 0), Rule::Same),
    };
    assert_eq!((first.frame, first.pc, first.fp), (frame, pc, Rule::Same));
    let rows = (outer.address..outer.address + outer.size).map(|at| moved.call_frame(at).unwrap().unwrap());
    assert!(rows.into_iter().any(|row| row.frame.1 > first.frame.1), "it has made a frame");
}

/// A module's file: a function of 0x40 bytes at 0x10 of a section that is loaded, of which its debug information says no more
/// than that. Where it begins is for whoever links it.
pub(crate) fn module(architecture: Architecture) -> Vec<u8> {
    relocated(architecture, 64, RelocationKind::Absolute)
}

fn relocated(architecture: Architecture, size: u8, kind: RelocationKind) -> Vec<u8> {
    // DW_TAG_compile_unit and DW_TAG_subprogram with DW_AT_low_pc (DW_FORM_addr) and DW_AT_high_pc (DW_FORM_data8).
    const ABBREVIATIONS: &[u8] = &[1, 0x11, 1, 0x11, 1, 0x12, 7, 0, 0, 2, 0x2e, 0, 0x11, 1, 0x12, 7, 0, 0, 0];
    let mut unit = vec![4, 0, 0, 0, 0, 0, 8];
    for code in [1, 2] {
        unit.push(code);
        unit.extend([0u64.to_le_bytes(), 0x40u64.to_le_bytes()].concat());
    }
    unit.push(0);
    let info = [&u32::try_from(unit.len()).unwrap().to_le_bytes()[..], &unit].concat();
    let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let text = object.add_section(Vec::new(), b".text".to_vec(), SectionKind::Text);
    object.append_section_data(text, &[0; 0x100], 16);
    let symbol = object.section_symbol(text);
    for (name, bytes) in [(".debug_abbrev", ABBREVIATIONS), (".debug_info", &info)] {
        let section = object.add_section(Vec::new(), name.as_bytes().to_vec(), SectionKind::Debug);
        object.append_section_data(section, bytes, 1);
        // Behind the header and a code each; the second one is behind an address and a length.
        for offset in if name == ".debug_info" { vec![12, 29] } else { Vec::new() } {
            let flags = RelocationFlags::Generic { kind, encoding: RelocationEncoding::Generic, size };
            object.add_relocation(section, Relocation { offset, symbol, addend: 0x10, flags }).unwrap();
        }
    }
    object.write().unwrap()
}

#[test]
fn a_modules_lines_are_where_it_was_loaded() {
    for (architecture, isa) in [(Architecture::X86_64, Isa::X86_64), (Architecture::Aarch64, Isa::Aarch64)] {
        let file = ModuleFile::new(module(architecture)).unwrap();
        assert_eq!((file.isa(), file.build_id()), (isa, None));
        const PLACE: u64 = 0xffff_ffff_c010_0000;
        let loaded = file.loaded(vec![("other".into(), 7), (".text".into(), PLACE)]);
        for (at, count) in
            [(PLACE + 0xf, 0), (PLACE + 0x10, 1), (PLACE + 0x4f, 1), (PLACE + 0x50, 0), (0x10, 0)]
        {
            assert_eq!(loaded.frames(at).map(|frames| frames.len()), Ok(count), "{architecture:?} {at:#x}");
        }
        // Where it is not known, it is at 0.
        assert_eq!(file.loaded(Vec::new()).frames(0x10).map(|frames| frames.len()), Ok(1));
        // The kernel is none, nor is a module a kernel.
        let kernel = ModuleFile::new(kernel(architecture)).unwrap_err();
        assert!(kernel.to_string().contains("it is no module"), "{kernel}");
        let module_as_kernel = Symbols::new(module(architecture)).unwrap_err();
        assert!(module_as_kernel.to_string().contains("it was not linked"), "{module_as_kernel}");
        // What is counted from where it stands has no place in debug information.
        let odd = ModuleFile::new(relocated(architecture, 32, RelocationKind::Relative)).unwrap();
        let why = odd.loaded(Vec::new()).frames(0x10).unwrap_err();
        assert!(matches!(&why, SymbolsError::Damaged(why) if why.contains("of a kind")), "{why}");
        // Damaged, it is refused or says nothing, and ends no one.
        let whole = module(architecture);
        for length in 0..whole.len() {
            if let Ok(file) = ModuleFile::new(whole[..length].to_vec()) {
                file.loaded(Vec::new()).frames(0x10).err();
            }
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Ok(file) = ModuleFile::new(bytes) {
                    file.loaded(vec![(".text".into(), PLACE)]).frames(PLACE + 0x10).err();
                }
            }
        }
    }
}
