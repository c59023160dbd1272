//! The live machine as the debugger sees it.
//!
//! [`DebugShared`] is what vCPU threads need while a debugger may be there; `LiveMachine` is all vCPUs for the thread
//! that serves gdb.
//! [`Debugger`] is that thread. None of this exists without `--gdb`.

use crate::config::GdbConfig;
use crate::debug_shared::DebugShared;
use crate::error::Error;
use crate::outcome::{Outcome, Stop};
use crate::peer;
use crate::serve::Shared;
use crate::vcpus::Vcpus;
use debug::engine::Engine;
use debug::gdb::description::Believed;
use debug::gdb::listener::Listener;
use debug::gdb::server::{self, Service};
use debug::gdb::session::Session;
use debug::live::link::Wake;
use debug::target::{Event, TargetError};
use kvm::ram::GuestMemory;
use kvm::{HOST_ISA, KvmError, probe};
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::EventFd;

mod machine;

use machine::{Begun, LiveMachine};

fn host(error: KvmError) -> TargetError {
    TargetError::Host(error.to_string())
}

/// What a machine with `--gdb` is made with, before its vCPUs have threads.
#[derive(Debug)]
pub struct Prepared {
    /// For the vCPU threads.
    pub shared: Arc<DebugShared>,
    events: Receiver<Event>,
    server: ServedBy,
}

/// Who serves gdb for a machine.
#[derive(Debug)]
enum ServedBy {
    /// A thread that is still to be started.
    New(Listener, GdbConfig, Believed),
    /// The thread of the machine whose guest begins again in this one.
    Former(Arc<Debugger>),
}

impl Prepared {
    /// Opens the socket and finds out what the host can do.
    ///
    /// # Errors
    /// [`Error`] when the socket cannot be opened.
    pub fn new(
        config: &GdbConfig,
        vcpus: u32,
        memory: &GuestMemory,
        believed: Believed,
    ) -> Result<Prepared, Error> {
        if let Some(folder) = &config.dump_folder {
            let failed = |source| Error::Open { option: "--dump-dir", path: folder.clone(), source };
            if !fs::metadata(folder).map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            let writable = AccessFlags::W_OK | AccessFlags::X_OK;
            access(folder, writable).map_err(|error| failed(error.into()))?;
        }
        let address = &config.address;
        let listener = Listener::bind(address, config.access())
            .map_err(|source| Error::Listen { address: address.to_string(), source })?;
        if address.is_open() {
            log::warn!("whoever can connect to {} owns the guest", listener.address());
        }
        let engine = Arc::new(Engine::new(HOST_ISA, probe::host_debug(), vcpus));
        let (shared, events) = DebugShared::new(engine, vcpus, memory, (new_wake()?, new_wake()?));
        let server = ServedBy::New(listener, config.clone(), believed);
        Ok(Prepared { shared: Arc::new(shared), events, server })
    }

    /// For a machine in which the guest of another one begins again: what a debugger has asked for stays.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn again(former: &Arc<Debugger>, vcpus: u32, memory: &GuestMemory) -> Result<Prepared, Error> {
        let events = (former.wake.clone(), former.release.clone());
        let (shared, events) = DebugShared::new(Arc::clone(&former.engine), vcpus, memory, events);
        Ok(Prepared { shared: Arc::new(shared), events, server: ServedBy::Former(Arc::clone(former)) })
    }
}

/// The thread that serves gdb.
#[derive(Debug)]
pub struct Debugger {
    engine: Arc<Engine>,
    wake: Wake,
    release: Wake,
    next: Sender<Result<Begun, String>>,
    /// The debugger wants the guest to end, whichever machine it is in by then.
    wants_end: Arc<AtomicBool>,
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Debugger {
    /// Starts it, or has the one that there is go over to a machine.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(
        prepared: Prepared,
        vcpus: &Arc<Vcpus>,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Debugger>, Error> {
        let Prepared { shared: debug, events, server } = prepared;
        let (vcpus, shared) = (Arc::clone(vcpus), Arc::clone(shared));
        let begun = Begun { vcpus, shared, debug, events };
        match server {
            ServedBy::New(listener, config, believed) => {
                Debugger::start_thread(begun, listener, config, believed).map(Arc::new)
            }
            ServedBy::Former(debugger) => {
                let shared = Arc::clone(&begun.shared);
                debugger.tell(Ok(begun));
                // It may have ended the former machine when that was over already. Whoever does so behind this
                // look finds the new one.
                if debugger.wants_end.load(Ordering::SeqCst) {
                    shared.end(Outcome::Stopped(Stop::Debugger));
                }
                Ok(debugger)
            }
        }
    }

    /// Tells it that the guest does not begin again, and why.
    pub fn cannot_restart(&self, why: &Error) {
        self.tell(Err(why.to_string()));
    }

    fn tell(&self, next: Result<Begun, String>) {
        // Nobody hears it only when the thread has ended, as it does when the guest is over.
        self.next.send(next).ok();
        self.wake.ring();
    }

    fn start_thread(
        begun: Begun,
        listener: Listener,
        config: GdbConfig,
        believed: Believed,
    ) -> Result<Debugger, Error> {
        let debug = &begun.debug;
        let quit = new_event()?;
        let service = Service {
            quit: duplicate(&quit)?,
            release: Some(
                debug.released().as_fd().try_clone_to_owned().map_err(Error::system(CANNOT_DUPLICATE))?,
            ),
            gate: peer::gate(config.any_user),
            on_lost: config.on_lost,
            takeover: config.takeover,
        };
        let (wake, release) = (debug.link.wake().clone(), debug.released().clone());
        let (sender, next) = channel();
        let engine = Arc::clone(&debug.link.engine);
        let wants_end = Arc::new(AtomicBool::new(false));
        let machine = LiveMachine::new(begun, next, (duplicate(&quit)?, Arc::clone(&wants_end)));
        log::warn!("waiting for gdb at {}", listener.address());
        let judge = Arc::clone(&engine);
        let thread = thread::Builder::new()
            .name("gdb".into())
            .spawn(move || {
                let mut session = Session::new(machine, judge);
                session.believed = believed;
                if let Some(folder) = config.dump_folder {
                    session.dump_folder = folder;
                }
                server::run(&listener, session, &service);
            })
            .map_err(Error::system("cannot start the gdb server's thread"))?;
        Ok(Debugger { engine, wake, release, next: sender, wants_end, quit, thread: Some(thread) })
    }
}

const CANNOT_DUPLICATE: &str = "cannot duplicate an eventfd";

fn new_wake() -> Result<Wake, Error> {
    Wake::new().map_err(Error::system("cannot make an eventfd"))
}

fn new_event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
}

fn duplicate(event: &EventFd) -> Result<OwnedFd, Error> {
    // SAFETY: the descriptor is open as long as `event`.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    fd.as_fd().try_clone_to_owned().map_err(Error::system(CANNOT_DUPLICATE))
}

impl Drop for Debugger {
    fn drop(&mut self) {
        if self.quit.write(1).is_err() {
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the gdb server ended with a panic");
        }
    }
}
