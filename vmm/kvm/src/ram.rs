//! RAM of a guest, mapped into this process.
//!
//! Regions are aligned to 2 MiB on the host and marked for transparent huge pages: a guest
//! under nested paging faults once per 2 MiB instead of once per 4 KiB. Nothing is reserved,
//! so a guest costs what it touches. Core files of this process do not have it.

mod live;

use arch::Isa;
use arch::address::PhysRange;
use std::io;
use std::sync::Arc;
use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    GuestRegionMmap, GuestUsize, MemoryRegionAddress, MmapRegion, VolatileSlice,
};

pub use live::{LiveMemory, populated};

/// All RAM of a guest, by guest-physical address.
pub type GuestMemory = GuestRegionCollection<RamRegion>;

const HUGE_PAGE: usize = 2 << 20;

/// One contiguous piece of RAM.
#[derive(Debug)]
pub struct RamRegion {
    // Refers to memory of `_reservation`, so it goes first.
    region: GuestRegionMmap<()>,
    _reservation: Reservation,
}

/// Maps `bytes` of RAM as a machine of `isa` has it.
///
/// # Errors
/// What `mmap` says.
pub fn map(isa: Isa, bytes: u64) -> io::Result<GuestMemory> {
    let ranges = match isa {
        Isa::X86_64 => arch::x86::layout::ram(bytes),
        Isa::Aarch64 => arch::aarch64::layout::ram(bytes),
    };
    let regions =
        ranges.iter().map(|range| RamRegion::new(range).map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
    GuestMemory::from_arc_regions(regions).map_err(io::Error::other)
}

/// Has the host forget how it maps the page of 4 KiB at a guest-physical address for KVM, without its contents'
/// being lost: the guest's next access comes to KVM's notice. Where no RAM is, nothing happens.
pub fn forget_mapping(memory: &GuestMemory, page: u64) {
    use vm_memory::GuestMemoryBackend;
    const PAGE: usize = 4096;
    let address = GuestAddress(page & !0xfff);
    let Ok(host) = memory.get_host_address(address) else { return };
    // A change of protection has KVM drop its mapping, to and fro; at no time is an access of ours refused.
    for protection in [Reservation::PROTECTION | libc::PROT_EXEC, Reservation::PROTECTION] {
        // SAFETY: regions begin and end at pages, so the page is the guest's memory, which stays readable and
        // writable, and nothing of this process is executed from it.
        if unsafe { libc::mprotect(host.cast(), PAGE, protection) } != 0 {
            log::debug!("the mapping of {address:?} is kept: {}", io::Error::last_os_error());
            return;
        }
    }
}

impl RamRegion {
    fn new(range: &PhysRange) -> io::Result<RamRegion> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let size = usize::try_from(range.size).map_err(|_| too_large())?;
        let reservation = Reservation::new(size.checked_add(HUGE_PAGE).ok_or_else(too_large)?)?;
        let start = reservation.aligned(HUGE_PAGE);
        // SAFETY: `size` bytes from `start` lie in the reservation, which is larger by the
        // alignment; advice changes no contents.
        if unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) } != 0 {
            log::debug!("no huge pages for guest memory: {}", io::Error::last_os_error());
        }
        // A core of the monitor has what is wrong with the monitor, not all that the guest knows.
        // SAFETY: as above.
        if unsafe { libc::madvise(start.cast(), size, libc::MADV_DONTDUMP) } != 0 {
            log::debug!("guest memory is in core files of this process: {}", io::Error::last_os_error());
        }
        // SAFETY: the range is mapped with this protection and these flags until the
        // reservation is dropped, after the region.
        let mapping =
            unsafe { MmapRegion::build_raw(start, size, Reservation::PROTECTION, Reservation::FLAGS) }
                .map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start.0)).ok_or_else(too_large)?;
        Ok(RamRegion { region, _reservation: reservation })
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.region.get_host_address(address)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        GuestMemoryRegion::get_slice(&self.region, offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// Anonymous memory of this process, unmapped when dropped.
#[derive(Debug)]
struct Reservation {
    base: *mut libc::c_void,
    size: usize,
}

// SAFETY: the mapping is plain memory that any thread may use and unmap; whoever reads or
// writes it goes through volatile accesses of vm-memory.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

    fn new(size: usize) -> io::Result<Reservation> {
        // SAFETY: a new anonymous mapping touches no other memory of this process.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, Self::PROTECTION, Self::FLAGS, -1, 0) };
        if base == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Reservation { base, size })
        }
    }

    /// The first address in the reservation that is a multiple of `alignment` bytes.
    fn aligned(&self, alignment: usize) -> *mut u8 {
        let base = self.base.cast::<u8>();
        base.wrapping_add(base.align_offset(alignment))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`; `RamRegion` drops its last user first.
        unsafe { libc::munmap(self.base, self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn ram_around_the_hole_is_aligned_and_reads_back() {
        let memory = map(Isa::X86_64, 6 << 30).unwrap();
        for region in memory.iter() {
            let start = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            assert_eq!(start as usize % HUGE_PAGE, 0);
        }
        memory.write_obj(0x1234_5678u32, GuestAddress((7 << 30) - 4)).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress((7 << 30) - 4)).unwrap(), 0x1234_5678);
        assert!(memory.write_obj(0u8, GuestAddress(3 << 30)).is_err());
        assert!(memory.write_obj(0u32, GuestAddress((7 << 30) - 2)).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(map(Isa::Aarch64, 1 << 60).is_err());
    }
}
