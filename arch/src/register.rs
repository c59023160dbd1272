//! The register tables: one row describes one register of a target, for every use of it.
//!
//! Today's users are the report of a failed vCPU (`debug::report`) and the KVM back ends
//! that fill it; names and order are those a person expects to see printed.

use crate::Isa;

/// What kind of register a row is, and how a report groups it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// General purpose, instruction pointer, flags.
    General,
    /// x86 segment selectors and bases.
    Segment,
    /// Control and system registers.
    System,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Name as the architecture's manual has it, lower case.
    pub name: &'static str,
    /// Width in bits.
    pub bits: u32,
    /// Group.
    pub group: Group,
}

const fn row(name: &'static str, bits: u32, group: Group) -> Register {
    Register { name, bits, group }
}

use Group::{General, Segment, System};

/// x86_64: general registers in the order of gdb's `info registers`.
#[rustfmt::skip]
pub const X86_64: &[Register] = &[
    row("rax", 64, General), row("rbx", 64, General), row("rcx", 64, General), row("rdx", 64, General),
    row("rsi", 64, General), row("rdi", 64, General), row("rbp", 64, General), row("rsp", 64, General),
    row("r8", 64, General), row("r9", 64, General), row("r10", 64, General), row("r11", 64, General),
    row("r12", 64, General), row("r13", 64, General), row("r14", 64, General), row("r15", 64, General),
    row("rip", 64, General), row("eflags", 32, General),
    row("cs", 16, Segment), row("ss", 16, Segment), row("ds", 16, Segment), row("es", 16, Segment),
    row("fs", 16, Segment), row("gs", 16, Segment),
    row("cs_base", 64, Segment), row("fs_base", 64, Segment), row("gs_base", 64, Segment),
    row("gdt_base", 64, Segment), row("idt_base", 64, Segment), row("tr_base", 64, Segment),
    row("cr0", 64, System), row("cr2", 64, System), row("cr3", 64, System), row("cr4", 64, System),
    row("cr8", 64, System), row("efer", 64, System),
];

/// aarch64: X0 to X30, SP, PC and PSTATE, then the EL1 registers that a fault is read from.
#[rustfmt::skip]
pub const AARCH64: &[Register] = &[
    row("x0", 64, General), row("x1", 64, General), row("x2", 64, General), row("x3", 64, General),
    row("x4", 64, General), row("x5", 64, General), row("x6", 64, General), row("x7", 64, General),
    row("x8", 64, General), row("x9", 64, General), row("x10", 64, General), row("x11", 64, General),
    row("x12", 64, General), row("x13", 64, General), row("x14", 64, General), row("x15", 64, General),
    row("x16", 64, General), row("x17", 64, General), row("x18", 64, General), row("x19", 64, General),
    row("x20", 64, General), row("x21", 64, General), row("x22", 64, General), row("x23", 64, General),
    row("x24", 64, General), row("x25", 64, General), row("x26", 64, General), row("x27", 64, General),
    row("x28", 64, General), row("x29", 64, General), row("x30", 64, General), row("sp", 64, General),
    row("pc", 64, General), row("pstate", 64, General),
    row("sctlr_el1", 64, System), row("tcr_el1", 64, System), row("ttbr0_el1", 64, System),
    row("ttbr1_el1", 64, System), row("vbar_el1", 64, System), row("esr_el1", 64, System),
    row("far_el1", 64, System), row("elr_el1", 64, System), row("spsr_el1", 64, System),
    row("sp_el0", 64, System), row("sp_el1", 64, System),
];

/// The table of an architecture.
pub fn table(isa: Isa) -> &'static [Register] {
    match isa {
        Isa::X86_64 => X86_64,
        Isa::Aarch64 => AARCH64,
    }
}

/// The values of one vCPU's registers; what could not be read is absent rather than zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterFile {
    isa: Isa,
    values: Vec<Option<u64>>,
}

impl RegisterFile {
    /// A file in which nothing has been read.
    pub fn new(isa: Isa) -> RegisterFile {
        RegisterFile { isa, values: vec![None; table(isa).len()] }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Stores a value by the register's name. A name that is not in the table is a mistake in
    /// the caller, found by its tests; in a release it is left out.
    pub fn set(&mut self, name: &str, value: u64) {
        let row = table(self.isa).iter().position(|register| register.name == name);
        debug_assert!(row.is_some(), "{} has no register {name}", self.isa);
        if let Some(row) = row {
            self.values[row] = Some(value);
        }
    }

    /// The value of a register by name.
    pub fn get(&self, name: &str) -> Option<u64> {
        let row = table(self.isa).iter().position(|register| register.name == name)?;
        self.values[row]
    }

    /// The address of the next instruction: RIP or PC.
    pub fn pc(&self) -> Option<u64> {
        match self.isa {
            Isa::X86_64 => self.get("rip"),
            Isa::Aarch64 => self.get("pc"),
        }
    }

    /// All rows that have a value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Register, u64)> {
        table(self.isa).iter().zip(&self.values).filter_map(|(row, value)| Some((row, (*value)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for isa in Isa::ALL {
            let mut names: Vec<_> = table(isa).iter().map(|row| row.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{isa}");
        }
    }

    #[test]
    fn what_was_not_read_is_absent() {
        let mut file = RegisterFile::new(Isa::X86_64);
        file.set("rip", 0x1000);
        assert_eq!((file.pc(), file.get("rax")), (Some(0x1000), None));
        assert_eq!(file.iter().count(), 1);
    }
}
