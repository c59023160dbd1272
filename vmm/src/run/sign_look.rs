//! A guest's kernel says on the console that it has panicked and stays where it is, or that it hangs. Whoever can write
//! there can say so, again and again, so it is only a reason to look into the kernel's log; and as that may take a while,
//! it is looked at on a thread of its own, while the event loop sees keys, signals and the time.

use super::events::{Running, drain, watch};
use super::sign_watch::Listens;
use crate::error::Error;
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
use vmm_sys_util::eventfd::EventFd;

/// Looks when something was heard, and ends the guest if it is true.
pub struct SignLook {
    running: Rc<Running>,
    heard: Arc<EventFd>,
    look: Arc<Look>,
    is_looking: bool,
    /// It was heard again since.
    again: bool,
}

/// A look that is under way.
struct Look {
    listens: Listens,
    found: Mutex<Option<Outcome>>,
    done: EventFd,
}

impl SignLook {
    pub fn new(running: &Rc<Running>, listens: Listens, heard: &Arc<EventFd>) -> Result<SignLook, Error> {
        let done = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::system("cannot make an eventfd"))?;
        let look = Arc::new(Look { listens, found: Mutex::new(None), done });
        Ok(SignLook {
            running: Rc::clone(running),
            heard: Arc::clone(heard),
            look,
            is_looking: false,
            again: false,
        })
    }

    fn start(&mut self) {
        let (look, dumper) = (Arc::clone(&self.look), self.running.guest.dumper().clone());
        let thread = Builder::new().name("sign-look".into());
        match threads::start("look", thread, move || look.look(&dumper)) {
            Ok(_) => (self.is_looking, self.again) = (true, false),
            Err(error) => log::warn!("the log of the guest's kernel is not looked at: {error}"),
        }
    }
}

impl Look {
    fn look(&self, dumper: &Dumper) {
        let found = match dumper.sign(&mut || true) {
            Some((Sign::Panic, _)) if self.listens.panic => Some(Outcome::Ended(End::Crash)),
            Some((Sign::Hang, line)) if self.listens.hang => Some(Outcome::Hang { line }),
            _ => None,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        if let Err(error) = self.done.write(1) {
            log::error!("cannot tell what the log of the guest's kernel says: {error}");
        }
    }
}

impl MutEventSubscriber for SignLook {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.heard.as_raw_fd(), EventSet::IN);
        watch(ops, self.look.done.as_raw_fd(), EventSet::IN);
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        if events.fd() == self.heard.as_raw_fd() {
            drain(&self.heard);
            self.again = true;
        } else {
            drain(&self.look.done);
            self.is_looking = false;
            let found = self.look.found.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(outcome) = found {
                return self.running.end(outcome);
            }
        }
        if self.again && !self.is_looking {
            self.start();
        }
    }
}
