//! Asking a guest of another process.

use super::names::socket_of;
use super::protocol::{Request, Response, send};
use crate::logging;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Asks the guest of a name, or the one whose socket has this path; the last reply. How far it is is told meanwhile.
///
/// # Errors
/// When no guest can be reached there, or it says what is no reply.
pub fn ask(guest: &str, request: &Request) -> io::Result<Response> {
    let socket = if guest.contains('/') { PathBuf::from(guest) } else { socket_of(guest)? };
    let stream = UnixStream::connect(socket)?;
    match send(&stream, request) {
        // One that is not served may have been told so already.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut last = Response::Percent(0);
    for line in BufReader::new(stream).lines() {
        last = serde_json::from_str(&line?)?;
        match &last {
            Response::Percent(percent) => logging::print(&format!("{percent} %\n")),
            Response::Done(_) | Response::Error(_) => break,
        }
    }
    Ok(last)
}
