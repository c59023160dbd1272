//! Asking a guest of another process.

use super::descriptor;
use super::names::sockets_of;
use super::protocol::{LONGEST, Request, Response};
use crate::logging;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a guest's monitor may take to be connected to: it does that at once, unless it is suspended.
const LONGEST_KNOCK: Duration = Duration::from_secs(10);
/// After how long it is said that an answer is waited for.
const SILENCE: Duration = Duration::from_secs(3);

/// Asks the guest of a name, or the one whose socket has this path; the last reply. How far it is is told meanwhile.
///
/// # Errors
/// When no guest can be reached there, or it says what is no reply.
pub fn ask(guest: &str, request: &Request) -> io::Result<Response> {
    ask_with(guest, request, None, None)
}

/// Asks it, as [`ask`] does, and waits for `limit` at most for each piece of the answer.
///
/// # Errors
/// As [`ask`]; [`ErrorKind::WouldBlock`] when the time is over.
pub fn ask_within(guest: &str, request: &Request, limit: Duration) -> io::Result<Response> {
    let stream = connect(guest, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    say(&stream, request, None)?;
    let mut line = String::new();
    BufReader::new(&stream).take(LONGEST as u64).read_line(&mut line)?;
    if line.is_empty() {
        return Err(silence());
    }
    Ok(Response::read(&line)?)
}

/// Asks for something. One that is not served may have been told so already, and then nobody hears what it asks for.
fn say(mut stream: &UnixStream, request: &Request, given: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    let said = match given {
        Some(given) => descriptor::send(stream, line.as_bytes(), given),
        None => stream.write_all(line.as_bytes()),
    };
    match said {
        // The answer is there to be read.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Nothing is answered, and nothing will be.
fn silence() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it has ended before it had answered")
}

/// Asks it, as [`ask`] does, with a descriptor that it is to have. What becomes readable in `ended` breaks that off
/// ([`ErrorKind::Interrupted`]).
///
/// # Errors
/// As [`ask`].
pub fn ask_with(
    guest: &str,
    request: &Request,
    given: Option<BorrowedFd<'_>>,
    ended: Option<BorrowedFd<'_>>,
) -> io::Result<Response> {
    let stream = connect(guest, LONGEST_KNOCK)?;
    say(&stream, request, given)?;
    let mut last = Response::Percent(0);
    let (mut reader, mut line) = (BufReader::new(&stream), String::new());
    loop {
        line.clear();
        if reader.buffer().is_empty() {
            let silence = matches!(last, Response::Percent(0)).then_some(SILENCE);
            wait(&stream, ended, silence)?;
        }
        if reader.read_line(&mut line)? == 0 {
            return Ok(last);
        }
        last = Response::read(&line)?;
        match &last {
            Response::Percent(percent) => logging::print(&format!("{percent} %\n")),
            Response::Unknown => {}
            Response::Done(_)
            | Response::Error(_)
            | Response::Answer(_)
            | Response::Info(_)
            | Response::Event(_) => return Ok(last),
        }
    }
}

/// The sockets that a guest may have: that of this path, or those of its name.
fn sockets(guest: &str) -> io::Result<Vec<PathBuf>> {
    if guest.contains('/') { Ok(vec![guest.into()]) } else { sockets_of(guest) }
}

/// Connects to the guest of a name, or to the one whose socket has this path, within a time.
///
/// # Errors
/// [`ErrorKind::NotFound`] or [`ErrorKind::ConnectionRefused`] where there is none, or its process was killed;
/// [`ErrorKind::WouldBlock`] when the time is over.
fn connect(guest: &str, limit: Duration) -> io::Result<UnixStream> {
    let mut kind = ErrorKind::NotFound;
    for socket in sockets(guest)? {
        match connect_to(&socket, limit) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => kind = error.kind(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    error.kind(),
                    "its monitor does not answer: it is suspended, or busy",
                ));
            }
            result => return result,
        }
    }
    Err(io::Error::new(kind, "no guest of this name runs"))
}

/// Connects to a socket, whose queue may be full for as long as nobody accepts anyone: `limit` is what is waited for a place
/// there (Linux's unix(7) sockets keep SO_SNDTIMEO of socket(7) while they connect).
fn connect_to(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let stream =
        UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
    let (address, deadline) = (UnixAddr::new(path)?, Instant::now() + limit);
    loop {
        // None at all would be for ever.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_write_timeout(Some(left))?;
        match nix::sys::socket::connect(stream.as_raw_fd(), &address) {
            Err(Errno::EINTR) if Instant::now() < deadline => {}
            Err(Errno::EINTR) => return Err(ErrorKind::WouldBlock.into()),
            result => break result?,
        }
    }
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Asks for what has no end: the first of the answer, for which ten seconds are waited, and the connection, of which nothing
/// more has been read.
///
/// # Errors
/// As [`ask`], in words for whoever is asked by.
pub fn begin(guest: &str, request: &Request) -> io::Result<(UnixStream, Response)> {
    /// How long the guest's monitor may take to answer: it has nothing to wait for.
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut stream = connect(guest, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    say(&stream, request, None)?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < LONGEST {
        let mut byte = [0];
        // What is behind the line is no answer any more.
        stream.read_exact(&mut byte).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => {
                io::Error::other(format!("its monitor does not answer for {PATIENCE:?}"))
            }
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => silence(),
            _ => error,
        })?;
        line.extend(byte);
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let line = String::from_utf8(line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok((stream, Response::read(&line)?))
}

/// Waits for something to be read, or for the end; what is waited for is said after `silence`.
fn wait(stream: &UnixStream, ended: Option<BorrowedFd<'_>>, silence: Option<Duration>) -> io::Result<()> {
    let mut timeout =
        silence.map_or(PollTimeout::NONE, |it| PollTimeout::try_from(it).unwrap_or(PollTimeout::MAX));
    let mut polled = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    polled.extend(ended.map(|ended| PollFd::new(ended, PollFlags::POLLIN)));
    loop {
        match poll(&mut polled, timeout) {
            Ok(0) => {
                log::warn!("the guest's monitor has not answered yet, and is waited for (Ctrl-C ends that)");
                timeout = PollTimeout::NONE;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    match polled.get(1).and_then(PollFd::any) {
        Some(true) => Err(ErrorKind::Interrupted.into()),
        _ => Ok(()),
    }
}

/// Whether the guest of a name, which has just closed a connection, has left its socket behind, as one whose monitor was
/// killed: others take it with them.
pub fn was_killed(guest: &str) -> bool {
    /// How long it may take from one descriptor that it has closed to the last.
    const LAST_MOMENT: Duration = Duration::from_secs(1);
    let is_left = |socket: &PathBuf| {
        let again = || connect_to(socket, LAST_MOMENT).map(drop);
        let ended = connect_to(socket, LAST_MOMENT).and_then(|mut stream| {
            stream.set_read_timeout(Some(LAST_MOMENT))?;
            // Nothing comes but the end.
            match stream.read(&mut [0]) {
                Ok(_) => again(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => again(),
                Err(error) => Err(error),
            }
        });
        ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    // What cannot be asked is not known to have been.
    sockets(guest).is_ok_and(|sockets| sockets.iter().any(is_left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::send;
    use debug::socket::{Audience, bind};
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Asks one that answers at once, as one that does not serve, and hears nothing.
    fn refused(ask: impl FnOnce(&str) -> io::Result<Response>) -> io::Result<Response> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            send(&stream, &Response::Error("too many".into())).unwrap();
        });
        let answer = ask(path.to_str().unwrap());
        serving.join().unwrap();
        // It was no guest's that ended as it should.
        assert!(was_killed(path.to_str().unwrap()));
        answer
    }

    #[test]
    fn one_that_takes_its_socket_with_it_was_not_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.sock");
        let guest = path.to_str().unwrap();
        assert!(!was_killed(guest));
        for leaves in [false, true] {
            let listener = UnixListener::bind(&path).unwrap();
            let its = path.clone();
            let ending = thread::spawn(move || {
                let asked = listener.accept().unwrap();
                if !leaves {
                    std::fs::remove_file(its).unwrap();
                }
                drop((listener, asked));
            });
            assert_eq!(was_killed(guest), leaves);
            ending.join().unwrap();
        }
    }

    #[test]
    fn why_it_is_not_served_is_heard_whoever_asks() {
        let request = Request::Info {};
        let limit = Duration::from_secs(60);
        for answer in [
            refused(|guest| ask(guest, &request)),
            refused(|guest| ask_within(guest, &request, limit)),
            refused(|guest| begin(guest, &request).map(|(_, answer)| answer)),
        ] {
            assert!(matches!(&answer, Ok(Response::Error(why)) if why == "too many"), "{answer:?}");
        }
        // The other end has gone before it is asked.
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        say(&ours, &request, None).unwrap();
    }

    /// One that is suspended accepts nobody, and its queue is full some day.
    #[test]
    fn a_monitor_that_accepts_nobody_is_waited_for_for_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let served = bind(&path, Audience::Owner).unwrap();
        let mut queue = Vec::new();
        let full = loop {
            match connect_to(&path, Duration::from_millis(30)) {
                Ok(waits) => queue.push(waits),
                Err(error) => break error,
            }
        };
        assert_eq!((full.kind(), queue.is_empty()), (ErrorKind::WouldBlock, false));
        let named = connect(path.to_str().unwrap(), Duration::from_millis(30)).unwrap_err();
        assert!(named.kind() == ErrorKind::WouldBlock && named.to_string().contains("suspended"), "{named}");
        // Once there is a place again, it is had.
        served.listener().accept().unwrap();
        connect_to(&path, LONGEST_KNOCK).unwrap();
        drop(served);
        let gone = connect(path.to_str().unwrap(), LONGEST_KNOCK).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }
}
