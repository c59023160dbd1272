//! Which task of a Linux kernel has hit a breakpoint.

use crate::breakpoint::Hit;
use crate::linux::VmCoreInfo;
use crate::linux::current::{Current, Running, Unknown};
use crate::linux::reader::Reader;
use crate::linux::translate::kernel_regime;
use crate::view::View;
use arch::paging::Regime;

/// Tells of a hit whose task it is, for conditions: [`Debuggee::current_tasks`](super::Debuggee::current_tasks) makes
/// one of the kernel that is there then, and it is of use until the guest begins again.
#[derive(Clone, Debug)]
pub struct CurrentTasks {
    current: Current,
    /// How the kernel says that it translates.
    kernel: Option<Regime>,
}

impl CurrentTasks {
    /// Of the kernel that a view shows.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn of_kernel(view: &View<'_>, info: &VmCoreInfo) -> Result<CurrentTasks, String> {
        Ok(CurrentTasks { current: view.kernel_current(info)?, kernel: kernel_regime(view.isa(), info) })
    }

    /// The task that has hit. Where user space has tables of its own, which lack the kernel's data, the kernel's are
    /// asked.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn of(&self, hit: &Hit<'_>) -> Result<Running, Unknown> {
        let register = |name: &str| hit.register(name);
        let by = |regime: Option<Regime>| {
            let read = |at: u64, bytes: &mut [u8]| regime.map_or(0, |regime| hit.read_by(regime, at, bytes));
            self.current.task(&register, &Reader::new(&read))
        };
        by(hit.regime()).or_else(|error| if self.kernel.is_some() { by(self.kernel) } else { Err(error) })
    }
}
