//! A dump that somebody has compressed in one piece: unpacked into a file without a name, which is gone with the
//! process, however that ends.

use crate::logging;
use crate::logging::progress::Reporter;
use debug::dump::packing::Packing;
use debug::dump::read::unpack::{UnpackError, unpack};
use debug::source::OnDisk;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Why it is not unpacked, and where it would have been.
#[derive(Debug, thiserror::Error)]
pub enum CannotUnpack {
    /// The dump is wrong.
    #[error("{0}")]
    Damaged(UnpackError),
    /// The folder is, or too small.
    #[error("cannot unpack it into a temporary file in {}: {source} (TMPDIR names another folder)", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: UnpackError,
    },
}

/// The folder for what is large: `/tmp` is often memory.
fn folder() -> PathBuf {
    let given = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    given.unwrap_or_else(|| match Path::new("/var/tmp").is_dir() {
        true => "/var/tmp".into(),
        false => "/tmp".into(),
    })
}

/// Makes a file that has no name, or none any more.
fn nameless(folder: &Path) -> io::Result<File> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match open(folder, OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC, mode) {
        Ok(file) => return Ok(file.into()),
        // Not every file system can, and a kernel that knows no such files takes it for a folder.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let path = folder.join(format!("vmm-unpacked-{}", std::process::id()));
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = File::from(open(&path, flags, mode)?);
    fs::remove_file(path)?;
    Ok(file)
}

/// Unpacks a dump; on a terminal, it is told how far that is.
///
/// # Errors
/// [`CannotUnpack`].
pub fn unpacked(packed: &OnDisk, packing: Packing, shown: &Path) -> Result<OnDisk, CannotUnpack> {
    let folder = folder();
    let failed = |source| match source {
        UnpackError::Damaged { .. } => CannotUnpack::Damaged(source),
        _ => CannotUnpack::Folder { folder: folder.clone(), source },
    };
    let file = nameless(&folder).map_err(|error| failed(error.into()))?;
    let is_watched = logging::is_terminal();
    let mut reporter = Reporter::new();
    let mut watch = |progress| {
        if let Some(percent) = reporter.percent(progress).filter(|_| is_watched) {
            logging::print(&format!("{}: unpacked {percent} %\n", shown.display()));
        }
        ControlFlow::Continue(())
    };
    unpack(packed, packing, &file, &mut watch).map_err(failed)?;
    OnDisk::new(file).map_err(|error| failed(error.into()))
}
