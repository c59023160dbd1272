//! Linux boot parameters, the "zero page".
//!
//! Source: Linux `Documentation/arch/x86/zero-page.rst` and `boot.rst`; offsets are from the
//! start of the page.

use super::layout::{self, MemoryMapEntry};
use crate::image::bzimage::SETUP_HEADER_OFFSET;

/// Size of the zero page, bytes.
pub const SIZE: usize = 4096;

const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const VID_MODE: usize = 0x1fa;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const SETUP_DATA: usize = 0x250;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
/// Entries that the table in the zero page has room for.
const E820_MAX: usize = 128;

/// "Undefined" boot loader with no assigned number (boot.rst, type_of_loader).
const LOADER_UNDEFINED: u8 = 0xff;
/// VGA mode "normal".
const VIDEO_NORMAL: u16 = 0xffff;

/// Type of the `setup_data` with random bytes (boot.rst; Linux 6.0 and later know it).
const SETUP_RNG_SEED: u32 = 9;

/// The `setup_data` at [`layout::SETUP_DATA`]: random bytes, with which the kernel need not wait for any on a
/// processor that gives none. It forgets them once it has them.
pub fn setup_data(seed: &[u8]) -> Vec<u8> {
    let size = u32::try_from(seed.len()).unwrap_or(0);
    // There is no next one.
    let mut bytes = 0u64.to_le_bytes().to_vec();
    bytes.extend([SETUP_RNG_SEED, size].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(seed);
    bytes
}

/// What goes into the boot parameters.
#[derive(Clone, Debug)]
pub struct ZeroPage<'a> {
    /// The setup header of a bzImage, from `SETUP_HEADER_OFFSET` of the file; empty for an
    /// ELF kernel or a flat binary, which have none.
    pub setup_header: &'a [u8],
    /// Length of the command line, bytes without its zero. It is at [`layout::CMDLINE`].
    pub cmdline_size: u32,
    /// Guest-physical start and size in bytes of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// RAM and reserved ranges.
    pub memory_map: &'a [MemoryMapEntry],
}

impl ZeroPage<'_> {
    /// The page's bytes.
    pub fn bytes(&self) -> [u8; SIZE] {
        let mut page = [0; SIZE];
        let room = E820_TABLE - SETUP_HEADER_OFFSET;
        let header = &self.setup_header[..self.setup_header.len().min(room)];
        page[SETUP_HEADER_OFFSET..SETUP_HEADER_OFFSET + header.len()].copy_from_slice(header);
        if header.is_empty() {
            put(&mut page, BOOT_FLAG, &0xaa55u16.to_le_bytes());
            put(&mut page, HEADER, b"HdrS");
            put(&mut page, KERNEL_ALIGNMENT, &0x100_0000u32.to_le_bytes());
            put(&mut page, CMDLINE_SIZE, &self.cmdline_size.to_le_bytes());
        }
        put(&mut page, VID_MODE, &VIDEO_NORMAL.to_le_bytes());
        page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
        // CAN_USE_HEAP and KEEP_SEGMENTS matter to the real-mode code only, which is not run.
        page[LOADFLAGS] |= 1;
        put(&mut page, ACPI_RSDP_ADDR, &layout::ACPI_TABLES.0.to_le_bytes());
        let [cmdline_low, _] = halves(layout::CMDLINE.0);
        put(&mut page, CMD_LINE_PTR, &cmdline_low.to_le_bytes());
        put(&mut page, SETUP_DATA, &layout::SETUP_DATA.0.to_le_bytes());

        if let Some((start, size)) = self.initrd {
            let ([start_low, start_high], [size_low, size_high]) = (halves(start), halves(size));
            put(&mut page, RAMDISK_IMAGE, &start_low.to_le_bytes());
            put(&mut page, RAMDISK_SIZE, &size_low.to_le_bytes());
            put(&mut page, EXT_RAMDISK_IMAGE, &start_high.to_le_bytes());
            put(&mut page, EXT_RAMDISK_SIZE, &size_high.to_le_bytes());
        }

        let entries = &self.memory_map[..self.memory_map.len().min(E820_MAX)];
        for (index, entry) in entries.iter().enumerate() {
            let at = E820_TABLE + index * E820_ENTRY_SIZE;
            put(&mut page, at, &entry.range.start.0.to_le_bytes());
            put(&mut page, at + 8, &entry.range.size.to_le_bytes());
            put(&mut page, at + 16, &(entry.kind as u32).to_le_bytes());
        }
        page[E820_ENTRIES] = u8::try_from(entries.len()).unwrap_or(u8::MAX);
        page
    }
}

fn put(page: &mut [u8; SIZE], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The low and the high 32 bits of a word.
fn halves(word: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    [word as u32, (word >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u16_at, u32_at, u64_at};

    #[test]
    fn fields_stand_where_boot_rst_puts_them() {
        let map = layout::memory_map(6 << 30);
        let mut setup_header = vec![0u8; 0x26c - 0x1f1];
        setup_header[0x211 - 0x1f1] = 0x80;
        let page = ZeroPage {
            setup_header: &setup_header,
            cmdline_size: 20,
            initrd: Some((0x1_2345_6000, 0x2_0000_0001)),
            memory_map: &map,
        }
        .bytes();
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x211], 0x81);
        assert_eq!(u32_at(&page, 0x228), Some(0x2_0000));
        assert_eq!(u64_at(&page, 0x070), Some(0xe_0000));
        assert_eq!(u64_at(&page, 0x250), Some(layout::SETUP_DATA.0));
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x0c0)), (Some(0x2345_6000), Some(1)));
        assert_eq!((u32_at(&page, 0x21c), u32_at(&page, 0x0c4)), (Some(1), Some(2)));
        assert_eq!(usize::from(page[0x1e8]), map.len());
        let last = 0x2d0 + (map.len() - 1) * 20;
        assert_eq!(u64_at(&page, last), Some(4 << 30));
        assert_eq!(u64_at(&page, last + 8), Some(3 << 30));
        assert_eq!(u32_at(&page, last + 16), Some(1));
    }

    #[test]
    fn the_seed_is_a_list_of_one() {
        let bytes = setup_data(&[7; 32]);
        assert_eq!((u64_at(&bytes, 0), u32_at(&bytes, 8), u32_at(&bytes, 12)), (Some(0), Some(9), Some(32)));
        assert_eq!(bytes[16..], [7; 32]);
        assert!(layout::SETUP_DATA.0 + bytes.len() as u64 <= layout::LOW_MEMORY_END);
    }

    #[test]
    fn a_kernel_without_setup_header_gets_a_valid_one() {
        let page = ZeroPage { setup_header: &[], cmdline_size: 7, initrd: None, memory_map: &[] }.bytes();
        assert_eq!(u16_at(&page, 0x1fe), Some(0xaa55));
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u32_at(&page, 0x238), Some(7));
        assert_eq!(page[0x1e8], 0);
    }
}
