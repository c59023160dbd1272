//! The tasks of the guest's Linux kernel, as contexts.

use super::Debuggee;
use crate::breakpoint::Condition;
use crate::context::current::CurrentTasks;
use crate::context::mode::Unable;
use crate::context::tree::{Id, Kind, TaskKey};
use crate::linux::VmCoreInfo;
use crate::linux::described::Scope;
use crate::linux::symbols::Kind as SymbolKind;
use crate::linux::task::{Task, Tasks};
use crate::machine::{Activity, Machine, MachineError};
use crate::memory::Translation;
use crate::view::View;
use arch::register::RegisterFile;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why the guest's tasks are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TasksError {
    /// It runs: what is in its memory changes while it is read.
    #[error(transparent)]
    Unable(#[from] Unable),
    /// There is no Linux kernel that has described itself.
    #[error("no Linux kernel has described itself in memory (yet)")]
    NoKernel,
    /// The kernel lacks something, or memory does; in words.
    #[error("{0}")]
    Lacks(String),
}

/// What was found when tasks were looked for last.
#[derive(Debug, Default)]
pub(super) struct Found {
    info: Option<VmCoreInfo>,
    /// Of contexts of tasks, and one of each address space.
    tasks: BTreeMap<Id, Task>,
    remarks: Vec<String>,
}

impl<M: Machine> Debuggee<M> {
    /// Looks for the tasks of the guest's Linux kernel, which stands still: each is a context then, below that of its
    /// address space, or of the machine, if it is one of the kernel's own. Those that were there before keep their ids, and those
    /// that have ended since are disposed. What is told of them is as of this look, until the next one.
    ///
    /// # Errors
    /// [`TasksError`]; then the contexts are as they were.
    pub fn find_tasks(&mut self) -> Result<Vec<Id>, TasksError> {
        let info = self.kernel_info()?;
        let (tasks, keys, remarks) = {
            let view = self.view();
            let Tasks { all: tasks, remarks } = view.kernel_tasks(&info).map_err(TasksError::Lacks)?;
            let types = view.kernel_types(&info).map_err(TasksError::Lacks)?;
            let began = |task: &Task| view.of_task_struct(&info, &types, task, "start_time").unwrap_or(0);
            let key = |task: &Task| TaskKey {
                pid: task.pid,
                address: task.address,
                began: began(task),
                // The kernel's own may have somebody's for a while.
                mm: if task.is_of_kernel { 0 } else { task.mm },
            };
            let keys: Vec<TaskKey> = tasks.iter().map(key).collect();
            (tasks, keys, remarks)
        };
        let changes = self.tree.set_tasks(&keys);
        self.listeners.contexts_changed(&changes, &self.tree);
        let mut found = Found { info: Some(info), tasks: BTreeMap::new(), remarks };
        for (id, task) in changes.ids.iter().zip(tasks) {
            let space = self.tree.get(*id).and_then(|context| context.parent);
            let space = space.filter(|_| !task.is_of_kernel && task.mm != 0);
            space.map(|space| found.tasks.entry(space).or_insert_with(|| task.clone()));
            found.tasks.insert(*id, task);
        }
        self.found = found;
        Ok(changes.ids)
    }

    /// What of the kernel's lists could not be had when tasks were looked for last, so that some may lack; a line each.
    pub fn task_remarks(&self) -> &[String] {
        &self.found.remarks
    }

    /// What was found of a task, when tasks were looked for last.
    pub fn task(&self, id: Id) -> Option<&Task> {
        let is_task = matches!(self.tree.get(id)?.kind, Kind::Task(_));
        self.found.tasks.get(&id).filter(|_| is_task)
    }

    /// What tells conditions of breakpoints which task has hit, by the kernel that is there now:
    ///
    /// ```
    /// # use debug::{context::{Debuggee, Point}, machine::Machine};
    /// # fn stop<M: Machine>(guest: &mut Debuggee<M>, address: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// let tasks = guest.current_tasks()?;
    /// guest.add(Point::execute(address).when(move |hit| tasks.of(hit).is_ok_and(|task| task.pid == 1)))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TasksError`].
    pub fn current_tasks(&self) -> Result<CurrentTasks, TasksError> {
        let info = self.kernel_info()?;
        CurrentTasks::of_kernel(&self.view(), &info).map_err(TasksError::Lacks)
    }

    fn kernel_info(&self) -> Result<VmCoreInfo, TasksError> {
        if !self.is_attached() {
            return Err(Unable::Detached.into());
        }
        if self.is_running {
            return Err(Unable::Running.into());
        }
        let known = self.view().kernel(Scope::Running);
        let known = known.map_err(|cancelled| TasksError::Lacks(cancelled.to_string()))?;
        known.info.clone().ok_or(TasksError::NoKernel)
    }

    /// The tasks that were found are nobody's any more: the guest has begun again.
    pub(super) fn forget_tasks(&mut self) {
        self.found = Found::default();
        let changes = self.tree.set_tasks(&[]);
        self.listeners.contexts_changed(&changes, &self.tree);
    }

    /// What a virtual address means to a task, or in an address space of tasks; `None` for another context.
    pub(super) fn task_space(&self, context: Id, address: u64) -> Option<Result<Translation, String>> {
        let (task, info) = (self.found.tasks.get(&context)?, self.found.info.as_ref()?);
        Some(self.view().space_of(info, task, address))
    }

    /// The registers of a task: of the vCPU that it is on, or those that it has saved; `None` for another context.
    pub(super) fn task_registers(&self, context: Id) -> Option<Result<RegisterFile, MachineError>> {
        let (task, info) = (self.task(context)?, self.found.info.as_ref()?);
        let view = self.view();
        let on = self.vcpu_of_task(&view, info, task).map_err(MachineError::Host);
        let saved = || view.saved_registers(info, task).map_err(MachineError::Host);
        Some(on.and_then(|on| match on {
            Some(vcpu) => self.machine.registers(vcpu, &arch::register::Bank::ALL),
            None => saved(),
        }))
    }

    fn vcpu_of_task(&self, view: &View<'_>, info: &VmCoreInfo, task: &Task) -> Result<Option<u32>, String> {
        let current = view.kernel_current(info)?;
        let is_on = |vcpu: &u32| {
            self.machine.activity(*vcpu) != Activity::NotStarted
                && view.task_on(info, &current, *vcpu).is_ok_and(|running| running.address == task.address)
        };
        Ok((0..self.machine.vcpus()).find(is_on))
    }

    /// Where, and when, a task has become active: behind the kernel's switch to it.
    pub(super) fn activation(&self, context: Id) -> Result<(u64, Condition), Unable> {
        let lacks = |_: String| Unable::UntilActive;
        let task = self.task(context).ok_or(Unable::UntilActive)?;
        let info = self.found.info.as_ref().ok_or(Unable::UntilActive)?;
        let view = self.view();
        if self.vcpu_of_task(&view, info, task).map_err(lacks)?.is_some() {
            return Err(Unable::Active);
        }
        let symbols = view.kernel_symbols(info).map_err(lacks)?;
        let is_switch = |name: &str| {
            name.strip_prefix("finish_task_switch")
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut code = symbols.iter().filter(|symbol| symbol.kind == SymbolKind::Text);
        let at = code.find(|symbol| is_switch(symbol.name)).ok_or(Unable::UntilActive)?.address;
        let tasks = self.current_tasks().map_err(|_| Unable::UntilActive)?;
        let (address, pid) = (task.address, task.pid);
        let holds = move |hit: &crate::breakpoint::Hit<'_>| {
            tasks.of(hit).is_ok_and(|running| (running.address, running.pid) == (address, pid))
        };
        Ok((at, Condition::Closure(Arc::new(holds))))
    }
}

#[cfg(test)]
mod tests;
