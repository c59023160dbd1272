//! Putting initrds into guest memory.
//!
//! Linux takes several archives one after the other, so `--initrd` given more than once is
//! one initrd of all the files, each padded to four bytes (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). Kernels that are entered by Multiboot, or
//! by PVH and are not Linux, get a module for each, with a string: `--initrd 'PATH STRING'`.

use super::BootError;
use crate::given_file;
use kvm::ram::GuestMemory;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const PADDING: u64 = 4;

/// A file that has been opened.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    /// Its size, bytes.
    pub size: u64,
    /// What was given behind its path.
    pub string: Option<String>,
}

impl Initrd {
    /// Opens what `--initrd` was given: a path, or a path with a string behind it. A file of the whole name
    /// comes first.
    fn open(given: &Path) -> Result<Initrd, BootError> {
        let error = |source| BootError::Read { what: "initrd", path: given.to_path_buf(), source };
        let (path, string) = match given_file::open(given) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let bytes = given.as_os_str().as_bytes();
                let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(|| error(source))?;
                let string = String::from_utf8_lossy(&bytes[space + 1..]).into_owned();
                (PathBuf::from(OsStr::from_bytes(&bytes[..space])), Some(string))
            }
            _ => (given.to_path_buf(), None),
        };
        let file = given_file::open(&path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(error(io::Error::other("it is not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(error(io::Error::other("it is empty")));
        }
        Ok(Initrd { path, file, size: metadata.len(), string })
    }

    /// The file's name, without the folders.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Initrds {
    files: Vec<Initrd>,
}

impl Initrds {
    /// Opens the files.
    ///
    /// # Errors
    /// [`BootError::Read`].
    pub fn open(given: &[PathBuf]) -> Result<Initrds, BootError> {
        Ok(Initrds { files: given.iter().map(|given| Initrd::open(given)).collect::<Result<_, _>>()? })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files.
    pub fn iter(&self) -> impl Iterator<Item = &Initrd> {
        self.files.iter()
    }

    /// Size in bytes of all of them as one initrd.
    pub fn total(&self) -> u64 {
        let padded: u64 = self.iter().map(|file| file.size.next_multiple_of(PADDING)).sum();
        let last = self.files.last().map_or(0, |file| file.size.next_multiple_of(PADDING) - file.size);
        padded - last
    }

    /// Checks that none has a string, for a kernel that would not get to see it.
    ///
    /// # Errors
    /// [`BootError::ModuleString`].
    pub fn refuse_strings(&self, protocol: &'static str) -> Result<(), BootError> {
        match self.iter().find_map(|file| Some((&file.path, file.string.as_ref()?))) {
            None => Ok(()),
            Some((path, string)) => {
                Err(BootError::ModuleString { path: path.clone(), string: string.clone(), protocol })
            }
        }
    }

    /// Copies all of them to `address`, one after the other.
    ///
    /// # Errors
    /// [`BootError::Read`] when a file has become shorter, [`BootError::DoesNotFit`].
    pub fn copy_all(&self, memory: &GuestMemory, address: u64) -> Result<(), BootError> {
        let mut at = address;
        for (index, file) in self.files.iter().enumerate() {
            self.copy(memory, index, at)?;
            at += file.size.next_multiple_of(PADDING);
        }
        Ok(())
    }

    /// Copies file `index` to `address`.
    ///
    /// # Errors
    /// As [`Self::copy_all`].
    pub fn copy(&self, memory: &GuestMemory, index: usize, address: u64) -> Result<(), BootError> {
        let Initrd { path, file, size, .. } = &self.files[index];
        let count = usize::try_from(*size).unwrap_or(usize::MAX);
        if !memory.check_range(GuestAddress(address), count) {
            return Err(self.too_large());
        }
        super::read_into(memory, file, address, *size).map_err(|source| BootError::Read {
            what: "initrd",
            path: path.clone(),
            source,
        })
    }

    fn all(&self) -> String {
        match &self.files[..] {
            [file] => format!("initrd {}", file.path.display()),
            files => format!("the {} initrds together", files.len()),
        }
    }

    /// The error for an initrd that finds no room, and would find some in more memory.
    pub fn too_large(&self) -> BootError {
        BootError::DoesNotFit {
            what: self.all(),
            why: format!("{} bytes are too many beside the kernel; give more --memory", self.total()),
        }
    }

    /// The error for one that finds none in any memory, as kernels that are entered by `protocol` look for it
    /// below `end` only.
    pub fn too_large_for(&self, protocol: &str, end: u64) -> BootError {
        BootError::DoesNotFit {
            what: self.all(),
            why: format!(
                "{protocol} has it below {end:#x} only, where {} bytes are too many beside the kernel, \
                 however much memory there is; make it smaller",
                self.total()
            ),
        }
    }
}
