//! Putting initrds into guest memory.
//!
//! Linux takes several archives one after the other, so `--initrd` given more than once is
//! one initrd of all the files, each padded to four bytes (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). Kernels that are entered by Multiboot, or
//! by PVH and are not Linux, get a module for each, with a string: `--initrd 'PATH STRING'`.

use super::BootError;
use crate::given_file;
use arch::image::kernel_by_mark;
use kvm::ram::GuestMemory;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
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

/// Which kernel a file is, compressed or not, as far as its beginning tells.
fn kernel_in(file: &File) -> Option<&'static str> {
    /// As far as any kernel's mark is from its beginning.
    const LOOKED_AT: u64 = 1024;
    let whole = || io::BufReader::new(Rest { file, at: 0 });
    let begin = |bytes: &mut dyn Read| {
        let mut begin = Vec::new();
        // What is damaged or cut off is looked at as far as it goes.
        bytes.take(LOOKED_AT).read_to_end(&mut begin).ok();
        begin
    };
    let plain = begin(&mut whole());
    let unpacked = match plain[..] {
        [0x1f, 0x8b, ..] => begin(&mut flate2::read::GzDecoder::new(whole())),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => begin(&mut ruzstd::decoding::StreamingDecoder::new(whole()).ok()?),
        _ => plain,
    };
    kernel_by_mark(&unpacked)
}

/// A file from a place on, which its own position says nothing of.
struct Rest<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Rest<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
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

    /// Checks that none is a module, for a kernel that is entered by a protocol without them: has a string, which
    /// it would not get to see, or, for Linux, is a kernel, which it would not find its files in.
    ///
    /// # Errors
    /// [`BootError::ModuleString`], [`BootError::KernelAsInitrd`].
    pub fn refuse_modules(&self, protocol: &'static str, is_linux: bool) -> Result<(), BootError> {
        for Initrd { path, file, string, .. } in self.iter() {
            if let Some(string) = string {
                return Err(BootError::ModuleString { path: path.clone(), string: string.clone(), protocol });
            }
            if let Some(format) = kernel_in(file).filter(|_| is_linux) {
                return Err(BootError::KernelAsInitrd { path: path.clone(), format });
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::Scratch;
    use flate2::Compression;
    use flate2::read::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    /// A file of nothing but a mark, behind which there are other bytes.
    fn marked(offset: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[offset..offset + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn a_kernel_is_no_initrd_of_linux() {
        let gzip = |bytes: &[u8]| {
            let mut packed = Vec::new();
            GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut packed).unwrap();
            packed
        };
        let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
        let mut zboot = marked(0, b"MZ");
        zboot[4..8].copy_from_slice(b"zimg");
        let kernels = [
            (marked(0, b"\x7fELF"), "ELF"),
            (marked(0x202, b"HdrS"), "bzImage"),
            (marked(56, b"ARM\x64"), "arm64 Image"),
            (zboot, "EFI zboot"),
        ];
        for (bytes, name) in kernels {
            for bytes in [gzip(&bytes), zstd(&bytes), bytes] {
                let file = Scratch::new("initrd", &bytes);
                let initrds = Initrds::open(std::slice::from_ref(&file.0)).unwrap();
                let error = initrds.refuse_modules("", true).unwrap_err();
                let words =
                    format!("initrd {}: it is a kernel ({name}); give it as --kernel", file.0.display());
                assert!(error.to_string().starts_with(&words), "{error}");
                assert!(initrds.refuse_modules("", false).is_ok(), "{name}");
            }
        }
        let archive = marked(0, b"070701");
        let cut_off = gzip(&archive)[..20].to_vec();
        for bytes in [gzip(&archive), zstd(&archive), archive, cut_off, b"\x1f\x8b".to_vec(), vec![0; 8]] {
            let file = Scratch::new("initrd", &bytes);
            assert!(Initrds::open(std::slice::from_ref(&file.0)).unwrap().refuse_modules("", true).is_ok());
        }
    }
}
