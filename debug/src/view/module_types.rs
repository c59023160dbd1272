//! Types of modules of the guest's Linux kernel, which are read as they are asked for.

use super::View;
use crate::linux::btf::{self, modules::Layout, modules::Place};
use crate::linux::module::Module;
use crate::linux::reader::Reader;
use crate::linux::{Types, VmCoreInfo};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of all modules' types that are read, at most: a distribution's have some ten megabytes, all of them loaded; what is
/// made of them has some times as many, and is kept as long as somebody looks.
const MOST_BYTES: usize = 32 << 20;

/// A module's, if the kernel has any of it; or in words, why they cannot be had.
type OfModule = Result<Option<Arc<Types>>, String>;

/// Where modules' types are, and what of that could not be had, a line each.
type Places = (Vec<Place>, Vec<String>);

/// What modules' types are made of.
#[derive(Debug)]
pub struct ModuleTypes<'a> {
    view: View<'a>,
    info: &'a VmCoreInfo,
    /// Those of the kernel, which they stand on.
    kernel: Arc<Types>,
    /// What the kernel's are called, once somebody has asked for a module's.
    names: OnceCell<Result<Vec<u8>, String>>,
    places: OnceCell<Result<Places, String>>,
    /// Those that have been read, by where their `struct module` is.
    read: RefCell<HashMap<u64, OfModule>>,
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

    /// Those of a module, with the kernel's; `None` where the kernel has none of it.
    ///
    /// # Errors
    /// In words, why they cannot be had: they cannot be read, are damaged, or more than there is room for.
    pub fn of(&self, module: &Module) -> OfModule {
        if let Some(known) = self.read.borrow().get(&module.address) {
            return known.clone();
        }
        let read = self.read(module.address);
        let found = read.map_err(|why| format!("the types of {} cannot be read: {why}", module.name));
        self.read.borrow_mut().insert(module.address, found.clone());
        found
    }

    fn read(&self, module: u64) -> OfModule {
        let (places, remarks) = self.places()?;
        let Some(place) = places.iter().find(|place| place.module == module) else {
            // It may be what the list lacks.
            return remarks.first().map_or(Ok(None), |why| Err(why.clone()));
        };
        self.left.set(room(self.left.get(), place.size)?);
        let size = usize::try_from(place.size).map_err(|error| error.to_string())?;
        let names = self.names.get_or_init(|| {
            let bytes = self.view.kernel_btf(self.info)??;
            btf::names(&bytes).map(<[u8]>::to_vec).map_err(|error| error.to_string())
        });
        let names = names.as_ref().map_err(String::clone)?;
        let bytes = self.view.by_kernel(self.info, |read| {
            let mut bytes = vec![0; size];
            Reader::new(read).bytes(place.data, &mut bytes).map(|()| bytes)
        })?;
        let types = btf::split(&bytes, Arc::clone(&self.kernel), names).map_err(|error| error.to_string())?;
        Ok(Some(Arc::new(types)))
    }

    fn places(&self) -> Result<&Places, String> {
        let places = self.places.get_or_init(|| {
            let Some(layout) = Layout::new(&self.kernel) else { return Ok(Places::default()) };
            let symbols = self.view.kernel_symbols(self.info)?;
            let Some(head) = symbols.address("btf_modules") else { return Ok(Places::default()) };
            self.view.by_kernel(self.info, |read| {
                let reader = Reader::new(read);
                reader.address(head).map(|_| layout.places(head, &reader))
            })
        });
        places.as_ref().map_err(String::clone)
    }
}

/// What is left of the bytes that are read, behind so many.
fn room(left: usize, size: u64) -> Result<usize, String> {
    let size = usize::try_from(size).ok().filter(|size| *size <= btf::MOST_BYTES);
    let size = size.ok_or("they are larger than any module's")?;
    let too_much = || format!("modules have more than {} MiB of types", MOST_BYTES >> 20);
    left.checked_sub(size).ok_or_else(too_much)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_share_the_room_for_their_types() {
        let half = MOST_BYTES as u64 / 2;
        let left = room(MOST_BYTES, half).and_then(|left| room(left, half));
        assert_eq!(left, Ok(0));
        assert_eq!(room(0, 1), Err("modules have more than 32 MiB of types".into()));
        assert_eq!(room(usize::MAX, u64::MAX), Err("they are larger than any module's".into()));
    }
}
