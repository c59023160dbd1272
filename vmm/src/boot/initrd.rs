//! Putting initrds into guest memory.
//!
//! Linux takes several archives one after the other, so `--initrd` given more than once is
//! one initrd of all the files, each padded to four bytes (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use super::BootError;
use crate::memory::GuestMemory;
use std::fs::File;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

const PADDING: u64 = 4;

/// Files that have been opened, with their sizes.
#[derive(Debug)]
pub struct Initrds {
    files: Vec<(PathBuf, File, u64)>,
}

impl Initrds {
    /// Opens the files.
    ///
    /// # Errors
    /// [`BootError::Read`].
    pub fn open(paths: &[PathBuf]) -> Result<Initrds, BootError> {
        let files = paths
            .iter()
            .map(|path| {
                let read_error = |source| BootError::Read { what: "initrd", path: path.clone(), source };
                let file = File::open(path).map_err(read_error)?;
                let metadata = file.metadata().map_err(read_error)?;
                if !metadata.is_file() {
                    return Err(read_error(std::io::Error::other("it is not a regular file")));
                }
                if metadata.len() == 0 {
                    return Err(read_error(std::io::Error::other("it is empty")));
                }
                Ok((path.clone(), file, metadata.len()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Initrds { files })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files' paths and sizes in bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|(path, _, size)| (path.as_path(), *size))
    }

    /// Size in bytes of all of them as one initrd.
    pub fn total(&self) -> u64 {
        let padded: u64 = self.iter().map(|(_, size)| size.next_multiple_of(PADDING)).sum();
        let last = self.files.last().map_or(0, |(_, _, size)| size.next_multiple_of(PADDING) - size);
        padded - last
    }

    /// Copies all of them to `address`, one after the other.
    ///
    /// # Errors
    /// [`BootError::Read`] when a file has become shorter, [`BootError::DoesNotFit`].
    pub fn copy_all(&self, memory: &GuestMemory, address: u64) -> Result<(), BootError> {
        let mut at = address;
        for index in 0..self.files.len() {
            self.copy(memory, index, at)?;
            at += self.files[index].2.next_multiple_of(PADDING);
        }
        Ok(())
    }

    /// Copies file `index` to `address`.
    ///
    /// # Errors
    /// As [`Self::copy_all`].
    pub fn copy(&self, memory: &GuestMemory, index: usize, address: u64) -> Result<(), BootError> {
        let (path, file, size) = &self.files[index];
        let mut file = file;
        let fits = usize::try_from(*size).ok().filter(|size| {
            use vm_memory::GuestMemoryBackend;
            memory.check_range(GuestAddress(address), *size)
        });
        let Some(count) = fits else { return Err(does_not_fit(path, *size)) };
        memory.read_exact_volatile_from(GuestAddress(address), &mut file, count).map_err(|error| {
            BootError::Read { what: "initrd", path: path.clone(), source: std::io::Error::other(error) }
        })
    }

    /// The error for an initrd that finds no room.
    pub fn too_large(&self) -> BootError {
        match &self.files[..] {
            [(path, _, size)] => does_not_fit(path, *size),
            files => BootError::DoesNotFit {
                what: format!("the {} initrds together", files.len()),
                why: format!("they have {} bytes; give more --memory", self.total()),
            },
        }
    }
}

fn does_not_fit(path: &Path, size: u64) -> BootError {
    BootError::DoesNotFit {
        what: format!("initrd {}", path.display()),
        why: format!("it has {size} bytes, too many beside the kernel; give more --memory"),
    }
}
