//! `vmm events`: what happens to a guest, as it happens.

use super::named_guest::NamedGuest;
use super::stdout;
use crate::control::client::begin;
use crate::control::protocol::{Event, Request, Response};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;

/// Tell what happens to a guest, a line of JSON each: stopped, running, panicked, restarted, ended
///
/// It ends with the guest. docs/control.md has the fields.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The lines that the guest prints on its console, too
    #[arg(long)]
    console: bool,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let mut stream = None;
    let answer = args.guest.ask_of(|guest| {
        let (its, answer) = begin(guest, &Request::Events { console: args.console })?;
        stream = Some(its);
        Ok(answer)
    });
    match (answer, stream) {
        (Ok(Response::Info(_)), Some(stream)) => match tell(&stream) {
            Ok(code) => code,
            Err(error) => args.guest.tell(Err(error)),
        },
        (answer, _) => args.guest.tell(answer),
    }
}

/// Prints what comes; the exit code.
fn tell(stream: &UnixStream) -> io::Result<u8> {
    for line in BufReader::new(stream).lines() {
        let Response::Event(happened) = serde_json::from_str(&line?)? else {
            return Err(io::Error::other("it tells something else"));
        };
        let code = stdout::print(&format!("{}\n", serde_json::to_string(&happened)?), 0);
        if code != 0 || matches!(happened.event, Event::Ended { .. }) {
            return Ok(code);
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}
