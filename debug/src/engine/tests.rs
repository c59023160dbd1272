use super::*;
use crate::expression::Expression;
use crate::fake::{Scripted, ScriptedStep, host};
use crate::trap::Injection;
use crate::vcpu::Vcpu;
use arch::aarch64::syndrome::DebugException;
use arch::x86::debug_registers::DR6_BS;

const PLACE: u64 = 0x1000;

/// An engine with a breakpoint planted at [`PLACE`], whose condition is false and which counts its hits, and a vCPU
/// there. The instruction below is none that could be simulated.
fn planted(isa: Isa, script: &[(Stepped, Option<u64>)]) -> (Engine, Scripted, Trap) {
    let script = script.iter().map(|(end, pc)| ScriptedStep { end: end.clone(), pc: *pc });
    let mut cpu = Scripted::new(isa, 1 << 16, script);
    // CPUID; MRS X0, CNTVCT_EL0.
    let (code, trap): (&[u8], Trap) = match isa {
        Isa::X86_64 => (&[0x0f, 0xa2], Trap::Int3),
        Isa::Aarch64 => {
            (&[0x40, 0xe0, 0x3b, 0xd5], Trap::Aarch64 { exception: DebugException::Brk(0), far: 0 })
        }
    };
    cpu.memory().write(GuestPhys(PLACE), code);
    cpu.vcpu.set_pc(PLACE);
    let engine = Engine::new(isa, host(), 1);
    let is_false = Expression::new(vec![0x22, 0, 0x27]).unwrap();
    let breakpoint = Breakpoint {
        conditions: vec![is_false.into()],
        ..Breakpoint::new(Kind::Software, GuestVirt(PLACE), 4, Place::Planted(GuestPhys(PLACE)))
    };
    {
        let mut requests = engine.requests();
        requests.table.insert(cpu.memory(), breakpoint).unwrap();
        engine.reallocate(&mut requests).unwrap();
        requests.begin(&[Action::Run]);
    }
    (engine, cpu, trap)
}

fn hits(engine: &Engine) -> u64 {
    engine.requests().table.iter().map(|breakpoint| breakpoint.hits).sum()
}

#[test]
fn a_hit_whose_step_is_interrupted_is_told_once() {
    for isa in Isa::ALL {
        let script =
            [(Stepped::Other, None), (Stepped::Done, Some(PLACE + 4)), (Stepped::Done, Some(PLACE + 4))];
        let (engine, mut cpu, trap) = planted(isa, &script);
        // A kick comes before the instruction is executed; then it is met again.
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!((hits(&engine), cpu.exclusive), (1, (2, false)), "{isa}");
        // The next time it is a hit of its own.
        cpu.vcpu.set_pc(PLACE);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), 2, "{isa}");
    }
}

#[test]
fn a_hit_whose_step_ended_elsewhere_is_over() {
    for isa in Isa::ALL {
        // It was executed, and then something else came.
        let script = [(Stepped::Other, Some(PLACE + 4)), (Stepped::Done, Some(PLACE + 4))];
        let (engine, mut cpu, trap) = planted(isa, &script);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        cpu.vcpu.set_pc(PLACE);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), 2, "{isa}");
    }
}

/// What is executed unseen, as nothing is planted there, or somewhere else is gone on, is not executed later.
#[test]
fn a_hit_whose_instruction_was_executed_unseen_is_over() {
    for (isa, is_moved) in Isa::ALL.into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let script = [(Stepped::Other, None), (Stepped::Done, Some(PLACE + 4))];
        let (engine, mut cpu, trap) = planted(isa, &script);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        let mut requests = engine.requests();
        if is_moved {
            requests.moved(0);
        } else {
            let (id, breakpoint) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
            assert!(requests.table.take_out(cpu.memory(), id));
            requests.begin(&[Action::Run]);
            requests.table.insert(cpu.memory(), breakpoint).unwrap();
            requests.begin(&[Action::Run]);
            assert_eq!(requests.table.iter().map(|it| it.hits).sum::<u64>(), 1);
        }
        drop(requests);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), 2, "{isa}, moved: {is_moved}");
    }
}

/// One that is taken away and put back while nothing runs, as gdb does at each stop, is as if it had stayed.
#[test]
fn a_hit_is_told_once_though_its_breakpoint_is_put_back() {
    for isa in Isa::ALL {
        let (engine, mut cpu, trap) =
            planted(isa, &[(Stepped::Other, None), (Stepped::Done, Some(PLACE + 4))]);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        let mut requests = engine.requests();
        let (id, breakpoint) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
        assert!(requests.table.take_out(cpu.memory(), id));
        requests.table.insert(cpu.memory(), breakpoint).unwrap();
        requests.begin(&[Action::Run]);
        drop(requests);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), 1, "{isa}");
    }
}

/// A task whose instruction has faulted may go on on another vCPU; one that something else came before may not, and
/// neither may what has no paging, and perhaps no stack.
#[test]
fn a_fault_may_be_dealt_with_for_another_vcpu() {
    let stand = |id| {
        let mut cpu = Scripted::new(Isa::X86_64, 1 << 16, []);
        cpu.vcpu.id = id;
        cpu.vcpu.set_pc(PLACE);
        cpu
    };
    let (first, second) = (stand(0), stand(1));
    let dealt = Dealt::at(&first, GuestPhys(PLACE)).unwrap();
    for (vcpu, by_first, by_second) in [(Some(0), true, false), (Some(1), false, true), (None, true, true)] {
        for (cpu, is_met) in [(&first, by_first), (&second, by_second)] {
            let mut retries = Retries::default();
            let mut dealt = dealt;
            dealt.vcpu = vcpu;
            retries.expect(dealt);
            retries.expect(dealt);
            assert!(!retries.take(cpu, None) && !retries.take(cpu, Some(GuestPhys(PLACE + 4))));
            assert_eq!(retries.take(cpu, Some(GuestPhys(PLACE))), is_met, "{vcpu:?}");
            assert!(!retries.take(cpu, Some(GuestPhys(PLACE))), "{vcpu:?}");
        }
    }
    assert_eq!(dealt.faulted(&first), dealt, "without paging");
}

/// A vCPU has met what is planted, and another one lifts it for a step of its own before that is judged.
#[test]
fn a_hit_is_a_hit_while_another_vcpu_has_lifted_the_instruction() {
    for isa in Isa::ALL {
        let (engine, mut cpu, trap) = planted(isa, &[(Stepped::Done, Some(PLACE + 4))]);
        assert!(engine.requests().table.lift(cpu.memory(), GuestPhys(PLACE)));
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!((hits(&engine), cpu.vcpu.injected.len()), (1, 0), "{isa}: the guest gets it");
        // One of the guest's own in its place is the guest's.
        let (engine, mut cpu, _) = planted(isa, &[]);
        engine.requests().table.lift(cpu.memory(), GuestPhys(PLACE));
        let (own, trap): (&[u8], Trap) = match isa {
            Isa::X86_64 => (&[0xcc], Trap::Int3),
            Isa::Aarch64 => {
                (&0xd420_0020u32.to_le_bytes(), Trap::Aarch64 { exception: DebugException::Brk(1), far: 0 })
            }
        };
        cpu.memory().write(GuestPhys(PLACE), own);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!((hits(&engine), cpu.vcpu.injected.len()), (0, 1), "{isa}: it is kept from the guest");
    }
}

#[test]
fn what_is_planted_stays_planted_whatever_becomes_of_a_step() {
    for isa in Isa::ALL {
        for end in [Stepped::Other, Stepped::Faulted, Stepped::Done, Stepped::Trapped(Trap::Int3)] {
            let (engine, mut cpu, trap) = planted(isa, &[(end.clone(), None)]);
            engine.judge(&mut cpu, &trap);
            assert!(engine.requests().table.is_planted(cpu.memory(), GuestPhys(PLACE)), "{isa} {end:?}");
            assert!(!cpu.exclusive.1 && !cpu.arming.step, "{isa} {end:?}");
        }
    }
}

#[test]
fn a_step_of_the_guests_own_beside_ours_reaches_it() {
    let (engine, mut cpu, _) = planted(Isa::X86_64, &[]);
    cpu.vcpu.set_pc(0x2000);
    let trap = Trap::Debug { dr6: DR6_BS };
    // Nobody asked for a step: the guest did.
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
    assert!(matches!(cpu.vcpu.injected[..], [Injection::Debug { .. }]), "{:?}", cpu.vcpu.injected);
}

/// The vector of the abort of a fetch, from EL1 with its own stack pointer.
const VECTOR: u64 = 0x3200;

/// A breakpoint on a page that cannot be executed, and a vCPU at the vector.
fn at_vector(esr: u64, elr: u64) -> (Engine, Scripted, Trap) {
    let mut cpu =
        Scripted::new(Isa::Aarch64, 1 << 16, [ScriptedStep { end: Stepped::Done, pc: Some(VECTOR + 4) }]);
    let row = |name| arch::register::row(Isa::Aarch64, name).unwrap();
    cpu.vcpu
        .set_rows(&[(row("ESR_EL1"), esr), (row("ELR_EL1"), elr), (row("SPSR_EL1"), 0x6000_0005)])
        .unwrap();
    cpu.vcpu.set_rows(&[(row("cpsr"), 0x3c5)]).unwrap();
    cpu.vcpu.set_pc(VECTOR);
    let engine = Engine::new(Isa::Aarch64, host(), 1);
    let place = Place::NotExecutable { vector: Some(VECTOR) };
    let breakpoint = Breakpoint::new(Kind::Software, GuestVirt(PLACE), 4, place);
    {
        let mut requests = engine.requests();
        requests.table.insert(cpu.memory(), breakpoint).unwrap();
        engine.reallocate(&mut requests).unwrap();
        requests.begin(&[Action::Run]);
    }
    (engine, cpu, Trap::Aarch64 { exception: DebugException::Breakpoint, far: 0 })
}

/// `ESR_EL1` of an abort of an instruction at EL1: permission fault, level 3.
const REFUSED: u64 = 0x21 << 26 | 1 << 25 | 0xf;

#[test]
fn a_fetch_that_is_refused_at_a_breakpoint_is_a_hit() {
    let (engine, mut cpu, trap) = at_vector(REFUSED, PLACE);
    // Both are watched.
    assert_eq!(engine.requests().table.wants().len(), 2);
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::Stop(StopReason::Breakpoint));
    let get = |name| cpu.vcpu.register(arch::register::row(Isa::Aarch64, name).unwrap());
    assert_eq!((get("pc"), get("cpsr")), (Some(PLACE), Some(0x6000_0005)));
    assert_eq!(hits(&engine), 1);
}

#[test]
fn other_exceptions_go_on_from_their_vector() {
    // Another address, a translation fault, an abort of data.
    for (esr, elr) in [(REFUSED, PLACE + 4), (REFUSED & !0xf | 7, PLACE), (0x25 << 26 | 0xf, PLACE)] {
        let (engine, mut cpu, trap) = at_vector(esr, elr);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!((cpu.vcpu.pc_and_flags().unwrap().0, hits(&engine)), (VECTOR + 4, 0));
    }
}

#[test]
fn a_breakpoint_on_a_page_that_cannot_be_executed_is_on_registers_until_it_can() {
    use arch::paging::x86::Paging;
    const NX: u64 = 1 << 63;
    let cpu = Scripted::new(Isa::X86_64, 1 << 16, []);
    for (at, value) in [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3010, 0x4007), (0x4000, 0x8007 | NX)] {
        cpu.memory().write(GuestPhys(at), &value.to_le_bytes());
    }
    let space = Translation::Virtual(arch::paging::Regime::X86(Paging::new(
        1 << 31,
        0x1000,
        1 << 5,
        1 << 10 | 1 << 11,
    )));
    let engine = Engine::new(Isa::X86_64, host(), 1);
    let address = GuestVirt(0x40_0010);
    let place = engine.place(Kind::Software, cpu.memory(), &space, address, || None);
    assert_eq!(place, Place::NotExecutable { vector: None });
    let breakpoint = Breakpoint::new(Kind::Software, address, 1, place);
    {
        let mut requests = engine.requests();
        requests.table.insert(cpu.memory(), breakpoint).unwrap();
        engine.reallocate(&mut requests).unwrap();
        assert_eq!(requests.table.wants().len(), 1);
    }
    engine.refresh(cpu.memory(), || space);
    assert!(!engine.requests().table.has_planted());
    cpu.memory().write(GuestPhys(0x4000), &0x8007u64.to_le_bytes());
    engine.refresh(cpu.memory(), || space);
    let requests = engine.requests();
    assert!(requests.table.is_planted(cpu.memory(), GuestPhys(0x8010)) && requests.table.wants().is_empty());
}

#[test]
fn what_serves_the_guest_leaves_breakpoints_where_their_page_is() {
    use arch::paging::x86::Paging;
    const PAGE: u64 = 0x8000;
    const PLACE: GuestPhys = GuestPhys(PAGE + 0x10);
    let cpu = Scripted::new(Isa::X86_64, 1 << 16, []);
    let memory = cpu.memory();
    for (at, value) in [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3010, 0x4007), (0x4000, PAGE | 7)] {
        memory.write(GuestPhys(at), &value.to_le_bytes());
    }
    let space =
        Translation::Virtual(arch::paging::Regime::X86(Paging::new(1 << 31, 0x1000, 1 << 5, 1 << 10)));
    let engine = Engine::new(Isa::X86_64, host(), 1);
    let byte = |read: &dyn Fn(&mut [u8]) -> usize| {
        let mut byte = [0];
        assert_eq!(read(&mut byte), 1);
        byte[0]
    };
    let seen = || byte(&|bytes| engine.read_for_guest(memory, PLACE, bytes));
    let there = || byte(&|bytes| memory.read(PLACE, bytes));
    // Nothing is planted.
    assert_eq!(engine.write_for_guest(memory, PLACE, &[0x90]), 1);
    let address = GuestVirt(0x40_0010);
    let place = engine.place(Kind::Software, memory, &space, address, || None);
    let breakpoint = Breakpoint::new(Kind::Software, address, 1, place);
    engine.requests().table.insert(memory, breakpoint).unwrap();
    assert_eq!((seen(), there()), (0x90, 0xcc));
    assert_eq!(engine.write_for_guest(memory, PLACE, &[0x91]), 1);
    assert_eq!((seen(), there()), (0x91, 0xcc));
    assert_eq!(engine.change_for_guest(memory, PLACE, 1, || memory.write(PLACE, &[0x92])), 1);
    assert_eq!((seen(), there()), (0x92, 0x92));
    engine.refresh(memory, || space);
    assert_eq!((seen(), there()), (0x92, 0xcc));
    // The page has become something else, in which nothing is planted any more.
    memory.write(GuestPhys(0x4000), &0x9007u64.to_le_bytes());
    assert_eq!(engine.write_for_guest(memory, PLACE, &[0xcc]), 1);
    engine.refresh(memory, || space);
    assert_eq!((seen(), there()), (0xcc, 0xcc));
    engine.requests().table.clear(memory);
    assert_eq!(there(), 0xcc);
}
