//! Names of guests, and the sockets that they stand for.
//!
//! A guest has its socket in one folder, by its own environment; whoever looks for guests may have another one, as a cron
//! job and a desktop's session have, and looks in each that a guest of this user's may have.

use debug::socket::{BindError, remove_if_stale};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a guest's socket is called behind its name.
const SUFFIX: &str = ".sock";
/// What a socket is called that a guest serves for a debugger that is started, before the number of whoever has started it.
const DEBUGGERS: &str = "gdb-";

/// Where sockets of a user's guests are. Nobody else can make or reach one there.
#[derive(Debug)]
struct Folders {
    user: u32,
    /// Where this process makes them.
    own: PathBuf,
    /// Where other processes of this user's may.
    others: Vec<PathBuf>,
}

impl Folders {
    fn new(user: u32, runtime: Option<OsString>) -> Folders {
        let temporary = PathBuf::from(format!("/tmp/vmm-{user}"));
        let runtime = runtime.filter(|runtime| !runtime.is_empty()).map(|it| PathBuf::from(it).join("vmm"));
        let own = runtime.unwrap_or_else(|| temporary.clone());
        let others = [PathBuf::from(format!("/run/user/{user}/vmm")), temporary];
        Folders { user, others: others.into_iter().filter(|it| *it != own).collect(), own }
    }

    /// This process's.
    fn here() -> Folders {
        Folders::new(nix::unistd::geteuid().as_raw(), env::var_os("XDG_RUNTIME_DIR")).without_squatters()
    }

    /// Where somebody else has what would be this user's own, it is another one of this user's, if there is one.
    fn without_squatters(mut self) -> Folders {
        let is_anothers = self.own.exists() && !self.is_ours(&self.own).unwrap_or(false);
        let is_own = |folder: &Path| {
            folder
                .parent()
                .and_then(|runtime| fs::metadata(runtime).ok())
                .is_some_and(|it| it.uid() == self.user)
        };
        if is_anothers && let Some(at) = self.others.iter().position(|folder| is_own(folder)) {
            self.own = self.others.remove(at);
        }
        self
    }

    /// Where this process makes sockets.
    ///
    /// # Errors
    /// When there is no such folder and none can be made, or it is somebody else's. Never [`ErrorKind::NotFound`], which
    /// says that no guest is there.
    fn own(&self) -> io::Result<&Path> {
        let failed = |why: &dyn std::fmt::Display| io::Error::other(format!("{}: {why}", self.own.display()));
        match fs::DirBuilder::new().mode(0o700).create(&self.own) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(&error)),
            _ => {}
        }
        match self.is_ours(&self.own) {
            Ok(true) => Ok(&self.own),
            Ok(false) => Err(failed(&"it is not a folder that only this user can enter (mode 0700)")),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether a folder is this user's alone.
    fn is_ours(&self, folder: &Path) -> io::Result<bool> {
        let metadata = fs::symlink_metadata(folder)?;
        Ok(metadata.is_dir() && metadata.uid() == self.user && metadata.mode() & 0o077 == 0)
    }

    /// The others that are there, and are this user's alone.
    fn others(&self) -> impl Iterator<Item = &Path> {
        self.others.iter().map(PathBuf::as_path).filter(|folder| self.is_ours(folder).unwrap_or(false))
    }

    /// All that can be used, the own one first; and why that one cannot, where it is so.
    fn all(&self) -> (Vec<&Path>, io::Result<()>) {
        let (own, result) = match self.own() {
            Ok(own) => (Some(own), Ok(())),
            Err(error) => (None, Err(error)),
        };
        (own.into_iter().chain(self.others()).collect(), result)
    }

    fn sockets_of(&self, name: &str) -> io::Result<Vec<PathBuf>> {
        let (folders, own) = self.all();
        let sockets: Vec<PathBuf> = folders.iter().map(|folder| socket_in(folder, name)).collect();
        match sockets.iter().any(|socket| socket.exists()) {
            true => Ok(sockets),
            false => own.map(|()| sockets),
        }
    }

    fn has_elsewhere(&self, name: &str) -> bool {
        self.others().map(|folder| socket_in(folder, name)).any(|socket| {
            match remove_if_stale(&socket) {
                Ok(was_stale) => !was_stale && socket.exists(),
                // It is no guest's.
                Err(BindError::NoSocket(_)) => false,
                Err(error) => {
                    log::debug!("{} is nobody's, as far as is known: {error}", socket.display());
                    false
                }
            }
        })
    }

    fn names(&self) -> (Vec<String>, io::Result<()>) {
        let (folders, mut result) = self.all();
        let mut names = Vec::new();
        for folder in folders {
            match fs::read_dir(folder) {
                Ok(entries) => names.extend(entries.flatten().filter_map(|entry| name_of(&entry))),
                Err(error) => result = Err(io::Error::other(format!("{}: {error}", folder.display()))),
            }
        }
        names.sort();
        names.dedup();
        (names, result)
    }

    /// Removes what killed processes have left beside guests' sockets. Of one that is made just now the process is there.
    fn sweep_others(&self) {
        for entry in
            self.all().0.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten()
        {
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            let maker = entry.file_name().to_str().and_then(maker_of);
            if is_socket && maker.is_some_and(is_gone) {
                remove_left_over(&entry.path());
            }
        }
    }
}

fn socket_in(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{SUFFIX}"))
}

fn name_of(entry: &fs::DirEntry) -> Option<String> {
    let name = entry.file_name().to_str()?.strip_suffix(SUFFIX)?.to_string();
    check(&name).ok()
}

/// The process that has made a socket that is no guest's by its name: one that a debugger is served at, or one without its
/// name yet, as `debug::socket` calls it.
fn maker_of(name: &str) -> Option<i32> {
    if let Some(number) = name.strip_prefix(DEBUGGERS) {
        return number.parse().ok();
    }
    let mut parts = name.strip_prefix('.')?.rsplit('.');
    let (_count, process) = (parts.next()?, parts.next()?);
    i32::from_str_radix(process, 16).ok()
}

/// Whether a process has ended.
fn is_gone(process: i32) -> bool {
    process > 0 && kill(Pid::from_raw(process), None) == Err(Errno::ESRCH)
}

/// Removes a socket, unless somebody serves it by now.
fn remove_left_over(socket: &Path) {
    if let Err(error) = remove_if_stale(socket) {
        log::debug!("{} is left over: {error}", socket.display());
    }
}

/// Names for a guest that was given none: as few as it takes where others have numbers of processes like this one's.
pub fn made_up() -> impl Iterator<Item = String> {
    let pid = std::process::id();
    let first = format!("guest-{pid}");
    std::iter::once(first).chain((2..100).map(move |number| format!("guest-{pid}-{number}")))
}

/// Removes the socket of a guest whose process was killed; one that somebody serves by now stays.
pub fn sweep(name: &str) {
    Folders::here().all().0.into_iter().for_each(|folder| remove_left_over(&socket_in(folder, name)));
}

/// Removes what killed processes have left beside guests' sockets.
pub fn sweep_others() {
    Folders::here().sweep_others();
}

/// Whether a name can be a guest's.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(is_plain) {
        return Err("write up to 64 letters, digits, '-', '_' and '.'".into());
    }
    Ok(text.into())
}

/// Where this process makes the socket of a guest of a name.
///
/// # Errors
/// As of the folder that it is in: it cannot be made, or others can enter it.
pub fn socket_of(name: &str) -> io::Result<PathBuf> {
    Ok(socket_in(Folders::here().own()?, name))
}

/// Where the socket of the guest of a name may be.
///
/// # Errors
/// As [`socket_of`], where no other folder has one.
pub fn sockets_of(name: &str) -> io::Result<Vec<PathBuf>> {
    Folders::here().sockets_of(name)
}

/// Whether a guest whose socket is in another folder has a name.
pub fn has_elsewhere(name: &str) -> bool {
    Folders::here().has_elsewhere(name)
}

/// Where this process has a guest serve a debugger that it starts.
///
/// # Errors
/// As [`socket_of`].
pub fn debugger_socket() -> io::Result<PathBuf> {
    Ok(Folders::here().own()?.join(format!("{DEBUGGERS}{}", std::process::id())))
}

/// Whether a socket was for a debugger whose starter has ended without saying so.
pub fn is_left_by_debugger(socket: &Path) -> bool {
    let maker = socket.file_name().and_then(|name| name.to_str()?.strip_prefix(DEBUGGERS)?.parse().ok());
    let is_in = |folder: &Path| socket.parent() == Some(folder);
    maker.is_some_and(is_gone) && Folders::here().all().0.into_iter().any(is_in)
}

/// Those of this user's guests, in order; and what was in the way of finding them.
pub fn all() -> (Vec<String>, io::Result<()>) {
    Folders::here().names()
}

#[cfg(test)]
mod tests {
    use super::*;
    use debug::socket::{Audience, bind};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    /// Folders below one of a test's own, of which the own one and `others` are there.
    fn folders(others: &[&str]) -> (TempDir, Folders) {
        let base = tempfile::tempdir().unwrap();
        for other in others {
            fs::DirBuilder::new().mode(0o700).create(base.path().join(other)).unwrap();
        }
        let others = ["a", "b"].map(|other| base.path().join(other)).into();
        let folders = Folders { user: nix::unistd::geteuid().as_raw(), own: base.path().join("own"), others };
        (base, folders)
    }

    /// The socket of a guest whose process was killed.
    fn leave(socket: &Path) {
        drop(UnixListener::bind(socket).unwrap());
    }

    #[test]
    fn where_sockets_are_follows_from_the_user_and_the_environment() {
        let with = Folders::new(7, Some("/run/x".into()));
        assert_eq!(with.own, Path::new("/run/x/vmm"));
        assert_eq!(with.others, [Path::new("/run/user/7/vmm"), Path::new("/tmp/vmm-7")]);
        for none in [None, Some(OsString::new())] {
            let without = Folders::new(7, none);
            assert_eq!(without.own, Path::new("/tmp/vmm-7"));
            assert_eq!(without.others, [Path::new("/run/user/7/vmm")]);
        }
        let usual = Folders::new(7, Some("/run/user/7".into()));
        assert_eq!(usual.others, [Path::new("/tmp/vmm-7")]);
    }

    #[test]
    fn a_guest_is_found_in_each_folder_and_its_name_is_taken() {
        let (base, folders) = folders(&["a"]);
        let elsewhere = base.path().join("a/far.sock");
        let far = bind(&elsewhere, Audience::Owner).unwrap();
        leave(&base.path().join("a/old.sock"));
        let _near = bind(&socket_in(folders.own().unwrap(), "near"), Audience::Owner).unwrap();
        let (names, result) = folders.names();
        assert_eq!((names, result.is_ok()), (["far", "near", "old"].map(String::from).into(), true));
        assert!(folders.sockets_of("far").unwrap().contains(&elsewhere));
        assert!(folders.has_elsewhere("far") && !folders.has_elsewhere("near"));
        // Nobody has this one any more.
        assert!(!folders.has_elsewhere("old") && !base.path().join("a/old.sock").exists());
        drop(far);
        assert!(!folders.has_elsewhere("far"));
    }

    #[test]
    fn a_folder_that_is_not_this_users_alone_is_refused_or_passed_over() {
        let (base, folders) = folders(&["a", "real"]);
        // Others can enter this one, and that is not where it seems.
        fs::set_permissions(base.path().join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(base.path().join("real"), base.path().join("b")).unwrap();
        for folder in ["a", "real"] {
            leave(&base.path().join(folder).join("guest.sock"));
        }
        let (names, result) = folders.names();
        assert_eq!((names, result.is_ok()), (Vec::new(), true));
        fs::set_permissions(&folders.own, fs::Permissions::from_mode(0o755)).unwrap();
        for error in [folders.names().1.unwrap_err(), folders.sockets_of("guest").unwrap_err()] {
            assert!(error.to_string().contains("only this user"), "{error}");
            assert_eq!(error.kind(), ErrorKind::Other);
        }
        let nowhere = Folders { own: base.path().join("no/vmm"), ..folders };
        let error = nowhere.names().1.unwrap_err();
        assert!(error.kind() != ErrorKind::NotFound && error.to_string().contains("no/vmm"), "{error}");
    }

    #[test]
    fn what_killed_processes_leave_is_swept() {
        /// Above the most that Linux gives (`PID_MAX_LIMIT`).
        const NOBODY: i32 = 1 << 23;
        let (_base, folders) = folders(&[]);
        let own = folders.own().unwrap().to_path_buf();
        let here = std::process::id();
        let (gone, there) = (
            [format!("gdb-{NOBODY}"), format!(".x.sock.{NOBODY:x}.1"), format!(".{NOBODY:x}.1")],
            [format!("gdb-{here}"), format!(".x.sock.{here:x}.1"), "a.sock".into(), ".x".into()],
        );
        gone.iter().chain(&there).for_each(|name| leave(&own.join(name)));
        // What somebody serves, and what is no socket, stays.
        let served = bind(&own.join(format!("gdb-{}", NOBODY + 1)), Audience::Owner).unwrap();
        fs::write(own.join(format!("gdb-{}", NOBODY + 2)), "").unwrap();
        folders.sweep_others();
        assert!(gone.iter().all(|name| !own.join(name).exists()));
        assert!(there.iter().all(|name| own.join(name).exists()) && served.path().exists());
        assert!(own.join(format!("gdb-{}", NOBODY + 2)).exists());
    }
}
