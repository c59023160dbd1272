//! What a person is told of a stop.

use super::Stop;
use crate::machine::StopReason;

/// What is told beyond the signal, for the debugger's console.
pub fn words(stop: &Stop) -> Option<String> {
    match stop {
        Stop::Ended(ended) => Some(format!("vmm: {}\n", ended.text)),
        Stop::Vcpu(vcpu, StopReason::Fatal(text)) => Some(format!("vmm: vCPU {vcpu}: {text}\n")),
        Stop::Vcpu(_, StopReason::Refused(text)) => Some(format!("vmm: {text}\n")),
        Stop::Vcpu(vcpu, StopReason::Hypercall(text)) => {
            Some(format!("vmm: vCPU {vcpu}: hypercall {text}\n"))
        }
        Stop::Vcpu(..) => None,
    }
}
