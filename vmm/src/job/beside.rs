//! What a command needs of this host's files beside those of its root: the folder where it runs, where something else is
//! mounted, or where every guest has a file system of its own.
//!
//! A shared folder crosses no mounts (docs/shares.md). So a working folder on a disk of its own, in a volume of a
//! container, or below `/tmp` is not in the share of `/`.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use std::fs;
use std::path::{Path, PathBuf};

/// What is the guest's kernel's own.
const KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];
/// What begins empty in every guest.
pub const EMPTY: [&str; 2] = ["/run", "/tmp"];

/// Whether a folder, without links, is what every guest has of its own: its root, or the kernel's.
pub fn is_guests_own(folder: &Path) -> bool {
    folder == Path::new("/") || KERNELS.iter().any(|place| folder.starts_with(place))
}

/// The folder that has to be shared beside `/`, for a command to run in `folder`: all of what is mounted there, or the
/// folder itself where everything around it begins empty. None if the share of `/` has it, or nobody has.
pub fn root(folder: &Path) -> Option<PathBuf> {
    // One that is not there is told of by the guest, which does not find it either.
    let folder = fs::canonicalize(folder).ok().filter(|folder| folder.is_dir())?;
    if KERNELS.iter().any(|place| folder.starts_with(place)) {
        return None;
    }
    if let Some(place) = EMPTY.iter().find(|place| folder.starts_with(place)) {
        return (folder != Path::new(place)).then_some(folder);
    }
    if !is_mounted_apart(Path::new("/"), &folder) {
        return None;
    }
    let tops = folder.ancestors().take_while(|top| !is_mounted_apart(top, &folder));
    tops.last().map(Path::to_path_buf)
}

/// Whether a mount lies on the way from a folder to one below it. A host that cannot say so refuses shares, too.
pub fn is_mounted_apart(top: &Path, folder: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let below = folder.strip_prefix(top).unwrap_or(folder);
    let below = if below == Path::new("") { Path::new(".") } else { below };
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_XDEV);
    let opened = open(top, flags, Mode::empty()).and_then(|top| openat2(&top, below, how));
    opened.err() == Some(Errno::EXDEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_roots_share_has_is_not_shared_again() {
        assert_eq!(root(Path::new("/")), None);
        assert_eq!(root(Path::new("/usr/nothing/here")), None);
        // Not a folder, and nothing of the host's.
        assert_eq!(root(Path::new("/etc/passwd")), None);
        assert_eq!(root(Path::new("/proc/self")), None);
        assert_eq!(root(Path::new("/tmp")), None);
    }

    #[test]
    fn a_mount_on_the_way_is_seen() {
        // Each Linux has it (proc(5)), and a mount at it.
        let of_process = Path::new("/proc/sys/kernel");
        assert!(is_mounted_apart(Path::new("/"), of_process));
        assert!(is_mounted_apart(Path::new("/"), Path::new("/proc")));
        assert!(!is_mounted_apart(Path::new("/proc"), Path::new("/proc")));
        assert!(!is_mounted_apart(Path::new("/usr"), Path::new("/usr/bin")));
    }

    #[test]
    fn a_folder_among_what_is_empty_is_shared_alone() {
        let folder = fs::canonicalize("/tmp").unwrap().join(format!("vmm-beside-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        let within = root(&folder.join("a/b"));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(within, Some(folder.join("a/b")));
    }
}
