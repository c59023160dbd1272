//! `vmm monitor`: commands of gdb's `monitor` that look at a guest, from a shell.

mod dmesg;
mod prompt;

use super::candidates::{commands, words};
use super::colour::Colour;
use super::named_guest::{NamedGuest, tell};
use super::stdout;
use crate::control::client::ask_with;
use crate::control::protocol::{MonitorLine, Request, Response};
use dmesg::{Asked, End, Shown};
use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Look at a guest that runs, by commands as gdb's monitor has them: why, ps, bt, locks, dmesg, regs, read
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
    /// Whether the kernel's log is in colour: without this, at a terminal if NO_COLOR is not set
    #[arg(long, value_name = "auto|always|never", default_value = "auto", hide_default_value = true,
          add = words(Colour::WORDS), value_parser = clap::builder::ValueParser::new(Colour::parse))]
    color: Colour,
    /// The command and its words (help shows what there is); without one, a prompt, or the lines of standard input
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, add = commands())]
    command: Vec<String>,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let shown = Shown { json: args.json, in_colour: args.color.is_wanted() };
    let guest = args.guest.name();
    match args.command[..] {
        [] if io::stdin().is_terminal() => prompt::at_terminal(guest, shown),
        [] => prompt::of_script(guest, shown, io::stdin().lock()),
        _ => ask_words(guest, &args.command, shown, None),
    }
}

fn request(line: String, json: bool) -> Request {
    Request::Monitor(MonitorLine { line, json })
}

/// The exit code of a command that was broken off, as of one that SIGINT ends.
const INTERRUPTED: u8 = 128 + Signal::SIGINT as u8;

/// Has a command carried out, and tells the answer; the exit code. What becomes readable in `ended` breaks it off.
fn ask_words(guest: &str, words: &[String], shown: Shown, ended: Option<BorrowedFd<'_>>) -> u8 {
    let ask = |line: String, json: bool| ask_with(guest, &request(line, json), None, ended);
    let answer = match Asked::of(words) {
        Some(asked) if asked.follow => return follow(guest, &asked, shown, ended),
        Some(asked) if shown.in_colour && !shown.json => {
            ask(asked.line(), true).map(|answer| coloured(answer, shown))
        }
        _ => ask(words.join(" "), shown.json),
    };
    match answer {
        Err(error) if error.kind() == ErrorKind::Interrupted => INTERRUPTED,
        answer => tell(guest, answer),
    }
}

/// An answer that has a log, as it is shown; others as they are.
fn coloured(answer: Response, shown: Shown) -> Response {
    match answer {
        Response::Answer(mut answer) => {
            if let Some((text, _)) = dmesg::printed(&answer, shown) {
                answer.text = text;
            }
            Response::Answer(answer)
        }
        other => other,
    }
}

/// Prints the log as it comes, until the guest's end or Ctrl-C.
fn follow(guest: &str, asked: &Asked, shown: Shown, ended: Option<BorrowedFd<'_>>) -> u8 {
    let ask_it = |line: String| ask_with(guest, &request(line, true), None, ended);
    let print = |text: &str| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    let limit = |pause: Duration| PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    let pause = |pause| stdout::wait(ended, limit(pause));
    match dmesg::follow(asked, shown, ask_it, print, pause) {
        End::Interrupted => INTERRUPTED,
        End::Guest => {
            log::warn!("the guest has ended");
            0
        }
        End::Answer(answer) => tell(guest, answer),
        End::Output(error) => stdout::written(Err(error), 0),
    }
}
