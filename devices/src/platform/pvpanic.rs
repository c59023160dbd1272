//! The device by which a guest's kernel says that it has panicked.
//!
//! It is QEMU's: a byte, at port 0x505 on x86 (ACPI `QEMU0001`), in memory on aarch64 (`compatible`
//! `qemu,pvpanic-mmio`). A read tells which events it takes, a write tells of one. Linux's driver
//! (`drivers/misc/pvpanic`) writes from its panic notifier. Source: QEMU, `docs/specs/pvpanic.rst`.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use crate::tell;
use arch::Isa;
use arch::board::{AcpiDevice, AcpiEntry, Node, TreeEntry};

/// The guest has panicked.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked, and a kernel that writes a dump takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pvpanic;

impl Fitted for Pvpanic {
    fn node(isa: Isa) -> Option<Node> {
        Some(match isa {
            Isa::X86_64 => Node::new("pvpanic").ports(0x505, 1).acpi(AcpiEntry::Device(AcpiDevice {
                name: "PEVT",
                hid: "QEMU0001",
                uid: None,
                // As QEMU has it: there, enabled, shown and working (ACPI 6.5, 6.3.7 "_STA").
                status: Some(0xf),
            })),
            Isa::Aarch64 => Node::new("pvpanic-mmio")
                .memory(0x0903_0000, 2)
                .tree(TreeEntry { compatible: &["qemu,pvpanic-mmio"], ..TreeEntry::default() }),
        })
    }

    fn make(_: &Node, _: &mut dyn Resources) -> Pvpanic {
        Pvpanic
    }
}

impl Device for Pvpanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        let events = data.first().copied().filter(|_| offset == 0).unwrap_or(0);
        if events & PANICKED != 0 {
            return Some(End::Crash);
        }
        if events & CRASH_LOADED != 0 {
            tell!(Warn, "the guest has panicked, and its own crash kernel takes over");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_crash_and_nothing_else_is() {
        let mut device = Pvpanic;
        let mut byte = [0xff];
        device.read(0, &mut byte);
        assert_eq!(byte, [3]);
        assert_eq!(device.write(0, &[PANICKED]), Some(End::Crash));
        assert_eq!(device.write(0, &[3, 0, 0, 0]), Some(End::Crash));
        assert_eq!(device.write(0, &[CRASH_LOADED]), None);
        assert_eq!((device.write(1, &[PANICKED]), device.write(0, &[])), (None, None));
    }
}
