//! What is told of a guest to those who follow it: `vmm events`, `vmm attach`.
//!
//! Whoever tells waits for nobody: each follower has a queue of its own, of a bounded size, and where that is full what
//! comes is counted and lost. Where nobody follows, what the guest prints costs one look.

use super::protocol::Event;
use crate::machine::debugger::Attachment;
use crate::machine::{ConsoleInput, Guest};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// Those who follow a guest at a time, at most.
pub const MOST_FOLLOWERS: usize = 16;
/// What the guest has printed and a follower has not read yet, bytes at most.
const MOST_OUTPUT: usize = 256 << 10;
/// Events likewise.
const MOST_EVENTS: usize = 1000;

/// What a follower is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// What the guest has printed on its console.
    Output(Vec<u8>),
    /// So many bytes of that, or so many events, are lost here.
    Lost(u64),
    /// Something has happened, so many milliseconds after the guest was started.
    Event(Event, u64),
}

#[derive(Debug, Default)]
struct Queue {
    news: VecDeque<News>,
    /// Bytes of output in it.
    output: usize,
    events: usize,
}

impl Queue {
    fn lose(&mut self, count: usize) {
        match self.news.back_mut() {
            Some(News::Lost(lost)) => *lost += count as u64,
            _ => self.news.push_back(News::Lost(count as u64)),
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        let (kept, lost) = bytes.split_at(bytes.len().min(MOST_OUTPUT - self.output));
        self.output += kept.len();
        match self.news.back_mut() {
            _ if kept.is_empty() => {}
            Some(News::Output(last)) => last.extend_from_slice(kept),
            _ => self.news.push_back(News::Output(kept.to_vec())),
        }
        if !lost.is_empty() {
            self.lose(lost.len());
        }
    }

    fn tell(&mut self, event: Event, milliseconds: u64) {
        if self.events == MOST_EVENTS {
            return self.lose(1);
        }
        self.events += 1;
        self.news.push_back(News::Event(event, milliseconds));
    }
}

/// Somebody who follows a guest, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    queue: Mutex<Queue>,
    wake: EventFd,
    feed: Arc<Feed>,
}

impl Follower {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece of news.
    pub fn take(&self) -> Option<News> {
        // Of the count nothing is to be known.
        self.wake.read().ok();
        let mut queue = self.queue();
        let news = queue.news.pop_front();
        match &news {
            Some(News::Output(bytes)) => queue.output -= bytes.len(),
            Some(News::Event(..)) => queue.events -= 1,
            Some(News::Lost(_)) | None => {}
        }
        news
    }

    /// Becomes readable when there may be some.
    pub fn wake(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open as long as `self` is there.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }

    fn add(&self, add: impl FnOnce(&mut Queue)) {
        add(&mut self.queue());
        self.ring();
    }

    /// Where the count is full, it is awake.
    fn ring(&self) {
        if let Err(error) = self.wake.write(1) {
            devices::tell!(Debug, "somebody who follows the guest is not woken: {error}");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.feed.count.fetch_sub(1, Ordering::SeqCst);
        let mut shared = self.feed.shared();
        shared.followers.retain(|follower| follower.strong_count() > 0);
        drop(shared);
        self.feed.has_left.notify_all();
    }
}

/// A guest that is followed. It keeps no machine.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its place for a debugger.
    pub attachment: Attachment,
    /// Where its console is typed at.
    pub input: ConsoleInput,
}

#[derive(Debug, Default)]
struct Shared {
    followers: Vec<Weak<Follower>>,
    guest: Option<Followed>,
    is_over: bool,
    /// Whoever types on the guest's console.
    typist: Weak<()>,
}

/// Where followers come to, and what is to be told is told.
#[derive(Debug)]
pub struct Feed {
    began: Instant,
    /// Those who follow.
    count: AtomicUsize,
    shared: Mutex<Shared>,
    has_left: Condvar,
}

impl Feed {
    /// Of a guest that is started now.
    pub fn new() -> Arc<Feed> {
        let (count, shared, has_left) = (AtomicUsize::new(0), Mutex::default(), Condvar::new());
        Arc::new(Feed { began: Instant::now(), count, shared, has_left })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the guest was started.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Milliseconds since then.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Somebody follows from now on.
    ///
    /// # Errors
    /// When there are too many, or the system gives no more descriptors.
    pub fn follow(self: &Arc<Feed>) -> io::Result<Arc<Follower>> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mut shared = self.shared();
        if shared.is_over {
            return Err(io::Error::other("the guest is over"));
        }
        if self.count.load(Ordering::SeqCst) >= MOST_FOLLOWERS {
            return Err(io::Error::other(format!("{MOST_FOLLOWERS} others follow it already")));
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        let follower = Arc::new(Follower { queue: Mutex::default(), wake, feed: Arc::clone(self) });
        shared.followers.push(Arc::downgrade(&follower));
        Ok(follower)
    }

    /// The right to type on the console, if nobody has it; it is given back with the value.
    pub fn type_on(&self) -> Option<Arc<()>> {
        let mut shared = self.shared();
        if shared.typist.strong_count() > 0 {
            return None;
        }
        let typist = Arc::new(());
        shared.typist = Arc::downgrade(&typist);
        Some(typist)
    }

    /// The guest is this machine from now on.
    pub fn begin(&self, guest: &Guest) {
        let followed = Followed { attachment: guest.attachment().clone(), input: guest.console_input() };
        let before = self.shared().guest.replace(followed);
        if before.is_some() {
            self.tell(&Event::Restarted {});
        }
    }

    /// What is followed now.
    pub fn guest(&self) -> Option<Followed> {
        self.shared().guest.clone()
    }

    /// All of them, with nothing locked: the last one may leave meanwhile.
    fn followers(&self) -> Vec<Arc<Follower>> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let shared = self.shared();
        shared.followers.iter().filter_map(Weak::upgrade).collect()
    }

    /// Tells what has happened.
    pub fn tell(&self, event: &Event) {
        let now = self.now();
        for follower in self.followers() {
            follower.add(|queue| queue.tell(event.clone(), now));
        }
    }

    fn print(&self, bytes: &[u8]) {
        for follower in self.followers() {
            follower.add(|queue| queue.print(bytes));
        }
    }

    /// The guest is over: nobody follows it from now on, and those who do have `limit` to hear the last of it.
    pub fn end(&self, event: &Event, limit: Duration) {
        let until = Instant::now() + limit;
        let guest = {
            let mut shared = self.shared();
            shared.is_over = true;
            shared.guest.take()
        };
        drop(guest);
        // It wakes those who look whether it is over.
        self.tell(event);
        let mut shared = self.shared();
        while self.count.load(Ordering::SeqCst) > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.has_left.wait_timeout(shared, left.min(Duration::from_millis(20)));
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the guest is over.
    pub fn is_over(&self) -> bool {
        self.shared().is_over
    }

    /// A console's output, which is told as well as written.
    pub fn output(self: &Arc<Feed>, output: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Told { feed: Arc::clone(self), output })
    }
}

struct Told {
    feed: Arc<Feed>,
    output: Box<dyn Write + Send>,
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.feed.print(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_counted_and_lost() {
        let feed = Feed::new();
        let mut output = feed.output(Box::new(io::sink()));
        output.write_all(b"before").unwrap();
        let follower = feed.follow().unwrap();
        assert_eq!(follower.take(), None);
        output.write_all(b"one ").unwrap();
        output.write_all(b"two").unwrap();
        feed.tell(&Event::Restarted {});
        output.write_all(&vec![b'x'; MOST_OUTPUT]).unwrap();
        output.write_all(b"lost").unwrap();
        assert_eq!(follower.take(), Some(News::Output(b"one two".to_vec())));
        assert!(matches!(follower.take(), Some(News::Event(Event::Restarted {}, _))));
        let Some(News::Output(rest)) = follower.take() else { panic!("nothing is told") };
        assert_eq!(rest.len(), MOST_OUTPUT - 7);
        assert_eq!(follower.take(), Some(News::Lost(11)));
        assert_eq!(follower.take(), None);
        for _ in 0..MOST_EVENTS + 3 {
            feed.tell(&Event::Restarted {});
        }
        let mut news: Vec<News> = std::iter::from_fn(|| follower.take()).collect();
        assert_eq!((news.pop(), news.len()), (Some(News::Lost(3)), MOST_EVENTS));
    }

    #[test]
    fn many_follow_and_one_types() {
        let feed = Feed::new();
        let followers: Vec<_> = (0..MOST_FOLLOWERS).map(|_| feed.follow().unwrap()).collect();
        assert!(feed.follow().unwrap_err().to_string().contains("others follow it already"));
        drop(followers);
        assert!(feed.follow().is_ok());
        let typist = feed.type_on();
        assert!(typist.is_some() && feed.type_on().is_none());
        drop(typist);
        assert!(feed.type_on().is_some());
    }

    /// Whoever reads hears the last of it, and whoever does not is not waited for without end.
    #[test]
    fn the_end_is_told_to_those_who_read() {
        let feed = Feed::new();
        let (reader, idle) = (feed.follow().unwrap(), feed.follow().unwrap());
        let its = Arc::clone(&feed);
        let reading = std::thread::spawn(move || {
            let mut last = None;
            while !its.is_over() || last.is_none() {
                last = reader.take().or(last);
                std::thread::yield_now();
            }
            last
        });
        feed.end(&Event::Ended { code: 3, text: "so".into() }, Duration::from_millis(100));
        assert!(matches!(reading.join().unwrap(), Some(News::Event(Event::Ended { code: 3, .. }, _))));
        assert!(feed.follow().is_err());
        drop(idle);
    }
}
