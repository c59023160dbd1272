//! Where a dump goes: a folder that is held open, and a name in it.
//!
//! What a debugger asks for may only lie below one folder, and must be new ([`Destination::below`]): whoever
//! can speak to gdb's port may debug the guest, not change the host's files. So a path is walked from
//! that folder on, a name at a time, and what is a link is not followed; nothing that happens to the
//! folders meanwhile leads elsewhere. What the user asks for may be anywhere, and links are followed, but
//! not those that somebody else has put into a folder that everybody may write to, as Linux has it with
//! `fs.protected_symlinks` and `fs.protected_regular` (`Documentation/admin-guide/sysctl/fs.rst`).
//!
//! A dump is all of a guest's memory, so only its owner can read it; one that replaces a file has that
//! file's owner and mode. It has its name when it is on disk, and the folder that has the name is, too.

use super::error::WriteError;
use crate::dump::packing::{Packing, check_name};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, geteuid, linkat, unlinkat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Names that are tried for a file that is not whole yet.
const MOST_PARTIAL: u32 = 100;
/// Links that one path may go over, as in Linux.
const MOST_LINKS: u32 = 40;
/// A folder that everybody may write to, in which each has files of its own.
const SHARED: u32 = 0o1002;

/// Where a dump goes.
#[derive(Debug)]
pub struct Destination {
    folder: OwnedFd,
    name: OsString,
    /// As it was asked for.
    shown: PathBuf,
    /// Nothing may be there.
    is_new: bool,
}

/// What may be too little for a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Room on the disk.
    Disk {
        /// Bytes that may be written there now.
        free: u64,
        /// Bytes of the memory; pages of zeros need no room.
        memory: u64,
    },
    /// How large this process's files may become (`RLIMIT_FSIZE`, which shells know as `ulimit -f`).
    FileSize {
        /// Bytes.
        limit: u64,
        /// Bytes of the memory.
        memory: u64,
    },
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: &u64| bytes >> 20;
        match self {
            Shortage::Disk { free, memory } => write!(
                f,
                "{} MiB are free there, and a core of {} MiB of memory may need all of that; make room, or have it \
                 compressed (.gz, .zst)",
                mib(free),
                mib(memory)
            ),
            Shortage::FileSize { limit, memory } => write!(
                f,
                "a file may become {limit} bytes large (ulimit -f), which may be too little for a core of {} MiB of \
                 memory",
                mib(memory)
            ),
        }
    }
}

/// What may be too little where a file is.
fn shortage(file: &File, memory: u64) -> nix::Result<Option<Shortage>> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    let there = fstatvfs(file)?;
    let free = there.blocks_available().saturating_mul(there.fragment_size());
    // A file system that does not count says that it has no blocks at all.
    Ok(short_of(limit, (there.blocks() != 0).then_some(free), memory))
}

fn short_of(limit: u64, free: Option<u64>, memory: u64) -> Option<Shortage> {
    if limit < memory {
        return Some(Shortage::FileSize { limit, memory });
    }
    free.filter(|free| *free < memory).map(|free| Shortage::Disk { free, memory })
}

/// A path that is walked, a name at a time.
struct Walk<'a> {
    path: &'a Path,
    folder: OwnedFd,
    left: VecDeque<OsString>,
    links: u32,
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter(|part| *part != Component::CurDir).map(|part| part.as_os_str().to_owned())
}

impl Walk<'_> {
    fn failed(&self, source: impl Into<io::Error>) -> WriteError {
        WriteError::Io { path: self.path.into(), source: source.into() }
    }

    /// Goes to the last folder; the name that is left.
    fn last(mut self) -> Result<(OwnedFd, OsString), WriteError> {
        while let Some(name) = self.left.pop_front() {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let is_last = self.left.is_empty();
            let next = match openat(&self.folder, name.as_os_str(), flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) if is_last => return Ok((self.folder, name)),
                Err(error) => return Err(self.failed(error)),
            };
            let found = fstat(&next).map_err(|error| self.failed(error))?;
            match kind_of(&found) {
                SFlag::S_IFLNK => self.follow(&name, &found)?,
                _ if is_last => return Ok((self.folder, name)),
                SFlag::S_IFDIR => self.folder = next,
                _ => return Err(self.failed(Errno::ENOTDIR)),
            }
        }
        Err(WriteError::NoFile(self.path.into()))
    }

    /// Goes on where a link leads.
    fn follow(&mut self, name: &OsStr, link: &FileStat) -> Result<(), WriteError> {
        if is_foreign(&self.folder, link).map_err(|error| self.failed(error))? {
            return Err(WriteError::Foreign(self.path.into()));
        }
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(self.failed(Errno::ELOOP));
        }
        let target = readlinkat(&self.folder, name).map_err(|error| self.failed(error))?;
        for part in names(Path::new(&target)).rev() {
            self.left.push_front(part);
        }
        Ok(())
    }
}

fn kind_of(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

/// Whether somebody else has put this into a folder that everybody may write to.
fn is_foreign(folder: &OwnedFd, found: &FileStat) -> nix::Result<bool> {
    let holder = fstat(folder)?;
    Ok(is_others(holder.st_mode, holder.st_uid, found.st_uid, geteuid().as_raw()))
}

/// Whether what `owner` has in a folder of `holder`'s is neither the folder's owner's nor `own`.
fn is_others(mode: u32, holder: u32, owner: u32, own: u32) -> bool {
    mode & SHARED == SHARED && owner != own && owner != holder
}

impl Destination {
    /// Anywhere; a file that is there is replaced.
    ///
    /// # Errors
    /// [`WriteError`] where no file can be.
    pub fn anywhere(path: &Path) -> Result<Destination, WriteError> {
        check_name(path).map_err(|why| WriteError::Name { path: path.into(), why })?;
        if path.file_name().is_none() {
            return Err(WriteError::NoFile(path.into()));
        }
        // What begins with a slash begins at the root, whatever this is, in a link's target as well.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(if path.is_absolute() { "/" } else { "." }, flags, Mode::empty());
        let folder = folder.map_err(|error| WriteError::Io { path: path.into(), source: error.into() })?;
        let walk = Walk { path, folder, left: names(path).collect(), links: 0 };
        let (folder, name) = walk.last()?;
        Ok(Destination { folder, name, shown: path.into(), is_new: false })
    }

    /// Below `folder`, by a path without `..` and without links; nothing may be there yet.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn below(folder: &Path, path: &Path) -> Result<Destination, WriteError> {
        check_name(path).map_err(|why| WriteError::Name { path: path.into(), why })?;
        let outside = || WriteError::Outside { path: path.into(), folder: folder.into() };
        let failed = |source: io::Error| WriteError::Io { path: path.into(), source };
        let mut names = path.components().filter(|part| *part != Component::CurDir).peekable();
        let mut open: OwnedFd = File::open(folder).map_err(failed)?.into();
        while let Some(part) = names.next() {
            let Component::Normal(name) = part else { return Err(outside()) };
            if names.peek().is_none() {
                let place = Destination { folder: open, name: name.into(), shown: path.into(), is_new: true };
                return if place.found()?.is_none() {
                    Ok(place)
                } else {
                    Err(WriteError::Exists(path.into()))
                };
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            open = match openat(&open, name, flags, Mode::empty()) {
                Ok(next) => next,
                // A link is one of the two, by kernel.
                Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(outside()),
                Err(error) => return Err(failed(error.into())),
            };
        }
        Err(WriteError::NoFile(path.into()))
    }

    /// As it was asked for.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Finds out whether a core of so many bytes of memory can be written there, by making a file that goes again:
    /// long before it is. What may turn out to be too little then is answered.
    ///
    /// # Errors
    /// [`WriteError`], as when it is written.
    pub fn check(&self, memory: u64) -> Result<Option<Shortage>, WriteError> {
        let (_partial, file) = self.create()?;
        let shortage = shortage(&file, memory).map_err(|error| self.failed(error))?;
        match shortage {
            // A file with holes is as large as the memory, whatever is in that.
            Some(Shortage::FileSize { limit, memory }) if !self.is_compressed() => {
                Err(WriteError::TooLarge { path: self.shown.clone(), memory, limit })
            }
            shortage => Ok(shortage),
        }
    }

    fn is_compressed(&self) -> bool {
        Packing::of_path(&self.shown).is_some()
    }

    fn failed(&self, source: impl Into<io::Error>) -> WriteError {
        WriteError::Io { path: self.shown.clone(), source: source.into() }
    }

    /// What is there, if something is.
    fn found(&self) -> Result<Option<FileStat>, WriteError> {
        match fstatat(&self.folder, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The file that it replaces, if there is one and it may.
    fn replaced(&self) -> Result<Option<FileStat>, WriteError> {
        let Some(found) = self.found()? else { return Ok(None) };
        if kind_of(&found) != SFlag::S_IFREG {
            return Err(WriteError::NoFile(self.shown.clone()));
        }
        match is_foreign(&self.folder, &found).map_err(|error| self.failed(error))? {
            true => Err(WriteError::Foreign(self.shown.clone())),
            false => Ok(Some(found)),
        }
    }

    /// Makes a file beside it that is to be it when it is whole.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn create(&self) -> Result<(Partial<'_>, File), WriteError> {
        let replaced = self.replaced()?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut number = 0;
        let (name, file) = loop {
            let mut name = self.name.clone();
            name.push(format!(".partial-{}-{number}", std::process::id()));
            match openat(&self.folder, name.as_os_str(), flags, mode) {
                Ok(file) => break (name, File::from(file)),
                // Another dump's; or one is left of a process that was killed and had the same number,
                // as in containers all have.
                Err(Errno::EEXIST) if number < MOST_PARTIAL => number += 1,
                Err(error) => return Err(self.failed(error)),
            }
        };
        let partial = Partial { destination: self, name, kept: false };
        if let Some(replaced) = replaced {
            inherit(&file, &replaced).map_err(|error| self.failed(error))?;
        }
        Ok((partial, file))
    }
}

/// Gives a file owner and mode of the one that it replaces. Where the owner cannot be given, nobody but ours may
/// do anything with it.
fn inherit(file: &File, replaced: &FileStat) -> nix::Result<()> {
    let own = fstat(file)?;
    let owner = (replaced.st_uid, replaced.st_gid);
    let is_given = (own.st_uid, own.st_gid) == owner
        || fchown(file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1))).is_ok();
    let mask = if is_given { 0o777 } else { 0o700 };
    fchmod(file, Mode::from_bits_truncate(replaced.st_mode & mask))
}

/// Has a folder's names on disk, as far as its file system has that.
fn sync_folder(folder: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let synced = openat(folder, ".", flags, Mode::empty()).and_then(|open| fsync(open.as_fd()));
    match synced {
        // Not every file system can, nor may everybody read a folder who may write to it.
        Err(Errno::EINVAL | Errno::EROFS | Errno::EACCES | Errno::EOPNOTSUPP) => Ok(()),
        synced => synced,
    }
}

/// A file that goes unless it is kept.
#[derive(Debug)]
pub struct Partial<'a> {
    destination: &'a Destination,
    name: OsString,
    kept: bool,
}

impl Partial<'_> {
    /// Gives it its name, once all of it is on disk.
    ///
    /// # Errors
    /// [`WriteError`]; then nothing of it is left.
    pub fn keep(mut self, file: &File) -> Result<(), WriteError> {
        let failed = |error: io::Error| self.destination.failed(error);
        match file.sync_all() {
            Err(error) if error.raw_os_error() != Some(Errno::EINVAL as i32) => return Err(failed(error)),
            _ => {}
        }
        self.name()?;
        sync_folder(&self.destination.folder).map_err(|error| self.destination.failed(error))
    }

    fn name(&mut self) -> Result<(), WriteError> {
        let Destination { folder, name, is_new, .. } = self.destination;
        let own: &OsStr = &self.name;
        if *is_new {
            // A link does not replace what has come there meanwhile; its first name goes with this value.
            match linkat(folder, own, folder, name.as_os_str(), AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => return Err(WriteError::Exists(self.destination.shown.clone())),
                // A file system without such links.
                Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(error) => return Err(self.destination.failed(error)),
            }
            if self.destination.found()?.is_some() {
                return Err(WriteError::Exists(self.destination.shown.clone()));
            }
        }
        renameat(folder, own, folder, name.as_os_str()).map_err(|error| self.destination.failed(error))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) =
                unlinkat(&self.destination.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
        {
            log::warn!("{} is left over: {error}", self.name.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_of_the_folder_and_nothing_old() {
        let folder = std::env::temp_dir().join(format!("vmm-place-{}", std::process::id()));
        fs::remove_dir_all(&folder).ok();
        let (inside, outside) = (folder.join("inside"), folder.join("outside"));
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(inside.join("old"), "old").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        symlink(outside.join("file"), inside.join("dangling")).unwrap();
        let below = |path: &str| Destination::below(&inside, Path::new(path));
        for path in ["/etc/x", "../outside/x", "sub/../x", "link/x", "old/x"] {
            assert!(matches!(below(path), Err(WriteError::Outside { .. })), "{path}");
        }
        for path in ["old", "dangling", "link", "sub"] {
            assert!(matches!(below(path), Err(WriteError::Exists(_))), "{path}");
        }
        assert!(matches!(below("."), Err(WriteError::NoFile(_))));
        assert!(matches!(below("no/x"), Err(WriteError::Io { .. })));
        for path in ["new", "./sub/new"] {
            let place = below(path).unwrap();
            let (partial, file) = place.create().unwrap();
            partial.keep(&file).unwrap();
        }
        // What has come meanwhile stays.
        let place = below("late").unwrap();
        let (partial, file) = place.create().unwrap();
        fs::write(inside.join("late"), "late").unwrap();
        assert!(matches!(partial.keep(&file), Err(WriteError::Exists(_))));
        assert_eq!(fs::read_to_string(inside.join("late")).unwrap(), "late");
        let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert_eq!((count(&inside), count(&inside.join("sub")), count(&outside)), (6, 1, 0));
    }

    /// A folder of a test's own.
    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vmm-{name}-{}", std::process::id()));
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn write_to(path: &Path) -> Result<(), WriteError> {
        let place = Destination::anywhere(path)?;
        assert_eq!(place.check(0)?, None);
        let (partial, file) = place.create()?;
        partial.keep(&file)
    }

    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::MetadataExt;
        fs::symlink_metadata(path).unwrap().mode()
    }

    #[test]
    fn nobody_else_can_read_it_unless_they_could_before() {
        use std::os::unix::fs::PermissionsExt;
        let folder = scratch("modes");
        let core = folder.join("core");
        write_to(&core).unwrap();
        assert_eq!(mode(&core) & 0o7777, 0o600);
        for kept in [0o640, 0o400, 0o644] {
            fs::set_permissions(&core, fs::Permissions::from_mode(kept)).unwrap();
            write_to(&core).unwrap();
            assert_eq!(mode(&core) & 0o7777, kept);
        }
        let below = Destination::below(&folder, Path::new("new")).unwrap();
        let (partial, file) = below.create().unwrap();
        partial.keep(&file).unwrap();
        assert_eq!(mode(&folder.join("new")) & 0o7777, 0o600);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn own_links_are_followed_and_lead_to_what_is_replaced() {
        let folder = scratch("links");
        fs::create_dir(folder.join("real")).unwrap();
        symlink("real", folder.join("sub")).unwrap();
        symlink("../link-to-nothing", folder.join("real/core")).unwrap();
        write_to(&folder.join("sub/core")).unwrap();
        assert!(mode(&folder.join("link-to-nothing")) & 0o170_000 == 0o100_000);
        assert!(mode(&folder.join("real/core")) & 0o170_000 == 0o120_000);
        symlink("loop", folder.join("loop")).unwrap();
        for path in ["loop", "loop/core", "no/such/core", "link-to-nothing/core"] {
            assert!(matches!(write_to(&folder.join(path)), Err(WriteError::Io { .. })), "{path}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_may_be_too_little_is_told_before() {
        const MIB: u64 = 1 << 20;
        let disk = |free, memory| Some(Shortage::Disk { free, memory });
        for (limit, free, memory, wanted) in [
            (u64::MAX, Some(512 * MIB), 512 * MIB, None),
            (u64::MAX, Some(512 * MIB - 1), 512 * MIB, disk(512 * MIB - 1, 512 * MIB)),
            (u64::MAX, None, 512 * MIB, None),
            (MIB, Some(0), 2 * MIB, Some(Shortage::FileSize { limit: MIB, memory: 2 * MIB })),
            (2 * MIB, Some(0), 2 * MIB, disk(0, 2 * MIB)),
        ] {
            assert_eq!(short_of(limit, free, memory), wanted, "{limit} {free:?} {memory}");
        }
        let text = disk(12 * MIB, 512 * MIB).map(|shortage| shortage.to_string()).unwrap();
        assert!(text.starts_with("12 MiB are free there, and a core of 512 MiB"), "{text}");
        // No disk has that much.
        let folder = scratch("shortage");
        let found = Destination::anywhere(&folder.join("core")).unwrap().check(u64::MAX >> 1).unwrap();
        assert!(matches!(found, Some(Shortage::Disk { .. })), "{found:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_others_have_put_into_a_shared_folder_is_foreign() {
        // The folder's mode and owner, the file's owner, ours.
        for (mode, holder, owner, own, is_foreign) in [
            (0o1777, 0, 1234, 0, true),
            (0o1777, 0, 1234, 1000, true),
            (0o1777, 0, 1000, 1000, false),
            (0o1777, 0, 0, 1000, false),
            (0o0777, 0, 1234, 0, false),
            (0o1755, 0, 1234, 0, false),
            (0o755, 0, 1234, 0, false),
        ] {
            assert_eq!(is_others(mode, holder, owner, own), is_foreign, "{mode:o} {holder} {owner} {own}");
        }
    }
}
