//! The prompt of `vmm monitor NAME`: commands one after the other, as gdb's `monitor` has them.

use super::ask_words;
use super::dmesg::Shown;
use crate::machine::looks;
use debug::reply::Command;
use nix::sys::stat::{Mode, umask};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::env;
use std::fs;
use std::io::{self, BufRead, ErrorKind};
use std::path::PathBuf;

/// Lines that are remembered from one time to the next.
const REMEMBERED: usize = 1000;
/// What ends it, beside the end of the input.
const ENDS: [&str; 3] = ["quit", "exit", "q"];

/// Has a person's commands carried out, until they leave; the exit code.
pub fn at_terminal(guest: &str, shown: Shown) -> u8 {
    let config = Config::builder().max_history_size(REMEMBERED).map(|builder| builder.auto_add_history(true));
    let editor = config.and_then(|config| Editor::<Words, DefaultHistory>::with_config(config.build()));
    let mut editor = match editor {
        Ok(editor) => editor,
        Err(error) => {
            log::error!("there is no prompt: {error}");
            return crate::outcome::FILE;
        }
    };
    editor.set_helper(Some(Words));
    let history = history();
    if let Some(path) = &history
        && let Err(error) = editor.load_history(path)
    {
        // The first time there is none.
        log::debug!("{}: {error}", path.display());
    }
    let mut code = 0;
    loop {
        match editor.readline(&format!("{guest}> ")) {
            Ok(line) if ENDS.contains(&line.trim()) => break,
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => code = ask_words(guest, &words(&line), shown),
            // Of what was typed nothing is left.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => {
                log::error!("the prompt cannot be read: {error}");
                code = crate::outcome::FILE;
                break;
            }
        }
    }
    if let Some(path) = &history {
        // What is typed is nobody else's business.
        let before = umask(Mode::from_bits_truncate(0o077));
        if let Err(error) = editor.save_history(path) {
            log::info!("{}: {error}", path.display());
        }
        umask(before);
    }
    code
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

/// Where lines are remembered, in a folder that is there.
fn history() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let folder = state.join("vmm");
    match fs::create_dir_all(&folder) {
        Ok(()) => Some(folder.join("monitor-history")),
        Err(error) => {
            log::debug!("{}: {error}", folder.display());
            None
        }
    }
}

/// Has the lines of a script carried out; the exit code of the first that was not, and the others are left.
pub fn of_script(guest: &str, shown: Shown, script: impl BufRead) -> u8 {
    for line in script.lines() {
        let code = match line {
            Ok(line) if line.trim().is_empty() || line.trim_start().starts_with('#') => 0,
            Ok(line) if ENDS.contains(&line.trim()) => return 0,
            Ok(line) => ask_words(guest, &words(&line), shown),
            Err(error) => return unreadable(&error),
        };
        if code != 0 {
            return code;
        }
    }
    0
}

fn unreadable(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidData => log::error!("standard input is no text"),
        _ => log::error!("standard input cannot be read: {error}"),
    }
    crate::outcome::FILE
}

/// What can be typed.
#[derive(Debug)]
struct Words;

/// What may stand where `line` has its last word: from where on, and what.
fn candidates(line: &str) -> (usize, Vec<Pair>) {
    let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let (before, begun) = line.split_at(start);
    let commands = || debug::command::common().filter(looks);
    let pair = |word: &str, what: &str| Pair { display: format!("{word}  {what}"), replacement: word.into() };
    let all: Vec<Pair> = match before.split_whitespace().next() {
        None => commands().map(|command| pair(command.name, command.what)).collect(),
        Some(name) => {
            commands().filter(|command| command.name == name).flat_map(|it| arguments(&it)).collect()
        }
    };
    (start, all.into_iter().filter(|pair| pair.replacement.starts_with(begun)).collect())
}

fn arguments(command: &Command) -> Vec<Pair> {
    let word = |word: &&str| Pair { display: word.to_string(), replacement: word.to_string() };
    let flags = command
        .flags
        .iter()
        .map(|flag| Pair { display: format!("{}  {}", flag.name, flag.what), replacement: flag.name.into() });
    command.words.iter().map(word).chain(flags).collect()
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(candidates(line.get(..at).unwrap_or(line)))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_their_arguments_complete() {
        let words = |line: &str| {
            let (start, found) = candidates(line);
            (start, found.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(words("dme"), (0, vec!["dmesg".to_string()]));
        assert!(words("").1.len() > 10);
        assert_eq!(words("no-such thing"), (8, Vec::new()));
        let with_flags =
            debug::command::common().filter(looks).find(|command| !command.flags.is_empty()).unwrap();
        let flag = with_flags.flags[0].name;
        let (start, found) = words(&format!("{} {flag}", with_flags.name));
        assert!(start == with_flags.name.len() + 1 && found.contains(&flag.to_string()), "{found:?}");
        // What only a debugger may do is not offered.
        assert!(!words("").1.contains(&"reset".to_string()));
    }
}
