//! A task of the guest's Linux kernel that sleeps, as if it were a processor: the registers that it has saved, and what
//! it sees of memory.

use super::{NO_KERNEL_SPACE, View, is_kernels};
use crate::linux::reader::Reader;
use crate::linux::task::Task;
use crate::linux::unwind::{frame_pointer, orc};
use crate::linux::{Types, VmCoreInfo};
use crate::memory::Translation;
use arch::register::{Bank, Register, RegisterFile, Source};
use arch::{GuestVirt, Isa};

impl View<'_> {
    /// A member of a task, which has eight bytes.
    pub(crate) fn of_task_struct(
        &self,
        info: &VmCoreInfo,
        types: &Types,
        task: &Task,
        name: &str,
    ) -> Result<u64, String> {
        let field = types.tagged("task_struct").and_then(|of| types.field(of, name));
        let field =
            field.ok_or_else(|| format!("the kernel's types do not have struct task_struct's {name}"))?;
        self.by_kernel(info, |read| Reader::new(read).field(task.address, field))
    }

    /// The registers that a task that sleeps has saved, as they are where it goes on; others have no value, but for the
    /// masks of pointers' authentication codes, which are the same for all tasks.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn saved_registers(&self, info: &VmCoreInfo, task: &Task) -> Result<RegisterFile, String> {
        let types = self.kernel_types(info)?;
        let sp = match self.isa() {
            Isa::X86_64 => self.of_task_struct(info, &types, task, "thread.sp")?,
            Isa::Aarch64 => 0,
        };
        let mut file = self.by_kernel(info, |read| match self.isa() {
            Isa::X86_64 => orc::saved(&types, sp, &Reader::new(read)),
            Isa::Aarch64 => frame_pointer::saved(&types, task.address, &Reader::new(read)),
        })?;
        if let Ok(own) = self.machine.registers(self.vcpu, &[Bank::System]) {
            let is_mask = |register: &Register| matches!(register.source, Source::PointerMask { .. });
            for (row, _) in own.rows().filter(|(_, register)| is_mask(register)) {
                file.set_row(row, own.get_row(row).unwrap_or(0));
            }
        }
        Ok(file)
    }

    /// What an address means to a task, whose memory nobody else's is shown for.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn space_of(
        &self,
        info: &VmCoreInfo,
        task: &Task,
        address: u64,
    ) -> Result<Translation, String> {
        match is_kernels(self.isa(), address) {
            true => self.kernel_space(info, task).ok_or_else(|| NO_KERNEL_SPACE.to_string()),
            false => self.user_space(info, task),
        }
    }

    /// What addresses of the kernel's mean to a task: those by which the task itself is found.
    pub fn kernel_space(&self, info: &VmCoreInfo, task: &Task) -> Option<Translation> {
        let found = self.as_kernel(info, |read| Reader::new(read).address(task.address));
        found.ok().map(|(_, space)| space)
    }

    /// What addresses of user space mean to a task, by its own tables (`struct mm_struct`'s `pgd`).
    ///
    /// # Errors
    /// In words; for one of the kernel's own, that it has no user space.
    pub fn user_space(&self, info: &VmCoreInfo, task: &Task) -> Result<Translation, String> {
        if task.mm == 0 {
            return Err(format!("task {} has no user space", task.pid));
        }
        let types = self.kernel_types(info)?;
        let field = types.tagged("mm_struct").and_then(|of| types.field(of, "pgd"));
        let field = field.ok_or("the kernel's types do not have struct mm_struct's pgd")?;
        let read = self.as_kernel(info, |read| Reader::new(read).field(task.mm, field));
        let (table, space) = read.map_err(|errors| {
            errors
                .last()
                .map_or_else(|| "nothing tells how the kernel translates".into(), ToString::to_string)
        })?;
        let place = space.locate(self.memory(), GuestVirt(table)).map_err(|fault| fault.to_string())?.0;
        self.user_regime(place).map(Translation::Virtual).map_err(|error| error.to_string())
    }
}
