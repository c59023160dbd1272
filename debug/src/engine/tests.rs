use super::retries::{Dealt, DealtWith};
use super::*;
use crate::breakpoint::Breakpoint;
use crate::expression::Expression;
use crate::fake::{Scripted, ScriptedStep, host};
use crate::machine::Order;
use crate::trap::Injection;
use crate::vcpu::Vcpu;
use arch::aarch64::syndrome::DebugException;
use arch::x86::debug_registers::DR6_BS;

mod strangers;

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
            requests.changed(0);
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

/// An instruction that has faulted is executed when the fault is dealt with, unless something else is: then whoever comes
/// by again comes with other registers.
#[test]
fn a_hit_whose_instruction_faulted_is_told_once() {
    const HANDLER: u64 = 0x2000;
    for isa in Isa::ALL {
        let end = |end, pc| (end, Some(pc));
        let script =
            [end(Stepped::Faulted, HANDLER), end(Stepped::Done, PLACE + 4), end(Stepped::Done, PLACE + 4)];
        let [counter, stack] = if isa == Isa::X86_64 { ["rax", "rsp"] } else { ["x0", "sp"] };
        for (change, wanted) in [(None, [1, 1, 2]), (Some(counter), [1, 2, 3]), (Some(stack), [1, 2, 3])] {
            let (engine, mut cpu, trap) = planted(isa, &script);
            let told = wanted.map(|_| {
                assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
                if let Some(name) = change.filter(|_| hits(&engine) == 1) {
                    cpu.vcpu.file.set(name, 0x800);
                }
                cpu.vcpu.set_pc(PLACE);
                hits(&engine)
            });
            assert_eq!(told, wanted, "{isa}, another {change:?}");
        }
    }
}

/// A vCPU with paging, whose number and registers are these.
fn paged(id: u32, registers: &[(&str, u64)]) -> Scripted {
    let mut cpu = Scripted::new(Isa::X86_64, 1 << 16, []);
    cpu.vcpu.id = id;
    cpu.vcpu.set_pc(PLACE);
    let paging = [("cr0", 0x8000_0001), ("cr3", 0x4000), ("cr4", 0x20), ("efer", 0x500)];
    paging.iter().chain(registers).for_each(|(name, value)| cpu.vcpu.file.set(name, *value));
    cpu
}

#[test]
fn whose_instruction_it_is() {
    let place = GuestPhys(PLACE);
    let first = paged(0, &[]);
    let expects = |cpu: &Scripted| {
        let mut retries = Retries::default();
        for _ in 0..2 {
            retries.expect(cpu, Dealt::at(cpu, Some(place), DealtWith::Execution).unwrap());
        }
        retries
    };
    // Its task may go over to another vCPU; another task, and a copy of the process, have hits of their own, as has one
    // that has come by with other registers.
    for (other, is_met) in [
        (paged(0, &[]), true),
        (paged(1, &[]), true),
        (paged(0, &[("rsp", 0x100)]), false),
        (paged(0, &[("cr3", 0x5000)]), false),
        (paged(0, &[("r15", 1)]), false),
        (paged(0, &[("eflags", 0x10202)]), true),
    ] {
        let mut retries = expects(&first);
        assert!(
            !retries.take(&other, None, DealtWith::Execution)
                && !retries.take(&other, Some(GuestPhys(PLACE + 4)), DealtWith::Execution)
        );
        assert_eq!(retries.take(&other, Some(place), DealtWith::Execution), is_met, "{:?}", other.vcpu.file);
        // It is expected once.
        assert!(!retries.take(&other, Some(place), DealtWith::Execution));
    }
    // A debug register of x86 is met before the page is there; an access is something else.
    let mut retries = Retries::default();
    retries.expect(&first, Dealt::at(&first, None, DealtWith::Execution).unwrap());
    assert!(!retries.take(&first, Some(place), DealtWith::Access));
    assert!(retries.take(&first, Some(place), DealtWith::Execution));
    // Without paging there are no tasks that go over.
    let real = [0, 1].map(|id| paged(id, &[("cr0", 1)]));
    assert!(
        !expects(&real[0]).take(&real[1], Some(place), DealtWith::Execution)
            && expects(&real[0]).take(&real[0], Some(place), DealtWith::Execution)
    );
    // Who has been given other registers does not come back.
    let mut retries = expects(&first);
    retries.forget(1);
    retries.forget(0);
    assert!(!retries.take(&first, Some(place), DealtWith::Execution));
    // There is an end to them: the oldest goes first.
    let many: Vec<Scripted> = (0..=64).map(|stack| paged(0, &[("rsp", stack)])).collect();
    let mut retries = Retries::default();
    many.iter()
        .for_each(|cpu| retries.expect(cpu, Dealt::at(cpu, Some(place), DealtWith::Execution).unwrap()));
    let met: Vec<bool> =
        many.iter().map(|cpu| retries.take(cpu, Some(place), DealtWith::Execution)).collect();
    assert_eq!((met[0], met[1..].iter().all(|is_met| *is_met)), (false, true));
}

#[test]
fn an_instruction_that_repeats_itself_is_hit_once() {
    // REP MOVSB; MOVSB; REP CPUID, of which the prefix means nothing.
    for (code, wanted) in
        [(&[0xf3, 0xa4][..], [1, 1, 1, 2]), (&[0xa4], [1, 2, 3, 4]), (&[0xf3, 0x0f, 0xa2], [1, 2, 3, 4])]
    {
        let again = (Stepped::Done, None);
        let script =
            [again.clone(), again, (Stepped::Done, Some(PLACE + 2)), (Stepped::Done, Some(PLACE + 2))];
        let (engine, mut cpu, trap) = planted(Isa::X86_64, &script);
        let written = engine.write_for_guest(cpu.memory(), GuestPhys(PLACE), code);
        assert_eq!(written, code.len());
        engine.refresh(cpu.memory(), || Translation::Physical);
        let told = wanted.map(|_| {
            assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
            cpu.vcpu.set_pc(PLACE);
            hits(&engine)
        });
        assert_eq!(told, wanted, "{code:x?}");
    }
}

/// One that stays where it is does not come by unseen while another vCPU steps with its breakpoint taken out.
#[test]
fn a_hit_of_a_vcpu_that_stays_is_told_once() {
    for (isa, action) in Isa::ALL.into_iter().flat_map(|isa| [(isa, Action::Stay), (isa, Action::Run)]) {
        let (engine, mut cpu, trap) =
            planted(isa, &[(Stepped::Other, None), (Stepped::Done, Some(PLACE + 4))]);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        let mut requests = engine.requests();
        let (id, breakpoint) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
        assert!(requests.table.take_out(cpu.memory(), id));
        requests.begin(&[action]);
        requests.table.insert(cpu.memory(), breakpoint).unwrap();
        requests.begin(&[Action::Run]);
        drop(requests);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), if action == Action::Stay { 1 } else { 2 }, "{isa}");
    }
}

/// The trap of a first debug register on an instruction.
fn of_register(isa: Isa) -> Trap {
    match isa {
        Isa::X86_64 => Trap::Debug { dr6: 1 },
        Isa::Aarch64 => Trap::Aarch64 { exception: DebugException::Breakpoint, far: 0 },
    }
}

/// What is planted where a debug register is as well is lifted for the step over that, so it is met then.
#[test]
fn what_is_planted_under_a_debug_register_is_hit_with_it() {
    for isa in Isa::ALL {
        for (planted_stops, wanted) in [(true, Verdict::Stop(StopReason::Breakpoint)), (false, Verdict::GoOn)]
        {
            let (engine, mut cpu, _) = planted(isa, &[(Stepped::Done, Some(PLACE + 4))]);
            {
                let mut requests = engine.requests();
                let (id, first) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
                let conditions = first.conditions.clone();
                if planted_stops {
                    let always = Breakpoint { conditions: Vec::new(), ..first };
                    let change = requests.table.put(cpu.memory(), Some(id), always).unwrap();
                    requests.table.settle_change(cpu.memory(), change, false);
                }
                let hardware = Breakpoint::new(Kind::Hardware, GuestVirt(PLACE), 4, Place::Register);
                requests.table.insert(cpu.memory(), Breakpoint { conditions, ..hardware }).unwrap();
                engine.reallocate(&mut requests).unwrap();
            }
            assert_eq!(engine.judge(&mut cpu, &of_register(isa)), wanted, "{isa}");
            assert_eq!(hits(&engine), 2, "{isa}");
        }
    }
}

/// Another task that comes to where a range can be left, and to a breakpoint there, has hit that; where there is none, it
/// goes on.
#[test]
fn another_task_at_the_exit_of_a_range_hits_what_is_planted_there() {
    for isa in Isa::ALL {
        for (is_there, wanted) in [(true, Verdict::Stop(StopReason::Breakpoint)), (false, Verdict::GoOn)] {
            let (engine, mut cpu, _) =
                planted(isa, &[(Stepped::Other, None), (Stepped::Done, Some(PLACE + 4))]);
            {
                let mut requests = engine.requests();
                let id = requests.table.entries().map(|(id, _)| id).next().unwrap();
                requests.table.take_out(cpu.memory(), id);
                if is_there {
                    let place = Place::Planted(GuestPhys(PLACE));
                    let always = Breakpoint::new(Kind::Software, GuestVirt(PLACE), 4, place);
                    requests.table.insert(cpu.memory(), always).unwrap();
                }
                requests.begin(&[Action::StepRange(0x2000, 0x2010)]);
                engine.begin_run(&mut requests, 0, Some(0x10_0000), Some(vec![PLACE]));
                assert!(requests.progress(0).run.is_some());
            }
            assert_eq!(engine.judge(&mut cpu, &of_register(isa)), wanted, "{isa}");
            // The range is still run through.
            assert!(engine.requests().progress(0).run.is_some(), "{isa}");
            assert_eq!(hits(&engine), u64::from(is_there));
            // Nothing is expected where nothing was hit: one that is put there later is hit.
            if !is_there {
                let place = Place::Planted(GuestPhys(PLACE));
                let always = Breakpoint::new(Kind::Software, GuestVirt(PLACE), 4, place);
                engine.requests().table.insert(cpu.memory(), always).unwrap();
                assert_eq!(
                    engine.judge(&mut cpu, &of_register(isa)),
                    Verdict::Stop(StopReason::Breakpoint),
                    "{isa}"
                );
            }
        }
    }
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

#[test]
fn steps_keep_interrupts_out_unless_they_may_fall_into_them() {
    for isa in Isa::ALL {
        let engine = Engine::new(isa, host(), 1);
        let mut requests = engine.requests();
        requests.begin(&[Action::Step]);
        for may_fall in [false, true] {
            requests.step_interrupts = may_fall;
            let arming = engine.arming(&requests, 0);
            assert_eq!((arming.step, arming.block_interrupts), (true, !may_fall), "{isa}");
        }
    }
}
