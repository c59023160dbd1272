//! What is reported when the target stops, as packets.
//!
//! Source: GDB manual, "Stop Reply Packets".

use super::packet::{hex, push_hex};
use super::session::{Session, Stop};
use crate::abilities::Access;
use crate::machine::{Machine, StopReason};
use arch::Isa;
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
        StopReason::Breakpoint => (SIGTRAP, at_breakpoint("swbreak:;", session, vcpu)),
        StopReason::HardwareBreakpoint => (SIGTRAP, at_breakpoint("hwbreak:;", session, vcpu)),
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

/// What is said of a stop at a breakpoint. gdb looks for one of its own at the program counter, and goes on where it
/// has none: in a code segment that does not begin at 0 that is another address than the breakpoint's, so gdb is told
/// of a trap and no more.
fn at_breakpoint<M: Machine>(what: &str, session: &Session<M>, vcpu: u32) -> String {
    let machine = &session.debuggee.machine;
    let is_elsewhere = session.isa() == Isa::X86_64
        && machine
            .at_stop(vcpu)
            .ok()
            .and_then(|file| file.pc())
            .is_some_and(|pc| machine.code(vcpu).is_ok_and(|code| code.linear(pc) != pc));
    if is_elsewhere { String::new() } else { what.into() }
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

/// The stop reply packet's data for a thread that was to be resumed and cannot be: it stops by no signal.
pub fn nothing_happened(thread: &str) -> Vec<u8> {
    format!("T00thread:{thread};").into_bytes()
}

/// An `O` packet's data: text for the debugger's console.
pub fn console(text: &str) -> Vec<u8> {
    [b"O".to_vec(), hex(text.as_bytes())].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disassemble::OperatingMode;
    use crate::engine::Engine;
    use crate::fake::Still;
    use crate::machine::Code;
    use std::sync::Arc;

    #[test]
    fn a_breakpoint_is_named_where_gdb_finds_it_at_the_program_counter() {
        for (isa, mode, base, is_named) in [
            (Isa::X86_64, OperatingMode::Bits64, 0, true),
            // Has no meaning there.
            (Isa::X86_64, OperatingMode::Bits64, 0x8000, true),
            (Isa::X86_64, OperatingMode::Protected32, 0, true),
            (Isa::X86_64, OperatingMode::Protected32, 0x8000, false),
            (Isa::X86_64, OperatingMode::Real16, 0x8000, false),
            (Isa::Aarch64, OperatingMode::Bits64, 0, true),
        ] {
            let mut machine = Still::new(isa, 1, 1 << 20).unwrap();
            machine.code = Code { mode, base };
            let engine = Engine::new(isa, machine.abilities().clone(), 1);
            let session = Session::new(machine, Arc::new(engine));
            for (reason, name) in
                [(StopReason::Breakpoint, "swbreak:;"), (StopReason::HardwareBreakpoint, "hwbreak:;")]
            {
                let told = String::from_utf8(reply(&Stop::Vcpu(0, reason), &session)).unwrap();
                assert!(told.starts_with("T05thread:"), "{told}");
                assert_eq!(told.contains(name), is_named, "{isa:?} {mode:?} {base:#x}: {told}");
                assert_eq!(told.contains("break"), is_named, "{told}");
            }
        }
    }
}
