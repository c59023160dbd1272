//! qcow2, by the crate `imago`: what it is given has been looked at before, and it opens nothing by itself.

pub mod chain;
pub mod header;
mod storage;
mod tables;

use crate::error::{DiskError, Qcow2Error};
use crate::file::Medium;
use crate::kept::Kept;
use crate::layer::Layer;
use chain::Link;
use imago::qcow2::Qcow2 as Driver;
use imago::raw::Raw as RawDriver;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use storage::Bytes;

/// An image and what is below it.
pub struct Qcow2 {
    /// Held by whoever takes clusters away, alone: the library's reads rely on those that they have found.
    access: RwLock<FormatAccess<Bytes>>,
    /// The image's own file.
    kept: Arc<Kept>,
    size: u64,
    /// Version 3: it can have clusters of zeros.
    has_zeroes: bool,
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Opens an image whose file is open, and what is below it.
///
/// # Errors
/// [`DiskError::Qcow2`], [`DiskError::Backing`].
pub fn open(path: &Path, medium: Medium, is_written: bool) -> Result<Qcow2, DiskError> {
    let links = chain::gather(path, medium, is_written)?;
    let mut below = None;
    let (mut facts, mut own) = ((0, false), None);
    for (number, Link { medium, header }) in links.into_iter().enumerate().rev() {
        let is_written = is_written && number == 0;
        let other = |error: io::Error| Qcow2Error::Other(error.to_string());
        let kept = Arc::new(Kept::new(medium));
        own = Some(Arc::clone(&kept));
        let access = match header {
            None => {
                let bytes = Bytes::new(kept, crate::file::SECTOR, false);
                FormatAccess::new(
                    RawDriver::builder(bytes).open(DenyImplicitOpenGate::default()).map_err(other)?,
                )
            }
            Some(header) => {
                facts = (header.size, header.version > 2);
                let bytes = Bytes::new(kept, header.cluster_size(), is_written);
                let builder = Driver::<Bytes>::builder(bytes).backing(below.take()).data_file(None);
                let driver = builder.write(is_written).open(DenyImplicitOpenGate::default());
                FormatAccess::new(driver.map_err(other)?)
            }
        };
        below = Some(access);
    }
    let (access, kept) = below.zip(own).ok_or(Qcow2Error::Magic)?;
    // The library reads the header anew: whoever has changed it meanwhile may not change the disk's size.
    if access.size() != facts.0 {
        return Err(Qcow2Error::Damaged("it changes while it is opened").into());
    }
    Ok(Qcow2 { access: RwLock::new(access), kept, size: facts.0, has_zeroes: facts.1 })
}

impl Qcow2 {
    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<Bytes>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<Bytes>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.shared().read(bytes, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Also before what would only change tables in memory.
        self.kept.check_write()?;
        self.shared().write(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.kept.check_write()?;
        // Without clusters of zeros what is below would be seen again, so they are kept.
        if self.has_zeroes { self.alone().discard_to_any(offset, count) } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        self.kept.check_write()?;
        match (self.has_zeroes, gives_room) {
            (true, true) => self.alone().discard_to_zero(offset, count),
            (true, false) => self.shared().write_zeroes(offset, count),
            (false, _) => {
                let zeros = vec![0; 64 << 10];
                let mut at = offset;
                while at < offset + count {
                    let part = usize::try_from(offset + count - at).unwrap_or(usize::MAX).min(zeros.len());
                    self.write(at, &zeros[..part])?;
                    at += part as u64;
                }
                Ok(())
            }
        }
    }
}
