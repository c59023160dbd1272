//! How hypercalls pass their arguments: registers and sizes, on each architecture.
//!
//! What a call means is defined by the hypervisor alone and is no part of this.

use crate::Isa;
use crate::register::row;

/// The binary interface of a caller: which registers it uses, and how wide its words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// x86 in 64-bit mode.
    X86_64,
    /// x86 in 32-bit mode, protected mode or compatibility mode.
    X86_32,
    /// AArch64.
    Aarch64,
}

impl Abi {
    /// All of them.
    pub const ALL: [Abi; 3] = [Abi::X86_64, Abi::X86_32, Abi::Aarch64];

    /// The architecture.
    pub const fn isa(self) -> Isa {
        match self {
            Abi::X86_64 | Abi::X86_32 => Isa::X86_64,
            Abi::Aarch64 => Isa::Aarch64,
        }
    }

    /// Bytes of a word and of a pointer.
    pub const fn word(self) -> usize {
        match self {
            Abi::X86_64 | Abi::Aarch64 => 8,
            Abi::X86_32 => 4,
        }
    }

    /// Alignment of a 64-bit integer in a structure, bytes (System V ABI i386, "Fundamental
    /// Types").
    pub const fn alignment_of_u64(self) -> usize {
        self.word()
    }

    /// A register's value as this caller means it.
    pub const fn cut(self, value: u64) -> u64 {
        match self {
            Abi::X86_64 | Abi::Aarch64 => value,
            Abi::X86_32 => value & 0xffff_ffff,
        }
    }
}

/// Registers of a family's calls, by their names in the register table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    /// The call's number.
    pub number: &'static str,
    /// Its arguments, in order.
    pub arguments: &'static [&'static str],
    /// Where the result goes.
    pub result: &'static str,
}

/// Xen's (Xen, `xen/include/public/arch-x86/xen-x86_64.h`, `xen-x86_32.h` and
/// `arch-arm.h`).
pub const fn xen(abi: Abi) -> Convention {
    match abi {
        Abi::X86_64 => {
            Convention { number: "rax", arguments: &["rdi", "rsi", "rdx", "r10", "r8", "r9"], result: "rax" }
        }
        Abi::X86_32 => Convention {
            number: "rax",
            arguments: &["rbx", "rcx", "rdx", "rsi", "rdi", "rbp"],
            result: "rax",
        },
        Abi::Aarch64 => {
            Convention { number: "x16", arguments: &["x0", "x1", "x2", "x3", "x4"], result: "x0" }
        }
    }
}

/// KVM's (Linux, `Documentation/virt/kvm/x86/hypercalls.rst`; on Arm they are SMCCC calls).
pub const fn kvm(abi: Abi) -> Convention {
    match abi {
        Abi::X86_64 | Abi::X86_32 => {
            Convention { number: "rax", arguments: &["rbx", "rcx", "rdx", "rsi"], result: "rax" }
        }
        Abi::Aarch64 => {
            Convention { number: "x0", arguments: &["x1", "x2", "x3", "x4", "x5", "x6"], result: "x0" }
        }
    }
}

impl Convention {
    /// The same by rows of the register table, for whoever looks often. A name that is not in the
    /// table, which the tests would find, is left out.
    pub fn rows(&self, isa: Isa) -> Rows {
        let row = |name: &str| row(isa, name);
        Rows {
            number: row(self.number).unwrap_or(0),
            arguments: self.arguments.iter().filter_map(|name| row(name)).collect(),
            result: row(self.result).unwrap_or(0),
        }
    }
}

/// A [`Convention`] by rows of the register table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The call's number.
    pub number: usize,
    /// Its arguments, in order.
    pub arguments: Vec<usize>,
    /// Where the result goes.
    pub result: usize,
}

/// The immediate of Xen's `HVC` (Xen, `arch-arm.h`: `XEN_HYPERCALL_TAG`).
pub const XEN_HVC: u16 = 0xea1;

/// The immediate of the `HVC` instruction, if it is one (Arm ARM (DDI 0487), "HVC").
pub const fn hvc_immediate(instruction: u32) -> Option<u16> {
    if instruction & 0xffe0_001f == 0xd400_0002 { Some((instruction >> 5 & 0xffff) as u16) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_in_the_tables() {
        for abi in Abi::ALL {
            for convention in [xen(abi), kvm(abi)] {
                let names = [convention.number, convention.result];
                for name in convention.arguments.iter().chain(&names) {
                    assert!(row(abi.isa(), name).is_some(), "{abi:?} {name}");
                }
                assert_eq!(convention.rows(abi.isa()).arguments.len(), convention.arguments.len());
            }
        }
    }

    #[test]
    fn hvc() {
        assert_eq!(hvc_immediate(0xd400_0002 | 0xea1 << 5), Some(XEN_HVC));
        assert_eq!(hvc_immediate(0xd400_0002), Some(0));
        // SVC and SMC.
        assert_eq!(hvc_immediate(0xd400_0001), None);
        assert_eq!(hvc_immediate(0xd400_0003), None);
    }
}
