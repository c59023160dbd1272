//! The command line: a file for each subcommand, which has its arguments and a function that carries it out.
//!
//! To add a subcommand: its file, with `Args` (whose first line is what help says of it) and `carry_out`; and here its
//! line in the table, with `mod`.

mod attach;
mod candidates;
mod check;
mod colour;
mod completions;
mod cont;
mod core_dump;
mod dump;
mod events;
mod exec;
mod gdb;
mod job;
mod ls;
mod monitor;
mod named_guest;
mod nmi;
mod qemu_habits;
mod quit;
mod refusal;
mod release;
mod reset;
mod run;
mod stdout;
mod stop;
mod sysrq;
mod values;

use crate::job::verdict::CANNOT;
use crate::logging;
use crate::outcome::{self, EXIT_CODES, PANIC, USAGE};
use crate::run::terminal;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser};
pub use completions::script;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes of the table of subcommands what clap parses, and what carries them out.
macro_rules! subcommands {
    ($($name:ident: $file:ident,)*) => {
        /// What else the program does.
        #[derive(Debug, clap::Subcommand)]
        enum Subcommand {
            $($name(Box<$file::Args>),)*
        }

        impl Subcommand {
            /// Does what was asked; the exit code.
            fn carry_out(&self) -> u8 {
                match self {
                    $(Subcommand::$name(args) => $file::carry_out(args),)*
                }
            }
        }
    };
}

// In the order of help.
subcommands! {
    Run: job,
    Exec: exec,
    Check: check,
    Core: core_dump,
    Dump: dump,
    Release: release,
    Gdb: gdb,
    Ls: ls,
    Monitor: monitor,
    Attach: attach,
    Events: events,
    Stop: stop,
    Cont: cont,
    Reset: reset,
    Quit: quit,
    Nmi: nmi,
    Sysrq: sysrq,
    Completions: completions,
}

/// A virtual machine monitor made for debugging kernels.
///
/// Without --kernel, a small guest that is part of the program is booted.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, args_conflicts_with_subcommands = true, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    subcommand: Option<Subcommand>,
    #[command(flatten)]
    run: run::Args,
    #[command(flatten)]
    messages: Messages,
}

/// What the program says, and where; the same for every subcommand.
#[derive(Debug, clap::Args)]
struct Messages {
    /// Say more: -v what happens rarely, -vv each exit of a vCPU
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet", global = true, help_heading = "Messages")]
    verbose: u8,
    /// Say only what went wrong
    #[arg(short, long, global = true, help_heading = "Messages")]
    quiet: bool,
    /// Write messages to a file instead of standard error
    #[arg(long, value_name = "PATH", global = true, help_heading = "Messages")]
    log: Option<PathBuf>,
}

fn after_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for code in EXIT_CODES {
        text.push_str(&format!("  {:>3}  {}\n", code.code, code.meaning));
    }
    text.push_str("  odd  the guest wrote (code - 1) / 2 to the exit device\n\n");
    text.push_str("RUST_LOG sets the level of messages per target, for example RUST_LOG=vmm::exit=debug.");
    text
}

/// What clap knows of the program, for whoever makes manual pages of it.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// The program; its exit code.
pub fn main() -> ExitCode {
    terminal::install_panic_hook(PANIC);
    ignore_file_size_signal();
    raise_descriptors();
    let code = answer();
    logging::finish();
    ExitCode::from(code)
}

/// A file that is as large as it may become (`ulimit -f`) is an error to whoever writes it, which says so
/// and removes what is only a part; it is no reason to end a guest.
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours. It cannot fail for a signal that exists.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// As many descriptors as this process may have: shared folders need one for each file that a guest has open.
fn raise_descriptors() {
    // With fewer it works as well, for smaller folders.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
    }
}

fn answer() -> u8 {
    if let Some(code) = completions::answer() {
        return code;
    }
    let words = messages_behind(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(core_dump::command_line(words.iter().cloned())) {
        Ok(cli) => cli,
        Err(error) => return refused(error, words.get(1..).unwrap_or_default()),
    };
    let has_commands_codes = matches!(cli.subcommand, Some(Subcommand::Run(_) | Subcommand::Exec(_)));
    if has_commands_codes {
        terminal::install_panic_hook(CANNOT);
    }
    let Messages { verbose, quiet, log } = cli.messages;
    if let Err(error) = logging::start(logging::level(verbose, quiet), log.as_deref()) {
        let path = log.unwrap_or_default();
        logging::print(&format!("vmm: error: cannot open --log {}: {error}\n", path.display()));
        return if has_commands_codes { CANNOT } else { outcome::FILE };
    }
    match cli.subcommand {
        Some(subcommand) => subcommand.carry_out(),
        None => run::carry_out(&cli.run),
    }
}

/// The words of a command line, with what is said of [`Messages`] in front of a subcommand behind its name: there it is no
/// option of a guest's, beside which clap would take the name for one too many.
fn messages_behind(mut words: Vec<OsString>) -> Vec<OsString> {
    let length = |word: &OsString| match word.to_str()? {
        "--log" => Some(2),
        "--quiet" | "--verbose" => Some(1),
        word if word.starts_with("--log=") => Some(1),
        word => {
            let letters = word.strip_prefix('-').filter(|letters| !letters.is_empty())?;
            letters.chars().all(|letter| "vq".contains(letter)).then_some(1)
        }
    };
    let mut at = 1;
    while let Some(length) = words.get(at).and_then(length) {
        at += length;
    }
    let is_subcommand = |name: &OsString| definition().get_subcommands().any(|it| *name == *it.get_name());
    if at > 1 && words.get(at).is_some_and(is_subcommand) {
        words[1..=at].rotate_right(1);
    }
    words
}

/// Says why there is nothing to do, of these words behind the program's name; the exit code.
fn refused(error: clap::Error, words: &[OsString]) -> u8 {
    if error.use_stderr() {
        let error = qemu_habits::explain(core_dump::explain(error, words), words);
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // What cannot be said on standard error cannot be said.
            drop(error.print());
            return USAGE;
        }
        let cause = refusal::in_a_line(&error);
        // A run's codes are others, as most are its command's.
        return match words.first().and_then(|word| word.to_str()) {
            Some("run") => {
                let json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
                refusal::cannot_run(&cause, json)
            }
            Some("exec") => refusal::cannot_run(&cause, false),
            _ => {
                refusal::say(&cause);
                USAGE
            }
        };
    }
    // Help and the version are what was asked for.
    if let Err(error) = logging::start(logging::level(0, false), None) {
        logging::print(&format!("vmm: error: cannot start logging: {error}\n"));
    }
    stdout::written(error.print().and_then(|()| std::io::stdout().flush()), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("vmm").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        cli.run.config().map_err(|error| error.to_string()).map(|_| cli)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn messages_are_said_in_front_of_a_subcommand_or_behind_it() {
        for (line, expected) in [
            ("vmm -q run -- true", "vmm run -q -- true"),
            ("vmm --log f -vv ls", "vmm ls --log f -vv"),
            ("vmm --log=run run", "vmm run --log=run"),
            ("vmm --log run --kernel x", "vmm --log run --kernel x"),
            ("vmm -q --kernel run", "vmm -q --kernel run"),
            ("vmm run -- -q ls", "vmm run -- -q ls"),
            ("vmm -q nobody", "vmm -q nobody"),
            ("vmm --log", "vmm --log"),
        ] {
            let words = messages_behind(line.split(' ').map(OsString::from).collect());
            assert_eq!(words.join(std::ffi::OsStr::new(" ")), expected);
        }
        assert!(parse("ls -q").unwrap().messages.quiet);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, words) in [
            ("--memory 0", "at least"),
            ("--memory 4X", "512M or 4G"),
            ("--cpus 0", "there has to be at least one"),
            ("--cpus two", "'two' is not a number: write for example 1 or 4"),
            ("core x --vcpu two", "number of a vCPU, from 0 up"),
            ("core x translate", "<ADDRESS>"),
            ("core x regs general float", "unexpected argument 'float'"),
            ("--timeout never", "30s"),
            ("--console serial", "stdio, file:PATH, pty or none"),
            ("--initrd x", "--kernel"),
            ("--reboot maybe", "restart"),
            ("--gdb 1234", ":1234"),
            ("--gdb-no-wait", "--gdb"),
            ("--gdb-any-user", "--gdb"),
            ("--gdb-takeover", "--gdb"),
            ("--gdb :1 --gdb-lost never", "continue, hold or quit"),
            ("--name a/b", "letters"),
            ("--dump-on panic", "PATH"),
            ("--dump-on never=x", "panic, hang, triple-fault or timeout"),
            ("--dump-on panic=core.xz", "not written as .xz; .gz and .zst compress"),
            ("--dump-on timeout=core.LZ4", ".gz and .zst compress"),
            ("dump guest core.bz2", ".gz and .zst compress"),
            ("--cpu-template /no/such/file", "/no/such/file"),
            ("--frobnicate", "--frobnicate"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
