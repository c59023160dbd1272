//! Running a vCPU until it needs us, and serving what it wants: ports and memory of devices, hypercalls, and
//! the ends of a guest.
//!
//! Called on the vCPU's thread ([`crate::vcpus`]), and by the debugger for its steps
//! ([`crate::debugger`]).

use crate::debugger::{self, DebugShared, LiveMemory, ThreadDebug};
use crate::guest_clock::Entry;
use crate::hypercalls::{Done, LiveHypercalls};
use crate::kvm::exit::{HypercallExit, InternalError, SystemEvent, VcpuExit};
use crate::kvm::{HOST_ISA, KvmError, Vcpu};
use crate::memory::GuestMemory;
use crate::outcome::Outcome;
use crate::output_queue::OutputQueue;
use crate::stepping::{self, Prepared, Step};
use arch::GuestVirt;
use arch::Isa;
use arch::register::Bank;
use arch::x86::reset_vector;
use debug::disassemble::LONGEST_INSTRUCTION;
use debug::memory::{self, Space};
use debug::report::Report;
use debug::trap::Trap;
use devices::bus::Bus;
use devices::{guest_log, tell};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
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
    /// What a debugger needs, with `--gdb`.
    pub debug: Option<Arc<DebugShared>>,
    /// Hypercalls, if they come to us.
    pub hypercalls: Option<Arc<LiveHypercalls>>,
}

impl Shared {
    /// Says how the guest has ended.
    pub fn end(&self, outcome: Outcome) {
        // The machine that listens outlives its threads; at worst nobody reads it.
        self.outcomes.send(outcome).ok();
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot tell that the guest has ended: {error}");
        }
    }
}

/// How a vCPU left the guest.
#[derive(Debug)]
pub enum Left {
    /// It needed something, and has it.
    Served,
    /// It was kicked.
    Interrupted,
    /// It cannot or must not go on.
    Ended(Outcome),
    /// It may be the debugger's business.
    Trap(Trap),
    /// It is about to make a hypercall that the debugger wants to see.
    Caught(String),
    /// aarch64: it accesses something that is no RAM by an instruction that the hardware does not describe.
    Undescribed {
        /// The exception's instruction-specific syndrome.
        iss: u64,
        /// Guest-physical address of the access.
        address: u64,
    },
}

/// Runs the guest until it needs us, and serves it. With a debugger, `debug` has what the
/// vCPU runs with; `is_alone` says that all other vCPUs are kept out already.
pub fn run_guest(
    vcpu: &mut Vcpu,
    shared: &Shared,
    debug: Option<(&DebugShared, &mut ThreadDebug)>,
    is_alone: bool,
) -> Left {
    let left = match run_and_serve(vcpu, shared, debug, is_alone) {
        Left::Undescribed { iss, address } => abort(vcpu, shared, iss, address),
        left => left,
    };
    shared.output.settle_new();
    // Nothing is locked now.
    guest_log::deliver();
    left
}

/// Gives the guest what hardware has for such an access: an external abort.
fn abort(vcpu: &Vcpu, shared: &Shared, iss: u64, address: u64) -> Left {
    let what = format!(
        "an access to {address:#x}, where no RAM is, by an instruction that the hardware does not describe \
         (ISS {iss:#x})"
    );
    match vcpu.abort_access() {
        Ok(()) => {
            tell!(Info, "vCPU {}: {what}; the guest gets an external abort", vcpu.id());
            Left::Served
        }
        Err(error) => Unreported::Internal(format!("{what}, and {error}")).outcome(vcpu, shared),
    }
}

fn run_and_serve(
    vcpu: &mut Vcpu,
    shared: &Shared,
    debug: Option<(&DebugShared, &mut ThreadDebug)>,
    is_alone: bool,
) -> Left {
    let Some((debug, thread)) = debug else {
        if !shared.output.settle() {
            return Left::Interrupted;
        }
        let id = vcpu.id();
        let exit = vcpu.run();
        let left = match hypercall(&exit, shared) {
            Some((call, hypercalls)) => answer(call, hypercalls, vcpu, shared, None),
            None => serve(id, exit, shared, None),
        };
        return left.unwrap_or_else(|ended| ended.outcome(vcpu, shared));
    };
    let step = match stepping::before(vcpu, &debug.memory, debug.engine.host(), thread) {
        Ok(Prepared::Run) => None,
        Ok(Prepared::Step(step)) => Some(step),
        Ok(Prepared::Done) => return Left::Trap(stepping::stepped()),
        Err(error) => return Left::Ended(cannot_run(vcpu, shared, &error)),
    };
    // A debugger can step a guest that waits for whoever reads its output.
    if step.is_none() && !shared.output.settle() {
        return Left::Interrupted;
    }
    let id = vcpu.id();
    if !is_alone {
        debug.world.enter(id);
    }
    thread.times.enter(step.as_ref().map_or(Entry::Run, Step::entry));
    let exit = vcpu.run();
    if step.is_some() {
        thread.times.step();
    }
    if !is_alone {
        debug.world.leave(id);
    }
    let left = match hypercall(&exit, shared) {
        Some((call, hypercalls)) => {
            debug.count(id, VcpuExit::Hypercall(call).kind());
            answer(call, hypercalls, vcpu, shared, Some((&mut *thread, !is_alone)))
        }
        None => serve(id, exit, shared, Some(debug)),
    };
    let Some(step) = step else {
        thread.may_wait = matches!(left, Ok(Left::Interrupted));
        return left.unwrap_or_else(|ended| ended.outcome(vcpu, shared));
    };
    let left = match left {
        Ok(Left::Served | Left::Interrupted) => {
            // KVM may have been told otherwise.
            thread.is_new = true;
            end_step(vcpu, shared, debug, &step, left)
        }
        left => left,
    };
    let trap = match &left {
        Ok(Left::Trap(trap)) => Some(trap.clone()),
        _ => None,
    };
    match stepping::after(vcpu, &debug.memory, debug.engine.host(), &step, thread, trap) {
        Ok(Some(trap)) => Left::Trap(trap),
        Ok(None) => left.unwrap_or_else(|ended| ended.outcome(vcpu, shared)),
        Err(error) => Left::Ended(cannot_run(vcpu, shared, &error)),
    }
}

/// Ends a step that another exit has come before, if its instruction has been executed all the same. An access
/// that was served is finished without entering the guest for that: some KVMs execute the next instruction
/// too when they are entered.
fn end_step(
    vcpu: &mut Vcpu,
    shared: &Shared,
    debug: &DebugShared,
    step: &Step,
    left: Result<Left, Unreported>,
) -> Result<Left, Unreported> {
    let id = vcpu.id();
    let internal = |error: KvmError| Unreported::Internal(error.to_string());
    let is_served = matches!(left, Ok(Left::Served));
    for _ in 0..MOST_PARTS {
        // Hypercalls have been executed when they come here, and accesses have not.
        if !is_served || stepping::has_moved(vcpu, step).map_err(internal)? {
            break;
        }
        let Some(exit) = vcpu.finish_access().map_err(internal)? else { break };
        match serve(id, Ok(exit), shared, Some(debug))? {
            Left::Served => {}
            left => return Ok(left),
        }
    }
    match stepping::is_done(vcpu, step, is_served).map_err(internal)? {
        true => Ok(Left::Trap(stepping::stepped())),
        false => left,
    }
}

/// The hypercall that an exit is, if hypercalls come to us.
fn hypercall<'a>(
    exit: &Result<VcpuExit, KvmError>,
    shared: &'a Shared,
) -> Option<(HypercallExit, &'a LiveHypercalls)> {
    let hypercalls = shared.hypercalls.as_deref()?;
    match exit {
        Ok(VcpuExit::Hypercall(call)) => Some((*call, hypercalls)),
        Ok(VcpuExit::PortWrite { port, .. }) if hypercalls.is_port(*port) => {
            Some((HypercallExit::Port, hypercalls))
        }
        _ => None,
    }
}

/// Serves a hypercall. With a debugger's part of the thread, that may want to see it first, unless it is made
/// in a step of the engine's; when it goes on from there, the call is served.
fn answer(
    call: HypercallExit,
    hypercalls: &LiveHypercalls,
    vcpu: &mut Vcpu,
    shared: &Shared,
    thread: Option<(&mut ThreadDebug, bool)>,
) -> Result<Left, Unreported> {
    let is_attached = || shared.debug.as_ref().is_some_and(|debug| debug.is_attached());
    let may_see = hypercalls.calls().is_caught() && is_attached();
    let Some((thread, may_catch)) = thread else { return done(hypercalls.serve(vcpu, call, false)) };
    // What has been shown is served now, whatever has been asked for since.
    let seen = thread.seen_call.take();
    let pc = (may_see && may_catch).then(|| vcpu.pc_and_flags().ok().map(|(pc, _)| pc)).flatten();
    let served = hypercalls.serve(vcpu, call, pc.is_some() && seen != pc);
    thread.seen_call = pc.filter(|_| matches!(served, Ok(Done::Caught(_))));
    done(served)
}

fn done(served: Result<Done, KvmError>) -> Result<Left, Unreported> {
    Ok(match served {
        Ok(Done::GoOn) => Left::Served,
        Ok(Done::Ended(end)) => Left::Ended(end.into()),
        Ok(Done::Caught(text)) => Left::Caught(text),
        Err(error) => return Err(Unreported::Internal(error.to_string())),
    })
}

/// An end of the guest that needs a report of what the vCPU was doing.
enum Unreported {
    TripleFault,
    EmulationFailure(Vec<u8>),
    Internal(String),
}

impl Unreported {
    fn outcome(self, vcpu: &Vcpu, shared: &Shared) -> Left {
        Left::Ended(match self {
            // Where firmware would be, that boots the machine again.
            Unreported::EmulationFailure(_) if is_after_init(vcpu) => Outcome::Reset,
            Unreported::TripleFault => Outcome::TripleFault { report: report(vcpu, shared, &[]) },
            Unreported::EmulationFailure(instruction) => {
                Outcome::EmulationFailure { report: report(vcpu, shared, &instruction) }
            }
            Unreported::Internal(cause) => {
                Outcome::InternalError { cause, report: report(vcpu, shared, &[]) }
            }
        })
    }
}

/// Whether a vCPU begins where an x86 processor does after INIT.
fn is_after_init(vcpu: &Vcpu) -> bool {
    let (Ok((pc, _)), Ok(mode)) = (vcpu.pc_and_flags(), vcpu.code()) else { return false };
    HOST_ISA == Isa::X86_64 && mode.linear(pc) == reset_vector::AFTER_INIT
}

/// Serves an exit of vCPU `id`.
fn serve(
    id: u32,
    exit: Result<VcpuExit, KvmError>,
    shared: &Shared,
    debug: Option<&DebugShared>,
) -> Result<Left, Unreported> {
    let exit = exit.map_err(|error| Unreported::Internal(error.to_string()))?;
    log::debug!(target: "vmm::exit", "vCPU {id}: {exit:x?}");
    if let Some(debug) = debug {
        debug.count(id, exit.kind());
    }
    let end = match exit {
        VcpuExit::Interrupted => return Ok(Left::Interrupted),
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
        VcpuExit::Shutdown => return Err(Unreported::TripleFault),
        VcpuExit::SystemEvent(event) => {
            return Ok(match event {
                SystemEvent::End(end) => Left::Ended(end.into()),
                // The vCPU deals with it.
                SystemEvent::Wakeup => Left::Interrupted,
                SystemEvent::Other(number) => {
                    tell!(Warn, "vCPU {id}: KVM reports system event {number}, which has no meaning here");
                    Left::Served
                }
            });
        }
        VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
            return match debug {
                Some(_) => Ok(Left::Trap(Trap::EmulationFailure { instruction })),
                None => Err(Unreported::EmulationFailure(instruction)),
            };
        }
        VcpuExit::InternalError(InternalError::Other { suberror, data }) => {
            return Err(Unreported::Internal(format!("internal error {suberror}, data {data:x?}")));
        }
        VcpuExit::EntryFailed { reason } => {
            return Err(Unreported::Internal(format!(
                "the processor refuses to enter the guest, reason {reason:#x}"
            )));
        }
        VcpuExit::NoSyndrome { iss, address } => {
            return Ok(Left::Undescribed { iss, address });
        }
        VcpuExit::MemoryFault { address, size, errno } => {
            let error = io::Error::from_raw_os_error(errno);
            return Err(Unreported::Internal(format!(
                "a fault on {size} bytes of guest memory at {address:#x}: {error}"
            )));
        }
        VcpuExit::Debug(ref event) if debug.is_some() => {
            return match debugger::trap(event) {
                Some(trap) => Ok(Left::Trap(trap)),
                None => Err(Unreported::Internal(format!("an unknown debug exit: {event:x?}"))),
            };
        }
        VcpuExit::Halt | VcpuExit::Debug(_) | VcpuExit::Hypercall(_) | VcpuExit::Other(_) => {
            return Err(Unreported::Internal(format!("an exit that was not asked for: {exit:?}")));
        }
    };
    Ok(end.map_or(Left::Served, |end| Left::Ended(end.into())))
}

pub fn cannot_run(vcpu: &Vcpu, shared: &Shared, error: &KvmError) -> Outcome {
    Outcome::InternalError { cause: error.to_string(), report: report(vcpu, shared, &[]) }
}

/// Words what the vCPU was doing. `instruction` are the bytes that KVM told, if any; else
/// they are read from guest memory.
pub fn report(vcpu: &Vcpu, shared: &Shared, instruction: &[u8]) -> String {
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

/// Finishes an access that was served, with all of its parts.
pub fn finish(vcpu: &mut Vcpu, shared: &Shared) {
    let id = vcpu.id();
    // It has a few parts at most: 8 bytes each of what one instruction reads or writes.
    for _ in 0..MOST_PARTS {
        match vcpu.finish_access() {
            Ok(None) => return,
            Ok(Some(exit)) => match serve(id, Ok(exit), shared, None) {
                Ok(Left::Served) => {}
                // The device has heard of it, and will not again.
                Ok(Left::Ended(outcome)) => return shared.end(outcome),
                _ => return,
            },
            Err(error) => return log::debug!("vCPU {id}: an access is not finished: {error}"),
        }
    }
}

/// Parts of one access that are served without looking at anything else. An instruction has 64 bytes at most,
/// which KVM hands over in parts of 8 at most; a repeated one has as many as it likes.
const MOST_PARTS: usize = 16;
