//! Hears on the console that a Linux kernel has panicked and stays where it is.
//!
//! A kernel that does not reset itself after a panic prints a last line and does nothing more (Linux,
//! `kernel/panic.c`). Whoever can write to the console can print that as well, so it is only a reason to
//! look into the kernel's log.

use crate::machine::dealt_with;
use devices::tell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// What the last line begins with.
const LAST_LINE: &[u8] = b"---[ end Kernel panic - not syncing";

/// A console's output, which is listened to.
pub struct PanicWatch {
    output: Box<dyn Write + Send>,
    /// The last characters, no more than the line has.
    last: VecDeque<u8>,
    heard: Arc<EventFd>,
}

impl PanicWatch {
    /// Passes output on, and writes to `heard` behind the line.
    pub fn new(output: Box<dyn Write + Send>, heard: Arc<EventFd>) -> PanicWatch {
        PanicWatch { output, last: VecDeque::new(), heard }
    }

    fn listen(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.last.len() == LAST_LINE.len() {
                self.last.pop_front();
            }
            self.last.push_back(*byte);
            if *byte == LAST_LINE[LAST_LINE.len() - 1]
                && self.last.iter().eq(LAST_LINE)
                && let Err(error) = self.heard.write(1)
            {
                tell!(Warn, "nobody is told of the guest's panic: {error}");
            }
        }
    }
}

impl Write for PanicWatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        self.listen(dealt_with(&written, bytes));
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl std::fmt::Debug for PanicWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PanicWatch").field("last", &self.last).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_heard_however_it_comes() {
        let line = "[    1.2] ---[ end Kernel panic - not syncing: why ]---";
        let hears = |text: &str, piece: usize| {
            let heard = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
            let mut watch = PanicWatch::new(Box::new(io::sink()), Arc::clone(&heard));
            text.as_bytes().chunks(piece).for_each(|piece| watch.write_all(piece).unwrap());
            heard.read().unwrap_or(0)
        };
        for piece in [1, 2, 7, 100] {
            assert_eq!(hears(line, piece), 1);
            assert_eq!(hears(&line.replace("---[ end", "-----[ end"), piece), 1);
            assert_eq!(hears(&format!("---[ end Kern{line}"), piece), 1);
            assert_eq!(hears("Kernel panic - not syncing: sysrq triggered crash", piece), 0);
        }
        assert_eq!(hears(&format!("{line}\n{line}"), 5), 2);
    }

    /// A full disk, or a pipe that nobody reads, keeps nobody from hearing it.
    #[test]
    fn the_line_is_heard_where_it_cannot_be_written() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let heard = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut watch = PanicWatch::new(Box::new(Broken), Arc::clone(&heard));
        assert!(watch.write(b"---[ end Kernel panic - not").is_err());
        assert!(watch.write(b" syncing: why ]---").is_err());
        assert_eq!(heard.read().unwrap(), 1);
    }
}
