//! `vmm monitor`: commands of gdb's `monitor` that look at a guest, from a shell.

mod dmesg;
mod prompt;

use super::candidates::{commands, words};
use super::colour::Colour;
use super::named_guest::{NamedGuest, tell};
use super::stdout;
use crate::control::client::ask;
use crate::control::protocol::{MonitorLine, Request, Response};
use dmesg::{Asked, End, Shown};
use std::io::{self, IsTerminal, Write};
use std::thread;

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
        _ => ask_words(guest, &args.command, shown),
    }
}

fn request(line: String, json: bool) -> Request {
    Request::Monitor(MonitorLine { line, json })
}

/// Has a command carried out, and tells the answer; the exit code.
fn ask_words(guest: &str, words: &[String], shown: Shown) -> u8 {
    match Asked::of(words) {
        Some(asked) if asked.follow => follow(guest, &asked, shown),
        Some(asked) if shown.in_colour && !shown.json => {
            let answer = ask(guest, &request(asked.line(), true));
            tell(guest, answer.map(|answer| coloured(answer, shown)))
        }
        _ => tell(guest, ask(guest, &request(words.join(" "), shown.json))),
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
fn follow(guest: &str, asked: &Asked, shown: Shown) -> u8 {
    let ask_it = |line: String| ask(guest, &request(line, true));
    let print = |text: &str| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    match dmesg::follow(asked, shown, ask_it, print, thread::sleep) {
        End::Guest => {
            log::warn!("the guest has ended");
            0
        }
        End::Answer(answer) => tell(guest, answer),
        End::Output(error) => stdout::written(Err(error), 0),
    }
}
