//! Opening a kernel: a file, or the embedded guest; unpacked, with its format known.

use super::BootError;
use crate::given_file;
use arch::Isa;
use arch::image::elf::Elf;
use arch::image::{Compression, Format, Source, detect};
use debug::gdb::description::Believed;
use kvm::ram::GuestMemory;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use vm_memory::{Bytes, GuestAddress};

/// The guest that is booted when no kernel is named: an ELF file with the names of what it has.
pub static EMBEDDED: &[u8] = include_bytes!(env!("EMBEDDED_GUEST"));

/// Where a kernel's bytes are.
#[derive(Debug)]
enum Data {
    File { file: File, size: u64 },
    Unpacked(Vec<u8>),
    Embedded(&'static [u8]),
}

/// A kernel with a known format.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    bytes: Data,
    format: Format,
    /// Looked for once.
    has_banner: OnceLock<bool>,
}

impl Source for Data {
    fn size(&self) -> u64 {
        match self {
            Data::File { size, .. } => *size,
            Data::Unpacked(bytes) => bytes.as_slice().size(),
            Data::Embedded(bytes) => bytes.size(),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        match self {
            Data::File { file, .. } => file.read_exact_at(buffer, offset).map_err(|error| error.to_string()),
            Data::Unpacked(bytes) => bytes.as_slice().read_at(offset, buffer),
            Data::Embedded(bytes) => bytes.read_at(offset, buffer),
        }
    }
}

impl Kernel {
    /// The embedded guest.
    pub fn embedded() -> Kernel {
        let bytes = Data::Embedded(EMBEDDED);
        let format = detect(&bytes).expect("the embedded guest was linked for this host");
        Kernel { path: PathBuf::from("(embedded guest)"), bytes, format, has_banner: OnceLock::new() }
    }

    /// Opens `path`, unpacks it if it is compressed (to at most `memory` bytes), and checks
    /// that it is for `isa`.
    ///
    /// # Errors
    /// [`BootError`] for files that cannot be read, are damaged, or are for the other
    /// architecture.
    pub fn open(path: &Path, isa: Isa, memory: u64) -> Result<Kernel, BootError> {
        let read_error = |source| BootError::Read { what: "kernel", path: path.to_path_buf(), source };
        let file = given_file::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !metadata.is_file() {
            return Err(read_error(io::Error::other("it is not a regular file")));
        }
        Kernel::new(path, Data::File { file, size: metadata.len() }, isa, memory)
    }

    /// The same with a file's contents, which `path` is a name for.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>, isa: Isa, memory: u64) -> Result<Kernel, BootError> {
        Kernel::new(path, Data::Unpacked(bytes), isa, memory)
    }

    fn new(path: &Path, bytes: Data, isa: Isa, memory: u64) -> Result<Kernel, BootError> {
        let image_error = |source| BootError::Image { path: path.to_path_buf(), source };
        let format = detect(&bytes).map_err(image_error)?;
        let packed = match format {
            Format::Compressed(compression) => Some((0, bytes.size(), compression)),
            Format::Zboot(payload) => Some((payload.offset, payload.size, payload.compression)),
            _ => None,
        };
        let (bytes, format) = match packed {
            None => (bytes, format),
            Some((offset, size, compression)) => {
                let unpacked = Data::Unpacked(unpack(path, &bytes, offset, size, compression, memory)?);
                let format = detect(&unpacked).map_err(image_error)?;
                (unpacked, format)
            }
        };
        match format.isa() {
            Some(found) if found != isa => {
                Err(BootError::WrongIsa { path: path.to_path_buf(), format: format.name(), found, host: isa })
            }
            _ => Ok(Kernel { path: path.to_path_buf(), bytes, format, has_banner: OnceLock::new() }),
        }
    }

    /// The format.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// What the file has a debugger believe of an x86 processor.
    pub fn believed(&self) -> Believed {
        match &self.format {
            Format::Elf(elf) if elf.is_32_bit => Believed::Narrow,
            Format::Multiboot(_) | Format::Multiboot2(_) | Format::Flat => Believed::Unknown,
            _ => Believed::Wide,
        }
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the (unpacked) file, bytes.
    pub fn size(&self) -> u64 {
        self.bytes.size()
    }

    /// Copies `size` bytes from `offset` of the file to guest-physical `address`.
    ///
    /// # Errors
    /// [`BootError::DoesNotFit`], or [`BootError::Read`] when the file has become shorter.
    pub fn copy(&self, memory: &GuestMemory, offset: u64, size: u64, address: u64) -> Result<(), BootError> {
        self.check_fits(memory, address, size)?;
        let read_error = |source| BootError::Read { what: "kernel", path: self.path.clone(), source };
        let count =
            usize::try_from(size).map_err(|_| read_error(io::Error::from(io::ErrorKind::FileTooLarge)))?;
        let to = GuestAddress(address);
        let slice = |bytes: &[u8]| -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = bytes.get(start..start + count).ok_or(io::ErrorKind::UnexpectedEof)?;
            memory.write_slice(bytes, to).map_err(io::Error::other)
        };
        match &self.bytes {
            Data::File { file, .. } => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset)).map_err(read_error)?;
                super::read_into(memory, file, address, size).map_err(read_error)
            }
            Data::Unpacked(bytes) => slice(bytes).map_err(read_error),
            Data::Embedded(bytes) => slice(bytes).map_err(read_error),
        }
    }

    /// Copies the segments of an ELF kernel, `distance` bytes from where they are linked to. What the file
    /// lacks of a segment is zero already: guest memory is new.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn copy_segments(&self, memory: &GuestMemory, elf: &Elf, distance: u64) -> Result<(), BootError> {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        // Each may be all of memory, and there may be 65535 of them, while nobody looks at signals.
        let needed = elf.segments.iter().map(|s| s.memory_size).fold(0, u64::saturating_add);
        let size = memory.iter().map(GuestMemoryRegion::len).sum();
        if needed > size {
            return Err(BootError::DoesNotFit {
                what: format!("kernel {}", self.path.display()),
                why: format!(
                    "its segments need {needed} bytes together, and there are {size}; give more --memory"
                ),
            });
        }
        for segment in &elf.segments {
            let place = segment.physical.wrapping_add(distance);
            self.check_fits(memory, place, segment.memory_size)?;
            self.copy(memory, segment.file_offset, segment.file_size, place)?;
        }
        Ok(())
    }

    /// Whether the kernel is Linux: its formats are, and an ELF file is if it has Linux's banner
    /// (`linux_banner`, "init/version.c"), which is what `file` and `strings` go by as well.
    pub fn is_linux(&self) -> bool {
        match &self.format {
            Format::BzImage(_) | Format::Arm64Image(_) => true,
            Format::Elf(elf) => *self.has_banner.get_or_init(|| self.finds_banner(elf)),
            Format::Multiboot(_)
            | Format::Multiboot2(_)
            | Format::Compressed(_)
            | Format::Zboot(_)
            | Format::Flat => false,
        }
    }

    /// Whether this is a kernel that does not unpack itself, of the very build that a bzImage's
    /// [version](arch::image::bzimage::version) names.
    pub fn is_unpacked(&self, version: &str) -> bool {
        let is_it = |line: &str| arch::image::bzimage::is_banner_of(line, version);
        matches!(&self.format, Format::Elf(elf) if !elf.is_32_bit && self.has_banner_that(elf, is_it))
    }

    fn finds_banner(&self, elf: &Elf) -> bool {
        self.has_banner_that(elf, |_| true)
    }

    /// Whether one of the banners in it, a line each, is what is looked for.
    fn has_banner_that(&self, elf: &Elf, is_it: impl Fn(&str) -> bool) -> bool {
        const BANNER: &[u8] = b"Linux version ";
        const PIECE: usize = 1 << 20;
        const LONGEST: usize = 512;
        let mut piece = vec![0; PIECE + LONGEST];
        elf.segments.iter().any(|segment| {
            let end = segment.file_offset.saturating_add(segment.file_size);
            (segment.file_offset..end).step_by(PIECE).any(|at| {
                // Pieces overlap, for a banner on the border.
                let size = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
                let is_read = self.bytes.read_at(at, &mut piece[..size]).is_ok();
                is_read
                    && memchr::memmem::find_iter(&piece[..size], BANNER).any(|at| {
                        let line = piece[at..size].split(|byte| matches!(byte, 0 | b'\n')).next();
                        line.is_some_and(|line| is_it(&String::from_utf8_lossy(line)))
                    })
            })
        })
    }

    /// Checks that `size` bytes from guest-physical `address` are RAM.
    ///
    /// # Errors
    /// [`BootError::DoesNotFit`].
    pub fn check_fits(&self, memory: &GuestMemory, address: u64, size: u64) -> Result<(), BootError> {
        use vm_memory::GuestMemoryBackend;
        let fits = usize::try_from(size)
            .is_ok_and(|size| size == 0 || memory.check_range(GuestAddress(address), size));
        if fits {
            return Ok(());
        }
        Err(BootError::DoesNotFit {
            what: format!("kernel {}", self.path.display()),
            why: format!(
                "it needs {size} bytes from {address:#x} on; give more --memory, or a kernel for this machine's memory map"
            ),
        })
    }
}

/// Unpacks `size` bytes from `offset`, to at most `limit` bytes.
fn unpack(
    path: &Path,
    bytes: &Data,
    offset: u64,
    size: u64,
    compression: Compression,
    limit: u64,
) -> Result<Vec<u8>, BootError> {
    let damaged =
        |why: String| BootError::Unpack { path: path.to_path_buf(), format: compression.name(), why };
    let input = Window { bytes, offset, left: size };
    let mut output = Vec::new();
    // One byte more than allowed tells "too large" from "just fits".
    let mut limited: Box<dyn Read> = match compression {
        Compression::Gzip => {
            Box::new(flate2::read::GzDecoder::new(io::BufReader::new(input)).take(limit + 1))
        }
        Compression::Zstd => Box::new(
            ruzstd::decoding::StreamingDecoder::new(io::BufReader::new(input))
                .map_err(|error| damaged(error.to_string()))?
                .take(limit + 1),
        ),
    };
    limited.read_to_end(&mut output).map_err(|error| damaged(error.to_string()))?;
    if output.len() as u64 > limit {
        return Err(BootError::UnpackedTooLarge { path: path.to_path_buf(), memory: limit });
    }
    Ok(output)
}

/// A part of a kernel's bytes as a stream.
struct Window<'a> {
    bytes: &'a Data,
    offset: u64,
    left: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.bytes.read_at(self.offset, &mut buffer[..count]).map_err(io::Error::other)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vmm-kernel-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(name: &str, bytes: &[u8], memory: u64) -> Result<Kernel, BootError> {
        let path = file(name, bytes);
        let kernel = Kernel::open(&path, Isa::Aarch64, memory);
        std::fs::remove_file(path).unwrap();
        kernel
    }

    /// An arm64 Image header and some kernel behind it.
    fn image() -> Vec<u8> {
        let mut image = vec![0x5a; 8192];
        image[..64].fill(0);
        image[16..24].copy_from_slice(&0x4000u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn compressed_images_are_unpacked_and_detected() {
        for (name, packed) in [("gzip", gzip(&image())), ("zstd", zstd(&image()))] {
            let kernel = open(name, &packed, 1 << 20).unwrap();
            assert_eq!((kernel.format().name(), kernel.size()), ("arm64 Image", 8192));
            let mut zboot = vec![0u8; 64];
            zboot[..2].copy_from_slice(b"MZ");
            zboot[4..8].copy_from_slice(b"zimg");
            zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
            zboot[12..16].copy_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            zboot[24..24 + name.len()].copy_from_slice(name.as_bytes());
            zboot.extend(&packed);
            let kernel = open(&format!("zboot-{name}"), &zboot, 1 << 20).unwrap();
            assert_eq!(kernel.format().name(), "arm64 Image");
        }
    }

    #[test]
    fn damaged_and_endless_data_is_refused() {
        let mut packed = gzip(&image());
        packed.truncate(packed.len() / 2);
        assert!(matches!(open("short", &packed, 1 << 20), Err(BootError::Unpack { .. })));
        assert!(matches!(
            open("bomb", &gzip(&vec![0; 1 << 20]), 4096),
            Err(BootError::UnpackedTooLarge { memory: 4096, .. })
        ));
        assert!(matches!(
            open("not-zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0xff], 4096),
            Err(BootError::Unpack { .. })
        ));
    }

    #[test]
    fn the_wrong_architecture_and_what_is_not_a_file_are_told() {
        let path = file("image", &image());
        let error = Kernel::open(&path, Isa::X86_64, 1 << 20).unwrap_err().to_string();
        std::fs::remove_file(path).unwrap();
        assert!(error.contains("is for aarch64, and this host runs x86_64"), "{error}");
        for (path, word) in
            [("/", "directory"), ("/dev/null", "regular"), ("/no/such/kernel", "No such file")]
        {
            let error = Kernel::open(Path::new(path), Isa::X86_64, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_embedded_guest_is_an_elf_file_for_this_host() {
        let kernel = Kernel::embedded();
        assert_eq!(kernel.format().isa(), Some(kvm::HOST_ISA));
    }
}
