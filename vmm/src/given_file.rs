//! Files that an option names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file without waiting for whoever has the other end of it, as it would be with a named pipe: the signals
/// that end a run are not looked at yet. Regular files are read as ever.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Makes a file to be written, or opens one anew, without waiting for whoever reads it: a named pipe is opened for both
/// ways, and keeps what nobody reads yet (fifo(7)). What is written behind that waits.
///
/// # Errors
/// What the system says.
pub fn create(path: &Path) -> io::Result<File> {
    let is_pipe = path.metadata().is_ok_and(|file| file.file_type().is_fifo());
    OpenOptions::new().read(is_pipe).write(true).create(!is_pipe).truncate(!is_pipe).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::{Duration, Instant};

    #[test]
    fn a_named_pipe_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("vmm-pipe-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let begin = Instant::now();
        let file = open(&path);
        let mut written = create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // Nobody has it open for reading: neither to open it nor to write to it waits, or fails.
        written.write_all(b"text").unwrap();
        assert!(!file.unwrap().metadata().unwrap().is_file() && begin.elapsed() < Duration::from_secs(30));
    }
}
