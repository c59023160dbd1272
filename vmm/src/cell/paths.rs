//! Paths that may be opened (Landlock, `Documentation/userspace-api/landlock.rst`).
//!
//! What is open already stays so, and links are followed to where they lead before it is looked whether that is allowed.
//! Names are looked at by the kernel as they are when something is opened, but a rule is a file or a folder as it was when
//! the rule was made.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The newest that this was written for.
const NEWEST: ABI = ABI::V7;

/// What may be done with a file, or with what is below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Files are read, folders listed.
    Read,
    /// A file is written as well, also cut.
    Write,
    /// A device is used.
    Device,
    /// Files and folders are made, written, renamed and removed.
    Own,
    /// Sockets are made, given other names and removed.
    Sockets,
}

impl Grant {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo | AccessFs::MakeSock;
        match self {
            Grant::Read => read,
            Grant::Write => read | AccessFs::WriteFile | AccessFs::Truncate,
            Grant::Device => read | AccessFs::WriteFile | AccessFs::IoctlDev,
            Grant::Own => AccessFs::from_all(NEWEST) & !(devices | AccessFs::Execute | AccessFs::IoctlDev),
            Grant::Sockets => AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile,
        }
    }
}

/// Who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Threads of shared folders.
    Shares,
    /// All others.
    Others,
}

/// What may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A file, or a folder with all that is below.
    pub path: PathBuf,
    /// What may be done with it.
    pub grant: Grant,
    /// By whom.
    pub by: For,
}

impl Rule {
    /// Of a path that is for all but shared folders.
    pub fn new(path: impl Into<PathBuf>, grant: Grant) -> Rule {
        Rule { path: path.into(), grant, by: For::Others }
    }

    /// Of the folder that has a path, which is for all but shared folders. Where the path is a link, it is the folder that
    /// this leads to, also where nothing is there yet.
    pub fn folder_of(path: &Path, grant: Grant) -> Rule {
        let real = followed(path);
        let folder = match real.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => ".".into(),
        };
        Rule::new(folder, grant)
    }
}

/// Where a path leads to by links, though there may be nothing yet.
fn followed(path: &Path) -> PathBuf {
    /// As many as the kernel follows (path_resolution(7)).
    const MOST_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match (path.canonicalize(), path.read_link()) {
            (Ok(real), _) => return real,
            // An absolute one replaces all of it.
            (Err(_), Ok(target)) => path = path.parent().unwrap_or(Path::new("")).join(target),
            (Err(_), Err(_)) => break,
        }
    }
    path
}

/// What every monitor opens.
pub fn common() -> Vec<Rule> {
    let read = ["/dev/urandom", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"];
    let read = read.map(|path| Rule::new(path, Grant::Read));
    let devices = [Rule::new("/dev/kvm", Grant::Device), Rule::new("/dev/null", Grant::Device)];
    // The server of a folder finds what it holds open by its number there.
    let share = Rule { path: "/proc/self/fd".into(), grant: Grant::Read, by: For::Shares };
    read.into_iter().chain(devices).chain([share]).collect()
}

/// Rules that a thread can be held to.
#[derive(Debug)]
pub struct Bounds(RulesetCreated);

impl Bounds {
    /// Of the rules that are for these. One whose path is not there, or cannot be opened, is none.
    ///
    /// # Errors
    /// Why the host has no Landlock, or too little: before Linux 5.19 nothing can be renamed to another folder.
    pub fn new(rules: &[Rule], by: &[For]) -> Result<Bounds, RulesetError> {
        let mut bounds = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        for rule in rules.iter().filter(|rule| by.contains(&rule.by)) {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            let Ok(at) = open(&rule.path, flags, Mode::empty()) else { continue };
            // What lies in no file system has no rules, and needs none: a file in memory that was given by its number.
            if is_nowhere(&at) {
                continue;
            }
            bounds = bounds.add_rule(PathBeneath::new(at, rights(&rule.path, rule.grant)))?;
        }
        Ok(Bounds(bounds))
    }

    /// Holds the calling thread to them, and those that it makes; whether the host does so.
    ///
    /// # Errors
    /// What the system says.
    pub fn hold(&self) -> Result<bool, String> {
        let own = self.0.try_clone().map_err(|error| error.to_string())?;
        let held = own.restrict_self().map_err(|error| error.to_string())?;
        Ok(held.ruleset != RulesetStatus::NotEnforced)
    }
}

/// Whether it is in no file system that somebody could have mounted, for which Landlock takes no rules
/// (landlock_add_rule(2), `EBADFD`).
fn is_nowhere(at: &impl AsRawFd) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", at.as_raw_fd())).unwrap_or_default();
    let name = name.to_string_lossy();
    name.starts_with("/memfd:") || !name.starts_with('/')
}

/// A file has none of a folder's rights.
fn rights(path: &Path, grant: Grant) -> BitFlags<AccessFs> {
    if path.is_dir() { grant.rights() } else { grant.rights() & AccessFs::from_file(NEWEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_run_a_file_or_make_a_device() {
        for grant in [Grant::Read, Grant::Write, Grant::Device, Grant::Own, Grant::Sockets] {
            let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo;
            assert!(!grant.rights().intersects(never), "{grant:?}");
        }
        assert!(!Grant::Read.rights().intersects(AccessFs::from_write(NEWEST)));
    }

    #[test]
    fn a_file_in_memory_has_no_rule_and_is_no_hindrance() {
        let file = nix::sys::memfd::memfd_create("test", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let rules = [Rule::new(&path, Grant::Read), Rule::new("/dev/null", Grant::Read)];
        assert!(is_nowhere(&open(Path::new(&path), OFlag::O_PATH, Mode::empty()).unwrap()));
        assert!(!is_nowhere(&open("/dev/null", OFlag::O_PATH, Mode::empty()).unwrap()));
        // A host without Landlock says so otherwise.
        if Bounds::new(&rules[1..], &[For::Others]).is_ok() {
            assert!(Bounds::new(&rules, &[For::Others]).is_ok());
        }
    }

    #[test]
    fn the_folder_of_a_path_is_where_a_link_leads() {
        let folder = std::env::temp_dir().join(format!("vmm-rules-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("real")).unwrap();
        std::fs::write(folder.join("real/kernel"), "").unwrap();
        std::os::unix::fs::symlink("real/kernel", folder.join("link")).unwrap();
        let real = folder.canonicalize().unwrap().join("real");
        assert_eq!(Rule::folder_of(&folder.join("link"), Grant::Read).path, real);
        assert_eq!(Rule::folder_of(Path::new("core"), Grant::Own).path, Path::new("."));
        // What the link leads to is still to be made.
        for (link, target) in [("begins", "real/new"), ("chain", "begins"), ("whole", "/nowhere/new")] {
            std::os::unix::fs::symlink(target, folder.join(link)).unwrap();
        }
        let real = folder.join("real").canonicalize().unwrap();
        for link in ["begins", "chain"] {
            let rule = Rule::folder_of(&folder.join(link), Grant::Own);
            assert_eq!(rule.path.canonicalize().unwrap(), real, "{link}");
        }
        assert_eq!(Rule::folder_of(&folder.join("whole"), Grant::Own).path, Path::new("/nowhere"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
