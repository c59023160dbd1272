//! What is reported when the target stops: the packet, and words for the person behind it.
//!
//! Source: GDB manual, "Stop Reply Packets".

use super::packet::{hex, push_hex};
use super::session::Session;
use crate::target::{Access, Ended, Machine, StopReason};
use arch::Isa;
use arch::register::Bank;

/// Signals as gdb numbers them (GDB manual, "Stop Reply Packets"; gdb's `signals.def`).
const SIGINT: u8 = 2;
const SIGTRAP: u8 = 5;
const SIGABRT: u8 = 6;

/// Something to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A vCPU stopped, and all stand still.
    Vcpu(u32, StopReason),
    /// The guest is over.
    Ended(Ended),
}

impl Stop {
    /// The stop reply packet's data. Program counter, stack pointer and frame pointer go with it, so
    /// that a step costs one packet.
    pub fn reply<M: Machine>(&self, session: &Session<M>) -> Vec<u8> {
        let (vcpu, reason) = match self {
            Stop::Ended(ended) => return format!("W{:02x}", ended.code).into_bytes(),
            Stop::Vcpu(vcpu, reason) => (*vcpu, reason),
        };
        let (signal, why) = match reason {
            StopReason::Breakpoint => (SIGTRAP, "swbreak:;".into()),
            StopReason::HardwareBreakpoint => (SIGTRAP, "hwbreak:;".into()),
            StopReason::Watchpoint { address, access } => {
                let kind = match access {
                    Access::Write => "watch",
                    Access::Read => "rwatch",
                    Access::Any => "awatch",
                };
                (SIGTRAP, format!("{kind}:{address:x};"))
            }
            StopReason::Step | StopReason::Hypercall(_) | StopReason::Refused(_) => (SIGTRAP, String::new()),
            StopReason::Interrupt => (SIGINT, String::new()),
            StopReason::Fatal(_) => (SIGABRT, String::new()),
        };
        let mut text = format!("T{signal:02x}thread:{};", session.thread_id(vcpu)).into_bytes();
        for (row, bytes) in expedited(session, vcpu) {
            text.extend(format!("{row:02x}:").into_bytes());
            push_hex(&mut text, &bytes);
            text.push(b';');
        }
        text.extend(why.into_bytes());
        text
    }

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

fn expedited<M: Machine>(session: &Session<M>, vcpu: u32) -> Vec<(usize, Vec<u8>)> {
    let names = match session.isa() {
        Isa::X86_64 => ["rip", "rsp", "rbp"],
        Isa::Aarch64 => ["pc", "sp", "x29"],
    };
    let Ok(file) = session.machine.registers(vcpu, &[Bank::General]) else { return Vec::new() };
    names
        .into_iter()
        .filter_map(|name| {
            let row = arch::register::row(session.isa(), name)?;
            let mut bytes = file.bytes(row)?;
            bytes.truncate(session.registers.size(row));
            Some((row, bytes))
        })
        .collect()
}

/// An `O` packet's data: text for the debugger's console.
pub fn console(text: &str) -> Vec<u8> {
    [b"O".to_vec(), hex(text.as_bytes())].concat()
}
