//! What is done when a guest has ended: a dump, counts of hypercalls, and whether it begins again.

use super::config::{DumpOn, OnReboot};
use super::sign_watch::Listens;
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
use debug::linux::trouble::Sign;
use nix::sys::signalfd::SignalFd;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// What comes behind a guest's end.
pub enum Sequel {
    /// The guest is over.
    Over(Outcome),
    /// It begins again, as this one.
    Again(Box<Guest>),
}

/// A signal that ends what is done at the end.
struct Interruption {
    signals: Arc<SignalFd>,
    /// It has come; 0 until then.
    by: AtomicI32,
}

impl Interruption {
    fn new(signals: &Arc<SignalFd>) -> Interruption {
        Interruption { signals: Arc::clone(signals), by: AtomicI32::new(0) }
    }

    /// Whether it has, or comes now.
    fn has_come(&self) -> bool {
        while self.signal().is_none() {
            match self.signals.read_signal() {
                Ok(Some(signal)) if signals::is_ending(signal.ssi_signo) => {
                    self.by.store(i32::try_from(signal.ssi_signo).unwrap_or(libc::SIGTERM), Ordering::SeqCst);
                }
                // What it says of the terminal concerns nobody any more.
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => {
                    log::debug!("signals are not seen: {error}");
                    return false;
                }
            }
        }
        true
    }

    fn signal(&self) -> Option<i32> {
        Some(self.by.load(Ordering::SeqCst)).filter(|number| *number != 0)
    }
}

/// Whether a core is wanted of a guest that has ended so. What its log has `signs` of is asked where the end itself does not
/// say it: a kernel may reset itself, or its time be over, before anybody has heard of that.
fn is_due(outcome: &Outcome, on: &DumpOn, signs: impl FnOnce() -> Vec<(Sign, String)>) -> bool {
    let asks = |listens: Option<Listens>| listens.is_some_and(|listens| listens.choose(signs()).is_some());
    match outcome {
        Outcome::TripleFault { .. } => on.triple_fault,
        Outcome::Timeout if on.timeout => true,
        Outcome::Hang { .. } => on.hang,
        Outcome::Ended(End::Crash) => on.panic,
        Outcome::Timeout | Outcome::Ended(End::Reset) => asks(Listens::of(on)),
        // One that switches itself off has got over a hang.
        Outcome::Ended(End::PowerOff) => asks(on.panic.then_some(Listens { panic: true, hang: false })),
        _ => false,
    }
}

/// Writes a core of a guest that has ended, if it has ended as `on` says. Answers the signal that has broken
/// that off, if one has.
fn dump(
    guest: &Guest,
    outcome: &Outcome,
    (on, to): (&DumpOn, &Destination),
    around: &Around<'_>,
) -> Option<i32> {
    let interruption = Arc::new(Interruption::new(around.signals));
    let signs = || guest.dumper().signs(&mut || !interruption.has_come());
    if !is_due(outcome, on, signs) {
        return interruption.signal();
    }
    let its = Arc::clone(&interruption);
    match guest.why(LONGEST_LOOK, move || !its.has_come()) {
        // Whoever breaks it off wants no dump either.
        _ if interruption.signal().is_some() => {}
        Ok(why) => logging::print(&format!("{why}{}", why.notes())),
        Err(why) => log::info!("nothing is known of the guest's kernel: {why}"),
    }
    let mut reporter = Reporter::new();
    let mut watch = |progress| {
        if let Some(percent) = reporter.percent(progress) {
            log::warn!("--dump-on {}: {percent} %", on.path.display());
        }
        if interruption.has_come() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match guest.dumper().dump(to, Moment::End, &mut watch) {
        Ok(summary) => log::warn!("dumped to {}: {summary}", on.path.display()),
        Err(error) => {
            around.lacks_dump.set(true);
            let code = outcome.code();
            log::error!("--dump-on: {error} (exit code {DUMP_FAILED}; the guest's own is {code})");
        }
    }
    interruption.signal()
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::SfdFlags;

    #[test]
    fn the_log_is_asked_where_the_end_does_not_say_why() {
        let log = |sign| move || vec![(sign, "a line".to_string())];
        let on =
            |panic, hang| DumpOn { panic, hang, triple_fault: false, timeout: false, path: "core".into() };
        let reset = Outcome::Ended(End::Reset);
        for end in [&Outcome::Timeout, &reset] {
            assert!(is_due(end, &on(false, true), log(Sign::Hang)), "{end}");
            assert!(is_due(end, &on(true, false), log(Sign::Panic)), "{end}");
            assert!(!is_due(end, &on(true, false), log(Sign::Hang)), "{end}");
            assert!(!is_due(end, &on(false, true), log(Sign::Panic)), "{end}");
            assert!(!is_due(end, &on(true, true), Vec::new), "{end}");
            assert!(!is_due(end, &on(false, false), || panic!("nobody wants to know")), "{end}");
        }
        let off = Outcome::Ended(End::PowerOff);
        assert!(is_due(&off, &on(true, true), log(Sign::Panic)));
        assert!(!is_due(&off, &on(true, true), log(Sign::Hang)));
        assert!(!is_due(&Outcome::Ended(End::Exit(1)), &on(true, true), || panic!(
            "it has ended as it wanted"
        )));
    }

    #[test]
    fn one_signal_breaks_off_all_that_is_done() {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGWINCH].into_iter().collect();
        set.thread_block().unwrap();
        let signals = Arc::new(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK).unwrap());
        let interruption = Interruption::new(&signals);
        let send = |signal: Signal| {
            // SAFETY: both are blocked on this thread, to which alone they go (pthread_kill(3)).
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), signal as i32) }, 0);
        };
        assert!(!interruption.has_come());
        send(Signal::SIGWINCH);
        assert!(!interruption.has_come());
        send(Signal::SIGWINCH);
        send(Signal::SIGTERM);
        assert!(interruption.has_come() && interruption.has_come());
        assert_eq!(interruption.signal(), Some(libc::SIGTERM));
    }
}
