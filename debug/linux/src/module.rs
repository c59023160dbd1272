//! A kernel's modules: code that was loaded into it.
//!
//! Source: Linux, `include/linux/module.h` (`struct module`, `struct module_memory`, `struct module_use`), and
//! `kernel/module/procfs.c`, which tells user space of them.

mod sections;
mod symbols;

pub use sections::{Section, build_id};

use crate::list::{Ring, remark};
use crate::name;
use crate::reader::{NotThere, Reader};
use crate::symbols::Symbols;
use crate::types::{Field, Shape, TypeId, Types};
use crate::unwind::orc::Table;

/// How far a module has come, `enum module_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleState {
    /// It is there.
    Live,
    /// It is being loaded: its initialization runs.
    Coming,
    /// It is being removed.
    Going,
    /// It is being set up, and none of it runs.
    Unformed,
}

impl ModuleState {
    /// In a word, as the kernel has it.
    pub fn word(self) -> &'static str {
        match self {
            ModuleState::Live => "live",
            ModuleState::Coming => "coming",
            ModuleState::Going => "going",
            ModuleState::Unformed => "unformed",
        }
    }
}

/// A module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where its `struct module` is.
    pub address: u64,
    /// Its name, which may do nothing to a terminal.
    pub name: String,
    /// How far it has come; `None` where that is no number of the kernel's.
    pub state: Option<ModuleState>,
    /// Where its code is.
    pub text: u64,
    /// Bytes of that.
    pub text_size: u64,
    /// Where the code is that it begins with, and its bytes: none any more once it is live.
    pub init: (u64, u64),
    /// Where all of it is that is in memory: pieces, with their bytes.
    pub memory: Vec<(u64, u64)>,
    /// x86: what its stacks are unwound by, if the kernel does so.
    pub orc: Option<Table>,
    /// Bytes of all of it that are in memory.
    pub size: u64,
    /// Who uses it, modules among them; `None` where the kernel removes none (`CONFIG_MODULE_UNLOAD`), or does not
    /// tell.
    pub references: Option<u32>,
    /// Modules that use it.
    pub users: Vec<String>,
}

impl Module {
    /// Whether an address is in its memory.
    pub fn holds(&self, address: u64) -> bool {
        self.memory.iter().any(|(begin, size)| address.wrapping_sub(*begin) < *size)
    }
}

/// Modules that were found, the newest first, as the kernel lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// Each of them.
    pub all: Vec<Module>,
    /// What of them could not be had, a line each.
    pub remarks: Vec<String>,
}

/// Why no modules are found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The kernel's types have no such member.
    #[error("the kernel's types do not have {0}")]
    Lacks(&'static str),
    /// The list is not there.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

/// Members of lists that are gone through at most: a distribution's kernel has some thousands of modules to load.
const MOST: usize = 1 << 14;
/// Pieces of memory that a module is read with, at most; Linux has seven.
const MOST_PIECES: u32 = 32;
/// What the kernel itself adds to the number of references, `MODULE_REF_BASE`.
const REFERENCE_BASE: u32 = 1;

/// Where a module keeps what it has in memory.
#[derive(Debug)]
enum Places {
    /// An array of pieces, the first of which is its code: from 6.4 on.
    Pieces { at: u64, each: u64, count: u32, base: Field, size: Field },
    /// One for as long as it lives, and one for its initialization.
    Layouts { core: Extents, init: Extents },
}

/// What tells who uses a module.
#[derive(Debug)]
struct Uses {
    references: Field,
    /// The list of uses, the link in each, and who it is.
    list: Field,
    link: Field,
    user: Field,
}

/// How the kernel's modules are made.
#[derive(Debug)]
pub struct ModuleLayout {
    list: Field,
    name: Field,
    state: Field,
    places: Places,
    uses: Option<Uses>,
    symbols: Option<symbols::Layout>,
    sections: Option<sections::Layout>,
    /// x86: addresses, entries and their number.
    orc: Option<[Field; 3]>,
}

impl ModuleLayout {
    /// By the kernel's types.
    ///
    /// # Errors
    /// [`ModuleError::Lacks`].
    pub fn new(types: &Types) -> Result<ModuleLayout, ModuleError> {
        let module = types.tagged("module").ok_or(ModuleError::Lacks("struct module"))?;
        let must = |path, lacks| types.field(module, path).ok_or(ModuleError::Lacks(lacks));
        Ok(ModuleLayout {
            list: must("list", "struct module's list")?,
            name: must("name", "struct module's name")?,
            state: must("state", "struct module's state")?,
            places: Places::new(types, module)
                .ok_or(ModuleError::Lacks("struct module's mem, nor its core_layout"))?,
            uses: Uses::new(types, module),
            symbols: symbols::Layout::new(types, module),
            sections: sections::Layout::new(types, module),
            orc: orc(types, module),
        })
    }

    /// The symbols that the kernel keeps of a module.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn symbols(&self, module: &Module, reader: &Reader<'_>) -> Result<Symbols, ModuleError> {
        let layout = self.symbols.as_ref().ok_or(ModuleError::Lacks("struct mod_kallsyms"))?;
        Ok(layout.read(module.address, reader)?)
    }

    /// How many bytes a module's symbol has that begins at an address: of several the most. `None` where none does.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn symbol_size(
        &self,
        module: &Module,
        address: u64,
        reader: &Reader<'_>,
    ) -> Result<Option<u64>, ModuleError> {
        let layout = self.symbols.as_ref().ok_or(ModuleError::Lacks("struct mod_kallsyms"))?;
        Ok(layout.size_at(module.address, address, reader)?)
    }

    /// How many those are that would be looked at.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn symbol_count(&self, module: &Module, reader: &Reader<'_>) -> Result<u64, ModuleError> {
        let layout = self.symbols.as_ref().ok_or(ModuleError::Lacks("struct mod_kallsyms"))?;
        Ok(layout.count(module.address, reader)?)
    }

    /// The sections of a module, as the kernel tells user space of them; of kernels that do not (`CONFIG_KALLSYMS`),
    /// and of modules that keep none, there are none.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn sections(&self, module: &Module, reader: &Reader<'_>) -> Result<Vec<Section>, ModuleError> {
        let layout = self.sections.as_ref().ok_or(ModuleError::Lacks("struct module_sect_attrs"))?;
        Ok(layout.read(module.address, reader)?)
    }

    /// All modules, by the list that `head` (`modules`) is the head of. `go_on` is asked for each.
    ///
    /// # Errors
    /// [`ModuleError`] where not even the list is there; in words ([`Modules::remarks`]), what of modules cannot be had.
    pub fn modules<E>(
        &self,
        head: u64,
        reader: &Reader<'_>,
        go_on: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Result<Modules, ModuleError>, E> {
        if let Err(error) = reader.address(head) {
            return Ok(Err(error.into()));
        }
        let (mut found, mut left) = (Modules::default(), MOST);
        let mut ring = Ring::new(head);
        while left > 0 {
            let next = ring.next(reader, &mut found.remarks);
            go_on()?;
            let Some(node) = next else { return Ok(Ok(found)) };
            left -= 1;
            match self.module(node.wrapping_sub(self.list.at), reader, &mut left, &mut found.remarks) {
                Ok(module) => found.all.push(module),
                Err(error) => remark(&mut found.remarks, format!("a module is left out: {error}")),
            }
        }
        found.remarks.push(format!("there may be more than {} modules", found.all.len()));
        Ok(Ok(found))
    }

    fn module(
        &self,
        address: u64,
        reader: &Reader<'_>,
        left: &mut usize,
        remarks: &mut Vec<String>,
    ) -> Result<Module, NotThere> {
        let name = name::read(reader, address, self.name)?;
        let Extent { text, text_size, init, memory, size } = self.places.of(address, reader)?;
        let orc = self.orc.map(|[addresses, entries, count]| -> Result<Table, NotThere> {
            let read = |field| reader.field(address, field);
            Ok(Table { addresses: read(addresses)?, entries: read(entries)?, count: read(count)? })
        });
        let state = match reader.field(address, self.state)? {
            0 => Some(ModuleState::Live),
            1 => Some(ModuleState::Coming),
            2 => Some(ModuleState::Going),
            3 => Some(ModuleState::Unformed),
            _ => None,
        };
        let mut users = Vec::new();
        let references = match &self.uses {
            Some(uses) => {
                self.users(uses, address, reader, left, &mut users, remarks);
                let count = reader.field(address, uses.references)?;
                // One that is going has none any more, and less than its own.
                Some(u32::try_from(count & 0xffff_ffff).unwrap_or(0).saturating_sub(REFERENCE_BASE))
            }
            None => None,
        };
        let orc = orc.transpose()?;
        Ok(Module { address, name, state, text, text_size, init, memory, orc, size, references, users })
    }

    /// The modules that use one.
    fn users(
        &self,
        uses: &Uses,
        address: u64,
        reader: &Reader<'_>,
        left: &mut usize,
        users: &mut Vec<String>,
        remarks: &mut Vec<String>,
    ) {
        let mut ring = Ring::new(address.wrapping_add(uses.list.at));
        while *left > 0 {
            let Some(node) = ring.next(reader, remarks) else { return };
            *left -= 1;
            let user = reader.field(node.wrapping_sub(uses.link.at), uses.user);
            match user.and_then(|user| name::read(reader, user, self.name)) {
                Ok(name) => users.push(name),
                Err(error) => remark(remarks, format!("a module that uses one is left out: {error}")),
            }
        }
    }
}

fn orc(types: &Types, module: TypeId) -> Option<[Field; 3]> {
    let field = |name| types.field(module, name);
    Some([field("arch.orc_unwind_ip")?, field("arch.orc_unwind")?, field("arch.num_orcs")?])
}

impl Uses {
    fn new(types: &Types, module: TypeId) -> Option<Uses> {
        let of_use = types.tagged("module_use")?;
        Some(Uses {
            references: types.field(module, "refcnt")?,
            list: types.field(module, "source_list")?,
            link: types.field(of_use, "source_list")?,
            user: types.field(of_use, "source")?,
        })
    }
}

/// Where a module's code is, how much that is, and how many bytes it has in memory.
struct Extent {
    text: u64,
    text_size: u64,
    init: (u64, u64),
    memory: Vec<(u64, u64)>,
    size: u64,
}

/// Where a `struct module_layout` has what.
#[derive(Debug)]
struct Extents {
    base: Field,
    text: Field,
    size: Field,
}

/// Which piece is the code that a module begins with (`MOD_INIT_TEXT`).
const INIT_TEXT: u32 = 4;

impl Places {
    fn new(types: &Types, module: TypeId) -> Option<Places> {
        let Some(mem) = types.part(module, "mem") else {
            let extents = |layout: &str| {
                let field = |name: &str| types.field(module, &format!("{layout}.{name}"));
                Some(Extents { base: field("base")?, text: field("text_size")?, size: field("size")? })
            };
            return Some(Places::Layouts { core: extents("core_layout")?, init: extents("init_layout")? });
        };
        let Shape::Array(piece, count) = *types.shape(types.plain(mem.of)) else { return None };
        Some(Places::Pieces {
            at: mem.offset()?,
            each: types.size(piece)?,
            count: count.min(MOST_PIECES),
            base: types.field(piece, "base")?,
            size: types.field(piece, "size")?,
        })
    }

    fn of(&self, module: u64, reader: &Reader<'_>) -> Result<Extent, NotThere> {
        match self {
            Places::Layouts { core, init } => {
                let field = |field: Field| reader.field(module, field);
                let memory = [(field(core.base)?, field(core.size)?), (field(init.base)?, field(init.size)?)];
                Ok(Extent {
                    memory: in_memory(memory.into_iter()),
                    text: field(core.base)?,
                    text_size: field(core.text)?,
                    init: (field(init.base)?, field(init.text)?),
                    size: field(core.size)?.saturating_add(field(init.size)?),
                })
            }
            Places::Pieces { at, each, count, base, size } => {
                let piece =
                    |index: u32| module.wrapping_add(*at).wrapping_add(each.wrapping_mul(index.into()));
                let memory = (0..*count).map(|index| {
                    Ok((reader.field(piece(index), *base)?, reader.field(piece(index), *size)?))
                });
                let memory = memory.collect::<Result<Vec<_>, NotThere>>()?;
                let all = memory.iter().fold(0u64, |all, (_, size)| all.saturating_add(*size));
                Ok(Extent {
                    memory: in_memory(memory.into_iter()),
                    text: reader.field(piece(0), *base)?,
                    text_size: reader.field(piece(0), *size)?,
                    init: match *count > INIT_TEXT {
                        true => {
                            (reader.field(piece(INIT_TEXT), *base)?, reader.field(piece(INIT_TEXT), *size)?)
                        }
                        false => (0, 0),
                    },
                    size: all,
                })
            }
        }
    }
}

/// Pieces that have something.
fn in_memory(pieces: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    pieces.filter(|(base, size)| *base != 0 && *size != 0).collect()
}

#[cfg(test)]
mod tests;
