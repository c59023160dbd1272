//! One way to give up: what can take longer than a packet asks its token every few megabytes
//! whether it is still wanted.
//!
//! Whoever starts such work says what makes it superfluous: a debugger that interrupts or has gone,
//! a client of the control socket that has gone, the end of the process. The work itself knows
//! nothing of descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The work was broken off. What it was to change is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken off")]
pub struct Cancelled;

/// How often the outside is looked at, at most: a look costs system calls.
const INTERVAL: Duration = Duration::from_millis(20);

/// A token; its clones are the same one.
#[derive(Clone)]
pub struct Cancel(Arc<Inner>);

struct Inner {
    /// Set once, by [`Cancel::cancel`] or by a look.
    is_cancelled: AtomicBool,
    /// Whether the outside wants no more of it.
    look: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    made: Instant,
    /// When to look next, milliseconds after `made`.
    next: AtomicU64,
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("is_cancelled", &self.0.is_cancelled).finish_non_exhaustive()
    }
}

impl Default for Cancel {
    fn default() -> Cancel {
        Cancel::with(None)
    }
}

impl Cancel {
    /// A token whose `look`, asked now and then on the thread that does the work, says whether
    /// the work is superfluous.
    pub fn new(look: impl Fn() -> bool + Send + Sync + 'static) -> Cancel {
        Cancel::with(Some(Box::new(look)))
    }

    /// A token that only [`Self::cancel`] makes an end of.
    pub fn never() -> Cancel {
        Cancel::default()
    }

    fn with(look: Option<Box<dyn Fn() -> bool + Send + Sync>>) -> Cancel {
        let state = Inner {
            is_cancelled: AtomicBool::new(false),
            look,
            made: Instant::now(),
            next: AtomicU64::new(0),
        };
        Cancel(Arc::new(state))
    }

    /// The work is not wanted any more. From any thread.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
    }

    /// Whether it has been told, or found, that the work is not wanted.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Whether to go on. Cheap enough to be asked every few thousand instructions.
    ///
    /// # Errors
    /// [`Cancelled`], from the first time on.
    pub fn check(&self) -> Result<(), Cancelled> {
        let state = &*self.0;
        if !self.is_cancelled()
            && let Some(look) = &state.look
        {
            let now = u64::try_from(state.made.elapsed().as_millis()).unwrap_or(u64::MAX);
            let next = now.saturating_add(u64::try_from(INTERVAL.as_millis()).unwrap_or(u64::MAX));
            if now >= state.next.load(Ordering::Relaxed) {
                state.next.store(next, Ordering::Relaxed);
                if look() {
                    self.cancel();
                }
            }
        }
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_outside_is_looked_at_now_and_then_and_remembered() {
        let looks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&looks);
        let cancel = Cancel::new(move || counted.fetch_add(1, Ordering::Relaxed) > 0);
        assert_eq!(cancel.check(), Ok(()));
        for _ in 0..1000 {
            // Within the interval nothing is asked again, as far as the clock lets us.
            cancel.check().ok();
        }
        while cancel.check().is_ok() {
            std::thread::sleep(INTERVAL);
        }
        let seen = looks.load(Ordering::Relaxed);
        assert_eq!(cancel.clone().check(), Err(Cancelled));
        assert_eq!(looks.load(Ordering::Relaxed), seen, "what is cancelled is not looked at again");
        assert_eq!(seen, 2);
    }

    #[test]
    fn another_thread_cancels() {
        let cancel = Cancel::never();
        assert_eq!(cancel.check(), Ok(()));
        let other = cancel.clone();
        std::thread::spawn(move || other.cancel()).join().unwrap();
        assert_eq!(cancel.check(), Err(Cancelled));
    }
}
