//! Bytes that wait for whoever is to read them: nobody who carries a console both ways may wait for one of its ends.

use std::io::{self, ErrorKind, Write};

/// Bytes on their way to what may have no room for them. Whoever puts some here keeps it bounded.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    /// Those of them that have gone.
    gone: usize,
}

impl Pending {
    /// Whether all has gone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.gone
    }

    /// Puts some behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.gone));
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets those that wait.
    pub fn clear(&mut self) {
        (self.bytes, self.gone) = (Vec::new(), 0);
    }

    /// Writes some, `most` bytes at once, for which `out` is not waited for if it is non-blocking or has room for so many:
    /// whether it may take more now.
    ///
    /// # Errors
    /// What `out` says, but [`ErrorKind::WouldBlock`] and [`ErrorKind::Interrupted`].
    pub fn write_some(&mut self, mut out: impl Write, most: usize) -> io::Result<bool> {
        let waiting = &self.bytes[self.gone..];
        if waiting.is_empty() {
            return Ok(true);
        }
        match out.write(&waiting[..waiting.len().min(most)]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => self.gone += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.is_empty() {
            self.clear();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has room for so many bytes.
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.1);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.1 -= count;
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_there_is_no_room_for_waits_in_its_order() {
        let (mut pending, mut out) = (Pending::default(), Narrow(Vec::new(), 5));
        pending.push(b"hello, ");
        assert!(pending.write_some(&mut out, 3).unwrap());
        assert!(pending.write_some(&mut out, 3).unwrap());
        assert!(!pending.write_some(&mut out, 3).unwrap());
        pending.push(b"you");
        assert_eq!(pending.len(), 5);
        out.1 = 100;
        while !pending.is_empty() {
            assert!(pending.write_some(&mut out, 3).unwrap());
        }
        assert_eq!(out.0, b"hello, you");
    }
}
