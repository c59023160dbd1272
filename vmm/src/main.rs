//! The `vmm` command.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use vmm::cli::{Cli, Command};
use vmm::outcome::{self, PANIC, USAGE};
use vmm::{check, completions, control, core_dump, logging, qemu_habits, run, stdout, terminal};

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
    if let Some(code) = completions::answer() {
        return ExitCode::from(code);
    }
    let cli = match Cli::try_parse_from(core_dump::command_line(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(refused(error)),
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
        Some(Command::Gdb { guest, address, .. }) => ExitCode::from(control::gdb(&guest, address)),
        Some(Command::Release { guest }) => ExitCode::from(control::release_debugger(&guest)),
        Some(Command::Completions { shell }) => ExitCode::from(completions(shell)),
        None => ExitCode::from(run_guest(&cli)),
    }
}

fn completions(shell: clap_complete::Shell) -> u8 {
    match completions::script(shell) {
        Ok(script) => stdout::print(&script, 0),
        Err(error) => {
            log::error!("{error}");
            USAGE
        }
    }
}

/// Says why there is nothing to do; the exit code.
fn refused(error: clap::Error) -> u8 {
    if error.use_stderr() {
        let error = qemu_habits::explain(error, &std::env::args_os().skip(1).collect::<Vec<_>>());
        // What cannot be said on standard error cannot be said.
        drop(error.print());
        return USAGE;
    }
    // Help and the version are what was asked for.
    if let Err(error) = logging::start(logging::level(0, false), None) {
        logging::print(&format!("vmm: error: cannot start logging: {error}\n"));
    }
    stdout::written(error.print().and_then(|()| std::io::stdout().flush()), 0)
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
