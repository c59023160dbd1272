//! Kernel images: which format they have, and what their headers ask for.

use arch::image::{Source, detect};

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let piece = start.checked_add(bytes.len()).and_then(|end| self.0.get(start..end));
        bytes.copy_from_slice(piece.ok_or("behind the end")?);
        Ok(())
    }
}

/// Kernel images.
pub fn images(data: &[u8]) {
    // Whatever it is.
    detect(&Bytes(data)).ok();
}
