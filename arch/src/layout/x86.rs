//! The physical memory map of an x86 guest: RAM, the hole below 4 GiB, and fixed tables in low
//! memory. Where a device is, it says itself ([`crate::board`]).

use crate::address::{GuestPhys, PhysRange};

/// RAM stops here and goes on at [`HOLE_END`]: the local APIC, I/O APIC and any MMIO device
/// lie in between.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole, guest-physical.
pub const HOLE_END: u64 = 1 << 32;
/// The smallest memory a guest can have: the fixed tables below and a little for itself.
pub const MINIMUM_MEMORY: u64 = 2 << 20;

/// The GDT a guest starts with.
pub const GDT: GuestPhys = GuestPhys(0x500);
/// The IDT a guest starts with: empty, so an early fault is a triple fault.
pub const IDT: GuestPhys = GuestPhys(0x520);
/// PVH start info and its tables, 4 KiB.
pub const BOOT_INFO: GuestPhys = GuestPhys(0x6000);
/// Linux boot parameters, 4 KiB.
pub const ZERO_PAGE: GuestPhys = GuestPhys(0x7000);
/// Initial stack pointer; the stack grows down to the zero page's end.
pub const BOOT_STACK: GuestPhys = GuestPhys(0x8ff0);
/// Page tables that map the first 4 GiB to themselves: one PML4, one PDPT, four directories.
pub const PAGE_TABLES: GuestPhys = GuestPhys(0x9000);
/// The `setup_data` that the boot parameters lead to ([`crate::x86::zero_page::setup_data`]). Linux takes its place out
/// of the RAM around it, and kexec gives a crash kernel the RAM below 640 KiB up to the first such hole: it is in the
/// last page.
pub const SETUP_DATA: GuestPhys = GuestPhys(0x9_f000);
/// The command line, up to [`CMDLINE_SIZE`] bytes with its final zero.
pub const CMDLINE: GuestPhys = GuestPhys(0x2_0000);
/// Room for the command line, bytes.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// Where the Multiboot information goes, at the end of it, unless the kernel lies there.
pub const MULTIBOOT_INFO: PhysRange = PhysRange::new(0x1000, LOW_MEMORY_END - 0x1000);
/// Where usable low memory ends; the extended BIOS data area would begin here.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first: a place where guests that scan for it look.
pub const ACPI_TABLES: GuestPhys = GuestPhys(0xe_0000);
/// Room for the ACPI tables, bytes.
pub const ACPI_TABLES_SIZE: u64 = 0x1_f000;
/// The last page below 1 MiB, with the reset vector ([`crate::x86::reset_vector`]).
pub const FIRMWARE: PhysRange = PhysRange::new(0xf_f000, 0x1000);
/// Where kernels begin.
pub const HIGH_MEMORY: GuestPhys = GuestPhys(0x10_0000);

/// Local APICs (Intel SDM vol. 3, "Relocating the Local APIC Registers").
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// The I/O APIC that KVM emulates.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Three pages that KVM on Intel hosts needs for real mode, and one for its identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The identity-map page, below [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Configuration spaces of PCI's bus 0.
pub const PCI_ECAM: PhysRange = PhysRange::new(0xe000_0000, 1 << 20);
/// Where PCI functions may have registers below 4 GiB.
pub const PCI_WINDOW: PhysRange = PhysRange::new(0xd000_0000, 0x1000_0000);

/// Where PCI functions may have registers behind the RAM of a guest with `memory` bytes: 4 GiB, within the 36 bits that
/// every processor's addresses have.
pub fn pci_high_window(memory: u64) -> Option<PhysRange> {
    const SIZE: u64 = 4 << 30;
    const END: u64 = 1 << 36;
    let behind = ram(memory).last().map_or(HOLE_END, |range| range.end().0).max(HOLE_END);
    let start = behind.checked_next_multiple_of(SIZE)?;
    (start.checked_add(SIZE)? <= END).then_some(PhysRange::new(start, SIZE))
}

/// Where devices may have registers in memory...
pub const DEVICES: PhysRange = PhysRange::new(HOLE_START, HOLE_END - HOLE_START);
/// ...but for what is KVM's.
pub const DEVICES_OF_KVM: [PhysRange; 4] = [
    PhysRange::new(IO_APIC, 0x1000),
    PhysRange::new(LOCAL_APIC, 0x1000),
    PhysRange::new(KVM_IDENTITY_MAP, 0x1000),
    PhysRange::new(KVM_TSS, 0x3000),
];

/// Where the RAM of a guest with `memory` bytes lies.
pub fn ram(memory: u64) -> Vec<PhysRange> {
    if memory <= HOLE_START {
        vec![PhysRange::new(0, memory)]
    } else {
        vec![PhysRange::new(0, HOLE_START), PhysRange::new(HOLE_END, memory - HOLE_START)]
    }
}

/// Kind of a memory range as firmware tells it (ACPI 6.5, table 15.7: Address Range Types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Free for the guest to use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables, free once they have been read.
    Acpi = 3,
}

/// One entry of the memory map a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// The range.
    pub range: PhysRange,
    /// What it is.
    pub kind: MemoryKind,
}

/// The memory map for a guest with `memory` bytes of RAM, in ascending order.
pub fn memory_map(memory: u64) -> Vec<MemoryMapEntry> {
    let entry = |start, size, kind| MemoryMapEntry { range: PhysRange::new(start, size), kind };
    let mut map = vec![
        entry(0, LOW_MEMORY_END, MemoryKind::Ram),
        entry(LOW_MEMORY_END, 0xa_0000 - LOW_MEMORY_END, MemoryKind::Reserved),
        entry(ACPI_TABLES.0, ACPI_TABLES_SIZE, MemoryKind::Acpi),
        MemoryMapEntry { range: FIRMWARE, kind: MemoryKind::Reserved },
    ];
    for range in ram(memory) {
        if range.start.0 == 0 {
            map.push(entry(HIGH_MEMORY.0, range.size - HIGH_MEMORY.0, MemoryKind::Ram));
        } else {
            map.push(MemoryMapEntry { range, kind: MemoryKind::Ram });
        }
    }
    map
}

/// The vCPUs that a guest may have: xAPIC identifiers are eight bits and 255 is broadcast; more would need x2APIC
/// entries.
pub const MAX_VCPUS: u32 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram(512 << 20), [PhysRange::new(0, 512 << 20)]);
        assert_eq!(ram(3 << 30), [PhysRange::new(0, 3 << 30)]);
        assert_eq!(ram(6 << 30), [PhysRange::new(0, 3 << 30), PhysRange::new(4 << 30, 3 << 30)]);
        assert_eq!(ram((3 << 30) + 4096), [PhysRange::new(0, 3 << 30), PhysRange::new(4 << 30, 4096)]);
    }

    #[test]
    fn the_memory_map_is_sorted_and_does_not_overlap() {
        for memory in [MINIMUM_MEMORY, 512 << 20, 3 << 30, 6 << 30] {
            let map = memory_map(memory);
            for pair in map.windows(2) {
                assert!(pair[0].range.end() <= pair[1].range.start, "{pair:?}");
            }
            let ram: u64 = map.iter().filter(|e| e.kind == MemoryKind::Ram).map(|e| e.range.size).sum();
            // All but the legacy region from 639 KiB to 1 MiB is usable.
            assert_eq!(ram, memory - (HIGH_MEMORY.0 - LOW_MEMORY_END));
        }
    }
}
