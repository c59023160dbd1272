//! Serving those who follow a guest, each on the thread of its connection: what happens ([`events`]), and its console
//! ([`attach`]).

use super::feed::{Feed, Follower, News};
use super::protocol::{Event, Happened, Response, Stopper, send};
use crate::machine::debugger::Debugger;
use debug::abilities::Access;
use debug::context::{Id, Kind, Listener, Notice, Stopped};
use debug::linux::trouble;
use debug::machine::StopReason;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

/// How often a follower looks for a debugger, what that tells, and room for what is typed.
const LOOK: u16 = 50;
/// Notices of a debugger that wait for that look.
const MOST_NOTICES: usize = 256;
/// Bytes of a line of the console; more of it is not told.
const LONGEST_LINE: usize = 4096;
/// Typed bytes that wait for the guest, from which on nothing more is read.
const MOST_TYPED: usize = 4096;

/// Whether there is something to be read of whoever follows, after waiting for that or for news, or until the next look;
/// an error when the other end has gone.
fn wait(stream: &UnixStream, follower: &Follower, listens: bool) -> io::Result<bool> {
    let flags = if listens { PollFlags::POLLIN } else { PollFlags::empty() };
    let mut polled = [PollFd::new(stream.as_fd(), flags), PollFd::new(follower.wake(), PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::from(LOOK)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let seen = polled[0].revents().unwrap_or(PollFlags::empty());
    if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
        return Err(ErrorKind::BrokenPipe.into());
    }
    Ok(seen.contains(PollFlags::POLLIN))
}

/// Tells what happens, until the guest is over or nobody reads it any more.
///
/// # Errors
/// What the stream says.
pub fn events(stream: &UnixStream, feed: &Feed, follower: &Follower, console: bool) -> io::Result<()> {
    let (mut lines, mut heard) = (Lines::default(), Heard::default());
    let tell =
        |event: Event, milliseconds: u64| send(stream, &Response::Event(Happened { milliseconds, event }));
    loop {
        // What comes behind this is told by the news that wakes it.
        let is_over = feed.is_over();
        for event in heard.look(feed) {
            tell(event, feed.now())?;
        }
        while let Some(news) = follower.take() {
            match news {
                News::Event(event, milliseconds) => tell(event, milliseconds)?,
                News::Lost(count) => tell(Event::Lost { count }, feed.now())?,
                News::Output(bytes) => {
                    for line in lines.push(&bytes) {
                        if trouble::is_panic(&line) {
                            tell(Event::Panicked { line: line.clone() }, feed.now())?;
                        }
                        if console {
                            tell(Event::Console { line }, feed.now())?;
                        }
                    }
                }
            }
        }
        if is_over {
            return Ok(());
        }
        wait(stream, follower, false)?;
    }
}

/// Lines of what a guest prints.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Those that end in these bytes, without their ends.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.0);
                    lines.push(
                        String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned(),
                    );
                }
                _ if self.0.len() < LONGEST_LINE => self.0.push(*byte),
                _ => {}
            }
        }
        lines
    }
}

/// What debuggers tell.
#[derive(Default)]
struct Heard {
    debugger: Weak<Debugger>,
    listener: Option<Listener>,
    vcpus: HashMap<Id, u32>,
}

impl Heard {
    /// What the guest's debugger has told since the last time.
    fn look(&mut self, feed: &Feed) -> Vec<Event> {
        let debugger = feed.guest().and_then(|guest| guest.attachment.debugger());
        let is_known = match &debugger {
            Some(debugger) => Weak::as_ptr(&self.debugger) == Arc::as_ptr(debugger),
            None => self.listener.is_none(),
        };
        let mut events = Vec::new();
        let listener = match is_known {
            true => self.listener.take(),
            false => {
                // The last words of the one that has gone.
                events = self.listener.take().map_or(events, |listener| self.hear(&listener));
                self.debugger = debugger.as_ref().map(Arc::downgrade).unwrap_or_default();
                self.vcpus.clear();
                debugger.and_then(|debugger| Some(debugger.listeners()?.add(MOST_NOTICES)))
            }
        };
        events.extend(listener.as_ref().map(|listener| self.hear(listener)).unwrap_or_default());
        self.listener = listener;
        events
    }

    fn hear(&mut self, listener: &Listener) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(notice) = listener.take() {
            events.extend(match notice {
                Notice::Created(context) => {
                    if let Kind::Vcpu(number) = context.kind {
                        self.vcpus.insert(context.id, number);
                    }
                    None
                }
                Notice::Started(_) => Some(Event::Running { by: Stopper::Debugger }),
                Notice::Stopped(_, stopped) => Some(self.stopped(&stopped)),
                Notice::Lost(count) => Some(Event::Lost { count }),
                // The guest's end and its new beginning are told by who runs it.
                _ => None,
            });
        }
        events
    }

    fn stopped(&self, stopped: &Stopped) -> Event {
        let (reason, detail) = match &stopped.reason {
            StopReason::Breakpoint => ("breakpoint", None),
            StopReason::HardwareBreakpoint => ("hardware breakpoint", None),
            StopReason::Watchpoint { address, access } => {
                let what = match access {
                    Access::Read => "read",
                    Access::Write => "write",
                    Access::Any => "access",
                };
                ("watchpoint", Some(format!("{what} {address:#x}")))
            }
            StopReason::Step => ("step", None),
            StopReason::Interrupt => ("interrupt", None),
            StopReason::Hypercall(which) => ("hypercall", Some(which.clone())),
            StopReason::Fatal(why) => ("fatal", Some(why.clone())),
            StopReason::Refused(why) => ("refused", Some(why.clone())),
        };
        let vcpu = self.vcpus.get(&stopped.context).copied();
        Event::Stopped { by: Stopper::Debugger, reason: Some(reason.into()), detail, vcpu }
    }
}

/// Is the guest's console, until the guest is over or the other end has gone. What is typed goes to the guest if `types`.
///
/// # Errors
/// What the stream says.
pub fn attach(mut stream: &UnixStream, feed: &Feed, follower: &Follower, types: bool) -> io::Result<()> {
    let mut listens = types;
    loop {
        let is_over = feed.is_over();
        while let Some(news) = follower.take() {
            match news {
                News::Output(bytes) => stream.write_all(&bytes)?,
                News::Lost(count) => write!(stream, "\r\n[{count} bytes are lost here]\r\n")?,
                News::Event(..) => {}
            }
        }
        if is_over {
            return Ok(());
        }
        let input = feed.guest().map(|guest| guest.input);
        let waiting = input.as_ref().and_then(|input| input.receive(&[]));
        // A guest that begins again just now has none.
        let has_room = waiting.is_some_and(|waiting| waiting < MOST_TYPED);
        if wait(stream, follower, listens && has_room)?
            && let Some(input) = input
        {
            let mut typed = [0; 1024];
            let count = stream.read(&mut typed)?;
            // Nothing more is typed, and it is still watched.
            listens = count > 0;
            input.receive(&typed[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn lines_are_told_whole_and_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n\n"), ["two", ""]);
        assert!(lines.push(&vec![b'x'; LONGEST_LINE + 10]).is_empty());
        let line = lines.push(b"y\n").remove(0);
        assert_eq!((line.len(), line.ends_with('x')), (LONGEST_LINE, true));
        assert_eq!(lines.push(b"\xff\n"), ["\u{fffd}"]);
    }

    /// What is told of a guest comes in lines, up to its end.
    #[test]
    fn events_come_in_lines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let feed = Feed::new();
        let follower = feed.follow().unwrap();
        let mut output = feed.output(Box::new(io::sink()));
        let its = Arc::clone(&feed);
        let serving = thread::spawn(move || events(&ours, &its, &follower, true));
        output.write_all(b"hello\r\n[    1.0] Kernel panic - not syncing: so\r\n").unwrap();
        feed.tell(&Event::Stopped { by: Stopper::Control, reason: None, detail: None, vcpu: None });
        feed.end(&Event::Ended { code: 2, text: "it is over".into() }, Duration::from_secs(60));
        serving.join().unwrap().unwrap();
        let told: Vec<Event> = BufReader::new(theirs)
            .lines()
            .map(|line| match serde_json::from_str(&line.unwrap()).unwrap() {
                Response::Event(Happened { event, .. }) => event,
                other => panic!("{other:?}"),
            })
            .collect();
        let panic = "[    1.0] Kernel panic - not syncing: so".to_string();
        let expected = [
            Event::Console { line: "hello".into() },
            Event::Panicked { line: panic.clone() },
            Event::Console { line: panic },
            Event::Stopped { by: Stopper::Control, reason: None, detail: None, vcpu: None },
            Event::Ended { code: 2, text: "it is over".into() },
        ];
        assert_eq!(told, expected);
    }

    /// Nobody is served who has gone, and the console is raw.
    #[test]
    fn a_console_is_watched_until_either_end_goes() {
        let feed = Feed::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (its, follower) = (Arc::clone(&feed), feed.follow().unwrap());
        let serving = thread::spawn(move || attach(&ours, &its, &follower, true));
        feed.output(Box::new(io::sink())).write_all(b"\x1b[2Jhello").unwrap();
        let mut seen = [0; 9];
        theirs.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x1b[2Jhello");
        drop(theirs);
        assert!(serving.join().unwrap().is_err());
        // Its place is another one's.
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (its, follower) = (Arc::clone(&feed), feed.follow().unwrap());
        let serving = thread::spawn(move || attach(&ours, &its, &follower, false));
        feed.end(&Event::Restarted {}, Duration::from_secs(60));
        serving.join().unwrap().unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}
