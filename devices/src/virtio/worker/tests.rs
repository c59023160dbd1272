//! What is done to a thread while it is in a turn.

use super::*;
use crate::virtio::queue::ActiveQueue;
use crate::virtio::testing::TestRam;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{scope, yield_now};

/// The longest that anything is waited for here.
const TEST_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn queue(&self, _: u16) {}

    fn configuration(&self) {}

    fn needs_reset(&self) {}
}

/// A server whose turns follow each other, each as long as the host lets it.
struct Busy {
    begun: Sender<()>,
    host: Receiver<()>,
}

impl Serve for Busy {
    fn serve(&mut self, _: Rung, _: &mut Queues) -> Result<Then, Broken> {
        self.begun.send(()).ok();
        // Until the host's end is dropped.
        Ok(self.host.recv().map_or(Then::Waits, |()| Then::GoesOn))
    }
}

/// The host's end, and the bell that the guest rings the queue by.
struct Host {
    begun: Receiver<()>,
    answers: Sender<()>,
    bell: EventFd,
}

/// A thread in a turn, of a device with two queues, of which it serves the first.
fn busy() -> (Worker, Host) {
    let ((begun, is_begun), (answers, host)) = (channel(), channel());
    let (bell, interrupts) = (EventFd::new(EFD_NONBLOCK).unwrap(), Arc::new(NoInterrupts));
    let state = QueueState {
        max_size: 8,
        size: 8,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueState::default()
    };
    let ram = Arc::new(TestRam::new());
    let queue = ActiveQueue::new(state, 0, bell.try_clone().unwrap(), (ram, interrupts.clone())).unwrap();
    let mut queues = Queues::new(2);
    queues.put(0, Some(queue));
    let server = Box::new(Busy { begun, host });
    let worker = Worker::start("virtio busy", server, queues, (Pace::default(), interrupts)).unwrap();
    is_begun.recv_timeout(TEST_PATIENCE).unwrap();
    (worker, Host { begun: is_begun, answers, bell })
}

/// Closes the queue in one turn, and waits for that in the next.
fn close_between_turns(worker: &Worker, host: &Host) {
    let (sender, is_closed) = channel();
    scope(|scope| {
        scope.spawn(move || {
            worker.close(0, Instant::now() + 2 * TEST_PATIENCE);
            sender.send(()).ok();
        });
        while !worker.is_closing(0) {
            yield_now();
        }
        host.answers.send(()).unwrap();
        host.begun.recv_timeout(TEST_PATIENCE).unwrap();
        is_closed.recv_timeout(TEST_PATIENCE).unwrap();
    });
}

#[test]
fn a_queue_is_let_go_though_another_turn_follows() {
    let (worker, host) = busy();
    close_between_turns(&worker, &host);
    assert!(!worker.is_closing(0));
    assert_eq!(worker.take_closed().len(), 1);
    drop(host);
}

#[test]
fn a_queue_of_another_is_not_waited_for() {
    let (worker, host) = busy();
    worker.close(1, Instant::now());
    assert!(!worker.is_closing(1));
    drop(host);
}

#[test]
fn a_bell_of_a_queue_that_is_let_go_wakes_nobody() {
    let (worker, host) = busy();
    let is_rung = || {
        let mut events = [EpollEvent::default()];
        let epoll = Arc::clone(&worker.shared.table().epoll);
        epoll.wait(0, &mut events).unwrap() > 0
    };
    host.bell.write(1).unwrap();
    assert!(is_rung());
    close_between_turns(&worker, &host);
    host.bell.write(1).unwrap();
    assert!(!is_rung());
    drop(host);
}

#[test]
fn an_errand_of_which_the_thread_has_died_is_not_done() {
    let until = Instant::now() + Duration::from_secs(20);
    let errand = |work: crate::threads::Work| Errand::start("errand", work).unwrap().wait(until);
    assert_eq!(errand(Box::new(|| {})), Standing::Done);
    assert_eq!(errand(Box::new(|| std::panic::resume_unwind(Box::new(())))), Standing::Failed);
}
