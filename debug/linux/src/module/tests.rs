//! Modules in memory made here.

use super::*;
use crate::made::{self, BASE, CHAR, INT, LIST, Made, POINTER, compound};
use std::convert::Infallible;

/// A kernel's age, by how its modules keep their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Pieces,
    Layouts,
    /// It removes none.
    NeverRemoves,
}

fn types(age: Age) -> Types {
    let mut types = made::types();
    types.add("", Shape::Array(TypeId(CHAR), 24)); // 5
    compound(
        &mut types,
        "module_memory",
        24,
        &[("base", POINTER, 0), ("rw_copy", POINTER, 8), ("size", INT, 16)],
    ); // 6
    types.add("", Shape::Array(TypeId(6), 2)); // 7
    compound(
        &mut types,
        "module_layout",
        16,
        &[("base", POINTER, 0), ("size", INT, 8), ("text_size", INT, 12)],
    ); // 8
    let mut members = vec![("state", INT, 0), ("list", LIST, 8), ("name", 5, 24)];
    match age {
        Age::Layouts => members.extend([("core_layout", 8, 48), ("init_layout", 8, 64)]),
        _ => members.push(("mem", 7, 48)),
    }
    if age != Age::NeverRemoves {
        members.extend([("refcnt", INT, 96), ("source_list", LIST, 104)]);
        compound(&mut types, "module_use", 24, &[("source_list", LIST, 0), ("source", POINTER, 16)]);
    }
    compound(&mut types, "module", 120, &members);
    types
}

const HEAD: u64 = BASE;
/// Where a module is, and a use.
const fn module(number: u64) -> u64 {
    BASE + 0x1000 * (number + 1)
}
const fn a_use(number: u64) -> u64 {
    BASE + 0x800 + 0x20 * number
}

/// Three modules, of which the last is used by the others.
fn kernel(age: Age) -> Made {
    let kernel = Made::new(0x5000);
    for (number, name) in (0..).zip(["newest", "middle", "oldest"]) {
        let at = module(number);
        kernel.text(at + 24, name);
        kernel.put(at + 48, 0xffff_ffff_c000_0000 + 0x1000 * number);
        match age {
            Age::Layouts => {
                kernel.put(at + 56, 0x3000);
                kernel.put(at + 72, 0x1000 * (number & 1));
            }
            _ => {
                kernel.put(at + 64, 0x3000);
                kernel.put(at + 88, 0x1000 * (number & 1));
            }
        }
        if age != Age::NeverRemoves {
            kernel.put(at + 96, 1);
            kernel.ring(&[at + 104]);
        }
    }
    kernel.ring(&[HEAD, module(0) + 8, module(1) + 8, module(2) + 8]);
    if age != Age::NeverRemoves {
        kernel.put(module(1), (HEAD_STATE << 32) | 1);
        kernel.put(module(2) + 96, 3);
        for number in 0..2 {
            kernel.put(a_use(number) + 16, module(number));
        }
        kernel.ring(&[module(2) + 104, a_use(0), a_use(1)]);
    }
    kernel
}

/// What stands behind a state, which is half a word.
const HEAD_STATE: u64 = 0xffff_ffff;

fn modules(kernel: &Made, age: Age) -> Modules {
    let read = kernel.read();
    let layout = ModuleLayout::new(&types(age)).unwrap();
    let mut rounds = 0;
    let Ok(found) = layout.modules(HEAD, &Reader::new(&read), &mut || {
        rounds += 1;
        assert!(rounds < 100_000, "it has no end");
        Ok::<(), Infallible>(())
    });
    found.unwrap()
}

#[test]
fn modules_with_their_users() {
    for age in [Age::Pieces, Age::Layouts] {
        let found = modules(&kernel(age), age);
        assert_eq!(found.remarks, [] as [&str; 0], "{age:?}");
        let all: Vec<_> = found
            .all
            .iter()
            .map(|it| (it.name.as_str(), it.state, it.size, it.references, it.users.join(",")))
            .collect();
        let wanted = [
            ("newest", Some(ModuleState::Live), 0x3000, Some(0), String::new()),
            ("middle", Some(ModuleState::Coming), 0x4000, Some(0), String::new()),
            ("oldest", Some(ModuleState::Live), 0x3000, Some(2), "newest,middle".into()),
        ];
        assert_eq!(all, wanted, "{age:?}");
        assert_eq!(found.all[2].text, 0xffff_ffff_c000_2000);
        assert_eq!(found.all[2].address, module(2));
    }
    let found = modules(&kernel(Age::NeverRemoves), Age::NeverRemoves);
    assert_eq!(found.all.len(), 3);
    assert!(found.all.iter().all(|it| it.references.is_none() && it.users.is_empty()));
}

#[test]
fn what_is_broken_is_told() {
    let age = Age::Pieces;
    // Forwards it leads nowhere: from the end it is whole.
    let broken = kernel(age);
    broken.put(module(0) + 8, 0);
    let found = modules(&broken, age);
    assert_eq!(found.all.len(), 3);
    assert!(found.remarks[0].contains("a list is broken"), "{:?}", found.remarks);
    // A user that is nowhere.
    let broken = kernel(age);
    broken.put(a_use(0) + 16, 0x1000);
    let found = modules(&broken, age);
    assert_eq!(found.all[2].users, ["middle"]);
    assert_eq!(found.remarks.len(), 1);
    // One that ends where memory does.
    let broken = kernel(age);
    let last = BASE + 0x5000 - 0x20;
    broken.ring(&[HEAD, module(0) + 8, last]);
    let found = modules(&broken, age);
    assert_eq!((found.all.len(), found.remarks.len()), (1, 1), "{found:?}");
    // A state of none, a number of references that is less than the kernel's own, and sizes beyond all memory.
    let odd = kernel(age);
    odd.put(module(0), 0x77);
    odd.put(module(0) + 96, 0);
    let found = modules(&odd, age);
    assert_eq!((found.all[0].state, found.all[0].references), (None, Some(0)));
    // Not even the list.
    let empty = Made::new(4);
    let read = empty.read();
    let Ok(found) = ModuleLayout::new(&types(age))
        .unwrap()
        .modules(HEAD, &Reader::new(&read), &mut || Ok::<(), Infallible>(()));
    assert_eq!(found, Err(ModuleError::NotThere(NotThere(BASE + 4))));
}

#[test]
fn a_list_without_an_end_has_one() {
    let count = MOST as u64 + 100;
    let kernel = Made::new(usize::try_from(0x100 * (count + 2)).unwrap());
    let nodes: Vec<u64> = std::iter::once(HEAD).chain((1..=count).map(|at| BASE + 0x100 * at + 8)).collect();
    kernel.ring(&nodes);
    let found = modules(&kernel, Age::NeverRemoves);
    assert_eq!(found.all.len(), MOST);
    assert!(found.remarks[0].contains("there may be more"));
}

#[test]
fn whoever_wants_no_more_is_asked_for_each() {
    let kernel = kernel(Age::Pieces);
    let read = kernel.read();
    let layout = ModuleLayout::new(&types(Age::Pieces)).unwrap();
    let mut left = 2;
    let found = layout.modules(HEAD, &Reader::new(&read), &mut || {
        left -= 1;
        if left == 0 { Err("enough") } else { Ok(()) }
    });
    assert_eq!(found, Err("enough"));
}

#[test]
fn without_types_it_says_which() {
    let why = |types: &Types| ModuleLayout::new(types).unwrap_err().to_string();
    assert_eq!(why(&made::types()), "the kernel's types do not have struct module");
    let mut bare = made::types();
    compound(&mut bare, "module", 8, &[("list", LIST, 0), ("name", CHAR, 0), ("state", INT, 0)]);
    assert_eq!(why(&bare), "the kernel's types do not have struct module's mem, nor its core_layout");
}

/// How a kernel keeps modules' sections: until 5.7, until 6.13, and from then on.
const SECTION_AGES: [&str; 3] = ["named", "counted", "listed"];

/// `struct module` with its sections, and what these are made of.
fn with_sections(age: &str) -> Types {
    let mut types = made::types();
    types.add("", Shape::Array(TypeId(CHAR), 24)); // 5
    compound(
        &mut types,
        "module_layout",
        16,
        &[("base", POINTER, 0), ("size", INT, 8), ("text_size", INT, 12)],
    ); // 6
    compound(&mut types, "attribute", 8, &[("name", POINTER, 0)]); // 7
    compound(&mut types, "bin_attribute", 24, &[("attr", 7, 0), ("private", POINTER, 16)]); // 8
    compound(&mut types, "attribute_group", 16, &[("bin_attrs", POINTER, 8)]); // 9
    let one = match age {
        "named" => {
            let members = [("mattr", 7, 0), ("name", POINTER, 8), ("address", POINTER, 16)];
            compound(&mut types, "module_sect_attr", 24, &members); // 10
            10
        }
        "counted" => {
            compound(&mut types, "module_sect_attr", 32, &[("battr", 8, 0), ("address", POINTER, 24)]); // 10
            10
        }
        _ => 8,
    };
    let array = u32::try_from(types.count()).unwrap();
    types.add("", Shape::Array(TypeId(one), 0));
    let members = [("grp", 9, 0), ("nsections", INT, 16), ("attrs", array, 24)];
    let members = if age == "listed" { vec![members[0], members[2]] } else { members.to_vec() };
    compound(&mut types, "module_sect_attrs", 24, &members);
    let members = [
        ("state", INT, 0),
        ("list", LIST, 8),
        ("name", 5, 24),
        ("core_layout", 6, 48),
        ("init_layout", 6, 64),
        ("sect_attrs", POINTER, 80),
    ];
    compound(&mut types, "module", 88, &members);
    types
}

/// Where the table is, the list, and names.
const TABLE: u64 = BASE + 0x400;
const LISTED: u64 = BASE + 0x600;
const NAMES: u64 = BASE + 0x700;

/// A module with these sections.
fn of_sections(age: &str, all: &[(&str, u64)]) -> Made {
    let kernel = Made::new(0x5000);
    kernel.ring(&[HEAD, module(0) + 8]);
    kernel.put(module(0) + 80, TABLE);
    kernel.put(TABLE + 8, LISTED);
    if age != "listed" {
        kernel.put(TABLE + 16, all.len() as u64);
    }
    let (each, name, address) = match age {
        "named" => (24, 8, 16),
        "counted" => (32, 0, 24),
        _ => (24, 0, 16),
    };
    for (index, (text, at)) in (0..).zip(all) {
        let one = TABLE + 24 + each * index;
        kernel.put(LISTED + 8 * index, one);
        kernel.text(NAMES + 0x20 * index, text);
        kernel.put(one + name, NAMES + 0x20 * index);
        kernel.put(one + address, *at);
    }
    kernel
}

fn sections(kernel: &Made, age: &str) -> Result<Vec<(String, u64)>, ModuleError> {
    let (read, layout) = (kernel.read(), ModuleLayout::new(&with_sections(age)).unwrap());
    let reader = Reader::new(&read);
    let Ok(found) = layout.modules(HEAD, &reader, &mut || Ok::<(), Infallible>(()));
    let all = layout.sections(&found.unwrap().all[0], &reader)?;
    Ok(all.into_iter().map(|section| (section.name, section.address)).collect())
}

#[test]
fn sections_as_kernels_of_all_ages_keep_them() {
    for age in SECTION_AGES {
        let all = [(".text", 0xffff_ffff_c000_0000), (".data", 0xffff_ffff_c000_4000), (".b\u{1b}s", 7)];
        let found = sections(&of_sections(age, &all), age).unwrap();
        let wanted = [(".text".to_string(), all[0].1), (".data".into(), all[1].1), (".b\u{fffd}s".into(), 7)];
        assert_eq!(found, wanted, "{age}");
        // It keeps none; they are nowhere; there are more than any module has.
        let none = of_sections(age, &all);
        none.put(module(0) + 80, 0);
        assert_eq!(sections(&none, age).unwrap(), []);
        let nowhere = of_sections(age, &all);
        nowhere.put(module(0) + 80, 0x1000);
        assert!(matches!(sections(&nowhere, age), Err(ModuleError::NotThere(_))), "{age}");
    }
    let endless = of_sections("counted", &[(".text", 1)]);
    endless.put(TABLE + 16, u64::MAX);
    assert!(matches!(sections(&endless, "counted"), Err(ModuleError::NotThere(_))));
    let round = of_sections("listed", &[(".text", 1)]);
    round.put(TABLE + 8, BASE + 0x2000);
    (0..0x500).for_each(|index| round.put(BASE + 0x2000 + 8 * index, TABLE + 24));
    assert_eq!(sections(&round, "listed").unwrap().len(), 1024);
    let lacks = ModuleLayout::new(&types(Age::Pieces)).unwrap();
    let read = round.read();
    let found = modules(&kernel(Age::Pieces), Age::Pieces);
    assert_eq!(
        lacks.sections(&found.all[0], &Reader::new(&read)),
        Err(ModuleError::Lacks("struct module_sect_attrs"))
    );
}

#[test]
fn what_tells_a_modules_build_is_in_its_notes() {
    let memory = Made::new(0x100);
    let sections = |name: &str| vec![Section { name: name.into(), address: BASE + 0x10 }];
    let told = |sections: &[Section]| {
        let read = memory.read();
        build_id(sections, &Reader::new(&read))
    };
    let put = |words: [u64; 2]| {
        words.into_iter().zip([0, 8]).for_each(|(word, at)| memory.put(BASE + 0x10 + at, word))
    };
    let gnu = u64::from(u32::from_le_bytes(*b"GNU\0"));
    put([4 << 32 | 4, gnu << 32 | 3]);
    memory.put(BASE + 0x20, 0x1234_abcd);
    let note = sections(".note.gnu.build-id");
    assert_eq!(told(&note), Ok(Some("cdab3412".into())));
    assert_eq!(told(&sections(".text")), Ok(None));
    // Of somebody else's, of another kind, and longer than any.
    for (at, word) in [(0x1c, 0), (0x18, gnu << 32 | 4), (0x10, 100 << 32 | 4), (0x10, 4)] {
        let before = [BASE + 0x10, BASE + 0x18].map(|at| {
            let read = memory.read();
            Reader::new(&read).address(at).unwrap()
        });
        memory.put(BASE + at, word);
        assert_eq!(told(&note), Ok(None), "{at:#x} {word:#x}");
        put(before);
    }
    let nowhere = vec![Section { name: ".note.gnu.build-id".into(), address: 0x10 }];
    assert!(told(&nowhere).is_err());
}
