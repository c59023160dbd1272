//! A table of symbols: by address, and by name.

use super::MOST_FOUND;
use super::symbol::{Role, Symbol};
use std::cmp::Reverse;

/// A symbol as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: Box<str>,
    /// As linked.
    pub address: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// It reaches no further than this: the end of its section, and where its size is not known the next symbol.
    pub end: u64,
    pub role: Role,
    pub is_global: bool,
}

impl Entry {
    /// As it is told, of a kernel that has moved.
    pub fn symbol(&self, slide: u64, offset: u64) -> Symbol {
        let slide = if self.role.is_placed() { slide } else { 0 };
        Symbol {
            name: self.name.to_string(),
            address: self.address.wrapping_add(slide),
            size: self.size,
            offset,
            role: self.role,
            module: None,
        }
    }

    fn holds(&self, address: u64) -> bool {
        (self.address..self.end).contains(&address)
    }
}

/// All symbols of a file.
#[derive(Debug)]
pub(super) struct Table {
    /// In the order of their addresses: first those that have none of their own.
    entries: Vec<Entry>,
    /// How many of those there are.
    placeless: usize,
    /// Where each is, in the order of their names.
    by_name: Vec<u32>,
}

impl Table {
    pub fn new(mut entries: Vec<Entry>) -> Table {
        // Of several at one address the last is told: a function rather than a label, what all files see rather than
        // what one does, and then what comes first in the alphabet.
        entries.sort_by(|one, other| {
            let key = |it: &Entry| {
                (it.role.is_placed(), it.address, it.size != 0, it.role == Role::Function, it.is_global)
            };
            key(one).cmp(&key(other)).then_with(|| Reverse(&one.name).cmp(&Reverse(&other.name)))
        });
        let placeless = entries.partition_point(|entry| !entry.role.is_placed());
        let mut next = u64::MAX;
        for at in (placeless..entries.len()).rev() {
            let begin = entries[at].address;
            if let Some(behind) = entries.get(at + 1).filter(|behind| behind.address != begin) {
                next = behind.address;
            }
            let entry = &mut entries[at];
            let end = match entry.size {
                0 => next,
                size => begin.saturating_add(size),
            };
            entry.end = entry.end.min(end);
        }
        let mut by_name: Vec<u32> = (0..u32::try_from(entries.len()).unwrap_or(u32::MAX)).collect();
        by_name.sort_by_key(|at| (&entries[*at as usize].name, *at));
        Table { entries, placeless, by_name }
    }

    /// Those of a name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        let name_of = |at: &u32| &*self.entries[*at as usize].name;
        let begin = self.by_name.partition_point(|at| name_of(at) < name);
        let rest = self.by_name[begin..].iter().take_while(move |at| name_of(at) == name);
        rest.take(MOST_FOUND).map(|at| &self.entries[*at as usize])
    }

    #[cfg(test)]
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.name)
    }

    /// The one that an address is in: of several that begin before it, the one that begins last.
    pub fn at(&self, address: u64) -> Option<&Entry> {
        /// Labels within a function that do not reach an address, of those before it that are looked at.
        const MOST_LOOKED_AT: usize = 256;
        let placed = &self.entries[self.placeless..];
        let behind = placed.partition_point(|entry| entry.address <= address);
        placed[..behind].iter().rev().take(MOST_LOOKED_AT).find(|entry| entry.holds(address))
    }
}
