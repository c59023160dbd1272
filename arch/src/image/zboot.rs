//! The EFI zboot container, the form in which some distributions ship arm64 kernels: a small
//! PE program that carries a compressed `Image`.
//!
//! Source: Linux `drivers/firmware/efi/libstub/zboot-header.S`.

use super::{Compression, ImageError, Packing};
use crate::bytes::{array_at, u32_at};

/// Where the compressed kernel lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

impl Payload {
    /// Parses the header; `Ok(None)` when the file is not EFI zboot.
    ///
    /// # Errors
    /// A payload outside the file, or a compression that we do not unpack.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Option<Payload>, ImageError> {
        if !head.starts_with(b"MZ") || head.get(4..8) != Some(b"zimg") {
            return Ok(None);
        }
        let (Some(offset), Some(size), Some(name)) =
            (u32_at(head, 8), u32_at(head, 12), array_at::<32>(head, 24))
        else {
            return Err(ImageError::Truncated {
                what: "the EFI zboot header",
                needed: 56,
                actual: file_size,
            });
        };
        let (offset, size) = (u64::from(offset), u64::from(size));
        if offset + size > file_size {
            return Err(ImageError::Truncated {
                what: "the EFI zboot payload",
                needed: offset + size,
                actual: file_size,
            });
        }
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let compression = match &name[..length] {
            b"gzip" => Compression::Gzip,
            b"zstd" | b"zstd22" => Compression::Zstd,
            other => return Err(unsupported(other, offset, size)),
        };
        Ok(Some(Payload { offset, size, compression }))
    }
}

/// Says how to get the kernel out of a file whose compression we do not unpack.
fn unsupported(name: &[u8], offset: u64, size: u64) -> ImageError {
    let words = match Packing::ALL.iter().find(|packing| packing.name.as_bytes() == name) {
        Some(packing) => {
            format!("tail -c +{} FILE | head -c {size} | {} > KERNEL", offset + 1, packing.filter)
        }
        None => format!("unpack the {size} bytes from {offset} on"),
    };
    ImageError::Unsupported(format!(
        "the EFI zboot kernel is compressed with '{}', which is not unpacked here: {words}, and give the result",
        name.escape_ascii()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, detect};
    use super::*;

    fn image(compression: &[u8], payload_size: u32) -> Vec<u8> {
        let mut file = vec![0u8; 256];
        file[..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&128u32.to_le_bytes());
        file[12..16].copy_from_slice(&payload_size.to_le_bytes());
        file[24..24 + compression.len()].copy_from_slice(compression);
        file
    }

    #[test]
    fn payloads_are_found_and_checked() {
        for (name, compression) in
            [(&b"gzip"[..], Compression::Gzip), (b"zstd", Compression::Zstd), (b"zstd22", Compression::Zstd)]
        {
            assert_eq!(
                detect(&image(name, 128)[..]),
                Ok(Format::Zboot(Payload { offset: 128, size: 128, compression }))
            );
        }
        assert!(matches!(detect(&image(b"gzip", 129)[..]), Err(ImageError::Truncated { .. })));
        let lzma = detect(&image(b"lzma", 1)[..]).unwrap_err().to_string();
        assert!(
            lzma.contains("'lzma'") && lzma.contains("tail -c +129 FILE | head -c 1 | xz --format=lzma"),
            "{lzma}"
        );
        let other = detect(&image(b"brotli", 1)[..]).unwrap_err().to_string();
        assert!(other.contains("'brotli'") && other.contains("from 128 on"), "{other}");
    }
}
