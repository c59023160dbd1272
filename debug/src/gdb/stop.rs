//! What is reported when the target stops, as packets.
//!
//! Source: GDB manual, "Stop Reply Packets".

use super::packet::{hex, push_hex};
use super::session::{Session, Stop};
use crate::abilities::Access;
use crate::machine::{Machine, StopReason};
use arch::Isa;
use arch::register::Bank;

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
    for (row, bytes) in expedited(session, vcpu) {
        text.extend(format!("{row:02x}:").into_bytes());
        push_hex(&mut text, &bytes);
        text.push(b';');
    }
    text.extend(why.into_bytes());
    text
}

fn expedited<M: Machine>(session: &Session<M>, vcpu: u32) -> Vec<(usize, Vec<u8>)> {
    let names = match session.isa() {
        Isa::X86_64 => ["rip", "rsp", "rbp"],
        Isa::Aarch64 => ["pc", "sp", "x29"],
    };
    let Ok(file) = session.debuggee.machine.registers(vcpu, &[Bank::General]) else { return Vec::new() };
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
