//! Where the kernel keeps its modules' types: a list of which each member leads to a module, and to what was read of it.
//!
//! Source: Linux from 5.11 on, `kernel/bpf/btf.c` (`btf_modules`, `struct btf_module`, `struct btf`).

use crate::list::linked;
use crate::reader::{NotThere, Reader};
use crate::types::{Field, Types};

/// Modules that are looked at, at most.
const MOST: usize = 1 << 14;

/// Types of a module, as bytes in the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the module's `struct module` is.
    pub module: u64,
    /// Where its types are.
    pub data: u64,
    /// Bytes of them.
    pub size: u64,
}

/// How the list is made.
#[derive(Debug)]
pub struct Layout {
    list: Field,
    module: Field,
    types: Field,
    data: Field,
    size: Field,
    /// The number of the first type of its own.
    first: Option<Field>,
    /// How many the kernel has.
    count: u64,
}

impl Layout {
    /// By the kernel's types; `None` of a kernel that keeps none of modules (`CONFIG_DEBUG_INFO_BTF_MODULES`).
    pub fn new(types: &Types) -> Option<Layout> {
        let (module, btf) = (types.tagged("btf_module")?, types.tagged("btf")?);
        Some(Layout {
            list: types.field(module, "list")?,
            module: types.field(module, "module")?,
            types: types.field(module, "btf")?,
            data: types.field(btf, "data")?,
            size: types.field(btf, "data_size")?,
            first: types.field(btf, "start_id"),
            count: types.count() as u64,
        })
    }

    /// All of them, by the list that `head` (`btf_modules`) is the head of; and what could not be had, a line each.
    pub fn places(&self, head: u64, reader: &Reader<'_>) -> (Vec<Place>, Vec<String>) {
        let (members, mut remarks) = linked(head, reader, MOST);
        let mut places = Vec::new();
        for member in members {
            match self.place(member.wrapping_sub(self.list.at), reader) {
                Ok(Some(place)) => places.push(place),
                // They stand on other types than the kernel's.
                Ok(None) => {}
                Err(error) => {
                    crate::list::remark(&mut remarks, format!("a module's types are left out: {error}"));
                }
            }
        }
        (places, remarks)
    }

    fn place(&self, member: u64, reader: &Reader<'_>) -> Result<Option<Place>, NotThere> {
        let (module, types) = (reader.field(member, self.module)?, reader.field(member, self.types)?);
        let (data, size) = (reader.field(types, self.data)?, reader.field(types, self.size)?);
        let first = self.first.map_or(Ok(self.count), |first| reader.field(types, first))?;
        Ok((first == self.count).then_some(Place { module, data, size }))
    }
}
