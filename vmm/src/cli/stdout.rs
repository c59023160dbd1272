//! What a command answers, on standard output.
//!
//! An answer is whole or the exit code says that it is not: a full disk is an error in one line. A reader
//! that has gone is none, as `head` goes when it has read enough; other tools end in silence then, by
//! SIGPIPE, which Rust's programs ignore. A guest's console is not written here but by [`crate::run::console`].

use crate::outcome;
use std::io::{self, ErrorKind, Write};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
        assert_eq!(written(Ok(()), 0), 0);
        assert_eq!(written(Err(ErrorKind::BrokenPipe.into()), outcome::HOST), outcome::HOST);
        assert_eq!(written(Err(ErrorKind::StorageFull.into()), 0), outcome::FILE);
    }
}
