//! Asking a guest of another process.

use super::descriptor;
use super::names::socket_of;
use super::protocol::{LONGEST, Request, Response};
use crate::logging;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

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
    let stream = connect(guest)?;
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
    let stream = connect(guest)?;
    say(&stream, request, given)?;
    let mut last = Response::Percent(0);
    let (mut reader, mut line) = (BufReader::new(&stream), String::new());
    loop {
        line.clear();
        if reader.buffer().is_empty() {
            wait(&stream, ended)?;
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

fn path_of(guest: &str) -> io::Result<PathBuf> {
    if guest.contains('/') { Ok(guest.into()) } else { socket_of(guest) }
}

/// Connects to the guest of a name, or to the one whose socket has this path.
fn connect(guest: &str) -> io::Result<UnixStream> {
    UnixStream::connect(path_of(guest)?).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            io::Error::new(error.kind(), "no guest of this name runs")
        }
        _ => error,
    })
}

/// Asks for what has no end: the first of the answer, for which ten seconds are waited, and the connection, of which nothing
/// more has been read.
///
/// # Errors
/// As [`ask`], in words for whoever is asked by.
pub fn begin(guest: &str, request: &Request) -> io::Result<(UnixStream, Response)> {
    /// How long the guest's monitor may take to answer: it has nothing to wait for.
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut stream = connect(guest)?;
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

/// Waits for something to be read, or for the end.
fn wait(stream: &UnixStream, ended: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut polled = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    polled.extend(ended.map(|ended| PollFd::new(ended, PollFlags::POLLIN)));
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
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
    // What cannot be asked is not known to have been.
    let Ok(socket) = path_of(guest) else { return false };
    let ended = UnixStream::connect(&socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(LAST_MOMENT))?;
        // Nothing comes but the end.
        match stream.read(&mut [0]) {
            Ok(_) => UnixStream::connect(&socket).map(|_| ()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                UnixStream::connect(&socket).map(|_| ())
            }
            Err(error) => Err(error),
        }
    });
    ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::send;
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
}
