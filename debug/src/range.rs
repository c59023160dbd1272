//! Running through a range of instructions instead of stepping each.
//!
//! gdb's `next` and `step` ask for a range step: go on until the program counter leaves a source
//! line. A loop of a million turns is a million steps then, each an exit from the guest. But
//! where a line can be left is known from its instructions: the addresses that direct branches
//! lead to, the one behind the end, and the instructions that go somewhere else (returns,
//! indirect branches, system calls), which are few. With a debug register on each of these the
//! line runs at full speed until it is left.
//!
//! Without the feature `disassembly` no range of x86 is understood, and each is stepped.
//!
//! Where instructions lead is known from [`flow`](crate::flow).

use crate::disassemble::OperatingMode;
use crate::flow::{Flow, Instruction, instruction};
use arch::Isa;
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of a range that is looked at; a longer one is stepped.
pub const LONGEST: u64 = 4096;

/// Where the instructions of `range` can leave it: addresses outside, and addresses inside of
/// instructions that lead elsewhere. `code` are the bytes of the range. `None` when they are
/// not all understood, or when there are more than `most`.
pub fn exits(
    isa: Isa,
    mode: OperatingMode,
    range: &Range<u64>,
    code: &[u8],
    most: usize,
) -> Option<Vec<u64>> {
    // Segments of 16-bit code are not looked at.
    if mode == OperatingMode::Real16 {
        return None;
    }
    let mut exits = BTreeSet::new();
    let mut at = range.start;
    while at < range.end {
        let bytes = code.get(usize::try_from(at - range.start).ok()?..)?;
        let Instruction { length, flow } = instruction(isa, mode, bytes, at)?;
        let next = at.wrapping_add(length);
        match flow {
            Flow::Next => exits.extend(outside(range, next)),
            Flow::Jump(target) | Flow::Call(Some(target)) => exits.extend(outside(range, target)),
            Flow::Branch(target) => {
                exits.extend(outside(range, target));
                exits.extend(outside(range, next));
            }
            Flow::Call(None) | Flow::Service | Flow::Return | Flow::ExceptionReturn | Flow::Elsewhere => {
                exits.insert(at);
            }
        }
        if exits.len() > most {
            return None;
        }
        at = next;
    }
    // A range that does not end with an instruction is not the line that it is taken for.
    (at == range.end && !exits.is_empty()).then(|| exits.into_iter().collect())
}

fn outside(range: &Range<u64>, target: u64) -> Option<u64> {
    (!range.contains(&target)).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x86_exits(code: &[u8], most: usize) -> Option<Vec<u64>> {
        let range = 0x1000..0x1000 + code.len() as u64;
        exits(Isa::X86_64, OperatingMode::Bits64, &range, code, most)
    }

    #[cfg(feature = "disassembly")]
    #[test]
    fn a_loop_is_left_behind_its_end() {
        // add eax, 1; cmp eax, ecx; jb .-7
        assert_eq!(x86_exits(&[0x83, 0xc0, 1, 0x39, 0xc8, 0x72, 0xf9], 4), Some(vec![0x1007]));
        // jmp . is never left.
        assert_eq!(x86_exits(&[0xeb, 0xfe], 4), None);
    }

    #[cfg(feature = "disassembly")]
    #[test]
    fn calls_returns_and_branches_out() {
        // test; jz +0x10; call +0x20; ret
        let code = [0x85, 0xc0, 0x74, 0x10, 0xe8, 0x20, 0, 0, 0, 0xc3];
        assert_eq!(x86_exits(&code, 4), Some(vec![0x1009, 0x1014, 0x1029]));
        assert_eq!(x86_exits(&code, 2), None);
        // call [rax]; syscall; int3
        assert_eq!(x86_exits(&[0xff, 0x10, 0x0f, 0x05, 0xcc], 4), Some(vec![0x1000, 0x1002, 0x1004]));
    }

    #[test]
    fn what_is_not_understood_is_stepped() {
        assert_eq!(x86_exits(&[0x0f, 0xff], 4), None);
        // A range that ends within an instruction.
        assert_eq!(x86_exits(&[0x90, 0xe8, 0], 4), None);
        assert_eq!(x86_exits(&[], 4), None);
        assert_eq!(exits(Isa::X86_64, OperatingMode::Real16, &(0..1), &[0x90], 4), None);
    }

    #[test]
    fn aarch64() {
        // add x0, x0, #1; cbnz x1, .-4; b.eq .+0x40; ret
        let words = [0x9100_0400u32, 0xb5ff_ffe1, 0x5400_0200, 0xd65f_03c0];
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let exits = exits(Isa::Aarch64, OperatingMode::Bits64, &(0x1000..0x1010), &code, 6);
        assert_eq!(exits, Some(vec![0x100c, 0x1048]));
    }
}
