//! Frames by call frame information: what a compiler says, for each instruction, of where the caller's stack pointer is and
//! where its registers were saved. It is in files alone; who reads one answers with a [`Row`].
//!
//! Sources: DWARF 5, section 6.4 ("Call Frame Information"); System V ABI, AMD64, figure 3.36 ("DWARF Register Number
//! Mapping"); DWARF for the Arm 64-bit Architecture (AADWARF64), "DWARF register names".

use super::{Next, StackEnd, Start};
use crate::reader::{NotThere, Reader};
use arch::Isa;

/// Where a register of the caller's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Where it is, unchanged.
    Same,
    /// It is lost; of where the caller goes on, that there is none.
    Lost,
    /// In memory, so many bytes behind the frame's address.
    Saved(i64),
    /// So many bytes behind the frame's address.
    Address(i64),
    /// In this register.
    Register(u16),
}

/// What is known at one instruction. Registers have DWARF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The frame's address (CFA), which the caller's stack pointer is: a register, and so many bytes behind it.
    pub frame: (u16, i64),
    /// Where the caller goes on.
    pub pc: Rule,
    /// The caller's frame pointer.
    pub fp: Rule,
}

/// What a file says of an address; `None` where it says nothing that can be followed.
pub type CallFrames<'a> = dyn Fn(u64) -> Option<Row> + 'a;

/// No file says anything.
pub fn none(_: u64) -> Option<Row> {
    None
}

/// DWARF's number of the frame pointer, and of the register that has where a function returns to.
pub fn registers(isa: Isa) -> (u16, u16) {
    match isa {
        // RBP, and a column of its own.
        Isa::X86_64 => (6, 16),
        Isa::Aarch64 => (29, 30),
    }
}

/// A register's value in a frame, if it is known.
fn value(isa: Isa, at: &Start, register: u16) -> Option<u64> {
    match (isa, register) {
        (Isa::X86_64, 6) | (Isa::Aarch64, 29) => Some(at.fp),
        (Isa::X86_64, 7) | (Isa::Aarch64, 31) => Some(at.sp),
        // RDX and RDI have other numbers in instructions.
        (Isa::X86_64, 1) => at.general.map(|general| general[2]),
        (Isa::X86_64, 5) => at.general.map(|general| general[7]),
        (Isa::X86_64, 10 | 13) => at.general.map(|general| general[usize::from(register)]),
        (Isa::Aarch64, 30) => at.link,
        _ => None,
    }
}

/// What is behind a frame by a row; `None` where a register is needed that is not known there.
pub(super) fn next(isa: Isa, at: &Start, row: &Row, reader: &Reader<'_>) -> Result<Option<Next>, NotThere> {
    let Some(base) = value(isa, at, row.frame.0) else { return Ok(None) };
    let frame = base.wrapping_add_signed(row.frame.1);
    let (fp_number, pc_number) = registers(isa);
    let find = |rule: Rule, own: u16| match rule {
        Rule::Same => Ok(value(isa, at, own)),
        Rule::Lost => Ok(None),
        Rule::Saved(offset) => reader.address(frame.wrapping_add_signed(offset)).map(Some),
        Rule::Address(offset) => Ok(Some(frame.wrapping_add_signed(offset))),
        Rule::Register(number) => Ok(value(isa, at, number)),
    };
    if row.pc == Rule::Lost {
        return Ok(Some(Next::End(StackEnd::Bottom)));
    }
    let Some(pc) = find(row.pc, pc_number)? else { return Ok(None) };
    // Whoever does without one has not kept it: where it leads is not asked.
    let fp = find(row.fp, fp_number)?.unwrap_or(0);
    Ok(Some(Next::Frame(Start { pc, sp: frame, fp, is_guessed: at.is_guessed, ..Start::default() })))
}
