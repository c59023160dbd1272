//! `qqemu` and `Qqemu`: what QEMU's stub answers beyond the manual.
//!
//! Source: QEMU's `docs/system/gdb.rst` and `gdbstub/gdbstub.c`.

use crate::gdb::answer::{Answer, errno, error, ok};
use crate::gdb::packet::number;
use crate::gdb::session::Session;
use crate::machine::Machine;

/// Bits of QEMU's `qemu.sstep`: steps at all, without interrupts, without timers. Timers of a guest of
/// KVM cannot be held up by a step, so the third is none that we have.
const SSTEP_ENABLE: u8 = 1;

const SSTEP_NOIRQ: u8 = 2;

/// What QEMU's stub answers beyond the manual. pwndbg and gef ask in this way whether they see a kernel.
pub(super) fn qemu<M: Machine>(session: &mut Session<M>, what: &[u8]) -> Answer {
    match what {
        b"Supported" => Answer::Reply(b"sstepbits;sstep;PhyMemMode".to_vec()),
        b"sstepbits" => Answer::Reply(format!("ENABLE={SSTEP_ENABLE:x},NOIRQ={SSTEP_NOIRQ:x}").into_bytes()),
        b"sstep" => {
            let falls = session.debuggee.engine.requests().step_interrupts;
            let bits = SSTEP_ENABLE | if falls { 0 } else { SSTEP_NOIRQ };
            Answer::Reply(format!("0x{bits:x}").into_bytes())
        }
        b"PhyMemMode" => {
            Answer::Reply(if session.debuggee.is_physical { b"1".to_vec() } else { b"0".to_vec() })
        }
        _ => set(session, what),
    }
}

fn set<M: Machine>(session: &mut Session<M>, what: &[u8]) -> Answer {
    if let Some(bits) = what.strip_prefix(b"sstep=") {
        // QEMU takes both ways of writing it.
        match number(bits.strip_prefix(b"0x").unwrap_or(bits)) {
            Some(bits) if bits & !u64::from(SSTEP_ENABLE | SSTEP_NOIRQ) == 0 => {
                session.debuggee.engine.requests().step_interrupts = bits & u64::from(SSTEP_NOIRQ) == 0;
                ok()
            }
            _ => error(errno::EINVAL),
        }
    } else if let Some(mode) = what.strip_prefix(b"PhyMemMode:") {
        session.debuggee.is_physical = mode == b"1";
        ok()
    } else {
        Answer::Reply(Vec::new())
    }
}
