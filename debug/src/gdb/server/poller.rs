//! One descriptor for all that a server waits for, for an event loop of somebody else's.

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Becomes readable when one of the descriptors that it was given is ready, or when its time is over (epoll(7),
/// timerfd_create(2)).
#[derive(Debug)]
pub(in crate::gdb) struct Poller {
    epoll: Epoll,
    timer: TimerFd,
}

impl Poller {
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Poller { epoll, timer })
    }

    /// Waits for these, and no longer than `timeout`, from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn arm(
        &self,
        interests: &[(BorrowedFd<'_>, PollFlags)],
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        for (fd, flags) in interests {
            // One that is closed has gone from here by itself; one without flags would tell of errors, which nobody
            // serves then.
            let result = match flags.is_empty() {
                true => self.epoll.delete(fd),
                false => {
                    let mut event = EpollEvent::new(epoll_flags(*flags), 0);
                    match self.epoll.modify(fd, &mut event) {
                        Err(Errno::ENOENT) => self.epoll.add(fd, event),
                        result => result,
                    }
                }
            };
            match result {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match timeout {
            // Setting it also takes its last expiry back. Zero would be never.
            Some(left) => {
                let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
                self.timer.set(Expiration::OneShot(left), TimerSetTimeFlags::empty())?;
            }
            None => self.timer.unset()?,
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

fn epoll_flags(flags: PollFlags) -> EpollFlags {
    let mut all = EpollFlags::empty();
    all.set(EpollFlags::EPOLLIN, flags.contains(PollFlags::POLLIN));
    all.set(EpollFlags::EPOLLOUT, flags.contains(PollFlags::POLLOUT));
    all
}
