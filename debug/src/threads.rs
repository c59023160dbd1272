//! Where threads are made: the debugger's, and those of whoever shares the process with it. A monitor that confines its
//! threads, each by what it is for, has all of them begin its way ([`set_starter`]); without that they are as std makes
//! them.

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

/// What a thread does.
pub type Work = Box<dyn FnOnce() + Send>;

/// Starts a thread of a kind, which does its work and nothing after it. It may be made by another thread than asks for
/// it.
pub type Starter = fn(kind: &'static str, thread: Builder, work: Work) -> io::Result<JoinHandle<()>>;

static STARTER: OnceLock<Starter> = OnceLock::new();

/// Has threads that are made from now on be started by this. It is for all of the process, and holds until its end;
/// `false` if there is one already.
pub fn set_starter(starter: Starter) -> bool {
    STARTER.set(starter).is_ok()
}

/// Starts a thread that is for something, in a word.
///
/// # Errors
/// When the system gives no more threads, or the monitor knows of no such kind.
pub fn start(
    kind: &'static str,
    thread: Builder,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    match STARTER.get() {
        Some(starter) => starter(kind, thread, Box::new(work)),
        None => thread.spawn(work),
    }
}

/// Has the calling thread, which was made before there was a starter, begin as one of a kind.
pub type Late = fn(kind: &'static str);

static LATE: OnceLock<Late> = OnceLock::new();

/// Has threads that were made before be looked after by this, when they come to it ([`Latecomer`]); `false` if there is
/// one already.
pub fn set_late(late: Late) -> bool {
    LATE.set(late).is_ok()
}

/// A thread that may have been made before there was a starter, and looks now and then whether there is one.
#[derive(Debug)]
pub struct Latecomer {
    kind: &'static str,
    has_begun: bool,
}

impl Latecomer {
    /// The calling thread, of a kind.
    pub fn new(kind: &'static str) -> Latecomer {
        // With a starter, the thread has begun as it should.
        Latecomer { kind, has_begun: STARTER.get().is_some() }
    }

    /// Looks. The first time that there is somebody who looks after latecomers, the thread begins anew.
    pub fn look(&mut self) {
        if !self.has_begun
            && let Some(late) = LATE.get()
        {
            self.has_begun = true;
            late(self.kind);
        }
    }
}
