//! The live machine as the debugger sees it.
//!
//! [`DebugShared`] is what vCPU threads need while a debugger may be there; [`GuestCpu`] is a
//! vCPU on its own thread, `LiveMachine` all of them for the thread that serves gdb.
//! [`Debugger`] is that thread. None of this exists without `--gdb`.

use crate::attention::Attention;
use crate::config::GdbConfig;
use crate::error::Error;
use crate::guest_clock::Times;
use crate::kvm::exit::VcpuExit;
use crate::kvm::kick;
use crate::kvm::{HOST_ISA, Host, KvmError, Vcpu, blocks_interrupts, debug_registers};
use crate::memory::GuestMemory;
use crate::outcome::{Outcome, Stop};
use crate::peer;
use crate::serve::{Left, Shared, run_guest};
use crate::stepping;
use crate::vcpus::Vcpus;
use crate::world::World;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use debug::arming::{Arming, DebugRegisters, Own, in_place};
use debug::engine::Engine;
use debug::gdb::description::Believed;
use debug::gdb::listener::Listener;
use debug::gdb::server::{self, Service};
use debug::gdb::session::Session;
use debug::target::{Code, Cpu, Ended, Event, HostDebug, Memory, Stepped, StopReason, TargetError};
use debug::trap::{Injection, Trap};
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::EventFd;

mod machine;
mod memory;

use machine::{Begun, LiveMachine};
pub use memory::LiveMemory;

const EXITS: [&str; 9] = VcpuExit::KINDS;

/// What vCPU threads share while a debugger may be there.
#[derive(Debug)]
pub struct DebugShared {
    /// Judges exits.
    pub engine: Arc<Engine>,
    /// Keeps vCPUs out of the guest while one steps alone.
    pub world: World,
    /// RAM.
    pub memory: LiveMemory,
    events: Mutex<Sender<Event>>,
    wake: EventFd,
    /// Counts how often the debugger that is attached was to be let go.
    release: EventFd,
    /// Of the debugger's thread.
    attention: Attention,
    exits: Vec<[AtomicU64; EXITS.len()]>,
    /// The debugger wants the guest to begin again.
    wants_restart: AtomicBool,
}

impl DebugShared {
    fn new(
        engine: Arc<Engine>,
        vcpus: u32,
        memory: &GuestMemory,
        (wake, release): (EventFd, EventFd),
    ) -> (DebugShared, Receiver<Event>) {
        let (sender, events) = channel();
        let shared = DebugShared {
            engine,
            world: World::new(vcpus),
            memory: LiveMemory(memory.clone()),
            events: Mutex::new(sender),
            wake,
            release,
            attention: Attention::default(),
            exits: (0..vcpus).map(|_| Default::default()).collect(),
            wants_restart: AtomicBool::new(false),
        };
        (shared, events)
    }

    /// Whether the debugger wants the guest to begin again; asked once for each time that it does.
    pub fn takes_restart(&self) -> bool {
        self.wants_restart.swap(false, Ordering::Relaxed)
    }

    /// Tells the debugger's thread.
    pub fn tell(&self, event: Event) {
        // The receiver lives as long as the machine; at worst nobody reads it.
        self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event).ok();
        if !self.attention.is_there() {
            self.wake();
        }
    }

    /// Makes the debugger's thread look.
    pub fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the gdb server: {error}");
        }
    }

    /// Tells an attached debugger that the guest is over.
    pub fn ended(&self, outcome: &Outcome) {
        let text = outcome.to_string();
        let text = text.lines().next().unwrap_or_default().to_string();
        self.tell(Event::Ended(Ended { code: outcome.code(), text }));
    }

    /// Has the debugger that is attached let go, so that another one may come.
    ///
    /// # Errors
    /// What the system says.
    pub fn release(&self) -> io::Result<()> {
        self.release.write(1)
    }

    /// Counts an exit.
    pub fn count(&self, vcpu: u32, kind: usize) {
        if let Some(counter) = self.exits.get(vcpu as usize).and_then(|exits| exits.get(kind)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a debugger is attached.
    pub fn is_attached(&self) -> bool {
        self.engine.state().is_attached
    }
}

/// What a vCPU's thread remembers for the debugger.
#[derive(Debug)]
pub struct ThreadDebug {
    /// What the vCPU runs with.
    pub arming: Arming,
    /// An end of the guest that came up during a step.
    pub outcome: Option<Outcome>,
    /// x86: the handler of an exception that was given to the guest during a step; the step
    /// ends there.
    pub runs_to: Option<u64>,
    /// KVM has not been told the arming yet.
    pub is_new: bool,
    /// The debug registers in force that are the guest's own, if others are in force...
    pub own: Option<Vec<Own>>,
    /// ...and what the guest had in its registers then.
    pub guests: Option<DebugRegisters>,
    /// The instruction that was stepped last, if it faulted instead.
    pub faulted: Option<u64>,
    /// A hypercall that the debugger has been shown: when it is made again, it is served.
    pub seen_call: Option<u64>,
    /// x86: the guest's own trap flag, while KVM steps with it and hides it.
    pub trap_flag: Option<bool>,
    /// x86: the vCPU was kicked when it was last in the guest, and may have been waiting there.
    pub may_wait: bool,
    /// When the vCPU was in the guest.
    pub times: Arc<Times>,
}

impl ThreadDebug {
    /// Nothing asked for.
    pub fn new(times: Arc<Times>) -> ThreadDebug {
        ThreadDebug {
            arming: Arming::off(HOST_ISA),
            outcome: None,
            runs_to: None,
            is_new: false,
            own: None,
            guests: None,
            faulted: None,
            seen_call: None,
            trap_flag: None,
            may_wait: false,
            times,
        }
    }
}

/// A vCPU on its own thread, out of the guest.
#[derive(Debug)]
pub struct GuestCpu<'a> {
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// What all threads share.
    pub shared: &'a Shared,
    /// The debugger's part of it.
    pub debug: &'a DebugShared,
    /// This thread's part.
    pub thread: &'a mut ThreadDebug,
}

fn host(error: KvmError) -> TargetError {
    TargetError::Host(error.to_string())
}

impl Cpu for GuestCpu<'_> {
    fn id(&self) -> u32 {
        self.vcpu.id()
    }

    fn isa(&self) -> Isa {
        HOST_ISA
    }

    fn pc_and_flags(&self) -> Result<(u64, u64), TargetError> {
        self.vcpu.pc_and_flags().map_err(host)
    }

    fn registers(&self, banks: &[Bank]) -> RegisterFile {
        self.vcpu.registers(banks)
    }

    fn regime(&self) -> Result<Regime, TargetError> {
        self.vcpu.regime().map_err(host)
    }

    fn set_registers(&mut self, file: &RegisterFile) -> Result<(), TargetError> {
        self.vcpu.set_registers(file).map_err(host)
    }

    fn set_rows(&mut self, values: &[(usize, u64)]) -> Result<(), TargetError> {
        self.vcpu.set_rows(values).map_err(host)
    }

    fn memory(&self) -> &dyn Memory {
        &self.debug.memory
    }

    fn inject(&mut self, injection: &Injection) -> Result<(), TargetError> {
        let (memory, hosts) = (&self.debug.memory, self.debug.engine.host());
        stepping::inject(self.vcpu, memory, hosts, self.thread, injection).map_err(host)
    }

    fn arm(&mut self, arming: &Arming) -> Result<(), TargetError> {
        // KVM is told when the guest is entered (`stepping::before`).
        self.thread.is_new = true;
        self.thread.arming.clone_from(arming);
        Ok(())
    }

    fn faulted_at(&self) -> Option<u64> {
        self.thread.faulted
    }

    fn is_own(&mut self, injection: &Injection) -> Result<bool, TargetError> {
        stepping::is_own(self.vcpu, self.debug.engine.host(), self.thread, injection).map_err(host)
    }

    fn own_among_others(&self) -> Option<&[Own]> {
        self.thread.own.as_deref()
    }

    fn own_registers(&self) -> Vec<Own> {
        if let Some(own) = &self.thread.own {
            return own.clone();
        }
        // In their own places, as KVM has them when nothing else is armed.
        let guests = self.vcpu.own_debug_registers(self.debug.engine.host());
        guests.map(|guests| in_place(&guests)).unwrap_or_default()
    }

    fn code(&self) -> Result<Code, TargetError> {
        self.vcpu.code().map_err(host)
    }

    fn register(&self, row: usize) -> Option<u64> {
        self.vcpu.register(row)
    }

    fn begin_exclusive(&mut self) {
        self.debug.world.begin_exclusive(self.vcpu.id());
    }

    fn end_exclusive(&mut self) {
        self.debug.world.end_exclusive();
    }

    fn step(&mut self) -> Result<Stepped, TargetError> {
        // The kick that came with the message just served may arrive late, so one says
        // nothing; whoever waits for this vCPU kicks again.
        let mut was_kicked = false;
        loop {
            match run_guest(self.vcpu, self.shared, Some((self.debug, self.thread)), true) {
                // What a debugger wants to see of hypercalls it does not see in steps of ours.
                Left::Served | Left::Caught(_) | Left::Undescribed { .. } => {}
                // Others are not to wait for ever for a step that does not end.
                Left::Interrupted if self.debug.world.is_overdue() => return Ok(Stepped::Other),
                Left::Interrupted if !was_kicked => {
                    was_kicked = true;
                    kick::clear();
                }
                // There is a message; the place is as it was before.
                Left::Interrupted => return Ok(Stepped::Other),
                Left::Trap(trap) if stepping::is_step(&trap) => {
                    let is_done = self.thread.faulted.is_none();
                    return Ok(if is_done { Stepped::Done } else { Stepped::Faulted });
                }
                Left::Trap(trap) => return Ok(Stepped::Trapped(trap)),
                Left::Ended(outcome) => {
                    self.thread.outcome = Some(outcome);
                    return Ok(Stepped::Other);
                }
            }
        }
    }
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
        let engine = Arc::new(Engine::new(HOST_ISA, host_debug(), vcpus));
        let (shared, events) = DebugShared::new(engine, vcpus, memory, (new_event()?, new_event()?));
        let server = ServedBy::New(listener, config.clone(), believed);
        Ok(Prepared { shared: Arc::new(shared), events, server })
    }

    /// For a machine in which the guest of another one begins again: what a debugger has asked for stays.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn again(former: &Arc<Debugger>, vcpus: u32, memory: &GuestMemory) -> Result<Prepared, Error> {
        let clone = |event: &EventFd| event.try_clone().map_err(Error::system("cannot duplicate an eventfd"));
        let events = (clone(&former.wake)?, clone(&former.release)?);
        let (shared, events) = DebugShared::new(Arc::clone(&former.engine), vcpus, memory, events);
        Ok(Prepared { shared: Arc::new(shared), events, server: ServedBy::Former(Arc::clone(former)) })
    }
}

/// The thread that serves gdb.
#[derive(Debug)]
pub struct Debugger {
    engine: Arc<Engine>,
    wake: EventFd,
    release: EventFd,
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
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the gdb server: {error}");
        }
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
            release: Some(duplicate(&debug.release)?),
            gate: peer::gate(config.any_user),
            on_lost: config.on_lost,
            takeover: config.takeover,
        };
        let clone = |event: &EventFd| event.try_clone().map_err(Error::system("cannot duplicate an eventfd"));
        let (wake, release) = (clone(&debug.wake)?, clone(&debug.release)?);
        let (sender, next) = channel();
        let engine = Arc::clone(&debug.engine);
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

fn new_event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
}

fn duplicate(event: &EventFd) -> Result<OwnedFd, Error> {
    // SAFETY: the descriptor is open as long as `event`.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    fd.as_fd().try_clone_to_owned().map_err(Error::system("cannot duplicate an eventfd"))
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

/// What this host can do for a debugger, found by trying it.
pub fn host_debug() -> HostDebug {
    let mut host = crate::check::host_debug();
    if let Ok(kvm) = Host::open() {
        let (breakpoints, watchpoints) = debug_registers(kvm.kvm());
        host.breakpoints = if host.breakpoints > 0 { breakpoints } else { 0 };
        host.watchpoints = if host.watchpoints > 0 { watchpoints } else { 0 };
        host.blocks_interrupts = blocks_interrupts(kvm.kvm());
    }
    host
}

/// The event that a guest's end is to a debugger who may want to look at it first; `None`
/// where there is nothing more to see.
pub fn fatal(outcome: &Outcome) -> Option<StopReason> {
    match outcome {
        Outcome::TripleFault { .. }
        | Outcome::EmulationFailure { .. }
        | Outcome::InternalError { .. }
        | Outcome::GuestCrash => {
            let text = outcome.to_string();
            Some(StopReason::Fatal(text.lines().next().unwrap_or_default().to_string()))
        }
        _ => None,
    }
}

/// The trap that an exit is for the debugger, if it may be one.
pub fn trap(exit: &crate::kvm::exit::DebugExit) -> Option<Trap> {
    use crate::kvm::exit::DebugExit;
    match *exit {
        DebugExit::X86 { exception: 3, .. } => Some(Trap::Int3),
        DebugExit::X86 { dr6, .. } => Some(Trap::Debug { dr6 }),
        DebugExit::Aarch64 { syndrome, far } => {
            let exception = arch::aarch64::syndrome::decode(syndrome)?;
            Some(Trap::Aarch64 { exception, far })
        }
    }
}
