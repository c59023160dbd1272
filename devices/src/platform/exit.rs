//! The exit device: a guest ends the run with a value.
//!
//! On x86 it is QEMU's isa-debug-exit at port 0xf4, which kernel test suites write to; on
//! aarch64 a 32-bit word of memory that the device tree names. The value `v` becomes the
//! exit code `(v << 1) | 1` ([`exit_code`]) on both, so a guest's codes are odd and the
//! monitor's own are even.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Resources};
use arch::Isa;
use arch::board::{Node, TreeEntry};

/// Ports, or bytes of memory: a word of 32 bits.
const SIZE: u64 = 4;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitDevice;

impl Fitted for ExitDevice {
    fn node(isa: Isa) -> Option<Node> {
        let node = Node::new("exit");
        Some(match isa {
            Isa::X86_64 => node.ports(0xf4, SIZE),
            Isa::Aarch64 => node
                .memory(0x0902_0000, SIZE)
                .tree(TreeEntry { compatible: &["vmm,exit-device"], ..TreeEntry::default() }),
        })
    }

    fn make(_: &Node, _: &mut dyn Resources) -> ExitDevice {
        ExitDevice
    }
}

impl Device for ExitDevice {
    fn name(&self) -> &'static str {
        "exit device"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        if offset != 0 {
            return None;
        }
        let mut word = [0; 4];
        let length = data.len().min(4);
        word[..length].copy_from_slice(&data[..length]);
        Some(End::Exit(u32::from_le_bytes(word)))
    }
}

/// The process's exit code for a value that the guest wrote: `(v << 1) | 1`, of which the
/// host keeps the low eight bits.
pub fn exit_code(value: u32) -> u8 {
    (value << 1 | 1).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_width_become_odd_codes() {
        let mut device = ExitDevice;
        assert_eq!(device.write(0, &[0x10]), Some(End::Exit(0x10)));
        assert_eq!(device.write(0, &[1, 0, 0, 0, 9, 9, 9, 9]), Some(End::Exit(1)));
        assert_eq!(device.write(1, &[1]), None);
        assert_eq!(device.write(0, &[]), Some(End::Exit(0)));
        for (value, code) in [(0, 1), (0x10, 0x21), (0x31, 0x63), (0x7f, 0xff), (0x80, 1)] {
            assert_eq!(exit_code(value), code);
        }
    }
}
