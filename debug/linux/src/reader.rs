//! Guest-virtual memory of a kernel, read in pieces of its types.

use crate::types::Field;
use std::fmt;

/// Memory that is not there: not mapped, or left out of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's memory cannot be read at {0:#x}")]
pub struct NotThere(pub u64);

/// Reads guest-virtual memory as the kernel sees it.
pub struct Reader<'a>(&'a dyn Fn(u64, &mut [u8]) -> usize);

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl<'a> Reader<'a> {
    /// By a function that says how many bytes are good.
    pub fn new(read: &'a dyn Fn(u64, &mut [u8]) -> usize) -> Reader<'a> {
        Reader(read)
    }

    /// As many bytes as there are.
    pub fn some(&self, at: u64, bytes: &mut [u8]) -> usize {
        (self.0)(at, bytes)
    }

    /// All of them.
    ///
    /// # Errors
    /// [`NotThere`], with the first that is not.
    pub fn bytes(&self, at: u64, bytes: &mut [u8]) -> Result<(), NotThere> {
        match self.some(at, bytes) {
            good if good == bytes.len() => Ok(()),
            good => Err(NotThere(at.wrapping_add(good as u64))),
        }
    }

    /// A little-endian number of up to eight bytes; more are left out.
    ///
    /// # Errors
    /// [`NotThere`].
    pub fn number(&self, at: u64, size: u64) -> Result<u64, NotThere> {
        let mut word = [0; 8];
        let size = usize::try_from(size.min(8)).unwrap_or(8);
        self.bytes(at, &mut word[..size])?;
        Ok(u64::from_le_bytes(word))
    }

    /// The number that a member of what is at an address has.
    ///
    /// # Errors
    /// [`NotThere`].
    pub fn field(&self, of: u64, field: Field) -> Result<u64, NotThere> {
        self.number(of.wrapping_add(field.at), field.size)
    }

    /// An address.
    ///
    /// # Errors
    /// [`NotThere`].
    pub fn address(&self, at: u64) -> Result<u64, NotThere> {
        self.number(at, 8)
    }
}
