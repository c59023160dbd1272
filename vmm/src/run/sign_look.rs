//! A guest's kernel says on the console that it has panicked and stays where it is, or that it hangs. Whoever can write
//! there can say so, again and again, so it is only a reason to look into the kernel's log; and as that may take a while,
//! it is looked at on a thread of its own, while the event loop sees keys, signals and the time.

use super::events::{Running, drain, watch};
use super::sign_watch::Listens;
use crate::error::Error;
use crate::looks::{self, AFTER_SIGN};
use crate::machine::dumper::Dumper;
use crate::outcome::Outcome;
use arch::End;
use debug::linux::trouble::Sign;
use debug::threads;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// Looks when something was heard, and ends the guest if it is true.
pub struct SignLook {
    running: Rc<Running>,
    heard: Arc<EventFd>,
    look: Arc<Look>,
    course: Course,
    /// When to look, where that is not at once.
    timer: TimerFd,
}

/// A look that is under way.
struct Look {
    listens: Listens,
    found: Mutex<Found>,
    done: EventFd,
}

/// What a look has come to.
#[derive(Default)]
struct Found {
    sign: Option<(Sign, String)>,
    took: Duration,
}

/// When is looked, and what comes of it.
#[derive(Default)]
struct Course {
    is_looking: bool,
    /// Something was heard since the last look began.
    has_heard: bool,
    /// No look is made before.
    rests_until: Option<Instant>,
    /// The log says that the guest hangs, by this line, and what is behind that is waited for until then: registers, the
    /// call trace, other processors', and a panic.
    hang: Option<(String, Instant)>,
    /// It was said that the guest is not ended.
    has_warned: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Look,
    Wait(Duration),
    Nothing,
}

impl Course {
    fn next(&mut self, now: Instant) -> Next {
        let due = match &self.hang {
            _ if self.is_looking => None,
            Some((_, until)) => Some(*until),
            None => self.has_heard.then_some(self.rests_until.unwrap_or(now)),
        };
        match due.map(|due| due.saturating_duration_since(now)) {
            None => Next::Nothing,
            Some(Duration::ZERO) => {
                (self.is_looking, self.has_heard) = (true, false);
                Next::Look
            }
            Some(left) => Next::Wait(left),
        }
    }

    /// The look has not begun: it is tried again.
    fn put_off(&mut self, now: Instant) {
        let later = now + looks::rest_after(Duration::ZERO);
        (self.is_looking, self.has_heard, self.rests_until) = (false, true, Some(later));
        if let Some((_, until)) = &mut self.hang {
            *until = later;
        }
    }

    /// What becomes of the guest, by what a look has found; somebody who debugs it, or has stopped it, has it in their hands.
    fn looked(&mut self, found: Found, is_in_hands: bool, now: Instant) -> Option<Outcome> {
        self.is_looking = false;
        self.rests_until = now.checked_add(looks::rest_after(found.took));
        let former = self.hang.take();
        let line = match found.sign {
            Some((Sign::Panic, _)) => return Some(Outcome::Ended(End::Crash)),
            Some((Sign::Hang, line)) => line,
            // It was there: much has come behind it.
            Some((Sign::Trouble(_), _)) | None => former.as_ref()?.0.clone(),
        };
        if is_in_hands {
            if !std::mem::replace(&mut self.has_warned, true) {
                log::warn!(
                    "the guest's kernel says that it hangs; it is not ended, as it is debugged or stopped: {line}"
                );
            }
            return None;
        }
        if let Some((line, _)) = former {
            return Some(Outcome::Hang { line });
        }
        self.hang = Some((line, now + AFTER_SIGN));
        None
    }
}

impl SignLook {
    pub fn new(running: &Rc<Running>, listens: Listens, heard: &Arc<EventFd>) -> Result<SignLook, Error> {
        let done = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::system("cannot make an eventfd"))?;
        let timer = TimerFd::new().map_err(|error| Error::system("cannot make a timer")(error.into()))?;
        let look = Arc::new(Look { listens, found: Mutex::default(), done });
        let (running, heard) = (Rc::clone(running), Arc::clone(heard));
        Ok(SignLook { running, heard, look, course: Course::default(), timer })
    }

    fn go_on(&mut self) {
        let mut next = self.course.next(Instant::now());
        if next == Next::Look {
            let (look, dumper) = (Arc::clone(&self.look), self.running.guest.dumper().clone());
            let thread = Builder::new().name("sign-look".into());
            if let Err(error) = threads::start("look", thread, move || look.look(&dumper)) {
                log::warn!("the log of the guest's kernel is looked at later: {error}");
                let now = Instant::now();
                self.course.put_off(now);
                next = self.course.next(now);
            }
        }
        if let Next::Wait(left) = next
            && let Err(error) = self.timer.reset(left, None)
        {
            log::error!("cannot wait to look at the log of the guest's kernel: {error}");
        }
    }

    fn is_in_hands(&self) -> bool {
        let guest = &self.running.guest;
        guest.is_debugged() || guest.attachment().is_stopped()
    }
}

impl Look {
    fn look(&self, dumper: &Dumper) {
        let begun = Instant::now();
        let sign = self.listens.choose(dumper.signs(&mut || true));
        let found = Found { sign, took: begun.elapsed() };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        if let Err(error) = self.done.write(1) {
            log::error!("cannot tell what the log of the guest's kernel says: {error}");
        }
    }
}

impl MutEventSubscriber for SignLook {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.heard.as_raw_fd(), self.look.done.as_raw_fd(), self.timer.as_raw_fd()] {
            watch(ops, fd, EventSet::IN);
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        if events.fd() == self.heard.as_raw_fd() {
            drain(&self.heard);
            self.course.has_heard = true;
        } else if events.fd() == self.timer.as_raw_fd() {
            // This takes its count.
            if let Err(error) = self.timer.clear() {
                log::error!("cannot clear a timer: {error}");
            }
        } else {
            drain(&self.look.done);
            let found = std::mem::take(&mut *self.look.found.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(outcome) = self.course.looked(found, self.is_in_hands(), Instant::now()) {
                return self.running.end(outcome);
            }
        }
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(300);

    fn found(sign: Option<Sign>) -> Found {
        Found { sign: sign.map(|sign| (sign, format!("{sign:?}"))), took: TOOK }
    }

    fn heard(now: Instant) -> Course {
        let mut course = Course { has_heard: true, ..Course::default() };
        assert_eq!(course.next(now), Next::Look);
        assert_eq!(course.next(now), Next::Nothing);
        course
    }

    #[test]
    fn what_is_behind_a_hang_is_waited_for_and_a_panic_outranks_it() {
        let begin = Instant::now();
        for (behind, outcome) in [
            (Some(Sign::Panic), Outcome::Ended(End::Crash)),
            (Some(Sign::Hang), Outcome::Hang { line: "Hang".into() }),
            (None, Outcome::Hang { line: "Hang".into() }),
        ] {
            let mut course = heard(begin);
            assert_eq!(course.looked(found(Some(Sign::Hang)), false, begin), None);
            assert_eq!(course.next(begin), Next::Wait(AFTER_SIGN));
            // Its last words are no reason to look sooner.
            course.has_heard = true;
            assert_eq!(course.next(begin + AFTER_SIGN / 2), Next::Wait(AFTER_SIGN / 2));
            assert_eq!(course.next(begin + AFTER_SIGN), Next::Look);
            assert_eq!(course.looked(found(behind), false, begin + AFTER_SIGN), Some(outcome));
        }
        let mut course = heard(begin);
        assert_eq!(
            course.looked(found(Some(Sign::Panic)), true, begin),
            Some(Outcome::Ended(End::Crash)),
            "a kernel that has panicked does nothing more"
        );
    }

    #[test]
    fn what_somebody_has_in_hand_is_not_ended() {
        let begin = Instant::now();
        let mut course = heard(begin);
        assert_eq!(course.looked(found(Some(Sign::Hang)), true, begin), None);
        assert!(course.has_warned);
        assert_eq!(course.next(begin + AFTER_SIGN), Next::Nothing);
        // Somebody comes while it is waited for what is behind it.
        let mut course = heard(begin);
        assert_eq!(course.looked(found(Some(Sign::Hang)), false, begin), None);
        assert_eq!(course.next(begin + AFTER_SIGN), Next::Look);
        assert_eq!(course.looked(found(None), true, begin + AFTER_SIGN), None);
        assert_eq!(course.next(begin + 2 * AFTER_SIGN), Next::Nothing);
    }

    #[test]
    fn a_guest_that_only_says_so_is_looked_at_rarely() {
        let begin = Instant::now();
        let mut course = heard(begin);
        course.has_heard = true;
        assert_eq!(course.next(begin), Next::Nothing, "one look at a time");
        assert_eq!(course.looked(found(None), false, begin), None);
        assert_eq!(course.next(begin), Next::Wait(10 * TOOK));
        assert_eq!(course.next(begin + 10 * TOOK), Next::Look);
        // No thread was to be had.
        course.put_off(begin);
        assert_eq!(course.next(begin), Next::Wait(Duration::from_secs(1)));
        assert_eq!(course.next(begin + Duration::from_secs(1)), Next::Look);
    }
}
