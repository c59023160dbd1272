//! Where the threads of devices are made. A monitor that confines its threads, each by what it is for, has them begin its
//! way ([`set_starter`]); without that they are as std makes them.

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
