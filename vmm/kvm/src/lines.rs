//! What keeps interrupts from being raised while an interrupt controller is looked at.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Whoever raises an interrupt has this lock for reading, so that none is raised while an interrupt
/// controller's state is read, changed and written: it would be lost.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<RwLock<()>>);

impl Lines {
    /// To be kept while an interrupt is raised.
    pub(super) fn raise(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something while no interrupt is raised from here.
    #[cfg_attr(
        target_arch = "aarch64",
        allow(dead_code, reason = "its controllers' timers are the counter's")
    )]
    pub(super) fn keep_still<R>(&self, what: impl FnOnce() -> R) -> R {
        let _still = self.0.write().unwrap_or_else(PoisonError::into_inner);
        what()
    }
}
