//! Who holds a guest, and what is done when the first begins to and the last ends.
//!
//! Any number may hold it at a time. What is done at the beginning and at the end is done by one after the other, each in
//! a turn; a turn takes as long as what the monitor does in it. Who is not to wait for another's turn ([`Turn::soon`]) leaves
//! what is to be done, and whoever has the turn does it at the end of his own.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// What is said of a panic that goes no further.
pub(super) const PANICKED: &str =
    "a monitor has panicked in its part of beginning or ending to hold the guest";

/// What can be held.
pub(super) trait Held: Sized {
    /// Who does.
    fn holders(&self) -> &Holders<Self>;

    /// The first begins to.
    fn stands_still(&self);

    /// The last has ended to.
    fn goes_on(&self);
}

/// What is done in a turn.
type Errand<H> = Box<dyn FnOnce(&mut Turn<'_, H>) + Send>;

/// How many hold the guest.
pub(super) struct Holders<H: Held> {
    /// Locked by [`Turn`]s alone, all vCPUs being out of the guest by then; never by vCPUs' threads, and never while one is
    /// waited for but by the monitor itself.
    count: Mutex<usize>,
    /// The same, and one more in a turn, for whoever does not take one.
    shown: AtomicUsize,
    /// What somebody has left for whoever has the turn. Locked for a moment only.
    left: Mutex<VecDeque<Errand<H>>>,
}

impl<H: Held> fmt::Debug for Holders<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holders").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl<H: Held> Default for Holders<H> {
    fn default() -> Holders<H> {
        Holders { count: Mutex::default(), shown: AtomicUsize::new(0), left: Mutex::default() }
    }
}

impl<H: Held> Holders<H> {
    /// Whether somebody holds the guest; who is about to does already. Nobody is waited for.
    pub fn are_there(&self) -> bool {
        self.shown.load(Ordering::SeqCst) > 0
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<Errand<H>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, count: usize) {
        self.shown.store(count, Ordering::SeqCst);
    }
}

/// Somebody begins or ends to hold the guest, and nobody else does meanwhile.
pub(super) struct Turn<'a, H: Held> {
    held: &'a Arc<H>,
    /// There until the turn ends.
    count: Option<MutexGuard<'a, usize>>,
}

impl<'a, H: Held> Turn<'a, H> {
    fn begun(held: &'a Arc<H>, count: MutexGuard<'a, usize>) -> Turn<'a, H> {
        held.holders().show(*count + 1);
        Turn { held, count: Some(count) }
    }

    /// Waits for it.
    pub fn take(held: &'a Arc<H>) -> Turn<'a, H> {
        Turn::begun(held, held.holders().count.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `None` while somebody else has it.
    pub fn try_take(held: &'a Arc<H>) -> Option<Turn<'a, H>> {
        match held.holders().count.try_lock() {
            Ok(count) => Some(Turn::begun(held, count)),
            Err(TryLockError::Poisoned(poisoned)) => Some(Turn::begun(held, poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Has something done in a turn, behind what has been left before, at once or by whoever has the turn, and waits for
    /// nobody.
    pub fn soon(held: &Arc<H>, errand: impl FnOnce(&mut Turn<'_, H>) + Send + 'static) {
        held.holders().left().push_back(Box::new(errand));
        // Whoever leaves something sees that the turn is free, or he whose turn ends sees what is left: both look behind
        // what they have done.
        fence(Ordering::SeqCst);
        drop(Turn::try_take(held));
    }

    /// One more holds it.
    pub fn begin(&mut self) {
        let Some(count) = &mut self.count else { return };
        if **count == 0 {
            self.held.stands_still();
        }
        **count += 1;
    }

    /// One less does.
    pub fn end(&mut self) {
        let Some(count) = &mut self.count else { return };
        **count -= 1;
        if **count == 0 {
            self.held.goes_on();
        }
    }

    /// Whose turn it is.
    pub fn held(&self) -> &'a Arc<H> {
        self.held
    }

    /// Whether somebody holds it.
    pub fn is_held(&self) -> bool {
        self.count.as_ref().is_some_and(|count| **count > 0)
    }

    /// Runs what others have left, in the order that they have.
    fn run_errands(&mut self) {
        loop {
            let Some(errand) = self.held.holders().left().pop_front() else { return };
            // What a monitor does for one is not to take away what is done for another.
            if catch_unwind(AssertUnwindSafe(|| errand(self))).is_err() {
                log::error!("{PANICKED}");
            }
        }
    }
}

impl<H: Held> Drop for Turn<'_, H> {
    fn drop(&mut self) {
        let holders = self.held.holders();
        self.run_errands();
        if let Some(count) = self.count.take() {
            holders.show(*count);
        }
        fence(Ordering::SeqCst);
        if !holders.left().is_empty() {
            // Or somebody has the turn by now, and does it.
            drop(Turn::try_take(self.held));
        }
    }
}
