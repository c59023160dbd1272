//! Writes what a package has beside the program into a folder: manual pages (`vmm.1`, and one for each
//! command), and completions for bash, fish and zsh under the names that each looks for. `make deb` calls it.

use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

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
        fs::write(folder.join(name), vmm::cli::script(shell)?)?;
    }
    Ok(())
}

/// Writes the page of a command, and those of its own commands.
fn page(command: &clap::Command, folder: &Path) -> io::Result<()> {
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text)?;
    // clap_mangen has no name for what stands behind the options; here it is the exit codes (man-pages(7)).
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\nExit codes:", ".SH \"EXIT STATUS\"");
    fs::write(folder.join(man.get_filename()), text)?;
    command.get_subcommands().try_for_each(|command| page(command, folder))
}
