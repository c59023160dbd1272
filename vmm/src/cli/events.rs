//! `vmm events`: what happens to a guest, as it happens.

use super::named_guest::NamedGuest;
use super::stdout::{self, Waited};
use crate::control::client::begin;
use crate::control::protocol::{Request, Response};
use crate::outcome;
use nix::poll::PollTimeout;
use serde_json::Value;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
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
        (Ok(Response::Info(_)), Some(stream)) => tell(&stream).unwrap_or_else(|error| {
            log::error!("of {} nothing more is told: {error}", args.guest.name());
            outcome::FILE
        }),
        (answer, _) => args.guest.tell(answer),
    }
}

/// Prints what comes; the exit code.
fn tell(stream: &UnixStream) -> io::Result<u8> {
    let (mut reader, mut line) = (BufReader::new(stream), String::new());
    loop {
        if reader.buffer().is_empty()
            && stdout::wait(Some(stream.as_fd()), PollTimeout::NONE)? == Waited::Unread
        {
            return Ok(0);
        }
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::Error::other("its monitor was killed, or has let this go"));
        }
        let Some((event, is_last)) = event(&line)? else { continue };
        let code = stdout::print(&format!("{event}\n"), 0);
        if code != 0 || is_last {
            return Ok(code);
        }
    }
}

/// What a line tells, with all that it has, also what this program does not know; and whether nothing comes behind it.
fn event(line: &str) -> io::Result<Option<(Value, bool)>> {
    let mut told: Value = serde_json::from_str(line)?;
    let Some(event) = told.get_mut("event").map(Value::take) else { return Ok(None) };
    let is_last = event["event"] == "ended";
    Ok(Some((event, is_last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_printed_with_all_that_they_have() {
        let (told, is_last) = event(r#"{"event":{"event":"migrated","to":"x"}}"#).unwrap().unwrap();
        assert_eq!((told.to_string().as_str(), is_last), (r#"{"event":"migrated","to":"x"}"#, false));
        let (told, is_last) = event(r#"{"event":{"code":0,"event":"ended","new":[1]}}"#).unwrap().unwrap();
        assert_eq!((told.to_string().as_str(), is_last), (r#"{"code":0,"event":"ended","new":[1]}"#, true));
        assert!(event(r#"{"promise":1}"#).unwrap().is_none());
        assert!(event("no JSON").is_err());
    }
}
