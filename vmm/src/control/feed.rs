//! What is told of a guest to those who follow it: `vmm events`, `vmm attach`.
//!
//! Whoever tells waits for nobody: each follower has a queue of its own, of a bounded size, and where that is full what
//! comes is counted and lost. Where nobody follows, what the guest prints costs one look.

use super::protocol::Event;
use crate::machine::debugger::Attachment;
use crate::machine::{ConsoleInput, Guest, dealt_with};
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
    /// Something has happened.
    Event(Event),
}

#[derive(Debug, Default)]
struct Queue {
    /// With when each has begun, milliseconds after the guest was started: later ones are no earlier.
    news: VecDeque<(u64, News)>,
    /// Bytes of output in it.
    output: usize,
    events: usize,
}

impl Queue {
    fn lose(&mut self, now: u64, count: usize) {
        match self.news.back_mut() {
            Some((_, News::Lost(lost))) => *lost += count as u64,
            _ => self.news.push_back((now, News::Lost(count as u64))),
        }
    }

    fn print(&mut self, now: u64, bytes: &[u8]) {
        let (kept, lost) = bytes.split_at(bytes.len().min(MOST_OUTPUT - self.output));
        self.output += kept.len();
        match self.news.back_mut() {
            _ if kept.is_empty() => {}
            Some((_, News::Output(last))) => last.extend_from_slice(kept),
            _ => self.news.push_back((now, News::Output(kept.to_vec()))),
        }
        if !lost.is_empty() {
            self.lose(now, lost.len());
        }
    }

    fn tell(&mut self, now: u64, event: Event) {
        if self.events == MOST_EVENTS {
            return self.lose(now, 1);
        }
        self.end(now, event);
    }

    /// Tells the last of it, for which there is always room.
    fn end(&mut self, now: u64, event: Event) {
        self.events += 1;
        self.news.push_back((now, News::Event(event)));
    }
}

/// What somebody follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The console: `vmm attach`.
    Console,
    /// What happens: `vmm events`.
    Events,
}

/// Who follows a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Somebody may type on its console.
    pub typing: bool,
    /// So many others have its console.
    pub watching: usize,
    /// So many are told what happens.
    pub following: usize,
}

/// Somebody who follows a guest, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    follows: Follows,
    queue: Mutex<Queue>,
    wake: EventFd,
    feed: Arc<Feed>,
}

impl Follower {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece of news, and when it has begun: milliseconds since the guest was started. Once there is none,
    /// what comes is no earlier than [`Feed::now`] was before that.
    pub fn take(&self) -> Option<(u64, News)> {
        // Of the count nothing is to be known.
        self.wake.read().ok();
        let mut queue = self.queue();
        let news = queue.news.pop_front();
        match &news {
            Some((_, News::Output(bytes))) => queue.output -= bytes.len(),
            Some((_, News::Event(_))) => queue.events -= 1,
            Some((_, News::Lost(_))) | None => {}
        }
        news
    }

    /// Becomes readable when there may be some.
    pub fn wake(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open as long as `self` is there.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }

    /// Adds something, told of the time: nothing that is taken before was added at a later one.
    fn add(&self, add: impl FnOnce(&mut Queue, u64)) {
        let mut queue = self.queue();
        add(&mut queue, self.feed.now());
        drop(queue);
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
    /// How often it has begun again.
    restarts: u64,
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
        self.milliseconds(Instant::now())
    }

    /// Milliseconds from then to another time.
    pub fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Somebody follows from now on.
    ///
    /// # Errors
    /// When there are too many, or the system gives no more descriptors.
    pub fn follow(self: &Arc<Feed>, follows: Follows) -> io::Result<Arc<Follower>> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mut shared = self.shared();
        if shared.is_over {
            return Err(io::Error::other("the guest is over"));
        }
        if self.count.load(Ordering::SeqCst) >= MOST_FOLLOWERS {
            return Err(io::Error::other(format!("{MOST_FOLLOWERS} others follow it already")));
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        let follower = Arc::new(Follower { follows, queue: Mutex::default(), wake, feed: Arc::clone(self) });
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

    /// Who follows it now.
    pub fn presence(&self) -> Presence {
        let followers = self.followers();
        let count = |what| followers.iter().filter(|follower| follower.follows == what).count();
        let typing = self.shared().typist.strong_count() > 0;
        let watching = count(Follows::Console).saturating_sub(usize::from(typing));
        Presence { typing, watching, following: count(Follows::Events) }
    }

    /// The guest is this machine from now on.
    pub fn begin(&self, guest: &Guest) {
        let followed = Followed { attachment: guest.attachment().clone(), input: guest.console_input() };
        let mut shared = self.shared();
        let before = shared.guest.replace(followed);
        shared.restarts += u64::from(before.is_some());
        drop(shared);
        if before.is_some() {
            self.tell(&Event::Restarted {});
        }
    }

    /// How often the guest has begun again.
    pub fn restarts(&self) -> u64 {
        self.shared().restarts
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
        for follower in self.followers() {
            follower.add(|queue, now| queue.tell(now, event.clone()));
        }
    }

    fn print(&self, bytes: &[u8]) {
        for follower in self.followers() {
            follower.add(|queue, now| queue.print(now, bytes));
        }
    }

    /// The guest is over: nobody follows it from now on, and those who do have `limit` to hear the last of it.
    pub fn end(&self, event: &Event, limit: Duration) {
        let until = Instant::now() + limit;
        let (followers, guest) = self.close(event);
        drop(guest);
        // Those who are woken find that it is over.
        followers.iter().for_each(|follower| follower.ring());
        drop(followers);
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

    /// Whoever finds that the guest is over has been told of its end.
    fn close(&self, event: &Event) -> (Vec<Arc<Follower>>, Option<Followed>) {
        let mut shared = self.shared();
        let followers: Vec<_> = shared.followers.iter().filter_map(Weak::upgrade).collect();
        for follower in &followers {
            follower.queue().end(self.now(), event.clone());
        }
        shared.is_over = true;
        (followers, shared.guest.take())
    }

    /// Whether the guest is over. Those who follow it have been told of its end by then.
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
        let written = self.output.write(bytes);
        // Whoever follows the console sees it also where nobody else can.
        self.feed.print(dealt_with(&written, bytes));
        written
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
        let follower = feed.follow(Follows::Console).unwrap();
        let take = || follower.take().map(|(_, news)| news);
        assert_eq!(take(), None);
        output.write_all(b"one ").unwrap();
        output.write_all(b"two").unwrap();
        feed.tell(&Event::Restarted {});
        output.write_all(&vec![b'x'; MOST_OUTPUT]).unwrap();
        output.write_all(b"lost").unwrap();
        assert_eq!(take(), Some(News::Output(b"one two".to_vec())));
        assert!(matches!(take(), Some(News::Event(Event::Restarted {}))));
        let Some(News::Output(rest)) = take() else { panic!("nothing is told") };
        assert_eq!(rest.len(), MOST_OUTPUT - 7);
        assert_eq!(take(), Some(News::Lost(11)));
        assert_eq!(take(), None);
        for _ in 0..MOST_EVENTS + 3 {
            feed.tell(&Event::Restarted {});
        }
        let ended = Event::Ended { code: 0, text: String::new() };
        feed.end(&ended, Duration::ZERO);
        let mut news: Vec<News> = std::iter::from_fn(take).collect();
        // The end is not lost.
        assert_eq!(news.pop(), Some(News::Event(ended)));
        assert_eq!((news.pop(), news.len()), (Some(News::Lost(3)), MOST_EVENTS));
    }

    /// Where nobody else sees the console any more, whoever follows it does.
    #[test]
    fn what_cannot_be_written_is_told() {
        /// Has room for three bytes, and then nobody reads.
        struct Broken(usize);
        impl Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match std::mem::take(&mut self.0) {
                    0 => Err(io::ErrorKind::BrokenPipe.into()),
                    room => Ok(room.min(bytes.len())),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let feed = Feed::new();
        let follower = feed.follow(Follows::Console).unwrap();
        let mut output = feed.output(Box::new(Broken(3)));
        assert!(output.write_all(b"hello").is_err());
        assert!(output.write_all(b", you").is_err());
        assert_eq!(follower.take().map(|(_, news)| news), Some(News::Output(b"hello, you".to_vec())));
    }

    #[test]
    fn many_follow_and_one_types() {
        let feed = Feed::new();
        let followers: Vec<_> = (0..MOST_FOLLOWERS).map(|_| feed.follow(Follows::Console).unwrap()).collect();
        assert!(feed.follow(Follows::Console).unwrap_err().to_string().contains("others follow it already"));
        drop(followers);
        assert!(feed.follow(Follows::Console).is_ok());
        let typist = feed.type_on();
        assert!(typist.is_some() && feed.type_on().is_none());
        drop(typist);
        assert!(feed.type_on().is_some());
    }

    #[test]
    fn those_who_follow_are_told_apart() {
        let feed = Feed::new();
        assert_eq!(feed.presence(), Presence::default());
        let watcher = feed.follow(Follows::Console).unwrap();
        let events = [Follows::Events; 2].map(|it| feed.follow(it).unwrap());
        assert_eq!(feed.presence(), Presence { typing: false, watching: 1, following: 2 });
        let (second, typist) = (feed.follow(Follows::Console).unwrap(), feed.type_on());
        assert_eq!(feed.presence(), Presence { typing: true, watching: 1, following: 2 });
        // The one who types says that nothing more will come, and sees it still.
        drop(typist);
        assert_eq!(feed.presence(), Presence { typing: false, watching: 2, following: 2 });
        drop((watcher, second, events));
        assert_eq!(feed.presence(), Presence::default());
    }

    /// Whoever finds that the guest is over has been told how, and whoever does not read is not waited for without end.
    #[test]
    fn the_end_is_told_to_those_who_read() {
        let feed = Feed::new();
        let (reader, idle) = (feed.follow(Follows::Console).unwrap(), feed.follow(Follows::Console).unwrap());
        let its = Arc::clone(&feed);
        let reading = std::thread::spawn(move || {
            while !its.is_over() {
                std::thread::yield_now();
            }
            reader.take()
        });
        feed.end(&Event::Ended { code: 3, text: "so".into() }, Duration::from_millis(100));
        let told = reading.join().unwrap().map(|(_, news)| news);
        assert!(matches!(told, Some(News::Event(Event::Ended { code: 3, .. }))), "{told:?}");
        assert!(feed.follow(Follows::Console).is_err());
        drop(idle);
    }
}
