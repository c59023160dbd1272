//! Disks: images that come from anywhere, and guests that ask for anything.

use devices::ram::{Ram, VolatileSlice};
use devices::virtio::block::{Block, Disk};
use devices::virtio::queue::{ActiveQueue, Queues};
use devices::virtio::worker::{Rung, Then};
use devices::virtio::{Interrupts, Model};
use disk::sample::Sample;
use disk::{Access, Format, Image, Options};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// A folder with a backing file, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmm-fuzz-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir_all(folder.0.join("images"))?;
        fs::write(folder.0.join("canary"), [0x5e; 4096])?;
        fs::write(folder.0.join("images/base"), [0xba; 4096])?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A qcow2 image of small clusters, changed at places: two bytes where, one byte what. The first byte's bits choose how it
/// is opened. Nothing outside its folder is read or changed.
pub fn images(data: &[u8]) {
    const SIZE: u64 = 64 << 10;
    let Some((choice, changes)) = data.split_first() else { return };
    let clusters = vec![(1, vec![1; 512]), (3, vec![3; 512])];
    let backing = Some(("base", Some("raw")));
    let version = if choice & 4 == 0 { 3 } else { 2 };
    let sample = Sample { version, cluster_bits: 9, clusters, backing, ..Sample::new(SIZE) };
    let (Ok(mut image), Ok(folder)) = (sample.build(), Folder::new()) else { return };
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % image.len();
        image[at] = change[2];
    }
    if choice & 8 != 0 {
        image.truncate(usize::from(changes.first().copied().unwrap_or(0)) * 16);
    }
    let path = folder.0.join("images/a.qcow2");
    if fs::write(&path, &image).is_err() {
        return;
    }
    let access = [Access::ReadWrite, Access::ReadOnly, Access::Snapshot][usize::from(choice & 3) % 3];
    let opened = Image::open(&Options { path: path.clone(), format: Some(Format::Qcow2), access });
    match opened {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(opened) => use_all(&opened),
    }
    if access != Access::ReadWrite {
        assert!(fs::read(&path).is_ok_and(|now| now == image), "an image that is only read has been changed");
    }
    assert!(fs::read(folder.0.join("canary")).is_ok_and(|bytes| bytes == [0x5e; 4096]));
    assert!(fs::read(folder.0.join("images/base")).is_ok_and(|bytes| bytes == [0xba; 4096]));
}

/// Reads and writes here and there.
fn use_all(image: &Image) {
    let size = image.size();
    let mut bytes = [0; 700];
    for at in (0..16u64).map(|part| size / 16 * part).chain([size - 700, 512, 1536]) {
        if image.read(at, &mut bytes).is_ok() {
            // A single one may have been put there.
            assert!(!bytes.windows(16).any(|part| part == [0x5e; 16]), "the canary is in the image");
        }
        image.write(at, &[7; 700]).ok();
        image.write_zeroes(at, 512, at & 512 == 0).ok();
        image.discard(at, 1024.min(size - at)).ok();
    }
    image.flush().ok();
}

/// A machine's memory, 64 KiB.
#[derive(Clone, Debug)]
pub(super) struct Memory(pub(super) GuestMemoryMmap);

impl Ram for Memory {
    fn ranges(&self) -> Vec<arch::address::PhysRange> {
        vec![arch::address::PhysRange::new(0, 1 << 16)]
    }

    fn read(&self, address: arch::GuestPhys, bytes: &mut [u8]) -> usize {
        self.0.read(bytes, GuestAddress(address.0)).unwrap_or(0)
    }

    fn write(&self, address: arch::GuestPhys, bytes: &[u8]) -> usize {
        self.0.write(bytes, GuestAddress(address.0)).unwrap_or(0)
    }

    fn update(&self, _: arch::GuestPhys, _: usize, _: u64, _: u64) -> Option<u64> {
        None
    }

    fn shared(&self, address: arch::GuestPhys, size: usize) -> Option<VolatileSlice<'_>> {
        GuestMemoryBackend::get_slice(&self.0, GuestAddress(address.0), size).ok()
    }

    fn forget_mapping(&self, _: arch::GuestPhys) {}
}

/// A disk in memory, which is asked for nothing that it has not got.
struct Plain(Mutex<Vec<u8>>, bool);

impl Plain {
    const SIZE: u64 = 32 << 10;

    fn part(offset: u64, count: u64) -> std::ops::Range<usize> {
        let end = offset.checked_add(count).filter(|end| *end <= Plain::SIZE);
        assert!(end.is_some(), "{count:#x} bytes at {offset:#x}");
        usize::try_from(offset).unwrap_or(0)..usize::try_from(offset + count).unwrap_or(0)
    }

    fn change(&self, offset: u64, count: u64, work: impl FnOnce(&mut [u8])) -> io::Result<()> {
        assert!(self.1, "a disk that is only read is written to");
        let part = Plain::part(offset, count);
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)[part]);
        Ok(())
    }
}

impl Disk for Plain {
    fn size(&self) -> u64 {
        Plain::SIZE
    }

    fn is_writable(&self) -> bool {
        self.1
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let part = Plain::part(offset, bytes.len() as u64);
        bytes.copy_from_slice(&self.0.lock().unwrap_or_else(PoisonError::into_inner)[part]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(offset, bytes.len() as u64, |part| part.copy_from_slice(bytes))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.change(offset, count, |part| part.fill(0))
    }

    fn write_zeroes(&self, offset: u64, count: u64, _: bool) -> io::Result<()> {
        self.change(offset, count, |part| part.fill(0))
    }
}

#[derive(Debug)]
pub(super) struct Nobody;

impl Interrupts for Nobody {
    fn queue(&self, _: u16) {}

    fn configuration(&self) {}

    fn needs_reset(&self) {}
}

/// A queue of 16 entries in a guest's memory: descriptors by the first 256 bytes, what is available by the next 64, what
/// they point at by the rest, from 0x1000 on. The first byte's bits choose the disk and the features.
pub fn requests(data: &[u8]) {
    const SIZE: u16 = 16;
    const AVAILABLE: u64 = 0x400;
    const USED: u64 = 0x800;
    let Some((choice, data)) = data.split_first() else { return };
    let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)]) else { return };
    let ram = Memory(memory);
    let (descriptors, data) = data.split_at(data.len().min(256));
    let (available, data) = data.split_at(data.len().min(64));
    for (at, bytes) in [(0, descriptors), (AVAILABLE, available), (0x1000, data)] {
        ram.write(arch::GuestPhys(at), bytes);
    }
    let mut disk = Block::new(Plain(Mutex::new(vec![1; 32 << 10]), choice & 1 == 0), "disk", "serial", 1);
    let interrupts: Arc<dyn Interrupts> = Arc::new(Nobody);
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: 0,
        avail_ring: AVAILABLE,
        used_ring: USED,
        event_idx_enabled: choice & 2 != 0,
        ..QueueState::default()
    };
    let (Some(disk), Ok(bell)) = (&mut disk, EventFd::new(0)) else { return };
    let Ok(queue) = ActiveQueue::new(state, 0, bell, (Arc::new(ram), Arc::clone(&interrupts))) else {
        return;
    };
    let mut queues = Queues::new(1);
    queues.put(0, Some(queue));
    let features = u64::from(choice & 4) << 7;
    let Some(mut service) = disk.services(features, &interrupts).pop() else { return };
    // What it reads may be what is available next, so it need not come to an end by itself.
    for _ in 0..64 {
        if !matches!(service.server.serve(Rung::Queue(0), &mut queues), Ok(Then::GoesOn)) {
            break;
        }
    }
}
