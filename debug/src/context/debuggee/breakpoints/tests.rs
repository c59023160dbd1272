//! What is taken, what is refused, and what becomes of the rest.

use super::*;
use crate::breakpoint::PATCHED;
use crate::engine::Engine;
use crate::fake::Still;
use arch::GuestPhys;
use std::sync::Arc;

fn asked(kind: Kind, address: u64, length: u64, conditions: Vec<Expression>) -> Breakpoint {
    let conditions = conditions.into_iter().map(Condition::Bytecode).collect();
    Breakpoint { conditions, ..Breakpoint::new(kind, GuestVirt(address), length, Place::Off) }
}

#[test]
fn a_breakpoint_that_could_be_planted_gives_up_its_register_for_others() {
    for (isa, nop) in [(Isa::X86_64, &[0x66, 0x90][..]), (Isa::Aarch64, &[0x1f, 0x20, 0x03, 0xd5])] {
        let machine = Still::new(isa, 1, 1 << 16).unwrap();
        machine.memory().write(GuestPhys(0x1000), nop);
        let host = machine.abilities().clone();
        let registers = if isa == Isa::X86_64 { host.watchpoints } else { host.breakpoints };
        let mut debuggee = Debuggee::new(machine, Arc::new(Engine::new(isa, host, 1)));
        debuggee.insert(asked(Kind::Software, 0x1000, 4, Vec::new())).unwrap();
        let place = |debuggee: &Debuggee<Still>| {
            debuggee.engine.requests().table.iter().next().map(|first| first.place)
        };
        assert_eq!(place(&debuggee), Some(Place::Fallback(PATCHED)), "{isa}");
        for index in 0..registers as u64 {
            debuggee.insert(asked(Kind::Hardware, 0x2000 + 16 * index, 4, Vec::new())).unwrap();
        }
        assert_eq!(place(&debuggee), Some(Place::Planted(GuestPhys(0x1000))), "{isa}");
        let refused = debuggee.insert(asked(Kind::Hardware, 0x3000, 4, Vec::new()));
        assert!(refused.is_err(), "{isa}");
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    for isa in Isa::ALL {
        let machine = Still::new(isa, 1, 1 << 16).unwrap();
        let host = machine.abilities().clone();
        let mut debuggee = Debuggee::new(machine, Arc::new(Engine::new(isa, host.clone(), 1)));
        let all = host.breakpoints as u64;
        let watch = |debuggee: &mut Debuggee<Still>, length| {
            debuggee.insert(asked(Kind::Write, 0x3000, length, Vec::new()))
        };
        let breakpoints = if isa == Isa::X86_64 { all - 1 } else { all };
        for index in 0..breakpoints {
            let always = vec![Expression::new(vec![0x22, 1, 0x27]).unwrap()];
            debuggee.insert(asked(Kind::Hardware, 0x2000 + 16 * index, 4, always)).unwrap();
        }
        watch(&mut debuggee, 4).unwrap();
        let seen = |debuggee: &Debuggee<Still>| -> Vec<(GuestVirt, usize)> {
            let requests = debuggee.engine.requests();
            requests.table.iter().map(|it| (it.address, it.conditions.len())).collect()
        };
        let before = (seen(&debuggee), debuggee.engine.arming(&debuggee.engine.requests(), 0));
        // One more of another kind, a larger one, and the same ones again.
        assert!(debuggee.insert(asked(Kind::Hardware, 0x4000, 4, Vec::new())).is_err(), "{isa}");
        assert!(watch(&mut debuggee, 0xff).is_err(), "{isa}");
        let again = vec![Expression::new(vec![0x22, 0, 0x27]).unwrap()];
        debuggee.insert(asked(Kind::Hardware, 0x2000, 4, again)).unwrap();
        watch(&mut debuggee, 4).unwrap();
        let after = (seen(&debuggee), debuggee.engine.arming(&debuggee.engine.requests(), 0));
        assert_eq!(before, after, "{isa}");
        assert!(debuggee.remove(Kind::Write, 0x3000, 4));
        assert_eq!(seen(&debuggee).len() as u64, breakpoints);
    }
}
#[test]
fn there_is_an_end_to_breakpoints() {
    for isa in Isa::ALL {
        let machine = Still::new(isa, 1, 1 << 20).unwrap();
        let host = machine.abilities().clone();
        let mut debuggee = Debuggee::new(machine, Arc::new(Engine::new(isa, host, 1)));
        let mut insert = |address| {
            debuggee.insert(asked(Kind::Software, address, 4, Vec::new())).map_err(|e| e.to_string())
        };
        let unaligned = insert(0x1002);
        assert_eq!(unaligned.is_err(), isa == Isa::Aarch64, "{unaligned:?}");
        assert!(insert(0x2000).is_ok());
        for index in 0..MOST_BREAKPOINTS as u64 {
            let address = GuestVirt(0x4000 + 16 * index);
            let it = Breakpoint::new(Kind::Software, address, 4, Place::Off);
            debuggee.engine.requests().table.insert(debuggee.machine.memory(), it).unwrap();
        }
        let refused = debuggee.insert(asked(Kind::Software, 0x3000, 4, Vec::new()));
        assert!(matches!(refused, Err(InsertError::Many)), "{refused:?}");
        // One that is there can be changed.
        debuggee.insert(asked(Kind::Software, 0x2000, 4, Vec::new())).unwrap();
    }
}
