//! A kernel's modules: where they are, what they depend on, and what of them a guest needs.
//!
//! What a module depends on it says itself (`depends=` in its `.modinfo` section, kernel/module/main.c), so a folder
//! that `depmod` has not seen does as well: a source tree, or what was unpacked from a package.

use elf::ElfBytes;
use elf::endian::AnyEndian;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most bytes of an unpacked module, and the most files that are looked at.
const MOST_BYTES: u64 = 256 << 20;
const MOST_FILES: usize = 100_000;

/// Modules of a kernel.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// By name.
    files: HashMap<String, PathBuf>,
    /// Those that are part of the kernel, if that is known.
    built_in: Option<Vec<String>>,
}

/// A module, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its file.
    pub bytes: Vec<u8>,
    /// The guest can do without it.
    pub is_optional: bool,
}

/// What a guest needs is not there.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// It is neither part of the kernel nor a module.
    #[error("the kernel has no {0}, neither built in nor as a module below {1}")]
    Missing(String, PathBuf),
    /// A file.
    #[error("cannot read the module {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Modules that depend on each other in a circle, or on each other too deeply.
    #[error("the module {0} depends on itself")]
    Circle(String),
}

/// What is behind `.ko` in the name of a file that a kernel loads.
const LOADED: &[&str] = &["", ".xz", ".zst", ".gz"];

/// A module's name as the kernel has it, of its file: without endings, with `_` for `-`.
fn name_of(file: &Path) -> Option<String> {
    name_before(file, LOADED)
}

fn name_before(file: &Path, endings: &[&str]) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = endings.iter().find_map(|ending| name.strip_suffix(ending)?.strip_suffix(".ko"))?;
    Some(stem.replace('-', "_"))
}

impl Modules {
    /// Those below a folder; the folder may not be there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn below(folder: &Path) -> io::Result<Modules> {
        let mut modules = Modules { files: files(folder, LOADED)?, built_in: None };
        match fs::read_to_string(folder.join("modules.builtin")) {
            Ok(list) => {
                modules.built_in = Some(list.lines().filter_map(|it| name_of(Path::new(it))).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(modules)
    }

    /// Those below a folder of what a distribution has of symbols: files that no kernel could load, as a rule.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of_symbols(folder: &Path) -> io::Result<Modules> {
        Ok(Modules { files: files(folder, &["", ".debug"])?, built_in: None })
    }

    /// Those of a source tree that has been built: `modules.order` names them (scripts/Makefile.modfinal), by their
    /// objects since Linux 6.4.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of_tree(tree: &Path) -> io::Result<Modules> {
        let list = |name: &str| match fs::read_to_string(tree.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            list => list.map(Some),
        };
        let mut modules = Modules::default();
        for line in list("modules.order")?.unwrap_or_default().lines() {
            let object = line.strip_prefix("kernel/").unwrap_or(line);
            let path = tree.join(object).with_extension("ko");
            if let Some(name) = name_of(&path) {
                modules.files.insert(name, path);
            }
        }
        let built_in = list("modules.builtin")?;
        modules.built_in =
            built_in.map(|list| list.lines().filter_map(|it| name_of(Path::new(it))).collect());
        Ok(modules)
    }

    /// The file of the one of this name, packed or not.
    pub fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// What is in that file, unpacked; `None` where there is none.
    pub fn unpacked(&self, name: &str) -> Option<io::Result<Vec<u8>>> {
        self.file(name).map(unpacked)
    }

    /// Whether there is one of this name, or it is part of the kernel.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
            || self.built_in.as_ref().is_some_and(|list| list.iter().any(|it| it == name))
    }

    /// Whether nothing at all is known of the kernel's modules.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.built_in.is_none()
    }

    /// What has to be loaded for these to be there, in order, and behind it what `optional` ones take that can be had. One
    /// that is no file here is part of the kernel, as far as that is known.
    ///
    /// # Errors
    /// [`ModuleError`]; `folder` is where they were looked for.
    pub fn needed(
        &self,
        names: &[&str],
        optional: &[&str],
        folder: &Path,
    ) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, folder, &mut order, &mut Vec::new())?;
        }
        for name in optional {
            let required = order.len();
            match self.add(name, folder, &mut order, &mut Vec::new()) {
                Ok(()) => order[required..].iter_mut().for_each(|module| module.is_optional = true),
                Err(error) => {
                    log::debug!("the guest does without {name}: {error}");
                    order.truncate(required);
                }
            }
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        folder: &Path,
        order: &mut Vec<Module>,
        above: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        if order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return match &self.built_in {
                Some(list) if !list.iter().any(|it| it == name) => {
                    Err(ModuleError::Missing(name.into(), folder.into()))
                }
                _ => Ok(()),
            };
        };
        if above.iter().any(|it| it == name) {
            return Err(ModuleError::Circle(name.into()));
        }
        let bytes = unpacked(path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
        above.push(name.into());
        for needed in depends(&bytes) {
            self.add(&needed, folder, order, above)?;
        }
        above.pop();
        order.push(Module { name: name.into(), bytes, is_optional: false });
        Ok(())
    }
}

/// Files of modules below a folder, by name; the folder may not be there.
fn files(folder: &Path, endings: &[&str]) -> io::Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    let mut folders = vec![folder.to_path_buf()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            seen += 1;
            let path = entry.path();
            match entry.file_type()? {
                // `build` and `source` are links to whole trees.
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => {
                    if let Some(name) = name_before(&path, endings) {
                        files.insert(name, path);
                    }
                }
                _ => {}
            }
            if seen > MOST_FILES {
                return Err(io::Error::other("there are too many files"));
            }
        }
    }
    Ok(files)
}

fn no_whole_archive() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no whole archive of its kind: damaged, or cut off")
}

/// A module's file, unpacked.
fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut reader: Box<dyn Read> = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new(file, false)),
        Some("zst") => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(file).map_err(|_| no_whole_archive())?)
        }
        Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    let read = reader.by_ref().take(MOST_BYTES + 1).read_to_end(&mut bytes);
    // What unpackers say themselves is for those who write them.
    read.map_err(|error| if error.raw_os_error().is_some() { error } else { no_whole_archive() })?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(io::Error::other("it is too large for a module")),
        false => Ok(bytes),
    }
}

/// The modules that a module names as those that it needs.
fn depends(bytes: &[u8]) -> Vec<String> {
    let info = || {
        let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).ok()?;
        let header = file.section_header_by_name(".modinfo").ok()??;
        Some(file.section_data(&header).ok()?.0)
    };
    let fields = info().unwrap_or_default().split(|byte| *byte == 0);
    let lists = fields.filter_map(|field| field.strip_prefix(b"depends="));
    let names = lists.flat_map(|list| list.split(|byte| *byte == b','));
    names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object file with nothing but a `.modinfo` section.
    fn module(depends: &str) -> Vec<u8> {
        let info = [b"license=GPL\0depends=", depends.as_bytes(), b"\0name=x\0"].concat();
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + info.len());
        let table_at = (names_at + names.len()).next_multiple_of(8);
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[6] = 1;
        file[16..18].copy_from_slice(&1u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
        for (at, value) in [(52, 64u16), (58, 64), (60, 3), (62, 2)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file.extend(&info);
        file.extend(names);
        file.resize(table_at + 64, 0);
        for (name, kind, at, size) in [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    fn folder(files: &[(&str, &[u8])]) -> PathBuf {
        let name = std::thread::current().name().unwrap_or("test").replace(':', "-");
        let folder = std::env::temp_dir().join(format!("vmm-{}-{name}", std::process::id()));
        fs::create_dir_all(folder.join("kernel/fs")).unwrap();
        for (path, bytes) in files {
            fs::write(folder.join(path), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_needed_comes_in_order() {
        let packed = {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut packed, &module("")).unwrap();
            packed.finish().unwrap()
        };
        let folder = folder(&[
            ("kernel/fs/over-lay.ko", &module("")),
            ("kernel/fs/virtiofs.ko", &module("fuse,virtio-ring")),
            ("kernel/fs/fuse.ko", &module("virtio_ring")),
            ("kernel/virtio_ring.ko.gz", &packed),
            ("modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n"),
        ]);
        let modules = Modules::below(&folder).unwrap();
        let names = |wanted: &[&str]| -> Result<Vec<String>, String> {
            let modules = modules.needed(wanted, &[], &folder).map_err(|error| error.to_string())?;
            Ok(modules.into_iter().map(|module| module.name).collect())
        };
        assert_eq!(
            names(&["virtio_pci", "virtiofs", "over_lay", "fuse"]).unwrap(),
            ["virtio_ring", "fuse", "virtiofs", "over_lay"]
        );
        assert!(names(&["ext4"]).unwrap_err().starts_with("the kernel has no ext4"));
        assert!(modules.has("virtio_pci") && modules.has("fuse") && !modules.has("ext4"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn circles_and_damage_are_refused_or_harmless() {
        let folder = folder(&[
            ("a.ko", &module("b")),
            ("b.ko", &module("a")),
            ("c.ko.xz", b"no archive"),
            ("d.ko", b"\x7fELF and nothing"),
            ("e.ko.zst", b"\x28\xb5\x2f\xfd\x04"),
        ]);
        let modules = Modules::below(&folder).unwrap();
        assert!(matches!(modules.needed(&["a"], &[], &folder), Err(ModuleError::Circle(_))));
        assert!(matches!(modules.needed(&["c"], &[], &folder), Err(ModuleError::Read { .. })));
        assert_eq!(modules.needed(&["d"], &[], &folder).unwrap().len(), 1);
        let cut = modules.needed(&["e"], &[], &folder).unwrap_err().to_string();
        assert!(cut.ends_with("e.ko.zst: it is no whole archive of its kind: damaged, or cut off"), "{cut}");
        // The guest does without what is optional and cannot be had, and without what that would have taken.
        let optional = modules.needed(&["d"], &["a", "c", "d"], &folder).unwrap();
        assert!(optional.len() == 1 && !optional[0].is_optional);
        // Nothing is known of what is built in: it may be.
        assert_eq!(modules.needed(&["ext4"], &[], &folder).unwrap(), []);
        assert!(Modules::below(&folder.join("none")).unwrap().is_empty());
        fs::remove_dir_all(&folder).unwrap();
    }
}
