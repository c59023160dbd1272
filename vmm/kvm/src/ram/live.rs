//! RAM of a live guest, as the debugger sees it.

use crate::ram::GuestMemory;
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::paging::TableMemory;
use debug::machine::Memory;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// RAM of a live guest, ours or another monitor's.
#[derive(Clone, Debug)]
pub struct LiveMemory<M = GuestMemory>(pub M);

impl<M: GuestMemoryBackend> LiveMemory<M> {
    /// Bytes of RAM in one piece from an address on, `length` at most.
    fn piece(&self, address: GuestPhys, length: usize) -> usize {
        let address = GuestAddress(address.0);
        let Some(region) = self.0.find_region(address) else { return 0 };
        let left = region.last_addr().0 - address.0;
        usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1).min(length)
    }
}

impl<M: GuestMemoryBackend> TableMemory for LiveMemory<M> {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.0.read_slice(bytes, GuestAddress(address.0)).is_ok()
    }
}

impl<M: GuestMemoryBackend + Send + Sync> Memory for LiveMemory<M> {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let length = self.piece(address, bytes.len());
        self.0.read(&mut bytes[..length], GuestAddress(address.0)).unwrap_or(0)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        let length = self.piece(address, bytes.len());
        let written = self.0.write(&bytes[..length], GuestAddress(address.0)).unwrap_or(0);
        if let Ok(place) = self.0.get_host_address(GuestAddress(address.0)) {
            crate::code_changed(place, written);
        }
        written
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.0.iter().map(|region| PhysRange::new(region.start_addr().0, region.len())).collect()
    }

    fn populated(&self) -> Vec<PhysRange> {
        let mut ranges = Vec::new();
        for region in self.0.iter() {
            let start = region.start_addr().0;
            let host = region.get_host_address(MemoryRegionAddress(0));
            match host.ok().and_then(|host| populated(host, region.len()).ok()) {
                Some(pieces) => ranges.extend(
                    pieces.into_iter().map(|(offset, length)| PhysRange::new(start + offset, length)),
                ),
                None => ranges.push(PhysRange::new(start, region.len())),
            }
        }
        ranges
    }
}

/// The pieces of this process's mapping at `host`, `length` bytes, whose pages are present or swapped out: offset and
/// length of each, in bytes. The others have never been touched, or given back, and read as zeros. For a monitor whose
/// memory is not vm-memory's (Linux, `Documentation/admin-guide/mm/pagemap.rst`). Nothing is read at `host`.
///
/// # Errors
/// `/proc/self/pagemap` cannot be opened, or says nothing about what is not mapped.
pub fn populated(host: *const u8, length: u64) -> io::Result<Vec<(u64, u64)>> {
    const ENTRY: u64 = 8;
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    /// Entries that are read at a time.
    const AT_ONCE: u64 = 8192;
    let pagemap = File::open("/proc/self/pagemap")?;
    let (page, host) = (page_size(), host as u64);
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let pages = length / page;
    let mut first = 0;
    while first < pages {
        let count = (pages - first).min(AT_ONCE);
        let mut entries = vec![0; usize::try_from(count * ENTRY).unwrap_or(0)];
        pagemap.read_exact_at(&mut entries, (host / page + first) * ENTRY)?;
        for (index, entry) in (first..).zip(entries.chunks_exact(8)) {
            if arch::bytes::u64_at(entry, 0).unwrap_or(0) & PRESENT_OR_SWAPPED == 0 {
                continue;
            }
            match pieces.last_mut() {
                Some((offset, length)) if *offset + *length == index * page => *length += page,
                _ => pieces.push((index * page, page)),
            }
        }
        first += count;
    }
    Ok(pieces)
}

fn page_size() -> u64 {
    // SAFETY: it has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HOST_ISA;

    #[test]
    fn touched_pages_are_found() {
        let memory = LiveMemory(crate::ram::map(HOST_ISA, 64 << 20).unwrap());
        let place = GuestPhys(memory.ranges()[0].start.0 + 0x123_4567);
        let before: u64 = memory.populated().iter().map(|range| range.size).sum();
        assert_eq!(memory.write(place, b"x"), 1);
        let after = memory.populated();
        assert!(after.iter().any(|range| range.contains(place, 1)));
        let size: u64 = after.iter().map(|range| range.size).sum();
        assert!(size > before && size < 64 << 20, "{before} {size}");
    }
}
