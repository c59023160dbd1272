//! Where a kernel's symbols may be, that somebody has not named: by its build id, by its release, beside its file.
//!
//! Source: GDB manual, "Debugging Information in Separate Files"; debuginfod_find_debuginfo(3), "CACHE".

use crate::given_file;
use debug::symbols::{ModuleFile, Symbols};
use std::env;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// What is known of a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel<'a> {
    /// As `uname -r` has it.
    pub release: Option<&'a str>,
    /// In hexadecimal digits.
    pub build_id: Option<&'a str>,
    /// The file that it was booted from.
    pub file: Option<&'a Path>,
}

/// Folders in which files are found: distributions', and a user's as the environment has them.
#[derive(Clone, Debug)]
pub struct Folders {
    /// What distributions' are below.
    root: PathBuf,
    debuginfod: Vec<PathBuf>,
}

impl Default for Folders {
    fn default() -> Folders {
        Folders::new(Path::new("/"), Vec::new())
    }
}

impl Folders {
    /// This user's.
    pub fn of_user() -> Folders {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("HOME");
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
        let all = [
            set("DEBUGINFOD_CACHE_PATH"),
            cache.map(|cache| cache.join("debuginfod_client")),
            home.map(|home| home.join(".debuginfod_client_cache")),
        ];
        Folders::new(Path::new("/"), all.into_iter().flatten().collect())
    }

    fn new(root: &Path, mut debuginfod: Vec<PathBuf>) -> Folders {
        // What is no place of its own is none for files that are kept.
        debuginfod.retain(|folder| {
            folder.is_absolute()
                && folder.parent().is_some()
                && folder.components().all(|it| it != Component::ParentDir)
        });
        Folders { root: root.into(), debuginfod }
    }

    #[cfg(test)]
    pub fn of_debuginfod(cache: &Path) -> Folders {
        Folders::new(Path::new("/"), vec![cache.into()])
    }

    fn debug(&self) -> PathBuf {
        self.root.join(DEBUG)
    }

    /// What is to be read, so that [`places`] are: folders, and files in folders that have more than that. Which release a
    /// kernel is, is not known before it runs: those that are there now count.
    pub fn readable(&self, file: Option<&Path>) -> Vec<PathBuf> {
        let mut all = vec![self.debug()];
        all.extend(self.debuginfod.iter().cloned());
        let beside = Beside::of(file.and_then(whole).as_deref());
        all.extend(beside.above.iter().map(|folder| folder.join("vmlinux")));
        let boot = self.root.join("boot");
        for folder in beside.nearest.iter().chain([&boot]) {
            let of_release = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with("vmlinux-"));
            all.extend(entries(folder, &of_release));
        }
        let is_release = |name: &OsStr| name.to_str().is_some_and(is_name);
        for modules in entries(&self.root.join("lib/modules"), &is_release) {
            all.extend(["build/vmlinux", "vmlinux"].map(|file| modules.join(file)));
        }
        all
    }
}

/// Where distributions keep what is for debuggers, below their root.
const DEBUG: &str = "usr/lib/debug";
/// Files of releases that a folder has, at most, and entries of it that are looked at for them.
const MOST_RELEASES: usize = 64;
const MOST_ENTRIES: usize = 4096;

/// Some entries of a folder, by their names.
fn entries(folder: &Path, is_wanted: &dyn Fn(&OsStr) -> bool) -> Vec<PathBuf> {
    let listed = match folder.read_dir() {
        Ok(listed) => listed,
        Err(error) => {
            log::debug!("{}: {error}", folder.display());
            return Vec::new();
        }
    };
    let names = listed.take(MOST_ENTRIES).filter_map(|entry| Some(entry.ok()?.file_name()));
    names.filter(|name| is_wanted(name)).take(MOST_RELEASES).map(|name| folder.join(name)).collect()
}

/// Where a release or a build id may lead: a guest's words make no path of their own.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.+~".contains(it))
}

/// The whole path of a file, by which the folders that it is in are seen; `None` where nobody knows it.
pub fn whole(file: &Path) -> Option<PathBuf> {
    match std::path::absolute(file) {
        Ok(file) => Some(file),
        Err(error) => {
            log::debug!("{}: what is beside it is not looked at: {error}", file.display());
            None
        }
    }
}

/// Folders that a booted file is in, and the one that it leads to, if it is a link.
#[derive(Debug, Default)]
struct Beside {
    /// Right beside it.
    nearest: Vec<PathBuf>,
    /// With those above, the nearest first, up to one in which everybody may put something (as `/tmp`).
    above: Vec<PathBuf>,
}

impl Beside {
    fn of(file: Option<&Path>) -> Beside {
        let mut beside = Beside::default();
        // One that is not there leads nowhere else.
        let real = file.and_then(|file| file.canonicalize().ok());
        for file in file.into_iter().chain(real.as_deref()) {
            let above = file.ancestors().skip(1).take(4).take_while(|folder| is_private(folder));
            for (at, folder) in above.enumerate() {
                if beside.above.iter().any(|it| it == folder) {
                    continue;
                }
                beside.above.push(folder.into());
                if at == 0 {
                    beside.nearest.push(folder.into());
                }
            }
        }
        beside
    }
}

/// Whether nobody else may have put something in a folder. What is not there has nothing in it; of what cannot be looked at,
/// and of no path at all, nobody knows.
pub fn is_private(folder: &Path) -> bool {
    match folder.metadata() {
        Ok(its) => its.mode() & 0o002 == 0 && is_trusted(&its),
        Err(error) => error.kind() == ErrorKind::NotFound && folder != Path::new(""),
    }
}

/// Whether something is this user's, or root's: a debugger that opens it does not open what somebody else has made for that.
pub fn is_trusted(metadata: &Metadata) -> bool {
    is_of_user(metadata, nix::unistd::geteuid().as_raw())
}

fn is_of_user(metadata: &Metadata, user: u32) -> bool {
    [0, user].contains(&metadata.uid())
}

/// The places, the surest first.
pub fn places(kernel: &Kernel<'_>, folders: &Folders) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(id) = kernel.build_id.filter(|id| id.len() > 2 && id.bytes().all(|it| it.is_ascii_hexdigit()))
    {
        let (first, rest) = id.split_at(2);
        places.push(folders.debug().join(format!(".build-id/{first}/{rest}.debug")));
        places.extend(folders.debuginfod.iter().map(|cache| cache.join(id).join("debuginfo")));
    }
    // What was booted may have them itself.
    places.extend(kernel.file.map(Path::to_path_buf));
    // `make` leaves the one beside or above the other.
    let beside = Beside::of(kernel.file);
    places.extend(beside.above.iter().map(|folder| folder.join("vmlinux")));
    if let Some(release) = kernel.release.filter(|release| is_name(release)) {
        places.extend(beside.nearest.iter().map(|it| it.join(format!("vmlinux-{release}"))));
        for place in [
            "usr/lib/debug/boot/vmlinux-{}",
            "usr/lib/debug/lib/modules/{}/vmlinux",
            "boot/vmlinux-{}",
            "lib/modules/{}/build/vmlinux",
            "lib/modules/{}/vmlinux",
        ] {
            places.push(folders.root.join(place.replace("{}", release)));
        }
    }
    places
}

/// The first of the places that has this kernel's symbols. One whose build id is not known is taken by its name.
pub fn find(kernel: &Kernel<'_>, folders: &Folders) -> Option<PathBuf> {
    open(kernel, folders).map(|(place, _)| place)
}

/// The same, opened.
pub fn open(kernel: &Kernel<'_>, folders: &Folders) -> Option<(PathBuf, Symbols)> {
    places(kernel, folders).into_iter().find_map(|place| {
        let file = file_at(&place, kernel)?;
        // What was booted is what somebody has named.
        let is_named = kernel.file == Some(&place);
        // What is no file of symbols is another one's.
        let symbols = Symbols::open(file).ok()?;
        // A guest may claim any build id, and is not to have a program's symbols read.
        let is_kernels = || symbols.has_segment_from(KERNELS_HALF) && has_kernels_symbols(&symbols);
        let is_its = is_of(&place, &symbols, kernel) && (is_named || is_kernels());
        is_its.then_some((place, symbols))
    })
}

/// Where the kernel's half of the address space begins (x86: canonical addresses; Arm ARM, "VMSAv8-64": those of TTBR1_EL1).
const KERNELS_HALF: u64 = 1 << 63;

/// Whether a file has a name that each Linux kernel has, at a place of a kernel's.
fn has_kernels_symbols(symbols: &Symbols) -> bool {
    let symbols = symbols.moved(0);
    ["_stext", "start_kernel", "linux_banner"].iter().any(|name| {
        let found = symbols.find(name).unwrap_or_default();
        found.iter().any(|symbol| symbol.address >= KERNELS_HALF)
    })
}

/// The file of a module's build, by its id in hexadecimal digits.
pub fn open_module(build_id: &str, folders: &Folders) -> Option<ModuleFile> {
    let kernel = Kernel { build_id: Some(build_id), ..Kernel::default() };
    places(&kernel, folders).into_iter().find_map(|place| {
        let module = ModuleFile::open(file_at(&place, &kernel)?).ok()?;
        let is_its = module.build_id().is_some_and(|its| build_id.eq_ignore_ascii_case(&hexadecimal(its)));
        is_its.then_some(module)
    })
}

/// A file at a place; `None` of what cannot be read, or may be another user's.
fn file_at(place: &Path, kernel: &Kernel<'_>) -> Option<File> {
    let file = given_file::open(place).ok()?;
    let its = file.metadata().ok()?;
    // What was booted is what somebody has named.
    let may_be = kernel.file == Some(place) || (is_trusted(&its) && its.mode() & 0o002 == 0);
    may_be.then_some(file)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_of(place: &Path, symbols: &Symbols, kernel: &Kernel<'_>) -> bool {
    let its = symbols.build_id().map(|id| hexadecimal(&id));
    match (kernel.build_id, its) {
        (Some(wanted), Some(its)) => wanted.eq_ignore_ascii_case(&its),
        (Some(_), None) => false,
        // No Linux, or one that has not begun: what was booted is what it is.
        (None, _) if kernel.release.is_none() => kernel.file == Some(place),
        // A tree's file is of whatever was built last.
        (None, _) => kernel.release.is_some_and(|release| place.to_string_lossy().contains(release)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use arch::Isa;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A file that a kernel of an architecture was linked to: its header (gABI, figure 4-3), a segment, one symbol, and with
    /// an id a section of notes (`NT_GNU_BUILD_ID`).
    pub fn with_build_id(isa: Isa, id: &str) -> Vec<u8> {
        linked(isa, id, 0xffff_8000_0800_0000, ("_stext", 0xffff_8000_0800_0000))
    }

    /// One without an id.
    pub fn kernel_of(isa: Isa) -> Vec<u8> {
        with_build_id(isa, "")
    }

    /// One that is linked to an address, with a symbol.
    fn linked(isa: Isa, id: &str, address: u64, (symbol, symbol_at): (&str, u64)) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.note.gnu.build-id\0.shstrtab\0.symtab\0.strtab\0.text\0";
        fn put(file: &mut Vec<u8>, fields: &[(u64, usize)]) {
            fields.iter().for_each(|(value, size)| file.extend(&value.to_le_bytes()[..*size]));
        }
        let id: Vec<u8> =
            (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
        let machine = match isa {
            Isa::X86_64 => 62,
            Isa::Aarch64 => 183,
        };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        // The segment.
        put(&mut file, &[(1, 4), (5, 4), (0, 8), (address, 8), (0, 8), (0, 8), (4096, 8), (4096, 8)]);
        let note_at = file.len();
        put(&mut file, &[(4, 4), (id.len() as u64, 4), (3, 4)]);
        file.extend(b"GNU\0");
        file.extend(&id);
        let note_end = file.len();
        file.extend(NAMES);
        let names_end = file.len();
        file.extend(b"\0");
        file.extend(symbol.as_bytes());
        file.extend(b"\0");
        file.resize(file.len().next_multiple_of(8), 0);
        let symbols_at = file.len();
        file.resize(symbols_at + 24, 0);
        // STB_GLOBAL, STT_NOTYPE, in the last section.
        put(&mut file, &[(1, 4), (1 << 4, 1), (0, 1), (5, 2), (symbol_at, 8), (0, 8)]);
        let sections_at = file.len();
        file.resize(sections_at + 64, 0);
        let mut section = |name: u64, kind, (at, end): (usize, usize), link, entry| {
            let (at, size) = (at as u64, (end - at) as u64);
            let fields = [(name, 4), (kind, 4), (2, 8), (0, 8), (at, 8), (size, 8), (link, 4), (1, 4)];
            put(&mut file, &fields);
            put(&mut file, &[(4, 8), (entry, 8)]);
        };
        section(1, if id.is_empty() { 0 } else { 7 }, (note_at, note_end), 0, 0);
        section(20, 3, (note_end, names_end), 0, 0);
        section(30, 2, (symbols_at, symbols_at + 48), 4, 24);
        section(38, 3, (names_end, symbols_at), 0, 0);
        // SHT_NOBITS, as in files that are for debuggers.
        put(&mut file, &[(46, 4), (8, 4), (6, 8), (address, 8), (64, 8), (4096, 8), (0, 8), (16, 8), (0, 8)]);
        let fields = [
            (16, 2, 2),
            (18, machine, 2),
            (20, 1, 4),
            (32, 64, 8),
            (40, sections_at as u64, 8),
            (52, 64, 2),
            (54, 56, 2),
            (56, 1, 2),
            (58, 64, 2),
            (60, 6, 2),
            (62, 2, 2),
        ];
        for (at, value, size) in fields {
            file[at..at + size].copy_from_slice(&u64::to_le_bytes(value)[..size]);
        }
        file
    }

    /// A guest may say that it is any build that this user has files of.
    #[test]
    fn a_programs_file_is_no_kernels() {
        const ID: &str = "0011223344";
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join(ID);
        fs::create_dir(&folder).unwrap();
        let file = folder.join("debuginfo");
        let folders = Folders::of_debuginfod(cache.path());
        let kernel = Kernel { build_id: Some(ID), release: Some("6.12"), file: None };
        for isa in Isa::ALL {
            const HIGH: u64 = 0xffff_ffff_8100_0000;
            for (address, symbol, is_kernels) in [
                (HIGH, ("_stext", HIGH), true),
                (KERNELS_HALF, ("start_kernel", KERNELS_HALF), true),
                (HIGH, ("linux_banner", HIGH), true),
                (0x40_0000, ("_stext", HIGH), false),
                (HIGH, ("_stext", 0x40_0000), false),
                (HIGH, ("main", HIGH), false),
            ] {
                fs::write(&file, linked(isa, ID, address, symbol)).unwrap();
                assert_eq!(find(&kernel, &folders).is_some(), is_kernels, "{isa} {address:#x} {symbol:x?}");
            }
            // Cut off anywhere it is nobody's.
            let whole = with_build_id(isa, ID);
            for length in (0..whole.len()).step_by(11) {
                fs::write(&file, &whole[..length]).unwrap();
                assert_eq!(find(&kernel, &folders), None, "{length}");
            }
        }
    }

    /// In a cell nothing else can be opened.
    #[test]
    fn each_place_of_a_kernels_is_to_be_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in
            ["boot", "lib/modules/6.12", "linux/arch/x86/boot", "home/linux", "usr/lib/debug/boot", "links"]
        {
            fs::create_dir_all(at(folder)).unwrap();
        }
        std::os::unix::fs::symlink(at("home/linux"), at("lib/modules/6.12/build")).unwrap();
        std::os::unix::fs::symlink(at("linux/arch/x86/boot/bzImage"), at("links/kernel")).unwrap();
        let folders = Folders::new(root.path(), vec![at("cache")]);
        for file in ["linux/arch/x86/boot/bzImage", "boot/vmlinuz-6.12", "links/kernel"].map(at) {
            fs::write(&file, "no ELF file").unwrap();
            let kernel = Kernel { release: Some("6.12"), build_id: Some("0011"), file: Some(&file) };
            let mut tried = 0;
            for place in places(&kernel, &folders).iter().filter(|place| place.starts_with(root.path())) {
                let is_there = place.exists();
                let Some(folder) = place.parent().filter(|it| it.exists()) else { continue };
                if !is_there {
                    fs::write(place, with_build_id(Isa::X86_64, "0011")).unwrap();
                }
                let readable = folders.readable(Some(&file));
                assert!(
                    *place == file || readable.iter().any(|it| place.starts_with(it)),
                    "{} of {}: {readable:?}",
                    place.display(),
                    folder.display()
                );
                // Nothing but what is found.
                assert!(!readable.iter().any(|it| file.starts_with(it)), "{readable:?}");
                tried += 1;
                if !is_there {
                    fs::remove_file(place).unwrap();
                }
            }
            assert!(tried > 6, "{tried}");
        }
        // What a link leads to is in a tree of its own.
        let linked = Kernel { file: Some(&at("links/kernel")), ..Kernel::default() };
        assert!(places(&linked, &folders).contains(&at("linux/vmlinux")));
    }

    #[test]
    fn no_path_is_no_folder_of_ones_own() {
        assert!(!is_private(Path::new("")) && is_private(Path::new("/nowhere/at/all")));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_private(&file.path().join("below")), "it cannot be looked at");
        let here = env::current_dir().unwrap();
        let readable = Folders::default().readable(Some(Path::new("bzImage")));
        assert_eq!(readable.contains(&here.join("vmlinux")), is_private(&here));
    }

    /// Whoever may write to a file may say anything by it.
    #[test]
    fn what_everybody_may_write_to_is_not_taken() {
        const ID: &str = "0011223344";
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join(ID);
        fs::create_dir(&folder).unwrap();
        let file = folder.join("debuginfo");
        fs::write(&file, with_build_id(Isa::X86_64, ID)).unwrap();
        let kernel = Kernel { build_id: Some(ID), ..Kernel::default() };
        let found = || find(&kernel, &Folders::of_debuginfod(cache.path()));
        for (mode, is_taken) in [(0o644, true), (0o666, false), (0o400, true)] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert_eq!(found().is_some(), is_taken, "{mode:o}");
        }
        // Nobody has the other end of it: it is not waited for.
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(found(), None);
    }

    #[test]
    fn no_more_than_folders_of_debug_information_are_to_be_read() {
        let all = ["/", "relative", "/home/x/../y", "/home/x/.cache/debuginfod_client"];
        let folders = Folders::new(Path::new("/"), all.map(PathBuf::from).into());
        assert_eq!(folders.debuginfod, [PathBuf::from("/home/x/.cache/debuginfod_client")]);
        let readable = folders.readable(None);
        assert_eq!(readable[..2], ["/usr/lib/debug", "/home/x/.cache/debuginfod_client"].map(PathBuf::from));
        assert!(
            readable[2..].iter().all(|it| it.file_name().unwrap().to_str().unwrap().starts_with("vmlinux"))
        );
    }

    #[test]
    fn the_surest_places_come_first() {
        let folders = Folders::of_debuginfod(Path::new("/cache"));
        let kernel = Kernel {
            release: Some("6.12.1-cloud"),
            build_id: Some("ab01cd"),
            file: Some(Path::new("/tree/arch/x86/boot/bzImage")),
        };
        let found = places(&kernel, &folders);
        let at = |place: &str| found.iter().position(|it| it == Path::new(place)).expect(place);
        assert_eq!(at("/usr/lib/debug/.build-id/ab/01cd.debug"), 0);
        assert!(at("/cache/ab01cd/debuginfo") < at("/tree/vmlinux"));
        assert!(at("/tree/vmlinux") < at("/usr/lib/debug/boot/vmlinux-6.12.1-cloud"));
        assert!(at("/tree/arch/x86/boot/vmlinux-6.12.1-cloud") < at("/boot/vmlinux-6.12.1-cloud"));
        assert_eq!(places(&Kernel::default(), &folders), Vec::<PathBuf>::new());
    }

    /// Another user may have put something there, for whoever boots a kernel from a folder that everybody has.
    #[test]
    fn what_others_may_have_made_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("tree/arch/boot");
        std::fs::create_dir_all(&deep).unwrap();
        let file = deep.join("bzImage");
        let kernel = Kernel { release: Some("6.12"), build_id: None, file: Some(&file) };
        let beside = || -> Vec<PathBuf> {
            let places = places(&kernel, &Folders::default()).into_iter();
            places.filter(|it| it.starts_with(folder.path()) && *it != file).collect()
        };
        let tree = folder.path().join("tree");
        let all = [deep.join("vmlinux"), tree.join("arch/vmlinux"), tree.join("vmlinux")];
        assert!(all.iter().all(|place| beside().contains(place)));
        std::fs::set_permissions(&tree, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(beside(), [&all[0], &all[1], &deep.join("vmlinux-6.12")].map(PathBuf::clone));
        std::fs::set_permissions(&deep, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(beside(), Vec::<PathBuf>::new());
        let its = folder.path().metadata().unwrap();
        assert!(is_of_user(&its, its.uid()) && (its.uid() == 0 || !is_of_user(&its, its.uid() + 1)));
        // Everybody has root's.
        assert!(is_of_user(&Path::new("/").metadata().unwrap(), 1) && is_trusted(&its));
    }

    /// A guest may say anything of itself.
    #[test]
    fn a_guests_words_lead_nowhere_else() {
        for release in ["../../etc/passwd", "a/b", "", ".hidden", "a b", "\u{202e}x"] {
            let kernel = Kernel { release: Some(release), build_id: Some("../../x"), file: None };
            assert!(places(&kernel, &Folders::default()).is_empty(), "{release}");
        }
    }

    #[test]
    fn a_file_is_a_kernels_by_its_build_id() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vmlinux");
        const ID: &str = "00aaff";
        std::fs::write(&place, with_build_id(Isa::X86_64, ID)).unwrap();
        let file = folder.path().join("bzImage");
        let kernel = |build_id| Kernel { release: Some("6.12"), build_id, file: Some(&file) };
        let of_build = |build_id| find(&kernel(build_id), &Folders::default());
        assert_eq!(of_build(Some(ID)), Some(place.clone()));
        assert_eq!((of_build(Some("0123")), of_build(None)), (None, None));
        // One that is no Linux has those of the file that was booted, and of no other.
        let bare = |file: &Path| find(&Kernel { file: Some(file), ..Kernel::default() }, &Folders::default());
        assert_eq!((bare(&place), bare(&file)), (Some(place.clone()), None));
        // Cut off, or no such file at all.
        std::fs::write(&place, b"\x7fELF").unwrap();
        assert_eq!(of_build(Some(ID)), None);
    }
}
