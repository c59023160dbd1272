//! Who may be in the guest: all vCPUs, or one of them for the length of a step.
//!
//! Each vCPU's thread takes a [`Pass`] before it enters the guest and drops it when it has left it. One that wants
//! to be the only one ([`Gate::begin_exclusive`]) says so, has those that are inside kicked, and waits until they are
//! out; others wait at the gate. No lock is held while a guest runs, and none is taken to enter or leave it while
//! nobody wants to be the only one.
//!
//! # Why none slips in
//! A thread writes that it is inside and then reads who is exclusive; one that wants to be that writes it and then
//! reads who is inside. With a sequentially consistent fence between the two on each side, at least one of them sees
//! the other, and it is the thread at the gate that goes back.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that is out of reach of one kick gets another after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// For how long one vCPU may keep the others out. A step takes microseconds; one that has not ended after
/// this time will not, and the guest is not to stand still for it.
const LONGEST: Duration = Duration::from_millis(100);
/// Nobody is exclusive.
const NOBODY: u64 = u64::MAX;

/// Gets the vCPU of this number out of the guest, whichever thread calls it. A kick of one that is outside may
/// be lost, and may make the next entry end at once.
pub type Kick = Box<dyn Fn(u32) + Send + Sync>;

/// The gate to one guest.
pub struct Gate {
    /// The vCPU that is exclusive. Changes under `queue`.
    exclusive: AtomicU64,
    /// It has been for too long. Changes under `queue`.
    is_overdue: AtomicBool,
    queue: Mutex<Queue>,
    changed: Condvar,
    is_inside: Vec<AtomicBool>,
    kick: Kick,
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gate { exclusive, is_overdue, is_inside, .. } = self;
        let mut debug = formatter.debug_struct("Gate");
        debug.field("exclusive", exclusive).field("is_overdue", is_overdue).field("is_inside", is_inside);
        debug.finish_non_exhaustive()
    }
}

/// Whose turn it is. Two vCPUs that meet a breakpoint again and again each get past it: who wants to be exclusive
/// is so in the order of asking, and between two of them those who wait for that enter the guest.
#[derive(Debug, Default)]
struct Queue {
    /// The ticket that the next one to ask for it takes...
    next: u64,
    /// ...and that of the one whose turn it is.
    served: u64,
    /// How many wait to enter the guest.
    entering: u32,
}

/// Leave to be in the guest, until it is dropped.
#[derive(Debug)]
pub struct Pass<'a>(Option<(&'a Gate, u32)>);

impl Pass<'_> {
    /// Where nobody can keep others out: there is no debugger, or this vCPU itself is exclusive.
    pub fn unguarded() -> Pass<'static> {
        Pass(None)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some((gate, vcpu)) = self.0 {
            gate.leave(vcpu);
        }
    }
}

impl Gate {
    /// For this many vCPUs, all of them outside.
    pub fn new(vcpus: u32, kick: Kick) -> Gate {
        Gate {
            exclusive: AtomicU64::new(NOBODY),
            is_overdue: AtomicBool::new(false),
            queue: Mutex::default(),
            changed: Condvar::new(),
            is_inside: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            kick,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        let waited = self.changed.wait_timeout(queue, KICK_AGAIN);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn may_enter(&self, vcpu: u32) -> bool {
        let exclusive = self.exclusive.load(Ordering::SeqCst);
        exclusive == NOBODY || exclusive == u64::from(vcpu)
    }

    /// Called by a vCPU's thread before it enters the guest: waits while another one is exclusive.
    pub fn enter(&self, vcpu: u32) -> Pass<'_> {
        let is_inside = &self.is_inside[vcpu as usize];
        is_inside.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.may_enter(vcpu) {
            return Pass(Some((self, vcpu)));
        }
        self.leave(vcpu);
        let mut queue = self.lock();
        queue.entering += 1;
        let mut deadline = Instant::now() + LONGEST;
        while !self.may_enter(vcpu) {
            queue = self.wait(queue);
            if Instant::now() >= deadline {
                self.hurry();
                deadline += LONGEST;
            }
        }
        // Nobody becomes exclusive while this is locked.
        is_inside.store(true, Ordering::SeqCst);
        queue.entering -= 1;
        drop(queue);
        self.changed.notify_all();
        Pass(Some((self, vcpu)))
    }

    /// Has whoever is exclusive give up. Called under `queue`.
    fn hurry(&self) {
        self.is_overdue.store(true, Ordering::Release);
        if let Ok(vcpu) = u32::try_from(self.exclusive.load(Ordering::SeqCst)) {
            (self.kick)(vcpu);
        }
    }

    /// Whether the vCPU that is exclusive has been for too long, and others wait.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue.load(Ordering::Acquire)
    }

    fn leave(&self, vcpu: u32) {
        self.is_inside[vcpu as usize].store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.exclusive.load(Ordering::Relaxed) != NOBODY {
            // Whoever is waiting has the lock until it waits.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Called by a vCPU's thread outside the guest: returns when it is exclusive. Another one that wants the same
    /// waits for its turn.
    pub fn begin_exclusive(&self, vcpu: u32) {
        let mut queue = self.lock();
        let ticket = queue.next;
        queue.next += 1;
        let mut deadline = Instant::now() + LONGEST;
        while self.exclusive.load(Ordering::SeqCst) != NOBODY || queue.served != ticket || queue.entering > 0
        {
            queue = self.wait(queue);
            if Instant::now() >= deadline {
                self.hurry();
                deadline += LONGEST;
            }
        }
        self.is_overdue.store(false, Ordering::Release);
        self.exclusive.store(u64::from(vcpu), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        loop {
            let mut is_alone = true;
            for (other, _) in (0..).zip(&self.is_inside).filter(|(_, it)| it.load(Ordering::Acquire)) {
                is_alone = false;
                (self.kick)(other);
            }
            if is_alone {
                return;
            }
            queue = self.wait(queue);
        }
    }

    /// Lets the others in again.
    pub fn end_exclusive(&self) {
        let mut queue = self.lock();
        queue.served += 1;
        self.exclusive.store(NOBODY, Ordering::SeqCst);
        self.is_overdue.store(false, Ordering::Release);
        drop(queue);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    /// Kicks threads that look whether they have been.
    fn gate(vcpus: u32) -> (Arc<Gate>, Arc<Vec<AtomicBool>>) {
        let kicked: Arc<Vec<AtomicBool>> = Arc::new((0..vcpus).map(|_| AtomicBool::new(false)).collect());
        let theirs = Arc::clone(&kicked);
        let kick = move |vcpu: u32| theirs[vcpu as usize].store(true, Ordering::SeqCst);
        (Arc::new(Gate::new(vcpus, Box::new(kick))), kicked)
    }

    /// One that is exclusive and does not come to its end is told so, when another waits.
    #[test]
    fn nobody_is_exclusive_for_ever() {
        let (gate, kicked) = gate(2);
        let entered = Arc::new(AtomicU32::new(0));
        gate.begin_exclusive(0);
        let (their_gate, their_entered) = (Arc::clone(&gate), Arc::clone(&entered));
        let other = thread::spawn(move || {
            let _pass = their_gate.enter(1);
            their_entered.store(1, Ordering::SeqCst);
        });
        let begin = Instant::now();
        while !gate.is_overdue() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it is exclusive for ever");
            assert_eq!(entered.load(Ordering::SeqCst), 0);
            thread::park_timeout(Duration::from_millis(1));
        }
        assert!(begin.elapsed() >= LONGEST);
        gate.end_exclusive();
        other.join().unwrap();
        assert_eq!(entered.load(Ordering::SeqCst), 1);
        assert!(kicked[0].load(Ordering::SeqCst) && !kicked[1].load(Ordering::SeqCst));
        // The next one begins anew.
        gate.begin_exclusive(0);
        assert!(!gate.is_overdue());
        gate.end_exclusive();
    }

    /// Two that want to be exclusive all the time take turns, and a third one gets in between.
    #[test]
    fn everybody_has_a_turn() {
        const ROUNDS: u32 = 50;
        let (gate, _) = gate(3);
        let turns: Arc<[AtomicU32; 2]> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let greedy: Vec<_> = (0..2)
            .map(|vcpu| {
                let (gate, turns, is_over) = (Arc::clone(&gate), Arc::clone(&turns), Arc::clone(&is_over));
                thread::spawn(move || {
                    while !is_over.load(Ordering::SeqCst) {
                        gate.begin_exclusive(vcpu);
                        turns[vcpu as usize].fetch_add(1, Ordering::SeqCst);
                        gate.end_exclusive();
                    }
                })
            })
            .collect();
        let (begin, mut entered) = (Instant::now(), 0);
        while entered < ROUNDS || turns.iter().any(|turns| turns.load(Ordering::SeqCst) < ROUNDS) {
            drop(gate.enter(2));
            entered += 1;
            assert!(begin.elapsed() < Duration::from_secs(60), "{entered}, {turns:?}");
        }
        is_over.store(true, Ordering::SeqCst);
        greedy.into_iter().for_each(|thread| thread.join().unwrap());
    }

    /// Three threads enter and leave, and want to be the only one now and then: then they are.
    #[test]
    fn who_is_exclusive_is_the_only_one() {
        const ROUNDS: u32 = 2000;
        let (gate, kicked) = gate(3);
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..3)
            .map(|vcpu| {
                let (gate, kicked, inside) = (Arc::clone(&gate), Arc::clone(&kicked), Arc::clone(&inside));
                thread::spawn(move || {
                    for round in 0..ROUNDS {
                        if round % 7 == vcpu {
                            gate.begin_exclusive(vcpu);
                            assert_eq!(inside.load(Ordering::SeqCst), 0);
                            gate.end_exclusive();
                            continue;
                        }
                        let pass = gate.enter(vcpu);
                        inside.fetch_add(1, Ordering::SeqCst);
                        // A guest that runs until it is kicked, or a while.
                        for _ in 0..20 {
                            if kicked[vcpu as usize].swap(false, Ordering::SeqCst) {
                                break;
                            }
                            thread::yield_now();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
