//! Stacks by what a file says of frames, over memory of any kind; and a module's types on the kernel's.

use super::change;
use debug::linux::Types;
use debug::linux::btf::{self, modules};
use debug::linux::reader::Reader;
use debug::linux::typed::{Comparison, make};
use debug::linux::types::{Shape, TypeId};
use debug::linux::unwind::cfi::{self, Row, Rule};
use debug::linux::unwind::{Stack, Start, frame_pointer, orc};
use std::sync::Arc;

/// Where memory is.
const BASE: u64 = 0xffff_8000_0000_0000;

/// Types in the kernel's format, one behind the other, with names that count on from others'.
#[derive(Default)]
struct Blob {
    types: Vec<u8>,
    names: Vec<u8>,
    /// Bytes of names in front of its own.
    before: u32,
}

impl Blob {
    fn name(&mut self, name: &str) -> u32 {
        let at = self.before + u32::try_from(self.names.len()).unwrap_or(0);
        self.names.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, kind: u32, size: u32, rest: &[u32]) {
        let head = [self.name(name), kind, size];
        self.types.extend(head.iter().chain(rest).flat_map(|word| word.to_le_bytes()));
    }

    /// Members of eight bytes each, of one type.
    fn structure(&mut self, name: &str, of: u32, members: &[&str]) {
        self.structure_of(name, (of, 8), members);
    }

    /// Members of one type, and of so many bytes.
    fn structure_of(&mut self, name: &str, (of, bytes): (u32, u32), members: &[&str]) {
        let member = |(at, name): (u32, &&str)| [self.name(name), of, at * 8 * bytes];
        let rest: Vec<u32> = (0..).zip(members).flat_map(member).collect();
        let count = u32::try_from(members.len()).unwrap_or(0);
        self.add(name, 4 << 24 | count, count * bytes, &rest);
    }

    fn whole(&self) -> Vec<u8> {
        let [types, names] = [&self.types, &self.names].map(|part| u32::try_from(part.len()).unwrap_or(0));
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        bytes.extend([24, 0, types, types, names].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(&self.types);
        bytes.extend(&self.names);
        bytes
    }
}

/// The kernel's types: what stacks are unwound by, and what modules' types are found by.
fn kernel() -> Vec<u8> {
    let mut blob = Blob::default();
    blob.name("");
    blob.add("unsigned long", 1 << 24, 8, &[64]);
    blob.add("char", 1 << 24, 1, &[8]);
    blob.structure(
        "pt_regs",
        1,
        &["ip", "cs", "sp", "bp", "r10", "r13", "di", "dx", "regs", "pc", "pstate", "stackframe"],
    );
    blob.structure_of("orc_entry", (2, 1), &["sp_offset", "bp_offset", "sp_reg", "bp_reg", "type"]);
    blob.structure("item", 1, &["id", "other"]);
    blob.structure("btf_module", 1, &["list", "module", "btf"]);
    blob.structure("btf", 1, &["data", "data_size", "start_id"]);
    blob.whole()
}

/// A module's: a structure of its own, two of one name, and one that leads round to itself.
fn module(base: &Types, names: &[u8]) -> Vec<u8> {
    let before = u32::try_from(names.len()).unwrap_or(0);
    let first = u32::try_from(base.count()).unwrap_or(0);
    let mut blob = Blob { before, ..Blob::default() };
    blob.structure("item", 1, &["number"]);
    blob.structure("pair", first, &["one", "two"]);
    blob.structure("pair", 1, &["one", "two"]);
    blob.add("", 2 << 24, first + 4, &[]);
    blob.add("round", 8 << 24, first + 4, &[]);
    blob.whole()
}

/// Types of a module with changes, which stand on the kernel's.
pub fn module_types(data: &[u8]) {
    let bytes = kernel();
    let (Ok(base), Ok(names)) = (btf::types(&bytes), btf::names(&bytes)) else { return };
    let base = Arc::new(base);
    let mut split = module(&base, names);
    change(&mut split, data);
    let Ok(types) = btf::split(&split, Arc::clone(&base), names) else { return };
    assert!(types.count() >= base.count());
    for id in (0..types.count()).filter_map(|id| u32::try_from(id).ok()).map(TypeId) {
        types.size(id);
        types.part(id, "one.number.id");
        make(&types, id);
    }
    let mut comparison = Comparison::new(&|| true);
    for name in ["item", "pair", "round", "btf"] {
        let Ok(all) = comparison.all_by_name(&types, &["struct", name]) else { return };
        assert!(all.iter().all(|id| matches!(types.shape(*id), Shape::Compound { .. })));
        for (one, other) in all.iter().zip(base.all_tagged(name)) {
            if comparison.is_same((&types, *one), (&*base, *other)).is_err() {
                return;
            }
        }
        if comparison.all_by_name(&types, &[name]).is_err() {
            return;
        }
    }
    // What leads to them, over memory that is the same bytes.
    let read = |at: u64, bytes: &mut [u8]| copy(data, at, bytes);
    if let Some(layout) = modules::Layout::new(&types) {
        layout.places(BASE, &Reader::new(&read));
    }
}

fn copy(memory: &[u8], at: u64, bytes: &mut [u8]) -> usize {
    let from = usize::try_from(at.wrapping_sub(BASE)).unwrap_or(usize::MAX);
    let rest = memory.get(from..).unwrap_or_default();
    let count = rest.len().min(bytes.len());
    bytes[..count].copy_from_slice(&rest[..count]);
    count
}

/// What is said of an address: as eight bytes from somewhere have it.
fn row(data: &[u8], pc: u64) -> Option<Row> {
    let at = usize::try_from(pc & 0x38).ok()?;
    let bytes: [u8; 8] = data.get(at..at + 8)?.try_into().ok()?;
    let rule = |kind: u8, value: u8| match kind & 7 {
        0 => Rule::Same,
        1 => Rule::Lost,
        2 => Rule::Address(i64::from(value.cast_signed()) << (kind >> 3 & 0x1f) << 30),
        3 => Rule::Register(u16::from(value & 0x3f)),
        _ => Rule::Saved(i64::from(value.cast_signed()) << (kind >> 3 & 7)),
    };
    let [register, offset, pc_kind, pc_value, fp_kind, fp_value, is_there, _] = bytes;
    let frame = (u16::from(register & 0x3f), i64::from(offset.cast_signed()) * 8);
    (is_there & 1 == 0).then(|| Row { frame, pc: rule(pc_kind, pc_value), fp: rule(fp_kind, fp_value) })
}

/// Both architectures' stacks, of which the first bytes say what a file says and the others are memory.
fn stacks(data: &[u8]) -> Vec<Stack> {
    let Ok(types) = btf::types(&kernel()) else { return Vec::new() };
    let memory = data.get(64..).unwrap_or_default();
    let read = |at: u64, bytes: &mut [u8]| copy(memory, at, bytes);
    let reader = Reader::new(&read);
    let start = Start {
        pc: BASE,
        sp: BASE,
        fp: BASE + 0x20,
        link: Some(BASE + 8),
        general: Some([BASE; 16]),
        is_exact: true,
        is_guessed: false,
    };
    let rows: &cfi::CallFrames<'_> = &|pc| row(data, pc);
    let mut all = Vec::new();
    if let Ok(layout) = orc::Layout::new(&types) {
        all.push(layout.stack(start, |_| None, rows, &reader));
    }
    if let Ok(layout) = frame_pointer::Layout::new(&types, 0) {
        all.push(layout.stack(start, |pc| Some(pc & !0x3f), rows, &reader));
    }
    all
}

/// Stacks by whatever a file says.
pub fn call_frames(data: &[u8]) {
    assert!(stacks(data).iter().all(|stack| (1..=512).contains(&stack.frames.len())));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nothing was changed in is found: or else nothing is fuzzed.
    #[test]
    fn what_is_whole_is_found() {
        let bytes = kernel();
        let base = Arc::new(btf::types(&bytes).unwrap());
        let names = btf::names(&bytes).unwrap();
        let types = btf::split(&module(&base, names), Arc::clone(&base), names).unwrap();
        assert_eq!(types.count(), base.count() + 5);
        let pairs = Comparison::new(&|| true).all_by_name(&types, &["struct", "pair"]);
        assert_eq!(pairs.unwrap().len(), 2);
        assert!(modules::Layout::new(&types).is_some());
        // Where it goes on is in front of the frame.
        let mut data = [7, 1, 4, 0xf8, 0, 0, 0, 0].repeat(8);
        for word in [BASE + 0x10, BASE + 0x20, BASE + 0x30] {
            data.extend(word.to_le_bytes());
        }
        let all = stacks(&data);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].frames.iter().map(|it| it.pc - BASE).collect::<Vec<_>>(), [0, 0x10, 0x20, 0x30]);
    }
}
