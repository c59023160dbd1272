//! The Multiboot 1 header of a kernel image.
//!
//! Source: Multiboot Specification 0.6.96, section 3.1, "OS image format". What the kernel
//! finds when it starts is in [`crate::x86::multiboot_info`].

use super::ImageError;
use crate::bytes::u32_at;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies, 4-byte aligned, within this many bytes of the file's start.
const SEARCH_SIZE: usize = 8192;

const FLAG_VIDEO: u32 = 1 << 2;
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Bits 0 to 15 are requirements; these we meet (page-aligned modules, memory information)
/// or may ignore (video: the guest has a serial console and is told of no framebuffer).
const KNOWN_REQUIREMENTS: u32 = 0b111;

/// Load addresses of an image that is not ELF (the "address fields", flag 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where in the file loading starts, in bytes.
    pub file_offset: u64,
    /// Where the first byte goes, guest-physical.
    pub load: u64,
    /// Bytes to load; `None` loads the rest of the file.
    pub load_size: Option<u64>,
    /// End of the zeroed memory behind the image, guest-physical; 0 where there is none.
    pub bss_end: u64,
    /// The entry point, guest-physical.
    pub entry: u64,
}

/// A Multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Load addresses, where the header has them.
    pub addresses: Option<Addresses>,
    /// The kernel asked for a video mode, which it will not get.
    pub wants_video: bool,
}

impl Header {
    /// Looks for the header in the first bytes of a file.
    ///
    /// # Errors
    /// A header that requires what this specification does not define, or whose addresses
    /// contradict each other.
    pub fn find(head: &[u8]) -> Result<Option<Header>, ImageError> {
        let head = &head[..head.len().min(SEARCH_SIZE)];
        for offset in (0..head.len().saturating_sub(11)).step_by(4) {
            let word = |index: usize| u32_at(head, offset + index * 4);
            let (Some(HEADER_MAGIC), Some(flags), Some(checksum)) = (word(0), word(1), word(2)) else {
                continue;
            };
            if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
                continue;
            }
            if flags & 0xffff & !KNOWN_REQUIREMENTS != 0 {
                return Err(ImageError::Unsupported(format!(
                    "the Multiboot header requires unknown features (flags {flags:#x})"
                )));
            }
            let addresses = if flags & FLAG_ADDRESSES == 0 {
                None
            } else {
                let fields = [word(3), word(4), word(5), word(6), word(7)];
                let [Some(header), Some(load), Some(load_end), Some(bss_end), Some(entry)] = fields else {
                    return Err(ImageError::malformed("Multiboot", "the address fields are cut short"));
                };
                Some(Addresses::new(offset as u64, [header, load, load_end, bss_end, entry])?)
            };
            return Ok(Some(Header { addresses, wants_video: flags & FLAG_VIDEO != 0 }));
        }
        Ok(None)
    }
}

impl Addresses {
    /// Checks the fields `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr` and `entry_addr`, of a
    /// header that lies `header_offset` bytes into the file.
    pub(super) fn new(header_offset: u64, fields: [u32; 5]) -> Result<Addresses, ImageError> {
        let [header, load, load_end, bss_end, entry] = fields.map(u64::from);
        let bad = |why: &str| Err(ImageError::malformed("Multiboot", why));
        // load_addr must be at or below header_addr, and the image cannot start before the file.
        let Some(file_offset) = header.checked_sub(load).and_then(|before| header_offset.checked_sub(before))
        else {
            return bad("load_addr and header_addr contradict the header's place in the file");
        };
        if load_end != 0 && load_end < load {
            return bad("load_end_addr is below load_addr");
        }
        if bss_end != 0 && bss_end < load_end.max(load) {
            return bad("bss_end_addr is below the end of the image");
        }
        Ok(Addresses {
            file_offset,
            load,
            load_size: (load_end != 0).then(|| load_end - load),
            bss_end,
            entry,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Format, detect};
    use super::*;

    fn header(flags: u32, address_fields: &[u32]) -> Vec<u8> {
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let mut words = vec![HEADER_MAGIC, flags, checksum];
        words.extend_from_slice(address_fields);
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// A flat image: header at offset 16, loaded whole to 1 MiB.
    pub fn image() -> Vec<u8> {
        let mut file = vec![0x90u8; 16];
        file.extend(header(FLAG_ADDRESSES, &[0x10_0010, 0x10_0000, 0, 0x10_2000, 0x10_0030]));
        file.resize(4096, 0x90);
        file
    }

    #[test]
    fn the_header_is_found_anywhere_in_the_first_8_kib() {
        for offset in [0, 4, 4096, 8192 - 12] {
            let mut file = vec![0u8; offset];
            file.extend(header(3, &[]));
            assert_eq!(
                Header::find(&file),
                Ok(Some(Header { addresses: None, wants_video: false })),
                "at {offset}"
            );
        }
        let mut misaligned = vec![0u8; 2];
        misaligned.extend(header(3, &[]));
        assert_eq!(Header::find(&misaligned), Ok(None));
        let mut wrong_sum = header(3, &[]);
        wrong_sum[8] ^= 1;
        assert_eq!(Header::find(&wrong_sum), Ok(None));
    }

    #[test]
    fn address_fields_are_read_and_checked() {
        let Ok(Format::Multiboot(found)) = detect(&image()[..]) else { panic!("not Multiboot") };
        assert_eq!(
            found.addresses,
            Some(Addresses {
                file_offset: 0,
                load: 0x10_0000,
                load_size: None,
                bss_end: 0x10_2000,
                entry: 0x10_0030
            })
        );
        for fields in [
            [0x10_0000, 0x10_0010, 0, 0, 0], // the image would start before the file
            [0x10_0000, 0x10_0000, 0x0f_ffff, 0, 0], // ends before it starts
            [0x10_0000, 0x10_0000, 0x10_1000, 0x10_0800, 0], // BSS ends inside the image
        ] {
            let file = header(FLAG_ADDRESSES, &fields);
            assert!(matches!(Header::find(&file), Err(ImageError::Malformed { .. })), "{fields:x?}");
        }
    }

    #[test]
    fn unknown_requirements_and_missing_addresses_are_refused() {
        assert!(matches!(Header::find(&header(1 << 5, &[])), Err(ImageError::Unsupported(_))));
        assert!(matches!(detect(&header(3, &[])[..]), Err(ImageError::Malformed { .. })));
        assert!(Header::find(&header(FLAG_VIDEO, &[])).unwrap().unwrap().wants_video);
    }
}
