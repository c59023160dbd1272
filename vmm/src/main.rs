//! The `vmm` command.

use clap::Parser;
use clap::error::ErrorKind;
use std::process::ExitCode;
use vmm::cli::{Cli, Command};
use vmm::outcome::{self, PANIC, USAGE};
use vmm::{check, cli, control, core_dump, logging, run, terminal};

fn main() -> ExitCode {
    terminal::install_panic_hook(PANIC);
    ignore_file_size_signal();
    let code = command();
    logging::finish();
    code
}

/// A file that is as large as it may become (`ulimit -f`) is an error to whoever writes it, which says so
/// and removes what is only a part; it is no reason to end a guest.
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours. It cannot fail for a signal that exists.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn command() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are not mistakes. A closed pipe is nobody's.
            drop(error.print());
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_answer { 0 } else { USAGE });
        }
    };
    let level = logging::level(cli.run.verbose, cli.run.quiet);
    if let Err(error) = logging::start(level, cli.run.log.as_deref()) {
        let path = cli.run.log.unwrap_or_default();
        logging::print(&format!("vmm: error: cannot open --log {}: {error}\n", path.display()));
        return ExitCode::from(outcome::FILE);
    }
    match cli.command {
        Some(Command::Check { json }) => ExitCode::from(check::main(json)),
        Some(Command::Core(args)) => ExitCode::from(core_dump::main(&args)),
        Some(Command::Dump { guest, path }) => ExitCode::from(control::dump(&guest, &path)),
        Some(Command::Release { guest }) => ExitCode::from(control::release_debugger(&guest)),
        Some(Command::Completions { shell }) => {
            cli::completions(shell, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        None => ExitCode::from(run_guest(&cli)),
    }
}

fn run_guest(cli: &Cli) -> u8 {
    match cli.run.config().and_then(|config| run::run(&config)) {
        Ok(outcome) => {
            if outcome.is_failure() {
                log::error!("{outcome}");
            } else {
                log::info!("{outcome}");
            }
            outcome.code()
        }
        Err(error) => {
            log::error!("{error}");
            error.code()
        }
    }
}
