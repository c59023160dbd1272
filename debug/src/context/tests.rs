//! A program debugs a guest without a hypervisor, for both architectures on any host.

use super::*;
use crate::engine::Engine;
use crate::fake::simulated::{CODE, Calling, DATA, SharedRam, Simulated, calling, debuggee};
use crate::fake::{self, Ram};
use crate::live;
use crate::live::debugger::Debugger;
use crate::live::machine::LiveMachine;
use crate::live::vcpus::Vcpus;
use crate::machine::{Ended, Event, Machine, StopReason};
use crate::ram::Memory;
use arch::{GuestPhys, Isa};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// A guest that does not do what is waited for never will.
const LIMIT: Duration = Duration::from_secs(60);

type Guest = Debuggee<LiveMachine<Simulated>>;

fn setting(isa: Isa, vcpus: u32) -> (Guest, Calling) {
    let code = calling(isa);
    (debuggee(isa, vcpus, &code.code).unwrap(), code)
}

fn counter(isa: Isa) -> &'static str {
    if isa == Isa::X86_64 { "rax" } else { "x0" }
}

fn go(guest: &mut Guest, context: Id, mode: Mode) -> Stopped {
    guest.go_until(context, mode, LIMIT).unwrap()
}

/// Where a vCPU stands, from the first instruction on.
fn at(guest: &Guest, context: Id) -> u64 {
    guest.pc(context).unwrap() - CODE
}

fn stored(guest: &Guest) -> u64 {
    guest.read_u64(guest.root(), Address::physical(DATA)).unwrap()
}

fn expect_running(guest: &mut Guest) {
    let before = stored(guest);
    while stored(guest) == before {
        assert_eq!(guest.poll(), Ok(None));
        thread::yield_now();
    }
}

#[test]
fn each_kind_of_step() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let vcpu = guest.vcpu(0).unwrap();
        let step = StopReason::Step;
        assert_eq!(go(&mut guest, vcpu, Mode::StepInto).reason, step);
        assert_eq!(at(&guest, vcpu), code.work, "{isa}");
        // Into the next function, by its line, and out of it.
        go(&mut guest, vcpu, Mode::StepIntoRange(CODE + code.work..CODE + code.leaf));
        assert_eq!(at(&guest, vcpu), code.leaf, "{isa}");
        go(&mut guest, vcpu, Mode::StepOut);
        assert_eq!(at(&guest, vcpu), code.behind, "{isa}");
        // From within; on aarch64 the register has another address by now.
        assert_eq!(go(&mut guest, vcpu, Mode::StepOut).reason, step);
        assert_eq!(at(&guest, vcpu), code.back, "{isa}");
        // A line with a call in it.
        let count = guest.register(vcpu, counter(isa)).unwrap();
        go(&mut guest, vcpu, Mode::StepIntoRange(CODE + code.back..CODE + code.work));
        assert_eq!(at(&guest, vcpu), 0, "{isa}: to the begin of the loop");
        go(&mut guest, vcpu, Mode::StepOverRange(CODE..CODE + code.back));
        assert_eq!(at(&guest, vcpu), code.back, "{isa}");
        assert_eq!(
            guest.register(vcpu, counter(isa)).unwrap(),
            count + 2,
            "{isa}: leaf has run, and one more"
        );
        // The machine's only vCPU steps for it.
        let root = guest.root();
        go(&mut guest, root, Mode::StepInto);
        assert_ne!(at(&guest, vcpu), code.back);
    }
}

#[test]
fn out_and_over_the_rest_of_the_line() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let root = guest.root();
        let leaf = guest.add(Point::execute(CODE + code.leaf)).unwrap();
        assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [leaf]);
        let line = CODE + code.call..CODE + code.leaf - 1;
        let vcpu = guest.vcpu(0).unwrap();
        go(&mut guest, vcpu, Mode::StepOutRange(CODE + code.call..CODE + code.leaf));
        // The rest of the line returns.
        assert_eq!(at(&guest, vcpu), code.back, "{isa} {line:x?}");
    }
}

#[test]
fn recursion_does_not_fool_a_step() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let vcpu = guest.vcpu(0).unwrap();
        let (pc, left) = if isa == Isa::X86_64 { ("rip", "rcx") } else { ("pc", "x2") };
        guest.set_register(vcpu, pc, CODE + code.down).unwrap();
        guest.set_register(vcpu, left, 5).unwrap();
        // It returns to the loop.
        let stack = guest.stack(vcpu).unwrap();
        guest.write(vcpu, stack, &CODE.to_le_bytes()).unwrap();
        if isa == Isa::Aarch64 {
            guest.set_register(vcpu, "x30", CODE).unwrap();
        }
        let again = guest.add(Point::execute(CODE + code.again)).unwrap();
        assert_eq!(go(&mut guest, vcpu, Mode::Run).breakpoints, [again]);
        let (stack, hits) = (guest.stack(vcpu).unwrap(), guest.known(again).unwrap().hits);
        assert!(guest.take_out(again));
        assert_eq!((hits, guest.register(vcpu, left).unwrap()), (1, 4));
        // All of the functions below return to the same address.
        go(&mut guest, vcpu, Mode::StepOver);
        let after = (at(&guest, vcpu), guest.stack(vcpu).unwrap(), guest.register(vcpu, left).unwrap());
        assert_eq!(after, (code.behind_again, stack, 0), "{isa}");
        go(&mut guest, vcpu, Mode::StepOut);
        assert_eq!(at(&guest, vcpu), 0, "{isa}");
        // Nothing of the steps is left.
        assert_eq!(guest.engine.requests().table.iter().count(), 0);
    }
}

#[test]
fn a_vcpu_that_comes_by_does_not_fool_a_step() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 3);
        for round in 0..20 {
            let vcpu = guest.vcpu(round % 3).unwrap();
            let stack = guest.stack(vcpu).unwrap();
            // Until it stands in front of the call; the others run through it meanwhile.
            let mut steps = 0;
            while at(&guest, vcpu) != code.call {
                assert_eq!(go(&mut guest, vcpu, Mode::StepInto).context, vcpu);
                steps += 1;
                assert!(steps < 30);
            }
            let within = guest.stack(vcpu).unwrap();
            let stop = go(&mut guest, vcpu, Mode::StepOver);
            assert_eq!((stop.context, at(&guest, vcpu)), (vcpu, code.behind), "{isa}");
            assert_eq!(guest.stack(vcpu).unwrap(), within, "{isa}, from {stack:#x}");
            let stop = go(&mut guest, vcpu, Mode::StepOut);
            assert_eq!((stop.context, at(&guest, vcpu)), (vcpu, code.back), "{isa}");
        }
    }
}

#[test]
fn a_breakpoint_on_the_way_ends_a_step() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 2);
        let vcpu = guest.vcpu(0).unwrap();
        let leaf = guest.add(Point::execute(CODE + code.leaf)).unwrap();
        let stop = guest.go_until(vcpu, Mode::StepOver, LIMIT).unwrap();
        assert_eq!((stop.reason, stop.breakpoints), (StopReason::Breakpoint, vec![leaf]), "{isa}");
        // Somebody's at the same place as the step's own.
        let behind = guest.add(Point::execute(CODE + code.behind)).unwrap();
        let stop = guest.go_until(stop.context, Mode::StepOut, LIMIT).unwrap();
        assert!(stop.breakpoints == [behind] || stop.breakpoints == [leaf], "{isa} {stop:?}");
        assert_eq!(guest.engine.requests().table.iter().count(), 2);
    }
}

#[test]
fn a_vcpu_alone() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 2);
        let (vcpu, other) = (guest.vcpu(0).unwrap(), guest.vcpu(1).unwrap());
        let here = at(&guest, other);
        for mode in [Mode::StepInto, Mode::StepOut, Mode::StepOver] {
            guest.resume_alone(vcpu, mode).unwrap();
            guest.wait(LIMIT).unwrap();
            assert_eq!(at(&guest, other), here, "{isa}");
        }
        assert_ne!(at(&guest, vcpu), code.work);
    }
}

#[test]
fn what_cannot_be_had_is_told_by_type() {
    for isa in Isa::ALL {
        let (mut guest, _) = setting(isa, 2);
        let (root, vcpu) = (guest.root(), guest.vcpu(1).unwrap());
        let range = CODE..CODE + 8;
        let steps = [
            Mode::StepInto,
            Mode::StepIntoRange(range.clone()),
            Mode::StepOver,
            Mode::StepOverRange(range.clone()),
            Mode::StepOut,
            Mode::StepOutRange(range),
        ];
        for mode in steps.iter().chain(&[Mode::Run]) {
            assert_eq!(guest.can(vcpu, mode.clone()), Ok(()), "{mode:?}");
            assert_eq!(guest.can(vcpu, mode.clone().backwards()), Err(Unable::Backwards));
            let refused = guest.resume(vcpu, mode.clone().backwards());
            assert!(matches!(refused, Err(ResumeError::Unable(Unable::Backwards))), "{refused:?}");
            let is_step = *mode != Mode::Run;
            assert_eq!(guest.can(root, mode.clone()).is_err(), is_step);
        }
        assert_eq!(guest.can(root, Mode::StepOver), Err(Unable::ManyVcpus));
        assert_eq!(guest.can(vcpu, Mode::UntilActive), Err(Unable::UntilActive));
        assert_eq!(guest.can(vcpu, Mode::StepOverRange(8..8)), Err(Unable::EmptyRange));
        assert_eq!(guest.wait(LIMIT), Err(WaitError::Standing));
        guest.resume(root, Mode::Run).unwrap();
        assert_eq!(guest.can(vcpu, Mode::Run), Err(Unable::Running));
        assert_eq!(guest.state(vcpu), Ok(ContextState::Running));
        guest.suspend().unwrap();
        guest.detach();
        assert_eq!(
            (guest.can(vcpu, Mode::Run), guest.state(vcpu)),
            (Err(Unable::Detached), Ok(ContextState::Running))
        );
        assert!(matches!(guest.add(Point::execute(CODE)), Err(InsertError::Detached)));
        guest.attach();
        assert_eq!(guest.can(vcpu, Mode::StepOut), Ok(()));
    }
}

#[test]
fn closures_are_asked_on_the_vcpus_thread() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let (root, vcpu) = (guest.root(), guest.vcpu(0).unwrap());
        let asked = Arc::new(AtomicU64::new(0));
        let (count, here) = (Arc::clone(&asked), thread::current().id());
        let (name, call) = (counter(isa), CODE + code.call);
        let expected = guest.machine.memory();
        let mut bytes = [0; 4];
        assert_eq!(expected.read(GuestPhys(call), &mut bytes), 4);
        let point = Point::execute(call).when(move |hit| {
            assert_ne!(thread::current().id(), here);
            count.fetch_add(1, Ordering::SeqCst);
            // It sees the guest's own instruction, where its own is planted.
            let mut seen = [0; 4];
            assert_eq!((hit.read(hit.pc, &mut seen), seen), (4, bytes));
            assert_eq!(hit.read(0x10_0000, &mut seen), 0);
            hit.register(name) >= Some(20) && hit.pc == call
        });
        let id = guest.add(point).unwrap();
        assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [id]);
        assert_eq!(guest.register(vcpu, name).unwrap(), 20, "{isa}");
        assert_eq!((asked.load(Ordering::SeqCst), guest.known(id).unwrap().hits), (11, 11));
    }
}

#[test]
fn a_closure_that_panics_stops_and_the_guest_lives() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 2);
        let root = guest.root();
        // Resuming a panic says nothing on standard error.
        let panics = |_: &crate::breakpoint::Hit<'_>| std::panic::resume_unwind(Box::new("oh"));
        let id = guest.add(Point::execute(CODE + code.leaf).when(panics)).unwrap();
        for _ in 0..3 {
            assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [id], "{isa}");
        }
        let words = guest.engine.requests().take_output(1 << 10).unwrap_or_default();
        assert!(words.contains("it panicked: oh"), "{words}");
        assert!(guest.take_out(id));
        guest.resume(root, Mode::Run).unwrap();
        expect_running(&mut guest);
        guest.suspend().unwrap();
    }
}

#[test]
fn breakpoints_change_while_the_guest_runs() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 2);
        let root = guest.root();
        guest.resume(root, Mode::Run).unwrap();
        let leaf = CODE + code.leaf;
        let never = guest.add(Point::execute(leaf).when(|_| false)).unwrap();
        for _ in 0..5 {
            expect_running(&mut guest);
            guest.enable(never, false).unwrap();
            assert_eq!(guest.known(never).unwrap().place, crate::breakpoint::Place::Off);
            guest.enable(never, true).unwrap();
        }
        let hits = guest.known(never).unwrap().hits;
        while guest.known(never).unwrap().hits == hits {
            assert_eq!(guest.poll(), Ok(None), "{isa}");
            thread::yield_now();
        }
        // Under the same id, with its hits.
        guest.change(never, Point::execute(leaf)).unwrap();
        let stop = guest.wait(LIMIT).unwrap();
        assert_eq!(stop.breakpoints, [never], "{isa}");
        assert!(guest.known(never).unwrap().hits > hits);
        // A second one at the same place, and one on a register.
        let twice = guest.add(Point::execute(leaf)).unwrap();
        let hard = guest.add(Point::execute(CODE + code.behind).hardware()).unwrap();
        let mut seen = Vec::new();
        for _ in 0..20 {
            let stop = go(&mut guest, root, Mode::Run);
            match stop.reason {
                StopReason::Breakpoint => assert_eq!(stop.breakpoints, [never, twice], "{isa}"),
                StopReason::HardwareBreakpoint => assert_eq!(stop.breakpoints, [hard], "{isa}"),
                reason => panic!("{reason:?}"),
            }
            seen.push(stop.reason);
        }
        assert!(seen.contains(&StopReason::HardwareBreakpoint) && seen.contains(&StopReason::Breakpoint));
        assert_eq!(guest.breakpoints(), [never, twice, hard]);
        guest.resume(root, Mode::Run).unwrap();
        for id in guest.breakpoints() {
            assert!(guest.take_out(id));
        }
        assert!(!guest.take_out(never));
        // A stop may have come before.
        if matches!(guest.poll(), Ok(Some(_))) {
            guest.resume(root, Mode::Run).unwrap();
        }
        expect_running(&mut guest);
        guest.suspend().unwrap();
        let mut bytes = vec![0; code.code.len()];
        guest.machine.memory().read(GuestPhys(CODE), &mut bytes);
        assert_eq!(bytes, code.code, "{isa}: something stays planted");
    }
}

/// One that was told to run on and stopped before it did is where it was.
#[test]
fn a_hit_is_not_told_twice_when_the_guest_is_stopped_at_once() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let root = guest.root();
        let leaf = guest.add(Point::execute(CODE + code.leaf)).unwrap();
        let mut hits = 0;
        for round in 0..200 {
            if go(&mut guest, root, Mode::Run).breakpoints == [leaf] {
                hits += 1;
            }
            // Held for a moment before it has begun, as likely as not.
            guest.resume(root, Mode::Run).unwrap();
            let other = guest.add(Point::execute(CODE + code.down)).unwrap();
            guest.take_out(other);
            assert_eq!(guest.wait(LIMIT).unwrap().breakpoints, [leaf], "{isa} {round}");
            hits += 1;
        }
        assert_eq!(guest.known(leaf).unwrap().hits, hits, "{isa}");
        // Each round counts twice, and the function is in the middle of it.
        let count = guest.register(guest.vcpu(0).unwrap(), counter(isa)).unwrap();
        assert_eq!(count, (hits - 1) * 2, "{isa}");
    }
}

#[test]
fn what_is_asked_of_breakpoints_in_vain() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let refused = |guest: &mut Guest, point: Point| guest.add(point).map_err(|error| error.to_string());
        assert!(refused(&mut guest, Point::write(DATA, 0)).unwrap_err().contains("no bytes"));
        assert!(refused(&mut guest, Point::execute(Address::port(0x60))).unwrap_err().contains("ports"));
        let physical = Address::physical(CODE + code.leaf);
        assert!(refused(&mut guest, Point::execute(physical).hardware()).is_err());
        assert!(refused(&mut guest, Point::execute(Address::physical(1 << 40))).is_err());
        let id = guest.add(Point::execute(physical)).unwrap();
        let root = guest.root();
        assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [id], "{isa}");
        assert!(matches!(guest.add(Point::execute(CODE).through(root)), Err(InsertError::NoContext(_))));
        guest.take_out(id);
        assert!(matches!(guest.enable(id, true), Err(InsertError::NoBreakpoint)));
        // As many as there are debug registers, and one more.
        let count = (0..20).take_while(|at| guest.add(Point::write(DATA + 8 * at, 8)).is_ok()).count();
        assert_eq!(count, 4, "{isa}");
        assert_eq!(guest.breakpoints().len(), 4);
    }
}

#[test]
fn memory_of_contexts() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let vcpu = guest.vcpu(0).unwrap();
        guest.add(Point::execute(CODE)).unwrap();
        // What is written under a planted instruction is kept.
        let mut bytes = [0; 8];
        guest.write(vcpu, CODE, &code.code[..8]).unwrap();
        guest.write(vcpu, CODE + 4, &[1, 2, 3, 4]).unwrap();
        guest.read(vcpu, CODE, &mut bytes).unwrap();
        assert_eq!(bytes[..4], code.code[..4], "{isa}");
        assert_eq!(bytes[4..], [1, 2, 3, 4]);
        let mut there = [0; 4];
        guest.machine.memory().read(GuestPhys(CODE), &mut there);
        assert_ne!(there, bytes[..4], "{isa}: nothing is planted");
        // Across the end of RAM.
        let end = guest.write(vcpu, 0xfffe, &[1; 4]).unwrap_err();
        assert_eq!(
            (end.good, end.address, end.missing),
            (2, 0x1_0000.into(), Missing::NotRam(GuestPhys(0x1_0000)))
        );
        let end = guest.read(vcpu, Address::physical(u64::MAX), &mut bytes).unwrap_err();
        assert_eq!(end.good, 0);
        // A canonical place, with its block.
        let block = guest.canonical(vcpu, Address::physical(DATA)).unwrap();
        assert_eq!((block.context, block.place, block.block), (guest.root(), GuestPhys(DATA), 0..0x1_0000));
        assert_eq!(guest.canonical(vcpu, Address::port(0)), Err(Missing::Unable(Unable::NoPorts)));
        let nowhere = guest.canonical(vcpu, 0x10_0000);
        assert_eq!(nowhere, Err(Missing::NotRam(GuestPhys(0x10_0000))));
        // Virtual memory is a vCPU's that stands still.
        let root = guest.root();
        guest.take_out(guest.breakpoints()[0]);
        guest.write(vcpu, CODE, &code.code).unwrap();
        guest.resume(root, Mode::Run).unwrap();
        assert_eq!(guest.read(vcpu, DATA, &mut bytes).unwrap_err().missing, Missing::Unable(Unable::Running));
        guest.read(vcpu, Address::physical(DATA), &mut bytes).unwrap();
        guest.suspend().unwrap();
    }
}

/// Two pages whose places are not beside each other, and nothing behind them.
#[test]
fn virtual_memory_by_page_tables() {
    let (mut guest, _) = setting(Isa::X86_64, 1);
    let vcpu = guest.vcpu(0).unwrap();
    for (at, value) in
        [(0x5000, 0x6007u64), (0x6000, 0x7007), (0x7010, 0xa007), (0xa000, 0xb007), (0xa008, 0xd007)]
    {
        guest.write(vcpu, Address::physical(at), &value.to_le_bytes()).unwrap();
    }
    for (name, value) in [("cr3", 0x5000), ("cr4", 1 << 5), ("efer", 1 << 10 | 1 << 8), ("cr0", 1 << 31 | 1)]
    {
        guest.set_register(vcpu, name, value).unwrap();
    }
    guest.write(vcpu, 0x40_0ffe, b"abcd").unwrap();
    let mut bytes = [0; 4];
    guest.read(vcpu, Address::physical(0xbffe), &mut bytes[..2]).unwrap();
    guest.read(vcpu, Address::physical(0xd000), &mut bytes[2..]).unwrap();
    assert_eq!(&bytes, b"abcd");
    let end = guest.read(vcpu, 0x40_1ffe, &mut bytes).unwrap_err();
    assert_eq!((end.good, end.address), (2, 0x40_2000.into()));
    assert!(matches!(end.missing, Missing::NotMapped(_)), "{end}");
    let place = guest.canonical(vcpu, 0x40_1234).unwrap();
    assert_eq!((place.place, place.block), (GuestPhys(0xd234), 0x40_1000..0x40_2000));
}

#[test]
fn ports_where_there_are_some() {
    for isa in Isa::ALL {
        let (mut guest, _) = setting(isa, 1);
        let (vcpu, mut bytes) = (guest.vcpu(0).unwrap(), [0; 7]);
        let read = guest.read(vcpu, Address::port(0), &mut bytes);
        match isa {
            Isa::X86_64 => {
                read.unwrap();
                // The device's 4 bytes, and nothing behind it.
                assert_eq!(bytes, [0, 0, 0, 0, 0xff, 0xff, 0xff]);
                guest.write(vcpu, Address::port(0), &[1]).unwrap();
                guest.read(vcpu, Address::port(0), &mut bytes[..4]).unwrap();
                assert_eq!(bytes[..4], [1, 0, 0, 0]);
                let end = guest.read(vcpu, Address::port(0xffff), &mut bytes).unwrap_err();
                assert_eq!((end.good, end.missing), (1, Missing::End));
            }
            Isa::Aarch64 => {
                let refused =
                    Partial { good: 0, address: Address::port(0), missing: Missing::Unable(Unable::NoPorts) };
                assert_eq!(read, Err(refused));
            }
        }
    }
}

#[test]
fn listeners_come_while_the_guest_runs_and_slow_ones_hold_nobody_up() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 2);
        let (root, slow) = (guest.root(), guest.listeners().add(2));
        let listeners = guest.listeners().clone();
        guest.resume(root, Mode::Run).unwrap();
        // From another thread, while this one does not look.
        let late = thread::spawn(move || listeners.add(1000)).join().unwrap();
        expect_running(&mut guest);
        guest.suspend().unwrap();
        let leaf = guest.add(Point::execute(CODE + code.leaf)).unwrap();
        for _ in 0..10 {
            assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [leaf]);
        }
        guest.set_register(guest.vcpu(1).unwrap(), counter(isa), 7).unwrap();
        drop(guest);
        let heard = |listener: &Listener| -> Vec<Notice> { std::iter::from_fn(|| listener.take()).collect() };
        let heard_late = heard(&late);
        let count = |wanted: fn(&Notice) -> bool| heard_late.iter().filter(|notice| wanted(notice)).count();
        assert_eq!(count(|it| matches!(it, Notice::Created(_))), 3, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Started(_))), 10, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Stopped(..))), 11, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Changed(_, Change::Breakpoints))), 1, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Changed(_, Change::Registers))), 1, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Disposed(_))), 3, "{isa}");
        assert_eq!(count(|it| matches!(it, Notice::Lost(_))), 0, "{isa}");
        let heard = heard(&slow);
        let lost: u64 = heard.iter().map(|it| if let Notice::Lost(lost) = it { *lost } else { 0 }).sum();
        // It has heard one start more, and was told of all that it has missed.
        let told = heard.len() - heard.iter().filter(|it| matches!(it, Notice::Lost(_))).count();
        assert_eq!(told as u64 + lost, heard_late.len() as u64 + 1, "{isa}");
        assert!(lost > 0);
    }
}

#[test]
fn the_guests_end_is_told() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let (root, vcpu) = (guest.root(), guest.vcpu(0).unwrap());
        let broken: &[u8] = if isa == Isa::X86_64 { &[0x0f, 0x0b] } else { &[0; 4] };
        guest.write(vcpu, CODE + code.leaf, broken).unwrap();
        let stop = go(&mut guest, root, Mode::Run);
        assert!(matches!(stop.reason, StopReason::Fatal(_)), "{isa} {stop:?}");
        assert_eq!(at(&guest, vcpu), code.leaf);
        assert_eq!(guest.state(vcpu), Ok(ContextState::Stopped(stop)));
    }
}

/// A guest as [`debuggee`] makes it, with what runs it.
fn with_its_vcpus(isa: Isa) -> (Guest, Debugger<Simulated>, Arc<Vcpus<Simulated>>, Calling) {
    let code = calling(isa);
    let vcpus = fresh(isa, &code);
    let ram = vcpus.monitor().ram.clone();
    let engine = Arc::new(Engine::new(isa, fake::host(), vcpus.count()));
    let its = live::debugger::Target { engine: Arc::clone(&engine), memory: Box::new(ram) };
    let (debugger, machine) = Debugger::join(&vcpus, its, true).unwrap();
    let mut guest = Debuggee::new(machine, engine);
    guest.attach();
    (guest, debugger, vcpus, code)
}

fn fresh(isa: Isa, code: &Calling) -> Arc<Vcpus<Simulated>> {
    let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
    ram.write(GuestPhys(CODE), &code.code);
    Arc::new(Vcpus::new(Simulated::new(isa, 2, ram, CODE, DATA)))
}

#[test]
fn the_end_of_a_guest() {
    for isa in Isa::ALL {
        let (mut guest, _debugger, vcpus, _) = with_its_vcpus(isa);
        let (root, listener) = (guest.root(), guest.listeners().add(10));
        guest.resume(root, Mode::Run).unwrap();
        let ended = Ended { code: 7, text: "over".into() };
        vcpus.link().unwrap().tell(Event::Ended(ended.clone()));
        assert_eq!(guest.wait(LIMIT), Err(WaitError::Ended(ended.clone())), "{isa}");
        assert_eq!(guest.state(root), Ok(ContextState::Ended(ended.clone())));
        assert_eq!(guest.can(root, Mode::Run), Err(Unable::Ended));
        assert_eq!(
            (guest.poll(), guest.suspend()),
            (Err(WaitError::Ended(ended.clone())), Err(WaitError::Ended(ended.clone())))
        );
        drop(guest);
        let heard: Vec<Notice> = std::iter::from_fn(|| listener.take()).skip(3).collect();
        assert_eq!(heard[..2], [Notice::Started(root), Notice::Exited(root, ended)], "{isa}");
        assert_eq!(heard.len(), 5);
    }
}

#[test]
fn a_guest_that_begins_again_keeps_contexts_and_breakpoints() {
    for isa in Isa::ALL {
        let (mut guest, debugger, _vcpus, code) = with_its_vcpus(isa);
        let (root, vcpu) = (guest.root(), guest.vcpu(1).unwrap());
        let leaf = guest.add(Point::execute(CODE + code.leaf).when(|hit| hit.vcpu == 1)).unwrap();
        let off = guest.add(Point::execute(CODE + code.work).disabled()).unwrap();
        assert_eq!(go(&mut guest, root, Mode::Run).context, vcpu, "{isa}");
        let hits = guest.known(leaf).unwrap().hits;
        guest.resume(vcpu, Mode::StepOut).unwrap();
        let again = fresh(isa, &code);
        debugger.begin_again(&again, Box::new(again.monitor().ram.clone()));
        // A step ends there, unless it had ended before.
        let stop = guest.wait(LIMIT).unwrap();
        if guest.beginnings() == 0 {
            guest.resume(root, Mode::Run).unwrap();
            assert_eq!(guest.wait(LIMIT).unwrap().context, vcpu);
        } else {
            assert_eq!((stop.reason, at(&guest, vcpu)), (StopReason::Step, 0), "{isa}");
            assert_eq!(go(&mut guest, root, Mode::Run).breakpoints, [leaf], "{isa}");
        }
        assert_eq!(guest.beginnings(), 1);
        assert_eq!((guest.root(), guest.vcpu(1), guest.breakpoints()), (root, Some(vcpu), vec![leaf, off]));
        assert!(guest.known(leaf).unwrap().hits > hits);
        assert_eq!(guest.known(off).unwrap().place, crate::breakpoint::Place::Off);
    }
}

/// Limits that nobody reaches, places where nothing is, contexts of another guest: answered, and the guest goes on.
#[test]
fn what_makes_no_sense_is_refused_by_type() {
    for isa in Isa::ALL {
        let (mut guest, code) = setting(isa, 1);
        let (root, vcpu) = (guest.root(), guest.vcpu(0).unwrap());
        let listener = guest.listeners().add(usize::MAX);
        for address in [0, 0x7fff, u64::MAX - 3, u64::MAX] {
            for length in [1, 8, 4096, u64::MAX] {
                for point in [Point::read, Point::write, Point::access].map(|kind| kind(address, length)) {
                    if let Ok(id) = guest.add(point) {
                        assert!(guest.take_out(id), "{isa} {address:#x} {length}");
                    }
                }
            }
            for point in [Point::execute(address), Point::execute(address).hardware()] {
                if let Ok(id) = guest.add(point) {
                    guest.enable(id, false).unwrap();
                    guest.enable(id, true).unwrap();
                    assert!(guest.take_out(id) && !guest.take_out(id), "{isa} {address:#x}");
                }
            }
            assert!(guest.add(Point::write(Address::physical(address), 8)).is_err());
            guest.add(Point::execute(Address::physical(address))).err();
            assert!(
                guest.read(vcpu, Address::physical(address), &mut [0; 16]).is_err() || address < 0x1_0000
            );
            assert!(guest.write(vcpu, Address::physical(u64::MAX), &[0; 16]).is_err());
        }
        guest.breakpoints().into_iter().for_each(|id| assert!(guest.take_out(id)));
        let (other, _) = setting(isa, 4);
        let strangers = other.vcpu(3).unwrap();
        assert!(guest.resume(strangers, Mode::Run).is_err());
        assert!(guest.read_u64(strangers, DATA).is_err());
        // A guest that comes to a stop is not waited for for ever.
        let leaf = guest.add(Point::execute(CODE + code.leaf)).unwrap();
        let stop = guest.go_until(root, Mode::Run, Duration::MAX).unwrap();
        assert_eq!(stop.breakpoints, [leaf], "{isa}");
        assert!(std::iter::from_fn(|| listener.take()).all(|notice| !matches!(notice, Notice::Lost(_))));
    }
}

/// Who has let a guest go does not hold it: nothing would let it run again but attaching anew.
#[test]
fn a_guest_that_was_let_go_is_not_suspended() {
    for isa in Isa::ALL {
        let (mut guest, _) = setting(isa, 1);
        guest.detach();
        assert_eq!(guest.suspend(), Err(WaitError::Detached), "{isa}");
        assert_eq!(guest.wait(LIMIT), Err(WaitError::Detached), "{isa}");
        let before = stored(&guest);
        while stored(&guest) == before {
            thread::yield_now();
        }
        guest.attach();
        assert!(guest.suspend().is_ok());
    }
}
