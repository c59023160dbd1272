use super::*;
use crate::fake::{Scripted, ScriptedStep, host};
use crate::trap::Injection;
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
    cpu.set_pc(PLACE);
    let engine = Engine::new(isa, host(), 1);
    let is_false = Expression::new(vec![0x22, 0, 0x27]).unwrap();
    let breakpoint = Breakpoint {
        kind: Kind::Software,
        address: GuestVirt(PLACE),
        length: 4,
        place: Place::Planted(GuestPhys(PLACE)),
        conditions: vec![is_false],
        commands: Vec::new(),
        hits: 0,
    };
    {
        let mut state = engine.state();
        state.table.insert(cpu.memory(), breakpoint).unwrap();
        engine.reallocate(&mut state).unwrap();
        state.begin(&[Action::Run]);
    }
    (engine, cpu, trap)
}

fn hits(engine: &Engine) -> u64 {
    engine.state().table.iter().map(|breakpoint| breakpoint.hits).sum()
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
        cpu.set_pc(PLACE);
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
        cpu.set_pc(PLACE);
        assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
        assert_eq!(hits(&engine), 2, "{isa}");
    }
}

#[test]
fn what_is_planted_stays_planted_whatever_becomes_of_a_step() {
    for isa in Isa::ALL {
        for end in [Stepped::Other, Stepped::Faulted, Stepped::Done, Stepped::Trapped(Trap::Int3)] {
            let (engine, mut cpu, trap) = planted(isa, &[(end.clone(), None)]);
            engine.judge(&mut cpu, &trap);
            assert!(engine.state().table.is_planted(cpu.memory(), GuestPhys(PLACE)), "{isa} {end:?}");
            assert!(!cpu.exclusive.1 && !cpu.arming.step, "{isa} {end:?}");
        }
    }
}

#[test]
fn a_step_of_the_guests_own_beside_ours_reaches_it() {
    let (engine, mut cpu, _) = planted(Isa::X86_64, &[]);
    cpu.set_pc(0x2000);
    let trap = Trap::Debug { dr6: DR6_BS };
    // Nobody asked for a step: the guest did.
    assert_eq!(engine.judge(&mut cpu, &trap), Verdict::GoOn);
    assert!(matches!(cpu.injected[..], [Injection::Debug { .. }]), "{:?}", cpu.injected);
}
