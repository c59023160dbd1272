//! Writes what a package has beside the program into a folder: manual pages (`vmm.1`, and one for each
//! command), and completions for bash, fish and zsh under the names that each looks for. `make deb` calls it.

use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

/// zsh reads a file of its completion system when Tab is first pressed, as the function of that name (zshcompsys(1),
/// "Autoloaded files"): what it defines is to be called then, too.
const FIRST_CALL: &str = "\nif [ \"${funcstack[1]}\" = _vmm ]; then _clap_dynamic_completer_vmm \"$@\"; fi\n";

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("pages: give the folder to write to");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pages: cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let pages = folder.join("man");
    fs::create_dir_all(&pages)?;
    // `vmm help` says what the pages say.
    let mut command = vmm::cli::definition().disable_help_subcommand(true);
    command.build();
    page(&command, &pages)?;
    for (shell, name) in [(Shell::Bash, "vmm"), (Shell::Fish, "vmm.fish"), (Shell::Zsh, "_vmm")] {
        let folder = folder.join(shell.to_string());
        fs::create_dir_all(&folder)?;
        let script = vmm::cli::script(shell)?;
        let call = if shell == Shell::Zsh { FIRST_CALL } else { "" };
        fs::write(folder.join(name), script + call)?;
    }
    Ok(())
}

/// Writes the page of a command, and those of its own commands that help lists.
fn page(command: &clap::Command, folder: &Path) -> io::Result<()> {
    let source = concat!("vmm ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).manual("vmm").source(source);
    let mut text = Vec::new();
    man.render(&mut text)?;
    // clap_mangen has no name for what stands behind the options; here it is the exit codes (man-pages(7)).
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\nExit codes:", ".SH \"EXIT STATUS\"");
    fs::write(folder.join(man.get_filename()), with_usage(&text, command))?;
    let mut own = command.get_subcommands().filter(|command| !command.is_hide_set());
    own.try_for_each(|command| page(command, folder))
}

/// A page whose synopsis is how help has it: clap_mangen has every option there, without what it takes.
fn with_usage(text: &str, command: &clap::Command) -> String {
    const SYNOPSIS: &str = ".SH SYNOPSIS\n";
    let Some((before, rest)) = text.split_once(SYNOPSIS) else { return text.into() };
    let behind = rest.find("\n.SH ").map_or("", |at| &rest[at..]);
    let usage = command.clone().render_usage().to_string();
    let lines = usage.trim_start_matches("Usage:").lines().map(|line| line.trim().replace('-', "\\-"));
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    format!("{before}{SYNOPSIS}{}{behind}", lines.join("\n.br\n"))
}
