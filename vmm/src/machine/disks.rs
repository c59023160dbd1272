//! Disks that a guest is given: the image of each behind its device.

use crate::error::Error;
use crate::machine::config::{DiskConfig, LONGEST_SERIAL};
use devices::virtio::block::{Block, Disk};
use disk::Image;
use std::io;

/// An image, as the device has it.
pub struct Opened(Image);

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

/// The device of a disk, for a guest with so many vCPUs.
///
/// # Errors
/// [`Error::Disk`]; [`Error::Usage`]: the serial number is too long.
pub fn device(config: &DiskConfig, cpus: u32) -> Result<Block<Opened>, Error> {
    let path = &config.image.path;
    let image = Image::open(&config.image);
    let image = image.map_err(|source| Error::Disk { path: path.clone(), source })?;
    let label = format!("disk {}", path.display());
    Block::new(Opened(image), &label, &config.serial, cpus).ok_or_else(|| {
        Error::Usage(format!(
            "--disk: the serial number '{}' has more than {LONGEST_SERIAL} bytes: write {},serial=TEXT",
            config.serial,
            path.display()
        ))
    })
}
