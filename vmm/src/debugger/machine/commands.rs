//! Commands that a live guest adds to those of every machine.

use super::LiveMachine;
use debug::reply::{self, Arguments, Command, Offer, Refusal, Reply, Said};
use devices::hypercall::Hypercalls;
use devices::hypercall::trace::Filter;

/// Those that this guest has.
pub(super) fn of(machine: &LiveMachine) -> Vec<Command> {
    let is_there =
        |offer: &&Offer<LiveMachine>| machine.shared.hypercalls.is_some() || offer.command == CLOCK;
    OFFERS.iter().filter(is_there).map(|offer| offer.command).collect()
}

/// Carries one out.
pub(super) fn run(
    machine: &mut LiveMachine,
    name: &str,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    reply::run_offered(OFFERS, machine, name, arguments)
}

const CLOCK: Command = Command::new("clock", "", "what becomes of the guest's time while it is held");

/// All of them; those about hypercalls are there only where they are seen.
const OFFERS: &[Offer<LiveMachine>] = &[
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

fn clock(machine: &mut LiveMachine, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Said::words(machine.vcpus.monitor().clock_in_words()).reply())
}

/// The hypercalls that are seen.
fn calls(machine: &LiveMachine) -> Result<&Hypercalls, Refusal> {
    let none = || Refusal::Senseless("hypercalls are not seen".into());
    machine.shared.hypercalls.as_ref().map(|hypercalls| hypercalls.calls()).ok_or_else(none)
}

fn hypercalls(machine: &mut LiveMachine, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Said::words(calls(machine)?.summary()).reply())
}

fn catch(machine: &mut LiveMachine, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let calls = calls(machine)?;
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
