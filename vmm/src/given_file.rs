//! Files that an option names, and those that are found by themselves: opened without waiting for anybody.

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
    match is_pipe(path) {
        true => pipe(path),
        false => File::create(path),
    }
}

/// Empties a file that [`append`] will open, or makes it. A named pipe has nothing to empty, and is not opened: whoever
/// reads it would take that for all there is.
///
/// # Errors
/// What the system says.
pub fn empty(path: &Path) -> io::Result<()> {
    match is_pipe(path) {
        true => Ok(()),
        false => File::create(path).map(drop),
    }
}

/// Opens a file to be written behind what it has, or makes it; a named pipe as [`create`] does.
///
/// # Errors
/// What the system says.
pub fn append(path: &Path) -> io::Result<File> {
    match is_pipe(path) {
        true => pipe(path),
        false => OpenOptions::new().create(true).append(true).open(path),
    }
}

fn is_pipe(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.file_type().is_fifo())
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
pub(crate) mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    /// A named pipe that nobody has open; removed at the end.
    pub struct Fifo(pub PathBuf);

    impl Fifo {
        pub fn new(name: &str) -> Fifo {
            let path = std::env::temp_dir().join(format!("vmm-fifo-{name}-{}", std::process::id()));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            Fifo(path)
        }

        /// The next bytes of whoever has it open to write.
        pub fn read(&self, count: usize) -> Vec<u8> {
            let mut bytes = vec![0; count];
            File::open(&self.0).unwrap().read_exact(&mut bytes).unwrap();
            bytes
        }
    }

    impl Drop for Fifo {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn what_a_file_has_is_kept_or_not() {
        let path = std::env::temp_dir().join(format!("vmm-append-{}", std::process::id()));
        append(&path).unwrap().write_all(b"one").unwrap();
        append(&path).unwrap().write_all(b"two").unwrap();
        let both = std::fs::read(&path).unwrap();
        empty(&path).unwrap();
        let none = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((both, none), (b"onetwo".to_vec(), Vec::new()));
        let fifo = Fifo::new("append");
        empty(&fifo.0).unwrap();
        let mut written = append(&fifo.0).unwrap();
        written.write_all(b"text").unwrap();
        assert_eq!(fifo.read(4), b"text");
    }

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
