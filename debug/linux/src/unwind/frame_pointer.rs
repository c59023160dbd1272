//! Frames that lead from one to the next by a pointer: two words, where the caller's are, and where it goes on.
//!
//! Sources: Procedure Call Standard for the Arm 64-bit Architecture, "The Frame Pointer"; Linux,
//! `arch/arm64/kernel/stacktrace.c`, `arch/arm64/kernel/entry.S`; System V ABI, AMD64, "The Stack Frame".

use super::{Next, Stack, StackEnd, Start, cfi, follow};
use crate::reader::{NotThere, Reader};
use crate::types::{Field, Types};
use arch::Isa;
use arch::register::RegisterFile;

/// What comes behind a frame on x86, where only the pointer tells.
pub(super) fn x86(at: &Start, reader: &Reader<'_>) -> Result<Next, NotThere> {
    let lost = || Ok(Next::End(StackEnd::Lost(format!("nothing tells of the frame at {:#x}", at.pc))));
    if at.fp < at.sp || !at.fp.is_multiple_of(8) {
        return lost();
    }
    let (fp, pc) = (reader.address(at.fp)?, reader.address(at.fp.wrapping_add(8))?);
    match pc {
        0 => lost(),
        pc => {
            let sp = at.fp.wrapping_add(16);
            Ok(Next::Frame(Start { pc, fp, sp, is_guessed: true, ..Start::default() }))
        }
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
/// The mask of the mode in `PSTATE`, which is 0 in user space, of 32 bits as well (`PSR_MODE_MASK` without the bit for
/// AArch32).
const MODE: u64 = 0xf;

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

    /// Unwinds a stack. `function` says where the function begins that an address is in.
    ///
    /// Until a function has made its own frame, and when it has taken that away, as in front of `RET` and of a call that is
    /// its last, where it returns to is in the link register alone. That is so unless the register leads into the
    /// function itself, which has called another then, or to where the last record leads, too. A function that calls itself
    /// and one that keeps something else in the register do not bear that out: what `frames` say ([`cfi::none`]) comes
    /// before it.
    pub fn stack(
        &self,
        start: Start,
        function: impl Fn(u64) -> Option<u64>,
        frames: &cfi::CallFrames<'_>,
        reader: &Reader<'_>,
    ) -> Stack {
        // Whatever it says, it is a function that has called.
        let by_file = |at: &Start| {
            let row = frames(at.pc)?;
            let Ok(Some(Next::Frame(next))) = cfi::next(Isa::Aarch64, at, &row, reader) else { return None };
            let pc = next.pc | self.code_bits;
            function(pc.wrapping_sub(4)).map(|_| Next::Frame(Start { pc, ..next }))
        };
        follow(start, |at| {
            if at.is_exact
                && let Some(next) = by_file(at)
            {
                return Ok(next);
            }
            if let Some(link) = at.link.filter(|_| at.is_exact) {
                let link = link | self.code_bits;
                let saved = reader.address(at.fp.wrapping_add(8)).map(|pc| pc | self.code_bits);
                // The call is in front.
                let caller = function(link.wrapping_sub(4));
                if caller.is_some() && caller != function(at.pc) && saved != Ok(link) {
                    return Ok(Next::Frame(Start { pc: link, sp: at.sp, fp: at.fp, ..Start::default() }));
                }
            }
            self.next(at, reader)
        })
    }

    fn next(&self, at: &Start, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let record = at.fp;
        if record == 0 {
            return Ok(Next::End(StackEnd::Bottom));
        }
        if !record.is_multiple_of(8) {
            return Ok(Next::End(StackEnd::Lost(format!("no frame can be at {record:#x}"))));
        }
        let (fp, pc) = (reader.address(record)?, reader.address(record.wrapping_add(8))?);
        let regs = record.wrapping_sub(self.record.at);
        if (fp, pc) == (0, 0) {
            let kind = if self.has_kind { reader.address(record.wrapping_add(16))? } else { FINAL };
            return match kind {
                EXCEPTION => self.interrupted(regs, reader),
                // The registers of user space, or none.
                _ => Ok(Next::End(match (reader.field(regs, self.state)?, reader.field(regs, self.pc)?) {
                    (state, pc) if state & MODE == 0 && pc != 0 => StackEnd::User(pc),
                    _ => StackEnd::Bottom,
                })),
            };
        }
        let own_fp = reader.address(regs.wrapping_add(self.registers.at + 29 * 8));
        let own_pc = reader.field(regs, self.pc);
        if (own_fp, own_pc) == (Ok(fp), Ok(pc)) {
            return self.interrupted(regs, reader);
        }
        let pc = pc | self.code_bits;
        Ok(Next::Frame(Start { pc, fp, sp: record.wrapping_add(16), ..Start::default() }))
    }

    /// What was interrupted, by the registers that were left at an address.
    fn interrupted(&self, regs: u64, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let register = |number: u64| reader.address(regs.wrapping_add(self.registers.at + number * 8));
        let (pc, state) = (reader.field(regs, self.pc)?, reader.field(regs, self.state)?);
        if state & MODE == 0 {
            return Ok(Next::End(StackEnd::User(pc)));
        }
        let (fp, link, sp) = (register(29)?, Some(register(30)?), reader.field(regs, self.sp)?);
        Ok(Next::Frame(Start { pc, sp, fp, link, is_exact: true, ..Start::default() }))
    }
}

/// Where a task that sleeps goes on (`struct cpu_context` of its `thread`).
///
/// # Errors
/// In words.
pub fn asleep(types: &Types, task: u64, reader: &Reader<'_>) -> Result<Start, String> {
    let read = |name| of_context(types, task, name, reader);
    Ok(Start { pc: read("pc")?, sp: read("sp")?, fp: read("fp")?, ..Start::default() })
}

fn of_context(types: &Types, task: u64, name: &str, reader: &Reader<'_>) -> Result<u64, String> {
    let path = format!("thread.cpu_context.{name}");
    let field = types.tagged("task_struct").and_then(|of| types.field(of, &path));
    let field = field.ok_or_else(|| format!("the kernel's types do not have struct task_struct's {path}"))?;
    reader.field(task, field).map_err(|error| error.to_string())
}

/// The registers that a task that sleeps has saved, as they are where it goes on. What it has not saved has no value.
///
/// # Errors
/// In words.
pub fn saved(types: &Types, task: u64, reader: &Reader<'_>) -> Result<RegisterFile, String> {
    const OTHERS: [&str; 10] = ["x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28"];
    let start = asleep(types, task, reader)?;
    let mut file = RegisterFile::new(Isa::Aarch64);
    for (name, value) in [("pc", start.pc), ("sp", start.sp), ("x29", start.fp)] {
        file.set(name, value);
    }
    for name in OTHERS {
        if let Ok(value) = of_context(types, task, name, reader) {
            file.set(name, value);
        }
    }
    Ok(file)
}
