//! Entering the guest, and serving what it wants: ports and memory of devices, hypercalls, and its ends.
//!
//! [`Server`] is what a vCPU's thread ([`debug::live::inbox`]) has the guest entered by, to run and to step it.

pub(in crate::machine) mod over;

use super::hypercalls::{AfterCall, LiveHypercalls};
use super::services::Services;
use crate::outcome::Outcome;
use arch::words::counted;
use debug::live::inbox::Serve;
use debug::live::runner::{Exit, Next, Runner, Turn, Visit};
use debug::machine::StopReason;
use debug::trap::Trap;
use devices::{guest_log, tell};
use kvm::Vcpu;
use kvm::exit::{HypercallExit, InternalError, SystemEvent, VcpuExit};
use over::{Over, fatal};
use std::io;

/// Serves the guest on one vCPU's thread, and remembers how it ended.
#[derive(Debug)]
pub struct Server<'a> {
    services: &'a Services,
    /// What has not been told yet, as a debugger may want to look at the guest first.
    outcome: Option<Outcome>,
}

impl<'a> Server<'a> {
    /// For one thread.
    pub fn new(services: &'a Services) -> Server<'a> {
        Server { services, outcome: None }
    }

    /// Notes how the guest has ended; what a debugger may want to know of it first.
    fn end(&mut self, vcpu: &Vcpu, end: Over) -> Option<String> {
        let outcome = end.outcome(vcpu, &self.services.memory);
        let fatal = fatal(&outcome);
        self.outcome = Some(outcome);
        fatal
    }
}

impl Serve<Vcpu> for Server<'_> {
    fn enter(&mut self, vcpu: &mut Vcpu, turn: Turn<'_>) -> Exit {
        let exit = match enter(vcpu, turn, self.services) {
            Ok(exit) => exit,
            Err(end) => Exit::End { fatal: self.end(vcpu, end) },
        };
        self.services.output.settle_new();
        // Nothing is locked now.
        guest_log::deliver();
        exit
    }

    fn deal_with(&mut self, next: Next, runner: &mut Runner, vcpu: &Vcpu) {
        let end = match next {
            Next::Look => return,
            Next::End(_) => None,
            Next::Unowned(Trap::EmulationFailure { instruction }) => {
                Some(Over::EmulationFailure(instruction))
            }
            Next::Unowned(trap) => Some(Over::Internal(format!("a debug exit that is nobody's: {trap:?}"))),
            Next::Failed(cause) => Some(Over::Internal(cause)),
        };
        let is_over = match end {
            None => true,
            Some(end) => {
                let fatal = self.end(vcpu, end);
                matches!(runner.end(vcpu, fatal), Next::End(_))
            }
        };
        if is_over && let Some(outcome) = self.outcome.take() {
            self.services.output.flush();
            self.services.end(outcome);
        }
    }
}

fn enter(vcpu: &mut Vcpu, turn: Turn<'_>, services: &Services) -> Result<Exit, Over> {
    let id = vcpu.id();
    if turn.is_finish() {
        return match vcpu.finish_access()? {
            Some(exit) => serve(id, exit, services),
            None => Ok(Exit::Interrupted),
        };
    }
    // A debugger can step a guest that waits for whoever reads its output.
    if !turn.is_step() && !services.output.settle() {
        return Ok(Exit::Interrupted);
    }
    let (inside, mut visit) = turn.enter();
    let exit = vcpu.run();
    drop(inside);
    let exit = exit?;
    match hypercall(&exit, services) {
        Some((call, hypercalls)) => {
            services.exits.count(id, &VcpuExit::Hypercall(call));
            answer(call, hypercalls, vcpu, &mut visit)
        }
        None => serve(id, exit, services),
    }
}

/// The hypercall that an exit is, if hypercalls come to us.
fn hypercall<'a>(exit: &VcpuExit<'_>, services: &'a Services) -> Option<(HypercallExit, &'a LiveHypercalls)> {
    let hypercalls = services.hypercalls.as_deref()?;
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
        AfterCall::GoOn => Ok(Exit::Served),
        AfterCall::End(end) => Err(Over::As(end.into())),
        AfterCall::Catch(text) => Ok(Exit::Stop(StopReason::Hypercall(text))),
    }
}

/// What vCPU `id` has written, noted if there is a device there.
fn told<T, E>(id: u32, services: &Services, written: Result<T, E>) -> Result<T, E> {
    if written.is_ok() {
        services.exits.count_write(id);
    }
    written
}

/// Serves an exit of vCPU `id`.
fn serve(id: u32, exit: VcpuExit<'_>, services: &Services) -> Result<Exit, Over> {
    log::debug!(target: "vmm::exit", "vCPU {id}: {exit:x?}");
    services.exits.count(id, &exit);
    let end = match exit {
        VcpuExit::Interrupted => return Ok(Exit::Interrupted),
        VcpuExit::MsrWrite { index, value, refused } => {
            let taken = services.hypercalls.as_ref().is_some_and(|calls| calls.write_msr(index, value));
            *refused = u8::from(!taken);
            None
        }
        VcpuExit::PortRead { port, size, data } => {
            for access in data.chunks_mut(size) {
                if !services.ports.read(u64::from(port), access) {
                    tell!(Info, "vCPU {id} reads {} at unused port {port:#x}", counted(size, "byte"));
                }
            }
            None
        }
        VcpuExit::PortWrite { port, size, data } => {
            let mut end = None;
            for access in data.chunks(size) {
                match told(id, services, services.ports.write(u64::from(port), access)) {
                    Ok(asked) => end = end.or(asked),
                    Err(_) => tell!(Info, "vCPU {id} writes {access:02x?} to unused port {port:#x}"),
                }
            }
            end
        }
        VcpuExit::MmioRead { address, data } => {
            if !services.mmio.read(address, data) {
                tell!(Info, "vCPU {id} reads at {address:#x}, where nothing is (size {})", data.len());
            }
            None
        }
        VcpuExit::MmioWrite { address, data } => {
            let written = told(id, services, services.mmio.write(address, data));
            written.unwrap_or_else(|_| {
                tell!(Info, "vCPU {id} writes {data:02x?} to {address:#x}, where nothing is");
                None
            })
        }
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
        VcpuExit::MemoryFault { address, size, errno, .. } => {
            let error = io::Error::from_raw_os_error(errno);
            return Err(Over::Internal(format!(
                "a fault on guest memory at {address:#x}, {size} bytes: {error}"
            )));
        }
        VcpuExit::Debug(ref event) => {
            return match event.trap() {
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
