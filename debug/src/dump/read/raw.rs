//! Plain memory, byte for byte, of a target that the user describes.

use crate::dump::contents::{Contents, DumpError, DumpedVcpu, Image};
use crate::source::Source;
use arch::Isa;
use arch::address::PhysRange;
use arch::register::RegisterFile;
use std::sync::Arc;

#[derive(Debug)]
struct RawImage {
    source: Arc<dyn Source>,
    base: u64,
}

impl Image for RawImage {
    fn ranges(&self) -> Vec<PhysRange> {
        vec![PhysRange::new(self.base, self.source.size())]
    }

    fn populated(&self) -> Vec<PhysRange> {
        let pieces = self.source.pieces(0, self.source.size());
        pieces.into_iter().map(|(start, end)| PhysRange::new(self.base + start, end - start)).collect()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let Some(offset) = address.checked_sub(self.base) else { return 0 };
        self.source.read_at(offset, bytes).unwrap_or(0)
    }
}

/// Memory of which the file's first byte is at `base`, guest-physical, and one vCPU with these registers.
///
/// # Errors
/// [`DumpError::Malformed`] when it would go past the end of the address space; [`DumpError::Truncated`]
/// when it is empty.
pub fn read(
    source: Arc<dyn Source>,
    isa: Isa,
    base: u64,
    registers: RegisterFile,
) -> Result<Contents, DumpError> {
    let size = source.size();
    if size == 0 {
        return Err(DumpError::Truncated { what: "the memory", offset: 0 });
    }
    if base.checked_add(size).is_none() {
        let what = format!("{size:#x} bytes from {base:#x}, which is past the end of all memory");
        return Err(DumpError::Malformed { what, offset: 0 });
    }
    let cpus = vec![DumpedVcpu { registers, ..DumpedVcpu::unknown(isa) }];
    let image = Box::new(RawImage { source, base });
    Ok(Contents { format: "plain memory".into(), isa, image, cpus, info: None, remarks: Vec::new() })
}
