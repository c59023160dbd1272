//! Serving those who follow a guest, each on the thread of its connection: what happens ([`events`]), and its console
//! ([`attach`]).

use super::feed::{Feed, Follower, News};
use super::pending::Pending;
use super::protocol::{Event, Happened, Response, Stopper, send};
use crate::machine::debugger::Debugger;
use arch::plain::plain_lines;
use debug::abilities::Access;
use debug::context::{Id, Kind, Listener, Notice, Stopped};
use debug::linux::trouble;
use debug::machine::StopReason;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
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
/// Likewise of somebody who has typed them and gone: they wait nowhere else.
const MOST_LEFT: usize = 64 << 10;
/// Pieces of the console that are printed before it is looked whether something is typed.
const TURN: usize = 8;

/// Waits for what `flags` say of whoever follows, for news if they are wanted, or up to `limit` milliseconds: whether there
/// is something to be read; an error when the other end has gone.
fn wait(stream: &UnixStream, flags: PollFlags, news: Option<&Follower>, limit: u16) -> io::Result<bool> {
    let mut polled = vec![PollFd::new(stream.as_fd(), flags)];
    polled.extend(news.map(|follower| PollFd::new(follower.wake(), PollFlags::POLLIN)));
    match poll(&mut polled, PollTimeout::from(limit)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let seen = polled[0].revents().unwrap_or(PollFlags::empty());
    if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
        return Err(ErrorKind::BrokenPipe.into());
    }
    Ok(seen.contains(PollFlags::POLLIN))
}

/// Tells what happens, in its order, until the guest is over or nobody reads it any more.
///
/// # Errors
/// What the stream says.
pub fn events(stream: &UnixStream, feed: &Feed, follower: &Follower, console: bool) -> io::Result<()> {
    let (mut teller, mut heard) = (Teller { stream, console, lines: Lines::default() }, Heard::default());
    let mut waiting: Vec<(u64, News)> = Vec::new();
    loop {
        let now = feed.now();
        while let Some((at, news)) = follower.take() {
            waiting.push((at, news));
            if at > now {
                break;
            }
        }
        waiting.extend(heard.look(feed));
        let is_end = |news: &News| matches!(news, News::Event(Event::Ended { .. }));
        waiting.sort_by_key(|(at, news)| (is_end(news), *at));
        let is_over = waiting.iter().any(|(_, news)| is_end(news));
        // There may be more already that is no later than what came behind this.
        let known = waiting.partition_point(|(at, _)| is_over || *at <= now);
        for (at, news) in waiting.drain(..known) {
            teller.tell(at, news)?;
        }
        if is_over {
            return Ok(());
        }
        if waiting.is_empty() {
            wait(stream, PollFlags::empty(), Some(follower), LOOK)?;
        }
    }
}

/// Tells one thing after the other.
struct Teller<'a> {
    stream: &'a UnixStream,
    /// Lines of the console, too.
    console: bool,
    lines: Lines,
}

impl Teller<'_> {
    fn tell(&mut self, at: u64, news: News) -> io::Result<()> {
        match news {
            News::Output(bytes) => {
                for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                    let line = self.lines.push(piece);
                    self.line(at, line)?;
                }
                Ok(())
            }
            News::Lost(count) => {
                self.end_line(at)?;
                self.send(at, Event::Lost { count })
            }
            News::Event(event) => {
                if matches!(event, Event::Restarted {} | Event::Ended { .. }) {
                    self.end_line(at)?;
                }
                self.send(at, event)
            }
        }
    }

    /// What comes is not of the line that has begun.
    fn end_line(&mut self, at: u64) -> io::Result<()> {
        let line = self.lines.finish();
        self.line(at, line)
    }

    fn line(&self, at: u64, line: Option<String>) -> io::Result<()> {
        let Some(line) = line else { return Ok(()) };
        if trouble::is_panic(&line) {
            self.send(at, Event::Panicked { line: line.clone() })?;
        }
        if self.console { self.send(at, Event::Console { line }) } else { Ok(()) }
    }

    fn send(&self, milliseconds: u64, event: Event) -> io::Result<()> {
        send(self.stream, &Response::Event(Happened { milliseconds, event: harmless(event) }))
    }
}

/// An event as it may reach a terminal. Lines of the console [are so](Lines) before they are cut.
fn harmless(event: Event) -> Event {
    match event {
        Event::Stopped { by, reason, detail, vcpu } => {
            Event::Stopped { by, reason, detail: detail.map(|detail| plain_lines(&detail)), vcpu }
        }
        Event::Ended { code, text } => Event::Ended { code, text: plain_lines(&text) },
        other => other,
    }
}

/// Lines of what a guest prints, which do nothing to a terminal.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The line that ends with this piece of it, without its end.
    fn push(&mut self, piece: &[u8]) -> Option<String> {
        let text = piece.strip_suffix(b"\n").unwrap_or(piece);
        let room = LONGEST_LINE.saturating_sub(self.0.len());
        self.0.extend_from_slice(&text[..text.len().min(room)]);
        (text.len() < piece.len()).then(|| self.take())
    }

    /// What there is of a line that has begun.
    fn finish(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.0);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
        let mut line = plain_lines(&String::from_utf8_lossy(bytes));
        // It may have become longer.
        let mut end = line.len().min(LONGEST_LINE);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line
    }
}

/// What debuggers tell: the guest's, and those before it that have not said their last word.
#[derive(Default)]
struct Heard(Vec<Ear>);

impl Heard {
    /// What has been told since the last time.
    fn look(&mut self, feed: &Feed) -> Vec<(u64, News)> {
        let debugger = feed.guest().and_then(|guest| guest.attachment.debugger());
        if let Some(debugger) = debugger {
            let is_known = self.0.iter().any(|ear| Weak::as_ptr(&ear.debugger) == Arc::as_ptr(&debugger));
            let listeners = debugger.listeners().filter(|_| !is_known);
            self.0.extend(listeners.map(|listeners| Ear {
                debugger: Arc::downgrade(&debugger),
                listener: listeners.add(MOST_NOTICES),
                vcpus: HashMap::new(),
            }));
        }
        let mut events = Vec::new();
        self.0.retain_mut(|ear| {
            // One that has left its place lets the guest run after that, and tells of it until it is no more.
            let is_there = ear.debugger.strong_count() > 0;
            events.extend(ear.hear(feed));
            is_there
        });
        events
    }
}

/// What hears one of them.
struct Ear {
    debugger: Weak<Debugger>,
    listener: Listener,
    vcpus: HashMap<Id, u32>,
}

impl Ear {
    fn hear(&mut self, feed: &Feed) -> Vec<(u64, News)> {
        let mut events = Vec::new();
        while let Some((at, notice)) = self.listener.take_with_time() {
            let event = match notice {
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
            };
            events.extend(event.map(|event| (feed.milliseconds(at), News::Event(event))));
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

/// Is the guest's console, until the guest is over or the other end has gone. What is typed goes to the guest as long as
/// there is a `typist`, who goes when nothing more is to be typed.
///
/// # Errors
/// What the stream says.
pub fn attach(
    stream: &UnixStream,
    feed: &Feed,
    follower: &Follower,
    typist: Option<Arc<()>>,
) -> io::Result<()> {
    // A guest that begins again just now has no input.
    let input = |typed: &[u8]| feed.guest()?.input.receive(typed);
    stream.set_nonblocking(true)?;
    let mut seat = Seat { stream, follower, typist, input: &input, printed: Pending::default() };
    let carried = seat.carry(feed);
    if carried.is_err() {
        seat.hear_the_last();
    }
    carried
}

/// A place at a guest's console. It waits for neither end: whoever does not read what is printed can type all the same.
struct Seat<'a> {
    stream: &'a UnixStream,
    follower: &'a Follower,
    /// The right to type.
    typist: Option<Arc<()>>,
    /// Gives the guest what is typed: how many bytes wait for it to read, and `None` where there is none.
    input: &'a dyn Fn(&[u8]) -> Option<usize>,
    /// What waits for room: a piece of what there is, and the follower's bound is that of the rest.
    printed: Pending,
}

impl Seat<'_> {
    fn carry(&mut self, feed: &Feed) -> io::Result<()> {
        loop {
            // All that is printed has been told by then.
            let is_over = feed.is_over();
            let is_more = self.print()?;
            if is_over && !is_more && self.printed.is_empty() {
                return Ok(());
            }
            let has_room = (self.input)(&[]).is_some_and(|waiting| waiting < MOST_TYPED);
            if !has_room && self.types_no_more() {
                self.typist = None;
            }
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.typist.is_some() && has_room);
            flags.set(PollFlags::POLLOUT, !self.printed.is_empty());
            let news = self.printed.is_empty().then_some(self.follower);
            if wait(self.stream, flags, news, if is_more { 0 } else { LOOK })? {
                self.hear()?;
            }
        }
    }

    /// Prints some of what there is, as there is room for it; whether there may be more for which there is.
    fn print(&mut self) -> io::Result<bool> {
        for _ in 0..TURN {
            while !self.printed.is_empty() {
                if !self.printed.write_some(self.stream, usize::MAX)? {
                    return Ok(false);
                }
            }
            match self.follower.take() {
                Some((_, News::Output(bytes))) => self.printed.push(&bytes),
                Some((_, News::Lost(count))) => {
                    self.printed.push(format!("\r\n[{count} bytes are lost here]\r\n").as_bytes());
                }
                Some((_, News::Event(_))) => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether nothing more will be typed and all that was has been heard: a guest that reads nothing keeps nobody from
    /// leaving the typing to others.
    fn types_no_more(&self) -> bool {
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut [0], peek) == Ok(0)
    }

    /// Passes on what is typed.
    fn hear(&mut self) -> io::Result<()> {
        let mut typed = [0; 1024];
        match { self.stream }.read(&mut typed) {
            // Somebody else may type from now on, and this one is a watcher.
            Ok(0) => self.typist = None,
            Ok(count) => {
                (self.input)(&typed[..count]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Passes on what somebody has typed who has gone, up to a bound.
    fn hear_the_last(&mut self) {
        while self.typist.is_some() && (self.input)(&[]).is_some_and(|waiting| waiting < MOST_LEFT) {
            let mut typed = [0; 1024];
            match { self.stream }.read(&mut typed) {
                Ok(count @ 1..) => (self.input)(&typed[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::feed::Follows;
    use std::cell::RefCell;
    use std::io::{BufRead, BufReader, Write};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn lines_are_told_whole_and_bounded() {
        let mut lines = Lines::default();
        let mut push = |bytes: &[u8]| {
            let pieces = bytes.split_inclusive(|byte| *byte == b'\n');
            pieces.filter_map(|piece| lines.push(piece)).collect::<Vec<_>>()
        };
        assert_eq!(push(b"one\r\ntw"), ["one"]);
        assert_eq!(push(b"o\n\n"), ["two", ""]);
        assert!(push(&vec![b'x'; LONGEST_LINE + 10]).is_empty());
        let line = push(b"y\n").remove(0);
        assert_eq!((line.len(), line.ends_with('x')), (LONGEST_LINE, true));
        assert_eq!(push(b"\xff\n"), ["\u{fffd}"]);
        // What becomes longer as text is cut behind that.
        let line = push(&[&[0xff; LONGEST_LINE][..], b"\n"].concat()).remove(0);
        assert_eq!(line, "\u{fffd}".repeat(LONGEST_LINE / 3));
        // It does nothing to a terminal.
        assert_eq!(push("\u{9b}2J\ta\u{202e}b\n".as_bytes()), ["\u{fffd}2J\ta\u{fffd}b"]);
        assert!(push(b"rest").is_empty());
        assert_eq!((lines.finish(), lines.finish()), (Some("rest".into()), None));
    }

    fn told(stream: UnixStream) -> Vec<Happened> {
        let happened = |line: io::Result<String>| match serde_json::from_str(&line.unwrap()).unwrap() {
            Response::Event(happened) => happened,
            other => panic!("{other:?}"),
        };
        BufReader::new(stream).lines().map(happened).collect()
    }

    /// What is told of a guest comes in lines, in its order, up to its end.
    #[test]
    fn events_come_in_lines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let feed = Feed::new();
        let follower = feed.follow(Follows::Console).unwrap();
        let mut output = feed.output(Box::new(io::sink()));
        let its = Arc::clone(&feed);
        let serving = thread::spawn(move || events(&ours, &its, &follower, true));
        output.write_all(b"hello\r\n[    1.0] Kernel panic - not syncing: so\r\n").unwrap();
        feed.tell(&Event::Stopped { by: Stopper::Control, reason: None, detail: None, vcpu: None });
        output.write_all(b"of the one").unwrap();
        feed.tell(&Event::Restarted {});
        output.write_all(b"of the other").unwrap();
        feed.end(&Event::Ended { code: 2, text: "it is\n\x1b over".into() }, Duration::from_secs(60));
        serving.join().unwrap().unwrap();
        let panic = "[    1.0] Kernel panic - not syncing: so".to_string();
        let console = |line: &str| Event::Console { line: line.into() };
        let expected = [
            console("hello"),
            Event::Panicked { line: panic.clone() },
            console(&panic),
            Event::Stopped { by: Stopper::Control, reason: None, detail: None, vcpu: None },
            console("of the one"),
            Event::Restarted {},
            console("of the other"),
            Event::Ended { code: 2, text: "it is\n\u{fffd} over".into() },
        ];
        let told = told(theirs);
        assert!(told.is_sorted_by_key(|happened| happened.milliseconds), "{told:?}");
        let told: Vec<Event> = told.into_iter().map(|happened| happened.event).collect();
        assert_eq!(told, expected);
    }

    /// What is in front of a loss is no part of the line behind it.
    #[test]
    fn a_loss_ends_a_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut teller = Teller { stream: &ours, console: true, lines: Lines::default() };
        for news in [News::Output(b"one".to_vec()), News::Lost(7), News::Output(b"two\n".to_vec())] {
            teller.tell(5, news).unwrap();
        }
        drop(ours);
        let told: Vec<Event> = told(theirs).into_iter().map(|happened| happened.event).collect();
        let console = |line: &str| Event::Console { line: line.into() };
        assert_eq!(told, [console("one"), Event::Lost { count: 7 }, console("two")]);
    }

    /// Nobody is served who has gone, and the console is raw.
    #[test]
    fn a_console_is_watched_until_either_end_goes() {
        let feed = Feed::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (its, follower, typist) =
            (Arc::clone(&feed), feed.follow(Follows::Console).unwrap(), feed.type_on());
        let serving = thread::spawn(move || attach(&ours, &its, &follower, typist));
        feed.output(Box::new(io::sink())).write_all(b"\x1b[2Jhello").unwrap();
        let mut seen = [0; 9];
        theirs.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x1b[2Jhello");
        drop(theirs);
        assert!(serving.join().unwrap().is_err());
        // Its place is another one's.
        assert!(feed.type_on().is_some());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (its, follower) = (Arc::clone(&feed), feed.follow(Follows::Console).unwrap());
        let serving = thread::spawn(move || attach(&ours, &its, &follower, None));
        feed.end(&Event::Restarted {}, Duration::from_secs(60));
        serving.join().unwrap().unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }

    /// Somebody who types and reads nothing is heard, as far as the guest has room, and after having gone as well.
    #[test]
    fn what_is_typed_is_heard_though_nothing_is_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let feed = Feed::new();
        let (follower, typist) = (feed.follow(Follows::Console).unwrap(), feed.type_on());
        let typed = RefCell::new(Vec::new());
        let input = |bytes: &[u8]| {
            typed.borrow_mut().extend_from_slice(bytes);
            Some(typed.borrow().len())
        };
        let mut seat =
            Seat { stream: &ours, follower: &follower, typist, input: &input, printed: Pending::default() };
        let mut output = feed.output(Box::new(io::sink()));
        // More than both sockets hold.
        for _ in 0..16 {
            output.write_all(&[b'x'; 256 << 10]).unwrap();
            while seat.print().unwrap() {}
        }
        assert!(!seat.printed.is_empty());
        theirs.write_all(b"one").unwrap();
        seat.hear().unwrap();
        assert_eq!(*typed.borrow(), b"one");
        theirs.write_all(&[b'y'; 10_000]).unwrap();
        drop(theirs);
        assert!(seat.carry(&feed).is_err());
        seat.hear_the_last();
        assert_eq!(typed.borrow().len(), 10_003);
    }

    #[test]
    fn who_types_nothing_more_leaves_that_to_others() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let feed = Feed::new();
        let (its, follower, typist) =
            (Arc::clone(&feed), feed.follow(Follows::Console).unwrap(), feed.type_on());
        let input = |_: &[u8]| Some(MOST_TYPED);
        let mut seat =
            Seat { stream: &ours, follower: &follower, typist, input: &input, printed: Pending::default() };
        assert!(!seat.types_no_more() && its.type_on().is_none());
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        // Also where the guest has no room for what might be typed.
        assert!(seat.types_no_more());
        seat.hear().unwrap();
        assert!(its.type_on().is_some());
    }
}
