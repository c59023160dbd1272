//! What a vCPU's thread does, with a vCPU that is nothing but registers and a callback that plays the guest.

use super::*;
use crate::engine::Engine;
use crate::fake::{FakeVcpu, Ram, host};
use crate::live::link::Wake;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;

const CODE: u64 = 0x1000;

/// A vCPU and its runner, whose entries to the guest come out as a script says.
struct Thread {
    vcpu: FakeVcpu,
    runner: Runner,
    script: VecDeque<(Exit, Option<u64>)>,
    /// What each entry was for: to finish, to step, else to run.
    entries: Vec<&'static str>,
    kicks: Arc<Mutex<Vec<u32>>>,
}

impl Thread {
    fn new(isa: Isa, script: impl IntoIterator<Item = (Exit, Option<u64>)>) -> Thread {
        let mut vcpu = FakeVcpu::new(isa);
        vcpu.set_pc(CODE);
        Thread {
            vcpu,
            runner: Runner::new(isa, Arc::default()),
            script: script.into_iter().collect(),
            entries: Vec::new(),
            kicks: Arc::default(),
        }
    }

    /// What a debugger that comes will share, and be told.
    fn link(&self) -> (Link, Receiver<Event>) {
        let engine = Arc::new(Engine::new(self.vcpu.isa(), host(), 1));
        engine.requests().is_attached = true;
        let kicks = Arc::clone(&self.kicks);
        let kick = move |vcpu| kicks.lock().unwrap().push(vcpu);
        let ram = Ram::new(1 << 16);
        // CPUID; MRS X0, CNTVCT_EL0: none that could be simulated.
        ram.write(
            arch::GuestPhys(CODE),
            match self.vcpu.isa() {
                Isa::X86_64 => &[0x0f, 0xa2],
                Isa::Aarch64 => &[0x40, 0xe0, 0x3b, 0xd5],
            },
        );
        Link::new(engine, 1, Box::new(ram), Box::new(kick), (Wake::new().unwrap(), Wake::new().unwrap()))
    }

    /// Has a debugger come; what it will be told.
    fn attach(&mut self) -> (Arc<Link>, Receiver<Event>) {
        let (link, events) = self.link();
        let link = Arc::new(link);
        self.runner.attach(Arc::clone(&link));
        (link, events)
    }

    fn order(&mut self, link: &Link, action: Action) {
        let mut requests = link.engine.requests();
        requests.begin(&[action]);
        let arming = link.engine.arming(&requests, 0);
        drop(requests);
        self.runner.order(Order { action, arming, steps_off: false });
    }

    fn enter(
        script: &mut VecDeque<(Exit, Option<u64>)>,
        entries: &mut Vec<&'static str>,
        vcpu: &mut FakeVcpu,
        turn: Turn<'_>,
    ) -> Exit {
        entries.push(match () {
            () if turn.is_finish() => "finish",
            () if turn.is_step() => "step",
            () => "run",
        });
        let (_inside, mut visit) = turn.enter();
        let (exit, pc) = script.pop_front().unwrap_or((Exit::Interrupted, None));
        if let Some(pc) = pc {
            vcpu.set_pc(pc);
        }
        // A call's exit is behind it, and a stop in front of it.
        match exit {
            Exit::Stop(_) if !visit.stops_at(vcpu.file.pc().map(|pc| pc + 4)) => Exit::Served,
            exit => exit,
        }
    }

    fn run(&mut self) -> Next {
        let Thread { vcpu, runner, script, entries, .. } = self;
        runner.run(vcpu, &mut |vcpu, turn| Thread::enter(script, entries, vcpu, turn))
    }

    fn finish(&mut self) -> Next {
        let Thread { vcpu, runner, script, entries, .. } = self;
        runner.finish(vcpu, &mut |vcpu, turn| Thread::enter(script, entries, vcpu, turn))
    }
}

fn stop(event: Option<Event>) -> Option<StopReason> {
    match event {
        Some(Event::Stopped { reason, .. }) => Some(reason),
        _ => None,
    }
}

fn step_trap(isa: Isa) -> Exit {
    Exit::Trap(stepped(isa))
}

#[test]
fn without_a_debugger_exits_are_as_they_are() {
    for isa in Isa::ALL {
        let fatal = Some("dead".to_string());
        let script = [
            // The guest is entered again at once.
            Exit::Served,
            Exit::Served,
            Exit::Interrupted,
            // To finish what was served.
            Exit::Interrupted,
            Exit::Abort,
            // Nobody is there to be shown it: it is served.
            Exit::Stop(StopReason::Interrupt),
            Exit::Trap(Trap::Int3),
            Exit::End { fatal },
        ];
        let mut thread = Thread::new(isa, script.map(|exit| (exit, None)));
        assert!(!thread.runner.may_run());
        thread.runner.resume();
        for entries in [3, 4] {
            assert_eq!(thread.run(), Next::Look);
            assert!(thread.runner.may_run());
            assert_eq!(thread.entries.len(), entries);
            // The guest may not have been entered behind what was served.
            let finishes = usize::from(entries == 3);
            assert_eq!((thread.finish(), thread.entries.len()), (Next::Look, entries + finishes));
            thread.entries.truncate(entries);
        }
        assert_eq!(thread.vcpu.counts.aborts, 1);
        assert_eq!(thread.run(), Next::Unowned(Trap::Int3));
        assert!(!thread.runner.may_run());
        thread.runner.resume();
        assert_eq!(thread.run(), Next::End(Some("dead".into())));
        assert!(!thread.runner.may_run());
    }
}

#[test]
fn holds_are_counted_and_a_pause_ends_what_it_did() {
    let mut thread = Thread::new(Isa::X86_64, []);
    thread.runner.resume();
    thread.runner.hold();
    thread.runner.hold();
    thread.runner.release();
    assert!(!thread.runner.may_run());
    thread.runner.release();
    assert!(thread.runner.may_run());
    thread.runner.pause();
    assert!(!thread.runner.may_run());
    // One release too many is none.
    thread.runner.release();
    thread.runner.resume();
    assert!(thread.runner.may_run());
}

#[test]
fn who_is_stopped_for_a_debugger_runs_for_nobody_else() {
    let mut thread = Thread::new(Isa::X86_64, []);
    let (link, _events) = thread.attach();
    // It is about to attach.
    link.engine.requests().is_attached = false;
    thread.runner.resume();
    assert!(thread.runner.may_run());
    let (other, _events) = thread.link();
    let other = Arc::new(other);
    thread.runner.stop_for(&other);
    assert!(thread.runner.may_run());
    for runs in [false, true] {
        // Nobody has let it run, or somebody does while it is stopped.
        thread.runner.pause();
        for is_resumed in [false, true] {
            thread.runner.stop_for(&link);
            if is_resumed {
                thread.runner.resume();
            }
            thread.runner.give_back(&other, true);
            assert!(!thread.runner.may_run());
            thread.runner.give_back(&link, runs);
            assert_eq!(thread.runner.may_run(), runs || is_resumed);
        }
    }
    // It says so itself, or leaves.
    thread.runner.stop_for(&link);
    thread.order(&link, Action::Run);
    thread.runner.stop_for(&link);
    thread.runner.detach(&mut thread.vcpu, &link, Then::AsBefore);
    assert!(!thread.runner.may_run());
    thread.runner.resume();
    assert!(thread.runner.may_run());
    // Whether the guest is to run was asked before somebody has let it.
    let (link, _events) = thread.attach();
    thread.runner.pause();
    thread.runner.stop_for(&link);
    thread.runner.resume();
    thread.runner.detach(&mut thread.vcpu, &link, Then::Runs(false));
    assert!(thread.runner.may_run());
}

/// An exit that cannot be judged is a stop for a debugger, and the end where none is attached.
#[test]
fn what_cannot_be_judged_is_the_end_where_nobody_looks() {
    for (isa, is_attached) in Isa::ALL.into_iter().flat_map(|isa| [(isa, true), (isa, false)]) {
        let mut thread = Thread::new(isa, []);
        let (link, events) = thread.attach();
        link.engine.requests().is_attached = is_attached;
        let fatal = || StopReason::Fatal("refused".into());
        let next = thread.runner.act(&mut thread.vcpu, &link, Verdict::Stop(fatal()));
        let told = stop(events.try_recv().ok());
        match is_attached {
            true => assert_eq!((next, told), (Next::Look, Some(fatal())), "{isa}"),
            false => assert_eq!((next, told), (Next::Failed("refused".into()), None), "{isa}"),
        }
        assert!(!thread.runner.may_run());
    }
}

#[test]
fn an_access_is_finished_once_before_anyone_looks() {
    let script = [(Exit::Served, None), (Exit::Served, None), (Exit::Interrupted, None)];
    let mut thread = Thread::new(Isa::X86_64, script);
    let (link, _events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    // Nothing has been served yet.
    assert_eq!((thread.finish(), thread.entries.len()), (Next::Look, 0));
    thread.run();
    assert_eq!(thread.finish(), Next::Look);
    assert_eq!(thread.entries, ["run", "finish", "finish"]);
    assert_eq!(thread.finish(), Next::Look);
    assert_eq!(thread.entries.len(), 3);
}

#[test]
fn an_access_whose_last_part_ends_the_guest_ends_it() {
    let script = [(Exit::Served, None), (Exit::End { fatal: None }, None)];
    let mut thread = Thread::new(Isa::X86_64, script);
    let (link, _events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    thread.run();
    assert_eq!(thread.finish(), Next::End(None));
    assert!(!thread.runner.may_run());
}

#[test]
fn a_thread_stays_awake_behind_a_step_for_who_wants_so() {
    for (wants, isa) in [true, false].into_iter().zip(Isa::ALL) {
        let mut thread = Thread::new(isa, [(step_trap(isa), Some(CODE + 4))]);
        let (mut link, _events) = thread.link();
        link.looks = wants;
        let link = Arc::new(link);
        thread.runner.attach(Arc::clone(&link));
        assert!(!thread.runner.take_look());
        thread.order(&link, Action::Step);
        assert_eq!((thread.run(), thread.runner.take_look()), (Next::Look, wants));
        // Once: whoever asks something of it every few milliseconds does not keep it awake.
        assert!(!thread.runner.take_look());
        thread.order(&link, Action::Run);
        thread.run();
        assert!(!thread.runner.take_look());
    }
}

#[test]
fn a_step_stops_when_it_is_done() {
    for isa in Isa::ALL {
        let mut thread = Thread::new(isa, [(step_trap(isa), Some(CODE + 4))]);
        let (link, events) = thread.attach();
        thread.order(&link, Action::Step);
        assert_eq!(thread.run(), Next::Look);
        assert!(thread.runner.may_run() && thread.entries.is_empty(), "the order is begun");
        assert_eq!(thread.run(), Next::Look);
        assert_eq!(thread.entries, ["step"], "{isa}");
        assert_eq!(stop(events.try_recv().ok()), Some(StopReason::Step), "{isa}");
        assert!(!thread.runner.may_run());
        // One that is to stay does nothing.
        thread.order(&link, Action::Stay);
        assert_eq!((thread.run(), thread.entries.len()), (Next::Look, 1));
        assert!(!thread.runner.may_run() && events.try_recv().is_err());
    }
}

#[test]
fn a_step_whose_access_is_served_is_finished_without_running() {
    for isa in Isa::ALL {
        // Served, then the rest of it, which goes on to the next instruction.
        let script = [(Exit::Served, None), (Exit::Interrupted, Some(CODE + 4))];
        let mut thread = Thread::new(isa, script);
        let (link, events) = thread.attach();
        thread.order(&link, Action::Step);
        thread.run();
        thread.run();
        assert_eq!(thread.entries, ["step", "finish"], "{isa}");
        assert_eq!(stop(events.try_recv().ok()), Some(StopReason::Step), "{isa}");
        assert_eq!((thread.finish(), thread.entries.len()), (Next::Look, 2), "it is finished already");
    }
}

#[test]
fn a_step_of_a_vcpu_that_waits_begins_behind_its_halt() {
    let isa = Isa::X86_64;
    let mut thread = Thread::new(isa, [(Exit::Interrupted, None), (step_trap(isa), Some(CODE + 2))]);
    let (link, _events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    // It runs, and is kicked.
    thread.run();
    thread.runner.pause();
    thread.order(&link, Action::Step);
    thread.run();
    assert_eq!(thread.vcpu.counts.ended_halts, 1);
    thread.run();
    thread.order(&link, Action::Step);
    thread.run();
    assert_eq!(thread.vcpu.counts.ended_halts, 1, "it was not kicked since");
}

#[test]
fn a_debugger_looks_at_a_guest_that_died_before_that_is_its_end() {
    let fatal = Some("triple fault".to_string());
    let mut thread = Thread::new(Isa::X86_64, [(Exit::End { fatal }, None)]);
    let (link, events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    assert_eq!(thread.run(), Next::Look);
    assert_eq!(stop(events.try_recv().ok()), Some(StopReason::Fatal("triple fault".into())));
    assert!(!thread.runner.may_run());
    thread.order(&link, Action::Run);
    assert_eq!(thread.run(), Next::End(Some("triple fault".into())));
    // It was not entered again, and is not whatever the debugger says.
    for action in [Action::Run, Action::Run] {
        thread.order(&link, action);
        assert!(!thread.runner.may_run());
    }
    link.engine.requests().is_attached = false;
    thread.runner.resume();
    assert!(!thread.runner.may_run());
    // Another's leaving is not its own.
    let (other, _events) = thread.link();
    thread.runner.detach(&mut thread.vcpu, &Arc::new(other), Then::Runs(true));
    assert!(thread.runner.link.is_some());
    thread.runner.detach(&mut thread.vcpu, &link, Then::Runs(true));
    assert!(!thread.runner.may_run());
    assert_eq!(thread.entries.len(), 1);

    // An end with nothing to see is one, and so is one that no debugger is there for.
    let mut thread = Thread::new(Isa::X86_64, [(Exit::End { fatal: None }, None)]);
    let (link, _events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    assert_eq!(thread.run(), Next::End(None));
    link.engine.requests().is_attached = false;
    let why = Some("dead".to_string());
    assert_eq!(thread.runner.end(&thread.vcpu, why.clone()), Next::End(why));
}

#[test]
fn what_is_shown_before_it_is_done_is_done_when_it_is_met_again() {
    let call = || Exit::Stop(StopReason::Hypercall("sched_op".into()));
    let script = [(call(), None), (call(), None), (call(), Some(CODE))];
    let mut thread = Thread::new(Isa::X86_64, script);
    let (link, events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    thread.run();
    assert!(matches!(stop(events.try_recv().ok()), Some(StopReason::Hypercall(_))));
    assert!(!thread.runner.may_run());
    thread.order(&link, Action::Run);
    thread.run();
    thread.run();
    assert!(thread.runner.may_run() && events.try_recv().is_err(), "it is served now");
    // The next one at the same place is another call.
    thread.run();
    assert!(matches!(stop(events.try_recv().ok()), Some(StopReason::Hypercall(_))));
}

#[test]
fn a_trap_of_nobodys_is_the_monitors() {
    let trap = Trap::EmulationFailure { instruction: vec![0x0f, 0xff] };
    let mut thread = Thread::new(Isa::X86_64, [(Exit::Trap(trap.clone()), None)]);
    let (link, events) = thread.attach();
    thread.order(&link, Action::Run);
    thread.run();
    assert_eq!(thread.run(), Next::Unowned(trap));
    assert!(!thread.runner.may_run() && events.try_recv().is_err());
    // The monitor words it; the debugger is shown it first.
    assert_eq!(thread.runner.end(&thread.vcpu, Some("cannot be emulated".into())), Next::Look);
    assert!(matches!(stop(events.try_recv().ok()), Some(StopReason::Fatal(_))));
}

#[test]
fn an_order_to_step_off_does_so_exclusively() {
    for isa in Isa::ALL {
        // The first kick is from before; the second one is a task.
        for (script, is_off) in [
            (vec![(Exit::Interrupted, None), (step_trap(isa), Some(CODE + 4))], true),
            (vec![(Exit::Interrupted, None), (Exit::Interrupted, None)], false),
        ] {
            let mut thread = Thread::new(isa, script);
            let (link, events) = thread.attach();
            thread.order(&link, Action::Run);
            let arming = link.engine.arming(&link.engine.requests(), 0);
            thread.runner.order(Order { action: Action::Run, arming, steps_off: true });
            assert_eq!(thread.run(), Next::Look);
            assert_eq!(thread.entries, ["step", "step"], "{isa}");
            assert_eq!((thread.vcpu.counts.cleared, thread.vcpu.file.pc() != Some(CODE)), (1, is_off));
            assert!(thread.runner.may_run() && events.try_recv().is_err(), "it goes on, {isa}");
            // Nobody is kept out any more.
            drop(link.gate.enter(0));
        }
    }
}

#[test]
fn an_end_that_comes_up_while_stepping_off_is_the_end() {
    let mut thread = Thread::new(Isa::X86_64, [(Exit::End { fatal: None }, None)]);
    let (link, _events) = thread.attach();
    thread.order(&link, Action::Run);
    let arming = link.engine.arming(&link.engine.requests(), 0);
    thread.runner.order(Order { action: Action::Run, arming, steps_off: true });
    assert_eq!(thread.run(), Next::End(None));
    assert!(!thread.runner.may_run());
}

/// A monitor's callback that panics while one vCPU steps over a breakpoint takes that vCPU's thread with it. The others
/// go on, and meet the breakpoint.
#[test]
fn a_callback_that_panics_in_a_step_over_a_breakpoint_holds_up_no_other() {
    use crate::breakpoint::{Breakpoint, Kind, Place};
    use crate::expression::Expression;
    use arch::{GuestPhys, GuestVirt};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    for isa in Isa::ALL {
        let mut it = Thread::new(isa, []);
        let (link, _events) = it.attach();
        let is_false = Expression::new(vec![0x22, 0, 0x27]).unwrap();
        let place = Place::Planted(GuestPhys(CODE));
        let breakpoint = Breakpoint {
            conditions: vec![is_false.into()],
            ..Breakpoint::new(Kind::Software, GuestVirt(CODE), 4, place)
        };
        link.engine.requests().table.insert(&*link.memory, breakpoint).unwrap();
        it.order(&link, Action::Run);
        it.run();
        let trap = match isa {
            Isa::X86_64 => Trap::Int3,
            Isa::Aarch64 => {
                Trap::Aarch64 { exception: arch::aarch64::syndrome::DebugException::Brk(0), far: 0 }
            }
        };
        let Thread { vcpu, runner, .. } = &mut it;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            runner.run(vcpu, &mut |_, turn| {
                assert!(!turn.is_step(), "as a monitor's defect would have it");
                let (_inside, _) = turn.enter();
                Exit::Trap(trap.clone())
            })
        }));
        assert!(panicked.is_err(), "{isa}: it was to step");
        assert!(
            link.engine.requests().table.is_planted(&*link.memory, GuestPhys(CODE)),
            "{isa}: others would run past the breakpoint"
        );
        let (done, dones) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            link.gate.begin_exclusive(0);
            link.gate.end_exclusive();
            done.send(()).ok();
        });
        assert_eq!(dones.recv_timeout(std::time::Duration::from_secs(60)), Ok(()), "{isa}: the gate is shut");
    }
}
