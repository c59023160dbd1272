//! `vmm monitor`: a command of gdb's `monitor` that looks at a guest, from a shell.

mod dmesg;

use super::candidates::{commands, words};
use super::colour::Colour;
use super::named_guest::NamedGuest;
use super::stdout;
use crate::control::client::ask;
use crate::control::protocol::{MonitorLine, Request, Response};
use dmesg::{Asked, End, Shown};
use std::io::{self, Write};
use std::thread;

/// Look at a guest that runs, by a command as gdb's monitor has it: why, ps, bt, locks, dmesg, regs, read
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
    /// The command and its words; without one, what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, add = commands())]
    command: Vec<String>,
}

fn request(line: String, json: bool) -> Request {
    Request::Monitor(MonitorLine { line, json })
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let shown = Shown { json: args.json, in_colour: args.color.is_wanted() };
    match Asked::of(&args.command) {
        Some(asked) if asked.follow => follow(&args.guest, &asked, shown),
        Some(asked) if shown.in_colour && !args.json => {
            let answer = args.guest.ask_of(|guest| ask(guest, &request(asked.line(), true)));
            args.guest.tell(answer.map(|answer| coloured(answer, shown)))
        }
        _ => args.guest.ask(Ok(request(args.command.join(" "), args.json))),
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
fn follow(guest: &NamedGuest, asked: &Asked, shown: Shown) -> u8 {
    let ask_it = |line: String| guest.ask_of(|name| ask(name, &request(line, true)));
    let print = |text: &str| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    match dmesg::follow(asked, shown, ask_it, print, thread::sleep) {
        End::Guest => {
            log::warn!("the guest has ended");
            0
        }
        End::Answer(answer) => guest.tell(answer),
        End::Output(error) => stdout::written(Err(error), 0),
    }
}
