//! What of a BIOS's data kernels look at without asking a BIOS.
//!
//! Xen and Linux put the code that other processors start with below the extended data area, and take its place
//! or the size of base memory from here; small kernels take the serial port from here. Source: IBM PS/2 and PC
//! BIOS Interface Technical Reference, "BIOS Data Area".

use super::layout;
use crate::GuestPhys;
use crate::board::{Board, RegisterSpace};

/// The area, at 0x40 in segments.
const AREA: GuestPhys = GuestPhys(0x400);
const COM1: usize = 0x00;
/// Segment of the extended data area.
const EXTENDED_AREA: usize = 0x0e;
/// Base memory, KiB.
const MEMORY_SIZE: usize = 0x13;
const SIZE: usize = 0x15;

/// The area of a machine and the extended one, of which there is its size only: places and bytes.
pub fn areas(board: &Board) -> [(GuestPhys, Vec<u8>); 2] {
    let mut area = vec![0; SIZE];
    let word = |value: u64| u16::try_from(value).unwrap_or(0).to_le_bytes();
    let console = board.console().and_then(|node| node.registers.first());
    // 0 where there is none.
    let port = console.filter(|there| there.space == RegisterSpace::Ports).map_or(0, |there| there.start);
    area[COM1..COM1 + 2].copy_from_slice(&word(port));
    area[EXTENDED_AREA..EXTENDED_AREA + 2].copy_from_slice(&word(layout::LOW_MEMORY_END >> 4));
    area[MEMORY_SIZE..MEMORY_SIZE + 2].copy_from_slice(&word(layout::LOW_MEMORY_END >> 10));
    // In KiB.
    [(AREA, area), (GuestPhys(layout::LOW_MEMORY_END), vec![1])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::board::Node;
    use crate::bytes::u16_at;

    #[test]
    fn words_stand_where_a_bios_has_them() {
        let mut board = Board::new(Isa::X86_64);
        assert_eq!(u16_at(&areas(&board)[0].1, 0), Some(0));
        board.add(Node::new("serial").ports(0x3f8, 8).console()).unwrap();
        let [(place, area), (extended, _)] = areas(&board);
        assert_eq!((place.0, u16_at(&area, 0)), (0x400, Some(0x3f8)));
        let segment = u64::from(u16_at(&area, 0x0e).unwrap());
        assert_eq!((segment << 4, u16_at(&area, 0x13)), (extended.0, Some(639)));
        assert!(place.0 + area.len() as u64 <= layout::GDT.0);
    }
}
