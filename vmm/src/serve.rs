//! Entering the guest, and serving what it wants: ports and memory of devices, hypercalls, and its ends.
//!
//! [`Server::enter`] is what a vCPU thread's runner ([`debug::live::runner`]) calls to run the guest, and to step it.

use crate::hypercalls::{Done, LiveHypercalls};
use crate::outcome::Outcome;
use crate::output_queue::OutputQueue;
use arch::GuestVirt;
use arch::Isa;
use arch::register::Bank;
use arch::x86::reset_vector;
use debug::disassemble::LONGEST_INSTRUCTION;
use debug::live::link::Link;
use debug::live::runner::{Exit, Next, Runner, Turn, Visit};
use debug::machine::{Ended, Event, StopReason};
use debug::memory::{self, Space};
use debug::report::Report;
use debug::trap::Trap;
use devices::bus::Bus;
use devices::{guest_log, tell};
use kvm::exit::{DebugExit, HypercallExit, InternalError, SystemEvent, VcpuExit};
use kvm::ram::GuestMemory;
use kvm::ram::LiveMemory;
use kvm::{HOST_ISA, KvmError, Vcpu};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// What all vCPU threads share.
#[derive(Debug)]
pub struct Shared {
    /// I/O ports.
    pub ports: Bus,
    /// Memory without RAM behind it.
    pub mmio: Bus,
    /// What the guest prints.
    pub(crate) output: Arc<OutputQueue>,
    /// Registers are kept that a reset or a triple fault would lose: there may be a dump of it.
    pub keeps_registers: bool,
    /// RAM.
    pub memory: GuestMemory,
    /// Where a vCPU's outcome goes...
    pub outcomes: Sender<Outcome>,
    /// ...and what is written then, for whoever polls.
    pub wake: EventFd,
    /// How often vCPUs leave the guest, and why.
    pub exits: Exits,
    /// A debugger wants the guest to begin again.
    pub wants_restart: AtomicBool,
    /// The guest has been let run, or would have been but for a debugger.
    pub is_started: AtomicBool,
    /// The debugger that is told at once how the guest has ended: a program's, with no event loop behind it.
    pub told_of_end: Mutex<Option<Arc<Link>>>,
    /// Hypercalls, if they come to us.
    pub hypercalls: Option<Arc<LiveHypercalls>>,
}

/// Tells a debugger how the guest has ended.
pub fn tell_end(link: &Link, outcome: &Outcome) {
    let text = outcome.to_string();
    let text = text.lines().next().unwrap_or_default().to_string();
    link.tell(Event::Ended(Ended { code: outcome.code(), text }));
}

impl Shared {
    /// From now on this debugger is told at once how the guest ends.
    pub fn tell_end_to(&self, link: Option<Arc<Link>>) {
        *self.told_of_end.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Says how the guest has ended.
    pub fn end(&self, outcome: Outcome) {
        let told = self.told_of_end.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(link) = told {
            tell_end(&link, &outcome);
        }
        // The machine that listens outlives its threads; at worst nobody reads it.
        self.outcomes.send(outcome).ok();
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot tell that the guest has ended: {error}");
        }
    }
}

/// How often each vCPU has left the guest, by kind of exit; counted once somebody may ask.
#[derive(Debug)]
pub struct Exits {
    is_counted: AtomicBool,
    counts: Vec<[AtomicU64; VcpuExit::KINDS.len()]>,
}

impl Exits {
    /// None yet.
    pub fn new(vcpus: u32) -> Exits {
        Exits { is_counted: AtomicBool::new(false), counts: (0..vcpus).map(|_| Default::default()).collect() }
    }

    /// Has them counted.
    pub fn begin(&self) {
        self.is_counted.store(true, Ordering::Relaxed);
    }

    fn count(&self, vcpu: u32, exit: &VcpuExit<'_>) {
        if self.is_counted.load(Ordering::Relaxed)
            && let Some(counts) = self.counts.get(vcpu as usize)
        {
            counts[exit.kind()].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts, in the order of vCPUs.
    pub fn told(&self) -> Vec<Vec<(&'static str, u64)>> {
        let told = |counts: &[AtomicU64; VcpuExit::KINDS.len()]| {
            let count = |(name, count): (&&'static str, &AtomicU64)| (*name, count.load(Ordering::Relaxed));
            VcpuExit::KINDS.iter().zip(counts).map(count).collect()
        };
        self.counts.iter().map(told).collect()
    }
}

/// Serves the guest on one vCPU's thread, and remembers how it ended.
#[derive(Debug)]
pub struct Server<'a> {
    shared: &'a Shared,
    /// What has not been told yet, as a debugger may want to look at the guest first.
    outcome: Option<Outcome>,
}

impl<'a> Server<'a> {
    /// For one thread.
    pub fn new(shared: &'a Shared) -> Server<'a> {
        Server { shared, outcome: None }
    }

    /// Enters the guest and serves what it wants: the callback of the thread's runner.
    pub fn enter(&mut self, vcpu: &mut Vcpu, turn: Turn<'_>) -> Exit {
        let exit = match enter(vcpu, turn, self.shared) {
            Ok(exit) => exit,
            Err(end) => Exit::End { fatal: self.end(vcpu, end) },
        };
        self.shared.output.settle_new();
        // Nothing is locked now.
        guest_log::deliver();
        exit
    }

    /// Does what the thread's runner has come to.
    pub fn deal_with(&mut self, next: Next, runner: &mut Runner, vcpu: &Vcpu) {
        let end = match next {
            Next::Look => return,
            Next::End => None,
            Next::Unowned(Trap::EmulationFailure { instruction }) => {
                Some(Over::EmulationFailure(instruction))
            }
            Next::Unowned(trap) => Some(Over::Internal(format!("a debug exit that is nobody's: {trap:?}"))),
            Next::Failed(cause) => Some(Over::Internal(cause)),
        };
        let next = match end {
            None => Next::End,
            Some(end) => {
                let fatal = self.end(vcpu, end);
                runner.end(vcpu, fatal)
            }
        };
        if next == Next::End
            && let Some(outcome) = self.outcome.take()
        {
            self.shared.end(outcome);
        }
    }

    /// Notes how the guest has ended; what a debugger may want to know of it first.
    fn end(&mut self, vcpu: &Vcpu, end: Over) -> Option<String> {
        let outcome = end.outcome(vcpu, self.shared);
        let fatal = fatal(&outcome);
        self.outcome = Some(outcome);
        fatal
    }
}

/// Why a debugger may want to look at a guest that has come to this end; `None` where there is nothing more to see.
fn fatal(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::TripleFault { .. }
        | Outcome::EmulationFailure { .. }
        | Outcome::InternalError { .. }
        | Outcome::GuestCrash => Some(outcome.to_string().lines().next().unwrap_or_default().to_string()),
        _ => None,
    }
}

fn enter(vcpu: &mut Vcpu, turn: Turn<'_>, shared: &Shared) -> Result<Exit, Over> {
    let id = vcpu.id();
    if turn.is_finish() {
        return match vcpu.finish_access()? {
            Some(exit) => serve(id, exit, shared),
            None => Ok(Exit::Interrupted),
        };
    }
    // A debugger can step a guest that waits for whoever reads its output.
    if !turn.is_step() && !shared.output.settle() {
        return Ok(Exit::Interrupted);
    }
    let (inside, mut visit) = turn.enter();
    let exit = vcpu.run();
    drop(inside);
    let exit = exit?;
    match hypercall(&exit, shared) {
        Some((call, hypercalls)) => {
            shared.exits.count(id, &VcpuExit::Hypercall(call));
            answer(call, hypercalls, vcpu, &mut visit)
        }
        None => serve(id, exit, shared),
    }
}

/// The hypercall that an exit is, if hypercalls come to us.
fn hypercall<'a>(exit: &VcpuExit<'_>, shared: &'a Shared) -> Option<(HypercallExit, &'a LiveHypercalls)> {
    let hypercalls = shared.hypercalls.as_deref()?;
    match exit {
        VcpuExit::Hypercall(call) => Some((*call, hypercalls)),
        VcpuExit::PortWrite { port, .. } if hypercalls.is_port(*port) => {
            Some((HypercallExit::Port, hypercalls))
        }
        _ => None,
    }
}

/// Serves a hypercall. A debugger may want to see it first; when the vCPU goes on from there, the call is served.
fn answer(
    call: HypercallExit,
    hypercalls: &LiveHypercalls,
    vcpu: &mut Vcpu,
    visit: &mut Visit<'_>,
) -> Result<Exit, Over> {
    let is_caught = hypercalls.calls().is_caught();
    let pc = is_caught.then(|| vcpu.pc_and_flags().ok().map(|(pc, _)| pc)).flatten();
    match hypercalls.serve(vcpu, call, visit.stops_at(pc))? {
        Done::GoOn => Ok(Exit::Served),
        Done::Ended(end) => Err(Over::As(end.into())),
        Done::Caught(text) => Ok(Exit::Stop(StopReason::Hypercall(text))),
    }
}

/// An end of the guest.
enum Over {
    /// As it is.
    As(Outcome),
    // These need a report of what the vCPU was doing.
    TripleFault,
    EmulationFailure(Vec<u8>),
    Internal(String),
}

impl From<KvmError> for Over {
    fn from(error: KvmError) -> Over {
        Over::Internal(error.to_string())
    }
}

impl Over {
    fn outcome(self, vcpu: &Vcpu, shared: &Shared) -> Outcome {
        match self {
            Over::As(outcome) => outcome,
            // Where firmware would be, that boots the machine again.
            Over::EmulationFailure(_) if is_after_init(vcpu) => Outcome::Reset,
            Over::TripleFault => Outcome::TripleFault { report: report(vcpu, shared, &[]) },
            Over::EmulationFailure(instruction) => {
                Outcome::EmulationFailure { report: report(vcpu, shared, &instruction) }
            }
            Over::Internal(cause) => Outcome::InternalError { cause, report: report(vcpu, shared, &[]) },
        }
    }
}

/// Whether a vCPU begins where an x86 processor does after INIT.
fn is_after_init(vcpu: &Vcpu) -> bool {
    let (Ok((pc, _)), Ok(mode)) = (vcpu.pc_and_flags(), vcpu.code()) else { return false };
    HOST_ISA == Isa::X86_64 && mode.linear(pc) == reset_vector::AFTER_INIT
}

/// Serves an exit of vCPU `id`.
fn serve(id: u32, exit: VcpuExit<'_>, shared: &Shared) -> Result<Exit, Over> {
    log::debug!(target: "vmm::exit", "vCPU {id}: {exit:x?}");
    shared.exits.count(id, &exit);
    let end = match exit {
        VcpuExit::Interrupted => return Ok(Exit::Interrupted),
        VcpuExit::MsrWrite { index, value, refused } => {
            let taken = shared.hypercalls.as_ref().is_some_and(|calls| calls.write_msr(index, value));
            *refused = u8::from(!taken);
            None
        }
        VcpuExit::PortRead { port, size, data } => {
            for access in data.chunks_mut(size) {
                if !shared.ports.read(u64::from(port), access) {
                    tell!(Info, "vCPU {id} reads {size} bytes at unused port {port:#x}");
                }
            }
            None
        }
        VcpuExit::PortWrite { port, size, data } => {
            let mut end = None;
            for access in data.chunks(size) {
                match shared.ports.write(u64::from(port), access) {
                    Ok(asked) => end = end.or(asked),
                    Err(_) => tell!(Info, "vCPU {id} writes {access:02x?} to unused port {port:#x}"),
                }
            }
            end
        }
        VcpuExit::MmioRead { address, data } => {
            if !shared.mmio.read(address, data) {
                let size = data.len();
                tell!(Info, "vCPU {id} reads {size} bytes at {address:#x}, where nothing is");
            }
            None
        }
        VcpuExit::MmioWrite { address, data } => match shared.mmio.write(address, data) {
            Ok(asked) => asked,
            Err(_) => {
                tell!(Info, "vCPU {id} writes {data:02x?} to {address:#x}, where nothing is");
                None
            }
        },
        VcpuExit::Shutdown => return Err(Over::TripleFault),
        VcpuExit::SystemEvent(event) => {
            return match event {
                SystemEvent::End(end) => Err(Over::As(end.into())),
                // The vCPU deals with it.
                SystemEvent::Wakeup => Ok(Exit::Interrupted),
                SystemEvent::Other(number) => {
                    tell!(Warn, "vCPU {id}: KVM reports system event {number}, which has no meaning here");
                    Ok(Exit::Served)
                }
            };
        }
        VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
            return Ok(Exit::Trap(Trap::EmulationFailure { instruction }));
        }
        VcpuExit::InternalError(InternalError::Other { suberror, data }) => {
            return Err(Over::Internal(format!("internal error {suberror}, data {data:x?}")));
        }
        VcpuExit::EntryFailed { reason } => {
            return Err(Over::Internal(format!(
                "the processor refuses to enter the guest, reason {reason:#x}"
            )));
        }
        VcpuExit::NoSyndrome { iss, address } => {
            tell!(
                Info,
                "vCPU {id}: an access to {address:#x}, where no RAM is, by an instruction that the hardware does \
                 not describe (ISS {iss:#x}); the guest gets an external abort"
            );
            return Ok(Exit::Abort);
        }
        VcpuExit::MemoryFault { address, size, errno } => {
            let error = io::Error::from_raw_os_error(errno);
            return Err(Over::Internal(format!(
                "a fault on {size} bytes of guest memory at {address:#x}: {error}"
            )));
        }
        VcpuExit::Debug(ref event) => {
            return match trap(event) {
                Some(trap) => Ok(Exit::Trap(trap)),
                None => Err(Over::Internal(format!("an unknown debug exit: {event:x?}"))),
            };
        }
        VcpuExit::Halt | VcpuExit::Hypercall(_) | VcpuExit::Other(_) => {
            return Err(Over::Internal(format!("an exit that was not asked for: {exit:?}")));
        }
    };
    end.map_or(Ok(Exit::Served), |end| Err(Over::As(end.into())))
}

/// The trap that a debug exit is, if it is one that there is.
fn trap(exit: &DebugExit) -> Option<Trap> {
    match *exit {
        DebugExit::X86 { exception: 3, .. } => Some(Trap::Int3),
        DebugExit::X86 { dr6, .. } => Some(Trap::Debug { dr6 }),
        DebugExit::Aarch64 { syndrome, far } => {
            let exception = arch::aarch64::syndrome::decode(syndrome)?;
            Some(Trap::Aarch64 { exception, far })
        }
    }
}

/// Words what the vCPU was doing. `instruction` are the bytes that KVM told, if any; else
/// they are read from guest memory.
fn report(vcpu: &Vcpu, shared: &Shared, instruction: &[u8]) -> String {
    let registers = vcpu.registers(&[Bank::General, Bank::System]);
    let mut code = instruction.to_vec();
    if code.is_empty()
        && let (Ok((pc, _)), Ok(mode), Ok(regime)) = (vcpu.pc_and_flags(), vcpu.code(), vcpu.regime())
    {
        code.resize(LONGEST_INSTRUCTION, 0);
        let (memory, place) = (LiveMemory(shared.memory.clone()), GuestVirt(mode.linear(pc)));
        let read = memory::read(&memory, &Space::Virtual(regime), None, place, &mut code);
        code.truncate(read);
    }
    Report { vcpu: vcpu.id(), registers: &registers, code: &code }.text()
}
