//! Who holds a guest, and what is done when the first begins to and the last ends.
//!
//! Any number may hold it at a time. What is done at the beginning and at the end is done by one after the other, each in
//! a turn; a turn takes as long as what the [`Monitor`] does in it. Who is not to wait for another's turn
//! ([`Hold::let_go`]) leaves what is to be done, and whoever has the turn does it at the end of his own.

use super::runner::Runner;
use super::vcpus::{KICK_AGAIN, Monitor, Vcpus};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// What is done in a turn.
type Errand<M> = Box<dyn FnOnce(&mut Turn<'_, M>) + Send>;

/// How many hold the guest.
pub(super) struct Holders<M: Monitor> {
    /// Locked by [`Turn`]s alone, all vCPUs being out of the guest by then; never by vCPUs' threads, and never while one is
    /// waited for but by the [`Monitor`] itself.
    count: Mutex<usize>,
    /// The same, and one more in a turn, for whoever does not take one.
    shown: AtomicUsize,
    /// What somebody has left for whoever has the turn. Locked for a moment only.
    left: Mutex<VecDeque<Errand<M>>>,
}

impl<M: Monitor> fmt::Debug for Holders<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holders").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl<M: Monitor> Default for Holders<M> {
    fn default() -> Holders<M> {
        Holders { count: Mutex::default(), shown: AtomicUsize::new(0), left: Mutex::default() }
    }
}

impl<M: Monitor> Holders<M> {
    /// Whether somebody holds the guest; who is about to does already. Nobody is waited for.
    pub fn are_there(&self) -> bool {
        self.shown.load(Ordering::SeqCst) > 0
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<Errand<M>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, count: usize) {
        self.shown.store(count, Ordering::SeqCst);
    }
}

/// Somebody begins or ends to hold the guest, and nobody else does meanwhile.
struct Turn<'a, M: Monitor> {
    vcpus: &'a Arc<Vcpus<M>>,
    /// There until the turn ends.
    count: Option<MutexGuard<'a, usize>>,
}

impl<'a, M: Monitor> Turn<'a, M> {
    fn begun(vcpus: &'a Arc<Vcpus<M>>, count: MutexGuard<'a, usize>) -> Turn<'a, M> {
        vcpus.holders().show(*count + 1);
        Turn { vcpus, count: Some(count) }
    }

    /// Waits for it.
    fn take(vcpus: &'a Arc<Vcpus<M>>) -> Turn<'a, M> {
        Turn::begun(vcpus, vcpus.holders().count.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `None` while somebody else has it.
    fn try_take(vcpus: &'a Arc<Vcpus<M>>) -> Option<Turn<'a, M>> {
        match vcpus.holders().count.try_lock() {
            Ok(count) => Some(Turn::begun(vcpus, count)),
            Err(TryLockError::Poisoned(poisoned)) => Some(Turn::begun(vcpus, poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Has something done in a turn, behind what has been left before, at once or by whoever has the turn, and waits for
    /// nobody.
    fn soon(vcpus: &Arc<Vcpus<M>>, errand: impl FnOnce(&mut Turn<'_, M>) + Send + 'static) {
        vcpus.holders().left().push_back(Box::new(errand));
        // Whoever leaves something sees that the turn is free, or he whose turn ends sees what is left: both look behind
        // what they have done.
        fence(Ordering::SeqCst);
        drop(Turn::try_take(vcpus));
    }

    fn begin(&mut self) {
        let Some(count) = &mut self.count else { return };
        if **count == 0 {
            self.vcpus.monitor().stands_still(self.vcpus);
        }
        **count += 1;
    }

    fn end(&mut self) {
        let Some(count) = &mut self.count else { return };
        **count -= 1;
        if **count == 0 {
            self.vcpus.monitor().goes_on(self.vcpus);
        }
    }

    /// Runs what others have left, in the order that they have.
    fn run_errands(&mut self) {
        loop {
            let Some(errand) = self.vcpus.holders().left().pop_front() else { return };
            // What a monitor does for one is not to take away what is done for another.
            if catch_unwind(AssertUnwindSafe(|| errand(self))).is_err() {
                log::error!("a monitor has panicked in its part of beginning or ending to hold the guest");
            }
        }
    }
}

impl<M: Monitor> Drop for Turn<'_, M> {
    fn drop(&mut self) {
        let holders = self.vcpus.holders();
        self.run_errands();
        if let Some(count) = self.count.take() {
            holders.show(*count);
        }
        fence(Ordering::SeqCst);
        if !holders.left().is_empty() {
            // Or somebody has the turn by now, and does it.
            drop(Turn::try_take(self.vcpus));
        }
    }
}

/// While it is there, no vCPU is in the guest, and the guest's time stands still.
///
/// Any number of them may be there at once: a debugger's, a dump's, an embedder's. None waits for
/// another to go, so they cannot wait for each other.
#[derive(Debug)]
pub struct Hold<M: Monitor> {
    vcpus: Arc<Vcpus<M>>,
    /// The vCPUs' threads know of it; else they were told to pause.
    is_told: bool,
    /// It ends by itself.
    is_let_go: bool,
}

impl<M: Monitor> Hold<M> {
    fn new(vcpus: &Arc<Vcpus<M>>, is_told: bool) -> Hold<M> {
        Hold { vcpus: Arc::clone(vcpus), is_told, is_let_go: false }
    }

    /// Of vCPUs whose threads have been told to hold, and are out of the guest: it stays longer than a debugger's step
    /// takes.
    pub(super) fn of_told(vcpus: &Arc<Vcpus<M>>) -> Hold<M> {
        let mut turn = Turn::take(vcpus);
        turn.begin();
        vcpus.monitor().stays(vcpus);
        drop(turn);
        Hold::new(vcpus, true)
    }

    /// Of vCPUs that have been told to pause, and are out of the guest.
    pub(super) fn of_paused(vcpus: &Arc<Vcpus<M>>) -> Hold<M> {
        Turn::take(vcpus).begin();
        Hold::new(vcpus, false)
    }

    /// The same, and nobody is waited for: `None` while somebody else begins or ends to hold them.
    pub(super) fn try_of_paused(vcpus: &Arc<Vcpus<M>>) -> Option<Hold<M>> {
        Turn::try_take(vcpus)?.begin();
        Some(Hold::new(vcpus, false))
    }

    /// What is held.
    pub fn vcpus(&self) -> &Vcpus<M> {
        &self.vcpus
    }

    /// Called by whoever will hold the guest for longer than a debugger's step takes.
    pub fn stays(&self) {
        let _turn = Turn::take(&self.vcpus);
        self.vcpus.monitor().stays(&self.vcpus);
    }

    /// The same, and nobody is waited for.
    pub(super) fn stays_soon(&self) {
        Turn::soon(&self.vcpus, |turn| {
            // Else it has been let go meanwhile.
            if turn.count.as_ref().is_some_and(|count| **count > 0) {
                turn.vcpus.monitor().stays(turn.vcpus);
            }
        });
    }

    /// Called by whoever holds the guest and waits, for nobody else. How long until it is to be called again.
    pub fn settle(&self) -> Option<Duration> {
        match Turn::try_take(&self.vcpus) {
            Some(_turn) => self.vcpus.monitor().settle(&self.vcpus),
            None => Some(KICK_AGAIN),
        }
    }

    /// Ends it and waits for nobody: `then` is called behind that, at once or by whoever has the turn.
    pub(super) fn let_go(mut self, then: impl FnOnce(&Arc<Vcpus<M>>) + Send + 'static) {
        self.is_let_go = true;
        let (vcpus, is_told) = (Arc::clone(&self.vcpus), self.is_told);
        Turn::soon(&vcpus, move |turn| {
            turn.end();
            if is_told {
                turn.vcpus.tell_all(Runner::release);
            }
            then(turn.vcpus);
        });
    }
}

/// Has something done behind what holders have [let go](Hold::let_go) before, and waits for nobody.
pub(super) fn behind_those_gone<M: Monitor>(
    vcpus: &Arc<Vcpus<M>>,
    then: impl FnOnce(&Arc<Vcpus<M>>) + Send + 'static,
) {
    Turn::soon(vcpus, move |turn| then(turn.vcpus));
}

impl<M: Monitor> Drop for Hold<M> {
    fn drop(&mut self) {
        if self.is_let_go {
            return;
        }
        let mut turn = Turn::take(&self.vcpus);
        turn.end();
        if self.is_told {
            self.vcpus.tell_all(Runner::release);
        }
    }
}
