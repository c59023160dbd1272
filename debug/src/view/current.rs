//! The task of the guest's Linux kernel that a processor is at.

use super::View;
use crate::linux::VmCoreInfo;
use crate::linux::current::{Current, Running};
use crate::linux::reader::Reader;
use arch::register::Bank;

impl View<'_> {
    /// How the task is found that a processor is at, by the kernel's own symbols and types.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn kernel_current(&self, info: &VmCoreInfo) -> Result<Current, String> {
        let (symbols, types) = (self.kernel_symbols(info)?, self.kernel_types(info)?);
        Current::new(self.isa(), &symbols, &types).map_err(|error| error.to_string())
    }

    /// The task that a vCPU is at.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn task_on(&self, info: &VmCoreInfo, current: &Current, vcpu: u32) -> Result<Running, String> {
        let file = self.machine.registers(vcpu, &Bank::ALL).map_err(|error| error.to_string())?;
        let register = |name: &str| file.get(name);
        self.through(vcpu).by_kernel(info, |read| current.task(&register, &Reader::new(read)))
    }
}
