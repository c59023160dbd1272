//! Disks that a guest is given: the image of each behind its device.

use crate::error::Error;
use crate::machine::config::{DiskConfig, LONGEST_SERIAL};
use devices::virtio::block::{Block, Disk};
use disk::Image;
use std::io;
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
