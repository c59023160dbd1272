//! The CPUID leaves by which an x86 guest finds Xen (Xen, `xen/include/public/arch-x86/cpuid.h`).

/// The first leaf: above KVM's own, on one of the multiples of 0x100 that guests look at.
pub const BASE: u32 = 0x4000_0100;
/// The MSR that the address of the hypercall page is written to.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;
/// The version that guests are told: 4.20.
pub const VERSION: u32 = 4 << 16 | 20;

/// A leaf, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Number.
    pub number: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// The leaves of a vCPU.
pub fn leaves(vcpu: u32) -> [Leaf; 5] {
    const VCPU_ID_PRESENT: u32 = 1 << 3;
    const UPCALL_VECTOR: u32 = 1 << 6;
    let word = |at: usize| {
        let name = b"XenVMMXenVMM";
        u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
    };
    let leaf = |offset, registers| Leaf { number: BASE + offset, registers };
    [
        leaf(0, [BASE + 4, word(0), word(4), word(8)]),
        leaf(1, [VERSION, 0, 0, 0]),
        // One page, its MSR.
        leaf(2, [1, HYPERCALL_MSR, 0, 0]),
        // Nothing is told of time.
        leaf(3, [0; 4]),
        leaf(4, [VCPU_ID_PRESENT | UPCALL_VECTOR, vcpu, 0, 0]),
    ]
}

/// Bytes of an entry of the hypercall page.
pub const ENTRY: usize = 32;

/// The hypercall page for a monitor that is reached by a write to an I/O port: entry `n` puts `n`
/// into EAX, writes AL to the port, and returns, all other registers kept.
pub fn page(port: u8) -> Vec<u8> {
    let mut page = Vec::with_capacity(4096);
    for (number, end) in (0u32..).zip((ENTRY..=4096).step_by(ENTRY)) {
        let [a, b, c, d] = number.to_le_bytes();
        // mov eax, n; out imm8, al; ret; int3 to the end.
        let code = [0xb8, a, b, c, d, 0xe6, port, 0xc3];
        page.extend(code);
        page.resize(end, 0xcc);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_finds_the_name() {
        let [first, ..] = leaves(3);
        let name: Vec<u8> = first.registers[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!((first.number, name.as_slice()), (0x4000_0100, &b"XenVMMXenVMM"[..]));
        assert_eq!(leaves(3)[4].registers[1], 3);
    }

    #[test]
    fn entries_of_the_page() {
        let page = page(0xed);
        assert_eq!(page.len(), 4096);
        assert_eq!(page[32 * 17..][..9], [0xb8, 17, 0, 0, 0, 0xe6, 0xed, 0xc3, 0xcc]);
    }
}
