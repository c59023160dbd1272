//! Commands that a live guest adds to those of every machine.

use crate::machine::guest_clock::Timekeeper;
use crate::machine::services::Services;
use debug::reply::{self, Arguments, Command, Offer, Refusal, Reply, Said};
use devices::hypercall::Hypercalls;
use devices::hypercall::trace::Filter;
use std::sync::Arc;

/// What they are about.
struct About {
    services: Arc<Services>,
    time: Arc<Timekeeper>,
}

/// Those that this guest has.
pub(super) fn of(services: &Services) -> Vec<Command> {
    let is_there = |offer: &&Offer<About>| services.hypercalls.is_some() || offer.command == CLOCK;
    OFFERS.iter().filter(is_there).map(|offer| offer.command).collect()
}

/// Carries one out.
pub(super) fn run(
    services: &Arc<Services>,
    time: &Arc<Timekeeper>,
    name: &str,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    let mut about = About { services: Arc::clone(services), time: Arc::clone(time) };
    reply::run_offered(OFFERS, &mut about, name, arguments)
}

const CLOCK: Command = Command::new("clock", "", "what becomes of the guest's time while it is held");

/// All of them; those about hypercalls are there only where they are seen.
const OFFERS: &[Offer<About>] = &[
    Offer { command: CLOCK, run: clock },
    Offer {
        command: Command::new("hypercalls", "", "hypercalls so far, with counts and times"),
        run: hypercalls,
    },
    Offer {
        command: Command::new(
            "catch",
            "[hypercall [NAME...]|off]",
            "stop at hypercalls, by name or by the name of their operation",
        ),
        run: catch,
    },
];

fn clock(about: &mut About, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Said::words(about.time.in_words()).reply())
}

/// The hypercalls that are seen.
fn calls(about: &About) -> Result<&Hypercalls, Refusal> {
    let none = || Refusal::Senseless("hypercalls are not seen".into());
    about.services.hypercalls.as_ref().map(|hypercalls| hypercalls.calls()).ok_or_else(none)
}

fn hypercalls(about: &mut About, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Said::words(calls(about)?.summary()).reply())
}

fn catch(about: &mut About, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let calls = calls(about)?;
    match arguments.words() {
        [] => {}
        ["off"] => calls.catch(None),
        ["hypercall", names @ ..] => {
            if let Some(name) = names.iter().find(|name| !calls.has(name)) {
                let text = format!("there is no hypercall and no operation '{name}'");
                return Err(Refusal::Usage(text));
            }
            calls.catch(Some(Filter::new(names.iter().map(|name| (*name).to_string()).collect())));
        }
        words => return Err(Refusal::Usage(format!("'{}' is not understood", words.join(" ")))),
    }
    Ok(Said::words(calls.caught()).reply())
}
