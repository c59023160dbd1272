//! The code at the reset vector, all the firmware that an x86 guest has.
//!
//! Linux on hardware-reduced ACPI without EFI does not use the reset register that the FADT
//! names: it chooses EFI's reset, finds no EFI, goes back to real mode and jumps to the
//! reset vector (`arch/x86/kernel/reboot.c`, `reboot_init` and `machine_real_restart`). What
//! it finds there writes the reset register for it.

use crate::GuestPhys;
use crate::board::acpi::RESET_VALUE;
use crate::board::{Board, FixedRegister, RegisterSpace};

/// FFFF:0000, where a jump to the firmware goes (Intel SDM vol. 3, "First Instruction
/// Executed": the same code just below 1 MiB).
pub const ADDRESS: GuestPhys = GuestPhys(0xf_fff0);

/// Where a processor begins after INIT (Intel SDM vol. 3, "First Instruction Executed"), linear. On this machine
/// nothing is there.
pub const AFTER_INIT: u64 = 0xffff_fff0;

/// The code, 16-bit; `None` on a board without a reset register among its ports.
pub fn code(board: &Board) -> Option<[u8; 9]> {
    let register = board.fixed(FixedRegister::Reset).filter(|there| there.space == RegisterSpace::Ports)?;
    let [port_low, port_high] = u16::try_from(register.start).ok()?.to_le_bytes();
    Some([
        0xb0,
        RESET_VALUE, // mov al, value
        0xba,
        port_low,
        port_high, // mov dx, port
        0xee,      // out dx, al
        0xf4,      // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::board::{AcpiEntry, Node};
    use crate::x86::layout;

    #[test]
    fn the_code_fits_below_1_mib() {
        let mut board = Board::new(Isa::X86_64);
        assert_eq!(code(&board), None);
        let entry = AcpiEntry::Fixed(&[(FixedRegister::Reset, 2)]);
        board.add(Node::new("power").ports(0x600, 3).acpi(entry)).unwrap();
        let code = code(&board).unwrap();
        assert!(layout::FIRMWARE.contains(ADDRESS, code.len() as u64));
        assert_eq!(code[2..5], [0xba, 0x02, 0x06]);
    }
}
