//! What a person is told of a stop.

use super::Stop;
use crate::machine::StopReason;

/// What is told beyond the signal, for the debugger's console: a line.
pub fn words(stop: &Stop) -> Option<String> {
    match stop {
        Stop::Ended(ended) => Some(ended.text.clone()),
        Stop::Vcpu(vcpu, StopReason::Fatal(text)) => Some(format!("vCPU {vcpu}: {text}")),
        Stop::Vcpu(_, StopReason::Refused(text)) => Some(text.clone()),
        Stop::Vcpu(vcpu, StopReason::Hypercall(text)) => Some(format!("vCPU {vcpu}: hypercall {text}")),
        Stop::Vcpu(..) => None,
    }
}
