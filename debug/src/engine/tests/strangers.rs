//! What handlers and other tasks meet while a range is run through, and what is met behind an instruction that is got past.

use super::*;

/// The range that is run through, and where it is left.
const RANGE: (u64, u64) = (0x2000, 0x2010);

/// Has the vCPU run through a range with a stack, whose exit is at `exit`.
fn run_through(engine: &Engine, exit: u64, stack: u64) {
    let mut requests = engine.requests();
    requests.begin(&[Action::StepRange(RANGE.0, RANGE.1)]);
    engine.begin_run(&mut requests, 0, Some(stack), Some(vec![exit]));
    assert!(requests.progress(0).run.is_some());
}

fn is_run_through(engine: &Engine) -> bool {
    engine.requests().progress(0).run.is_some()
}

/// `next` does not end in a handler, or in another task, that meets a breakpoint whose condition is false.
#[test]
fn a_false_condition_elsewhere_ends_no_range() {
    for isa in Isa::ALL {
        let (engine, mut cpu, trap) = planted(isa, &[(Stepped::Done, Some(PLACE + 4))]);
        run_through(&engine, RANGE.1, 0);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn, "{isa}");
        assert!(is_run_through(&engine) && hits(&engine) == 1, "{isa}");
    }
}

/// One that is at the end of a line, on a debug register, is not got past: the line ends there.
#[test]
fn a_false_condition_where_a_range_is_left_ends_it() {
    for isa in Isa::ALL {
        let (engine, mut cpu, _) = planted(isa, &[]);
        {
            let mut requests = engine.requests();
            let (id, first) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
            requests.table.take_out(cpu.memory(), id);
            let hardware = Breakpoint::new(Kind::Hardware, GuestVirt(PLACE), 4, Place::Register);
            let hardware = Breakpoint { conditions: first.conditions, ..hardware };
            requests.table.insert(cpu.memory(), hardware).unwrap();
            engine.reallocate(&mut requests).unwrap();
        }
        run_through(&engine, PLACE, 0);
        assert_eq!(engine.judge(&mut cpu, &of_register(isa)), Verdict::Stop(StopReason::Step), "{isa}");
        assert_eq!(cpu.vcpu.pc_and_flags().unwrap().0, PLACE, "{isa}");
        assert!(!is_run_through(&engine), "{isa}");
    }
}

/// A range is gone on with by whoever began it, behind a fault as well.
#[test]
fn a_range_behind_a_fault_is_its_tasks() {
    for isa in Isa::ALL {
        let (engine, mut cpu, _) = planted(isa, &[(Stepped::Done, Some(RANGE.0 + 8))]);
        let stack = if isa == Isa::X86_64 { "rsp" } else { "sp" };
        let own = 0x10_0000;
        cpu.vcpu.file.set(stack, own);
        cpu.vcpu.set_pc(RANGE.0);
        engine.requests().begin(&[Action::StepRange(RANGE.0, RANGE.1)]);
        let arming = engine.arming(&engine.requests(), 0);
        engine.start(
            &mut cpu,
            &Order { action: Action::StepRange(RANGE.0, RANGE.1), steps_off: false, arming },
        );
        // It is in the handler, with the kernel's stack.
        cpu.faulted = Some(RANGE.0);
        cpu.vcpu.file.set(stack, 0x80_0000);
        cpu.vcpu.set_pc(0x3000);
        assert_eq!(engine.after_step(&mut cpu).unwrap(), Verdict::GoOn, "{isa}");
        assert_eq!(engine.requests().progress(0).run.as_ref().and_then(|run| run.stack), Some(own), "{isa}");
        // Another task comes to the same instruction, and goes on.
        cpu.vcpu.file.set(stack, 0x20_0000);
        cpu.vcpu.set_pc(RANGE.0);
        let met = of_register(isa);
        assert_eq!(engine.judge(&mut cpu, &met), Verdict::GoOn, "{isa}");
        assert!(is_run_through(&engine), "{isa}");
    }
}

/// Another instruction that is planted, and executed within a step over one, is none of the guest's own.
#[test]
fn what_is_planted_behind_a_step_is_met_later() {
    for isa in Isa::ALL {
        let behind = PLACE + 4;
        let (trap, own): (Trap, &[u8]) = match isa {
            Isa::X86_64 => (Trap::Int3, &[0xcc]),
            Isa::Aarch64 => {
                (Trap::Aarch64 { exception: DebugException::Brk(0), far: 0 }, &0xd420_0000u32.to_le_bytes())
            }
        };
        for (is_planted, injected) in [(true, 0), (false, 1)] {
            let (engine, mut cpu, first) = planted(isa, &[(Stepped::Trapped(trap.clone()), Some(behind))]);
            match is_planted {
                true => {
                    let place = Place::Planted(GuestPhys(behind));
                    let second = Breakpoint::new(Kind::Software, GuestVirt(behind), 4, place);
                    engine.requests().table.insert(cpu.memory(), second).unwrap();
                }
                false => assert_eq!(cpu.memory().write(GuestPhys(behind), own), own.len()),
            }
            assert_eq!(engine.judge(&mut cpu, &first), Verdict::GoOn, "{isa}");
            assert_eq!(cpu.vcpu.injected.len(), injected, "{isa}, planted: {is_planted}");
            if is_planted {
                assert_eq!(engine.judge(&mut cpu, &trap), Verdict::Stop(StopReason::Breakpoint), "{isa}");
            }
        }
    }
}

/// An instruction that is there to fault (Linux's WARN) is gone past by its handler: each time is a hit.
#[test]
fn what_always_faults_is_hit_each_time() {
    for (isa, code) in [(Isa::X86_64, &[0x0f, 0x0b][..]), (Isa::Aarch64, &[0, 0, 0, 0])] {
        let fault = (Stepped::Faulted, Some(0x3000));
        let (engine, mut cpu, trap) = planted(isa, &[fault.clone(), fault]);
        assert_eq!(engine.write_for_guest(cpu.memory(), GuestPhys(PLACE), code), code.len());
        for wanted in [1, 2] {
            cpu.vcpu.set_pc(PLACE);
            assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn, "{isa}");
            assert_eq!(hits(&engine), wanted, "{isa}");
        }
    }
}

/// Hits that nobody was told of happen again, and are counted then.
#[test]
fn a_hit_that_is_dropped_is_none() {
    let (engine, mut cpu, trap) = planted(Isa::X86_64, &[]);
    {
        let mut requests = engine.requests();
        let (id, first) = requests.table.entries().map(|(id, it)| (id, it.clone())).next().unwrap();
        let always = Breakpoint { conditions: Vec::new(), ..first };
        let change = requests.table.put(cpu.memory(), Some(id), always).unwrap();
        requests.table.settle_change(cpu.memory(), change, false);
    }
    for _ in 0..3 {
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::Stop(StopReason::Breakpoint));
        assert_eq!(hits(&engine), 1);
        engine.requests().take_back_hit(0);
        assert_eq!(hits(&engine), 0);
        // Once.
        engine.requests().take_back_hit(0);
        engine.requests().begin(&[Action::Run]);
    }
}

/// RF is over with the instruction that it was for.
#[test]
fn an_instruction_that_is_simulated_takes_rf_with_it() {
    let (engine, mut cpu, trap) = planted(Isa::X86_64, &[]);
    // PUSH RBP would touch memory; NOP is simple.
    assert_eq!(engine.write_for_guest(cpu.memory(), GuestPhys(PLACE), &[0x90]), 1);
    cpu.vcpu.file.set("eflags", 0x1_0202);
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
    assert_eq!(cpu.vcpu.file.get("eflags"), Some(0x202));
    assert_eq!(cpu.exclusive.0, 0, "it was stepped");
}

/// Whoever goes on from a fetch that was refused is refused once more, and not told again.
#[test]
fn a_refused_fetch_that_was_told_goes_to_its_vector() {
    let (engine, mut cpu, trap) = at_vector(REFUSED, PLACE);
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::Stop(StopReason::Breakpoint));
    // It is stepped off there, and refused.
    let dealt = Dealt::at(&cpu, Some(GuestPhys(PLACE)), DealtWith::Execution);
    engine.expect(&cpu, dealt);
    let row = |name| arch::register::row(Isa::Aarch64, name).unwrap();
    cpu.vcpu.set_rows(&[(row("cpsr"), 0x3c5)]).unwrap();
    cpu.vcpu.set_pc(VECTOR);
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
    assert_eq!((cpu.vcpu.pc_and_flags().unwrap().0, hits(&engine)), (VECTOR + 4, 1));
}

/// An access that has been told, and is begun again after others have stopped, is told once.
#[test]
fn a_dealt_access_outlives_a_resume() {
    let (engine, mut cpu, _) = planted(Isa::Aarch64, &[]);
    let mut requests = engine.requests();
    let id = requests.table.entries().map(|(id, _)| id).next().unwrap();
    requests.table.take_out(cpu.memory(), id);
    let watch = Breakpoint::new(Kind::Write, GuestVirt(0x8000), 4, Place::Register);
    let watch = requests.table.insert(cpu.memory(), watch).unwrap();
    let dealt = Dealt::at(&cpu, Some(GuestPhys(PLACE)), DealtWith::Access).unwrap();
    requests.retries.expect(&cpu, dealt);
    requests.begin(&[Action::Run]);
    assert!(requests.retries.take(&cpu, Some(GuestPhys(PLACE)), DealtWith::Access));
    requests.retries.expect(&cpu, dealt);
    requests.table.take_out(cpu.memory(), watch);
    requests.begin(&[Action::Run]);
    assert!(!requests.retries.take(&cpu, Some(GuestPhys(PLACE)), DealtWith::Access));
    drop(requests);
    cpu.vcpu.set_pc(PLACE);
}
