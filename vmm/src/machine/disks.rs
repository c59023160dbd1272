//! Disks that a guest is given: the image of each behind its device.

use crate::error::Error;
use crate::machine::config::{DiskConfig, LONGEST_SERIAL};
use devices::ram::VolatileSlice;
use devices::virtio::block::{Block, Disk};
use disk::Image;
use libc::{c_int, iovec, off_t};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// An image that is open, as a device has it.
#[derive(Clone, Debug)]
pub struct Opened(Arc<Image>);

impl Disk for Opened {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn is_writable(&self) -> bool {
        self.0.is_writable()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(offset, bytes)
    }

    fn read_into(&self, offset: u64, ram: &[VolatileSlice<'_>]) -> usize {
        self.0.file().map_or(0, |file| read_at(file, offset, ram))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.0.discard(offset, count)
    }

    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, count, gives_room)
    }
}

/// Reads as much as comes at once of a file into memory in parts, bytes; 0 when that fails.
fn read_at(file: &File, offset: u64, ram: &[VolatileSlice<'_>]) -> usize {
    let guards: Vec<_> =
        ram.iter().take(libc::UIO_MAXIOV as usize).map(VolatileSlice::ptr_guard_mut).collect();
    let parts: Vec<iovec> =
        guards.iter().map(|guard| iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let (Ok(count), Ok(offset)) = (c_int::try_from(parts.len()), off_t::try_from(offset)) else { return 0 };
    // SAFETY: each part is memory of the guest's as long as its guard is there, and no Rust reference is to it.
    let read = unsafe { libc::preadv(file.as_raw_fd(), parts.as_ptr(), count, offset) };
    // A failure is told by whoever tries again, one byte after the other.
    usize::try_from(read).unwrap_or(0)
}

/// A disk that is open, and what the guest knows it by.
#[derive(Clone, Debug)]
pub struct OpenDisk {
    /// The image.
    pub image: Opened,
    config: DiskConfig,
}

/// Opens a disk.
///
/// # Errors
/// [`Error::Disk`].
pub fn open(config: &DiskConfig) -> Result<OpenDisk, Error> {
    let image = Image::open(&config.image);
    let image = image.map_err(|source| Error::Disk { path: config.image.path.clone(), source })?;
    Ok(OpenDisk { image: Opened(Arc::new(image)), config: config.clone() })
}

impl OpenDisk {
    /// A device for it, of a guest with so many vCPUs.
    ///
    /// # Errors
    /// [`Error::Usage`]: the serial number is too long.
    pub fn device(&self, cpus: u32) -> Result<Block<Opened>, Error> {
        let (path, serial) = (self.config.image.path.display(), &self.config.serial);
        Block::new(self.image.clone(), &format!("disk {path}"), serial, cpus).ok_or_else(|| {
            Error::Usage(format!(
                "--disk: the serial number '{serial}' has more than {LONGEST_SERIAL} bytes: write {path},serial=TEXT"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::guest_ram::GuestRam;
    use arch::GuestPhys;
    use debug::engine::Engine;
    use devices::ram::Ram;
    use disk::{Access, Format, Options};
    use kvm::HOST_ISA;

    /// Between a raw image and RAM nothing is copied by us, unless a debugger may have planted something there.
    #[test]
    fn raw_images_are_read_in_place() {
        let path = std::env::temp_dir().join(format!("vmm-in-place-{}", std::process::id()));
        let noise: Vec<u8> = (0..6000u32).map(|at| (at * at / 7).to_le_bytes()[0]).collect();
        std::fs::write(&path, &noise).unwrap();
        let options = Options { path: path.clone(), format: Some(Format::Raw), access: Access::ReadOnly };
        let disk = Opened(Arc::new(Image::open(&options).unwrap()));
        let ram = GuestRam::new(&kvm::ram::map(HOST_ISA, 4 << 20).unwrap());
        let start = ram.ranges()[0].start.0;
        let parts = [(GuestPhys(start + 0x100), 700), (GuestPhys(start + 0x3000), 3300)];
        let mut moved = 0;
        assert!(ram.lend(&parts, &mut |slices| moved = disk.read_into(1000, slices)));
        let mut read = [0; 4000];
        let (first, second) = read.split_at_mut(700);
        assert_eq!((Ram::read(&ram, parts[0].0, first), Ram::read(&ram, parts[1].0, second)), (700, 3300));
        assert!(moved == 4000 && read == noise[1000..5000]);
        // What is there of it, and nothing behind its end.
        assert!(ram.lend(&parts, &mut |slices| moved = disk.read_into(5000, slices)) && moved == 1000);
        assert!(ram.lend(&parts, &mut |slices| moved = disk.read_into(6000, slices)) && moved == 0);
        assert!(ram.lend(&parts, &mut |slices| moved = disk.read_into(u64::MAX, slices)) && moved == 0);
        // No RAM; a debugger.
        assert!(!ram.lend(&[(GuestPhys(u64::MAX - 10), 4)], &mut |_| panic!("it is lent")));
        ram.set_engine(Some(Arc::new(Engine::new(HOST_ISA, debug::fake::host(), 1))));
        assert!(!ram.lend(&parts, &mut |_| panic!("it is lent")));
        std::fs::remove_file(&path).unwrap();
    }
}
