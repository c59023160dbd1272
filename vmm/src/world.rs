//! Keeping all vCPUs but one out of the guest for the length of a step.
//!
//! Each vCPU thread says when it enters the guest and when it has left it. One that wants to
//! be alone says so, kicks those that are inside and waits until they are out; others wait at
//! the entrance. No lock is held while a guest runs, and none is taken to enter or leave it
//! while nobody wants to be alone.
//!
//! # Why none slips in
//! A thread writes that it is inside and then reads who is alone; one that wants to be alone
//! writes that and then reads who is inside. With a sequentially consistent fence between the
//! two on each side, at least one of them sees the other, and it is the thread at the entrance
//! that goes back.

use crate::kvm::kick;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that is out of reach of one kick gets another after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// For how long one vCPU may keep the others out. A step takes microseconds; one that has not ended after
/// this time will not, and the guest is not to stand still for it.
const LONGEST: Duration = Duration::from_millis(100);
/// Nobody is alone.
const NOBODY: u64 = u64::MAX;

/// A vCPU's place at the entrance.
#[derive(Debug, Default)]
struct Place {
    is_inside: AtomicBool,
    /// Its thread, from the first time it comes.
    thread: Mutex<Option<kick::Thread>>,
}

/// The entrance.
#[derive(Debug)]
pub struct World {
    /// The vCPU that is alone, or wants to be. Changes under `gate`.
    alone: AtomicU64,
    /// It has been for too long. Changes under `gate`.
    is_overdue: AtomicBool,
    gate: Mutex<()>,
    changed: Condvar,
    places: Vec<Place>,
}

impl World {
    /// For this many vCPUs, all of them outside.
    pub fn new(vcpus: u32) -> World {
        World {
            alone: AtomicU64::new(NOBODY),
            is_overdue: AtomicBool::new(false),
            gate: Mutex::new(()),
            changed: Condvar::new(),
            places: (0..vcpus).map(|_| Place::default()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, gate: MutexGuard<'a, ()>) -> MutexGuard<'a, ()> {
        let waited = self.changed.wait_timeout(gate, KICK_AGAIN);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn is_alone(&self, vcpu: u32) -> bool {
        let alone = self.alone.load(Ordering::SeqCst);
        alone == NOBODY || alone == u64::from(vcpu)
    }

    /// Called once by each vCPU's thread before it enters for the first time.
    pub fn introduce(&self, vcpu: u32) {
        let thread = &self.places[vcpu as usize].thread;
        *thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick::Thread::current());
    }

    /// Called by a vCPU's thread before it enters the guest: waits while another one is alone.
    pub fn enter(&self, vcpu: u32) {
        let place = &self.places[vcpu as usize];
        loop {
            place.is_inside.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.is_alone(vcpu) {
                return;
            }
            self.leave(vcpu);
            let mut gate = self.lock();
            let mut deadline = Instant::now() + LONGEST;
            while !self.is_alone(vcpu) {
                gate = self.wait(gate);
                if Instant::now() >= deadline {
                    self.hurry();
                    deadline += LONGEST;
                }
            }
        }
    }

    /// Has whoever is alone give up. Called under `gate`.
    fn hurry(&self) {
        self.is_overdue.store(true, Ordering::Release);
        let alone = self.alone.load(Ordering::SeqCst);
        let place = usize::try_from(alone).ok().and_then(|vcpu| self.places.get(vcpu));
        if let Some(thread) =
            place.and_then(|place| *place.thread.lock().unwrap_or_else(PoisonError::into_inner))
        {
            // SAFETY: vCPU threads are joined only when all of them have come to their end, and the one
            // that calls this has not.
            unsafe { thread.kick() };
        }
    }

    /// Whether the vCPU that is alone has been for too long, and others wait.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue.load(Ordering::Acquire)
    }

    /// Called by a vCPU's thread when it has left the guest.
    pub fn leave(&self, vcpu: u32) {
        self.places[vcpu as usize].is_inside.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.alone.load(Ordering::Relaxed) != NOBODY {
            // Whoever is waiting has the lock until it waits.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Called by a vCPU's thread outside the guest: returns when it is alone.
    pub fn begin_exclusive(&self, vcpu: u32) {
        let mut gate = self.lock();
        while self.alone.load(Ordering::SeqCst) != NOBODY {
            gate = self.wait(gate);
        }
        self.is_overdue.store(false, Ordering::Release);
        self.alone.store(u64::from(vcpu), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        loop {
            let mut is_alone = true;
            for place in self.places.iter().filter(|place| place.is_inside.load(Ordering::Acquire)) {
                is_alone = false;
                if let Some(thread) = *place.thread.lock().unwrap_or_else(PoisonError::into_inner) {
                    // SAFETY: vCPU threads are joined only when all of them have come to their
                    // end, and the one that calls this has not.
                    unsafe { thread.kick() };
                }
            }
            if is_alone {
                return;
            }
            gate = self.wait(gate);
        }
    }

    /// Lets the others in again.
    pub fn end_exclusive(&self) {
        let gate = self.lock();
        self.alone.store(NOBODY, Ordering::SeqCst);
        self.is_overdue.store(false, Ordering::Release);
        drop(gate);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    /// One that is alone and does not come to its end is told so, when another waits.
    #[test]
    fn nobody_is_alone_for_ever() {
        kick::install_handler().unwrap();
        let world = Arc::new(World::new(2));
        let entered = Arc::new(AtomicU32::new(0));
        world.introduce(0);
        world.begin_exclusive(0);
        let (their_world, their_entered) = (Arc::clone(&world), Arc::clone(&entered));
        let other = std::thread::spawn(move || {
            their_world.introduce(1);
            their_world.enter(1);
            their_entered.store(1, Ordering::SeqCst);
            their_world.leave(1);
        });
        let begin = Instant::now();
        while !world.is_overdue() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it is alone for ever");
            assert_eq!(entered.load(Ordering::SeqCst), 0);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begin.elapsed() >= LONGEST);
        world.end_exclusive();
        other.join().unwrap();
        assert_eq!(entered.load(Ordering::SeqCst), 1);
        // The next one begins anew.
        world.begin_exclusive(0);
        assert!(!world.is_overdue());
        world.end_exclusive();
    }
}
