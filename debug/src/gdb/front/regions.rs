//! What is mapped where: lldb's `qMemoryRegionInfo`.

use crate::gdb::answer::{Answer, errno, error};
use crate::gdb::packet::number;
use crate::gdb::session::Session;
use crate::machine::Machine;
use crate::memory::Translation;
use arch::GuestVirt;
use arch::paging::{Permissions, Regime};

/// `qMemoryRegionInfo:address`: the page there, or the gap (LLDB, "GDB Remote Protocol Extensions").
pub(super) fn region<M: Machine>(session: &Session<M>, address: &[u8]) -> Answer {
    let Some(address) = number(address) else { return error(errno::EINVAL) };
    let regime = match session.space(address) {
        Ok(Translation::Virtual(regime)) => Some(regime),
        Ok(Translation::Physical) => session.view().translation().ok().map(|(regime, _)| regime),
        Err(_) => None,
    };
    let Some(regime) = regime else { return error(errno::EINVAL) };
    let (start, last, permissions) = if !regime.is_on() || session.debuggee.is_physical {
        ram_region(session, address)
    } else if let Some((start, last)) = hole(&regime, address) {
        (start, last, String::new())
    } else {
        match regime.translate(session.debuggee.machine.memory(), GuestVirt(address)) {
            // Devices are not touched for a debugger, so nothing can be done with their pages.
            Ok(mapping) if session.debuggee.machine.memory().read(mapping.address, &mut [0]) == 0 => {
                let span = mapping.page_size - 1;
                (address & !span, address | span, String::new())
            }
            Ok(mapping) => {
                let letter = |on, letter| if on { letter } else { "" };
                let Permissions { write, execute, .. } = mapping.permissions;
                let permissions = ["r", letter(write, "w"), letter(execute, "x")].concat();
                let span = mapping.page_size - 1;
                (address & !span, address | span, permissions)
            }
            Err(fault) => (address & !(fault.span() - 1), address | (fault.span() - 1), String::new()),
        }
    };
    // The end must be a number of 64 bits, too.
    let size = (last - start).saturating_add(1).min(u64::MAX - start);
    let permissions =
        if permissions.is_empty() { String::new() } else { format!("permissions:{permissions};") };
    Answer::Reply(format!("start:{start:x};size:{size:x};{permissions}").into_bytes())
}

/// The addresses around this one that no table can cover, first and last, if it is one of them.
fn hole(regime: &Regime, address: u64) -> Option<(u64, u64)> {
    let (mut start, mut last) = (0, u64::MAX);
    for (first, end) in regime.ranges() {
        if (first.0..=end.0).contains(&address) {
            return None;
        }
        if end.0 < address {
            start = start.max(end.0 + 1);
        } else {
            last = last.min(first.0 - 1);
        }
    }
    Some((start, last))
}

/// Without translation: a range of RAM, or what lies between two.
fn ram_region<M: Machine>(session: &Session<M>, address: u64) -> (u64, u64, String) {
    let (mut start, mut last) = (0, u64::MAX);
    for range in session.debuggee.machine.memory().ranges() {
        let (first, end) = (range.start.0, range.end().0);
        if (first..end).contains(&address) {
            return (first, end - 1, "rwx".into());
        }
        if end <= address {
            start = start.max(end);
        } else {
            last = last.min(first - 1);
        }
    }
    (start, last, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::paging::x86::Paging;

    #[test]
    fn a_vcpu_that_is_not_started_sees_by_anothers_tables() {
        use crate::engine::Engine;
        use crate::fake::Still;
        use crate::gdb::monitor;
        use arch::register::RegisterFile;
        use arch::{GuestPhys, Isa};
        let mut machine = Still::new(Isa::X86_64, 2, 1 << 20).unwrap();
        machine.started = 1;
        let mut file = RegisterFile::new(Isa::X86_64);
        for (name, value) in [("cr0", 0x8000_0001), ("cr3", 0x1000), ("cr4", 0x20), ("efer", 0x500)] {
            file.set(name, value);
        }
        machine.set_registers(0, &file).unwrap();
        // A page of RAM, and one where none is.
        for (at, value) in
            [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3010, 0x4007), (0x4000, 0x8007), (0x4008, 0xfee0_0007)]
        {
            machine.memory().write(GuestPhys(at), &value.to_le_bytes());
        }
        machine.memory().write(GuestPhys(0x8000), b"seen");
        let engine = Engine::new(Isa::X86_64, machine.abilities().clone(), 2);
        let mut session = Session::new(machine, std::sync::Arc::new(engine));
        session.debuggee.current = 1;
        let mut bytes = [0; 4];
        assert_eq!((session.view().read(0x40_0000, &mut bytes), &bytes), (4, b"seen"));
        let reply = |address: &[u8]| match region(&session, address) {
            Answer::Reply(text) => String::from_utf8(text).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(reply(b"400000"), "start:400000;size:1000;permissions:rwx;");
        assert_eq!(reply(b"401000"), "start:401000;size:1000;");
        let text = monitor::run(&mut session, "translate 0x400000");
        assert!(text.starts_with("vCPU 1 has not been started; by the tables of vCPU 0:\n"), "{text}");
    }

    #[test]
    fn the_hole_is_one_region() {
        let level4 = Regime::X86(Paging::new(1 << 31, 0x1000, 1 << 5, 1 << 10));
        let (start, last) = (1 << 47, (1u64 << 47).wrapping_neg() - 1);
        for address in [start, start + 0x1234, last] {
            assert_eq!(hole(&level4, address), Some((start, last)));
        }
        assert_eq!((hole(&level4, start - 1), hole(&level4, last + 1)), (None, None));
        // Outside long mode everything above 4 GiB is.
        let pae = Regime::X86(Paging::new(1 << 31, 0x1000, 1 << 5, 0));
        assert_eq!(hole(&pae, 1 << 32), Some((1 << 32, u64::MAX)));
        assert_eq!(hole(&pae, 0xffff_ffff), None);
        let arm = Regime::Aarch64(arch::paging::aarch64::Paging::new(1, 16 | 16 << 16, 0, 0));
        assert_eq!(hole(&arm, 1 << 50), Some((1 << 48, (1u64 << 48).wrapping_neg() - 1)));
    }
}
