//! The file of a report that is written again and again while runs go on: whoever reads it finds a whole one at any time.

use crate::given_file;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// It is left alone for so many times as long as writing it has taken.
const SELDOM: u32 = 20;

/// Where a report goes.
#[derive(Debug)]
pub struct ReportFile {
    place: Place,
    /// Before, it is not written again.
    next: Instant,
}

#[derive(Debug)]
enum Place {
    /// A regular file, which may not be there yet.
    File(PathBuf),
    /// A pipe or a device: it is written once, at the end.
    Stream(File),
}

impl ReportFile {
    /// Opens one, and writes this to it, if it is a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, empty: &str) -> io::Result<ReportFile> {
        let is_stream = path.metadata().is_ok_and(|it| !it.is_file());
        let place = match is_stream {
            true => Place::Stream(given_file::create(path)?),
            // A link stays one. What is not there leads nowhere.
            false => Place::File(fs::canonicalize(path).unwrap_or_else(|_| path.into())),
        };
        if let Place::File(path) = &place {
            replace(path, empty)?;
        }
        Ok(ReportFile { place, next: Instant::now() })
    }

    /// Writes what there is so far, if it is a file and was left alone long enough. When it is to be written else.
    pub fn keep(&mut self, text: impl FnOnce() -> Result<String, String>) -> Option<Instant> {
        let Place::File(path) = &self.place else { return None };
        let begun = Instant::now();
        if begun < self.next {
            return Some(self.next);
        }
        if let Err(why) = text().and_then(|text| replace(path, &text).map_err(|error| error.to_string())) {
            log::debug!("the report is not written yet: {why}");
        }
        self.next = begun + (SELDOM * begun.elapsed()).max(Duration::from_millis(1));
        None
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the system says; what a file had before is there still.
    pub fn finish(mut self, text: &str) -> io::Result<()> {
        match &mut self.place {
            Place::File(path) => replace(path, text),
            Place::Stream(file) => file.write_all(text.as_bytes()),
        }
    }
}

/// Has a file have this text: at any time it has the one before or this, as a whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(beside);
    let mut file = match OpenOptions::new().write(true).create(true).truncate(true).open(&beside) {
        Ok(file) => file,
        // A folder in which nothing can be made may have a file that can be written.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return given_file::create(path)?.write_all(text.as_bytes());
        }
        Err(error) => return Err(error),
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| {
        if let Ok(before) = path.metadata() {
            file.set_permissions(before.permissions())?;
        }
        fs::rename(&beside, path)
    });
    if written.is_err()
        && let Err(error) = fs::remove_file(&beside)
    {
        log::debug!("{} is left over: {error}", beside.display());
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given_file::tests::Fifo;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn text(text: &str) -> Result<String, String> {
        Ok(text.into())
    }

    #[test]
    fn a_report_to_a_named_pipe_waits_for_no_reader() {
        let fifo = Fifo::new("junit");
        let mut report = ReportFile::open(&fifo.0, "empty").unwrap();
        assert_eq!(report.keep(|| text("half")), None);
        report.finish("text").unwrap();
        ReportFile::open(&fifo.0.join("below/a/pipe"), "").unwrap_err();
    }

    #[test]
    fn a_file_has_a_whole_report_at_any_time() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.xml"), folder.path().join("link"));
        fs::write(&path, "of another run").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a.xml", &link).unwrap();
        let mut report = ReportFile::open(&link, "empty").unwrap();
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
}
