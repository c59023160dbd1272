//! Keeping all vCPUs but one out of the guest for the length of a step.
//!
//! Each vCPU thread says when it enters the guest and when it has left it. One that wants to
//! be alone says so, kicks those that are inside and waits until they are out; others wait at
//! the entrance. No lock is held while a guest runs: what is held is a word.

use crate::kvm::kick;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A thread that is out of reach of one kick gets another after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct State {
    exclusive: Option<u32>,
    inside: Vec<Option<kick::Thread>>,
}

/// The entrance.
#[derive(Debug)]
pub struct World {
    state: Mutex<State>,
    changed: Condvar,
}

impl World {
    /// For this many vCPUs, all of them outside.
    pub fn new(vcpus: u32) -> World {
        let state = State { exclusive: None, inside: vec![None; vcpus as usize] };
        World { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, KICK_AGAIN);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Called by a vCPU's thread before it enters the guest: waits while another one is alone.
    pub fn enter(&self, vcpu: u32) {
        let mut state = self.lock();
        while state.exclusive.is_some_and(|alone| alone != vcpu) {
            state = self.wait(state);
        }
        state.inside[vcpu as usize] = Some(kick::Thread::current());
    }

    /// Called by a vCPU's thread when it has left the guest.
    pub fn leave(&self, vcpu: u32) {
        let mut state = self.lock();
        state.inside[vcpu as usize] = None;
        if state.exclusive.is_some() {
            self.changed.notify_all();
        }
    }

    /// Called by a vCPU's thread outside the guest: returns when it is alone.
    pub fn begin_exclusive(&self, vcpu: u32) {
        let mut state = self.lock();
        while state.exclusive.is_some() {
            state = self.wait(state);
        }
        state.exclusive = Some(vcpu);
        while state.inside.iter().any(Option::is_some) {
            for thread in state.inside.iter().flatten() {
                // SAFETY: a thread that is inside is alive: it leaves before it ends, and cannot
                // leave while the lock is held.
                unsafe { thread.kick() };
            }
            state = self.wait(state);
        }
    }

    /// Lets the others in again.
    pub fn end_exclusive(&self) {
        self.lock().exclusive = None;
        self.changed.notify_all();
    }
}
