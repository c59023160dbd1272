//! Names in the modules of the guest's Linux kernel, which are read as they are asked for.

use super::View;
use crate::linux::module::{Module, ModuleLayout, Modules};
use crate::linux::reader::Reader;
use crate::linux::symbols::Symbol;
use crate::linux::{Symbols, Types, VmCoreInfo};
use arch::words::counted;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

/// Symbols of modules that are looked at, at most, all together, and bytes of their names: a distribution's modules have
/// some hundred thousand.
const MOST_SYMBOLS: u64 = 1 << 20;
const MOST_OF_NAMES: usize = 64 << 20;

/// The modules of a kernel, and their symbols.
#[derive(Debug)]
pub struct ModuleNames<'a> {
    view: View<'a>,
    info: &'a VmCoreInfo,
    all: Vec<Module>,
    layout: Option<ModuleLayout>,
    /// Those that have been read, by where their `struct module` is.
    read: RefCell<HashMap<u64, Option<Arc<Symbols>>>>,
    /// Symbols that have been looked at, and bytes of names that have been read.
    looked_at: Cell<(u64, usize)>,
    remarks: Vec<String>,
}

impl<'a> ModuleNames<'a> {
    /// By the types that the kernel has in its own memory. A kernel without modules, or whose list of them is no symbol,
    /// has none.
    pub fn new(view: View<'a>, info: &'a VmCoreInfo, types: &Types) -> ModuleNames<'a> {
        let (all, remarks) = match view.kernel_modules(info) {
            Ok(Modules { all, remarks }) => (all, remarks),
            Err(why) => (Vec::new(), vec![format!("what is in modules is not known: {why}")]),
        };
        let layout = ModuleLayout::new(types).ok();
        ModuleNames { view, info, all, layout, read: RefCell::default(), looked_at: Cell::default(), remarks }
    }

    /// All modules.
    pub fn all(&self) -> &[Module] {
        &self.all
    }

    /// What of them could not be had, a line each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The module that an address of code is in.
    pub fn module(&self, pc: u64) -> Option<&Module> {
        self.all.iter().find(|module| piece(module, pc).is_some())
    }

    /// Has `each` look at what is called so in a module, and in which.
    pub fn named(&self, name: &str, mut each: impl FnMut(&Module, &Symbols, &Symbol<'_>)) {
        for module in &self.all {
            let Some(symbols) = self.symbols(module) else { continue };
            symbols.named(name).for_each(|symbol| each(module, &symbols, &symbol));
        }
    }

    /// Has `each` look at the function of a module that an address is in; what it answers.
    pub fn at<R>(&self, address: u64, each: impl FnOnce(&Module, &Symbols, &Symbol<'_>) -> R) -> Option<R> {
        let mut nearest: Option<(u64, &Module, Arc<Symbols>)> = None;
        // Whatever one of them says that it has, another one's function may be nearer.
        for module in self.all.iter().filter(|module| piece(module, address).is_some()) {
            let Some(symbols) = self.symbols(module) else { continue };
            let Some(begin) = symbols.at(address).map(|(symbol, _)| symbol.address) else { continue };
            let is_in = piece(module, begin) == piece(module, address);
            if is_in && nearest.as_ref().is_none_or(|(best, ..)| *best < begin) {
                nearest = Some((begin, module, symbols));
            }
        }
        let (_, module, symbols) = nearest?;
        let (symbol, _) = symbols.at(address)?;
        Some(each(module, &symbols, &symbol))
    }

    /// Has `each` look at the variable of a module that an address is in, and how many bytes that has; 0 where the module does
    /// not say. What it answers.
    pub fn variable_at<R>(
        &self,
        address: u64,
        each: impl FnOnce(&Module, &Symbols, &Symbol<'_>, u64) -> R,
    ) -> Option<R> {
        let is_data = |module: &Module, at| module.holds(at) && piece(module, at).is_none();
        let module = self.all.iter().find(|module| is_data(module, address))?;
        let symbols = self.symbols(module)?;
        let (symbol, next) = symbols.at(address)?;
        if !is_data(module, symbol.address) {
            return None;
        }
        let size = self.size_of(module, symbol.address);
        // What has no name is behind the last one that has.
        let is_within = address - symbol.address < if size > 0 { size } else { next };
        is_within.then(|| each(module, &symbols, &symbol, size))
    }

    /// How many bytes a module's symbol has that begins at an address; 0 where the module does not say.
    pub fn size_of(&self, module: &Module, address: u64) -> u64 {
        let Some(layout) = self.layout.as_ref() else { return 0 };
        let read =
            self.view.by_kernel(self.info, |read| layout.symbol_size(module, address, &Reader::new(read)));
        read.ok().flatten().unwrap_or(0)
    }

    /// The symbols that the kernel keeps of a module, if it does, and if there is room for them.
    pub fn symbols(&self, module: &Module) -> Option<Arc<Symbols>> {
        if let Some(known) = self.read.borrow().get(&module.address) {
            return known.clone();
        }
        let layout = self.layout.as_ref()?;
        let (looked_at, names) = self.looked_at.get();
        let read = self.view.by_kernel(self.info, |read| {
            let reader = Reader::new(read);
            let count = layout.symbol_count(module, &reader).map_err(|error| error.to_string())?;
            // Who has so many is after something else.
            if looked_at.saturating_add(count) > MOST_SYMBOLS || names > MOST_OF_NAMES {
                return Err("the modules have too many symbols".to_string());
            }
            let symbols = layout.symbols(module, &reader).map_err(|error| error.to_string())?;
            Ok((count, symbols))
        });
        let read = read.ok().map(|(count, symbols)| {
            self.looked_at.set((looked_at + count, names + symbols.bytes_of_names()));
            Arc::new(symbols)
        });
        self.read.borrow_mut().insert(module.address, read.clone());
        read
    }

    /// What of modules could not be had so far, a line each: also how many have been asked for symbols in vain.
    pub fn shortfall(&self) -> Vec<String> {
        let mut remarks = self.remarks.clone();
        let without = self.read.borrow().values().filter(|read| read.is_none()).count();
        if without > 0 {
            remarks.push(format!("the symbols of {} cannot be had", counted(without as u64, "module")));
        }
        remarks
    }
}

/// The piece of a module's code that an address is in: where it begins, and its bytes.
pub fn piece(module: &Module, address: u64) -> Option<(u64, u64)> {
    let pieces = [(module.text, module.text_size), module.init];
    pieces.into_iter().find(|(begin, size)| address.wrapping_sub(*begin) < *size)
}
