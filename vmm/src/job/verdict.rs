//! What came of a job, and the exit code that says so.

use crate::outcome::{ExitCode, Outcome, StoppedBy};
use arch::End;
use arch::plain::plain;
use debug::linux::trouble::{Sign, Trouble};
use nix::sys::signal::Signal;
use std::fmt;
use std::time::Duration;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The command ended by itself, with this code.
    Command(u8),
    /// A signal ended it.
    Signal(u8),
    /// It could not be executed, or was not found: the code for that, and why.
    NotBegun(u8, String),
    /// The log has what `--fail-on` names: the line.
    Trouble(Trouble, String),
    /// The guest ended before the command did.
    Ended(Outcome),
    /// What the guest's first process says is not understood: something else speaks in its place.
    Lost,
    /// The kernel panicked: the line that says so, if it was heard.
    Panic(Option<String>),
    /// It hangs: what says so.
    Hang(String),
    /// It did not come so far as to run a program in time.
    NoUserSpace,
    /// The guest could not be made ready, as its root, a module or a first process of its own: why.
    NoRoot(String),
    /// `--timeout` is over.
    TimeOver,
    /// Not all of its output could be written, and why.
    Unwritten(String),
    /// Somebody ended it.
    Stopped(StoppedBy),
}

macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $name: u8 = $code;
        )*
        /// Codes of a job that are not its command's, in ascending order.
        pub const CODES: &[ExitCode] = &[$(ExitCode { code: $code, meaning: $meaning },)*];
    };
}

codes! {
    CELL = 117, "vmm itself did what its cell forbids (--sandbox)";
    TROUBLE = 118, "the guest's log has what --fail-on names";
    ENDED = 119, "the guest ended before the command did: it switched itself off, was reset, its processor shut down, or its first process is not understood any more";
    PANIC = 120, "the guest's kernel panicked";
    HANG = 121, "the guest hangs";
    NO_USER_SPACE = 122, "the guest did not come so far as to run a program (--boot-timeout)";
    NO_ROOT = 123, "the guest could not be made ready: its root, a module, its first process";
    TIME_OVER = 124, "--timeout is over";
    CANNOT = 125, "this host cannot do it, an option is wrong, not all output could be written, or vmm itself has failed";
    NOT_EXECUTABLE = 126, "the command cannot be executed";
    NOT_FOUND = 127, "the command was not found";
}

/// How long whoever reads the output has, once something other than the command has ended the run.
pub const LAST_MOMENT: Duration = Duration::from_millis(500);

/// A signal's code has this below it, as a shell's.
const SIGNALS: u8 = 128;

impl Verdict {
    /// What a sign in the log comes to, of which the line is one.
    pub fn of_sign(sign: Sign, line: String) -> Verdict {
        match sign {
            Sign::Panic => Verdict::Panic(Some(line)),
            Sign::Hang => Verdict::Hang(line),
            Sign::Trouble(trouble) => Verdict::Trouble(trouble, line),
        }
    }

    /// What a guest's end means for a job that was not done.
    pub fn of_guest(outcome: Outcome, has_panicked: bool) -> Verdict {
        match outcome {
            _ if has_panicked => Verdict::Panic(None),
            Outcome::Ended(End::Crash) => Verdict::Panic(None),
            Outcome::Stopped(by) => Verdict::Stopped(by),
            outcome => Verdict::Ended(outcome),
        }
    }

    /// Whether this is how a command ends that a signal ends: by that, or with a shell's code for it.
    pub fn is_of(&self, signal: Signal) -> bool {
        let number = u8::try_from(signal as i32).unwrap_or(0);
        match self {
            Verdict::Signal(its) => *its == number,
            Verdict::Command(code) => *code == SIGNALS.saturating_add(number),
            _ => false,
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Verdict::Command(code) | Verdict::NotBegun(code, _) => *code,
            Verdict::Signal(number) => SIGNALS.saturating_add(*number),
            Verdict::Stopped(StoppedBy::Signal(number)) => {
                SIGNALS.saturating_add(u8::try_from(*number).unwrap_or(0))
            }
            // As one that Ctrl-C ends.
            Verdict::Stopped(StoppedBy::Console | StoppedBy::Debugger | StoppedBy::Control) => SIGNALS + 2,
            Verdict::Trouble(..) => TROUBLE,
            Verdict::Ended(_) | Verdict::Lost => ENDED,
            Verdict::Panic(_) => PANIC,
            Verdict::Hang(_) => HANG,
            Verdict::NoUserSpace => NO_USER_SPACE,
            Verdict::NoRoot(_) => NO_ROOT,
            Verdict::TimeOver => TIME_OVER,
            Verdict::Unwritten(_) => CANNOT,
        }
    }

    /// In a word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Command(_) => "exit",
            Verdict::Signal(_) => "signal",
            Verdict::NotBegun(..) => "not-begun",
            Verdict::Trouble(..) => "log",
            Verdict::Ended(_) => "ended",
            Verdict::Lost => "lost",
            Verdict::Panic(_) => "panic",
            Verdict::Hang(_) => "hang",
            Verdict::NoUserSpace => "no-user-space",
            Verdict::NoRoot(_) => "no-root",
            Verdict::TimeOver => "timeout",
            Verdict::Unwritten(_) => "unwritten",
            Verdict::Stopped(_) => "stopped",
        }
    }

    /// What its line does not say: what the vCPU was doing that ended the guest.
    pub fn details(&self) -> Option<String> {
        let Verdict::Ended(outcome) = self else { return None };
        outcome.to_string().split_once('\n').map(|(_, details)| details.to_string())
    }

    /// Whether the kernel's log says more of it.
    pub fn shows_log(&self) -> bool {
        !matches!(
            self,
            Verdict::Command(_)
                | Verdict::Signal(_)
                | Verdict::NotBegun(..)
                | Verdict::Stopped(_)
                | Verdict::Unwritten(_)
        )
    }

    /// Whether the exit code alone could be taken for another cause's.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Verdict::Command(CELL..))
    }

    /// What came of a command whose output could not all be written: it has not succeeded, whatever it says itself.
    #[must_use]
    pub fn of_output(self, unwritten: Option<&str>) -> Verdict {
        match (self, unwritten) {
            (Verdict::Command(_) | Verdict::Signal(_), Some(why)) => Verdict::Unwritten(why.into()),
            (verdict, _) => verdict,
        }
    }

    /// How long whoever reads the output has at the end of a run, if all has not gone its way: else as long as it takes.
    pub fn patience(&self) -> Option<Duration> {
        (!matches!(self, Verdict::Command(_) | Verdict::Signal(_) | Verdict::NotBegun(..)))
            .then_some(LAST_MOMENT)
    }

    /// Whether it is the command's own, of which there is nothing to say.
    pub fn is_commands(&self) -> bool {
        matches!(self, Verdict::Command(_))
    }
}

/// A text's first line, without what a terminal would obey: a guest may have written it.
pub(super) fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    plain(line)
}

/// In one line.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Command(code) => write!(f, "the command ended with code {code}"),
            Verdict::NotBegun(_, why) => write!(f, "the command could not be executed: {}", one_line(why)),
            Verdict::Signal(number) => write!(f, "the command was ended by signal {number}"),
            Verdict::Trouble(trouble, line) => {
                write!(f, "the log has {}: {}", trouble.word(), one_line(line))
            }
            Verdict::Ended(outcome) => {
                write!(f, "before the command ended: {}", one_line(&outcome.to_string()))
            }
            Verdict::Lost => f.write_str(
                "before the command ended: what the guest's first process says on the job's port is not understood",
            ),
            Verdict::Panic(Some(line)) => write!(f, "the guest's kernel panicked: {}", one_line(line)),
            Verdict::Panic(None) => f.write_str("the guest's kernel panicked"),
            Verdict::Hang(why) => write!(f, "the guest hangs: {}", one_line(why)),
            Verdict::NoUserSpace => f.write_str("the guest did not come so far as to run the command in time"),
            Verdict::NoRoot(why) => write!(f, "the guest could not be made ready: {}", one_line(why)),
            Verdict::TimeOver => f.write_str("the time given by --timeout is over"),
            Verdict::Unwritten(why) => write!(f, "cannot write all of {}", one_line(why)),
            Verdict::Stopped(StoppedBy::Signal(number)) => write!(f, "stopped by signal {number}"),
            Verdict::Stopped(StoppedBy::Console) => f.write_str("stopped from the terminal"),
            Verdict::Stopped(StoppedBy::Debugger) => f.write_str("ended by the debugger"),
            Verdict::Stopped(StoppedBy::Control) => f.write_str("ended by vmm quit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::plain::is_plain;

    #[test]
    fn codes_are_told_apart() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        for (verdict, code) in [
            (Verdict::Command(7), 7),
            (Verdict::Signal(9), 137),
            (Verdict::of_guest(Outcome::Ended(End::Crash), false), PANIC),
            (Verdict::of_guest(Outcome::Ended(End::Reset), true), PANIC),
            (Verdict::of_guest(Outcome::Ended(End::Reset), false), ENDED),
            (Verdict::of_guest(Outcome::Stopped(StoppedBy::Signal(15)), false), 143),
            (Verdict::Stopped(StoppedBy::Console), 130),
            (Verdict::Stopped(StoppedBy::Control), 130),
            (Verdict::TimeOver, 124),
            (Verdict::Lost, ENDED),
        ] {
            assert_eq!(verdict.code(), code, "{verdict}");
        }
        // What a signal does to a command, and what comes later of one that has survived it.
        let is_of = |verdict: Verdict| verdict.is_of(Signal::SIGTERM);
        assert!(is_of(Verdict::Signal(15)) && is_of(Verdict::Command(143)));
        assert!(!is_of(Verdict::Signal(2)) && !is_of(Verdict::Command(1)) && !is_of(Verdict::TimeOver));
    }

    #[test]
    fn only_a_command_that_has_ended_waits_for_whoever_reads_its_output() {
        for verdict in [Verdict::Command(1), Verdict::Signal(9)] {
            assert_eq!(verdict.patience(), None, "{verdict}");
        }
        for verdict in [
            Verdict::TimeOver,
            Verdict::Panic(None),
            Verdict::NoUserSpace,
            Verdict::Stopped(StoppedBy::Console),
        ] {
            assert_eq!(verdict.patience(), Some(LAST_MOMENT), "{verdict}");
        }
    }

    #[test]
    fn each_is_one_line() {
        let report = "vCPU 0: rip 0x1000\nrax 0x1".to_string();
        let fault = Verdict::Ended(Outcome::TripleFault { report: report.clone() });
        assert_eq!(fault.details(), Some(report));
        for verdict in [
            fault,
            Verdict::NoRoot("no\u{1b}[2J disk\nand more".into()),
            Verdict::Hang("stuck\r\nthere".into()),
            Verdict::Panic(Some("panic\u{7}".into())),
        ] {
            let text = verdict.to_string();
            assert!(text.chars().all(is_plain), "{text:?}");
        }
    }
}
