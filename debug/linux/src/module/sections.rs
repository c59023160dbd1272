//! Where a module's sections are, as the kernel keeps them for `/sys/module/NAME/sections`.
//!
//! Source: Linux, `kernel/module/sysfs.c` (before 5.19 `kernel/module.c`), `struct module_sect_attrs`: until 5.7 and until
//! 6.13 an array of its own, with a name or an attribute that has one; from 6.14 on attributes alone, to which a list
//! leads that ends with a zero.

use crate::name;
use crate::reader::{NotThere, Reader};
use crate::types::{Field, Shape, TypeId, Types};

/// A section of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, which may do nothing to a terminal.
    pub name: String,
    /// Where it is, guest-virtual.
    pub address: u64,
}

/// The section that has what tells a module's build from others.
const BUILD_ID: &str = ".note.gnu.build-id";
/// `NT_GNU_BUILD_ID`, of `GNU` with its zero, behind which there are some tens of bytes at most.
const KIND: u64 = 3;
const MOST_OF_ID: u64 = 64;

/// What tells a module's build from others, in hexadecimal, by its sections; `None` of one that has no such note.
///
/// # Errors
/// [`NotThere`].
pub fn build_id(sections: &[Section], reader: &Reader<'_>) -> Result<Option<String>, NotThere> {
    let Some(note) = sections.iter().find(|section| section.name == BUILD_ID) else { return Ok(None) };
    let word = |index: u64| reader.number(note.address.wrapping_add(4 * index), 4);
    let (name, length, kind, whose) = (word(0)?, word(1)?, word(2)?, word(3)?);
    let is_one = (name, kind, whose) == (4, KIND, u32::from_le_bytes(*b"GNU\0").into());
    if !is_one || !(1..=MOST_OF_ID).contains(&length) {
        return Ok(None);
    }
    let mut id = vec![0; usize::try_from(length).unwrap_or(0)];
    reader.bytes(note.address.wrapping_add(16), &mut id)?;
    Ok(Some(id.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Sections that are looked at of one module, at most: with a section for each function there are some hundreds.
const MOST: u64 = 1 << 10;
/// Bytes of a name, at most.
const LONGEST: u64 = 64;

/// How many there are.
#[derive(Debug)]
enum Places {
    /// An array: its length, where it begins, and bytes of each.
    Array { count: Field, first: u64, each: u64 },
    /// Addresses, at an address.
    List(Field),
}

/// Where a module has its sections.
#[derive(Debug)]
pub(super) struct Layout {
    /// Of `struct module`: where the rest is.
    table: Field,
    places: Places,
    /// Of each: where its name is, and its address.
    name: Field,
    address: Field,
}

impl Layout {
    pub fn new(types: &Types, module: TypeId) -> Option<Layout> {
        let (table, all) = (types.field(module, "sect_attrs")?, types.tagged("module_sect_attrs")?);
        let attributes = types.part(all, "attrs")?;
        let Shape::Array(one, _) = *types.shape(types.plain(attributes.of)) else { return None };
        let field = |path: &str| types.field(one, path);
        let (places, name, address) = match types.field(all, "nsections") {
            Some(count) => {
                let places = Places::Array { count, first: attributes.offset()?, each: types.size(one)? };
                (places, field("battr.attr.name").or_else(|| field("name"))?, field("address")?)
            }
            None => {
                (Places::List(types.field(all, "grp.bin_attrs")?), field("attr.name")?, field("private")?)
            }
        };
        Some(Layout { table, places, name, address })
    }

    /// All of a module's; none where it keeps none. What is not there ends them.
    pub fn read(&self, module: u64, reader: &Reader<'_>) -> Result<Vec<Section>, NotThere> {
        let table = reader.field(module, self.table)?;
        if table == 0 {
            return Ok(Vec::new());
        }
        let (count, list) = match &self.places {
            Places::Array { count, .. } => (reader.field(table, *count)?, 0),
            Places::List(list) => (MOST, reader.field(table, *list)?),
        };
        let mut all = Vec::new();
        for index in 0..count.min(MOST) {
            let at = match &self.places {
                Places::Array { first, each, .. } => {
                    table.wrapping_add(*first).wrapping_add(each.wrapping_mul(index))
                }
                Places::List(_) => match reader.address(list.wrapping_add(index * 8))? {
                    0 => break,
                    at => at,
                },
            };
            let name = name::at(reader, reader.field(at, self.name)?, LONGEST)?;
            all.push(Section { name, address: reader.field(at, self.address)? });
        }
        Ok(all)
    }
}
