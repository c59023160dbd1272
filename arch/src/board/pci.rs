//! Where a machine's PCI bus is, as its firmware tells it.

use crate::Isa;
use crate::address::PhysRange;
use crate::layout;

/// Bus 0 of segment 0, which has all functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// The configuration spaces: 4 KiB for each function.
    pub ecam: PhysRange,
    /// Where functions' registers may be, below 4 GiB.
    pub low: PhysRange,
    /// The same behind RAM, if there is room.
    pub high: Option<PhysRange>,
}

impl PciHost {
    /// That of a machine with so many bytes of memory.
    pub fn new(isa: Isa, memory: u64) -> PciHost {
        match isa {
            Isa::X86_64 => PciHost {
                ecam: layout::x86::PCI_ECAM,
                low: layout::x86::PCI_WINDOW,
                high: layout::x86::pci_high_window(memory),
            },
            Isa::Aarch64 => PciHost {
                ecam: layout::aarch64::PCI_ECAM,
                low: layout::aarch64::PCI_WINDOW,
                high: layout::aarch64::pci_high_window(memory),
            },
        }
    }

    /// The line of a device by its number on the bus, where nobody takes messages (aarch64: an SPI); `None` where it has
    /// none.
    pub fn line(isa: Isa, device: u32) -> Option<u32> {
        let is_there = isa == Isa::Aarch64 && device < layout::aarch64::PCI_DEVICES;
        is_there.then_some(layout::aarch64::PCI_FIRST_SPI + device)
    }

    /// All windows.
    pub fn windows(&self) -> impl Iterator<Item = PhysRange> {
        std::iter::once(self.low).chain(self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_line_of_the_controllers() {
        let lines: Vec<u32> = (0..40).filter_map(|device| PciHost::line(Isa::Aarch64, device)).collect();
        assert_eq!(lines.len(), 32);
        // SPIs begin behind 32 private interrupts.
        assert!(lines.iter().all(|line| (2..layout::aarch64::GIC_INTERRUPTS - 32).contains(line)));
        assert_eq!(PciHost::line(Isa::X86_64, 1), None);
    }

    #[test]
    fn nothing_meets_ram_or_anything_else() {
        for isa in Isa::ALL {
            for memory in [512 << 20, 3 << 30, 6 << 30, 40 << 30, 1 << 40] {
                let host = PciHost::new(isa, memory);
                let ram = match isa {
                    Isa::X86_64 => layout::x86::ram(memory),
                    Isa::Aarch64 => layout::aarch64::ram(memory),
                };
                let all: Vec<PhysRange> = ram.into_iter().chain([host.ecam]).chain(host.windows()).collect();
                for (index, one) in all.iter().enumerate() {
                    for other in &all[index + 1..] {
                        assert!(
                            one.end() <= other.start || other.end() <= one.start,
                            "{isa} {one:x?} {other:x?}"
                        );
                    }
                }
                assert_eq!(host.ecam.size, 1 << 20);
                assert!(host.low.end().0 <= 1 << 32);
            }
        }
    }
}
