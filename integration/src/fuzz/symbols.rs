//! The file that a kernel was linked to.

use super::change;
use debug::symbols::{ModuleFile, Symbols};
use gimli::write::{
    Address, AttributeValue, CallFrameInstruction, CommonInformationEntry, DwarfUnit, EndianVec,
    FrameDescriptionEntry, FrameTable, LineProgram, LineString, Sections,
};
use gimli::{Encoding, Format, LineEncoding, LittleEndian, Register};
use object::write::{Object, StandardSection, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
use std::sync::OnceLock;

/// Bytes of the function that the file has.
const SIZE: u64 = 0x40;

/// Debug information of one function, `outer`, with another in it: 32-bit DWARF of a version from 4 up.
fn lines(version: u16) -> gimli::write::Result<Vec<(&'static str, Vec<u8>)>> {
    let encoding = Encoding { format: Format::Dwarf32, version, address_size: 8 };
    let mut dwarf = DwarfUnit::new(encoding);
    let string = |text: &str| LineString::String(text.into());
    let mut program =
        LineProgram::new(encoding, LineEncoding::default(), string("/src"), None, string("a.c"), None);
    let folder = program.default_directory();
    let file = program.add_file(string("a.c"), folder, None);
    program.begin_sequence(Some(Address::Constant(0)));
    for (at, line) in [(0, 10), (8, 11), (16, 3), (32, 12)] {
        let row = program.row();
        (row.address_offset, row.file, row.line) = (at, file, line);
        program.generate_row();
    }
    program.end_sequence(SIZE);
    dwarf.unit.line_program = program;
    let root = dwarf.unit.root();
    let range = |unit: &mut gimli::write::Unit, entry, begin: u64, size| {
        let entry = unit.get_mut(entry);
        entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(begin)));
        entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(size));
    };
    range(&mut dwarf.unit, root, 0, SIZE);
    let inner = dwarf.unit.add(root, gimli::DW_TAG_subprogram);
    dwarf.unit.get_mut(inner).set(gimli::DW_AT_name, AttributeValue::String(b"inner".to_vec()));
    let outer = dwarf.unit.add(root, gimli::DW_TAG_subprogram);
    dwarf.unit.get_mut(outer).set(gimli::DW_AT_name, AttributeValue::String(b"outer".to_vec()));
    range(&mut dwarf.unit, outer, 0, SIZE);
    let inlined = dwarf.unit.add(outer, gimli::DW_TAG_inlined_subroutine);
    range(&mut dwarf.unit, inlined, 16, 16);
    let entry = dwarf.unit.get_mut(inlined);
    entry.set(gimli::DW_AT_abstract_origin, AttributeValue::UnitRef(inner));
    entry.set(gimli::DW_AT_call_file, AttributeValue::FileIndex(Some(file)));
    entry.set(gimli::DW_AT_call_line, AttributeValue::Udata(11));
    let mut sections = Sections::new(EndianVec::new(LittleEndian));
    dwarf.write(&mut sections)?;
    let mut all = Vec::new();
    sections.for_each(|id, bytes| {
        // An empty one would stand in front of what has something.
        if !bytes.slice().is_empty() {
            all.push((id.name(), bytes.slice().to_vec()));
        }
        Ok(())
    })?;
    all.push((".debug_frame", call_frames(encoding)?));
    Ok(all)
}

/// Call frame information of the function: it makes a frame of two words, and takes it away again.
fn call_frames(encoding: Encoding) -> gimli::write::Result<Vec<u8>> {
    let (stack, pc, fp) = (Register(7), Register(16), Register(6));
    let mut table = FrameTable::default();
    let mut common = CommonInformationEntry::new(Encoding { version: 4, ..encoding }, 1, -8, pc);
    common.add_instruction(CallFrameInstruction::Cfa(stack, 8));
    common.add_instruction(CallFrameInstruction::Offset(pc, -8));
    let common = table.add_cie(common);
    let size = u32::try_from(SIZE).unwrap_or(0);
    let mut function = FrameDescriptionEntry::new(Address::Constant(0), size);
    function.add_instruction(4, CallFrameInstruction::RememberState);
    function.add_instruction(4, CallFrameInstruction::CfaOffset(24));
    function.add_instruction(8, CallFrameInstruction::Offset(fp, -16));
    function.add_instruction(48, CallFrameInstruction::RestoreState);
    table.add_fde(common, function);
    let mut section = gimli::write::DebugFrame(EndianVec::new(LittleEndian));
    table.write_debug_frame(&mut section)?;
    Ok(section.0.slice().to_vec())
}

/// A file of an architecture, as a linker leaves it.
fn file(architecture: Architecture, version: u16) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    object.append_section_data(text, &[0; 0x40], 16);
    object.add_symbol(Symbol {
        name: b"outer".to_vec(),
        value: 0,
        size: SIZE,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    for (name, bytes) in lines(version).unwrap_or_default() {
        let section = object.add_section(Vec::new(), name.into(), SectionKind::Debug);
        object.append_section_data(section, &bytes, 1);
    }
    let mut bytes = object.write().unwrap_or_default();
    // e_type: ET_EXEC (gABI, figure 4-3).
    if let Some(kind) = bytes.get_mut(16..18) {
        kind.copy_from_slice(&2u16.to_le_bytes());
    }
    bytes
}

/// Those that are damaged.
fn files() -> &'static [Vec<u8>; 4] {
    static FILES: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    FILES.get_or_init(|| {
        [
            (Architecture::X86_64, 4),
            (Architecture::Aarch64, 5),
            (Architecture::X86_64, 5),
            (Architecture::I386, 4),
        ]
        .map(|(architecture, version)| file(architecture, version))
    })
}

/// Asks everything of a file, also of a module's.
fn ask(bytes: Vec<u8>) -> Option<usize> {
    if let Ok(module) = ModuleFile::new(bytes.clone()) {
        let loaded = module.loaded(vec![(".text".into(), 0x1000)]);
        return loaded.frames(0x1010).ok().map(|frames| frames.len());
    }
    let symbols = Symbols::new(bytes).ok()?;
    let moved = symbols.moved(0x1000);
    let found = moved.find("outer").map_or(0, |it| it.len());
    let mut frames = 0;
    for at in (0x1000..0x1000 + SIZE).step_by(4).chain([0, u64::MAX, 0xffff_ffff_8100_0000]) {
        moved.at(at).ok();
        frames += moved.frames(at).map_or(0, |it| it.len());
        moved.line(at).ok();
        frames += usize::from(moved.call_frame(at).is_ok_and(|row| row.is_some()));
    }
    symbols.build_id();
    Some(found + frames)
}

/// A file with changes; the first byte's lowest bits choose which, and the next one whether it is as it was before it was
/// linked; 0xff that what is behind it is the file.
pub fn symbols(data: &[u8]) {
    let (choice, data) = data.split_first().unwrap_or((&0, &[]));
    if *choice == u8::MAX {
        ask(data.to_vec());
        return;
    }
    let mut bytes = files()[usize::from(choice & 3)].clone();
    if choice & 4 != 0 {
        // e_type: ET_REL.
        bytes[16] = 1;
    }
    change(&mut bytes, data);
    ask(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_whole_before() {
        for file in &files()[..3] {
            // A symbol, 16 places of which four are in an inlined function as well, and all have a frame.
            assert_eq!(ask(file.clone()), Some(1 + 16 + 4 + 16));
        }
    }
}
