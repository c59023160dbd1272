//! The prompt of `vmm monitor NAME`: commands one after the other, as gdb's `monitor` has them.

use super::dmesg::Shown;
use super::{INTERRUPTED, ask_words};
use crate::logging;
use crate::machine::looks;
use debug::reply::Command;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
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
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

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
    let interrupts = match Interrupts::take() {
        Ok(interrupts) => interrupts,
        Err(error) => {
            log::error!("there is no prompt: {error}");
            return crate::outcome::FILE;
        }
    };
    let mut code = 0;
    loop {
        let read = editor.readline(&format!("{guest}> "));
        if let Some(path) = history.as_ref().filter(|_| read.is_ok()) {
            remember(&mut editor, path);
        }
        match read {
            Ok(line) if ENDS.contains(&line.trim()) => return code,
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                interrupts.forget();
                code = ask_words(guest, &words(&line), shown, Some(interrupts.0.as_fd()));
                if code == INTERRUPTED {
                    // Behind what the terminal shows of the key.
                    logging::print("\n");
                }
            }
            // Of what was typed nothing is left.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return code,
            Err(error) => {
                log::error!("the prompt cannot be read: {error}");
                return crate::outcome::FILE;
            }
        }
    }
}

/// Ctrl-C while a command is carried out, which breaks that off and not the prompt. While a line is typed it is a key.
struct Interrupts(SignalFd);

impl Interrupts {
    fn take() -> nix::Result<Interrupts> {
        let signals: SigSet = [Signal::SIGINT].into_iter().collect();
        signals.thread_block()?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Interrupts)
    }

    /// Those that have come were meant for what is over.
    fn forget(&self) {
        while let Ok(Some(_)) = self.0.read_signal() {}
    }
}

/// Puts the line that was typed last behind those that are remembered, which others may do as well meanwhile.
fn remember(editor: &mut Editor<Words, DefaultHistory>, path: &Path) {
    // What is typed is nobody else's business.
    let before = umask(Mode::from_bits_truncate(0o077));
    if let Err(error) = editor.append_history(path) {
        log::info!("{}: {error}", path.display());
    }
    umask(before);
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
            Ok(line) => ask_words(guest, &words(&line), shown, None),
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
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn two_prompts_remember_each_others_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let prompt = || Editor::<Words, DefaultHistory>::with_config(Config::default()).unwrap();
        let (mut one, mut other) = (prompt(), prompt());
        for line in ["ps", "why", "locks"] {
            one.add_history_entry(line).unwrap();
            remember(&mut one, &path);
            std::mem::swap(&mut one, &mut other);
        }
        let text = fs::read_to_string(&path).unwrap();
        for line in ["ps", "why", "locks"] {
            assert!(text.lines().any(|its| its == line), "{line}: {text}");
        }
    }

    #[test]
    fn ctrl_c_is_heard_by_a_command_and_no_other_one() {
        let interrupts = Interrupts::take().unwrap();
        let has_come = || {
            let mut polled = [PollFd::new(interrupts.0.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
        };
        // To this thread, as other tests' do not hear it.
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        assert!(has_come());
        interrupts.forget();
        assert!(!has_come());
    }

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
