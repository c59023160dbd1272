//! The task that a processor is at, by its own registers: what a breakpoint's condition can ask at each hit.
//!
//! Source: Linux, `arch/x86/include/asm/current.h` (a variable that every processor has of its own; from 6.2 to 6.14 in
//! `struct pcpu_hot`), `arch/arm64/include/asm/current.h` (`SP_EL0`), `arch/arm64/kernel/process.c`
//! (`entry_task_switch`).

use crate::name;
use crate::reader::{NotThere, Reader};
use crate::symbols::Symbols;
use crate::types::{Field, TypeId, Types};
use arch::Isa;

/// The task that a processor is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Where its `struct task_struct` is.
    pub address: u64,
    /// Its number: of a thread, the thread's. 0 is a processor that idles.
    pub pid: u32,
    /// The number of its process.
    pub tgid: u32,
    /// Its name, which may do nothing to a terminal.
    pub comm: String,
}

/// Why it cannot be told of any processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CurrentError {
    /// The kernel has no such symbol.
    #[error("the kernel's symbols do not have {0} (CONFIG_KALLSYMS_ALL)")]
    NoSymbol(&'static str),
    /// Its types have no such member.
    #[error("the kernel's types do not have struct {0}")]
    NoType(&'static str),
}

/// Why it cannot be told of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A register that leads to it is not the kernel's, or not to be had.
    #[error("the processor's {0} does not lead to the kernel's data")]
    Register(&'static str),
    /// Memory is not there.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

/// How the current task is found in a kernel.
#[derive(Clone, Debug)]
pub struct Current {
    isa: Isa,
    /// The variable that each processor has of its own, to be added to where its variables are; on aarch64 one is asked
    /// in user mode alone.
    variable: Option<u64>,
    pid: Field,
    tgid: Field,
    comm: Field,
}

impl Current {
    /// By the kernel's symbols and types.
    ///
    /// # Errors
    /// [`CurrentError`].
    pub fn new(isa: Isa, symbols: &Symbols, types: &Types) -> Result<Current, CurrentError> {
        let task = types.tagged("task_struct").ok_or(CurrentError::NoType("task_struct"))?;
        let field = |of: TypeId, name: &str| types.field(of, name);
        // Up to 6.14 x86's are numbers, and no places: they are counted from 0.
        let variable = |name| symbols.named(name).next().map(|symbol| symbol.address);
        let variable = match isa {
            Isa::Aarch64 => variable("__entry_task"),
            Isa::X86_64 => Some(match (variable("pcpu_hot"), variable("current_task")) {
                (Some(hot), _) => {
                    let at = types.tagged("pcpu_hot").and_then(|of| field(of, "current_task"));
                    hot.wrapping_add(at.ok_or(CurrentError::NoType("pcpu_hot's current_task"))?.at)
                }
                (None, Some(variable)) => variable,
                (None, None) => return Err(CurrentError::NoSymbol("current_task")),
            }),
        };
        Ok(Current {
            isa,
            variable,
            pid: field(task, "pid").ok_or(CurrentError::NoType("task_struct's pid"))?,
            tgid: field(task, "tgid").ok_or(CurrentError::NoType("task_struct's tgid"))?,
            comm: field(task, "comm").ok_or(CurrentError::NoType("task_struct's comm"))?,
        })
    }

    /// The task that a processor with these registers is at: by their names in [the table](arch::register::table).
    ///
    /// Where the kernel is just entered or left, before it has changed what its registers mean, it is the one that is
    /// or was in user space.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn task(
        &self,
        register: &dyn Fn(&str) -> Option<u64>,
        reader: &Reader<'_>,
    ) -> Result<Running, Unknown> {
        let address = match self.isa {
            Isa::X86_64 => self.of_x86(register, reader)?,
            Isa::Aarch64 => self.of_aarch64(register, reader)?,
        };
        let small =
            |field: Field| reader.field(address, field).map(|value| u32::try_from(value).unwrap_or(0));
        let (pid, tgid) = (small(self.pid)?, small(self.tgid)?);
        Ok(Running { address, pid, tgid, comm: name::read(reader, address, self.comm)? })
    }

    fn of_x86(&self, register: &dyn Fn(&str) -> Option<u64>, reader: &Reader<'_>) -> Result<u64, Unknown> {
        // In user mode, and before SWAPGS, the kernel's base waits in the other register. User space's own is in the
        // lower half, as the kernel lets it set no other (arch/x86/kernel/process_64.c, `do_arch_prctl_64`) unless it
        // has WRGSBASE, with which it can deceive a debugger and not its kernel.
        let is_user = register("cs").is_some_and(|cs| cs & 3 == 3);
        let names = if is_user { ["k_gs_base", "gs_base"] } else { ["gs_base", "k_gs_base"] };
        let mut bases = names.into_iter().filter_map(register);
        let base = bases.find(|base| base >> 63 != 0).ok_or(Unknown::Register("gs_base"))?;
        Ok(reader.address(base.wrapping_add(self.variable.unwrap_or(0)))?)
    }

    fn of_aarch64(
        &self,
        register: &dyn Fn(&str) -> Option<u64>,
        reader: &Reader<'_>,
    ) -> Result<u64, Unknown> {
        /// The exception level in PSTATE, of which 0 is user mode (Arm ARM (DDI 0487), "SPSR_EL1").
        const LEVEL: u64 = 0b1100;
        let is_user = register("cpsr").is_none_or(|cpsr| cpsr & LEVEL == 0);
        if !is_user {
            let task = register("SP_EL0").filter(|task| task >> 63 != 0);
            return task.ok_or(Unknown::Register("SP_EL0"));
        }
        let base = register("TPIDR_EL1").ok_or(Unknown::Register("TPIDR_EL1"))?;
        let variable = self.variable.ok_or(Unknown::Register("TPIDR_EL1"))?;
        Ok(reader.address(base.wrapping_add(variable))?)
    }
}

#[cfg(test)]
mod tests;
