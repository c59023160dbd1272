//! Holding and asking vCPUs, on threads whose guests run until they are kicked.

use super::*;
use crate::engine::Engine;
use crate::fake::{FakeVcpu, Ram, host};
use crate::live::runner::{Exit, Turn};
use crate::live::times::Times;
use arch::Isa;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

/// One thread of a monitor's.
struct Thread {
    inbox: Sender<Task<FakeVcpu>>,
    is_kicked: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// A monitor whose guests do nothing; it counts who is in them, and when time was to stand still and to go on.
struct Threads {
    threads: Vec<Thread>,
    inside: Arc<AtomicU32>,
    stood: AtomicU32,
    went_on: AtomicU32,
    /// Whether who holds the guest for long is kept at that, and has come to it.
    keeps: AtomicBool,
    is_kept: AtomicBool,
    /// In which of its parts it panics, once.
    panics_in: Mutex<Vec<&'static str>>,
}

impl Threads {
    fn new(vcpus: u32) -> Threads {
        let inside = Arc::new(AtomicU32::new(0));
        let threads = (0..vcpus).map(|_| Threads::spawn(&inside)).collect();
        let (stood, went_on) = (AtomicU32::new(0), AtomicU32::new(0));
        let (keeps, is_kept) = (AtomicBool::new(false), AtomicBool::new(false));
        Threads { threads, inside, stood, went_on, keeps, is_kept, panics_in: Mutex::default() }
    }

    fn may_panic(&self, place: &str) {
        let mut panics_in = self.panics_in.lock().unwrap();
        let panics = panics_in.iter().position(|its| *its == place).map(|at| panics_in.remove(at));
        drop(panics_in);
        assert_eq!(panics, None, "a monitor's own");
    }

    fn spawn(inside: &Arc<AtomicU32>) -> Thread {
        let (inbox, tasks): (_, Receiver<Task<FakeVcpu>>) = channel();
        let is_kicked = Arc::new(AtomicBool::new(false));
        let (its_kick, inside) = (Arc::clone(&is_kicked), Arc::clone(inside));
        let handle = thread::spawn(move || {
            let mut vcpu = FakeVcpu::new(Isa::X86_64);
            let mut runner = Runner::new(Isa::X86_64, Arc::new(Times::default()));
            loop {
                its_kick.store(false, Ordering::SeqCst);
                while !runner.is_retired() {
                    let task = if runner.may_run() { tasks.try_recv().ok() } else { tasks.recv().ok() };
                    match task {
                        Some(task) => task(&mut runner, &mut vcpu),
                        None if runner.may_run() => break,
                        None => return,
                    }
                }
                if runner.is_retired() {
                    return;
                }
                runner.run(&mut vcpu, &mut |_, turn: Turn<'_>| {
                    let (_inside, _) = turn.enter();
                    inside.fetch_add(1, Ordering::SeqCst);
                    while !its_kick.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    Exit::Interrupted
                });
            }
        });
        Thread { inbox, is_kicked, handle: Some(handle) }
    }
}

impl Monitor for Threads {
    type Vcpu = FakeVcpu;

    fn vcpus(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap()
    }

    fn post(&self, vcpu: u32, task: Task<FakeVcpu>) {
        self.threads[vcpu as usize].inbox.send(task).ok();
        self.kick(vcpu);
    }

    fn kick(&self, vcpu: u32) {
        self.threads[vcpu as usize].is_kicked.store(true, Ordering::SeqCst);
    }

    fn kick_among_vcpus(&self) -> Kick {
        let kicks: Vec<_> = self.threads.iter().map(|thread| Arc::clone(&thread.is_kicked)).collect();
        Box::new(move |vcpu| kicks[vcpu as usize].store(true, Ordering::SeqCst))
    }

    fn quit(&self) {}

    fn stands_still(&self, vcpus: &Vcpus<Threads>) {
        self.may_panic("stands_still");
        assert_eq!(self.inside.load(Ordering::SeqCst), 0, "somebody is in the guest still");
        // Vcpus can be asked from here.
        assert_eq!(vcpus.for_each(|vcpu| vcpu.file.pc()).len(), self.threads.len());
        self.stood.fetch_add(1, Ordering::SeqCst);
    }

    fn stays(&self, _: &Vcpus<Threads>) {
        self.may_panic("stays");
        while self.keeps.load(Ordering::SeqCst) {
            self.is_kept.store(true, Ordering::SeqCst);
            thread::yield_now();
        }
    }

    fn goes_on(&self, _: &Vcpus<Threads>) {
        self.may_panic("goes_on");
        assert_eq!(self.inside.load(Ordering::SeqCst), 0, "somebody is in the guest already");
        self.went_on.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            // The inbox goes, and with it the thread.
            let (inbox, _) = channel();
            thread.inbox = inbox;
            thread.is_kicked.store(true, Ordering::SeqCst);
        }
        for thread in &mut self.threads {
            let handle = thread.handle.take().unwrap();
            while !handle.is_finished() {
                thread.is_kicked.store(true, Ordering::SeqCst);
                thread::yield_now();
            }
            handle.join().unwrap();
        }
    }
}

/// Waits until all are in the guest.
fn all_run(vcpus: &Vcpus<Threads>) {
    let begin = Instant::now();
    while vcpus.monitor().inside.load(Ordering::SeqCst) < vcpus.count() {
        assert!(begin.elapsed() < Duration::from_secs(60), "somebody does not run");
        thread::yield_now();
    }
}

/// Stops them before they end: one that runs has no reason to look.
fn over(vcpus: &Arc<Vcpus<Threads>>) {
    drop(vcpus.pause(|_| true));
}

#[test]
fn who_holds_the_guest_holds_all_of_it() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(3)));
    vcpus.resume();
    let inside = || vcpus.monitor().inside.load(Ordering::SeqCst);
    for _ in 0..50 {
        let first = vcpus.hold();
        assert_eq!(inside(), 0);
        let second = vcpus.hold();
        drop(first);
        assert_eq!(inside(), 0);
        assert_eq!(second.vcpus().for_each(|vcpu| vcpu.file.pc()), [Some(0); 3]);
        drop(second);
        // They do what they did.
        all_run(&vcpus);
    }
    let count = |which: &AtomicU32| which.load(Ordering::SeqCst);
    assert_eq!((count(&vcpus.monitor().stood), count(&vcpus.monitor().went_on)), (50, 50));
    over(&vcpus);
}

#[test]
fn two_who_hold_and_ask_do_not_wait_for_each_other() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
    vcpus.resume();
    let holders: Vec<_> = (0..2u64)
        .map(|holder| {
            let vcpus = Arc::clone(&vcpus);
            thread::spawn(move || {
                for round in 0..100 {
                    let _hold = vcpus.hold();
                    assert_eq!(vcpus.monitor().inside.load(Ordering::SeqCst), 0);
                    vcpus.call(1, move |vcpu| vcpu.set_pc(holder * 1000 + round)).unwrap();
                }
            })
        })
        .collect();
    for holder in holders {
        holder.join().unwrap();
    }
    assert!(vcpus.call(1, |vcpu| vcpu.file.pc()).flatten().is_some_and(|pc| [99, 1099].contains(&pc)));
    assert_eq!(vcpus.call(2, |vcpu| vcpu.file.pc()), None, "there is no such vCPU");
    over(&vcpus);
}

#[test]
fn a_pause_stops_those_that_may_run() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
    vcpus.resume();
    let hold = vcpus.pause(|_| true);
    drop(hold);
    // Nobody told them to go on.
    vcpus.post_each(|vcpu| vcpu.set_pc(5));
    assert_eq!(vcpus.for_each(|vcpu| vcpu.file.pc()), [Some(5); 2]);
    assert_eq!(vcpus.monitor().inside.load(Ordering::SeqCst), 0);
    // Those that stand still need not be told.
    drop(vcpus.pause(|_| false));
    assert_eq!(vcpus.monitor().stood.load(Ordering::SeqCst), 2);
}

/// As whoever serves a debugger in an event loop, where another thread holds the guest.
#[test]
fn who_must_not_wait_is_not_kept_by_anothers_turn() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
    vcpus.resume();
    let monitor = vcpus.monitor();
    let went_on = || monitor.went_on.load(Ordering::SeqCst);
    for round in 1..=20 {
        let ours = vcpus.pause(|_| true);
        monitor.is_kept.store(false, Ordering::SeqCst);
        monitor.keeps.store(true, Ordering::SeqCst);
        let its = Arc::clone(&vcpus);
        let other = thread::spawn(move || drop(its.hold()));
        while !monitor.is_kept.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        assert!(vcpus.is_held());
        assert!(Hold::try_of_paused(&vcpus).is_none());
        assert_eq!(ours.settle(), Some(KICK_AGAIN));
        ours.stays_soon();
        let (tell, told) = channel();
        ours.let_go(move |vcpus| {
            vcpus.resume();
            tell.send(()).unwrap();
        });
        // It is done by the other, behind what keeps that.
        assert_eq!((told.try_recv(), went_on()), (Err(TryRecvError::Empty), round - 1));
        monitor.keeps.store(false, Ordering::SeqCst);
        told.recv().unwrap();
        other.join().unwrap();
        assert_eq!((vcpus.is_held(), went_on()), (false, round));
    }
    // Where nobody has the turn, at once.
    let ours = vcpus.pause(|_| true);
    let is_done = Arc::new(AtomicBool::new(false));
    let its = Arc::clone(&is_done);
    ours.let_go(move |_| its.store(true, Ordering::SeqCst));
    assert!(is_done.load(Ordering::SeqCst) && !vcpus.is_held());
}

/// An order that is left for another's turn, and a pause behind it: the vCPUs stand still, and stay so.
#[test]
fn a_pause_does_not_overtake_what_was_left_before() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
    vcpus.resume();
    let monitor = vcpus.monitor();
    let wake = || Wake::new().unwrap();
    let kick = monitor.kick_among_vcpus();
    let engine = Arc::new(Engine::new(Isa::X86_64, host(), 2));
    let (link, _events) = Link::new(engine, 2, Box::new(Ram::new(4096)), kick, (wake(), wake()));
    let link = Arc::new(link);
    vcpus.attach(&link).unwrap();
    for _ in 0..20 {
        let ours = vcpus.pause(|_| true);
        monitor.is_kept.store(false, Ordering::SeqCst);
        monitor.keeps.store(true, Ordering::SeqCst);
        let its = Arc::clone(&vcpus);
        let other = thread::spawn(move || drop(its.hold()));
        while !monitor.is_kept.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        ours.let_go(|vcpus| vcpus.resume());
        let mut pausing = vcpus.begin_pause(&link, |_| true, link.wake());
        assert!(pausing.look().is_none());
        monitor.keeps.store(false, Ordering::SeqCst);
        let hold = loop {
            if let Some(hold) = pausing.look() {
                break hold;
            }
            thread::yield_now();
        };
        other.join().unwrap();
        for _ in 0..100 {
            assert_eq!(monitor.inside.load(Ordering::SeqCst), 0, "somebody runs who was told to pause");
            thread::yield_now();
        }
        // Nobody else lets them run: not within that hold, nor behind it.
        vcpus.resume();
        hold.let_go(|vcpus| vcpus.resume());
        assert_eq!(vcpus.for_each(|_| ()).len(), 2);
        assert_eq!(monitor.inside.load(Ordering::SeqCst), 0);
        vcpus.give_back(&link, None);
        all_run(&vcpus);
    }
    over(&vcpus);
}

/// The vCPUs of a monitor that panics in its part go on when nobody holds them.
#[test]
fn a_monitor_that_panics_leaves_nobody_held() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
    vcpus.resume();
    let monitor = vcpus.monitor();
    for places in [&["stands_still"][..], &["stays"], &["goes_on"], &["stays", "goes_on"]] {
        *monitor.panics_in.lock().unwrap() = places.to_vec();
        let held = catch_unwind(AssertUnwindSafe(|| drop(vcpus.hold())));
        assert!(held.is_err() && !vcpus.is_held(), "{places:?}");
        assert!(monitor.panics_in.lock().unwrap().is_empty(), "{places:?}");
        all_run(&vcpus);
    }
    over(&vcpus);
}

/// One that does nothing else is in nobody's way.
#[test]
fn what_a_monitor_panics_in_is_its_own() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(1)));
    let (tell, told) = channel();
    vcpus.behind_those_gone(|_| panic!("a monitor's"));
    vcpus.behind_those_gone(move |_| tell.send(()).unwrap());
    assert_eq!(told.try_recv(), Ok(()));
    assert!(!vcpus.is_held());
    over(&vcpus);
}

/// Turns of many threads, half of which wait for none: nobody is forgotten.
#[test]
fn what_is_left_for_a_turn_is_done() {
    let vcpus = Arc::new(Vcpus::new(Threads::new(1)));
    let threads: Vec<_> = (0..4u32)
        .map(|which| {
            let vcpus = Arc::clone(&vcpus);
            thread::spawn(move || {
                for _ in 0..200 {
                    let hold = vcpus.hold();
                    if which % 2 == 0 {
                        hold.stays();
                        hold.let_go(|_| {});
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let count = |which: &AtomicU32| which.load(Ordering::SeqCst);
    assert!(!vcpus.is_held());
    assert_eq!(count(&vcpus.monitor().stood), count(&vcpus.monitor().went_on));
    over(&vcpus);
}

/// Also by one of the threads themselves, while others run, and when they have ended.
#[test]
fn all_threads_end_for_who_does_not_wait_for_them() {
    for runs in [false, true] {
        let vcpus = Arc::new(Vcpus::new(Threads::new(2)));
        if runs {
            vcpus.resume();
        }
        let its = Arc::clone(&vcpus);
        vcpus.monitor().post(1, Box::new(move |_, _| its.retire()));
        let has_ended = |thread: &Thread| thread.handle.as_ref().is_none_or(thread::JoinHandle::is_finished);
        while !vcpus.monitor().threads.iter().all(has_ended) {
            thread::yield_now();
        }
        vcpus.retire();
        assert_eq!(vcpus.call(0, |vcpu| vcpu.file.pc()), None);
    }
}
