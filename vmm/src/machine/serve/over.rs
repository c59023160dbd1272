//! How a guest comes to its end on a vCPU's thread, and what is told of what the vCPU was doing.

use crate::outcome::Outcome;
use arch::register::Bank;
use arch::x86::reset_vector;
use arch::{End, GuestVirt, Isa};
use debug::disassemble::LONGEST_INSTRUCTION;
use debug::memory::{self, Translation};
use debug::report::Report;
use kvm::ram::{GuestMemory, LiveMemory};
use kvm::{HOST_ISA, KvmError, Vcpu};

/// An end of the guest.
pub(super) enum Over {
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
    pub fn outcome(self, vcpu: &Vcpu, memory: &GuestMemory) -> Outcome {
        match self {
            Over::As(outcome) => outcome,
            // Where firmware would be, that boots the machine again.
            Over::EmulationFailure(_) if is_after_init(vcpu) => Outcome::Ended(End::Reset),
            Over::TripleFault => Outcome::TripleFault { report: report(vcpu, memory, &[]) },
            Over::EmulationFailure(instruction) => {
                Outcome::EmulationFailure { report: report(vcpu, memory, &instruction) }
            }
            Over::Internal(cause) => Outcome::InternalError { cause, report: report(vcpu, memory, &[]) },
        }
    }
}

/// Whether a vCPU begins where an x86 processor does after INIT.
fn is_after_init(vcpu: &Vcpu) -> bool {
    let (Ok((pc, _)), Ok(mode)) = (vcpu.pc_and_flags(), vcpu.code()) else { return false };
    HOST_ISA == Isa::X86_64 && mode.linear(pc) == reset_vector::AFTER_INIT
}

/// Why a debugger may want to look at a guest that has come to this end; `None` where there is nothing more to see.
pub(super) fn fatal(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::TripleFault { .. }
        | Outcome::EmulationFailure { .. }
        | Outcome::InternalError { .. }
        | Outcome::Ended(End::Crash) => {
            Some(outcome.to_string().lines().next().unwrap_or_default().to_string())
        }
        _ => None,
    }
}

/// Words what the vCPU was doing. `instruction` are the bytes that KVM told, if any; else
/// they are read from guest memory.
pub(in crate::machine) fn report(vcpu: &Vcpu, memory: &GuestMemory, instruction: &[u8]) -> String {
    let registers = vcpu.registers(&[Bank::General, Bank::System]);
    let mut code = instruction.to_vec();
    if code.is_empty()
        && let (Ok((pc, _)), Ok(mode), Ok(regime)) = (vcpu.pc_and_flags(), vcpu.code(), vcpu.regime())
    {
        code.resize(LONGEST_INSTRUCTION, 0);
        let (memory, place) = (LiveMemory(memory.clone()), GuestVirt(mode.linear(pc)));
        let read = memory::read(&memory, &Translation::Virtual(regime), None, place, &mut code);
        code.truncate(read);
    }
    Report { vcpu: vcpu.id(), registers: &registers, code: &code }.text()
}
