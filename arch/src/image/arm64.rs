//! The arm64 Linux `Image` header.
//!
//! Source: Linux `Documentation/arch/arm64/booting.rst`, section 4, "Call the kernel image".

use super::{ImageError, pe};
use crate::bytes::{u32_at, u64_at};

const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
pub(super) const MAGIC: usize = 56;
pub(super) const ARM64_MAGIC: u32 = 0x644d_5241;
const FLAG_BIG_ENDIAN: u64 = 1 << 0;
const HEADER_SIZE: usize = 64;
/// The PE headers of an EFI-bootable Image are well below this, bytes.
const PE_HEADERS_END: u64 = 8192;

/// The image is placed `text_offset` bytes from an address aligned to this.
pub const BASE_ALIGNMENT: u64 = 2 << 20;

/// The fields of an `Image` that a loader acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Distance of the image from a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Memory that the kernel needs from its load address on, in bytes, its BSS included.
    pub image_size: u64,
}

impl Header {
    /// Parses the header; `Ok(None)` when the file is not an arm64 `Image`.
    ///
    /// # Errors
    /// A truncated or big-endian image, or a header that asks for the impossible.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Option<Header>, ImageError> {
        if u32_at(head, MAGIC) != Some(ARM64_MAGIC) {
            return Ok(None);
        }
        let (Some(text_offset), Some(image_size), Some(flags)) =
            (u64_at(head, TEXT_OFFSET), u64_at(head, IMAGE_SIZE), u64_at(head, FLAGS))
        else {
            return Err(ImageError::Truncated {
                what: "the Image header",
                needed: HEADER_SIZE as u64,
                actual: file_size,
            });
        };
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(ImageError::Unsupported(
                "the kernel is big-endian; little-endian guests are supported".into(),
            ));
        }
        // "Where image_size is zero, text_offset can be assumed to be 0x80000": Linux before 3.17.
        let (text_offset, image_size) =
            if image_size == 0 { (0x8_0000, file_size) } else { (text_offset, image_size) };
        if text_offset >= BASE_ALIGNMENT {
            return Err(ImageError::malformed("Image", format!("text_offset is {text_offset:#x}")));
        }
        // image_size counts the BSS, which the file does not hold, so it bounds the file from
        // above. A file well below it is cut short only if it ends inside its PE sections.
        let needed = match pe_sections_end(head) {
            Some(end) => end,
            // An EFI-bootable Image that ends before its PE headers do.
            None if head.starts_with(b"MZ") && file_size < PE_HEADERS_END => PE_HEADERS_END,
            None => HEADER_SIZE as u64,
        };
        if needed > file_size {
            return Err(ImageError::Truncated { what: "the Image", needed, actual: file_size });
        }
        if file_size > image_size.saturating_add(BASE_ALIGNMENT) {
            return Err(ImageError::malformed(
                "Image",
                format!("image_size is {image_size} bytes, the file has {file_size}"),
            ));
        }
        Ok(Some(Header { text_offset, image_size: image_size.max(file_size) }))
    }
}

/// Where the file's last section ends, from the PE headers that an EFI-bootable Image has.
fn pe_sections_end(head: &[u8]) -> Option<u64> {
    pe::sections(head)?.iter().map(|section| section.offset + section.size).max()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Format, detect};
    use super::*;

    /// A header with 4 KiB of kernel behind it.
    pub fn image() -> Vec<u8> {
        let mut file = vec![0u8; 4096];
        file[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&0x20_0000u64.to_le_bytes());
        file[MAGIC..MAGIC + 4].copy_from_slice(&ARM64_MAGIC.to_le_bytes());
        file
    }

    /// The same with PE headers whose one section ends at `end`.
    fn efi_image(end: u32) -> Vec<u8> {
        let mut file = image();
        file[..2].copy_from_slice(b"MZ");
        file[0x3c..0x40].copy_from_slice(&0x40u32.to_le_bytes());
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46..0x48].copy_from_slice(&1u16.to_le_bytes());
        file[0x40 + 24 + 16..0x40 + 24 + 20].copy_from_slice(&(end - 0x1000).to_le_bytes());
        file[0x40 + 24 + 20..0x40 + 24 + 24].copy_from_slice(&0x1000u32.to_le_bytes());
        file
    }

    #[test]
    fn headers_old_and_new_are_read() {
        assert_eq!(
            detect(&image()[..]),
            Ok(Format::Arm64Image(Header { text_offset: 0, image_size: 0x20_0000 }))
        );
        let mut old = image();
        old[IMAGE_SIZE..IMAGE_SIZE + 8].fill(0);
        assert_eq!(
            detect(&old[..]),
            Ok(Format::Arm64Image(Header { text_offset: 0x8_0000, image_size: 4096 }))
        );
        assert!(matches!(detect(&efi_image(4096 + 0x1000 - 0x1000)[..]), Ok(Format::Arm64Image(_))));
    }

    #[test]
    fn truncated_big_endian_and_absurd_images_are_refused() {
        assert!(matches!(detect(&efi_image(0x3000)[..]), Err(ImageError::Truncated { .. })));
        assert!(matches!(detect(&efi_image(0x1000)[..100]), Err(ImageError::Truncated { .. })));
        let mut big_endian = image();
        big_endian[FLAGS] = 1;
        assert!(matches!(detect(&big_endian[..]), Err(ImageError::Unsupported(_))));
        let mut absurd = image();
        absurd[TEXT_OFFSET + 4] = 1;
        assert!(matches!(detect(&absurd[..]), Err(ImageError::Malformed { .. })));
    }
}
