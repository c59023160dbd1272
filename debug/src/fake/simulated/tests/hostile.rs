//! Clients that go when it suits them, and whoever calls in the wrong order.

use super::*;
use crate::arming::Arming;
use crate::live::link::Link;
use crate::live::machine::{Begun, LiveMachine, Waiting};
use crate::machine::Extent;

/// The machine that a debugger of the guest has, with nobody who serves it.
fn machine_of(setting: &Setting, waiting: Waiting) -> (LiveMachine<Simulated>, Arc<Link>) {
    let vcpus = &setting.vcpus;
    let engine = Arc::new(Engine::new(setting.isa, host(), 2));
    let wakes = (Wake::new().unwrap(), Wake::new().unwrap());
    let kick = vcpus.monitor().kick_among_vcpus();
    let (link, events) = Link::new(engine, 2, Box::new(vcpus.monitor().ram.clone()), kick, wakes);
    let link = Arc::new(link);
    vcpus.attach(&link).unwrap();
    let begun = Begun { vcpus: Arc::clone(vcpus), link: Arc::clone(&link), events, hold: Arc::default() };
    // Nobody has it begin again.
    let (_, nexts) = channel();
    let quit = (Wake::new().unwrap(), Arc::default());
    (LiveMachine::new(begun, nexts, quit, waiting), link)
}

/// Waits until the guest has been asked to begin again.
fn expect_reset(setting: &Setting) {
    let begin = Instant::now();
    while setting.vcpus.monitor().resets.load(Ordering::SeqCst) == 0 {
        assert!(begin.elapsed() < LIMIT, "nobody asks for it");
        thread::yield_now();
    }
}

/// A client that has the guest begin again and goes before it has: the next one is served.
#[test]
fn a_client_goes_before_the_guest_has_begun_again() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        assert_eq!(client.ask("!"), "OK");
        setting.vcpus.monitor().resets.store(0, Ordering::SeqCst);
        client.send("vRun;");
        expect_reset(&setting);
        drop(client);
        let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
        ram.write(GuestPhys(CODE), &setting.code.0);
        let again = Arc::new(Vcpus::new(Simulated::new(isa, 2, ram, CODE, DATA)));
        setting.debugger.as_ref().unwrap().begin_again(&again);
        setting.vcpus = again;
        let mut client = Client::new(&setting.path);
        assert_eq!(client.ask(&format!("Z0,{:x},4", setting.code.1)), "OK", "{isa} {how:?}");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa} {how:?}");
        // It can be asked for anew, and that is done.
        assert_eq!(client.ask("!"), "OK");
        assert!(client.ask("vRun;").starts_with("E."), "{isa} {how:?}");
    }
}

/// A packet that cannot be answered before the guest has begun again is served again then, and acknowledged once: gdb
/// takes a second acknowledgement for that of what it sends next.
#[test]
fn what_is_served_again_is_acknowledged_once() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        drop(setting.attach());
        let mut stream = UnixStream::connect(&setting.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        setting.vcpus.monitor().resets.store(0, Ordering::SeqCst);
        stream.write_all(&[frame(b"!"), frame(b"vRun;")].concat()).unwrap();
        expect_reset(&setting);
        let again =
            Arc::new(Vcpus::new(Simulated::new(isa, 2, setting.vcpus.monitor().ram.clone(), CODE, DATA)));
        setting.debugger.as_ref().unwrap().begin_again(&again);
        setting.vcpus = again;
        let (mut read, mut piece) = (Vec::new(), [0; 256]);
        while !String::from_utf8_lossy(&read).contains("$T05") {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "the server has closed the connection");
            read.extend_from_slice(&piece[..count]);
        }
        let acknowledgements = read.iter().filter(|byte| **byte == b'+').count();
        assert_eq!(acknowledgements, 2, "{isa} {how:?}: {}", String::from_utf8_lossy(&read));
    }
}

/// A client that begins, lets the guest run and goes before it was looked at: an event loop does not wait for vCPUs to
/// stand still, as its thread may be theirs. In debug builds, whoever waits panics.
#[test]
fn a_client_goes_as_soon_as_it_has_come() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        drop(setting.attach());
        for round in 0..50 {
            let mut stream = UnixStream::connect(&setting.path).unwrap();
            let packet = frame(if round % 2 == 0 { b"vCont;s" } else { b"vCont;c" });
            stream.write_all(&[frame(b"qSupported"), packet.repeat(1 + round % 3)].concat()).unwrap();
        }
        let mut client = Client::new(&setting.path);
        assert_eq!(client.ask(&format!("Z0,{:x},4", setting.code.1)), "OK", "{isa} {how:?}");
        let stop = client.ask("vCont;c");
        assert!(stop.contains("swbreak"), "{isa} {how:?}: {stop}");
    }
}

/// One that has gone is not yet let go where a vCPU has to stand still for that: whoever comes next waits, and is not
/// told that another debugger is attached.
#[test]
fn whoever_comes_behind_one_that_has_gone_waits_for_its_end() {
    for isa in Isa::ALL {
        let mut setting = Setting::new((isa, How::Loop), 2);
        let mut client = setting.attach();
        client.send("vCont;c");
        setting.expect_running(1);
        let (go_on, goes_on) = channel::<()>();
        setting.vcpus.monitor().post(1, Box::new(move |_, _| goes_on.recv().unwrap_or(())));
        client.stream.write_all(&[3]).unwrap();
        drop(client);
        let mut next = UnixStream::connect(&setting.path).unwrap();
        next.write_all(&frame(b"qSupported")).unwrap();
        let mut answer = [0; 4096];
        // By then it would have been refused.
        next.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let early = next.read(&mut answer);
        assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock, "{isa}: nobody stands still yet");
        go_on.send(()).unwrap();
        next.set_read_timeout(Some(LIMIT)).unwrap();
        let count = next.read(&mut answer).unwrap();
        assert!(answer[..count].starts_with(b"+$PacketSize="), "{isa}: {}", answer[..count].escape_ascii());
    }
}

/// Interrupts of a guest that stands still are kept for when it runs, without anybody's waiting.
#[test]
fn interrupts_come_before_what_they_interrupt() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        assert!(client.ask("vCont;s:p1.1").starts_with("T05"), "{isa} {how:?}");
        for round in 0..50 {
            client.stream.write_all(&[3, 3]).unwrap();
            let stop = client.ask("vCont;c");
            assert!(stop.starts_with("T02"), "{isa} {how:?} {round}: {stop}");
        }
    }
}

/// Two debuggers of one guest would not know of each other's planted instructions: the second is refused, until the
/// first has left.
#[test]
fn a_guest_has_one_debugger() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let target = |vcpus| Target {
            engine: Arc::new(Engine::new(isa, host(), vcpus)),
            memory: Box::new(setting.vcpus.monitor().ram.clone()),
        };
        let refused = Debugger::join(&setting.vcpus, target(2), true).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{isa} {how:?}: {refused}");
        // The first has lost nothing.
        assert_eq!(client.ask(&format!("Z0,{:x},4", setting.code.1)), "OK");
        assert!(client.ask("vCont;c").contains("swbreak"), "{isa} {how:?}");
        setting.debugger.take().unwrap().leave();
        // One that was made for another guest would take the stops of some vCPUs for nobody's.
        let refused = Debugger::join(&setting.vcpus, target(1), true).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{isa} {how:?}: {refused}");
        assert!(setting.vcpus.link().is_none());
        let (debugger, _machine) = Debugger::join(&setting.vcpus, target(2), true).unwrap();
        debugger.leave();
    }
}

/// What a vCPU tells behind the last look of an event loop is for the next one: to take it at once would be to wait for
/// the others to stand still.
#[test]
fn a_stop_behind_the_last_look_is_for_the_next() {
    use crate::machine::{Event, Machine, Order, StopReason};
    let setting = Setting::new((Isa::X86_64, How::Loop), 2);
    let (mut machine, link) = machine_of(&setting, Waiting::Never);
    assert!(!machine.has_stopped());
    let registers = arch::register::RegisterFile::new(setting.isa);
    link.tell(Event::Stopped { vcpu: 1, reason: StopReason::Step, registers });
    assert!(machine.next_event().is_none(), "vCPU 0 runs, and would have to be waited for");
    assert!(machine.has_stopped());
    assert!(machine.next_event().is_some());
    let orders: Vec<Order> = Vec::new();
    machine.resume(orders).unwrap();
    drop(machine);
    setting.vcpus.detach(&link);
}

/// A stop that nobody has asked for before the vCPU was let run again says nothing of what that does then: it is told
/// to stand still as others are.
#[test]
fn a_stop_of_before_says_nothing_of_a_vcpu_that_runs_again() {
    use crate::machine::{Action, Event, Machine, Order, StopReason};
    for isa in Isa::ALL {
        for waiting in [Waiting::Asleep, Waiting::Never] {
            let setting = Setting::new((isa, How::Loop), 2);
            let (mut machine, link) = machine_of(&setting, waiting);
            let stand_still = |machine: &mut LiveMachine<Simulated>| {
                let begin = Instant::now();
                while machine.prepare(Extent::Near).is_pending() {
                    assert!(begin.elapsed() < LIMIT, "they do not stand still");
                    thread::yield_now();
                }
                machine.pause();
            };
            stand_still(&mut machine);
            let registers = arch::register::RegisterFile::new(isa);
            link.tell(Event::Stopped { vcpu: 1, reason: StopReason::Step, registers });
            let run = Order { action: Action::Run, arming: Arming::off(isa), steps_off: false };
            machine.resume(vec![run; 2]).unwrap();
            // Both are known to be in the guest before the stop is asked for.
            setting.expect_running(0);
            setting.expect_running(1);
            assert!(
                matches!(machine.next_event(), Some(Event::Stopped { vcpu: 1, .. })),
                "{isa} {waiting:?}"
            );
            stand_still(&mut machine);
            let before = setting.stored(1);
            for _ in 0..1000 {
                thread::yield_now();
            }
            assert_eq!(setting.stored(1), before, "{isa} {waiting:?}: it runs on");
            drop(machine);
            setting.vcpus.detach(&link);
        }
    }
}

/// Words to a debugger's user, who may not know who wrote the debugger, begin with the monitor's name. One who is
/// refused is told of no way to get in that this monitor has not.
#[test]
fn words_to_a_user_are_the_monitors() {
    for name in [None, Some("another monitor")] {
        let setting = Setting::new((Isa::X86_64, How::Thread), 1);
        let listener = ListeningSocket::bind(&Endpoint::Unix(setting.path.clone()), Audience::Owner).unwrap();
        let engine = Arc::new(Engine::new(setting.isa, host(), 1));
        let target = Target { engine, memory: Box::new(setting.vcpus.monitor().ram.clone()) };
        let mut with = options();
        if let Some(name) = name {
            (with.name, with.how_to_release) = (name.into(), Some("ask its owner".into()));
        }
        let debugger = Debugger::attach(&setting.vcpus, target, listener, with).unwrap();
        let mut client = Client::new(&setting.path);
        assert_eq!(client.ask(&format!("M{:x},2:0f0b", setting.code.1)), "OK");
        client.send("vCont;c");
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains("$T0") {
            let mut piece = [0; 256];
            let count = client.stream.read(&mut piece).unwrap();
            bytes.extend_from_slice(&piece[..count]);
        }
        let told = String::from_utf8_lossy(&bytes).into_owned();
        let told = told.split(['$', '#']).find_map(|packet| packet.strip_prefix('O')).unwrap();
        let told = String::from_utf8(crate::gdb::packet::from_hex(told.as_bytes()).unwrap()).unwrap();
        assert!(told.starts_with(&format!("{}: vCPU 0: ", name.unwrap_or("guest-debug"))), "{told}");
        let mut second = UnixStream::connect(&setting.path).unwrap();
        second.set_read_timeout(Some(LIMIT)).unwrap();
        second.write_all(&frame(b"qSupported:error-message+")).unwrap();
        let mut answer = String::new();
        second.read_to_string(&mut answer).ok();
        assert!(answer.contains("another debugger is attached"), "{answer}");
        assert_eq!(answer.contains("; ask its owner"), name.is_some(), "{answer}");
        assert!(!answer.contains("vmm"), "{answer}");
        debugger.leave();
    }
}

/// What a monitor does for the debugger is done on the debugger's thread: it may have the debugger leave, or drop it.
#[test]
fn a_debugger_is_told_to_leave_on_its_own_thread() {
    use std::sync::OnceLock;
    for drops in [false, true] {
        let setting = Setting::new((Isa::X86_64, How::Thread), 1);
        let listener = ListeningSocket::bind(&Endpoint::Unix(setting.path.clone()), Audience::Owner).unwrap();
        let engine = Arc::new(Engine::new(setting.isa, host(), 1));
        let target = Target { engine, memory: Box::new(setting.vcpus.monitor().ram.clone()) };
        let debugger: Arc<OnceLock<Mutex<Option<Debugger<Simulated>>>>> = Arc::default();
        let (its_debugger, (left, leaves)) = (Arc::clone(&debugger), channel());
        let admission = Admission::new(move |_| {
            let mut debugger = its_debugger.wait().lock().unwrap();
            debugger.as_ref().unwrap().leave();
            if drops {
                *debugger = None;
            }
            left.send(()).unwrap();
            Ok(())
        });
        let attached = Debugger::attach(&setting.vcpus, target, listener, Options::new(admission)).unwrap();
        debugger.set(Mutex::new(Some(attached))).unwrap();
        let mut stream = UnixStream::connect(&setting.path).unwrap();
        leaves.recv_timeout(LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the server has ended");
        setting.expect_running(0);
        assert!(setting.vcpus.link().is_none());
    }
}

/// A vCPU's thread that has panicked is one whose vCPU nobody can ask: the debugger goes on with the others, and leaves.
#[test]
fn a_vcpus_thread_that_has_ended_holds_up_nobody() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let store = setting.code.1;
        assert_eq!(setting.vcpus.call(0, |_| panic!("as a monitor's defect would have it")), None::<()>);
        assert!(client.ask("?").starts_with("T05"), "{isa} {how:?}");
        // What it had said of itself before is known still.
        let registers = client.ask("g");
        assert!(registers.starts_with('E') || how == How::Loop, "{isa} {how:?}: {registers}");
        assert!(client.ask(&format!("P0={:016x}", 1)).starts_with('E'), "{isa} {how:?}");
        assert_eq!(client.ask("Hgp1.2"), "OK");
        assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK", "{isa} {how:?}");
        let stop = client.ask("vCont;c");
        assert!(stop.contains("swbreak") && stop.contains("thread:p01.02"), "{isa} {how:?}: {stop}");
        client.send("vCont;c:p1.1");
        client.stream.write_all(&[3]).unwrap();
        let stop = client.reply();
        assert!(stop.starts_with("T02"), "{isa} {how:?}: {stop}");
        setting.debugger.take().unwrap().leave();
        assert!(client.is_closed());
        assert_eq!(setting.memory_of_code(), setting.code.0, "{isa} {how:?}");
        setting.expect_running(1);
    }
}
