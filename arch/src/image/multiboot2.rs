//! The Multiboot 2 header of a kernel image.
//!
//! Source: Multiboot2 Specification 2.0, section 3.1, "OS image format". What the kernel finds when it
//! starts is in [`crate::x86::multiboot2_info`].

use super::ImageError;
use super::multiboot::Addresses;
use crate::bytes::{u16_at, u32_at};

const HEADER_MAGIC: u32 = 0xe852_50d6;
/// The header lies, 8-byte aligned, within this many bytes of the file's start.
pub const SEARCH_SIZE: usize = 32768;
/// Magic, architecture, length, checksum.
const FIXED_SIZE: usize = 16;
const TAG_ALIGNMENT: usize = 8;

const ARCHITECTURE_I386: u32 = 0;

/// Types of header tags (section 3.1.3 and on).
mod tag {
    pub const END: u16 = 0;
    pub const INFORMATION_REQUEST: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE_FLAGS: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const MODULE_ALIGNMENT: u16 = 6;
    /// Boot services and entries for EFI, which is not how this machine starts.
    pub const EFI: std::ops::RangeInclusive<u16> = 7..=9;
    pub const RELOCATABLE: u16 = 10;
}

/// Bit 0 of a tag's flags: the kernel can do without.
const OPTIONAL: u16 = 1 << 0;
/// The highest type of boot information that the specification defines: the image's load base.
const LAST_INFORMATION: u32 = 21;

/// Where a kernel that can be moved may lie (section 3.1.12, "Relocatable header tag").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocatable {
    /// Lowest address of its first byte, guest-physical.
    pub lowest: u32,
    /// Highest address of its last byte, guest-physical.
    pub highest: u32,
    /// Alignment of its first byte, bytes, a power of two.
    pub alignment: u32,
    /// It would like to be as high as it may.
    pub prefers_highest: bool,
}

/// A Multiboot 2 header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Load addresses, where the header has them; else the file is ELF. Their entry is of no use: it has
    /// a tag of its own.
    pub addresses: Option<Addresses>,
    /// The entry point, guest-physical, where the header has one.
    pub entry: Option<u32>,
    /// Where it may lie, if it can be moved.
    pub relocatable: Option<Relocatable>,
    /// The kernel cannot do without a video mode or a text console, which it will not get.
    pub wants_video: bool,
    /// The boot information that it cannot do without, by the types of the tags.
    pub requests: Vec<u32>,
}

fn malformed(why: impl Into<String>) -> ImageError {
    ImageError::malformed("Multiboot 2", why)
}

impl Header {
    /// Looks for the header in the first bytes of a file.
    ///
    /// # Errors
    /// A header for another architecture, that requires what the specification does not define, or whose
    /// tags contradict each other.
    pub fn find(head: &[u8]) -> Result<Option<Header>, ImageError> {
        let head = &head[..head.len().min(SEARCH_SIZE)];
        for offset in (0..head.len().saturating_sub(FIXED_SIZE - 1)).step_by(TAG_ALIGNMENT) {
            let word = |index: usize| u32_at(head, offset + index * 4);
            let (Some(HEADER_MAGIC), Some(architecture), Some(length), Some(checksum)) =
                (word(0), word(1), word(2), word(3))
            else {
                continue;
            };
            let sum = HEADER_MAGIC.wrapping_add(architecture).wrapping_add(length).wrapping_add(checksum);
            if sum != 0 {
                continue;
            }
            if architecture != ARCHITECTURE_I386 {
                return Err(ImageError::Unsupported(format!(
                    "the Multiboot 2 header is for architecture {architecture}; i386 (0) is supported"
                )));
            }
            let end = usize::try_from(length).ok().and_then(|length| offset.checked_add(length));
            let tags = end.and_then(|end| head.get(offset + FIXED_SIZE..end)).ok_or_else(|| {
                malformed(format!("it has {length} bytes, not all of them in the first 32 KiB"))
            })?;
            return Header::parse(tags, offset as u64).map(Some);
        }
        Ok(None)
    }

    fn parse(tags: &[u8], header_offset: u64) -> Result<Header, ImageError> {
        let mut header = Header::default();
        let mut at = 0;
        while at < tags.len() {
            let (Some(kind), Some(flags), Some(size)) =
                (u16_at(tags, at), u16_at(tags, at + 2), u32_at(tags, at + 4))
            else {
                return Err(malformed("a tag is cut short"));
            };
            if kind == tag::END {
                return Ok(header);
            }
            let end =
                usize::try_from(size).ok().filter(|size| *size >= 8).and_then(|size| at.checked_add(size));
            let body = end
                .and_then(|end| tags.get(at + 8..end))
                .ok_or_else(|| malformed(format!("tag {kind} has {size} bytes, which the header has not")))?;
            header.add(kind, flags & OPTIONAL != 0, body, header_offset)?;
            at = (at + 8 + body.len()).next_multiple_of(TAG_ALIGNMENT);
        }
        // GRUB takes a header without an end tag as well.
        Ok(header)
    }

    fn add(
        &mut self,
        kind: u16,
        is_optional: bool,
        body: &[u8],
        header_offset: u64,
    ) -> Result<(), ImageError> {
        let words = || body.chunks_exact(4).filter_map(|bytes| u32_at(bytes, 0));
        let word = |index: usize| {
            u32_at(body, index * 4).ok_or_else(|| malformed(format!("tag {kind} is too short")))
        };
        match kind {
            tag::INFORMATION_REQUEST if !is_optional => {
                if let Some(unknown) = words().find(|kind| *kind > LAST_INFORMATION) {
                    return Err(ImageError::Unsupported(format!(
                        "the Multiboot 2 header requires unknown boot information ({unknown})"
                    )));
                }
                self.requests.extend(words());
            }
            tag::ADDRESS => {
                let fields = [word(0)?, word(1)?, word(2)?, word(3)?, 0];
                self.addresses = Some(Addresses::new(header_offset, fields)?);
            }
            tag::ENTRY => self.entry = Some(word(0)?),
            // Bit 0: one of the consoles that the specification knows has to be there.
            tag::CONSOLE_FLAGS => self.wants_video |= word(0)? & 1 != 0,
            tag::FRAMEBUFFER => self.wants_video |= !is_optional,
            tag::RELOCATABLE => {
                let [lowest, highest, alignment, preference] = [word(0)?, word(1)?, word(2)?, word(3)?];
                // GRUB takes 0 for no alignment.
                let alignment = alignment.max(1);
                if !alignment.is_power_of_two() || lowest > highest {
                    return Err(malformed("the relocatable tag contradicts itself"));
                }
                let prefers_highest = preference == 2;
                self.relocatable = Some(Relocatable { lowest, highest, alignment, prefers_highest });
            }
            // Modules lie on pages always.
            tag::INFORMATION_REQUEST | tag::MODULE_ALIGNMENT => {}
            _ if is_optional || tag::EFI.contains(&kind) => {}
            other => {
                return Err(ImageError::Unsupported(format!(
                    "the Multiboot 2 header requires an unknown feature (tag {other})"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::image) mod tests {
    use super::super::{Format, detect};
    use super::*;

    fn tag(kind: u16, flags: u16, words: &[u32]) -> Vec<u8> {
        let size = 8 + u32::try_from(words.len()).unwrap() * 4;
        let mut bytes = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
        bytes.extend(size.to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    pub fn header(architecture: u32, tags: &[Vec<u8>]) -> Vec<u8> {
        let tags = tags.concat();
        let length = u32::try_from(FIXED_SIZE + tags.len()).unwrap();
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(architecture).wrapping_sub(length);
        let mut bytes: Vec<u8> =
            [HEADER_MAGIC, architecture, length, checksum].into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(tags);
        bytes
    }

    fn end() -> Vec<u8> {
        tag(0, 0, &[])
    }

    /// A flat image: header at offset 16, loaded whole to 1 MiB.
    pub fn image() -> Vec<u8> {
        let mut file = vec![0x90u8; 16];
        file.extend(header(
            0,
            &[tag(2, 0, &[0x10_0010, 0x10_0000, 0, 0x10_2000]), tag(3, 0, &[0x10_0080]), end()],
        ));
        file.resize(4096, 0x90);
        file
    }

    #[test]
    fn the_header_is_found_anywhere_in_the_first_32_kib() {
        for offset in [0, 8, 8192, SEARCH_SIZE - 24] {
            let mut file = vec![0u8; offset];
            file.extend(header(0, &[end()]));
            assert_eq!(Header::find(&file), Ok(Some(Header::default())), "at {offset}");
        }
        for offset in [4, SEARCH_SIZE] {
            let mut file = vec![0u8; offset];
            file.extend(header(0, &[end()]));
            assert_eq!(Header::find(&file), Ok(None), "at {offset}");
        }
        let mut wrong_sum = header(0, &[end()]);
        wrong_sum[12] ^= 1;
        assert_eq!(Header::find(&wrong_sum), Ok(None));
    }

    #[test]
    fn tags_are_read() {
        let Ok(Format::Multiboot2(found)) = detect(&image()[..]) else { panic!("not Multiboot 2") };
        let addresses = found.addresses.unwrap();
        assert_eq!((addresses.file_offset, addresses.load, addresses.bss_end), (0, 0x10_0000, 0x10_2000));
        assert_eq!((addresses.load_size, found.entry), (None, Some(0x10_0080)));
        let file = header(
            0,
            &[
                tag(1, 0, &[6, 9, 14]),
                tag(1, OPTIONAL, &[99]),
                tag(10, 0, &[0x10_0000, 0x4000_0000, 0x20_0000, 2]),
                tag(5, OPTIONAL, &[640, 480, 32]),
                tag(4, 0, &[0b10]),
                tag(6, 0, &[]),
                tag(7, 0, &[]),
                tag(9, 0, &[0x10_0000]),
                tag(77, OPTIONAL, &[]),
                end(),
            ],
        );
        let found = Header::find(&file).unwrap().unwrap();
        assert_eq!(found.requests, [6, 9, 14]);
        assert!(!found.wants_video && found.addresses.is_none() && found.entry.is_none());
        for wanted in [tag(4, 0, &[1]), tag(5, 0, &[0, 0, 0])] {
            assert!(Header::find(&header(0, &[wanted, end()])).unwrap().unwrap().wants_video);
        }
        assert_eq!(
            found.relocatable,
            Some(Relocatable {
                lowest: 0x10_0000,
                highest: 0x4000_0000,
                alignment: 0x20_0000,
                prefers_highest: true
            })
        );
    }

    #[test]
    fn what_cannot_be_met_or_contradicts_itself_is_refused() {
        let unsupported = |file: &[u8]| matches!(Header::find(file), Err(ImageError::Unsupported(_)));
        assert!(unsupported(&header(4, &[end()])));
        assert!(unsupported(&header(0, &[tag(77, 0, &[]), end()])));
        assert!(unsupported(&header(0, &[tag(1, 0, &[6, 22]), end()])));
        let malformed = |file: &[u8]| matches!(Header::find(file), Err(ImageError::Malformed { .. }));
        assert!(malformed(&header(0, &[tag(2, 0, &[0x10_0000]), end()])));
        assert!(malformed(&header(0, &[tag(3, 0, &[]), end()])));
        assert!(malformed(&header(0, &[tag(10, 0, &[0, 0x1000, 3, 0]), end()])));
        assert!(malformed(&header(0, &[tag(10, 0, &[0x1000, 0, 1, 0]), end()])));
        let anywhere = Header::find(&header(0, &[tag(10, 0, &[0, 0x1000, 0, 0]), end()])).unwrap().unwrap();
        assert_eq!(anywhere.relocatable.map(|it| it.alignment), Some(1));
        let mut cut = header(0, &[tag(3, 0, &[0x10_0000]), end()]);
        cut.truncate(20);
        assert!(malformed(&cut));
        let mut long = header(0, &[tag(3, 0, &[0x10_0000])]);
        long[20] = 0xff;
        assert!(malformed(&long));
        let mut none = header(0, &[tag(3, 0, &[0x10_0000])]);
        none[20] = 0;
        assert!(malformed(&none));
        // Neither ELF nor addresses.
        assert!(matches!(detect(&header(0, &[end()])[..]), Err(ImageError::Malformed { .. })));
    }
}
