//! The physical memory map of an aarch64 guest: devices below 1 GiB, RAM from there on. Where a device is, it says
//! itself ([`crate::board`]).

use crate::address::{GuestPhys, PhysRange};

/// GIC distributor (version 2 or 3), 64 KiB.
pub const GIC_DISTRIBUTOR: PhysRange = PhysRange::new(0x0800_0000, 0x1_0000);
/// GICv2 CPU interface, 64 KiB (its registers take 8 KiB of them).
pub const GIC_CPU_INTERFACE: PhysRange = PhysRange::new(0x0801_0000, 0x1_0000);
/// First GICv3 redistributor.
pub const GIC_REDISTRIBUTORS: GuestPhys = GuestPhys(0x080a_0000);
/// Size of one redistributor's two frames, bytes (GICv3 specification, IHI 0069, 12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// GICv3's interrupt translation service, by which messages arrive: two frames of 64 KiB (the same, 12.18).
pub const GIC_ITS: PhysRange = PhysRange::new(0x0808_0000, 0x2_0000);
/// As many redistributors as fit below the devices.
pub const MAX_VCPUS: u32 = 123;
/// GICv2 has eight CPU interfaces (GIC architecture 2.0, IHI 0048, 2.1).
pub const GICV2_MAX_VCPUS: u32 = 8;

/// Where devices have their registers.
pub const DEVICES: PhysRange = PhysRange::new(0x0900_0000, 0x0700_0000);

/// Where PCI functions may have registers below 4 GiB.
pub const PCI_WINDOW: PhysRange = PhysRange::new(0x1000_0000, 0x2eff_0000);
/// Configuration spaces of PCI's bus 0.
pub const PCI_ECAM: PhysRange = PhysRange::new(0x3f00_0000, 1 << 20);

/// Devices on PCI's bus 0, and the first of the interrupts that they have by lines where nobody takes messages: an SPI
/// for each device.
pub const PCI_DEVICES: u32 = 32;
/// See there.
pub const PCI_FIRST_SPI: u32 = 16;

/// Where PCI functions may have registers behind the RAM of a guest with `memory` bytes: 4 GiB, within the 36 bits that
/// most processors' addresses have.
pub fn pci_high_window(memory: u64) -> Option<PhysRange> {
    const SIZE: u64 = 4 << 30;
    const END: u64 = 1 << 36;
    let start = RAM_START.0.checked_add(memory)?.checked_next_multiple_of(SIZE)?;
    (start.checked_add(SIZE)? <= END).then_some(PhysRange::new(start, SIZE))
}

/// Interrupt ids that the GIC is created with, SGIs and PPIs included: a multiple of 32.
pub const GIC_INTERRUPTS: u32 = 96;

/// Private peripheral interrupts of the architected timer: secure physical, physical,
/// virtual, hypervisor (Arm Base System Architecture, "PPI assignments").
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The performance monitors' private peripheral interrupt (the same, "PPI assignments").
pub const PMU_PPI: u32 = 7;

/// Where RAM begins.
pub const RAM_START: GuestPhys = GuestPhys(0x4000_0000);
/// The largest device tree, bytes (booting.rst, section 2).
pub const DEVICE_TREE_SIZE: u64 = 2 << 20;
/// Where an `Image` is loaded, but for its own offset: kernels before Linux 4.6 need the start of RAM near.
pub const IMAGE_BASE: GuestPhys = GuestPhys(RAM_START.0 + (2 << 20));
/// The smallest memory a guest can have, bytes.
pub const MINIMUM_MEMORY: u64 = 4 << 20;
/// Longest command line that arm64 Linux keeps (`COMMAND_LINE_SIZE`), its zero included.
pub const CMDLINE_SIZE: u64 = 2048;

/// Where the RAM of a guest with `memory` bytes lies.
pub fn ram(memory: u64) -> Vec<PhysRange> {
    vec![PhysRange::new(RAM_START.0, memory)]
}

/// Width in bits of the guest-physical addresses that `memory` bytes of RAM need.
pub fn address_bits(memory: u64) -> u32 {
    let last = RAM_START.0.saturating_add(memory).saturating_sub(1);
    u64::BITS - last.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redistributors_end_below_the_devices() {
        let end = GIC_REDISTRIBUTORS.0 + u64::from(MAX_VCPUS) * GIC_REDISTRIBUTOR_SIZE;
        assert!(end <= DEVICES.start.0);
        assert!(end + GIC_REDISTRIBUTOR_SIZE > DEVICES.start.0 && DEVICES.end() <= RAM_START);
    }

    #[test]
    fn address_width_follows_the_last_byte_of_ram() {
        assert_eq!(address_bits(1 << 30), 31);
        assert_eq!(address_bits((1 << 40) - RAM_START.0), 40);
        assert_eq!(address_bits(1 << 40), 41);
    }
}
