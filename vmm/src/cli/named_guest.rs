//! Subcommands that speak to a guest that runs, by its name.

use super::candidates::guests;
use super::stdout;
use crate::control::client::ask;
use crate::control::protocol::{Answer, Request, Response};
use crate::outcome;
use std::io::{self, ErrorKind};

/// Which guest.
#[derive(Debug, clap::Args)]
pub struct NamedGuest {
    /// The guest's --name, or the path of its control socket
    #[arg(add = guests())]
    guest: String,
}

impl NamedGuest {
    /// Asks it for something, and tells what it answers; the exit code.
    pub fn ask(&self, request: io::Result<Request>) -> u8 {
        self.tell(request.and_then(|request| ask(&self.guest, &request)))
    }

    /// Has it asked.
    pub fn ask_of(&self, ask: impl FnOnce(&str) -> io::Result<Response>) -> io::Result<Response> {
        ask(&self.guest)
    }

    /// Tells what it has answered; the exit code.
    pub fn tell(&self, answer: io::Result<Response>) -> u8 {
        tell(&self.guest, answer)
    }

    /// Its name, or its socket's path.
    pub fn name(&self) -> &str {
        &self.guest
    }
}

/// Tells what a guest has answered; the exit code.
pub fn tell(guest: &str, answer: io::Result<Response>) -> u8 {
    match answer {
        Ok(Response::Done(text)) => stdout::print(&format!("{text}\n"), 0),
        Ok(Response::Answer(Answer { text, why, code, .. })) => {
            let printed = stdout::print(&text, code);
            if !why.is_empty() {
                log::error!("{why}");
            }
            printed
        }
        Ok(Response::Error(text)) => {
            log::error!("{text}");
            outcome::FILE
        }
        Ok(Response::Info(_) | Response::Percent(_) | Response::Event(_) | Response::Unknown) => {
            log::error!("the guest {guest} ended before it had answered");
            outcome::FILE
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            log::error!("no guest of the name {guest} runs (vmm ls lists them)");
            outcome::FILE
        }
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            log::error!("the guest {guest} ended before it had answered");
            outcome::FILE
        }
        Err(error) => {
            log::error!("cannot reach a guest of the name {guest}: {error}");
            outcome::FILE
        }
    }
}
