//! Makes threads for those who may not: filters are inherited, so what a vCPU's thread has made (a device's, when its
//! driver is ready) could do no more than that.

use debug::threads::Work;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

/// A thread that is wanted.
struct Order {
    thread: Builder,
    work: Work,
    made: Sender<io::Result<JoinHandle<()>>>,
}

/// Where threads are ordered.
pub struct Nursery {
    orders: Mutex<Sender<Order>>,
}

impl std::fmt::Debug for Nursery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nursery")
    }
}

impl Nursery {
    /// Starts it. It does `first` before all else, and its answer is handed on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<T: Send + 'static>(first: impl FnOnce() -> T + Send + 'static) -> io::Result<(Nursery, T)> {
        let (orders, queue) = channel::<Order>();
        let (sender, begun) = channel();
        Builder::new().name("nursery".into()).spawn(move || {
            // Whoever has started it waits for this.
            sender.send(first()).ok();
            for Order { thread, work, made } in queue {
                // One who asks waits for the answer.
                made.send(thread.spawn(work)).ok();
            }
        })?;
        let begun = begun.recv().map_err(|_| io::Error::other("it has ended at once"))?;
        Ok((Nursery { orders: Mutex::new(orders) }, begun))
    }

    /// Has a thread made.
    ///
    /// # Errors
    /// When the system gives no more.
    pub fn make(&self, thread: Builder, work: Work) -> io::Result<JoinHandle<()>> {
        let gone = || io::Error::other("the nursery has ended");
        let (made, answer) = channel();
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send(Order { thread, work, made }).map_err(|_| gone())?;
        drop(orders);
        answer.recv().map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn threads_are_made_by_it_with_their_names() {
        let (nursery, first) = Nursery::start(|| 7).unwrap();
        assert_eq!(first, 7);
        let (sender, names) = channel();
        let work = move || sender.send(std::thread::current().name().map(String::from)).unwrap();
        let thread = nursery.make(Builder::new().name("child".into()), Box::new(work)).unwrap();
        thread.join().unwrap();
        assert_eq!(names.recv().unwrap().as_deref(), Some("child"));
    }
}
