//! Memory and types of a kernel, made for tests.

use crate::types::{Member, Shape, TypeId, Types};
use std::cell::RefCell;

/// Where it is.
pub const BASE: u64 = 0xffff_8000_0000_0000;

/// Memory from [`BASE`] on.
pub struct Made(RefCell<Vec<u8>>);

impl Made {
    pub fn new(size: usize) -> Made {
        Made(RefCell::new(vec![0; size]))
    }

    pub fn byte(&self, at: u64, byte: u8) {
        self.0.borrow_mut()[usize::try_from(at - BASE).unwrap()] = byte;
    }

    pub fn put(&self, at: u64, word: u64) {
        (at..).zip(word.to_le_bytes()).for_each(|(at, byte)| self.byte(at, byte));
    }

    pub fn text(&self, at: u64, text: &str) {
        (at..).zip(text.bytes()).for_each(|(at, byte)| self.byte(at, byte));
    }

    /// Links lists' members, the first behind the last.
    pub fn ring(&self, nodes: &[u64]) {
        for (index, node) in nodes.iter().enumerate() {
            let next = nodes[(index + 1) % nodes.len()];
            self.put(*node, next);
            self.put(next + 8, *node);
        }
    }

    /// Reads it.
    pub fn read(&self) -> impl Fn(u64, &mut [u8]) -> usize + '_ {
        |at: u64, bytes: &mut [u8]| {
            let memory = self.0.borrow();
            let from = usize::try_from(at.wrapping_sub(BASE)).unwrap_or(usize::MAX);
            let rest = memory.get(from..).unwrap_or_default();
            let count = rest.len().min(bytes.len());
            bytes[..count].copy_from_slice(&rest[..count]);
            count
        }
    }
}

/// `unsigned int`, in [`types`].
pub const INT: u32 = 1;
/// `char`.
pub const CHAR: u32 = 2;
/// An address.
pub const POINTER: u32 = 3;
/// `struct list_head`.
pub const LIST: u32 = 4;

/// The types that everything is made of; the next one is number 5.
pub fn types() -> Types {
    let mut types = Types::new(8);
    types.add("unsigned int", Shape::Integer { size: 4, is_signed: false, is_bool: false });
    types.add("char", Shape::Integer { size: 1, is_signed: true, is_bool: false });
    types.add("", Shape::Pointer(TypeId::VOID));
    compound(&mut types, "list_head", 16, &[("next", POINTER, 0), ("prev", POINTER, 8)]);
    types
}

/// Adds a structure: each member's name, type, and where it begins.
pub fn compound(types: &mut Types, name: &str, size: u32, members: &[(&str, u32, u32)]) {
    let member = |&(name, of, at): &(&str, u32, u32)| Member {
        name: name.into(),
        of: TypeId(of),
        at: at * 8,
        bits: None,
    };
    let members = types.add_members(members.iter().map(member));
    types.add(name, Shape::Compound { size, is_union: false, members });
}
