//! Where a dump goes: a folder that is held open, and a name in it.
//!
//! What a debugger asks for may only lie below one folder, and must be new ([`Destination::below`]): whoever
//! can speak to gdb's port may debug the guest, not change the host's files. So a path is walked from
//! that folder on, a name at a time, and what is a link is not followed; nothing that happens to the
//! folders meanwhile leads elsewhere.

use super::write::WriteError;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// Names that are tried for a file that is not whole yet.
const MOST_PARTIAL: u32 = 100;

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

impl Destination {
    /// Anywhere; a file that is there is replaced.
    ///
    /// # Errors
    /// [`WriteError`] where no file can be.
    pub fn anywhere(path: &Path) -> Result<Destination, WriteError> {
        let name = path.file_name().ok_or_else(|| WriteError::NoFile(path.into()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = File::open(parent).map_err(|source| WriteError::Io { path: path.into(), source })?;
        Ok(Destination { folder: folder.into(), name: name.into(), shown: path.into(), is_new: false })
    }

    /// Below `folder`, by a path without `..` and without links; nothing may be there yet.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn below(folder: &Path, path: &Path) -> Result<Destination, WriteError> {
        let outside = || WriteError::Outside { path: path.into(), folder: folder.into() };
        let failed = |source: io::Error| WriteError::Io { path: path.into(), source };
        let mut names = path.components().filter(|part| *part != Component::CurDir).peekable();
        let mut open: OwnedFd = File::open(folder).map_err(failed)?.into();
        while let Some(part) = names.next() {
            let Component::Normal(name) = part else { return Err(outside()) };
            if names.peek().is_none() {
                let place = Destination { folder: open, name: name.into(), shown: path.into(), is_new: true };
                return if place.kind()?.is_none() {
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

    fn failed(&self, source: impl Into<io::Error>) -> WriteError {
        WriteError::Io { path: self.shown.clone(), source: source.into() }
    }

    /// What is there, if something is.
    fn kind(&self) -> Result<Option<SFlag>, WriteError> {
        let follow = if self.is_new { AtFlags::AT_SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        match fstatat(&self.folder, self.name.as_os_str(), follow) {
            Ok(found) => Ok(Some(SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Makes a file beside it that is to be it when it is whole.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(super) fn create(&self) -> Result<(Partial<'_>, File), WriteError> {
        if self.kind()?.is_some_and(|kind| kind != SFlag::S_IFREG) {
            return Err(WriteError::NoFile(self.shown.clone()));
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o666);
        let mut number = 0;
        loop {
            let mut name = self.name.clone();
            name.push(format!(".partial-{}-{number}", std::process::id()));
            match openat(&self.folder, name.as_os_str(), flags, mode) {
                Ok(file) => return Ok((Partial { destination: self, name, kept: false }, File::from(file))),
                // Another dump's; or one is left of a process that was killed and had the same number,
                // as in containers all have.
                Err(Errno::EEXIST) if number < MOST_PARTIAL => number += 1,
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}

/// A file that goes unless it is kept.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    destination: &'a Destination,
    name: OsString,
    kept: bool,
}

impl Partial<'_> {
    /// Gives it its name.
    pub fn keep(mut self) -> Result<(), WriteError> {
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
            if self.destination.kind()?.is_some() {
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
            drop(file);
            partial.keep().unwrap();
        }
        // What has come meanwhile stays.
        let place = below("late").unwrap();
        let (partial, _file) = place.create().unwrap();
        fs::write(inside.join("late"), "late").unwrap();
        assert!(matches!(partial.keep(), Err(WriteError::Exists(_))));
        assert_eq!(fs::read_to_string(inside.join("late")).unwrap(), "late");
        let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert_eq!((count(&inside), count(&inside.join("sub")), count(&outside)), (6, 1, 0));
    }
}
