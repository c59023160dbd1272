//! A debugger of a live guest: it comes at any time, serves gdb on a thread of its own, and leaves at any time.

use super::link::{Link, Wake};
use super::machine::{Begun, LiveMachine};
use super::vcpus::{Monitor, Vcpus};
use crate::engine::Engine;
use crate::gdb::description::Believed;
use crate::gdb::listener::{Admission, Listener};
use crate::gdb::server::{self, OnLost, Service};
use crate::gdb::session::Session;
use crate::ram::Memory;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// What a guest is to a debugger, beside its vCPUs.
pub struct Guest {
    /// What judges its exits, made for its architecture, its host and its number of vCPUs.
    pub engine: Arc<Engine>,
    /// Its RAM.
    pub memory: Box<dyn Memory>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guest").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// How gdb is served.
#[derive(Debug)]
pub struct Options {
    /// Who is served.
    pub admission: Admission,
    /// What becomes of the guest when a debugger is lost.
    pub on_lost: OnLost,
    /// A debugger that comes second takes the place of the first.
    pub takeover: bool,
    /// What is believed of the guest before it says so.
    pub believed: Believed,
    /// The folder that `monitor dump` writes below; the current one where none is given.
    pub dump_folder: Option<PathBuf>,
}

/// The thread that serves gdb, or a program's say in a guest. Whoever drops it without [`leave`](Debugger::leave) means that the guest is over: what
/// is planted stays, and vCPUs that it has stopped stand still.
#[derive(Debug)]
pub struct Debugger<M: Monitor> {
    engine: Arc<Engine>,
    wake: Wake,
    release: Wake,
    next: Sender<Result<Begun<M>, String>>,
    /// The debugger wants the guest to end, whichever machine it is in by then.
    wants_end: Arc<AtomicBool>,
    quit: Wake,
    /// Those of the machine that the guest is in. They are not kept by this.
    vcpus: Mutex<Weak<Vcpus<M>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<M: Monitor> Debugger<M> {
    /// Comes to a guest, whether it runs or not, and serves gdb at `listener`.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn attach(
        vcpus: &Arc<Vcpus<M>>,
        guest: Guest,
        listener: Listener,
        options: Options,
    ) -> io::Result<Debugger<M>> {
        let (wake, release, quit) = (Wake::new()?, Wake::new()?, Wake::new()?);
        let engine = guest.engine;
        let service = Service {
            quit: quit.duplicate()?,
            release: Some(release.duplicate()?),
            admission: options.admission,
            on_lost: options.on_lost,
            takeover: options.takeover,
        };
        let (sender, next) = channel();
        let wants_end = Arc::new(AtomicBool::new(false));
        let begun = begin(vcpus, &engine, guest.memory, (wake.clone(), release.clone()));
        let machine = LiveMachine::new(begun, next, (quit.clone(), Arc::clone(&wants_end)));
        let judge = Arc::clone(&engine);
        let (believed, dump_folder) = (options.believed, options.dump_folder);
        let thread = thread::Builder::new().name("gdb".into()).spawn(move || {
            let mut session = Session::new(machine, judge);
            session.believed = believed;
            if let Some(folder) = dump_folder {
                session.dump_folder = folder;
            }
            server::run(&listener, session, &service);
        });
        let thread = thread.inspect_err(|_| vcpus.detach())?;
        let (vcpus, thread) = (Mutex::new(Arc::downgrade(vcpus)), Mutex::new(Some(thread)));
        Ok(Debugger { engine, wake, release, next: sender, wants_end, quit, vcpus, thread })
    }

    /// Comes to a guest, whether it runs or not, for a program that debugs it by itself, on whichever thread it likes:
    /// with the machine that it debugs, for a [`Debuggee`](crate::context::Debuggee). That is not to be used any more
    /// when this has left.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn join(vcpus: &Arc<Vcpus<M>>, guest: Guest) -> io::Result<(Debugger<M>, LiveMachine<M>)> {
        let (wake, release, quit) = (Wake::new()?, Wake::new()?, Wake::new()?);
        let engine = guest.engine;
        let (sender, next) = channel();
        let wants_end = Arc::new(AtomicBool::new(false));
        let begun = begin(vcpus, &engine, guest.memory, (wake.clone(), release.clone()));
        let machine = LiveMachine::new(begun, next, (quit.clone(), Arc::clone(&wants_end)));
        let (vcpus, thread) = (Mutex::new(Arc::downgrade(vcpus)), Mutex::new(None));
        Ok((Debugger { engine, wake, release, next: sender, wants_end, quit, vcpus, thread }, machine))
    }

    /// What it judges exits with, and knows planted instructions by.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The guest begins again in another machine, with as many vCPUs, none of which has run: the debugger goes over to
    /// it, with all that it has asked for, and lets it run.
    pub fn begin_again(&self, vcpus: &Arc<Vcpus<M>>, memory: Box<dyn Memory>) {
        let begun = begin(vcpus, &self.engine, memory, (self.wake.clone(), self.release.clone()));
        *self.vcpus.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(vcpus);
        self.tell(Ok(begun));
        // It may have ended the former machine when that was over already. Whoever does so behind this
        // look finds the new one.
        if self.wants_end.load(Ordering::SeqCst) {
            vcpus.monitor().quit();
        }
    }

    /// The guest does not begin again though the debugger has asked for it; in words, why.
    pub fn cannot_begin_again(&self, why: String) {
        self.tell(Err(why));
    }

    fn tell(&self, next: Result<Begun<M>, String>) {
        // Nobody hears it only when the thread has ended, as it does when the guest is over.
        self.next.send(next).ok();
        self.wake.ring();
    }

    /// Has the gdb that is connected let go, so that another one may come.
    pub fn release(&self) {
        self.release.ring();
    }

    /// Leaves: whoever is connected is let go, nothing is left in the guest, and it runs.
    pub fn leave(&self) {
        self.end();
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(vcpus) = vcpus {
            vcpus.detach();
        }
    }

    fn end(&self) {
        self.quit.ring();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
            && thread.join().is_err()
        {
            log::error!("the gdb server ended with a panic");
        }
    }
}

impl<M: Monitor> Drop for Debugger<M> {
    /// The guest is over: nothing of the debugger's is taken out of it.
    fn drop(&mut self) {
        self.end();
    }
}

/// Lets a debugger have its say in a machine.
fn begin<M: Monitor>(
    vcpus: &Arc<Vcpus<M>>,
    engine: &Arc<Engine>,
    memory: Box<dyn Memory>,
    wakes: (Wake, Wake),
) -> Begun<M> {
    let kick = vcpus.monitor().kick_among_vcpus();
    let (link, events) = Link::new(Arc::clone(engine), vcpus.count(), memory, kick, wakes);
    let link = Arc::new(link);
    vcpus.attach(&link);
    Begun { vcpus: Arc::clone(vcpus), link, events }
}
