//! Hears on the console that a Linux kernel has panicked and stays where it is, or that it hangs.
//!
//! A kernel that does not reset itself after a panic prints a last line and does nothing more (Linux,
//! `kernel/panic.c`); one that hangs says so as long as a processor of it still does something. Whoever can write to the
//! console can print either as well, so it is only a reason to look into the kernel's log.

use crate::machine::dealt_with;
use crate::run::config::DumpOn;
use debug::linux::trouble::{self, Sign};
use devices::tell;
use std::io::{self, Write};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// What the last line begins with.
const LAST_LINE: &[u8] = b"---[ end Kernel panic - not syncing";
/// Bytes of a line that are listened to in one piece.
const LONGEST_LINE: usize = 1024;
/// Bytes of a piece that the next one begins with: no words that are listened for are longer.
const OVERLAP: usize = 256;

/// What is listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listens {
    /// The kernel has panicked.
    pub panic: bool,
    /// It hangs.
    pub hang: bool,
}

impl Listens {
    /// What a dump is wanted of, if that is heard on the console.
    pub fn of(on: &DumpOn) -> Option<Listens> {
        (on.panic || on.hang).then_some(Listens { panic: on.panic, hang: on.hang })
    }

    /// The sign that counts, of those in a log: a panic, else a hang, the first of them, if it is listened for.
    pub fn choose(self, signs: Vec<(Sign, String)>) -> Option<(Sign, String)> {
        let is_heard = |sign: &Sign| match sign {
            Sign::Panic => self.panic,
            Sign::Hang => self.hang,
            Sign::Trouble(_) => false,
        };
        let heard = signs.into_iter().filter(|(sign, _)| is_heard(sign));
        heard.min_by_key(|(sign, _)| *sign != Sign::Panic)
    }
}

/// A console's output, which is listened to.
pub struct SignWatch {
    output: Box<dyn Write + Send>,
    listens: Listens,
    /// The line so far.
    line: Vec<u8>,
    heard: Arc<EventFd>,
}

impl SignWatch {
    /// Passes output on, and writes to `heard` behind a line that says so.
    pub fn new(output: Box<dyn Write + Send>, listens: Listens, heard: Arc<EventFd>) -> SignWatch {
        SignWatch { output, listens, line: Vec::new(), heard }
    }

    fn listen(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.look_at_piece();
                self.line.clear();
            } else {
                if self.line.len() == LONGEST_LINE {
                    self.look_at_piece();
                    // What is on both sides of the border is whole in the next piece.
                    self.line.drain(..LONGEST_LINE - OVERLAP);
                }
                self.line.push(*byte);
            }
            // Its end may never come.
            if self.listens.panic && self.line.ends_with(LAST_LINE) {
                self.tell();
            }
        }
    }

    fn look_at_piece(&self) {
        let says_hang = |line: &str| trouble::sign(line, &[]) == Some(Sign::Hang);
        if self.listens.hang && says_hang(&String::from_utf8_lossy(&self.line)) {
            self.tell();
        }
    }

    fn tell(&self) {
        if let Err(error) = self.heard.write(1) {
            tell!(Warn, "nobody is told of what the guest's kernel says: {error}");
        }
    }
}

impl Write for SignWatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        self.listen(dealt_with(&written, bytes));
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl std::fmt::Debug for SignWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignWatch").field("listens", &self.listens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Listens = Listens { panic: true, hang: true };

    fn hears(listens: Listens, text: &str, piece: usize) -> u64 {
        let heard = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut watch = SignWatch::new(Box::new(io::sink()), listens, Arc::clone(&heard));
        text.as_bytes().chunks(piece).for_each(|piece| watch.write_all(piece).unwrap());
        heard.read().unwrap_or(0)
    }

    #[test]
    fn the_last_line_is_heard_however_it_comes() {
        let line = "[    1.2] ---[ end Kernel panic - not syncing: why ]---";
        for piece in [1, 2, 7, 100] {
            assert_eq!(hears(BOTH, line, piece), 1);
            assert_eq!(hears(BOTH, &line.replace("---[ end", "-----[ end"), piece), 1);
            assert_eq!(hears(BOTH, &format!("---[ end Kern{line}"), piece), 1);
            assert_eq!(hears(BOTH, "Kernel panic - not syncing: sysrq triggered crash\n", piece), 0);
        }
        assert_eq!(hears(BOTH, &format!("{line}\n{line}"), 5), 2);
        assert_eq!(hears(Listens { panic: false, hang: true }, &format!("{line}\n"), 5), 0);
    }

    #[test]
    fn a_hang_is_heard_at_the_end_of_its_line() {
        let line = "[   30.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:42]";
        for piece in [1, 3, 100] {
            assert_eq!(hears(BOTH, line, piece), 0);
            assert_eq!(hears(BOTH, &format!("{line}\r\nmore\n{line}\n"), piece), 2);
            assert_eq!(hears(Listens { panic: true, hang: false }, &format!("{line}\n"), piece), 0);
        }
        // A line that has no end is one all the same.
        let endless = format!("{line}{}", "x".repeat(LONGEST_LINE));
        assert_eq!(hears(BOTH, &endless, 11), 1);
    }

    /// A line that a program began, and did not end.
    #[test]
    fn it_is_heard_wherever_in_a_long_line_it_is() {
        let hang = "[   30.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:42]\n";
        let panic = "[    1.2] ---[ end Kernel panic - not syncing: why ]---\n";
        for before in 0..2 * LONGEST_LINE + 100 {
            let dots = ".".repeat(before);
            assert!(hears(BOTH, &format!("{dots}{hang}"), 64) >= 1, "{before}");
            assert_eq!(hears(BOTH, &format!("{dots}{panic}"), 64), 1, "{before}");
        }
    }

    #[test]
    fn what_is_not_listened_for_hides_nothing_else() {
        let signs = || {
            let sign = |sign, line: &str| (sign, line.to_string());
            vec![
                sign(Sign::Hang, "soft lockup"),
                sign(Sign::Hang, "again"),
                sign(Sign::Panic, "panic: lockup"),
            ]
        };
        let chosen = |panic, hang| Listens { panic, hang }.choose(signs());
        assert_eq!(chosen(true, true), Some((Sign::Panic, "panic: lockup".into())));
        assert_eq!(chosen(false, true), Some((Sign::Hang, "soft lockup".into())));
        assert_eq!(chosen(true, false), Some((Sign::Panic, "panic: lockup".into())));
        assert_eq!(Listens { panic: true, hang: false }.choose(vec![(Sign::Hang, "x".into())]), None);
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
        let mut watch = SignWatch::new(Box::new(Broken), BOTH, Arc::clone(&heard));
        assert!(watch.write(b"---[ end Kernel panic - not").is_err());
        assert!(watch.write(b" syncing: why ]---").is_err());
        assert_eq!(heard.read().unwrap(), 1);
    }
}
