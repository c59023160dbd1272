//! Where a kernel's symbols may be, that somebody has not named: by its build id, by its release, beside its file.
//!
//! Source: GDB manual, "Debugging Information in Separate Files"; debuginfod_find_debuginfo(3), "CACHE".

use crate::given_file;
use debug::symbols::{ModuleFile, Symbols};
use std::env;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// Folders of a user's, as the environment has them.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    debuginfod: Vec<PathBuf>,
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
        Folders { debuginfod: all.into_iter().flatten().collect() }
    }

    #[cfg(test)]
    pub fn of_debuginfod(cache: &Path) -> Folders {
        Folders { debuginfod: vec![cache.into()] }
    }

    /// Those in which files are by their build ids, to be read: distributions', and debuginfod's caches.
    pub fn by_build_id(&self) -> impl Iterator<Item = &Path> {
        // What is no place of its own is none for files that are kept.
        let is_own = |folder: &&PathBuf| folder.is_absolute() && folder.parent().is_some();
        [Path::new(DEBUG)].into_iter().chain(self.debuginfod.iter().filter(is_own).map(PathBuf::as_path))
    }
}

/// Where distributions keep what is for debuggers.
const DEBUG: &str = "/usr/lib/debug";

/// Where a release or a build id may lead: a guest's words make no path of their own.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.+~".contains(it))
}

/// Folders that the booted file is in, the nearest first, up to one in which everybody may put something (as `/tmp`).
fn above<'a>(kernel: &Kernel<'a>) -> impl Iterator<Item = &'a Path> + use<'a> {
    kernel.file.into_iter().flat_map(Path::ancestors).skip(1).take(4).take_while(|folder| is_private(folder))
}

/// Whether nobody else may have put something in a folder. What is not there has nothing in it.
pub fn is_private(folder: &Path) -> bool {
    folder.metadata().map_or(true, |it| it.mode() & 0o002 == 0 && is_trusted(&it))
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
        places.push(format!("{DEBUG}/.build-id/{first}/{rest}.debug").into());
        places.extend(folders.debuginfod.iter().map(|cache| cache.join(id).join("debuginfo")));
    }
    // What was booted may have them itself.
    places.extend(kernel.file.map(Path::to_path_buf));
    // `make` leaves the one beside or above the other.
    let mut above = above(kernel);
    let beside = above.next();
    places.extend(beside.into_iter().chain(above).map(|folder| folder.join("vmlinux")));
    if let Some(release) = kernel.release.filter(|release| is_name(release)) {
        places.extend(beside.map(|it| it.join(format!("vmlinux-{release}"))));
        for place in [
            "usr/lib/debug/boot/vmlinux-{}",
            "usr/lib/debug/lib/modules/{}/vmlinux",
            "boot/vmlinux-{}",
            "lib/modules/{}/build/vmlinux",
            "lib/modules/{}/vmlinux",
        ] {
            places.push(Path::new("/").join(place.replace("{}", release)));
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
        // What is no file of symbols is another one's.
        let symbols = Symbols::open(file_at(&place, kernel)?).ok()?;
        is_of(&place, &symbols, kernel).then_some((place, symbols))
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

    /// A file that a kernel of an architecture was linked to: no more than its header (gABI, figure 4-3), and with an id
    /// a section of notes (`NT_GNU_BUILD_ID`).
    pub fn with_build_id(isa: Isa, id: &str) -> Vec<u8> {
        let id: Vec<u8> =
            (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
        let length = u32::try_from(id.len()).unwrap();
        let mut note: Vec<u8> = [4, length, 3].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        note.extend(b"GNU\0");
        note.extend(&id);
        let names = b"\0.note.gnu.build-id\0.shstrtab\0";
        let (note_at, names_at) = (64, 64 + note.len());
        let sections_at = (names_at + names.len()).next_multiple_of(8);
        let section = |name: u32, kind: u32, at: usize, size: usize| {
            let mut bytes = [name, kind].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
            for word in [0, 0, at, size, 0, 4, 0] {
                bytes.extend((word as u64).to_le_bytes());
            }
            bytes
        };
        let mut file = kernel_of(isa);
        if length > 0 {
            file[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
            for (at, half) in [(58, 64u16), (60, 3), (62, 2)] {
                file[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
            file.extend(&note);
            file.extend(names);
            file.resize(sections_at, 0);
            file.extend([0; 64]);
            file.extend(section(1, 7, note_at, note.len()));
            file.extend(section(20, 3, names_at, names.len()));
        }
        file
    }

    /// One without an id.
    pub fn kernel_of(isa: Isa) -> Vec<u8> {
        let machine: u16 = match isa {
            Isa::X86_64 => 62,
            Isa::Aarch64 => 183,
        };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        for (at, half) in [(16, 2), (18, machine), (20, 1), (52, 64)] {
            file[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        file
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
        let folders = Folders {
            debuginfod: ["/", "relative", "/home/x/.cache/debuginfod_client"].map(PathBuf::from).into(),
        };
        let all: Vec<&Path> = folders.by_build_id().collect();
        assert_eq!(all, ["/usr/lib/debug", "/home/x/.cache/debuginfod_client"].map(Path::new));
    }

    #[test]
    fn the_surest_places_come_first() {
        let folders = Folders { debuginfod: vec!["/cache".into()] };
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
        std::fs::copy(env::current_exe().unwrap(), &place).unwrap();
        let its = Symbols::open(File::open(&place).unwrap()).unwrap();
        let its = its.build_id().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let file = folder.path().join("bzImage");
        let kernel = |build_id| Kernel { release: Some("6.12"), build_id, file: Some(&file) };
        let of_build = |build_id| find(&kernel(build_id), &Folders::default());
        assert_eq!(of_build(its.as_deref().or(Some("00"))), its.is_some().then(|| place.clone()));
        assert_eq!((of_build(Some("0123")), of_build(None)), (None, None));
        // One that is no Linux has those of the file that was booted, and of no other.
        let bare = |file: &Path| find(&Kernel { file: Some(file), ..Kernel::default() }, &Folders::default());
        assert_eq!((bare(&place), bare(&file)), (Some(place.clone()), None));
        // Cut off, or no such file at all.
        std::fs::write(&place, b"\x7fELF").unwrap();
        assert_eq!(of_build(its.as_deref()), None);
    }
}
