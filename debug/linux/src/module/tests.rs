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
