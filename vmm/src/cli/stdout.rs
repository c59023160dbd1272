//! What a command answers, on standard output.
//!
//! An answer is whole or the exit code says that it is not: a full disk is an error in one line. A reader
//! that has gone is none, as `head` goes when it has read enough; other tools end in silence then, by
//! SIGPIPE, which Rust's programs ignore. A guest's console is not written here but by [`crate::run::console`].

use crate::outcome;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// Writes all of an answer; `code` if that succeeds or nobody reads it, else [`outcome::FILE`] and a line on
/// standard error.
pub fn print(text: &str, code: u8) -> u8 {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()), code)
}

/// The exit code of a command whose answer was written so.
pub fn written(result: io::Result<()>, code: u8) -> u8 {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            log::error!("cannot write to standard output: {error}");
            outcome::FILE
        }
        _ => code,
    }
}

/// What has ended a [wait].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There is something to be read.
    Ready,
    /// Nobody reads what would be printed.
    Unread,
    /// It has been as long as that.
    Time,
}

/// Waits for something to be read, for `limit` at most, or until standard output has no reader any more: one that prints
/// seldom would not learn of that.
///
/// # Errors
/// What `poll` says.
pub fn wait(input: Option<BorrowedFd<'_>>, limit: PollTimeout) -> io::Result<Waited> {
    wait_beside(io::stdout().as_fd(), input, limit)
}

fn wait_beside(
    output: BorrowedFd<'_>,
    input: Option<BorrowedFd<'_>>,
    limit: PollTimeout,
) -> io::Result<Waited> {
    let mut polled = vec![PollFd::new(output, PollFlags::empty())];
    polled.extend(input.map(|input| PollFd::new(input, PollFlags::POLLIN)));
    loop {
        match poll(&mut polled, limit) {
            Ok(0) => return Ok(Waited::Time),
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if polled[0].any() == Some(true) { Waited::Unread } else { Waited::Ready })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_learns_that_nobody_reads() {
        let ((reader, output), (input, mut typed)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let wait = |limit| wait_beside(output.as_fd(), Some(input.as_fd()), limit).unwrap();
        assert_eq!(wait(PollTimeout::ZERO), Waited::Time);
        typed.write_all(b"x").unwrap();
        assert_eq!(wait(PollTimeout::NONE), Waited::Ready);
        drop(reader);
        assert_eq!(wait(PollTimeout::NONE), Waited::Unread);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
        assert_eq!(written(Ok(()), 0), 0);
        assert_eq!(written(Err(ErrorKind::BrokenPipe.into()), outcome::HOST), outcome::HOST);
        assert_eq!(written(Err(ErrorKind::StorageFull.into()), 0), outcome::FILE);
    }
}
