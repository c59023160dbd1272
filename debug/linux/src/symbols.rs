//! A kernel's symbols, wherever they come from: by address, and by name.

use std::cmp::Reverse;

/// What a symbol is, as `nm(1)` has it, in the letter that the kernel keeps with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Code.
    Text,
    /// Data.
    Data,
    /// A number, or an offset in each processor's own data: not a place in the kernel's image.
    Absolute,
}

/// A symbol that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, guest-virtual; of [`Kind::Absolute`], the number.
    pub address: u64,
    /// What it is.
    pub kind: Kind,
    /// All of the kernel sees it.
    pub is_global: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// Where its name is among all names.
    from: u32,
    length: u16,
    kind: Kind,
    is_global: bool,
}

/// Symbols.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    names: String,
    /// In the order of their addresses: those in the image, and then numbers.
    entries: Vec<Entry>,
    /// How many are in the image.
    placed: usize,
    /// Where each is, in the order of their names.
    by_name: Vec<u32>,
}

/// Collects symbols.
#[derive(Debug, Default)]
pub struct Builder(Symbols);

impl Builder {
    /// Adds one. One whose name does not fit a table of 4 GiB, or is longer than 64 KiB, is left out.
    pub fn add(&mut self, symbol: Symbol<'_>) {
        let Symbol { name, address, kind, is_global } = symbol;
        let (Ok(from), Ok(length)) = (u32::try_from(self.0.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.0.names.push_str(name);
        self.0.entries.push(Entry { address, from, length, kind, is_global });
    }

    /// All of them.
    pub fn finish(self) -> Symbols {
        let Symbols { names, mut entries, .. } = self.0;
        let name = |entry: &Entry| &names[entry.from as usize..][..usize::from(entry.length)];
        // Of several at one address the last is told: code rather than data, what somebody has named rather than where the
        // linker says that something begins or ends, what all see rather than what one file does, and then what comes
        // first in the alphabet.
        // They come nearly sorted, which this makes use of.
        entries.sort_by(|one, other| {
            let place = |it: &Entry| (it.kind == Kind::Absolute, it.address);
            let rank = |it: &Entry| (it.kind == Kind::Text, !is_bound(name(it)), it.is_global);
            let by_rank = || rank(one).cmp(&rank(other));
            let by_name = || Reverse(name(one)).cmp(&Reverse(name(other)));
            place(one).cmp(&place(other)).then_with(by_rank).then_with(by_name)
        });
        let placed = entries.partition_point(|entry| entry.kind != Kind::Absolute);
        // What names begin with tells most of them apart, and is compared at once.
        let named = |at: u32| name(&entries[at as usize]);
        let mut begins: Vec<(u128, u32)> =
            (0..).take(entries.len()).map(|at| (beginning(named(at)), at)).collect();
        begins.sort_unstable_by(|(one, at), (other, other_at)| {
            one.cmp(other).then_with(|| (named(*at), at).cmp(&(named(*other_at), other_at)))
        });
        let by_name = begins.into_iter().map(|(_, at)| at).collect();
        Symbols { names, entries, placed, by_name }
    }
}

/// The first sixteen bytes of a name, such that numbers are in the order of names: a shorter one's is less.
fn beginning(name: &str) -> u128 {
    let bytes = name.as_bytes().first_chunk().copied().unwrap_or_else(|| {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
        bytes
    });
    u128::from_be_bytes(bytes)
}

/// Whether a name is one that kernels' linker scripts have for where something begins or ends.
fn is_bound(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("__") else {
        return ["_stext", "_text", "_etext", "_end"].contains(&name);
    };
    ["start_", "stop_", "end_"].iter().any(|begin| rest.starts_with(begin))
        || ["_start", "_end", "_stop"].iter().any(|end| rest.ends_with(end))
}

impl Symbols {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all of their names.
    pub fn bytes_of_names(&self) -> usize {
        self.names.len()
    }

    fn symbol(&self, entry: &Entry) -> Symbol<'_> {
        let Entry { address, from, length, kind, is_global } = *entry;
        Symbol { name: &self.names[from as usize..][..usize::from(length)], address, kind, is_global }
    }

    /// The one that begins last at or before an address, and how many bytes there are to the next one: `u64::MAX`
    /// behind the last.
    pub fn at(&self, address: u64) -> Option<(Symbol<'_>, u64)> {
        let placed = &self.entries[..self.placed];
        let behind = placed.partition_point(|entry| entry.address <= address);
        let found = &placed[behind.checked_sub(1)?];
        let size = placed.get(behind).map_or(u64::MAX, |next| next.address - found.address);
        Some((self.symbol(found), size))
    }

    /// Those of a name: files may have their own.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Symbol<'a>> {
        let symbol = |at: &u32| self.symbol(&self.entries[*at as usize]);
        let begin = self.by_name.partition_point(|at| symbol(at).name < name);
        self.by_name[begin..].iter().map(symbol).take_while(move |it| it.name == name)
    }

    /// The address of the first of a name in the kernel's image.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.named(name).find(|it| it.kind != Kind::Absolute).map(|it| it.address)
    }

    /// All, those in the image by their addresses, and then numbers.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.entries.iter().map(|entry| self.symbol(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(all: &[(&str, u64, Kind, bool)]) -> Symbols {
        let mut builder = Builder::default();
        for &(name, address, kind, is_global) in all {
            builder.add(Symbol { name, address, kind, is_global });
        }
        builder.finish()
    }

    #[test]
    fn an_address_is_in_what_begins_before_it() {
        let symbols = symbols(&[
            ("b", 0x200, Kind::Text, false),
            ("per_cpu", 0x150, Kind::Absolute, true),
            ("a", 0x100, Kind::Text, true),
            ("of_a_file", 0x100, Kind::Text, false),
            ("__sched_text_start", 0x100, Kind::Text, true),
            ("_stext", 0x100, Kind::Text, true),
            ("c", 0x300, Kind::Data, true),
        ]);
        let at = |address| symbols.at(address).map(|(it, size)| (it.name, it.address, size));
        assert_eq!(at(0xff), None);
        assert_eq!(at(0x100), Some(("a", 0x100, 0x100)));
        assert_eq!(at(0x1ff), Some(("a", 0x100, 0x100)));
        assert_eq!(at(0x200), Some(("b", 0x200, 0x100)));
        assert_eq!(at(u64::MAX), Some(("c", 0x300, u64::MAX)));
        assert_eq!(symbols.count(), 7);
        assert_eq!(Symbols::default().at(5), None);
    }

    #[test]
    fn a_name_may_be_there_more_than_once() {
        let symbols = symbols(&[
            ("twice", 0x300, Kind::Text, false),
            ("twice", 0x100, Kind::Text, false),
            ("number", 7, Kind::Absolute, true),
            ("tw", 0x200, Kind::Data, true),
        ]);
        let named = |name| symbols.named(name).map(|it| it.address).collect::<Vec<_>>();
        assert_eq!(named("twice"), [0x100, 0x300]);
        assert_eq!(named("tw"), [0x200]);
        assert_eq!(named("number"), [7]);
        assert!(named("t").is_empty() && named("zzz").is_empty());
        assert_eq!((symbols.address("number"), symbols.address("twice")), (None, Some(0x100)));
    }
}
