//! Files that an option names, to be read from.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file without waiting for whoever has the other end of it, as it would be with a named pipe: the signals
/// that end a run are not looked at yet. Regular files are read as ever.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_named_pipe_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("vmm-pipe-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let begin = Instant::now();
        let file = open(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(!file.unwrap().metadata().unwrap().is_file() && begin.elapsed() < Duration::from_secs(30));
    }
}
