//! A vCPU's thread: it goes round, does what others have left for it to do, and runs its guest.
//!
//! Others leave a [`Task`] by a [`Post`], and kick the vCPU out of the guest where the thread may not look by itself.
//! The thread has the [`Inbox`], and lives in [`Inbox::live`] until it is told to end ([`Runner::retire`]), or nobody
//! is left who could post anything. One that does something else beside, as an event loop does, looks into it by
//! [`Inbox::look`].

use super::attention::Attention;
use super::runner::{Exit, Next, Runner, Turn};
use super::vcpus::Task;
use crate::patience::{self, Patience};
use crate::vcpu::Vcpu;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// What a vCPU's thread does for its monitor.
pub trait Serve<V: Vcpu> {
    /// Enters the guest for a turn, and serves what it wants. With no lock held that another vCPU's thread takes while
    /// it is in the guest.
    fn enter(&mut self, vcpu: &mut V, turn: Turn<'_>) -> Exit;

    /// Does what the runner has come to. As it is, a guest that cannot go on stands still, and its debugger may look at
    /// it before that is its [end](Self::ended).
    fn deal_with(&mut self, next: Next, runner: &mut Runner, vcpu: &V) {
        let why = match next {
            Next::Look => return,
            Next::End(why) => return self.ended(vcpu, why),
            Next::Unowned(trap) => format!("nobody asked for {trap:?}"),
            Next::Failed(why) => why,
        };
        if let Next::End(why) = runner.end(vcpu, Some(why)) {
            self.ended(vcpu, why);
        }
    }

    /// The guest is over, and a debugger that wanted to look at it has done so: once for the vCPU that it has come to
    /// its end on. `why` it could not go on, in words; `None` where it ended by itself. As it is, nobody is told: a
    /// debugger that has let it run waits for what comes next until it is told of the end
    /// ([`Link::tell`](super::link::Link::tell), [`Event::Ended`](crate::machine::Event::Ended)).
    ///
    /// This is on the vCPU's own thread, which others may be waiting for: it neither waits for vCPUs, nor drops the
    /// debugger.
    fn ended(&mut self, _vcpu: &V, _why: Option<String>) {}
}

/// Whether a thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// It does.
    GoesOn,
    /// It was told to end, or nobody can post anything any more.
    Ends,
}

/// Where tasks for one vCPU's thread are left. Its clones are the same.
pub struct Post<V> {
    tasks: Sender<Task<V>>,
    /// The thread looks for tasks outside the guest, and needs no kick to see one.
    attention: Arc<Attention>,
}

impl<V> Clone for Post<V> {
    fn clone(&self) -> Post<V> {
        Post { tasks: self.tasks.clone(), attention: Arc::clone(&self.attention) }
    }
}

impl<V> fmt::Debug for Post<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Post").field("attention", &self.attention).finish_non_exhaustive()
    }
}

impl<V> Post<V> {
    /// Leaves a task; whether the thread is to be kicked, as it may be in the guest. A task for a thread that has ended
    /// is dropped.
    #[must_use = "a vCPU that is in the guest sees it only when it is kicked"]
    pub fn leave(&self, task: Task<V>) -> bool {
        self.tasks.send(task).is_ok() && !self.attention.is_there()
    }
}

/// A vCPU's thread's end of what is posted to it.
pub struct Inbox<V> {
    /// None when the thread was told to end.
    tasks: Option<Receiver<Task<V>>>,
    attention: Arc<Attention>,
    patience: Patience,
}

impl<V> fmt::Debug for Inbox<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Inbox").field("attention", &self.attention).finish_non_exhaustive()
    }
}

/// Both ends of what is posted to one vCPU's thread.
pub fn inbox<V>() -> (Post<V>, Inbox<V>) {
    // Files are read for that, which the thread itself may not be allowed to.
    patience::has_processors();
    let ((sender, tasks), attention) = (channel(), Arc::new(Attention::default()));
    (
        Post { tasks: sender, attention: Arc::clone(&attention) },
        Inbox { tasks: Some(tasks), attention, patience: Patience::default() },
    )
}

impl<V: Vcpu> Inbox<V> {
    /// The thread's life, once kicks reach its vCPU.
    pub fn live(&mut self, runner: &mut Runner, vcpu: &mut V, server: &mut impl Serve<V>) {
        while self.look(true, runner, vcpu, server) == Round::GoesOn {
            Inbox::run(runner, vcpu, server);
        }
    }

    /// Does what is posted; `waits`: until the vCPU is to run, asleep. To be called before each entry to the guest: a
    /// kick that comes behind this look ends that at once.
    pub fn look(
        &mut self,
        waits: bool,
        runner: &mut Runner,
        vcpu: &mut V,
        server: &mut impl Serve<V>,
    ) -> Round {
        vcpu.clear_kick();
        self.attention.begin();
        while let Some(tasks) = self.tasks.as_ref().filter(|_| !runner.is_retired()) {
            let task = match tasks.try_recv() {
                Ok(task) => task,
                Err(TryRecvError::Disconnected) => return Round::Ends,
                Err(TryRecvError::Empty) if runner.may_run() || !waits => match self.last_task(tasks) {
                    Ok(task) => task,
                    Err(TryRecvError::Disconnected) => return Round::Ends,
                    Err(TryRecvError::Empty) => return Round::GoesOn,
                },
                Err(TryRecvError::Empty) => {
                    runner.leave();
                    let Some(task) = self.wait(tasks, runner.take_look()) else { return Round::Ends };
                    task
                }
            };
            // Whoever looks at the vCPU finds an access done.
            let next = runner.finish(vcpu, &mut |vcpu, turn| server.enter(vcpu, turn));
            server.deal_with(next, runner, vcpu);
            task(runner, vcpu);
        }
        // What was left behind the end is dropped with that, and what comes yet finds nobody.
        self.tasks = None;
        Round::Ends
    }

    /// Runs the guest until the thread is to look; to be called where [`Runner::may_run`].
    pub fn run(runner: &mut Runner, vcpu: &mut V, server: &mut impl Serve<V>) {
        let next = runner.run(vcpu, &mut |vcpu, turn| server.enter(vcpu, turn));
        server.deal_with(next, runner, vcpu);
    }

    /// The next task, which may have to be waited for; `None` when nobody can post one.
    fn wait(&self, tasks: &Receiver<Task<V>>, looks: bool) -> Option<Task<V>> {
        if !looks {
            return tasks.recv().ok();
        }
        self.patience.wait(|| tasks.try_recv().ok(), || tasks.recv().ok())
    }

    /// What was posted by somebody who took this thread to be looking still, which it does no more where there is
    /// nothing: from here on it has to be kicked.
    fn last_task(&self, tasks: &Receiver<Task<V>>) -> Result<Task<V>, TryRecvError> {
        self.attention.end();
        let task = tasks.try_recv();
        if task.is_ok() {
            self.attention.begin();
        }
        task
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeVcpu;
    use arch::Isa;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    /// A guest that runs until it is kicked.
    struct Guest {
        is_kicked: Arc<AtomicBool>,
        entries: Arc<AtomicU32>,
    }

    impl Serve<FakeVcpu> for Guest {
        fn enter(&mut self, _: &mut FakeVcpu, turn: Turn<'_>) -> Exit {
            if turn.is_finish() {
                return Exit::Interrupted;
            }
            let (_inside, _) = turn.enter();
            self.entries.fetch_add(1, Ordering::SeqCst);
            while !self.is_kicked.swap(false, Ordering::SeqCst) {
                thread::yield_now();
            }
            Exit::Interrupted
        }
    }

    /// A thread that lives in its inbox: where tasks are left for it, its kick, and how often it has entered the guest.
    fn living() -> (Post<FakeVcpu>, Arc<AtomicBool>, Arc<AtomicU32>, thread::JoinHandle<()>) {
        let (post, mut inbox) = inbox();
        let (is_kicked, entries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut guest = Guest { is_kicked: Arc::clone(&is_kicked), entries: Arc::clone(&entries) };
        let thread = thread::spawn(move || {
            let mut vcpu = FakeVcpu::new(Isa::X86_64);
            let mut runner = Runner::new(Isa::X86_64, Arc::default());
            inbox.live(&mut runner, &mut vcpu, &mut guest);
        });
        (post, is_kicked, entries, thread)
    }

    fn wait_for(what: impl Fn() -> bool) {
        while !what() {
            thread::yield_now();
        }
    }

    /// Whoever drops the last of what it is posted by ends a thread, whether its guest runs or not.
    #[test]
    fn a_thread_ends_when_nobody_can_post_anything() {
        for runs in [false, true] {
            let (post, is_kicked, entries, thread) = living();
            if runs {
                _ = post.leave(Box::new(|runner, _| runner.resume()));
                wait_for(|| entries.load(Ordering::SeqCst) > 0);
            }
            drop(post);
            is_kicked.store(true, Ordering::SeqCst);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_thread_ends_when_it_is_told_and_drops_what_comes_then() {
        let (post, is_kicked, entries, thread) = living();
        _ = post.leave(Box::new(|runner, _| runner.resume()));
        wait_for(|| entries.load(Ordering::SeqCst) > 0);
        _ = post.leave(Box::new(|runner, _| runner.retire()));
        let (answer, answers) = channel::<()>();
        _ = post.leave(Box::new(move |_, _| answer.send(()).unwrap()));
        is_kicked.store(true, Ordering::SeqCst);
        thread.join().unwrap();
        assert!(answers.recv().is_err(), "it was done behind the end");
        assert!(!post.leave(Box::new(|_, _| {})), "there is nobody to kick");
    }

    /// What comes while a thread does something else for somebody is seen without a kick, in the same look.
    #[test]
    fn one_that_is_at_its_tasks_needs_no_kick() {
        let (post, mut inbox) = inbox::<FakeVcpu>();
        let mut guest = Guest { is_kicked: Arc::default(), entries: Arc::default() };
        let (mut vcpu, mut runner) = (FakeVcpu::new(Isa::X86_64), Runner::new(Isa::X86_64, Arc::default()));
        let again = post.clone();
        _ = post.leave(Box::new(move |_, _| {
            assert!(!again.leave(Box::new(|_, vcpu| vcpu.set_pc(16))), "it looks by itself");
        }));
        assert_eq!(inbox.look(false, &mut runner, &mut vcpu, &mut guest), Round::GoesOn);
        assert_eq!(vcpu.file.pc(), Some(16));
        assert!(post.leave(Box::new(|_, _| {})), "it may be in the guest");
    }

    /// A guest that comes to its end at once, and who has been told of it.
    struct Short {
        exit: Option<Exit>,
        ends: Vec<Option<String>>,
    }

    impl Serve<FakeVcpu> for Short {
        fn enter(&mut self, _: &mut FakeVcpu, _: Turn<'_>) -> Exit {
            self.exit.take().unwrap_or(Exit::Interrupted)
        }

        fn ended(&mut self, _: &FakeVcpu, why: Option<String>) {
            self.ends.push(why);
        }
    }

    #[test]
    fn whoever_deals_with_nothing_by_himself_is_told_of_the_end_once() {
        let fatal = |text: &str| Exit::End { fatal: Some(text.into()) };
        for (exit, told) in [
            (Exit::End { fatal: None }, None),
            (fatal("triple fault"), Some("triple fault")),
            (Exit::Trap(crate::trap::Trap::Int3), Some("nobody asked for Int3")),
        ] {
            let (post, mut inbox) = inbox::<FakeVcpu>();
            let mut guest = Short { exit: Some(exit), ends: Vec::new() };
            let (mut vcpu, mut runner) =
                (FakeVcpu::new(Isa::X86_64), Runner::new(Isa::X86_64, Arc::default()));
            _ = post.leave(Box::new(|runner, _| runner.resume()));
            for _ in 0..3 {
                assert_eq!(inbox.look(false, &mut runner, &mut vcpu, &mut guest), Round::GoesOn);
                if runner.may_run() {
                    Inbox::run(&mut runner, &mut vcpu, &mut guest);
                }
                // Whoever lets it run once more is not heard.
                _ = post.leave(Box::new(|runner, _| runner.resume()));
            }
            assert_eq!(guest.ends, [told.map(String::from)]);
        }
    }

    #[test]
    fn who_was_told_to_end_keeps_nobody_waiting() {
        let (post, mut inbox) = inbox::<FakeVcpu>();
        let mut guest = Short { exit: None, ends: Vec::new() };
        let (mut vcpu, mut runner) = (FakeVcpu::new(Isa::Aarch64), Runner::new(Isa::Aarch64, Arc::default()));
        _ = post.leave(Box::new(|runner, _| runner.retire()));
        let (answer, answers) = channel::<()>();
        let late = answer.clone();
        _ = post.leave(Box::new(move |_, _| answer.send(()).unwrap()));
        assert_eq!(inbox.look(true, &mut runner, &mut vcpu, &mut guest), Round::Ends);
        // The inbox is there still, as it is where an event loop has it.
        assert!(!post.leave(Box::new(move |_, _| late.send(()).unwrap())));
        assert!(answers.recv().is_err(), "both were dropped");
        assert_eq!(inbox.look(true, &mut runner, &mut vcpu, &mut guest), Round::Ends);
    }

    /// In an event loop it never waits.
    #[test]
    fn one_that_must_not_wait_looks_and_returns() {
        let (post, mut inbox) = inbox::<FakeVcpu>();
        let mut guest = Guest { is_kicked: Arc::default(), entries: Arc::default() };
        let (mut vcpu, mut runner) = (FakeVcpu::new(Isa::Aarch64), Runner::new(Isa::Aarch64, Arc::default()));
        assert_eq!(inbox.look(false, &mut runner, &mut vcpu, &mut guest), Round::GoesOn);
        assert!(post.leave(Box::new(|_, vcpu| vcpu.set_pc(8))), "it may be in the guest");
        assert_eq!(inbox.look(false, &mut runner, &mut vcpu, &mut guest), Round::GoesOn);
        assert_eq!((vcpu.file.pc(), runner.may_run()), (Some(8), false));
        drop(post);
        assert_eq!(inbox.look(false, &mut runner, &mut vcpu, &mut guest), Round::Ends);
    }
}
