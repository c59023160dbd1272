//! The x86 Linux boot protocol's setup header.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header". Offsets
//! are from the start of the file. We enter at the 64-bit entry point, so protocol 2.12 and
//! `XLF_KERNEL_64` are needed: every x86_64 kernel since 3.8 has them.

use super::ImageError;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_DISTANCE: usize = 0x201;
pub(super) const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE_KERNEL: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

const BOOT_FLAG_MAGIC: u16 = 0xaa55;
pub(super) const HDRS_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const SECTOR: u64 = 512;

/// Where the setup header begins in the file and in the boot parameters.
pub const SETUP_HEADER_OFFSET: usize = SETUP_SECTS;

/// The 64-bit entry point, in bytes from where the protected-mode kernel is loaded
/// (boot.rst, "64-bit Boot Protocol").
pub const ENTRY_64: u64 = 0x200;

/// The fields of a bzImage that a loader acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the protected-mode kernel begins in the file, in bytes.
    pub kernel_offset: u64,
    /// Length of the protected-mode kernel in the file, in bytes.
    pub kernel_size: u64,
    /// Where the kernel wants to be loaded, guest-physical.
    pub pref_address: u64,
    /// Memory that the kernel needs from its load address on until it has its own map, bytes.
    pub init_size: u64,
    /// Whether it runs elsewhere than at `pref_address`.
    pub relocatable: bool,
    /// Alignment of a load address, bytes.
    pub alignment: u64,
    /// The highest address that the initrd may occupy, guest-physical, inclusive.
    pub initrd_addr_max: u64,
    /// Longest command line, in bytes without the final zero.
    pub cmdline_size: u64,
    /// The setup header's bytes as they go to the boot parameters, from
    /// [`SETUP_HEADER_OFFSET`] on.
    pub setup_header: Vec<u8>,
}

impl Header {
    /// Where the kernel is loaded, guest-physical: where it would like to be, as there it need not move
    /// itself. One that is relocatable may go up to an aligned place from `lowest` on; one that is not runs
    /// where it says and nowhere else (boot.rst, "pref_address"), so it is `None` below `lowest`.
    pub fn load_address(&self, lowest: u64) -> Option<u64> {
        match (self.relocatable, self.pref_address) {
            (false, 0) => Some(lowest),
            (true, preferred) => preferred.max(lowest).checked_next_multiple_of(self.alignment),
            (false, preferred) => Some(preferred).filter(|preferred| *preferred >= lowest),
        }
    }

    /// Parses the header; `Ok(None)` when the file is not a bzImage.
    ///
    /// # Errors
    /// A bzImage that is truncated, 32-bit only or too old for the 64-bit entry point.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Option<Header>, ImageError> {
        if u16_at(head, BOOT_FLAG) != Some(BOOT_FLAG_MAGIC) || u32_at(head, HEADER) != Some(HDRS_MAGIC) {
            return Ok(None);
        }
        let fields = || {
            Some((
                u16_at(head, VERSION)?,
                u16_at(head, XLOADFLAGS)?,
                u32_at(head, CMDLINE_SIZE)?,
                u64_at(head, PREF_ADDRESS)?,
                u32_at(head, INIT_SIZE)?,
            ))
        };
        let Some((version, xloadflags, cmdline_size, pref_address, init_size)) = fields() else {
            return Err(ImageError::Truncated {
                what: "the setup header",
                needed: INIT_SIZE as u64 + 4,
                actual: file_size,
            });
        };
        let loadflags = u8_at(head, LOADFLAGS).unwrap_or(0);
        if version < 0x020c || xloadflags & XLF_KERNEL_64 == 0 || loadflags & LOADED_HIGH == 0 {
            return Err(ImageError::Unsupported(format!(
                "the bzImage has no 64-bit entry point (boot protocol {}.{:02}, xloadflags {xloadflags:#x}); \
                 a 64-bit kernel of Linux 3.8 or later is needed",
                version >> 8,
                version & 0xff
            )));
        }

        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        let setup_sects = match u8_at(head, SETUP_SECTS) {
            None | Some(0) => 4,
            Some(sectors) => u64::from(sectors),
        };
        let kernel_offset = (setup_sects + 1) * SECTOR;
        // syssize counts 16-byte paragraphs of the protected-mode code.
        let paragraphs = u64::from(u32_at(head, SYSSIZE).unwrap_or(0));
        let needed = kernel_offset + paragraphs * 16;
        // The last paragraph may be cut short.
        if needed > file_size + 15 || paragraphs == 0 {
            return Err(ImageError::Truncated { what: "the bzImage", needed, actual: file_size });
        }
        let alignment = u64::from(u32_at(head, KERNEL_ALIGNMENT).unwrap_or(0));
        if !alignment.is_power_of_two() {
            return Err(ImageError::malformed("bzImage", format!("kernel_alignment is {alignment:#x}")));
        }

        // The setup header ends at 0x202 plus the distance of the jump at 0x200.
        let end = HEADER + usize::from(u8_at(head, JUMP_DISTANCE).unwrap_or(0));
        let setup_header = head.get(SETUP_HEADER_OFFSET..end).unwrap_or(&head[SETUP_HEADER_OFFSET..]);
        if end < INIT_SIZE + 4 {
            return Err(ImageError::malformed("bzImage", format!("the setup header ends at {end:#x}")));
        }
        let above_4g = xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        Ok(Some(Header {
            kernel_offset,
            kernel_size: (paragraphs * 16).min(file_size - kernel_offset),
            pref_address,
            init_size: u64::from(init_size),
            relocatable: u8_at(head, RELOCATABLE_KERNEL) == Some(1),
            alignment,
            initrd_addr_max: if above_4g {
                u64::MAX
            } else {
                u64::from(u32_at(head, INITRD_ADDR_MAX).unwrap_or(0x37ff_ffff))
            },
            cmdline_size: u64::from(cmdline_size),
            setup_header: setup_header.to_vec(),
        }))
    }
}

/// What a bzImage says it is (`kernel_version`, Linux `Documentation/arch/x86/boot.rst`): release, who built it, and which
/// build of theirs. `None`: it says nothing, or is none.
pub fn version(head: &[u8]) -> Option<&str> {
    const KERNEL_VERSION: usize = 0x20e;
    /// The field counts from here.
    const FROM: usize = 0x200;
    if u32_at(head, HEADER) != Some(HDRS_MAGIC) {
        return None;
    }
    let offset = u16_at(head, KERNEL_VERSION).filter(|offset| *offset != 0)?;
    let text = head.get(FROM + usize::from(offset)..)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

/// Whether a line of a kernel's own (`linux_banner`, Linux `init/version.c`) is that of the build that a bzImage's
/// [`version`] names: the line has the compiler as well.
pub fn is_banner_of(line: &str, version: &str) -> bool {
    let Some((who, build)) = version.split_once(" #") else { return false };
    let rest = line.strip_prefix("Linux version ").and_then(|line| line.strip_prefix(who));
    rest.is_some_and(|rest| rest.starts_with(" (") && rest.trim_end().ends_with(&format!(") #{build}")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Format, detect};
    use super::*;

    /// The smallest file with a good header: one setup sector, 1 KiB of kernel.
    pub fn image() -> Vec<u8> {
        let mut file = vec![0u8; 1024 + 1024];
        file[SETUP_SECTS] = 1;
        file[SYSSIZE..SYSSIZE + 4].copy_from_slice(&64u32.to_le_bytes());
        file[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&BOOT_FLAG_MAGIC.to_le_bytes());
        file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        file[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        file[LOADFLAGS] = LOADED_HIGH;
        file[KERNEL_ALIGNMENT..KERNEL_ALIGNMENT + 4].copy_from_slice(&0x20_0000u32.to_le_bytes());
        file[RELOCATABLE_KERNEL] = 1;
        file[XLOADFLAGS..XLOADFLAGS + 2].copy_from_slice(&3u16.to_le_bytes());
        file[CMDLINE_SIZE..CMDLINE_SIZE + 4].copy_from_slice(&2047u32.to_le_bytes());
        file[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x100_0000u64.to_le_bytes());
        file[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&0x200_0000u32.to_le_bytes());
        file
    }

    #[test]
    fn a_good_header_is_read() {
        let Ok(Format::BzImage(header)) = detect(&image()[..]) else { panic!("not a bzImage") };
        assert_eq!(header.kernel_offset, 1024);
        assert_eq!(header.kernel_size, 1024);
        assert_eq!(header.pref_address, 0x100_0000);
        assert_eq!(header.cmdline_size, 2047);
        assert_eq!(header.setup_header.len(), 0x26c - SETUP_HEADER_OFFSET);
        assert!(header.relocatable);
    }

    #[test]
    fn a_kernel_that_is_not_relocatable_goes_where_it_says() {
        let Ok(Format::BzImage(header)) = detect(&image()[..]) else { panic!("not a bzImage") };
        for (relocatable, pref_address, place) in [
            (true, 0x100_0000, Some(0x100_0000)),
            (true, 0x8_0000, Some(0x20_0000)),
            (true, 0x110_0000, Some(0x120_0000)),
            (true, u64::MAX, None),
            (false, 0x110_0000, Some(0x110_0000)),
            (false, 0x10_0000, Some(0x10_0000)),
            (false, 0x8_0000, None),
            (false, 0, Some(0x10_0000)),
            (true, 0, Some(0x20_0000)),
        ] {
            let header = Header { relocatable, pref_address, ..header.clone() };
            assert_eq!(header.load_address(0x10_0000), place, "{relocatable} {pref_address:#x}");
        }
    }

    #[test]
    fn truncated_old_and_damaged_headers_are_told_apart() {
        let whole = image();
        assert!(matches!(detect(&whole[..1500]), Err(ImageError::Truncated { .. })));
        assert!(matches!(detect(&whole[..0x240]), Err(ImageError::Truncated { .. })));
        let mut old = whole.clone();
        old[VERSION] = 5;
        assert!(matches!(detect(&old[..]), Err(ImageError::Unsupported(_))));
        let mut only_32_bit = whole.clone();
        only_32_bit[XLOADFLAGS] = 0;
        assert!(matches!(detect(&only_32_bit[..]), Err(ImageError::Unsupported(_))));
        let mut unaligned = whole;
        unaligned[KERNEL_ALIGNMENT] = 3;
        assert!(matches!(detect(&unaligned[..]), Err(ImageError::Malformed { .. })));
    }

    #[test]
    fn builds_are_told_apart() {
        let mut head = image();
        assert_eq!(version(&head), None);
        let text = b"6.12.1 (me@there) #7 SMP Mon\0more";
        head[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        head[0x500..0x500 + text.len()].copy_from_slice(text);
        let named = version(&head).unwrap();
        assert_eq!(named, "6.12.1 (me@there) #7 SMP Mon");
        head[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!((version(&head), version(b"MZ")), (None, None));
        let named = "6.12.1 (me@there) #7 SMP Mon";
        let banner = "Linux version 6.12.1 (me@there) (gcc (Debian 12) 12.2, ld 2.40) #7 SMP Mon\n";
        assert!(is_banner_of(banner, named));
        for other in [
            "Linux version 6.12.1 (me@there) (gcc 12) #8 SMP Mon",
            "Linux version 6.12.1 (me@there) (gcc 12) #17 SMP Mon",
            "Linux version 6.12.10 (me@there) (gcc 12) #7 SMP Mon",
            "Linux version 6.12.1 (me@there)",
            "6.12.1 (me@there) (gcc 12) #7 SMP Mon",
        ] {
            assert!(!is_banner_of(other, named), "{other}");
        }
        assert!(!is_banner_of(banner, "6.12.1"));
    }
}
