//! The live machine as the debugger sees it.
//!
//! [`DebugShared`] is what vCPU threads need while a debugger may be there; [`GuestCpu`] is a
//! vCPU on its own thread, [`LiveMachine`] all of them for the thread that serves gdb.
//! [`Debugger`] is that thread. None of this exists without `--gdb`.

use crate::attention::{self, Attention};
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
use crate::vcpus::{Hold, Vcpus};
use crate::world::World;
use arch::address::PhysRange;
use arch::paging::{Regime, TableMemory};
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, Isa};
use debug::arming::{Arming, DebugRegisters, Own, in_place};
use debug::engine::Engine;
use debug::gdb::description::Believed;
use debug::gdb::listener::Listener;
use debug::gdb::server::{self, Service};
use debug::gdb::session::Session;
use debug::target::{
    Action, Code, Command, Control, Cpu, Ended, Event, HostDebug, Machine, Memory, Order, Stepped,
    StopReason, TargetError, VcpuState,
};
use debug::trap::{Injection, Trap};
use devices::hypercall::trace::Filter;
use nix::unistd::{AccessFlags, access};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

const EXITS: [&str; 9] = VcpuExit::KINDS;

/// RAM of a live guest.
#[derive(Clone, Debug)]
pub struct LiveMemory(pub GuestMemory);

impl LiveMemory {
    /// Bytes of RAM in one piece from an address on, `length` at most.
    fn piece(&self, address: GuestPhys, length: usize) -> usize {
        let address = GuestAddress(address.0);
        let Some(region) = self.0.find_region(address) else { return 0 };
        let left = region.last_addr().0 - address.0;
        usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1).min(length)
    }
}

impl TableMemory for LiveMemory {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.0.read_slice(bytes, GuestAddress(address.0)).is_ok()
    }
}

impl Memory for LiveMemory {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let length = self.piece(address, bytes.len());
        self.0.read(&mut bytes[..length], GuestAddress(address.0)).unwrap_or(0)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        let length = self.piece(address, bytes.len());
        let written = self.0.write(&bytes[..length], GuestAddress(address.0)).unwrap_or(0);
        if let Ok(place) = self.0.get_host_address(GuestAddress(address.0)) {
            crate::kvm::code_changed(place, written);
        }
        written
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.0.iter().map(|region| PhysRange::new(region.start_addr().0, region.len())).collect()
    }

    fn populated(&self) -> Vec<PhysRange> {
        let Ok(pagemap) = File::open("/proc/self/pagemap") else { return self.ranges() };
        let mut ranges = Vec::new();
        for region in self.0.iter() {
            let start = region.start_addr().0;
            let host = region.get_host_address(MemoryRegionAddress(0)).map(|place| place as u64);
            let populated = host.ok().and_then(|host| populated(&pagemap, host, region.len()).ok());
            match populated {
                Some(pieces) => ranges.extend(
                    pieces.into_iter().map(|(offset, length)| PhysRange::new(start + offset, length)),
                ),
                None => ranges.push(PhysRange::new(start, region.len())),
            }
        }
        ranges
    }
}

/// The pieces of a mapping at `host`, `length` bytes, whose pages are present or swapped out:
/// offset and length of each (Linux, `Documentation/admin-guide/mm/pagemap.rst`).
fn populated(pagemap: &File, host: u64, length: u64) -> io::Result<Vec<(u64, u64)>> {
    const ENTRY: u64 = 8;
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    /// Entries that are read at a time.
    const AT_ONCE: u64 = 8192;
    let page = page_size();
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let pages = length / page;
    let mut first = 0;
    while first < pages {
        let count = (pages - first).min(AT_ONCE);
        let mut entries = vec![0; usize::try_from(count * ENTRY).unwrap_or(0)];
        pagemap.read_exact_at(&mut entries, (host / page + first) * ENTRY)?;
        for (index, entry) in (first..).zip(entries.chunks_exact(8)) {
            if arch::bytes::u64_at(entry, 0).unwrap_or(0) & PRESENT_OR_SWAPPED == 0 {
                continue;
            }
            match pieces.last_mut() {
                Some((offset, length)) if *offset + *length == index * page => *length += page,
                _ => pieces.push((index * page, page)),
            }
        }
        first += count;
    }
    Ok(pieces)
}

fn page_size() -> u64 {
    // SAFETY: it has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

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
}

impl DebugShared {
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

/// All vCPUs, for the thread that serves gdb.
#[derive(Debug)]
pub struct LiveMachine {
    vcpus: Arc<Vcpus>,
    shared: Arc<Shared>,
    debug: Arc<DebugShared>,
    events: Receiver<Event>,
    /// Events that have arrived and were not asked for yet.
    happened: VecDeque<Event>,
    /// Which vCPUs may be running: what need not be paused is not asked to.
    running: Vec<bool>,
    /// While none of them may.
    hold: Option<Hold>,
    /// What is known of vCPUs that stand still, until something changes it.
    known: RefCell<Vec<Known>>,
}

/// What is known of a vCPU that stands still.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its general registers.
    general: Option<RegisterFile>,
    /// How it translates.
    regime: Option<Regime>,
}

impl LiveMachine {
    fn forget(&self, vcpu: u32) {
        if let Some(known) = self.known.borrow_mut().get_mut(vcpu as usize) {
            *known = Known::default();
        }
    }
}

impl Machine for LiveMachine {
    fn isa(&self) -> Isa {
        HOST_ISA
    }

    fn vcpus(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }

    fn state(&self, vcpu: u32) -> VcpuState {
        self.vcpus.call(vcpu, |vcpu| vcpu.state()).unwrap_or(VcpuState::NotStarted)
    }

    fn registers(&self, vcpu: u32, banks: &[Bank]) -> Result<RegisterFile, TargetError> {
        if banks == [Bank::General]
            && let Some(file) =
                self.known.borrow().get(vcpu as usize).and_then(|known| known.general.as_ref())
        {
            return Ok(file.clone());
        }
        let wanted = banks.to_vec();
        let file = self.vcpus.call(vcpu, move |vcpu| vcpu.registers(&wanted));
        let file = file.ok_or(TargetError::NoVcpu(vcpu))?;
        if banks == [Bank::General] && !self.running[vcpu as usize] {
            self.known.borrow_mut()[vcpu as usize].general = Some(file.clone());
        }
        Ok(file)
    }

    fn code(&self, vcpu: u32) -> Result<Code, TargetError> {
        self.vcpus.call(vcpu, |vcpu| vcpu.code()).ok_or(TargetError::NoVcpu(vcpu))?.map_err(host)
    }

    fn regime(&self, vcpu: u32) -> Result<Regime, TargetError> {
        if let Some(regime) = self.known.borrow().get(vcpu as usize).and_then(|known| known.regime) {
            return Ok(regime);
        }
        let regime = self.vcpus.call(vcpu, |vcpu| vcpu.regime());
        let regime = regime.ok_or(TargetError::NoVcpu(vcpu))?.map_err(host)?;
        if !self.running[vcpu as usize] {
            self.known.borrow_mut()[vcpu as usize].regime = Some(regime);
        }
        Ok(regime)
    }

    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), TargetError> {
        self.forget(vcpu);
        let file = file.clone();
        let set = self.vcpus.call(vcpu, move |vcpu| vcpu.set_registers(&file));
        set.ok_or(TargetError::NoVcpu(vcpu))?.map_err(host)
    }

    fn memory(&self) -> &dyn Memory {
        &self.debug.memory
    }

    fn host(&self) -> &HostDebug {
        self.debug.engine.host()
    }

    fn resume(&mut self, orders: Vec<Order>) -> Result<(), TargetError> {
        let ends_soon = orders.iter().any(|order| order.action == Action::Step);
        self.hold = None;
        if ends_soon {
            self.debug.attention.begin();
        }
        for (vcpu, order) in (0..).zip(orders) {
            if order.action != Action::Stay {
                self.forget(vcpu);
                self.running[vcpu as usize] = true;
                self.vcpus.order(vcpu, order);
            }
        }
        if ends_soon {
            self.happened.extend(attention::poll(|| self.events.try_recv().ok()));
            self.debug.attention.end();
            self.happened.extend(self.events.try_iter());
        }
        Ok(())
    }

    fn pause(&mut self) {
        if self.hold.is_none() {
            self.hold = Some(self.vcpus.pause(|vcpu| self.running[vcpu]));
            self.running.fill(false);
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        if self.happened.is_empty() {
            // Nothing there is no error; the count is of no interest. What is told from here on
            // makes the descriptor readable again.
            self.debug.wake.read().ok();
            self.happened.extend(self.events.try_iter());
        }
        let event = self.happened.pop_front()?;
        if let Event::Stopped { vcpu, registers, .. } = &event {
            self.running[*vcpu as usize] = false;
            let known = Known { general: Some(registers.clone()), regime: None };
            self.known.borrow_mut()[*vcpu as usize] = known;
        }
        Some(event)
    }

    fn settle(&mut self) -> Option<Duration> {
        self.hold.as_ref().and_then(|hold| hold.vcpus().settle())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the value that it is borrowed from.
        unsafe { BorrowedFd::borrow_raw(self.debug.wake.as_raw_fd()) }
    }

    fn disarm(&mut self) {
        let off = Arming::off(HOST_ISA);
        let results = self.vcpus.for_each(move |vcpu| vcpu.set_debug(&off));
        for error in results.into_iter().filter_map(Result::err) {
            log::warn!("guest debugging cannot be switched off: {error}");
        }
    }

    fn control(&mut self, control: Control) -> Result<(), TargetError> {
        match control {
            Control::Nmi(vcpu) => {
                self.vcpus.call(vcpu, |vcpu| vcpu.nmi()).ok_or(TargetError::NoVcpu(vcpu))?.map_err(host)
            }
            Control::Reset => {
                self.shared.end(Outcome::Reset);
                Ok(())
            }
            Control::Quit => {
                self.shared.end(Outcome::Stopped(Stop::Debugger));
                Ok(())
            }
        }
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        let count = |exits: &[AtomicU64; EXITS.len()]| {
            EXITS.iter().zip(exits).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
        };
        self.debug.exits.iter().map(count).collect()
    }

    fn commands(&self) -> &'static [Command] {
        const COMMANDS: [Command; 3] = [
            Command { name: "clock", usage: "", what: "what becomes of the guest's time while it is held" },
            Command { name: "hypercalls", usage: "", what: "hypercalls so far, with counts and times" },
            Command {
                name: "catch",
                usage: "[hypercall [NAME...]|off]",
                what: "stop at hypercalls, by name or by the name of their operation",
            },
        ];
        if self.shared.hypercalls.is_some() { &COMMANDS } else { &COMMANDS[..1] }
    }

    fn run_command(&mut self, name: &str, arguments: &[&str]) -> Result<String, String> {
        if (name, arguments) == ("clock", &[]) {
            return Ok(format!("{}\n", self.vcpus.clock_in_words()));
        }
        let Some(hypercalls) = &self.shared.hypercalls else { return Err("hypercalls are not seen".into()) };
        let calls = hypercalls.calls();
        match (name, arguments) {
            ("hypercalls", []) => return Ok(calls.summary()),
            ("catch", []) => {}
            ("catch", ["off"]) => calls.catch(None),
            ("catch", ["hypercall", names @ ..]) => {
                let unknown = names.iter().find(|name| !calls.has(name));
                if let Some(name) = unknown {
                    return Err(format!("there is no hypercall and no operation '{name}'"));
                }
                calls.catch(Some(Filter::new(names.iter().map(|name| (*name).to_string()).collect())));
            }
            _ => return Err(format!("'{}' is not understood", arguments.join(" "))),
        }
        Ok(format!("{}\n", calls.caught()))
    }
}

/// What a machine with `--gdb` is made with, before its vCPUs have threads.
#[derive(Debug)]
pub struct Prepared {
    /// For the vCPU threads.
    pub shared: Arc<DebugShared>,
    events: Receiver<Event>,
    listener: Listener,
    config: GdbConfig,
    believed: Believed,
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
        let (sender, events) = channel();
        let shared = DebugShared {
            engine: Arc::new(Engine::new(HOST_ISA, host_debug(), vcpus)),
            world: World::new(vcpus),
            memory: LiveMemory(memory.clone()),
            events: Mutex::new(sender),
            wake: new_event()?,
            release: new_event()?,
            attention: Attention::default(),
            exits: (0..vcpus).map(|_| Default::default()).collect(),
        };
        Ok(Prepared { shared: Arc::new(shared), events, listener, config: config.clone(), believed })
    }
}

/// The thread that serves gdb.
#[derive(Debug)]
pub struct Debugger {
    shared: Arc<DebugShared>,
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Debugger {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(prepared: Prepared, vcpus: &Arc<Vcpus>, shared: &Arc<Shared>) -> Result<Debugger, Error> {
        let Prepared { shared: debug, events, listener, config, believed } = prepared;
        let quit = new_event()?;
        let service = Service {
            quit: duplicate(&quit)?,
            release: Some(duplicate(&debug.release)?),
            gate: peer::gate(config.any_user),
            on_lost: config.on_lost,
            takeover: config.takeover,
        };
        let machine = LiveMachine {
            vcpus: Arc::clone(vcpus),
            shared: Arc::clone(shared),
            debug: Arc::clone(&debug),
            events,
            happened: VecDeque::new(),
            // Until the first pause nobody knows.
            running: vec![true; vcpus.len()],
            hold: None,
            known: RefCell::new(vec![Known::default(); vcpus.len()]),
        };
        log::warn!("waiting for gdb at {}", listener.address());
        let engine = Arc::clone(&debug.engine);
        let thread = thread::Builder::new()
            .name("gdb".into())
            .spawn(move || {
                let mut session = Session::new(machine, engine);
                session.believed = believed;
                if let Some(folder) = config.dump_folder {
                    session.dump_folder = folder;
                }
                server::run(&listener, session, &service);
            })
            .map_err(Error::system("cannot start the gdb server's thread"))?;
        Ok(Debugger { shared: debug, quit, thread: Some(thread) })
    }

    /// Tells an attached debugger that the guest is over.
    pub fn ended(&self, outcome: &Outcome) {
        let text = outcome.to_string();
        let text = text.lines().next().unwrap_or_default().to_string();
        self.shared.tell(Event::Ended(Ended { code: outcome.code(), text }));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_pages_are_found() {
        let memory = LiveMemory(crate::memory::map(HOST_ISA, 64 << 20).unwrap());
        let place = GuestPhys(memory.ranges()[0].start.0 + 0x123_4567);
        let before: u64 = memory.populated().iter().map(|range| range.size).sum();
        assert_eq!(memory.write(place, b"x"), 1);
        let after = memory.populated();
        assert!(after.iter().any(|range| range.contains(place, 1)));
        let size: u64 = after.iter().map(|range| range.size).sum();
        assert!(size > before && size < 64 << 20, "{before} {size}");
    }
}
