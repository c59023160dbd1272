//! Tables: what a step does next, for code that stands somewhere. Those with stretches of x86 code need a decoder: without
//! one what leads neither into a function nor out of one is stepped.

use super::*;
use crate::breakpoint::{Id, Kind, Place, Table, Witness};
use crate::fake::Ram;
use arch::paging::Regime;
use arch::paging::x86::Paging;

const CODE: u64 = 0x1000;
const STACK: u64 = 0x8000;

/// Code at `CODE`, and words at `STACK`.
struct Setting {
    isa: Isa,
    code: Vec<u8>,
    stack: Vec<u8>,
    link: u64,
}

impl Setting {
    fn x86(code: &[u8], returns_to: u64) -> Setting {
        let stack = returns_to.to_le_bytes().to_vec();
        Setting { isa: Isa::X86_64, code: code.to_vec(), stack, link: 0 }
    }

    fn aarch64(words: &[u32], link: u64) -> Setting {
        let code = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Setting { isa: Isa::Aarch64, code, stack: Vec::new(), link }
    }

    fn next(&self, walk: &mut Walk, pc: u64, stack: u64) -> Next {
        let read = |at: u64, bytes: &mut [u8]| {
            let (from, there) = if at >= STACK { (STACK, &self.stack) } else { (CODE, &self.code) };
            let from = at.checked_sub(from).and_then(|at| usize::try_from(at).ok());
            let there = from.and_then(|from| there.get(from..)).unwrap_or_default();
            let count = there.len().min(bytes.len());
            bytes[..count].copy_from_slice(&there[..count]);
            count
        };
        walk.next(&Seen {
            isa: self.isa,
            mode: OperatingMode::Bits64,
            pc,
            stack,
            link: self.link,
            read: &read,
        })
    }

    /// Where it stands after each part, with what stack pointer; what it does there.
    fn way(&self, mode: &Mode, stands: &[(u64, u64)]) -> Vec<Next> {
        let mut walk = Walk::new(mode).unwrap();
        stands.iter().map(|(pc, stack)| self.next(&mut walk, CODE + pc, *stack)).collect()
    }
}

fn run_to(at: u64, stack: u64, slack: u64) -> Next {
    Next::RunTo(Return { address: CODE + at, stack, slack })
}

fn range(start: u64, end: u64) -> Next {
    Next::Range(CODE + start..CODE + end)
}

#[test]
fn over_one_instruction() {
    // nop; call +0; ret
    let x86 = Setting::x86(&[0x90, 0xe8, 0, 0, 0, 0, 0xc3], 0);
    assert_eq!(x86.way(&Mode::StepOver, &[(0, STACK), (1, STACK)]), [Next::Step, Next::Done]);
    assert_eq!(x86.way(&Mode::StepOver, &[(1, STACK), (6, STACK)]), [run_to(6, STACK, 0), Next::Done]);
    // nop; bl .+8; svc #0; nop
    let aarch64 = Setting::aarch64(&[0xd503_201f, 0x9400_0002, 0xd400_0001, 0xd503_201f], 0);
    assert_eq!(aarch64.way(&Mode::StepOver, &[(0, STACK)]), [Next::Step]);
    assert_eq!(aarch64.way(&Mode::StepOver, &[(4, STACK), (8, STACK)]), [run_to(8, STACK, 0), Next::Done]);
    assert_eq!(aarch64.way(&Mode::StepOver, &[(8, STACK)]), [run_to(12, STACK, 0)]);
    // What is not there is stepped: the fault is the guest's.
    assert_eq!(aarch64.way(&Mode::StepOver, &[(0x700, STACK)]), [Next::Step]);
}

#[test]
#[cfg(feature = "disassembly")]
fn over_a_range_in_stretches_between_calls() {
    // nop; nop; call +0; nop; jmp -10; nop
    let code = [0x90, 0x90, 0xe8, 0, 0, 0, 0, 0x90, 0xeb, 0xf6, 0x90];
    let x86 = Setting::x86(&code, 0);
    let line = Mode::StepOverRange(CODE..CODE + 10);
    let way = x86.way(&line, &[(1, STACK), (2, STACK), (7, STACK), (0, STACK), (10, STACK)]);
    let expected = [range(0, 2), run_to(7, STACK, 0), range(7, 10), range(0, 2), Next::Done];
    assert_eq!(way, expected);
    // One that begins outside is one instruction.
    assert_eq!(x86.way(&line, &[(10, STACK), (11, STACK)]), [Next::Step, Next::Done]);
    // Between two instructions as they are from the range's begin on.
    assert_eq!(x86.way(&line, &[(3, STACK)]), [range(3, 5)]);
    // nop; bl; nop; b .-12
    let aarch64 = Setting::aarch64(&[0xd503_201f, 0x9400_0010, 0xd503_201f, 0x17ff_fffd], 0);
    let line = Mode::StepOverRange(CODE..CODE + 16);
    let way = aarch64.way(&line, &[(0, STACK), (4, STACK), (12, STACK), (16, STACK)]);
    assert_eq!(way, [range(0, 4), run_to(8, STACK, 0), range(8, 16), Next::Done]);
}

#[test]
fn out_of_a_function_from_its_first_instruction() {
    // call +1; nop; nop; ret
    let x86 = Setting::x86(&[0xe8, 1, 0, 0, 0, 0x90, 0x90, 0xc3], CODE + 5);
    assert_eq!(x86.way(&Mode::StepOut, &[(6, STACK), (5, STACK + 8)]), [run_to(5, STACK + 8, 0), Next::Done]);
    // From elsewhere in it the word on the stack is anything.
    assert_eq!(x86.way(&Mode::StepOut, &[(7, STACK)]), [range(7, 8)]);
    // bl .+8; nop; nop; ret
    let code = [0x9400_0002, 0xd503_201f, 0xd503_201f, 0xd65f_03c0];
    let aarch64 = Setting::aarch64(&code, CODE + 4);
    assert_eq!(aarch64.way(&Mode::StepOut, &[(8, STACK), (4, STACK)]), [run_to(4, STACK, 0), Next::Done]);
    assert_eq!(aarch64.way(&Mode::StepOut, &[(12, STACK)]), [range(12, 16)]);
    // And out of what its caller does there.
    let line = Mode::StepOutRange(CODE..CODE + 8);
    let way = aarch64.way(&line, &[(8, STACK), (4, STACK), (8, STACK)]);
    assert_eq!(way, [run_to(4, STACK, 0), range(4, 8), Next::Done]);
}

#[test]
#[cfg(feature = "disassembly")]
fn out_of_a_function_from_within() {
    // nop; call +0; jz +1; nop; ret; (a loop back to the first)
    let code = [0x90, 0xe8, 0, 0, 0, 0, 0x74, 1, 0x90, 0xc3];
    let x86 = Setting::x86(&code, 0);
    let way = x86.way(&Mode::StepOut, &[(0, STACK), (1, STACK), (6, STACK), (9, STACK), (0x100, STACK + 8)]);
    let expected = [range(0, 1), run_to(6, STACK, 0), range(6, 9), range(9, 10), Next::Done];
    assert_eq!(way, expected);
    // An indirect jump is followed.
    let jump = Setting::x86(&[0xff, 0xe0, 0x90, 0xc3], 0);
    let way = jump.way(&Mode::StepOut, &[(0, STACK), (2, STACK), (3, STACK), (0x100, STACK + 8)]);
    assert_eq!(way, [range(0, 2), range(2, 3), range(3, 4), Next::Done]);
    // nop; bl; cbnz; eret
    let code = [0xd503_201f, 0x9400_0010, 0xb5ff_ffe1, 0xd69f_03e0];
    let aarch64 = Setting::aarch64(&code, 0);
    let way = aarch64.way(&Mode::StepOut, &[(0, STACK), (4, STACK), (8, STACK), (12, STACK), (0x100, STACK)]);
    assert_eq!(way, [range(0, 4), run_to(8, STACK, 0), range(8, 12), range(12, 16), Next::Done]);
}

/// Linux leaves by way of a `RET` that is none (`arch/x86/lib/retpoline.S`).
#[test]
#[cfg(feature = "disassembly")]
fn returns_that_are_none() {
    // A jump: call +2; pause; mov [rsp], rax; ret; then the function that is jumped to: nop; ret
    let code = [0xe8, 2, 0, 0, 0, 0xf3, 0x90, 0x48, 0x89, 0x04, 0x24, 0xc3, 0x90, 0xc3];
    let jump = Setting::x86(&code, 0);
    let stands = [(0, STACK), (7, STACK - 8), (11, STACK - 8), (12, STACK), (13, STACK), (0x100, STACK + 8)];
    let way = jump.way(&Mode::StepOut, &stands);
    assert_eq!(way, [range(0, 5), range(7, 11), range(11, 12), range(12, 13), range(13, 14), Next::Done]);
    // A return: call +2; ud2; lea rsp, [rsp + 8]; ret
    let code = [0xe8, 2, 0, 0, 0, 0x0f, 0x0b, 0x48, 0x8d, 0x64, 0x24, 0x08, 0xc3];
    let back = Setting::x86(&code, 0);
    let way = back.way(&Mode::StepOut, &[(0, STACK), (7, STACK - 8), (12, STACK), (0x100, STACK + 8)]);
    assert_eq!(way, [range(0, 5), range(7, 12), range(12, 13), Next::Done]);
    // Such a call is no function to go over.
    assert_eq!(back.way(&Mode::StepOver, &[(0, STACK)]), [Next::Step]);
}

/// A vCPU that has come to a return's address.
struct Comer {
    isa: Isa,
    stack: u64,
    table: u64,
}

impl Witness for Comer {
    fn isa(&self) -> Isa {
        self.isa
    }

    fn register(&self, row: usize) -> Option<u64> {
        let name = if self.isa == Isa::X86_64 { "rsp" } else { "sp" };
        (arch::register::row(self.isa, name) == Some(row)).then_some(self.stack)
    }

    fn read(&self, _: Regime, _: GuestVirt, _: &mut [u8]) -> usize {
        0
    }

    fn regime(&self) -> Option<Regime> {
        Some(Regime::X86(Paging::new(1 << 31, self.table, 1 << 5, 1 << 10)))
    }
}

#[test]
fn whose_return_it_is() {
    let id = a_breakpoint();
    const USER: u64 = 0x40_0000;
    const KERNEL: u64 = 0xffff_8000_0000_0000;
    for isa in Isa::ALL {
        // As in 32-bit code.
        let slack = if isa == Isa::X86_64 { ARGUMENTS } else { 0 };
        for (address, is_this_alone, vcpu, stack, table, is_it) in [
            (USER, false, 0, STACK, 0x1000, true),
            // Of a recursion, or in an interrupt's handler.
            (USER, false, 0, STACK - 0x40, 0x1000, false),
            // On another stack.
            (USER, false, 0, STACK + 0x4000, 0x1000, false),
            (USER, false, 1, STACK + 0x4000, 0x1000, false),
            // The task goes on on another vCPU.
            (USER, false, 1, STACK, 0x1000, true),
            // Which may have a stack of the same address of its own.
            (USER, true, 1, STACK, 0x1000, false),
            (USER, true, 0, STACK, 0x1000, true),
            // Of another process; its number beside the table means nothing.
            (USER, false, 0, STACK, 0x2000, false),
            (USER, false, 0, STACK, 0x1007, true),
            // A kernel is the same in all of them.
            (KERNEL, false, 0, STACK, 0x2000, true),
        ] {
            let comer = Comer { isa, stack, table };
            let hit = Hit::new(id, 1, (vcpu, address), &comer);
            let before = Comer { isa, stack: STACK, table: 0x1000 };
            let table_before = before.regime().unwrap().table_of_process(GuestVirt(address));
            let to = Return { address, stack: STACK, slack };
            let returning = Returning { to, vcpu: 0, is_this_alone, table: table_before };
            assert_eq!(returning.is_it(&hit), is_it, "{isa} {address:#x} vCPU {vcpu} {stack:#x} {table:#x}");
        }
        let arguments = Comer { isa, stack: STACK + 16, table: 0x1000 };
        let to = Return { address: KERNEL, stack: STACK, slack };
        let returning = Returning { to, vcpu: 0, is_this_alone: false, table: None };
        assert_eq!(returning.is_it(&Hit::new(id, 1, (0, KERNEL), &arguments)), isa == Isa::X86_64);
    }
}

fn a_breakpoint() -> Id {
    let breakpoint = crate::breakpoint::Breakpoint::new(Kind::Hardware, GuestVirt(0), 1, Place::Register);
    let ram = Ram::new(0x10);
    Table::new(Isa::X86_64).insert(&ram, breakpoint).unwrap()
}
