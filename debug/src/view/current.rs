//! The task of the guest's Linux kernel that a processor is at.

use super::View;
use crate::linux::VmCoreInfo;
use crate::linux::current::{Current, Running};
use crate::linux::reader::Reader;
use crate::linux::task::{self, Task};
use crate::machine::Activity;
use arch::register::Bank;

/// What a vCPU is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnVcpu<'a> {
    /// A task.
    Task(&'a Task),
    /// A task of this number and name, which is in none of the lists, as one that is about to end.
    Unlisted(u32, String),
    /// The task of this name that its processor idles in, which is in no list.
    Idle(String),
}

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

    /// Which of the kernel's tasks a vCPU is at: by what its registers lead to, and where they are not known by what the
    /// tasks say, of the processor with the vCPU's number. Linux numbers processors as it starts them: a kernel that was
    /// started by another's crash has but one, whichever vCPU that is. One that was not started, or has been switched off,
    /// is at none.
    pub fn on_vcpu<'t>(&self, info: &VmCoreInfo, tasks: &'t [Task], vcpu: u32) -> Option<OnVcpu<'t>> {
        if self.machine.activity(vcpu) == Activity::NotStarted {
            return None;
        }
        let running = self.kernel_current(info).and_then(|current| self.task_on(info, &current, vcpu));
        let Ok(running) = running else { return task::on(tasks, vcpu).map(OnVcpu::Task) };
        let listed = tasks.iter().find(|task| task.address == running.address && task.pid == running.pid);
        match listed.filter(|task| task.pid != 0) {
            Some(task) => Some(OnVcpu::Task(task)),
            None if running.pid == 0 => Some(OnVcpu::Idle(running.comm)),
            None => Some(OnVcpu::Unlisted(running.pid, running.comm)),
        }
    }
}
