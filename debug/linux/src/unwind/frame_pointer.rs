//! Frames that lead from one to the next by a pointer: two words, where the caller's are, and where it goes on.
//!
//! Sources: Procedure Call Standard for the Arm 64-bit Architecture, "The Frame Pointer"; Linux,
//! `arch/arm64/kernel/stacktrace.c`, `arch/arm64/kernel/entry.S`; System V ABI, AMD64, "The Stack Frame".

use super::{End, Next, Stack, Start, follow, word};
use crate::reader::{NotThere, Reader};
use crate::types::{Field, Types};

/// What comes behind a frame on x86, where only the pointer tells.
pub(super) fn x86(at: &Start, reader: &Reader<'_>) -> Result<Next, NotThere> {
    let lost = || Ok(Next::End(End::Lost(format!("nothing tells of the frame at {:#x}", at.pc))));
    if at.fp < at.sp || !at.fp.is_multiple_of(8) {
        return lost();
    }
    let (fp, pc) = (word(reader, at.fp)?, word(reader, at.fp.wrapping_add(8))?);
    match pc {
        0 => lost(),
        pc => Ok(Next::Frame(Start { pc, fp, sp: at.fp.wrapping_add(16), ..Start::default() })),
    }
}

/// How an aarch64 kernel has what an exception leaves.
#[derive(Debug)]
pub struct Layout {
    /// In `struct pt_regs`: the frame record that stands for the exception.
    record: Field,
    registers: Field,
    sp: Field,
    pc: Field,
    state: Field,
    /// From 6.13 on the record says what it is.
    has_kind: bool,
    /// Bits of an address that may be an authentication code, which are ones in the kernel's addresses.
    code_bits: u64,
}

/// What a record says that it is, from 6.13 on.
const FINAL: u64 = 1;
const EXCEPTION: u64 = 2;
/// The mask of the exception level in `PSTATE`, with the bit for AArch32.
const LEVEL: u64 = 0x1c;

impl Layout {
    /// By the kernel's types. `code_bits` are the bits of pointer authentication codes in its addresses
    /// (`NUMBER(KERNELPACMASK)`).
    ///
    /// # Errors
    /// In words, what the types lack.
    pub fn new(types: &Types, code_bits: u64) -> Result<Layout, String> {
        let field = |name: &str| {
            let found = types.tagged("pt_regs").and_then(|of| types.field(of, name));
            found.ok_or_else(|| format!("the kernel's types do not have struct pt_regs's {name}"))
        };
        Ok(Layout {
            record: field("stackframe")?,
            registers: field("regs")?,
            sp: field("sp")?,
            pc: field("pc")?,
            state: field("pstate")?,
            has_kind: types.tagged("frame_record_meta").is_some(),
            code_bits,
        })
    }

    /// Unwinds a stack. `has_frame` says whether the function at an address has put its own frame there by then: until
    /// it has, and when it has taken it away, where it returns to is in the link register.
    pub fn stack(&self, start: Start, has_frame: impl Fn(u64) -> bool, reader: &Reader<'_>) -> Stack {
        follow(start, |at| {
            if let Some(link) = at.link
                && at.is_exact
                && !has_frame(at.pc)
            {
                let pc = link | self.code_bits;
                return Ok(Next::Frame(Start { pc, sp: at.sp, fp: at.fp, ..Start::default() }));
            }
            self.next(at, reader)
        })
    }

    fn next(&self, at: &Start, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let record = at.fp;
        if record == 0 {
            return Ok(Next::End(End::Bottom));
        }
        if !record.is_multiple_of(8) {
            return Ok(Next::End(End::Lost(format!("no frame can be at {record:#x}"))));
        }
        let (fp, pc) = (word(reader, record)?, word(reader, record.wrapping_add(8))?);
        let regs = record.wrapping_sub(self.record.at);
        if (fp, pc) == (0, 0) {
            let kind = if self.has_kind { word(reader, record.wrapping_add(16))? } else { FINAL };
            return match kind {
                EXCEPTION => self.interrupted(regs, reader),
                // The registers of user space, or none.
                _ => Ok(Next::End(match (reader.field(regs, self.state)?, reader.field(regs, self.pc)?) {
                    (state, pc) if state & LEVEL == 0 && pc != 0 => End::User(pc),
                    _ => End::Bottom,
                })),
            };
        }
        let own_fp = word(reader, regs.wrapping_add(self.registers.at + 29 * 8));
        let own_pc = reader.field(regs, self.pc);
        if (own_fp, own_pc) == (Ok(fp), Ok(pc)) {
            return self.interrupted(regs, reader);
        }
        let pc = pc | self.code_bits;
        Ok(Next::Frame(Start { pc, fp, sp: record.wrapping_add(16), ..Start::default() }))
    }

    /// What was interrupted, by the registers that were left at an address.
    fn interrupted(&self, regs: u64, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let register = |number: u64| word(reader, regs.wrapping_add(self.registers.at + number * 8));
        let (pc, state) = (reader.field(regs, self.pc)?, reader.field(regs, self.state)?);
        if state & LEVEL == 0 {
            return Ok(Next::End(End::User(pc)));
        }
        let (fp, link, sp) = (register(29)?, Some(register(30)?), reader.field(regs, self.sp)?);
        Ok(Next::Frame(Start { pc, sp, fp, link, is_exact: true, ..Start::default() }))
    }
}

/// Whether the function that begins at `begin` has its own frame at `pc`, by the instructions that are there: it sets
/// X29 to its record (`MOV X29, SP`, `ADD X29, SP, #n`) before, and loads it again before it returns.
pub fn has_frame(begin: u64, pc: u64, reader: &Reader<'_>) -> bool {
    /// Instructions that are looked through: functions set up their frame early.
    const MOST: u64 = 64;
    const RET: u64 = 0xd65f_03c0;
    /// `AUTIASP`, which stands before `RET`.
    const AUTHENTICATE: u64 = 0xd503_23bf;
    let instruction = |at: u64| reader.number(at, 4).unwrap_or(0);
    // `ADD X29, SP, #n`, of which `MOV X29, SP` is one.
    let sets = |word: u64| word & 0xffc0_03ff == 0x9100_03fd;
    let count = pc.wrapping_sub(begin) / 4;
    let is_set = (0..count.min(MOST)).any(|index| sets(instruction(begin.wrapping_add(index * 4))));
    let returns = match instruction(pc) {
        RET => true,
        AUTHENTICATE => instruction(pc.wrapping_add(4)) == RET,
        _ => false,
    };
    is_set && !returns
}

/// Where a task that sleeps goes on (`struct cpu_context` of its `thread`).
///
/// # Errors
/// In words.
pub fn asleep(types: &Types, task: u64, reader: &Reader<'_>) -> Result<Start, String> {
    let of = types.tagged("task_struct");
    let read = |name: &str| {
        let path = format!("thread.cpu_context.{name}");
        let field = of.and_then(|of| types.field(of, &path));
        let field =
            field.ok_or_else(|| format!("the kernel's types do not have struct task_struct's {path}"))?;
        reader.field(task, field).map_err(|error| error.to_string())
    };
    Ok(Start { pc: read("pc")?, sp: read("sp")?, fp: read("fp")?, ..Start::default() })
}
