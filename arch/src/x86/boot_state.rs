//! What an x86 vCPU's registers hold when a guest starts, and the tables in memory that go
//! with them.
//!
//! Sources: Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"; Xen
//! `docs/misc/pvh.pandoc`; Multiboot Specification 0.6.96, section 3.2, "Machine state"; Multiboot2
//! Specification 2.0, section 3.3;
//! Intel SDM vol. 3, "Segment Descriptors" and "4-Level Paging".

use super::layout;
use crate::GuestPhys;

/// `CR0.PE`: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// `CR0.ET`: always 1 on current processors.
pub const CR0_ET: u64 = 1 << 4;
/// `CR0.PG`: paging.
pub const CR0_PG: u64 = 1 << 31;
/// `CR4.PAE`: physical address extension, needed by long mode.
pub const CR4_PAE: u64 = 1 << 5;
/// `EFER.LME`: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// `EFER.LMA`: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS reads as 1 always.
pub const RFLAGS_RESERVED: u64 = 1 << 1;

/// EAX at the entry of a Multiboot 1 kernel.
pub const MULTIBOOT_BOOTLOADER_MAGIC: u64 = 0x2bad_b002;
/// EAX at the entry of a Multiboot 2 kernel.
pub const MULTIBOOT2_BOOTLOADER_MAGIC: u64 = 0x36d7_6289;

/// How a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 64-bit, RSI points to the boot parameters: Linux, and flat binaries.
    Linux64,
    /// 32-bit protected mode without paging, EBX points to the start info.
    Pvh,
    /// 32-bit protected mode without paging, EAX holds a magic number, EBX points to the
    /// Multiboot information.
    Multiboot {
        /// Where that is.
        information: GuestPhys,
    },
    /// The same with the magic number and the information of Multiboot 2 (section 3.3, "I386 machine
    /// state").
    Multiboot2 {
        /// Where that is.
        information: GuestPhys,
    },
}

impl Protocol {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Linux64 => "Linux's 64-bit protocol",
            Protocol::Pvh => "PVH",
            Protocol::Multiboot { .. } => "Multiboot",
            Protocol::Multiboot2 { .. } => "Multiboot 2",
        }
    }
}

/// A segment register with its hidden part (Intel SDM vol. 3, "Segment Descriptors").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, inclusive, granularity applied.
    pub limit: u32,
    /// Type field, 4 bits.
    pub kind: u8,
    /// S: code or data rather than system.
    pub is_code_or_data: bool,
    /// L: 64-bit code.
    pub is_long: bool,
    /// D/B: 32-bit code or stack.
    pub is_32_bit: bool,
}

impl Segment {
    /// The descriptor that describes this segment in a GDT, present, privilege level 0.
    pub fn descriptor(&self) -> u64 {
        let page_granular = self.limit > 0xf_ffff;
        let limit = u64::from(if page_granular { self.limit >> 12 } else { self.limit });
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | u64::from(self.kind & 0xf) << 40
            | u64::from(self.is_code_or_data) << 44
            | 1 << 47
            | (limit >> 16 & 0xf) << 48
            | u64::from(self.is_long) << 53
            | u64::from(self.is_32_bit) << 54
            | u64::from(page_granular) << 55
            | (self.base >> 24 & 0xff) << 56
    }
}

const TYPE_CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
const TYPE_DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TYPE_TSS_BUSY: u8 = 0xb;

/// Registers at a guest's first instruction. What is not named is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction, guest-physical (and virtual: paging is off or maps to itself).
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data, stack and extra segments.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// GDT base and limit.
    pub gdt: (GuestPhys, u16),
    /// IDT base and limit.
    pub idt: (GuestPhys, u16),
}

impl BootState {
    /// The state for a guest entered at `entry` by `protocol`.
    pub fn new(protocol: Protocol, entry: u64) -> BootState {
        let long = protocol == Protocol::Linux64;
        let segment = |selector, kind, is_code| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            kind,
            is_code_or_data: true,
            is_long: long && is_code,
            is_32_bit: !(long && is_code),
        };
        let (rax, rbx) = match protocol {
            Protocol::Linux64 => (0, 0),
            Protocol::Pvh => (0, layout::BOOT_INFO.0),
            Protocol::Multiboot { information } => (MULTIBOOT_BOOTLOADER_MAGIC, information.0),
            Protocol::Multiboot2 { information } => (MULTIBOOT2_BOOTLOADER_MAGIC, information.0),
        };
        BootState {
            rip: entry,
            rsp: layout::BOOT_STACK.0,
            rax,
            rbx,
            rsi: if long { layout::ZERO_PAGE.0 } else { 0 },
            cr0: CR0_PE | CR0_ET | if long { CR0_PG } else { 0 },
            cr3: if long { layout::PAGE_TABLES.0 } else { 0 },
            cr4: if long { CR4_PAE } else { 0 },
            efer: if long { EFER_LME | EFER_LMA } else { 0 },
            // boot.rst: __BOOT_CS is 0x10, __BOOT_DS is 0x18.
            cs: segment(0x10, TYPE_CODE_EXECUTE_READ_ACCESSED, true),
            data: segment(0x18, TYPE_DATA_READ_WRITE_ACCESSED, false),
            tr: Segment {
                selector: 0,
                base: 0,
                limit: 0x67,
                kind: TYPE_TSS_BUSY,
                is_code_or_data: false,
                is_long: false,
                is_32_bit: false,
            },
            gdt: (layout::GDT, 4 * 8 - 1),
            idt: (layout::IDT, 0),
        }
    }

    /// The tables this state refers to, to be written to guest memory: places and bytes.
    pub fn tables(&self) -> Vec<(GuestPhys, Vec<u8>)> {
        let gdt = [0, 0, self.cs.descriptor(), self.data.descriptor()];
        let mut tables = vec![(self.gdt.0, gdt.into_iter().flat_map(u64::to_le_bytes).collect())];
        if self.cr0 & CR0_PG != 0 {
            tables.push((GuestPhys(self.cr3), identity_map(self.cr3)));
        }
        tables
    }
}

const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_ACCESSED_DIRTY: u64 = 0x60;
const PDE_PAGE_SIZE: u64 = 1 << 7;

/// Page tables at guest-physical `base` that map the first 4 GiB to themselves in 2 MiB pages.
fn identity_map(base: u64) -> Vec<u8> {
    const TABLE: u64 = 4096;
    let pml4 = [(base + TABLE) | PTE_PRESENT_WRITABLE].into_iter().chain([0; 511]);
    let pdpt = (0..4).map(|index| (base + (2 + index) * TABLE) | PTE_PRESENT_WRITABLE).chain([0; 508]);
    let directories =
        (0..4 * 512u64).map(|index| index << 21 | PTE_PRESENT_WRITABLE | PTE_ACCESSED_DIRTY | PDE_PAGE_SIZE);
    pml4.chain(pdpt).chain(directories).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let long = BootState::new(Protocol::Linux64, 0x100_0200);
        assert_eq!(long.cs.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(long.data.descriptor(), 0x00cf_9300_0000_ffff);
        let protected = BootState::new(Protocol::Pvh, 0x10_0000);
        assert_eq!(protected.cs.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(protected.tr.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn each_protocol_gets_the_registers_its_manual_names() {
        let linux = BootState::new(Protocol::Linux64, 0x100_0200);
        assert_eq!((linux.rip, linux.rsi), (0x100_0200, layout::ZERO_PAGE.0));
        assert_eq!((linux.cs.selector, linux.data.selector), (0x10, 0x18));
        assert_eq!(linux.efer, EFER_LME | EFER_LMA);
        let information = GuestPhys(0x9_0000);
        for (protocol, magic) in [
            (Protocol::Multiboot { information }, 0x2bad_b002),
            (Protocol::Multiboot2 { information }, 0x36d7_6289),
        ] {
            let state = BootState::new(protocol, 0x10_000c);
            assert_eq!((state.rax, state.rbx), (magic, information.0));
            assert_eq!((state.cr0 & (CR0_PG | CR0_PE), state.efer), (CR0_PE, 0));
        }
        let pvh = BootState::new(Protocol::Pvh, 0x10_0000);
        assert_eq!((pvh.rax, pvh.rbx), (0, layout::BOOT_INFO.0));
    }

    #[test]
    fn the_identity_map_maps_every_2_mib_page_below_4_gib_to_itself() {
        let state = BootState::new(Protocol::Linux64, 0);
        let (place, bytes) = state.tables().pop().unwrap();
        assert_eq!((place.0, bytes.len()), (state.cr3, 6 * 4096));
        let entry = |table: u64, index: u64| {
            u64_at(&bytes, usize::try_from(table - place.0 + index * 8).unwrap()).unwrap()
        };
        for address in (0..4u64 << 30).step_by(2 << 20) {
            let pdpt = entry(state.cr3, 0) & !0xfff;
            let directory = entry(pdpt, address >> 30) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & !0xfff, address);
            assert_eq!(page & 0xfff, 0xe3);
        }
        assert!(place.0 + bytes.len() as u64 <= layout::CMDLINE.0);
    }
}
