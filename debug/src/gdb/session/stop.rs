//! Why a session's target stands still again.

use crate::machine::{Ended, StopReason};

/// Something to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A vCPU stopped, and all stand still.
    Vcpu(u32, StopReason),
    /// The guest is over.
    Ended(Ended),
}

impl Stop {
    /// What a person is told beyond the signal, for the debugger's console.
    pub fn words(&self) -> Option<String> {
        match self {
            Stop::Ended(ended) => Some(format!("vmm: {}\n", ended.text)),
            Stop::Vcpu(vcpu, StopReason::Fatal(text)) => Some(format!("vmm: vCPU {vcpu}: {text}\n")),
            Stop::Vcpu(_, StopReason::Refused(text)) => Some(format!("vmm: {text}\n")),
            Stop::Vcpu(vcpu, StopReason::Hypercall(text)) => {
                Some(format!("vmm: vCPU {vcpu}: hypercall {text}\n"))
            }
            Stop::Vcpu(..) => None,
        }
    }
}
