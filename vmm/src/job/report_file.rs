//! The file of a report that is written again and again while runs go on: whoever reads it finds a whole one at any time, where
//! another file can take its place. Where it cannot, the file itself is written.

use crate::given_file;
use nix::unistd::Uid;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::{Builder, NamedTempFile};

/// It is left alone for so many times as long as writing it has taken.
const SELDOM: u32 = 20;

/// Names below these are the system's: no file of ours takes their place.
const OF_THE_SYSTEM: [&str; 3] = ["/proc", "/dev", "/sys"];

/// The most links that the system follows (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// Where a report goes.
#[derive(Debug)]
pub struct ReportFile<'a> {
    place: Place,
    temporary: &'a Temporary,
    /// Before, it is not written again.
    next: Instant,
}

#[derive(Debug)]
enum Place {
    /// A regular file by its own name, which may not be there yet.
    Named(PathBuf),
    /// A regular file without a name that another could take, as standard output may be.
    Open(File),
    /// A pipe, a device, or this process's standard output, in which there is more: it is written once, at the end.
    Stream(File),
}

impl ReportFile<'_> {
    /// Opens one, and writes this to it, if it is a file. What is `temporary` is so from here on.
    ///
    /// # Errors
    /// What the system says.
    pub fn open<'a>(path: &Path, empty: &str, temporary: &'a Temporary) -> io::Result<ReportFile<'a>> {
        let known = path.metadata().ok();
        let place = match (known.as_ref().and_then(standard_output), known) {
            (Some(output), _) => Place::Stream(output),
            (None, Some(it)) if !it.is_file() => Place::Stream(given_file::create(path)?),
            _ => regular(path)?,
        };
        let mut report = ReportFile { place, temporary, next: Instant::now() };
        if !matches!(report.place, Place::Stream(_)) {
            report.write(empty)?;
        }
        Ok(report)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        match &mut self.place {
            Place::Named(name) => replace(name, text, self.temporary),
            Place::Open(file) => overwrite(file, text),
            Place::Stream(file) => file.write_all(text.as_bytes()),
        }
    }

    /// Writes what there is so far, if it is a file and was left alone long enough. When it is to be written else.
    pub fn keep(&mut self, text: impl FnOnce() -> Result<String, String>) -> Option<Instant> {
        if matches!(self.place, Place::Stream(_)) {
            return None;
        }
        let begun = Instant::now();
        if begun < self.next {
            return Some(self.next);
        }
        if let Err(why) = text().and_then(|text| self.write(&text).map_err(|error| error.to_string())) {
            log::debug!("the report is not written yet: {why}");
        }
        self.next = begun + (SELDOM * begun.elapsed()).max(Duration::from_millis(1));
        None
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self, text: &str) -> io::Result<()> {
        self.write(text)
    }
}

/// The file beside a report that is to take its place: it is not to outlive the process.
#[derive(Debug, Default)]
pub struct Temporary(Mutex<Option<PathBuf>>);

impl Temporary {
    fn name(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, builder: &Builder<'_, '_>, folder: &Path) -> io::Result<NamedTempFile> {
        let mut name = self.name();
        let file = builder.tempfile_in(folder)?;
        *name = Some(file.path().into());
        Ok(file)
    }

    /// Removes it if it is there; none is made as long as what comes back is held. For who ends the process while another
    /// thread writes.
    pub fn remove(&self) -> MutexGuard<'_, Option<PathBuf>> {
        let name = self.name();
        if let Some(path) = &*name
            && let Err(error) = fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            log::debug!("{} is left over: {error}", path.display());
        }
        name
    }
}

/// Standard output, if this is it.
fn standard_output(file: &Metadata) -> Option<File> {
    // One that is closed is no file.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
    output.metadata().is_ok_and(|it| id(&it) == id(file)).then_some(output)
}

/// What a file is known by.
fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// The place of a file that is regular or not there yet.
fn regular(path: &Path) -> io::Result<Place> {
    if is_of_the_system(path) {
        return writable(path).map(Place::Open);
    }
    if path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(Place::Named(path.into()));
    }
    // A link stays one; what it leads to is made if it is not there.
    let file = writable(path)?;
    let opened = file.metadata()?;
    Ok(match path.canonicalize() {
        Ok(name) if name.symlink_metadata().is_ok_and(|named| id(&named) == id(&opened)) => {
            Place::Named(name)
        }
        // What a name of the system's leads to may have none here.
        _ => Place::Open(file),
    })
}

/// Whether a name, or one that it leads to, is the system's: `/dev/stdout` is, whatever that may be.
fn is_of_the_system(path: &Path) -> bool {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(folder) = folder_of(&path).canonicalize() else { return false };
        if OF_THE_SYSTEM.iter().any(|its| folder.starts_with(its)) {
            return true;
        }
        let Ok(target) = fs::read_link(&path) else { return false };
        path = folder.join(target);
    }
    // It cannot be opened.
    false
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Opens a regular file as it is, or makes it.
fn writable(path: &Path) -> io::Result<File> {
    // Not as one that may be made: of others' files in sticky folders that is refused (proc_sys_fs(5), protected_regular).
    match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => given_file::create(path),
        opened => opened,
    }
}

/// Has a file have this text: at any time it has the one before or this, as a whole, if it can be replaced.
fn replace(name: &Path, text: &str, temporary: &Temporary) -> io::Result<()> {
    // Whatever the reason, as the file may be one that can be written: a mount of its own, a sticky folder, no room for two.
    rename_over(name, text, temporary).or_else(|error| {
        log::debug!("{} is written in place: {error}", name.display());
        overwrite(&mut writable(name)?, text)
    })
}

fn overwrite(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

/// Whether a file can be another without anybody's missing the one it was.
fn is_ours_alone(file: &Metadata, user: Uid) -> bool {
    file.is_file() && file.uid() == user.as_raw() && file.nlink() == 1
}

fn rename_over(name: &Path, text: &str, temporary: &Temporary) -> io::Result<()> {
    // What may not be written is not replaced either.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let before = match OpenOptions::new().write(true).custom_flags(flags).open(name) {
        Ok(file) => Some(file.metadata()?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_ref().is_some_and(|file| !is_ours_alone(file, Uid::effective())) {
        return Err(io::Error::other("it is not ours alone"));
    }
    let mut builder = Builder::new();
    builder.prefix(".vmm-report-");
    if before.is_none() {
        // As any that is made: without what the umask takes away.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = temporary.make(&builder, folder_of(name))?;
    let renamed = fill(file, before.as_ref(), text)
        .and_then(|file| file.persist(name).map(drop).map_err(|error| error.error));
    *temporary.name() = None;
    renamed
}

/// Writes a file that is to be as another was, to those as well who may read it.
fn fill(mut file: NamedTempFile, before: Option<&Metadata>, text: &str) -> io::Result<NamedTempFile> {
    if let Some(before) = before {
        if file.as_file().metadata()?.gid() != before.gid() {
            fchown(file.as_file(), None, Some(before.gid()))?;
        }
        file.as_file().set_permissions(before.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given_file::tests::Fifo;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::setfsuid;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    fn text(text: &str) -> Result<String, String> {
        Ok(text.into())
    }

    /// Writes a report to its end.
    fn report(path: &Path, text: &str) -> io::Result<()> {
        let temporary = Temporary::default();
        let report = ReportFile::open(path, "empty, and longer than what comes", &temporary)?;
        report.finish(text)
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_report_to_a_named_pipe_waits_for_no_reader() {
        let (fifo, temporary) = (Fifo::new("junit"), Temporary::default());
        let mut report = ReportFile::open(&fifo.0, "empty", &temporary).unwrap();
        assert_eq!(report.keep(|| text("half")), None);
        report.finish("text").unwrap();
        ReportFile::open(&fifo.0.join("below/a/pipe"), "", &temporary).unwrap_err();
    }

    #[test]
    fn standard_output_is_known_by_any_name() {
        let output = fs::metadata(format!("/proc/self/fd/{}", libc::STDOUT_FILENO)).unwrap();
        assert!(standard_output(&output).is_some());
        let other = tempfile::tempfile().unwrap();
        assert!(standard_output(&other.metadata().unwrap()).is_none());
    }

    #[test]
    fn a_file_has_a_whole_report_at_any_time() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.xml"), folder.path().join("link"));
        fs::write(&path, "of another run").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a.xml", &link).unwrap();
        let temporary = Temporary::default();
        let mut report = ReportFile::open(&link, "empty", &temporary).unwrap();
        let before = File::open(&path).unwrap();
        assert_eq!(io::read_to_string(&before).unwrap(), "empty");
        let (before, mut next) = (File::open(&path).unwrap(), None);
        while let Some(at) = { report.keep(|| text("one")) } {
            next = Some(at);
        }
        // Whoever had it open has what there was.
        assert_eq!(io::read_to_string(&before).unwrap(), "empty");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert!(next.is_none_or(|at| at <= Instant::now()));
        // It is left alone for a while, and it is said until when.
        assert!(report.keep(|| text("two")).is_some_and(|at| at == report.next));
        report.finish("all").unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "all");
        let is_link = fs::symlink_metadata(&link).unwrap().is_symlink();
        assert_eq!((is_link, fs::metadata(&path).unwrap().permissions().mode() & 0o777), (true, 0o640));
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
    #[test]
    fn a_name_of_the_systems_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (gone, link) = (folder.path().join("gone"), folder.path().join("link"));
        let unlinked = File::create_new(&gone).unwrap();
        fs::remove_file(&gone).unwrap();
        let in_memory = File::from(memfd_create("report", MFdFlags::MFD_CLOEXEC).unwrap());
        let named = File::create_new(folder.path().join("named")).unwrap();
        for file in [unlinked, in_memory, named] {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            // As /dev/stdout is one.
            symlink(&path, &link).unwrap();
            for (path, words) in [(&path, "one"), (&link, "the other")] {
                report(path, words).unwrap();
                assert_eq!(fs::read_to_string(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), words);
            }
            assert!(link.is_symlink());
            fs::remove_file(&link).unwrap();
        }
        assert!(is_of_the_system(Path::new("/dev/stdout")) && !is_of_the_system(&folder.path().join("new")));
        assert_eq!(count(folder.path()), 1);
    }

    #[test]
    fn a_file_that_others_have_as_well_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other, link, target] = ["a", "b", "link", "target"].map(|name| folder.path().join(name));
        fs::write(&path, "").unwrap();
        let file = path.metadata().unwrap();
        let user = Uid::effective();
        assert!(is_ours_alone(&file, user) && !is_ours_alone(&file, Uid::from_raw(user.as_raw() ^ 1)));
        fs::hard_link(&path, &other).unwrap();
        report(&path, "one").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "one");
        // A link that leads to nothing stays one.
        symlink("target", &link).unwrap();
        report(&link, "two").unwrap();
        assert!(link.is_symlink() && fs::read_to_string(&target).unwrap() == "two");
        assert_eq!(count(folder.path()), 4);
    }

    #[test]
    fn what_can_be_written_is_not_refused_and_nothing_else_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "").unwrap();
        let number = path.metadata().unwrap().ino();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&path, 0o666);
        // As somebody else, if this is root: nothing can be made beside it, and then not renamed.
        let root = setfsuid(Uid::from_raw(65534));
        let mut written = Vec::new();
        for its_mode in [0o555, 0o1777] {
            setfsuid(root);
            mode(folder.path(), its_mode);
            setfsuid(Uid::from_raw(65534));
            written.push((report(&path, "text").is_ok(), fs::read_to_string(&path).unwrap()));
            if its_mode == 0o555 || root.is_root() {
                assert_eq!(path.metadata().unwrap().ino(), number);
            }
        }
        setfsuid(root);
        mode(&path, 0o444);
        setfsuid(Uid::from_raw(65534));
        let refused = report(&path, "other");
        setfsuid(root);
        assert_eq!(written, vec![(true, "text".into()); 2]);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), count(folder.path())), ("text", 1));
    }

    #[test]
    fn a_new_file_is_as_any_that_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["a", "b"].map(|name| folder.path().join(name));
        report(&path, "text").unwrap();
        fs::write(&other, "").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode();
        assert_eq!(mode(&path), mode(&other));
        // What is not to be read by others is not while it is written either.
        let half = Temporary::default().make(&Builder::new(), folder.path()).unwrap();
        assert_eq!(mode(half.path()) & 0o777, 0o600);
    }

    #[test]
    fn what_is_half_written_goes_with_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let temporary = Temporary::default();
        let half = temporary.make(&Builder::new(), folder.path()).unwrap();
        let held = temporary.remove();
        assert_eq!(count(folder.path()), 0);
        // No other is begun.
        assert!(temporary.0.try_lock().is_err());
        drop((held, half));
        // That of a report that is written is no more.
        let report = ReportFile::open(&folder.path().join("a"), "empty", &temporary).unwrap();
        assert!(temporary.name().is_none());
        report.finish("text").unwrap();
    }
}
