//! Asking a guest of another process.

use super::descriptor;
use super::names::socket_of;
use super::protocol::{LONGEST, Request, Response, send};
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
    send(&stream, request)?;
    let mut line = String::new();
    BufReader::new(&stream).take(LONGEST as u64).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
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
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    let sent = match given {
        Some(given) => descriptor::send(&stream, line.as_bytes(), given),
        None => (&stream).write_all(line.as_bytes()),
    };
    match sent {
        // One that is not served may have been told so already.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
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
        last = serde_json::from_str(&line)?;
        match &last {
            Response::Percent(percent) => logging::print(&format!("{percent} %\n")),
            Response::Done(_)
            | Response::Error(_)
            | Response::Answer(_)
            | Response::Info(_)
            | Response::Event(_) => return Ok(last),
        }
    }
}

/// Connects to the guest of a name, or to the one whose socket has this path.
fn connect(guest: &str) -> io::Result<UnixStream> {
    let socket = if guest.contains('/') { PathBuf::from(guest) } else { socket_of(guest)? };
    UnixStream::connect(socket).map_err(|error| match error.kind() {
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
    send(&stream, request)?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < LONGEST {
        let mut byte = [0];
        // What is behind the line is no answer any more.
        stream.read_exact(&mut byte).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => {
                io::Error::other(format!("its monitor does not answer for {PATIENCE:?}"))
            }
            ErrorKind::UnexpectedEof => io::Error::other("its monitor does not answer"),
            _ => error,
        })?;
        line.extend(byte);
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok((stream, serde_json::from_slice(&line)?))
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
