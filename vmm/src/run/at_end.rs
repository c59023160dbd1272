//! What is done when a guest has ended: a dump, counts of hypercalls, and whether it begins again.

use super::config::{DumpOn, OnReboot};
use super::{Around, signals, terminal};
use crate::error::Error;
use crate::logging;
use crate::logging::progress::Reporter;
use crate::machine::Guest;
use crate::machine::LONGEST_LOOK;
use crate::machine::dumper::Moment;
use crate::outcome::{DUMP_FAILED, Outcome, StoppedBy};
use arch::End;
use debug::dump::write::destination::Destination;
use nix::sys::signalfd::SignalFd;
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

/// What comes behind a guest's end.
pub enum Sequel {
    /// The guest is over.
    Over(Outcome),
    /// It begins again, as this one.
    Again(Box<Guest>),
}

/// Writes a core of a guest that has ended, if it has ended as `on` says. Answers the signal that has broken
/// that off, if one has.
fn dump(
    guest: &Guest,
    outcome: &Outcome,
    (on, to): (&DumpOn, &Destination),
    around: &Around<'_>,
) -> Option<i32> {
    let signals: &RefCell<SignalFd> = around.signals;
    let ended_by = Cell::new(None);
    let is_ended = || {
        let signal = signals.borrow_mut().read_signal().ok().flatten();
        let signal = signal.filter(|signal| signals::is_ending(signal.ssi_signo));
        let number = signal.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        ended_by.set(ended_by.get().or(number));
        number.is_some()
    };
    let is_due = match outcome {
        Outcome::TripleFault { .. } => on.triple_fault,
        Outcome::Timeout if on.timeout => true,
        Outcome::Hang { .. } => on.hang,
        Outcome::Ended(End::Crash) => on.panic,
        Outcome::Timeout | Outcome::Ended(End::Reset | End::PowerOff) => {
            on.panic && guest.dumper().has_panicked(&mut || !is_ended())
        }
        _ => false,
    };
    if !is_due {
        return ended_by.get();
    }
    match guest.why(LONGEST_LOOK) {
        Ok(why) => logging::print(&format!("{why}{}", why.notes())),
        Err(why) => log::info!("nothing is known of the guest's kernel: {why}"),
    }
    let mut reporter = Reporter::new();
    let mut watch = |progress| {
        if let Some(percent) = reporter.percent(progress) {
            log::warn!("--dump-on {}: {percent} %", on.path.display());
        }
        if is_ended() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match guest.dumper().dump(to, Moment::End, &mut watch) {
        Ok(summary) => log::warn!("dumped to {}: {summary}", on.path.display()),
        Err(error) => {
            around.lacks_dump.set(true);
            let code = outcome.code();
            log::error!("--dump-on: {error} (exit code {DUMP_FAILED}; the guest's own is {code})");
        }
    }
    ended_by.get()
}

/// Deals with a guest that has ended; `None` when it runs on.
pub fn deal_with(guest: &Guest, outcome: Outcome, around: &Around<'_>) -> Result<Option<Sequel>, Error> {
    let config = around.config;
    let over = || {
        guest.dumper().close();
        let wants_summary = config.guest.hypercalls.as_ref().is_some_and(|hypercalls| hypercalls.summary);
        if let Some(hypercalls) = guest.hypercalls().filter(|_| wants_summary) {
            logging::print(&hypercalls.calls().summary());
        }
    };
    if outcome == Outcome::Ended(End::Reset) && guest.takes_restart() {
        return Ok(match (around.again)(guest) {
            Ok(next) => {
                over();
                Some(Sequel::Again(Box::new(next)))
            }
            Err(error) => {
                guest.cannot_restart(&error);
                if guest.has_lost_devices() {
                    return Err(error);
                }
                // It is stopped at its debugger's prompt, and stays there.
                None
            }
        });
    }
    // The guest is over: what is typed now, Ctrl-C while it is dumped, is the terminal's business.
    terminal::restore();
    let dumped = config.dump_on.as_ref().zip(around.dump_to);
    let ended_by = dumped.and_then(|dumped| dump(guest, &outcome, dumped, around));
    over();
    let restarts = outcome == Outcome::Ended(End::Reset) && config.on_reboot == OnReboot::Restart;
    let outcome = match ended_by {
        Some(signal) if restarts => Outcome::Stopped(StoppedBy::Signal(signal)),
        None if restarts => {
            log::info!("the guest reset itself; it is booted again");
            return (around.again)(guest).map(|next| Some(Sequel::Again(Box::new(next))));
        }
        _ => outcome,
    };
    guest.tell_debugger(&outcome);
    Ok(Some(Sequel::Over(outcome)))
}
