//! How a run ends, and the exit code that says so.

use arch::End;
use debug::reply::Refusal;
use std::fmt;

/// How a guest's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By the guest's own doing.
    Ended(End),
    /// x86: a fault while a double fault was delivered.
    TripleFault {
        /// What the vCPU was doing.
        report: String,
    },
    /// KVM met an instruction that it cannot emulate.
    EmulationFailure {
        /// What the vCPU was doing.
        report: String,
    },
    /// KVM or the processor cannot go on.
    InternalError {
        /// In a word, what KVM said.
        cause: String,
        /// What the vCPU was doing.
        report: String,
    },
    /// `--timeout` is over.
    Timeout,
    /// The guest's kernel says that it hangs, and whoever started it wants it to end then (`--dump-on hang`).
    Hang {
        /// The line of its log.
        line: String,
    },
    /// `Ctrl-A x`, a signal, the debugger's user, or `vmm quit`.
    Stopped(StoppedBy),
}

impl From<End> for Outcome {
    fn from(end: End) -> Outcome {
        Outcome::Ended(end)
    }
}

/// Who stopped a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// `Ctrl-A x` on the console.
    Console,
    /// A signal, by its number.
    Signal(i32),
    /// `kill` or `monitor quit` in a debugger.
    Debugger,
    /// `vmm quit`.
    Control,
}

/// An exit code with its meaning, for `--help` and for [`Outcome::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode {
    /// The process's exit status.
    pub code: u8,
    /// What it says.
    pub meaning: &'static str,
}

/// The exit code of a process whose command was refused.
pub(crate) fn of_refusal(why: &Refusal) -> u8 {
    match why {
        Refusal::Usage(_) | Refusal::Unknown(_) | Refusal::Senseless(_) => USAGE,
        Refusal::NotThere(_) => NOT_THERE,
        Refusal::Failed(_) | Refusal::Cancelled(_) => FILE,
    }
}

macro_rules! exit_codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $name: u8 = $code;
        )*
        /// Every code of the monitor's own, in ascending order. All are even: the odd ones are
        /// the guest's ([`devices::platform::exit::exit_code`]).
        pub const EXIT_CODES: &[ExitCode] = &[$(ExitCode { code: $code, meaning: $meaning },)*];
    };
}

exit_codes! {
    POWER_OFF = 0, "the guest switched itself off";
    USAGE = 2, "an option is wrong";
    HOST = 4, "this host cannot do it: no KVM, or KVM refuses";
    IMAGE = 6, "the kernel or an initrd cannot be booted, or a dump not be understood";
    FILE = 8, "the console, the log, a template, a dump or the gdb socket cannot be opened";
    RESET = 10, "the guest reset itself (with --reboot exit)";
    TRIPLE_FAULT = 12, "the guest's processor shut down after a triple fault";
    GUEST_CRASH = 14, "the guest reported a crash to its firmware";
    EMULATION_FAILURE = 16, "KVM met an instruction that it cannot emulate";
    INTERNAL_ERROR = 18, "KVM or the processor could not go on";
    TIMEOUT = 20, "--timeout ended the guest";
    STOPPED = 22, "Ctrl-A x, SIGINT, SIGTERM, SIGHUP, SIGQUIT, the debugger or vmm quit ended the guest";
    NOT_THERE = 24, "vmm core: what was asked for is not in the dump";
    DUMP_FAILED = 26, "the core that --dump-on asks for could not be written when the guest ended";
    HANG = 28, "the guest's kernel says that it hangs (with --dump-on hang)";
    PANIC = 70, "a defect of vmm itself; please report it";
    VIOLATION = 72, "vmm itself did what its cell forbids (--sandbox); please report it";
}

impl Outcome {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Outcome::Ended(End::PowerOff) => POWER_OFF,
            Outcome::Ended(End::Exit(value)) => devices::platform::exit::exit_code(*value),
            Outcome::Ended(End::Reset) => RESET,
            Outcome::Ended(End::Crash) => GUEST_CRASH,
            Outcome::TripleFault { .. } => TRIPLE_FAULT,
            Outcome::EmulationFailure { .. } => EMULATION_FAILURE,
            Outcome::InternalError { .. } => INTERNAL_ERROR,
            Outcome::Timeout => TIMEOUT,
            Outcome::Hang { .. } => HANG,
            Outcome::Stopped(_) => STOPPED,
        }
    }

    /// Whether a person must be told, even with `-q`.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Outcome::TripleFault { .. }
                | Outcome::Ended(End::Crash)
                | Outcome::Hang { .. }
                | Outcome::EmulationFailure { .. }
                | Outcome::InternalError { .. }
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ended(End::PowerOff) => f.write_str("the guest switched itself off"),
            Outcome::Ended(End::Exit(value)) => write!(f, "the guest wrote {value:#x} to the exit device"),
            Outcome::Ended(End::Reset) => f.write_str("the guest reset itself"),
            Outcome::TripleFault { report } => {
                write!(f, "triple fault: the guest could not deliver an exception\n{report}")
            }
            Outcome::Ended(End::Crash) => f.write_str("the guest reported a crash"),
            Outcome::EmulationFailure { report } => write!(
                f,
                "emulation failure: this host's KVM cannot emulate the guest's instruction \
                 (`vmm check` tells what it can)\n{report}"
            ),
            Outcome::InternalError { cause, report } => write!(f, "KVM cannot go on: {cause}\n{report}"),
            Outcome::Timeout => f.write_str("the time given by --timeout is over"),
            Outcome::Hang { line } => write!(f, "the guest hangs: {line}"),
            Outcome::Stopped(StoppedBy::Console) => f.write_str("stopped from the console"),
            Outcome::Stopped(StoppedBy::Signal(number)) => write!(f, "stopped by signal {number}"),
            Outcome::Stopped(StoppedBy::Debugger) => f.write_str("ended by the debugger"),
            Outcome::Stopped(StoppedBy::Control) => f.write_str("ended by vmm quit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_it_hangs_is_said_to_whoever_wants_few_words() {
        assert!(Outcome::Hang { line: "BUG: soft lockup".into() }.is_failure());
        assert!(!Outcome::Timeout.is_failure() && !Outcome::Ended(End::PowerOff).is_failure());
    }

    #[test]
    fn our_codes_are_even_and_ascending_and_the_guests_are_odd() {
        assert!(EXIT_CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(EXIT_CODES.iter().all(|code| code.code % 2 == 0));
        for value in 0..512 {
            assert_eq!(Outcome::Ended(End::Exit(value)).code() % 2, 1);
        }
    }
}
