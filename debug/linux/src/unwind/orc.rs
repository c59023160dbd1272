//! x86: tables by which the kernel unwinds its own stacks (`CONFIG_UNWINDER_ORC`), for the kernel and for each module.
//!
//! An entry says for instructions from an address on where the stack pointer of the caller is, from which register and
//! by how many bytes, where the caller's RBP was saved, and whether there is a call, or registers that an interrupt or
//! an exception has left.
//!
//! Source: Linux, `arch/x86/include/asm/orc_types.h`, `arch/x86/kernel/unwind_orc.c`, `tools/objtool`.

use super::{Next, Stack, StackEnd, Start, cfi, follow, frame_pointer};
use crate::reader::{NotThere, Reader};
use crate::symbols::Symbols;
use crate::types::{Field, Part, TypeId, Types};
use arch::Isa;
use arch::register::RegisterFile;

/// Bytes of an entry, at most: Linux has six.
const MOST_BYTES: u64 = 8;
/// Entries of a table, at most: a kernel with all drivers built in has some millions.
const MOST_ENTRIES: u64 = 1 << 26;

/// `ORC_REG_*`: what an address is counted from.
mod register {
    pub const UNDEFINED: u64 = 0;
    pub const PREVIOUS_SP: u64 = 1;
    pub const DX: u64 = 2;
    pub const DI: u64 = 3;
    pub const BP: u64 = 4;
    pub const SP: u64 = 5;
    pub const R10: u64 = 6;
    pub const R13: u64 = 7;
    pub const BP_INDIRECT: u64 = 8;
    pub const SP_INDIRECT: u64 = 9;
}

/// What an entry's frame was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing is known.
    Undefined,
    /// There is none behind it.
    EndOfStack,
    /// A call.
    Call,
    /// An interrupt or an exception, all registers of which are there.
    Registers,
    /// One of which only what the processor saves is there.
    SomeRegisters,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    sp_offset: u64,
    bp_offset: u64,
    sp_register: u64,
    bp_register: u64,
    kind: Kind,
}

/// How the kernel has its entries, and what they lead to.
#[derive(Debug)]
pub struct Layout {
    size: u64,
    sp_offset: Part,
    bp_offset: Part,
    sp_register: Part,
    bp_register: Part,
    kind: Part,
    /// Until 6.3 this says that there is nothing behind; then a kind does.
    end: Option<Part>,
    registers: Registers,
}

/// Where `struct pt_regs` has registers.
#[derive(Debug)]
struct Registers {
    ip: Field,
    cs: Field,
    sp: Field,
    bp: Field,
    /// R10, R13, RDI, RDX.
    others: [Field; 4],
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where the addresses are, 32 bits each, from where they stand.
    pub addresses: u64,
    /// Where the entries are.
    pub entries: u64,
    /// How many.
    pub count: u64,
}

impl Table {
    /// The kernel's own, by its symbols.
    pub fn of_kernel(symbols: &Symbols) -> Option<Table> {
        let place = |name| symbols.address(name);
        let (begin, end) = (place("__start_orc_unwind_ip")?, place("__stop_orc_unwind_ip")?);
        Some(Table {
            addresses: begin,
            entries: place("__start_orc_unwind")?,
            count: end.checked_sub(begin)? / 4,
        })
    }

    fn address(&self, index: u64, reader: &Reader<'_>) -> Result<u64, NotThere> {
        let at = self.addresses.wrapping_add(index * 4);
        let offset = u32::try_from(reader.number(at, 4)?).unwrap_or(0).cast_signed();
        Ok(at.wrapping_add_signed(offset.into()))
    }

    /// Which entry an address has: the last one that begins at or before it.
    fn find(&self, pc: u64, reader: &Reader<'_>) -> Result<Option<u64>, NotThere> {
        let (mut low, mut high) = (0, self.count.min(MOST_ENTRIES));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.address(middle, reader)? <= pc {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low.checked_sub(1))
    }
}

impl Layout {
    /// By the kernel's types.
    ///
    /// # Errors
    /// In words, what they lack.
    pub fn new(types: &Types) -> Result<Layout, String> {
        let lacks = |what: &str| format!("the kernel's types do not have {what}");
        let entry = types.tagged("orc_entry").ok_or_else(|| {
            lacks("struct orc_entry: the kernel unwinds by something else (CONFIG_UNWINDER_ORC)")
        })?;
        let part =
            |name: &str| types.part(entry, name).ok_or_else(|| lacks(&format!("struct orc_entry's {name}")));
        let size = types.size(entry).filter(|size| *size <= MOST_BYTES);
        Ok(Layout {
            size: size.ok_or_else(|| lacks("a struct orc_entry of some bytes"))?,
            sp_offset: part("sp_offset")?,
            bp_offset: part("bp_offset")?,
            sp_register: part("sp_reg")?,
            bp_register: part("bp_reg")?,
            kind: part("type")?,
            end: part("end").ok(),
            registers: Registers::new(types).ok_or_else(|| lacks("all of struct pt_regs"))?,
        })
    }

    fn entry(&self, table: &Table, index: u64, reader: &Reader<'_>) -> Result<Entry, NotThere> {
        let all = reader.number(table.entries.wrapping_add(index * self.size), self.size)?;
        let bits = |part: &Part, plain: u8| {
            let bits = part.bits.unwrap_or(plain).min(63);
            all.checked_shr(u32::try_from(part.at).unwrap_or(u32::MAX)).unwrap_or(0) & ((1 << bits) - 1)
        };
        let offset = |part: &Part| {
            let value = u16::try_from(bits(part, 16)).unwrap_or(0).cast_signed();
            i64::from(value).cast_unsigned()
        };
        // Two more kinds from 6.4 on, in front of the others.
        let kind = match (&self.end, bits(&self.kind, 8)) {
            (Some(end), _) if bits(end, 8) != 0 => Kind::EndOfStack,
            (Some(_), 0) | (None, 2) => Kind::Call,
            (Some(_), 1) | (None, 3) => Kind::Registers,
            (Some(_), 2) | (None, 4) => Kind::SomeRegisters,
            (None, 1) => Kind::EndOfStack,
            _ => Kind::Undefined,
        };
        Ok(Entry {
            sp_offset: offset(&self.sp_offset),
            bp_offset: offset(&self.bp_offset),
            sp_register: bits(&self.sp_register, 8),
            bp_register: bits(&self.bp_register, 8),
            kind,
        })
    }

    /// Unwinds a stack. `table` finds the table for an address: the kernel's, or a module's; what no table has, `frames` may
    /// ([`cfi::none`]), and last the frame pointer.
    pub fn stack(
        &self,
        start: Start,
        table: impl Fn(u64) -> Option<Table>,
        frames: &cfi::CallFrames<'_>,
        reader: &Reader<'_>,
    ) -> Stack {
        let by_file = |at: &Start, pc| match frames(pc) {
            Some(row) => cfi::next(Isa::X86_64, at, &row, reader),
            None => Ok(None),
        };
        follow(start, |at| {
            // A function that is nowhere was called, and has done nothing.
            if at.pc == 0 && at.is_exact {
                let (pc, sp) = (reader.address(at.sp)?, at.sp.wrapping_add(8));
                return Ok(Next::Frame(Start { pc, sp, fp: at.fp, ..Start::default() }));
            }
            // What called is in front of where it goes on.
            let pc = if at.is_exact { at.pc } else { at.pc.wrapping_sub(1) };
            let found = match table(pc) {
                Some(table) => table.find(pc, reader)?.map(|index| (table, index)),
                None => None,
            };
            let entry = found.map(|(table, index)| self.entry(&table, index, reader)).transpose()?;
            match entry.filter(|entry| entry.kind != Kind::Undefined) {
                Some(entry) => self.next(at, &entry, reader),
                None => match (by_file(at, pc)?, entry) {
                    (Some(next), _) => Ok(next),
                    (None, Some(entry)) => self.next(at, &entry, reader),
                    (None, None) => frame_pointer::x86(at, reader),
                },
            }
        })
    }

    fn next(&self, at: &Start, entry: &Entry, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let lost = |why: &str| Ok(Next::End(StackEnd::Lost(format!("{why} at {:#x}", at.pc))));
        match entry.kind {
            Kind::EndOfStack => return Ok(Next::End(StackEnd::Bottom)),
            Kind::Undefined => return lost("the kernel's unwind table has nothing"),
            Kind::Call | Kind::Registers | Kind::SomeRegisters => {}
        }
        let Entry { sp_offset, bp_offset, .. } = *entry;
        let general = |number: usize| at.general.map(|general| general[number].wrapping_add(sp_offset));
        let sp = match entry.sp_register {
            register::SP => Some(at.sp.wrapping_add(sp_offset)),
            register::BP => Some(at.fp.wrapping_add(sp_offset)),
            register::SP_INDIRECT => Some(reader.address(at.sp)?.wrapping_add(sp_offset)),
            register::BP_INDIRECT => Some(reader.address(at.fp.wrapping_add(sp_offset))?),
            register::DX => general(2),
            register::DI => general(7),
            register::R10 => general(10),
            register::R13 => general(13),
            register::UNDEFINED => return lost("the kernel's unwind table has no stack"),
            _ => return lost("the kernel's unwind table has an unknown register"),
        };
        let Some(sp) = sp else { return lost("the caller's stack is in a register that nobody has saved") };
        let saved_bp = |otherwise: u64| match entry.bp_register {
            register::PREVIOUS_SP => reader.address(sp.wrapping_add(bp_offset)),
            register::BP => reader.address(at.fp.wrapping_add(bp_offset)),
            _ => Ok(otherwise),
        };
        let registers = &self.registers;
        match entry.kind {
            Kind::Call => {
                let pc = reader.address(sp.wrapping_sub(8))?;
                let fp = saved_bp(at.fp)?;
                Ok(Next::Frame(Start { pc, sp, fp, ..Start::default() }))
            }
            Kind::Registers => registers.interrupted(sp, None, reader),
            // They begin with RIP.
            _ => registers.interrupted(sp.wrapping_sub(registers.ip.at), Some(saved_bp(at.fp)?), reader),
        }
    }
}

impl Registers {
    fn new(types: &Types) -> Option<Registers> {
        let of: TypeId = types.tagged("pt_regs")?;
        let field = |name| types.field(of, name);
        Some(Registers {
            ip: field("ip")?,
            cs: field("cs")?,
            sp: field("sp")?,
            bp: field("bp")?,
            others: [field("r10")?, field("r13")?, field("di")?, field("dx")?],
        })
    }

    /// What was interrupted, by the registers that were left at an address; with `fp`, only what the processor saves is
    /// there.
    fn interrupted(&self, regs: u64, fp: Option<u64>, reader: &Reader<'_>) -> Result<Next, NotThere> {
        let (pc, cs) = (reader.field(regs, self.ip)?, reader.field(regs, self.cs)?);
        if cs & 3 != 0 {
            return Ok(Next::End(StackEnd::User(pc)));
        }
        let sp = reader.field(regs, self.sp)?;
        let (fp, general) = match fp {
            Some(fp) => (fp, None),
            None => {
                let mut general = [0; 16];
                for (number, field) in [10, 13, 7, 2].into_iter().zip(self.others) {
                    general[number] = reader.field(regs, field)?;
                }
                (reader.field(regs, self.bp)?, Some(general))
            }
        };
        Ok(Next::Frame(Start { pc, sp, fp, general, is_exact: true, ..Start::default() }))
    }
}

/// Where a task that sleeps goes on (`struct inactive_task_frame`): its stack pointer is `sp`.
///
/// # Errors
/// In words.
pub fn asleep(types: &Types, sp: u64, reader: &Reader<'_>) -> Result<Start, String> {
    let frame = types.tagged("inactive_task_frame");
    let field = |name| frame.and_then(|frame| types.field(frame, name));
    let (Some(bp), Some(pc)) = (field("bp"), field("ret_addr")) else {
        return Err("the kernel's types do not have struct inactive_task_frame".into());
    };
    let read = || {
        let (fp, next) = (reader.field(sp, bp)?, reader.field(sp, pc)?);
        // As behind the call that has put it to sleep.
        Ok(Start { pc: next, sp: sp.wrapping_add(pc.at + pc.size), fp, ..Start::default() })
    };
    read().map_err(|error: NotThere| error.to_string())
}

/// The registers that a task that sleeps has saved, as they are where it goes on: `sp` is its stack pointer. What it has
/// not saved has no value.
///
/// # Errors
/// In words.
pub fn saved(types: &Types, sp: u64, reader: &Reader<'_>) -> Result<RegisterFile, String> {
    const OTHERS: [(&str, &str); 5] =
        [("rbx", "bx"), ("r12", "r12"), ("r13", "r13"), ("r14", "r14"), ("r15", "r15")];
    let start = asleep(types, sp, reader)?;
    let mut file = RegisterFile::new(Isa::X86_64);
    for (name, value) in [("rip", start.pc), ("rsp", start.sp), ("rbp", start.fp)] {
        file.set(name, value);
    }
    let frame = types.tagged("inactive_task_frame");
    for (name, member) in OTHERS {
        let field = frame.and_then(|frame| types.field(frame, member));
        if let Some(value) = field.and_then(|field| reader.field(sp, field).ok()) {
            file.set(name, value);
        }
    }
    Ok(file)
}
