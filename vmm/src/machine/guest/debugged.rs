//! A guest that a program debugs by itself, without gdb.

use super::Guest;
use crate::error::Error;
use crate::machine::vcpus::Threads;
use debug::context::Debuggee;
use debug::live::machine::LiveMachine;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

/// A guest that a program debugs: what can be done is in [`Debuggee`].
///
/// ```no_run
#[doc = include_str!("../../../examples/debug.rs")]
/// ```
///
/// It stands still when this is made, a guest that has not run yet in front of its first instruction; it runs when the
/// program [resumes](Debuggee::resume) it. When this is dropped, nothing of the debugger is left in it, and it runs.
#[derive(Debug)]
pub struct Debugged<'a> {
    debuggee: Debuggee<LiveMachine<Threads>>,
    guest: &'a Guest,
}

impl Guest {
    /// Debugs it, whether it runs or not. The guest's end is one of the things that are told then
    /// ([`WaitError::Ended`](debug::context::WaitError::Ended)); [`Guest::outcome`] has it as well.
    ///
    /// What KVM can do for a debugger is tried once in a process, which takes a moment.
    ///
    /// # Errors
    /// [`Error::Usage`] when somebody debugs it already, gdb or another; when the system gives no more descriptors.
    pub fn debug(&self) -> Result<Debugged<'_>, Error> {
        let debuggee = self.attachment.join()?;
        self.services.tell_end_to(self.vcpus.link());
        Ok(Debugged { debuggee, guest: self })
    }
}

impl Deref for Debugged<'_> {
    type Target = Debuggee<LiveMachine<Threads>>;

    fn deref(&self) -> &Self::Target {
        &self.debuggee
    }
}

impl DerefMut for Debugged<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.debuggee
    }
}

impl Drop for Debugged<'_> {
    fn drop(&mut self) {
        self.guest.services.tell_end_to(None);
        self.debuggee.detach();
        self.guest.services.is_started.store(true, Ordering::SeqCst);
        self.guest.attachment.leave();
    }
}
