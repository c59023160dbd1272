//! Whether the tasks of the guest's Linux kernel are threads to a debugger.

use crate::reply::{Arguments, Refusal};

/// What threads are to a debugger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadKind {
    /// vCPUs.
    #[default]
    Cpus,
    /// vCPUs, and tasks of the guest's Linux kernel that sleep.
    Tasks,
}

impl ThreadKind {
    /// From what somebody has typed; `None` where that is nothing.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Option<ThreadKind>, Refusal> {
        match arguments.words()[..] {
            [] => Ok(None),
            ["cpus"] => Ok(Some(ThreadKind::Cpus)),
            ["tasks"] => Ok(Some(ThreadKind::Tasks)),
            _ => Err(Refusal::Usage("write cpus, tasks, or nothing".into())),
        }
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            ThreadKind::Cpus => "cpus",
            ThreadKind::Tasks => "tasks",
        }
    }
}
