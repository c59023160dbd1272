//! An image, as a user names it.

use crate::error::{DiskError, Qcow2Error};
use crate::file::Medium;
use crate::layer::Layer;
use crate::lock::lock;
use crate::overlay::Overlay;
use crate::qcow2::{self, header::MAGIC};
use crate::raw::Raw;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How an image's bytes are the disk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One for one.
    Raw,
    /// QEMU's, with clusters that are there or not, and backing files.
    Qcow2,
}

/// What a guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and write, and nothing of that is kept or seen by anybody else: the image is only read.
    Snapshot,
}

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A file, or a block device.
    pub path: PathBuf,
    /// None: as its first bytes and its name say, if they agree.
    pub format: Option<Format>,
    /// What the guest may do.
    pub access: Access,
}

/// An image that is open; several threads may use it at once.
#[derive(Debug)]
pub struct Image {
    layer: Box<dyn Layer>,
    is_writable: bool,
}

/// Of an image nobody has said the format of.
fn find_format(path: &Path, beginning: &[u8]) -> Result<Format, DiskError> {
    let has_suffix = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("qcow2"));
    match (beginning.starts_with(&MAGIC), has_suffix) {
        (true, true) => Ok(Format::Qcow2),
        (false, false) => Ok(Format::Raw),
        (true, false) => Err(DiskError::MagicWithoutSuffix),
        (false, true) => Err(DiskError::SuffixWithoutMagic),
    }
}

impl Image {
    /// Opens it, and locks it as long as it is open.
    ///
    /// # Errors
    /// [`DiskError`]; nothing has been changed.
    pub fn open(options: &Options) -> Result<Image, DiskError> {
        let is_written = options.access == Access::ReadWrite;
        let medium = Medium::open(&options.path, is_written)?;
        lock(&medium.file, is_written)?;
        let format = match options.format {
            Some(format) => format,
            None => find_format(&options.path, &medium.beginning(MAGIC.len()).map_err(DiskError::Open)?)?,
        };
        let layer: Box<dyn Layer> = match format {
            Format::Raw => Box::new(Raw::new(medium)),
            Format::Qcow2 => Box::new(qcow2::open(&options.path, medium, is_written)?),
        };
        if layer.size() > i64::MAX as u64 {
            return Err(Qcow2Error::Damaged("the disk is larger than any file can be").into());
        }
        Ok(match options.access {
            Access::Snapshot => Image { layer: Box::new(Overlay::new(layer)?), is_writable: true },
            access => Image { layer, is_writable: access == Access::ReadWrite },
        })
    }

    /// Bytes: a multiple of 512, and not 0.
    pub fn size(&self) -> u64 {
        self.layer.size()
    }

    /// Whether it can be written to.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn check(&self, offset: u64, count: u64) -> io::Result<()> {
        let end = offset.checked_add(count);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "behind the end of the disk"));
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, count: u64) -> io::Result<()> {
        if !self.is_writable {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check(offset, count)
    }

    /// Reads at an offset in bytes.
    ///
    /// # Errors
    /// The host's; behind the end; the image is damaged there, or has become shorter.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.layer.read(offset, bytes)
    }

    /// Writes at an offset in bytes.
    ///
    /// # Errors
    /// Likewise; it is only read; there is no more room.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_write(offset, bytes.len() as u64)?;
        self.layer.write(offset, bytes)
    }

    /// The file whose bytes are the disk's, one for one, as far as it goes: by it, whoever has checked what he does against
    /// [size](Self::size) and [leave](Self::is_writable) reads and writes as well. None where no file is like that, or
    /// where it has been cut: what it has at this moment says whether.
    pub fn file(&self) -> Option<&File> {
        self.layer.file()
    }

    /// What has been written is on the host's disk afterwards (of a snapshot, which is not kept, nothing has to be).
    ///
    /// # Errors
    /// The host's: some of what was written since the last flush may be lost.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_writable { self.layer.flush() } else { Ok(()) }
    }

    /// The guest needs these bytes no more.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.check_write(offset, count)?;
        if count == 0 { Ok(()) } else { self.layer.discard(offset, count) }
    }

    /// Makes bytes zeros; `gives_room`: they need take no room on the host afterwards.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        self.check_write(offset, count)?;
        if count == 0 { Ok(()) } else { self.layer.write_zeroes(offset, count, gives_room) }
    }
}
