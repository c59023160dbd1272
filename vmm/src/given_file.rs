//! Files that an option names.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
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

/// Makes a file to be written, or opens one anew, without waiting for whoever reads it: a named pipe that nobody reads
/// yet is opened for both ways, and keeps what it has room for (fifo(7)). What is written behind that waits, and fails
/// when whoever read it has gone.
///
/// # Errors
/// What the system says.
pub fn create(path: &Path) -> io::Result<File> {
    match path.metadata().is_ok_and(|file| file.file_type().is_fifo()) {
        true => pipe(path),
        false => File::create(path),
    }
}

/// The writing end of a pipe. One that is open for reading here as well would never tell that its reader has gone.
fn pipe(path: &Path) -> io::Result<File> {
    match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => {
            let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
            fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
            Ok(file)
        }
        // Nobody reads it yet.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            OpenOptions::new().read(true).write(true).open(path)
        }
        Err(error) => Err(error),
    }
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

    #[test]
    fn that_the_reader_of_a_pipe_has_gone_is_noticed() {
        let path = std::env::temp_dir().join(format!("vmm-read-pipe-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = open(&path).unwrap();
        let mut written = create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        written.write_all(b"text").unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&written, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
        drop(reader);
        assert_eq!(written.write_all(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
