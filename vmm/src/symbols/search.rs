//! Where a kernel's symbols may be, that somebody has not named: by its build id, by its release, beside its file.
//!
//! Source: GDB manual, "Debugging Information in Separate Files"; debuginfod_find_debuginfo(3), "CACHE".

use debug::symbols::Symbols;
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
}

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
        places.push(format!("/usr/lib/debug/.build-id/{first}/{rest}.debug").into());
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
    places(kernel, folders).into_iter().find(|place| is_of(place, kernel))
}

fn is_of(place: &Path, kernel: &Kernel<'_>) -> bool {
    let opened = || {
        let file = File::open(place).ok()?;
        // What was booted is what somebody has named.
        let may_be = kernel.file == Some(place) || is_trusted(&file.metadata().ok()?);
        may_be.then_some(file)
    };
    // What is no file of symbols, or cannot be read, is another one's.
    let Some(symbols) = opened().and_then(|file| Symbols::open(file).ok()) else {
        return false;
    };
    let its = symbols.build_id().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
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
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

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
