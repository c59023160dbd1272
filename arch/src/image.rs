//! Kernel image formats: which one a file has, and what its headers ask for.
//!
//! Nothing here loads a kernel. [`detect`] looks at a file and answers with a parsed header
//! that has been checked against the length of the file; the monitor's boot code then copies
//! bytes to where the header says. Files are hostile: every length is checked here, and a
//! file that is cut short or contradicts itself is an [`ImageError`] that says how.

pub mod arm64;
pub mod bzimage;
pub mod elf;
pub mod multiboot;
pub mod multiboot2;
mod pe;
pub mod zboot;

use crate::Isa;
use thiserror::Error;

/// Random access to the bytes of an image.
pub trait Source {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// A message when the bytes are not there or cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String>;
}

impl Source for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let start = usize::try_from(offset).map_err(|_| "offset past the end".to_string())?;
        let end = start.checked_add(buffer.len()).ok_or("offset past the end")?;
        buffer.copy_from_slice(self.get(start..end).ok_or("offset past the end")?);
        Ok(())
    }
}

/// Why a file cannot be booted, as far as its headers tell.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than its own headers say.
    #[error("the file is truncated: {what} needs {needed} bytes, the file has {actual}")]
    Truncated {
        /// What the bytes were needed for.
        what: &'static str,
        /// Bytes needed, counted from the start of the file.
        needed: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// A header contradicts itself.
    #[error("{format} header is damaged: {why}")]
    Malformed {
        /// The format's name.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The image is a valid one of something we cannot start.
    #[error("{0}")]
    Unsupported(String),
    /// The file could not be read.
    #[error("cannot read the file: {0}")]
    Read(String),
}

impl ImageError {
    fn malformed(format: &'static str, why: impl Into<String>) -> Self {
        ImageError::Malformed { format, why: why.into() }
    }
}

/// How a compressed kernel is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// The name users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// What a kernel file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// x86 Linux boot protocol, "Documentation/arch/x86/boot.rst".
    BzImage(bzimage::Header),
    /// arm64 Linux, "Documentation/arch/arm64/booting.rst".
    Arm64Image(arm64::Header),
    /// ELF of either architecture and class.
    Elf(elf::Elf),
    /// Multiboot 1 whose header gives load addresses (the "a.out kludge"); an ELF file with a
    /// Multiboot header is [`Format::Elf`] with [`elf::Elf::multiboot`] set.
    Multiboot(multiboot::Header),
    /// Multiboot 2, likewise; an ELF file has [`elf::Elf::multiboot2`] set.
    Multiboot2(multiboot2::Header),
    /// A compressed file: decompress it and detect again.
    Compressed(Compression),
    /// An EFI zboot file: a compressed kernel at an offset within it.
    Zboot(zboot::Payload),
    /// None of the above. It can be run with an explicit load address.
    Flat,
}

impl Format {
    /// What a person calls the format.
    pub fn name(&self) -> &'static str {
        match self {
            Format::BzImage(_) => "bzImage",
            Format::Arm64Image(_) => "arm64 Image",
            Format::Elf(elf) if elf.multiboot2.is_some() => "Multiboot 2 ELF",
            Format::Elf(elf) if elf.multiboot.is_some() => "Multiboot ELF",
            Format::Elf(_) => "ELF",
            Format::Multiboot(_) => "Multiboot",
            Format::Multiboot2(_) => "Multiboot 2",
            Format::Compressed(compression) => compression.name(),
            Format::Zboot(_) => "EFI zboot",
            Format::Flat => "flat binary",
        }
    }

    /// The architecture the image runs on, where the format tells.
    pub fn isa(&self) -> Option<Isa> {
        match self {
            Format::BzImage(_) | Format::Multiboot(_) | Format::Multiboot2(_) => Some(Isa::X86_64),
            Format::Arm64Image(_) => Some(Isa::Aarch64),
            Format::Elf(elf) => Some(elf.isa),
            Format::Compressed(_) | Format::Zboot(_) | Format::Flat => None,
        }
    }
}

/// What a person calls the kernel that a file begins as, by its mark alone, damaged or of whichever architecture;
/// `None` for what is none, or says so elsewhere than where it begins (Multiboot).
pub fn kernel_by_mark(head: &[u8]) -> Option<&'static str> {
    let has = |offset: usize, mark: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(mark));
    if has(0, b"\x7fELF") {
        Some("ELF")
    } else if has(0, b"MZ") && has(4, b"zimg") {
        Some("EFI zboot")
    } else if has(arm64::MAGIC, &arm64::ARM64_MAGIC.to_le_bytes()) {
        Some("arm64 Image")
    } else if has(bzimage::HEADER, &bzimage::HDRS_MAGIC.to_le_bytes()) {
        Some("bzImage")
    } else {
        None
    }
}

/// How much of a file's start [`detect`] looks at: a Multiboot 2 header lies within the first 32 KiB, all
/// others begin earlier.
pub const HEAD_SIZE: usize = multiboot2::SEARCH_SIZE;

/// Finds out what `source` is and parses its header.
///
/// # Errors
/// [`ImageError`] when the file has the mark of a format but is damaged, truncated, or of a
/// kind that cannot be started.
pub fn detect<S: Source + ?Sized>(source: &S) -> Result<Format, ImageError> {
    let size = source.size();
    let head_size = usize::try_from(size).unwrap_or(HEAD_SIZE).min(HEAD_SIZE);
    let mut head = vec![0; head_size];
    source.read_at(0, &mut head).map_err(ImageError::Read)?;

    if size == 0 {
        return Err(ImageError::Truncated { what: "a kernel", needed: 1, actual: 0 });
    }
    if head.starts_with(b"\x7fELF") {
        return elf::Elf::parse(source, &head).map(Format::Elf);
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Format::Compressed(Compression::Gzip));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Format::Compressed(Compression::Zstd));
    }
    if let Some(payload) = zboot::Payload::parse(&head, size)? {
        return Ok(Format::Zboot(payload));
    }
    if let Some(header) = arm64::Header::parse(&head, size)? {
        return Ok(Format::Arm64Image(header));
    }
    if let Some(header) = bzimage::Header::parse(&head, size)? {
        return Ok(Format::BzImage(header));
    }
    let (multiboot, multiboot2) = multiboot_headers(&head)?;
    if let Some(header) = multiboot2 {
        if header.addresses.is_none() || header.entry.is_none() {
            return Err(ImageError::malformed(
                "Multiboot 2",
                "the file is not ELF and the header gives no load addresses and entry (tags 2 and 3)",
            ));
        }
        return Ok(Format::Multiboot2(header));
    }
    if let Some(header) = multiboot {
        if header.addresses.is_none() {
            return Err(ImageError::malformed(
                "Multiboot",
                "the file is not ELF and the header gives no load addresses (flag 16)",
            ));
        }
        return Ok(Format::Multiboot(header));
    }
    if let Some(packing) = Packing::of(&head) {
        return Err(ImageError::Unsupported(format!(
            "the file is {}, which is not unpacked here: {}, and give the result",
            packing.what, packing.unpacked_by
        )));
    }
    if pe::has_section(&head, b".linux") {
        return Err(ImageError::Unsupported(
            "the file is a unified kernel image (UKI); get the kernel out of it: objcopy -O binary \
             --only-section=.linux UKI KERNEL (and the initrd by --only-section=.initrd), and give that"
                .into(),
        ));
    }
    for (magic, name) in UNSUPPORTED {
        if head.starts_with(magic) {
            return Err(ImageError::Unsupported(format!(
                "the file is {name}; give the kernel itself (bzImage, vmlinux, Image)"
            )));
        }
    }
    Ok(Format::Flat)
}

/// The Multiboot headers of a file. A kernel may have both, of which one is enough.
fn multiboot_headers(
    head: &[u8],
) -> Result<(Option<multiboot::Header>, Option<multiboot2::Header>), ImageError> {
    match (multiboot::Header::find(head), multiboot2::Header::find(head)) {
        (first, Ok(None)) => Ok((first?, None)),
        (first, Ok(second)) => Ok((first.unwrap_or(None), second)),
        (Ok(Some(first)), Err(_)) => Ok((Some(first), None)),
        (_, Err(error)) => Err(error),
    }
}

/// How kernels are packed that we do not unpack: those that Linux's build knows (`lib/decompress.c`).
#[derive(Clone, Copy, Debug)]
struct Packing {
    /// The first bytes.
    magic: &'static [u8],
    /// The name that EFI zboot has for it.
    name: &'static str,
    what: &'static str,
    unpacked_by: &'static str,
    /// The program that unpacks its standard input.
    filter: &'static str,
}

impl Packing {
    const ALL: &[Packing] = &[
        Packing::new(b"\xfd7zXZ\0", "xzkern", "xz-compressed", "xz -dc FILE > KERNEL", "xz -dc"),
        Packing::new(b"BZh", "bzip2", "bzip2-compressed", "bzip2 -dc FILE > KERNEL", "bzip2 -dc"),
        // The properties that every encoder writes, and a dictionary of at least 64 KiB.
        Packing::new(
            b"\x5d\0\0",
            "lzma",
            "lzma-compressed",
            "xz --format=lzma -dc FILE > KERNEL",
            "xz --format=lzma -dc",
        ),
        Packing::new(b"\x89LZO\0\r\n\x1a\n", "lzo", "lzo-compressed", "lzop -dc FILE > KERNEL", "lzop -dc"),
        Packing::new(b"\x02\x21\x4c\x18", "lz4", "lz4-compressed", "lz4 -dc FILE > KERNEL", "lz4 -dc"),
        Packing::new(b"\x04\x22\x4d\x18", "lz4", "lz4-compressed", "lz4 -dc FILE > KERNEL", "lz4 -dc"),
    ];

    const fn new(
        magic: &'static [u8],
        name: &'static str,
        what: &'static str,
        unpacked_by: &'static str,
        filter: &'static str,
    ) -> Packing {
        Packing { magic, name, what, unpacked_by, filter }
    }

    fn of(head: &[u8]) -> Option<&'static Packing> {
        // Three bytes are few: its length is all ones, if it is not known, or no more than a kernel has.
        let is_lzma = || {
            let length = crate::bytes::u64_at(head, 5);
            length.is_some_and(|length| length == u64::MAX || (1..1 << 40).contains(&length))
        };
        let fits = |packing: &&Packing| packing.name != "lzma" || is_lzma();
        Packing::ALL.iter().filter(|packing| head.starts_with(packing.magic)).find(fits)
    }
}

/// Files that people pass by mistake, by their first bytes.
const UNSUPPORTED: [(&[u8], &str); 4] = [
    (b"070701", "a cpio archive, as an --initrd is"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"!<arch>\n", "an ar archive (a Debian package?)"),
    (b"MZ", "a PE program without a Linux boot header"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_kernel_is_said_or_flat() {
        assert_eq!(detect(&[0x90u8; 64][..]), Ok(Format::Flat));
        assert!(matches!(detect(&b""[..]), Err(ImageError::Truncated { .. })));
        assert_eq!(detect(&[0x1f, 0x8b, 8, 0][..]), Ok(Format::Compressed(Compression::Gzip)));
        assert_eq!(detect(&[0x28, 0xb5, 0x2f, 0xfd][..]), Ok(Format::Compressed(Compression::Zstd)));
        for (magic, name) in UNSUPPORTED {
            let mut file = magic.to_vec();
            file.resize(4096, 0);
            let error = detect(&file[..]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn packings_that_are_not_spoken_are_named_with_what_unpacks_them() {
        for packing in Packing::ALL {
            let mut file = packing.magic.to_vec();
            file.resize(13, 0xff);
            file.resize(4096, 0);
            let error = detect(&file[..]).unwrap_err().to_string();
            assert!(error.contains(packing.what) && error.contains(packing.filter), "{error}");
            assert!(packing.unpacked_by.starts_with(packing.filter));
        }
        // x86 code may begin with the same three bytes.
        assert_eq!(detect(&[&[0x5d, 0, 0, 0x90][..], &[0; 60]].concat()[..]), Ok(Format::Flat));
    }

    #[test]
    fn a_unified_kernel_image_is_told_how_to_get_the_kernel_out() {
        let error = detect(&pe::tests::program(&[b".osrel", b".linux"])[..]).unwrap_err().to_string();
        assert!(error.contains("(UKI)") && error.contains("--only-section=.linux"), "{error}");
        let other = detect(&pe::tests::program(&[b".text"])[..]).unwrap_err().to_string();
        assert!(other.contains("a PE program"), "{other}");
    }

    #[test]
    fn no_prefix_of_any_header_panics() {
        let images: [Vec<u8>; 5] = [
            bzimage::tests::image(),
            arm64::tests::image(),
            elf::tests::image(),
            multiboot::tests::image(),
            multiboot2::tests::image(),
        ];
        for image in &images {
            for length in 0..image.len().min(600) {
                let _ = detect(&image[..length]);
            }
        }
    }
}
