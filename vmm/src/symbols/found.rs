//! The symbols of a guest's kernel that nobody has named, by its build id.

use super::search::{self, Folders, Kernel};
use debug::symbols::{FindSymbols, FoundSymbols, ModuleFile};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Finds them when somebody asks, and keeps what was read of them: of one kernel, that which was asked about last.
#[derive(Debug)]
pub struct ByBuildId {
    /// What the guest was booted from, if that is known.
    file: Option<PathBuf>,
    folders: Folders,
    last: Mutex<Option<(String, FoundSymbols)>>,
    /// Files of modules by their build ids, those that were asked about last behind the others.
    modules: Mutex<VecDeque<(String, Arc<ModuleFile>)>>,
}

/// Files of modules that are kept open, at most.
const MOST_MODULES: usize = 16;

impl ByBuildId {
    /// For a guest that was booted from a file, in this user's folders.
    pub fn new(file: Option<PathBuf>) -> ByBuildId {
        ByBuildId::within(file, Folders::of_user())
    }

    fn within(file: Option<PathBuf>, folders: Folders) -> ByBuildId {
        let file = file.and_then(|file| search::whole(&file));
        ByBuildId { file, folders, last: Mutex::default(), modules: Mutex::default() }
    }
}

impl FindSymbols for ByBuildId {
    fn find(&self, build_id: &str, release: &str) -> Option<FoundSymbols> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = last.as_ref().filter(|(id, _)| id == build_id) {
            return Some(found.clone());
        }
        let kernel = Kernel { build_id: Some(build_id), file: self.file.as_deref(), release: Some(release) };
        let (place, symbols) = search::open(&kernel, &self.folders)?;
        // Nobody has asked for what all of it would take.
        let symbols = symbols.by_units();
        let found = FoundSymbols { symbols: Arc::new(symbols), place: place.display().to_string() };
        *last = Some((build_id.into(), found.clone()));
        Some(found)
    }

    fn find_module(&self, build_id: &str) -> Option<Arc<ModuleFile>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let known = modules.iter().position(|(id, _)| id == build_id);
        let (id, module) = match known.and_then(|at| modules.remove(at)) {
            Some(known) => known,
            None => (build_id.into(), Arc::new(search::open_module(build_id, &self.folders)?)),
        };
        if modules.len() == MOST_MODULES {
            modules.pop_front();
        }
        modules.push_back((id, Arc::clone(&module)));
        Some(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::search::tests::{kernel_of, with_build_id};
    use arch::Isa;
    use std::fs;

    const ID: &str = "00112233445566778899aabbccddeeff00112233";
    const RELEASE: &str = "6.12.0-made";
    const OTHER: &str = "ff112233445566778899aabbccddeeff00112233";

    #[test]
    fn the_file_of_a_build_is_found_when_somebody_asks_and_no_other_one_is() {
        for isa in Isa::ALL {
            let cache = tempfile::tempdir().unwrap();
            let finder = ByBuildId::within(None, Folders::of_debuginfod(cache.path()));
            assert!(finder.find(ID, RELEASE).is_none(), "{isa}: there is none");
            // It has been downloaded by now.
            let folder = cache.path().join(ID);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("debuginfo"), with_build_id(isa, ID)).unwrap();
            let found = finder.find(ID, RELEASE).unwrap();
            assert_eq!(
                (found.symbols.isa(), &found.place),
                (isa, &folder.join("debuginfo").display().to_string())
            );
            // What was read of it is kept.
            let again = finder.find(ID, RELEASE).unwrap();
            assert!(Arc::ptr_eq(&found.symbols, &again.symbols));
            // One that lies about which it is.
            fs::create_dir(cache.path().join(OTHER)).unwrap();
            fs::write(cache.path().join(OTHER).join("debuginfo"), with_build_id(isa, ID)).unwrap();
            assert!(finder.find(OTHER, RELEASE).is_none());
            for odd in ["", "..", "../../etc/passwd", "zz"] {
                assert!(finder.find(odd, RELEASE).is_none(), "{odd}");
            }
        }
    }

    #[test]
    fn a_modules_file_is_one_of_its_build_that_was_not_linked() {
        for isa in Isa::ALL {
            let cache = tempfile::tempdir().unwrap();
            let finder = ByBuildId::within(None, Folders::of_debuginfod(cache.path()));
            let file = cache.path().join(ID).join("debuginfo");
            fs::create_dir(cache.path().join(ID)).unwrap();
            let mut module = with_build_id(isa, ID);
            fs::write(&file, &module).unwrap();
            assert!(finder.find_module(ID).is_none(), "{isa}: a kernel's");
            // e_type: ET_REL (gABI, figure 4-3).
            module[16] = 1;
            fs::write(&file, &module).unwrap();
            assert_eq!(finder.find_module(ID).map(|it| it.isa()), Some(isa));
            assert!(finder.find_module(OTHER).is_none() && finder.find(ID, RELEASE).is_none());
        }
    }

    #[test]
    fn so_many_files_of_modules_are_kept() {
        let cache = tempfile::tempdir().unwrap();
        let finder = ByBuildId::within(None, Folders::of_debuginfod(cache.path()));
        let ids: Vec<String> = (0..=MOST_MODULES).map(|number| format!("00112233{number:02x}")).collect();
        for id in &ids {
            let mut module = with_build_id(Isa::X86_64, id);
            module[16] = 1;
            fs::create_dir(cache.path().join(id)).unwrap();
            fs::write(cache.path().join(id).join("debuginfo"), module).unwrap();
        }
        let first = finder.find_module(&ids[0]).unwrap();
        let rest: Vec<_> = ids[1..MOST_MODULES].iter().map(|id| finder.find_module(id).unwrap()).collect();
        assert!(Arc::ptr_eq(&first, &finder.find_module(&ids[0]).unwrap()), "it is kept");
        finder.find_module(&ids[MOST_MODULES]).unwrap();
        assert_eq!(finder.modules.lock().unwrap().len(), MOST_MODULES);
        // The one that was asked about longest ago has made room.
        assert!(Arc::ptr_eq(&first, &finder.find_module(&ids[0]).unwrap()));
        assert!(!Arc::ptr_eq(&rest[0], &finder.find_module(&ids[1]).unwrap()));
    }

    #[test]
    fn what_is_beside_a_relative_path_is_looked_at_by_its_whole_one() {
        let finder = ByBuildId::within(Some("bzImage".into()), Folders::default());
        assert!(finder.file.unwrap().is_absolute());
    }

    #[test]
    fn what_was_booted_may_have_them_and_so_may_what_is_beside_it() {
        let tree = tempfile::tempdir().unwrap();
        let (image, vmlinux) = (tree.path().join("Image"), tree.path().join("vmlinux"));
        fs::write(&image, "no ELF file").unwrap();
        fs::write(&vmlinux, with_build_id(Isa::Aarch64, ID)).unwrap();
        for booted in [&image, &vmlinux] {
            let finder = ByBuildId::within(Some(booted.clone()), Folders::default());
            assert_eq!(finder.find(ID, RELEASE).unwrap().place, vmlinux.display().to_string());
            assert!(finder.find(OTHER, RELEASE).is_none());
        }
        // By its release, as distributions have it.
        fs::rename(&vmlinux, tree.path().join(format!("vmlinux-{RELEASE}"))).unwrap();
        let finder = ByBuildId::within(Some(image.clone()), Folders::default());
        assert!(finder.find(ID, "6.12.1").is_none() && finder.find(ID, RELEASE).is_some());
        assert!(finder.find(OTHER, RELEASE).is_none());
        fs::remove_file(tree.path().join(format!("vmlinux-{RELEASE}"))).unwrap();
        // Without an id nothing tells whose it is.
        fs::write(&vmlinux, kernel_of(Isa::Aarch64)).unwrap();
        let finder = ByBuildId::within(Some(image), Folders::default());
        assert!(finder.find(ID, RELEASE).is_none());
    }
}
