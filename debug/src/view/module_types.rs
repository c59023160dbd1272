//! Types of modules of the guest's Linux kernel, which are read as they are asked for.

use super::View;
use crate::linux::btf::{self, modules::Layout, modules::Place};
use crate::linux::module::Module;
use crate::linux::reader::Reader;
use crate::linux::{Types, VmCoreInfo};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of all modules' types that are read, at most: a distribution's have some ten megabytes, all of them loaded.
const MOST_BYTES: usize = 128 << 20;

/// What modules' types are made of.
#[derive(Debug)]
pub struct ModuleTypes<'a> {
    view: View<'a>,
    info: &'a VmCoreInfo,
    /// Those of the kernel, which they stand on.
    kernel: Arc<Types>,
    /// What the kernel's are called, once somebody has asked for a module's.
    names: OnceCell<Option<Vec<u8>>>,
    places: OnceCell<Vec<Place>>,
    /// Those that have been read, by where their `struct module` is.
    read: RefCell<HashMap<u64, Option<Arc<Types>>>>,
    left: Cell<usize>,
}

impl<'a> ModuleTypes<'a> {
    /// Over the types that the kernel has in its own memory.
    pub fn new(view: View<'a>, info: &'a VmCoreInfo, kernel: Arc<Types>) -> ModuleTypes<'a> {
        let (names, places) = (OnceCell::new(), OnceCell::new());
        ModuleTypes {
            view,
            info,
            kernel,
            names,
            places,
            read: RefCell::default(),
            left: Cell::new(MOST_BYTES),
        }
    }

    /// Those of a module, with the kernel's; `None` where the kernel has none of it, or they cannot be read.
    pub fn of(&self, module: &Module) -> Option<Arc<Types>> {
        if let Some(known) = self.read.borrow().get(&module.address) {
            return known.clone();
        }
        let found = self.read(module.address).map(Arc::new);
        self.read.borrow_mut().insert(module.address, found.clone());
        found
    }

    fn read(&self, module: u64) -> Option<Types> {
        let place = self.places().iter().find(|place| place.module == module)?;
        let size = usize::try_from(place.size).ok().filter(|size| *size <= btf::MOST_BYTES)?;
        self.left.set(self.left.get().checked_sub(size)?);
        let names = self.names.get_or_init(|| {
            let bytes = self.view.kernel_btf(self.info).ok()?;
            btf::names(&bytes).ok().map(<[u8]>::to_vec)
        });
        let bytes = self.view.by_kernel(self.info, |read| {
            let mut bytes = vec![0; size];
            Reader::new(read).bytes(place.data, &mut bytes).map(|()| bytes)
        });
        btf::split(&bytes.ok()?, Arc::clone(&self.kernel), names.as_deref()?).ok()
    }

    fn places(&self) -> &[Place] {
        self.places.get_or_init(|| {
            let Some(layout) = Layout::new(&self.kernel) else { return Vec::new() };
            let Ok(symbols) = self.view.kernel_symbols(self.info) else { return Vec::new() };
            let Some(head) = symbols.address("btf_modules") else { return Vec::new() };
            let places = self.view.by_kernel(self.info, |read| {
                let reader = Reader::new(read);
                reader.address(head).map(|_| layout.places(head, &reader).0)
            });
            // What they lack is said where a type is not found.
            places.unwrap_or_default()
        })
    }
}
