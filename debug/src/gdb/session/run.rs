//! The target is resumed, and stands still again.

use super::{Session, Stop};
use crate::machine::{Action, Machine, MachineError};

impl<M: Machine> Session<M> {
    /// Gives each vCPU its order. A stop that is still to be reported is reported instead, by
    /// [`Self::next_stop`].
    ///
    /// # Errors
    /// [`MachineError`]; then nothing runs.
    pub fn run(&mut self, actions: &[Action]) -> Result<(), MachineError> {
        self.code_written = 0;
        self.debuggee.run(actions)?;
        self.threads.forget();
        Ok(())
    }

    /// Whether there may be something to report for which all vCPUs are to stand still, where they must not be waited
    /// for.
    pub fn has_stopped(&mut self) -> bool {
        self.debuggee.has_stopped()
    }

    /// What there is to report, all vCPUs standing still; `None` while the target runs on.
    pub fn next_stop(&mut self) -> Option<Stop> {
        let stop = self.debuggee.next_stop();
        self.look_for_beginnings();
        if stop.is_some() {
            self.threads.stop();
        }
        stop
    }

    /// A guest that has begun again is another one, of which the debugger is to be told what it was of the first.
    pub(super) fn look_for_beginnings(&mut self) {
        let beginnings = self.debuggee.beginnings();
        if std::mem::replace(&mut self.beginnings, beginnings) != beginnings {
            (self.chosen, self.is_told) = (None, false);
        }
    }

    /// Stops the target for the debugger, and what to report.
    pub fn interrupt(&mut self) -> Stop {
        let stop = self.debuggee.interrupt();
        self.look_for_beginnings();
        self.threads.stop();
        stop
    }
}
