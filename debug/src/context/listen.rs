//! Listeners: whoever wants to hear what happens to a guest's contexts.
//!
//! What happens is told by the thread that debugs the guest, as it sees it. It waits for nobody: each listener has a
//! queue of its own, of a size that it has chosen, and where that is full what comes is counted and lost. Adding one
//! touches neither the guest nor that thread.

use super::space::Address;
use super::stop::Stopped;
use super::tree::{Context, Id, Kind, Tree};
use crate::machine::Ended;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What has changed about a context by the debugger's doing, or by a new beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Its registers.
    Registers,
    /// Its memory: where, and how many bytes.
    Memory(Address, u64),
    /// Its breakpoints.
    Breakpoints,
    /// The guest has begun again: memory and registers are new.
    BegunAgain,
}

/// What has happened to a context.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// It is there. The first notices of every listener tell what was there before it.
    Created(Context),
    /// It runs. Of what starts and stops together the one is told that stands for it.
    Started(Id),
    /// It stands still. Likewise.
    Stopped(Id, Stopped),
    /// It has changed.
    Changed(Id, Change),
    /// It has come to its end.
    Exited(Id, Ended),
    /// It is not there any more.
    Disposed(Id),
    /// This many notices have been lost here, because they were not read.
    Lost(u64),
}

/// What a listener has not read yet.
#[derive(Debug, Default)]
struct Queue {
    /// With when each was told.
    notices: VecDeque<(Instant, Notice)>,
    most: usize,
    /// Lost behind the last of them.
    lost: u64,
    /// When the first of those was told.
    lost_at: Option<Instant>,
    /// There is nobody left who could tell anything.
    is_over: bool,
}

impl Queue {
    /// The word of what is lost, if something is.
    fn take_loss(&mut self) -> Option<(Instant, Notice)> {
        let at = self.lost_at.take()?;
        Some((at, Notice::Lost(std::mem::take(&mut self.lost))))
    }
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    came: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, notice: &Notice) {
        let mut queue = self.queue();
        // Whoever has taken all there was has what was told up to then.
        let now = Instant::now();
        let room = queue.most - queue.notices.len().min(queue.most);
        // The word of the loss takes a place, too.
        if room == 0 || room == 1 && queue.lost > 0 {
            queue.lost += 1;
            queue.lost_at.get_or_insert(now);
        } else {
            let lost = queue.take_loss();
            queue.notices.extend(lost);
            queue.notices.push_back((now, notice.clone()));
        }
        drop(queue);
        self.came.notify_all();
    }
}

/// One listener. It listens until it is dropped.
#[derive(Debug)]
pub struct Listener(Arc<Shared>);

impl Listener {
    /// The next notice, if there is one already.
    pub fn take(&self) -> Option<Notice> {
        self.take_with_time().map(|(_, notice)| notice)
    }

    /// The next notice, as [`Self::take`] has it, and when it was told, for whoever hears of other things as well and
    /// keeps their order.
    pub fn take_with_time(&self) -> Option<(Instant, Notice)> {
        let mut queue = self.0.queue();
        let next = queue.notices.pop_front();
        next.or_else(|| queue.take_loss())
    }

    /// The next notice, waited for up to `limit`; `None` when none has come, or none will come any more.
    pub fn wait(&self, limit: Duration) -> Option<Notice> {
        let until = Instant::now().checked_add(limit);
        loop {
            if let Some(notice) = self.take() {
                return Some(notice);
            }
            let queue = self.0.queue();
            if queue.is_over || !queue.notices.is_empty() || queue.lost > 0 {
                if queue.is_over && queue.notices.is_empty() && queue.lost == 0 {
                    return None;
                }
                continue;
            }
            let left = until.map_or(limit, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            // Whatever has woken it, it looks.
            drop(self.0.came.wait_timeout(queue, left));
        }
    }
}

#[derive(Debug, Default)]
struct Told {
    listeners: Vec<Weak<Shared>>,
    contexts: Vec<Context>,
    is_over: bool,
}

impl Told {
    fn tell(&mut self, notice: &Notice) {
        self.listeners.retain(|listener| {
            let listener = listener.upgrade();
            listener.is_some_and(|listener| {
                listener.tell(notice);
                true
            })
        });
    }
}

/// Where listeners are added, from any thread. Its clones are the same.
#[derive(Clone, Debug)]
pub struct Listeners(Arc<Mutex<Told>>);

impl Listeners {
    pub(super) fn new(tree: &Tree) -> Listeners {
        let contexts = tree.iter().cloned().collect();
        Listeners(Arc::new(Mutex::new(Told { contexts, ..Told::default() })))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener, which keeps `most` notices, at least 2, beside those of the contexts that are there, with
    /// which it begins. The guest and whoever debugs it are not held up.
    pub fn add(&self, most: usize) -> Listener {
        let mut told = self.told();
        let now = Instant::now();
        let created = |context: &Context| (now, Notice::Created(context.clone()));
        let notices: VecDeque<(Instant, Notice)> = told.contexts.iter().map(created).collect();
        let most = most.max(2).saturating_add(notices.len());
        let queue = Queue { notices, most, is_over: told.is_over, ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), came: Condvar::new() });
        told.listeners.push(Arc::downgrade(&shared));
        Listener(shared)
    }

    /// Tells every listener, and waits for none.
    pub(super) fn tell(&self, notice: &Notice) {
        self.told().tell(notice);
    }

    /// Tells them of contexts that have come and gone; the next ones begin with those of the tree.
    #[cfg(feature = "linux")]
    pub(super) fn contexts_changed(&self, changes: &super::tree::Changes, tree: &Tree) {
        let mut told = self.told();
        changes.created.iter().for_each(|context| told.tell(&Notice::Created(context.clone())));
        changes.disposed.iter().for_each(|id| told.tell(&Notice::Disposed(*id)));
        told.contexts = tree.iter().cloned().collect();
    }

    /// There is nothing more to come.
    pub(super) fn dispose(&self, tree: &Tree) {
        let mut contexts: Vec<&Context> = tree.iter().collect();
        // Parts go before what they are parts of.
        contexts.reverse();
        contexts.sort_by_key(|context| !matches!(context.kind, Kind::Task(_)));
        for context in contexts {
            self.tell(&Notice::Disposed(context.id));
        }
        let mut told = self.told();
        (told.is_over, told.contexts) = (true, Vec::new());
        for listener in told.listeners.drain(..).filter_map(|listener| listener.upgrade()) {
            listener.queue().is_over = true;
            listener.came.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(60);

    fn setting() -> (Tree, Listeners) {
        let tree = Tree::of_machine(1);
        let listeners = Listeners::new(&tree);
        (tree, listeners)
    }

    #[test]
    fn a_listener_begins_with_what_is_there_and_ends_with_its_end() {
        let (tree, listeners) = setting();
        let listener = listeners.add(8);
        listeners.tell(&Notice::Started(tree.root()));
        listeners.dispose(&tree);
        let contexts: Vec<Context> = tree.iter().cloned().collect();
        let expected: Vec<Notice> = (contexts.iter().cloned().map(Notice::Created))
            .chain([Notice::Started(tree.root())])
            .chain(contexts.iter().rev().map(|context| Notice::Disposed(context.id)))
            .collect();
        let heard: Vec<Notice> = std::iter::from_fn(|| listener.wait(LIMIT)).collect();
        assert_eq!(heard, expected);
        // One that comes later hears nothing, and does not wait.
        assert_eq!(listeners.add(8).wait(LIMIT), None);
    }

    #[test]
    fn a_slow_listener_loses_with_a_count_and_others_lose_nothing() {
        let (tree, listeners) = setting();
        let (slow, other) = (listeners.add(3), listeners.add(100));
        for _ in 0..20 {
            listeners.tell(&Notice::Started(tree.root()));
        }
        let heard = |listener: &Listener| std::iter::from_fn(|| listener.take()).collect::<Vec<Notice>>();
        let created = tree.iter().count();
        assert_eq!(heard(&other).len(), created + 20);
        let slows = heard(&slow);
        assert_eq!(slows.len(), created + 4);
        assert_eq!(slows.last(), Some(&Notice::Lost(17)));
        // The count stands where the loss is.
        for _ in 0..6 {
            listeners.tell(&Notice::Started(tree.root()));
        }
        for _ in 0..3 {
            assert_eq!(slow.take(), Some(Notice::Started(tree.root())));
        }
        listeners.tell(&Notice::Changed(tree.root(), Change::Breakpoints));
        let rest = heard(&slow);
        let lost: u64 =
            rest.iter().map(|notice| if let Notice::Lost(lost) = notice { *lost } else { 0 }).sum();
        let told = rest.iter().filter(|notice| matches!(notice, Notice::Started(_))).count() as u64;
        assert_eq!((told + lost, rest.last()), (3, Some(&Notice::Changed(tree.root(), Change::Breakpoints))));
    }

    #[test]
    fn notices_have_the_time_that_they_were_told_at() {
        let (tree, listeners) = setting();
        let listener = listeners.add(2);
        for _ in 0..5 {
            listeners.tell(&Notice::Started(tree.root()));
        }
        let told = Instant::now();
        let mut last = None;
        while let Some((at, notice)) = listener.take_with_time() {
            assert!(at <= told && last <= Some(at), "{notice:?}");
            last = Some(at);
        }
        assert!(last.is_some());
    }

    #[test]
    fn a_listener_waits_on_a_thread_of_its_own() {
        let (tree, listeners) = setting();
        let listener = listeners.add(2);
        let root = tree.root();
        let thread = thread::spawn(move || {
            std::iter::from_fn(|| listener.wait(LIMIT)).filter(|it| *it == Notice::Started(root)).count()
        });
        listeners.tell(&Notice::Started(root));
        listeners.dispose(&tree);
        assert_eq!(thread.join().unwrap(), 1);
    }
}
