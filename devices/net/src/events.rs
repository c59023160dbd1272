//! What the host's sockets have news of: one descriptor for all of them, which whoever drives the stack polls.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::Duration;

/// Whose news it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Time has come for something.
    Timer,
    /// A connection.
    Connection(u64),
    /// A flow of datagrams.
    Flow(u64),
    /// A forwarded port, by its place in the list.
    Forward(u64),
}

/// Kinds of tokens are two bits, numbers the others.
const KIND: u32 = 62;

impl Token {
    fn word(self) -> u64 {
        match self {
            Token::Timer => 0,
            Token::Connection(number) => 1 << KIND | number,
            Token::Flow(number) => 2 << KIND | number,
            Token::Forward(number) => 3 << KIND | number,
        }
    }

    fn of(word: u64) -> Token {
        let number = word & ((1 << KIND) - 1);
        match word >> KIND {
            0 => Token::Timer,
            1 => Token::Connection(number),
            2 => Token::Flow(number),
            _ => Token::Forward(number),
        }
    }
}

/// What has happened to a socket since it was heard of last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    pub token: Token,
    pub is_readable: bool,
    pub is_writable: bool,
    /// Both directions are over, or it has failed.
    pub is_over: bool,
}

/// All that is listened to.
#[derive(Debug)]
pub struct Events {
    epoll: OwnedFd,
    timer: OwnedFd,
}

impl Events {
    pub fn new() -> io::Result<Events> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let events = Events { epoll, timer };
        events.add(&events.timer, Token::Timer)?;
        Ok(events)
    }

    #[cfg(test)]
    pub fn borrowed(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The one descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Listens to a socket, until it is closed. What is there is told once: whoever hears of it reads and writes until
    /// the socket would wait.
    pub fn add(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(token.word()), flags)
    }

    /// Takes what has come; whether there may be more.
    pub fn take(&self, news: &mut Vec<News>) -> bool {
        const AT_ONCE: usize = 64;
        let none = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; AT_ONCE];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut events[..], Some(&now)).unwrap_or(0);
        news.extend(events[..count].iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            News {
                token: Token::of(data.u64()),
                is_readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                is_writable: flags.contains(EventFlags::OUT),
                is_over: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            }
        }));
        count == AT_ONCE
    }

    /// Rings once after so long a time, or not at all.
    pub fn set_timer(&self, after: Option<Duration>) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Nothing at all would stop the timer.
        let after = after.map(|after| after.max(Duration::from_nanos(1)));
        let value = after.map_or(zero, |after| Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        });
        let spec = Itimerspec { it_interval: zero, it_value: value };
        // It fails for no time that is one.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).ok();
    }
}
