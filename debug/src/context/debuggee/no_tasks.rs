//! Without the feature `linux` a guest has no tasks: what asks for them is the same, and there are none.

use super::Debuggee;
use crate::breakpoint::Condition;
use crate::context::mode::Unable;
use crate::context::tree::Id;
use crate::machine::{Machine, MachineError};
use crate::memory::Translation;
use arch::register::RegisterFile;

/// What was found: nothing.
#[derive(Debug, Default)]
pub(super) struct Found(());

impl<M: Machine> Debuggee<M> {
    pub(super) fn forget_tasks(&mut self) {
        self.found = Found(());
    }

    pub(super) fn task_space(&self, _: Id, _: u64) -> Option<Result<Translation, String>> {
        None
    }

    pub(super) fn task_registers(&self, _: Id) -> Option<Result<RegisterFile, MachineError>> {
        None
    }

    pub(super) fn activation(&self, _: Id) -> Result<(u64, Condition), Unable> {
        Err(Unable::UntilActive)
    }
}
