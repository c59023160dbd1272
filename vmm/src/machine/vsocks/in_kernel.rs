//! This host's kernel as the other end of a guest's socket device (Linux `drivers/vhost/vsock.c`, `linux/vhost.h`).

use devices::virtio::vsock::FIRST_CID;
use devices::virtio::vsock::in_kernel::{Kernel, Ring, Wires};
use kvm::ram::GuestMemory;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryRegion};

/// Numbers that are tried for a guest that is to have any.
const TRIED: u32 = 1 << 16;

/// The kernel's part for one guest at a time, with that one's number.
pub struct HostKernel {
    cid: u32,
    features: u64,
    memory: GuestMemoryAtomic<GuestMemory>,
    vsock: Vsock<GuestMemoryAtomic<GuestMemory>>,
}

impl fmt::Debug for HostKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKernel").field("cid", &self.cid).finish_non_exhaustive()
    }
}

/// What the host has said.
fn plain(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error) | vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => {
            error
        }
        error => io::Error::other(error),
    }
}

impl HostKernel {
    /// For a guest of this number, or of one that is free.
    ///
    /// # Errors
    /// The host has none, or its user may not; another guest has the number.
    pub fn open(cid: Option<u32>) -> io::Result<HostKernel> {
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let vsock = Vsock::new(memory.clone()).map_err(|error| with_remedy(plain(error)))?;
        vsock.set_owner().map_err(plain)?;
        let features = vsock.get_features().map_err(plain)?;
        let numbers = cid.map_or(FIRST_CID..=FIRST_CID + TRIED, |cid| cid..=cid);
        for number in numbers {
            match vsock.set_guest_cid(number.into()).map_err(plain) {
                Ok(()) => {
                    log::info!("the guest's number among this host's vsock addresses is {number}");
                    return Ok(HostKernel { cid: number, features, memory, vsock });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        let which = cid.map_or_else(|| "all numbers".into(), |cid| format!("the number {cid}"));
        Err(io::Error::new(ErrorKind::AddrInUse, format!("other guests of this host have {which}")))
    }

    /// From now on it is about this guest's memory. It stands still.
    fn set_memory(&self, memory: &GuestMemory) {
        // Whoever had the lock has nothing of it that could be half done.
        let lock = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lock.replace(memory.clone());
    }
}

/// The kernel's part for one start of the guest, with its memory.
pub struct OfGuest {
    /// What outlives it.
    pub host: Arc<HostKernel>,
    /// Its memory.
    pub memory: GuestMemory,
}

fn with_remedy(error: io::Error) -> io::Error {
    const NONE: &str = "this host's kernel has none: load it (modprobe vhost_vsock), or write CID,path=PATH";
    let remedy = match error.kind() {
        // Its name may be there for whoever loads the module.
        _ if error.raw_os_error() == Some(libc::ENODEV) => NONE,
        ErrorKind::NotFound => NONE,
        ErrorKind::PermissionDenied => {
            "this user may not: root, or who has the right to the file, or write CID,path=PATH"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), remedy)
}

impl Kernel for OfGuest {
    fn cid(&self) -> u32 {
        self.host.cid
    }

    fn features(&self) -> u64 {
        self.host.features
    }

    fn set_up(&self, features: u64, rings: &[Ring; 2], wires: &[Wires; 2]) -> io::Result<()> {
        self.host.set_memory(&self.memory);
        let memory = &self.memory;
        let region = |region: &kvm::ram::RamRegion| {
            let start = region.start_addr();
            Some(VhostUserMemoryRegionInfo {
                guest_phys_addr: start.0,
                memory_size: region.len(),
                userspace_addr: memory.get_host_address(start).ok()? as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
        };
        let regions: Option<Vec<_>> = memory.iter().map(region).collect();
        let regions = regions.ok_or(ErrorKind::InvalidInput)?;
        self.host.vsock.set_features(features).map_err(plain)?;
        self.host.vsock.set_mem_table(&regions).map_err(plain)?;
        for (queue, (ring, wires)) in rings.iter().zip(wires).enumerate() {
            let addresses = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: ring.descriptors,
                used_ring_addr: ring.used,
                avail_ring_addr: ring.available,
                log_addr: None,
            };
            let set_up = || {
                self.host.vsock.set_vring_num(queue, ring.size)?;
                self.host.vsock.set_vring_base(queue, ring.next)?;
                self.host.vsock.set_vring_addr(queue, &addresses)?;
                self.host.vsock.set_vring_err(queue, &wires.error)?;
                self.host.vsock.set_vring_call(queue, &wires.call)?;
                self.host.vsock.set_vring_kick(queue, &wires.kick)
            };
            set_up().map_err(plain)?;
        }
        Ok(())
    }

    fn run(&self, runs: bool) -> io::Result<()> {
        if runs { self.host.vsock.start() } else { self.host.vsock.stop() }.map_err(plain)
    }

    fn next(&self, queue: usize) -> io::Result<u16> {
        let next = self.host.vsock.get_vring_base(queue).map_err(plain)?;
        u16::try_from(next).map_err(io::Error::other)
    }
}
