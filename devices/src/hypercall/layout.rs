//! Where a structure's fields are, as each caller's architecture has them.

use super::table::{Field, Kind, Table, Width};
use arch::hypercall::Abi;

impl Table {
    /// Bytes and alignment of a kind in a structure.
    pub fn layout(&self, kind: &Kind, abi: Abi) -> (usize, usize) {
        let width = |width: Width| match width {
            Width::Bytes(8) => (8, abi.alignment_of_u64()),
            Width::Bytes(size) => (size, size),
            Width::Word => (abi.word(), abi.word()),
            Width::Aligned8 => (8, 8),
        };
        match kind {
            Kind::Integer { width: wide, .. } | Kind::Pointer { width: wide, .. } => width(*wide),
            Kind::Chars(count) => (*count, 1),
            Kind::Array(kind, count) => {
                let (size, alignment) = self.layout(kind, abi);
                (size * count, alignment)
            }
            Kind::Struct(name) => self.layout_of(name, abi),
            Kind::Union { cases, .. } => {
                let sizes = cases.iter().map(|(_, name)| self.layout_of(name, abi));
                let (size, alignment) =
                    sizes.fold((0, 1), |(most, widest), (size, align)| (most.max(size), widest.max(align)));
                (size.next_multiple_of(alignment), alignment)
            }
            Kind::Text(_) | Kind::Calls(_) | Kind::Ops(_) | Kind::Control(_) => (abi.word(), abi.word()),
        }
    }

    /// Bytes and alignment of a structure.
    pub fn layout_of(&self, name: &str, abi: Abi) -> (usize, usize) {
        let (mut end, mut widest) = (0, 1);
        for (_, at, size, alignment) in self.places(name, abi) {
            (end, widest) = (at + size, widest.max(alignment));
        }
        (end.next_multiple_of(widest), widest)
    }

    /// A structure's fields, with offset, size and alignment.
    pub fn places(&self, name: &str, abi: Abi) -> Vec<(&Field, usize, usize, usize)> {
        let mut places = Vec::new();
        let mut end: usize = 0;
        for field in self.fields(name) {
            let (size, alignment) = self.layout(&field.kind, abi);
            let at = end.next_multiple_of(alignment);
            end = at + size;
            places.push((field, at, size, alignment));
        }
        places
    }
}
