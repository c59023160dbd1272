//! A guest's kernel says on the console that it has panicked and stays where it is. Whoever can write there can
//! say so, again and again, so it is only a reason to look into the kernel's log; and as that may take a while,
//! it is looked at on a thread of its own, while the event loop sees keys, signals and the time.

use super::events::{Running, drain, watch};
use crate::error::Error;
use crate::machine::dumper::Dumper;
use crate::outcome::Outcome;
use arch::End;
use debug::threads;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use vmm_sys_util::eventfd::EventFd;

/// Looks when something was heard, and ends the guest if it is true.
pub struct PanicLook {
    running: Rc<Running>,
    heard: Arc<EventFd>,
    look: Arc<Look>,
    is_looking: bool,
    /// It was heard again since.
    again: bool,
}

/// A look that is under way.
struct Look {
    found: AtomicBool,
    done: EventFd,
}

impl PanicLook {
    pub fn new(running: &Rc<Running>, heard: &Arc<EventFd>) -> Result<PanicLook, Error> {
        let done = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(Error::system("cannot make an eventfd"))?;
        let look = Arc::new(Look { found: AtomicBool::new(false), done });
        Ok(PanicLook {
            running: Rc::clone(running),
            heard: Arc::clone(heard),
            look,
            is_looking: false,
            again: false,
        })
    }

    fn start(&mut self) {
        let (look, dumper) = (Arc::clone(&self.look), self.running.guest.dumper().clone());
        let thread = Builder::new().name("panic-look".into());
        match threads::start("look", thread, move || look.look(&dumper)) {
            Ok(_) => (self.is_looking, self.again) = (true, false),
            Err(error) => log::warn!("whether the guest has panicked is not looked at: {error}"),
        }
    }
}

impl Look {
    fn look(&self, dumper: &Dumper) {
        self.found.store(dumper.has_panicked(&mut || true), Ordering::Release);
        if let Err(error) = self.done.write(1) {
            log::error!("cannot tell whether the guest has panicked: {error}");
        }
    }
}

impl MutEventSubscriber for PanicLook {
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
            if self.look.found.load(Ordering::Acquire) {
                return self.running.end(Outcome::Ended(End::Crash));
            }
        }
        if self.again && !self.is_looking {
            self.start();
        }
    }
}
