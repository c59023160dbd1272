//! What is reported when the target stops, as packets.
//!
//! Source: GDB manual, "Stop Reply Packets".

use super::packet::{hex, push_hex};
use super::session::{Session, Stop};
use crate::abilities::Access;
use crate::machine::{Machine, StopReason};
use arch::register::at_stop;

/// Signals as gdb numbers them (GDB manual, "Stop Reply Packets"; gdb's `signals.def`).
const SIGINT: u8 = 2;
const SIGTRAP: u8 = 5;
const SIGABRT: u8 = 6;

/// The stop reply packet's data. Program counter, stack pointer and frame pointer go with it, so
/// that a step costs one packet.
pub fn reply<M: Machine>(stop: &Stop, session: &Session<M>) -> Vec<u8> {
    let (vcpu, reason) = match stop {
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
    push_expedited(&mut text, session, vcpu);
    text.extend(why.into_bytes());
    text
}

fn push_expedited<M: Machine>(text: &mut Vec<u8>, session: &Session<M>, vcpu: u32) {
    let Ok(file) = session.debuggee.machine.at_stop(vcpu) else { return };
    for row in at_stop(session.isa()) {
        let (Some(value), Ok(number)) = (file.get_row(row), u8::try_from(row)) else { continue };
        let bytes = value.to_le_bytes();
        push_hex(text, &[number]);
        text.push(b':');
        push_hex(text, &bytes[..session.registers.size(row).min(bytes.len())]);
        text.push(b';');
    }
}

/// An `O` packet's data: text for the debugger's console.
pub fn console(text: &str) -> Vec<u8> {
    [b"O".to_vec(), hex(text.as_bytes())].concat()
}
