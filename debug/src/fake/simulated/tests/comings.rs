//! Debuggers that come and go, and what becomes of stops and of words when something happens at the same time.

use super::*;
use crate::context::{ContextState, Debuggee, InsertError, Listener, Mode, Point, WaitError};
use crate::live::machine::LiveMachine;
use crate::machine::Machine;

type Program = Debuggee<LiveMachine<Simulated>>;

/// A guest that calls functions, which nobody has let run.
fn guest(isa: Isa, vcpus: u32) -> Arc<SimulatedVcpus> {
    let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
    ram.write(GuestPhys(CODE), &calling(isa).code);
    Arc::new(Vcpus::new(Simulated::new(isa, vcpus, ram, CODE, DATA)))
}

/// A program that debugs it.
fn join(isa: Isa, vcpus: &Arc<SimulatedVcpus>) -> std::io::Result<(Debugger<Simulated>, Program)> {
    let engine = Arc::new(Engine::new(isa, host(), vcpus.count()));
    let memory = Box::new(vcpus.monitor().ram.clone());
    let (debugger, machine) = Debugger::join(vcpus, Target { engine: Arc::clone(&engine), memory }, true)?;
    let mut program = Debuggee::new(machine, engine);
    program.attach();
    Ok((debugger, program))
}

fn leaf(isa: Isa) -> u64 {
    CODE + calling(isa).leaf
}

#[test]
fn who_leaves_twice_takes_nothing_from_the_next() {
    for isa in Isa::ALL {
        let vcpus = guest(isa, 1);
        let (first, mut program) = join(isa, &vcpus).unwrap();
        program.detach();
        first.leave();
        let (second, mut program) = join(isa, &vcpus).unwrap();
        first.leave();
        assert!(vcpus.link().is_some());
        assert_eq!(join(isa, &vcpus).unwrap_err().kind(), ErrorKind::AlreadyExists);
        program.add(Point::execute(leaf(isa))).unwrap();
        let all = program.root();
        program.go_until(all, Mode::Run, LIMIT).unwrap();
        program.detach();
        second.leave();
    }
}

/// Who comes while another one leaves has all vCPUs, or does not come.
#[test]
fn who_comes_while_another_leaves_is_not_deaf() {
    for isa in Isa::ALL {
        let vcpus = guest(isa, 2);
        let (mut debugger, mut program) = join(isa, &vcpus).unwrap();
        for _ in 0..100 {
            program.detach();
            let its_vcpus = Arc::clone(&vcpus);
            let next = thread::spawn(move || {
                loop {
                    match join(isa, &its_vcpus) {
                        Ok(next) => return next,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
                    }
                }
            });
            debugger.leave();
            (debugger, program) = next.join().unwrap();
            program.add(Point::execute(leaf(isa))).unwrap();
            let all = program.root();
            program.go_until(all, Mode::Run, LIMIT).unwrap();
        }
        program.detach();
        debugger.leave();
    }
}

/// What a program has of a guest says so when its debugger has left, also while it waits, and plants nothing more.
#[test]
fn a_program_hears_that_its_debugger_has_left() {
    for isa in Isa::ALL {
        let vcpus = guest(isa, 1);
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        let all = program.root();
        program.resume(all, Mode::Run).unwrap();
        let waits = thread::spawn(move || {
            let heard = program.wait(LIMIT);
            (heard, program)
        });
        debugger.leave();
        let (heard, mut program) = waits.join().unwrap();
        assert_eq!(heard, Err(WaitError::Detached), "{isa}");
        program.attach();
        assert_eq!(program.suspend(), Err(WaitError::Detached));
        assert!(matches!(program.add(Point::execute(leaf(isa))), Err(InsertError::Detached)));
        assert_eq!(program.state(all), Ok(ContextState::Running));
        let mut code = vec![0; calling(isa).code.len()];
        vcpus.monitor().ram.read(GuestPhys(CODE), &mut code);
        assert_eq!(code, calling(isa).code);
        drop(vcpus.pause(|_| true));
    }
}

/// Of another vCPU's stop in the middle of a step over functions is told at once.
#[test]
fn a_stop_beside_a_step_is_told_at_once() {
    let isa = Isa::X86_64;
    let vcpus = guest(isa, 2);
    let (debugger, mut program) = join(isa, &vcpus).unwrap();
    let steps = program.vcpu(0).unwrap();
    // What the other one writes.
    program.add(Point::write(DATA + 8, 8)).unwrap();
    let mut others = 0;
    for _ in 0..200 {
        let begin = Instant::now();
        let stopped = program.go_until(steps, Mode::StepOut, LIMIT).unwrap();
        // One that nobody has rung for is found when the limit is over.
        assert!(begin.elapsed() < LIMIT / 2, "nothing rings");
        others += u32::from(stopped.context != steps);
    }
    assert!(others > 0, "the other one has not stopped");
    program.detach();
    debugger.leave();
}

/// A loop that waits for the descriptor alone hears of what comes while a breakpoint is changed.
#[test]
fn a_stop_while_a_breakpoint_changes_rings() {
    for isa in Isa::ALL {
        let vcpus = guest(isa, 1);
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        let (all, goes) = (program.root(), Arc::new(AtomicBool::new(false)));
        let holds = Arc::clone(&goes);
        program.add(Point::execute(leaf(isa)).when(move |_| holds.load(Ordering::Relaxed))).unwrap();
        for _ in 0..100 {
            goes.store(false, Ordering::Relaxed);
            program.resume(all, Mode::Run).unwrap();
            thread::yield_now();
            goes.store(true, Ordering::Relaxed);
            let other = program.add(Point::execute(CODE + 0x100)).unwrap();
            let stopped = loop {
                let limit = PollTimeout::try_from(LIMIT).unwrap();
                let mut fds = [PollFd::new(program.machine.event_fd(), PollFlags::POLLIN)];
                assert!(poll(&mut fds, limit).unwrap() > 0, "nothing rings");
                if let Some(stopped) = program.poll().unwrap() {
                    break stopped;
                }
            };
            assert_eq!(stopped.breakpoints.len(), 1);
            program.take_out(other);
        }
        program.detach();
        debugger.leave();
    }
}

/// What a listener hears of stops and starts is in turns, whoever has come or gone.
#[test]
fn listeners_hear_of_comings_and_goings() {
    for isa in Isa::ALL {
        let vcpus = guest(isa, 1);
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        let listener = program.listeners().add(100);
        let heard = |listener: &Listener| -> Vec<bool> {
            let turn = |notice| match notice {
                Notice::Started(_) => Some(true),
                Notice::Stopped(..) => Some(false),
                _ => None,
            };
            std::iter::from_fn(|| listener.take()).filter_map(turn).collect()
        };
        let step = program.vcpu(0).unwrap();
        program.go_until(step, Mode::StepInto, LIMIT).unwrap();
        assert_eq!(heard(&listener), [true, false], "{isa}");
        program.detach();
        assert_eq!(heard(&listener), [true], "{isa}");
        program.attach();
        assert_eq!(heard(&listener), [false], "{isa}");
        program.leave_held();
        program.attach();
        assert_eq!(heard(&listener), [] as [bool; 0], "{isa}");
        let all = program.root();
        program.resume(all, Mode::Run).unwrap();
        program.detach();
        assert_eq!(heard(&listener), [true], "{isa}");
        debugger.leave();
    }
}

/// A debugger that comes to nothing lets nobody run who was not.
#[test]
fn who_is_turned_away_leaves_vcpus_as_they_were() {
    for (isa, runs) in Isa::ALL.into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let vcpus = guest(isa, 2);
        if runs {
            vcpus.resume();
        }
        let other = if isa == Isa::X86_64 { Isa::Aarch64 } else { Isa::X86_64 };
        let target = Target {
            engine: Arc::new(Engine::new(other, host(), 2)),
            memory: Box::new(vcpus.monitor().ram.clone()),
        };
        let refused = Debugger::join(&vcpus, target, true).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        assert!(vcpus.link().is_none());
        for vcpu in 0..2 {
            let (told, tells) = channel();
            vcpus.monitor().post(vcpu, Box::new(move |runner, _| told.send(runner.may_run()).unwrap()));
            assert_eq!(tells.recv_timeout(LIMIT), Ok(runs), "{isa}");
        }
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        program.detach();
        debugger.leave();
    }
}

/// Whether all vCPUs may run, as their threads say.
fn may_run(vcpus: &Arc<SimulatedVcpus>) -> Vec<bool> {
    let ask = |vcpu| {
        let (told, tells) = channel();
        vcpus.monitor().post(vcpu, Box::new(move |runner, _| told.send(runner.may_run()).unwrap()));
        tells.recv_timeout(LIMIT).unwrap()
    };
    (0..vcpus.count()).map(ask).collect()
}

/// A program that goes on with a guest that its debugger has left does nothing to that, nor to the next one's.
#[test]
fn a_program_that_was_left_commands_nobody() {
    for isa in Isa::ALL {
        for runs in [false, true] {
            let vcpus = guest(isa, 2);
            let (debugger, mut old) = join(isa, &vcpus).unwrap();
            let (all, point) = (old.root(), old.add(Point::execute(CODE + 0x100)).unwrap());
            if runs {
                old.resume(all, Mode::Run).unwrap();
            }
            debugger.leave();
            assert_eq!(may_run(&vcpus), [true; 2]);
            assert!(!vcpus.is_held());
            let late: [fn(&mut Program); 6] = [
                |it| it.leave_held(),
                |it| it.detach(),
                |it| drop(it.add(Point::execute(CODE + 0x200))),
                |it| it.attach(),
                |it| assert!(it.restart().is_err()),
                |it| drop(it.interrupt()),
            ];
            for act in late {
                act(&mut old);
                assert_eq!(may_run(&vcpus), [true; 2], "{isa} {runs}");
            }
            // And where another one has it.
            let (second, mut program) = join(isa, &vcpus).unwrap();
            program.add(Point::execute(leaf(isa))).unwrap();
            program.go_until(all, Mode::Run, LIMIT).unwrap();
            old.take_out(point);
            for act in late {
                act(&mut old);
                assert_eq!(may_run(&vcpus), [false; 2], "{isa} {runs}");
            }
            program.go_until(all, Mode::Run, LIMIT).unwrap();
            program.detach();
            second.leave();
            drop(vcpus.pause(|_| true));
        }
    }
}

/// A debugger that has left goes over to no other machine, whose place is free.
#[test]
fn who_has_left_goes_over_to_no_other_machine() {
    for isa in Isa::ALL {
        let (vcpus, next) = (guest(isa, 1), guest(isa, 1));
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        program.detach();
        debugger.leave();
        debugger.begin_again(&next, Box::new(next.monitor().ram.clone()));
        assert!(next.link().is_none());
        let (other, mut program) = join(isa, &next).unwrap();
        program.detach();
        other.leave();
        // One that goes over, and is told to leave before it knows.
        let (vcpus, next) = (guest(isa, 1), guest(isa, 1));
        let (debugger, mut program) = join(isa, &vcpus).unwrap();
        let all = program.root();
        program.resume(all, Mode::Run).unwrap();
        debugger.begin_again(&next, Box::new(next.monitor().ram.clone()));
        debugger.leave();
        assert_eq!(program.wait(LIMIT), Err(WaitError::Detached), "{isa}");
        assert_eq!(may_run(&next), [true]);
        assert!(!next.is_held());
        [vcpus, next].iter().for_each(|vcpus| drop(vcpus.pause(|_| true)));
    }
}

/// A guest that is had begin again by somebody else than its debugger, while that has it stand still, is the new one from
/// the next packet on: with the breakpoints, and nothing of the old one's.
#[test]
fn a_guest_that_stands_still_begins_again() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let store = setting.code.1;
        assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa} {how:?}");
        let again = {
            let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
            ram.write(GuestPhys(CODE), &setting.code.0);
            Arc::new(Vcpus::new(Simulated::new(isa, 2, ram, CODE, DATA)))
        };
        setting.debugger.as_ref().unwrap().begin_again(&again);
        let begin = Instant::now();
        // A thread has it at once; an event loop may serve the packet first.
        while client.register(isa, "pc") != CODE {
            assert!(begin.elapsed() < LIMIT && matches!(how, How::Loop), "{isa} {how:?}: it is the old one");
        }
        setting.vcpus = again;
        assert!(!setting.vcpus.is_let_run() && setting.vcpus.is_held(), "{isa} {how:?}");
        assert_ne!(setting.memory_of_code(), setting.code.0, "{isa} {how:?}: nothing is planted");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa} {how:?}");
        assert_eq!(client.register(isa, "pc"), store, "{isa} {how:?}");
        assert_eq!(client.ask("D;1"), "OK");
        setting.expect_running(0);
        setting.expect_running(1);
    }
}

/// One that waits for its first debugger waits on when it begins again; one that runs, runs.
#[test]
fn a_guest_that_nobody_has_let_run_waits_when_it_begins_again() {
    for (isa, runs) in Isa::ALL.into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let (vcpus, next) = (guest(isa, 1), guest(isa, 1));
        let engine = Arc::new(Engine::new(isa, host(), 1));
        let memory = Box::new(vcpus.monitor().ram.clone());
        let target = Target { engine: Arc::clone(&engine), memory };
        let (debugger, machine) = Debugger::join(&vcpus, target, true).unwrap();
        let mut nobodys = Debuggee::new(machine, engine);
        if runs {
            vcpus.resume();
        }
        debugger.begin_again(&next, Box::new(next.monitor().ram.clone()));
        assert_eq!(nobodys.idle(), None);
        assert_eq!((next.is_let_run(), may_run(&next)), (runs, vec![runs]), "{isa}");
        // Whoever takes its debugger away has it run, as far as its monitor is concerned.
        debugger.leave();
        assert!(next.is_let_run());
        [vcpus, next].iter().for_each(|vcpus| drop(vcpus.pause(|_| true)));
    }
}

/// Two may have a debugger leave at the same time: when either is done, it has.
#[test]
fn two_have_a_debugger_leave() {
    for (isa, how) in everywhere().filter(|(_, how)| matches!(how, How::Thread)) {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        assert!(client.ask("?").starts_with('T'));
        let Some(Serving::Thread(debugger)) = setting.debugger.take() else {
            panic!("{isa}: a thread serves it, and nothing else was asked for");
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    debugger.leave();
                    assert!(setting.vcpus.link().is_none());
                });
            }
        });
        setting.expect_running(0);
        setting.expect_running(1);
    }
}

#[test]
fn who_asks_a_guest_that_stands_still_to_stand_still_hears_nothing_new() {
    let vcpus = guest(Isa::X86_64, 1);
    let (debugger, mut program) = join(Isa::X86_64, &vcpus).unwrap();
    let listener = program.listeners().add(10);
    let before = std::iter::from_fn(|| listener.take()).count();
    assert!(before > 0);
    assert_eq!(program.suspend().unwrap().reason, crate::machine::StopReason::Interrupt);
    assert_eq!(listener.take(), None);
    debugger.leave();
    assert_eq!(program.poll(), Err(WaitError::Detached));
    assert!(matches!(listener.take(), Some(Notice::Started(_))));
    drop(vcpus.pause(|_| true));
}

/// A guest that somebody was about to have again, who has gone before: it runs.
#[test]
fn who_goes_while_coming_back_holds_nothing() {
    for (isa, how) in everywhere() {
        for round in 0..20u64 {
            let mut setting = Setting::new((isa, how), 2);
            let mut client = setting.attach();
            assert_eq!(client.ask("!"), "OK");
            assert_eq!(client.ask("D;1"), "OK");
            setting.expect_running(0);
            client.send("vAttach;1");
            // Now and then it is told of the stop.
            (0..5 * (round % 8)).for_each(|_| thread::yield_now());
            drop(client);
            for vcpu in 0..2 {
                setting.expect_running(vcpu);
            }
        }
    }
}

/// Who asks for another process, or for what is refused, has the guest do what it did; so has one that is let go while it
/// attaches.
#[test]
fn who_is_refused_the_guest_leaves_it_running() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        assert_eq!(client.ask("!"), "OK");
        // It runs for the debugger, and no stop of it is told.
        client.send("vCont;c");
        for refused in ["D;2", "vKill;2", "vAttach;1", "vRun"] {
            assert_eq!(&client.ask(refused)[..1], "E", "{isa} {how:?}: {refused}");
            (0..2).for_each(|vcpu| setting.expect_running(vcpu));
        }
        assert_eq!(client.ask("D;1"), "OK");
        for refused in ["vAttach;2", "vKill;2"] {
            assert_eq!(client.ask(refused), "E03", "{isa} {how:?}: {refused}");
            (0..2).for_each(|vcpu| setting.expect_running(vcpu));
        }
        for round in 0..20u64 {
            client.send("vAttach;1");
            (0..5 * (round % 8)).for_each(|_| thread::yield_now());
            setting.debugger.as_ref().unwrap().release();
            assert!(client.is_closed());
            (0..2).for_each(|vcpu| setting.expect_running(vcpu));
            client = Client::new(&setting.path);
            assert_eq!(client.ask("!"), "OK");
            assert_eq!(client.ask("D;1"), "OK");
        }
    }
}

/// vCPUs of a guest that has begun again, which somebody else has let run, are stopped before they are held.
#[test]
fn who_comes_to_a_guest_that_has_begun_again_stops_it() {
    for isa in Isa::ALL {
        let (vcpus, next) = (guest(isa, 2), guest(isa, 2));
        let engine = Arc::new(Engine::new(isa, host(), 2));
        let memory = Box::new(vcpus.monitor().ram.clone());
        let target = Target { engine: Arc::clone(&engine), memory };
        let (debugger, machine) = Debugger::join(&vcpus, target, true).unwrap();
        let mut program = Debuggee::new(machine, engine);
        debugger.begin_again(&next, Box::new(next.monitor().ram.clone()));
        assert_eq!(program.idle(), None);
        next.resume();
        assert_eq!(may_run(&next), [true; 2], "{isa}");
        program.attach();
        assert_eq!(may_run(&next), [false; 2], "{isa}");
        next.resume();
        assert_eq!(may_run(&next), [false; 2], "{isa}");
        debugger.leave();
        [vcpus, next].iter().for_each(|vcpus| drop(vcpus.pause(|_| true)));
    }
}

/// The same in an event loop, which asks vCPUs before it holds them.
#[test]
fn who_comes_by_an_event_loop_stops_it_as_well() {
    for isa in Isa::ALL {
        let (vcpus, next) = (guest(isa, 2), guest(isa, 2));
        let path = std::env::temp_dir().join(format!("again-{isa}-{}.sock", std::process::id()));
        let listener = ListeningSocket::bind(&Endpoint::Unix(path.clone()), Audience::Owner).unwrap();
        let memory = Box::new(vcpus.monitor().ram.clone());
        let target = Target { engine: Arc::new(Engine::new(isa, host(), 2)), memory };
        let polled = Polled::attach(&vcpus, target, listener, options()).unwrap();
        let serving = Serving::Loop(EventLoop::new(polled));
        serving.begin_again(&next);
        let begin = Instant::now();
        while next.link().is_none() {
            assert!(begin.elapsed() < LIMIT, "{isa}: it does not go over");
            thread::yield_now();
        }
        next.resume();
        assert_eq!(may_run(&next), [true; 2], "{isa}");
        let mut client = Client::new(&path);
        assert_eq!(may_run(&next), [false; 2], "{isa}");
        assert_eq!(client.ask("D"), "OK");
        serving.leave();
        [vcpus, next].iter().for_each(|vcpus| drop(vcpus.pause(|_| true)));
    }
}
