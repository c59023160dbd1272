//! Commands for a dump on the command line: those of the [table](debug::command), as clap knows commands, so that
//! help, completion and manual pages have them, and none is listed a second time.

use super::shell;
use crate::cli::candidates::words;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Subcommand};
use debug::reply::{Command, Needs};

/// A command, with its words as a person would type them behind `monitor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub name: String,
    pub words: Vec<String>,
}

/// The names of a command's arguments, and whether each may be left out.
fn positions(command: &Command) -> impl Iterator<Item = (&'static str, bool)> {
    let words = command.usage.split_whitespace();
    words.map(|word| (word.trim_matches(['[', ']']), word.starts_with('[')))
}

/// With a capital letter in front, as the other lines of help have it.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn command(command: &Command) -> clap::Command {
    let it = clap::Command::new(command.name)
        .about(capital(command.what))
        // What makes no sense for a dump says so in words of its own.
        .hide(command.needs == Needs::Running);
    let it = positions(command).enumerate().fold(it, |it, (index, (name, may_lack))| {
        let arg = Arg::new(name).required(!may_lack);
        it.arg(if index == 0 && !command.words.is_empty() { arg.add(words(command.words)) } else { arg })
    });
    command.flags.iter().fold(it, |it, flag| {
        let arg = Arg::new(flag.name).help(capital(flag.what));
        let mut letters = flag.name.trim_start_matches('-').chars();
        let short = flag.short.and_then(|short| short.strip_prefix('-')?.chars().next());
        let arg = match (flag.name.strip_prefix("--"), letters.next()) {
            (Some(name), _) => arg.long(name).short(short),
            (None, Some(letter)) => arg.short(letter),
            (None, None) => arg,
        };
        it.arg(match flag.value {
            Some(value) => arg.action(ArgAction::Set).value_name(value),
            None => arg.action(ArgAction::SetTrue),
        })
    })
}

impl Subcommand for Asked {
    fn augment_subcommands(cmd: clap::Command) -> clap::Command {
        shell::commands().iter().fold(cmd, |cmd, it| cmd.subcommand(command(it)))
    }

    fn augment_subcommands_for_update(cmd: clap::Command) -> clap::Command {
        Asked::augment_subcommands(cmd)
    }

    fn has_subcommand(name: &str) -> bool {
        shell::commands().iter().any(|command| command.name == name)
    }
}

impl FromArgMatches for Asked {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Asked, clap::Error> {
        let lacks = || clap::Error::new(ErrorKind::MissingSubcommand);
        let (name, matches) = matches.subcommand().ok_or_else(lacks)?;
        let all = shell::commands();
        let command = all.iter().find(|command| command.name == name).ok_or_else(lacks)?;
        let word = |(name, _)| matches.get_one::<String>(name).cloned();
        let mut words: Vec<String> = positions(command).filter_map(word).collect();
        for flag in command.flags {
            match flag.value {
                Some(_) => {
                    if let Some(value) = matches.get_one::<String>(flag.name) {
                        words.extend([flag.name.to_string(), value.clone()]);
                    }
                }
                None if matches.get_flag(flag.name) => words.push(flag.name.to_string()),
                None => {}
            }
        }
        Ok(Asked { name: name.to_string(), words })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Asked::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn asked(words: &str) -> Result<Asked, clap::Error> {
        #[derive(Debug, Parser)]
        struct Line {
            #[arg(long, global = true)]
            json: bool,
            #[command(subcommand)]
            command: Option<Asked>,
        }
        let line = Line::try_parse_from(std::iter::once("vmm").chain(words.split_whitespace()))?;
        line.command.ok_or_else(|| clap::Error::new(ErrorKind::MissingSubcommand))
    }

    #[test]
    fn words_and_flags_come_as_they_would_behind_monitor() {
        for (line, name, words) in [
            ("info", "info", &[][..]),
            ("info --json", "info", &[]),
            ("info registers -a", "info", &["registers", "-a"]),
            ("translate 0x1000", "translate", &["0x1000"]),
            ("translate --json 0x1000 --table 0x2000", "translate", &["0x1000", "--table", "0x2000"]),
            ("read --physical 0x1000 16", "read", &["0x1000", "16", "--physical"]),
            ("read $rsp-8 16 --json", "read", &["$rsp-8", "16"]),
            ("nmi", "nmi", &[]),
            ("diff other", "diff", &["other"]),
            ("dmesg -l err+ -w 5", "dmesg", &["5", "--level", "err+", "--follow"]),
        ] {
            let asked = asked(line).unwrap();
            let given: Vec<&str> = asked.words.iter().map(String::as_str).collect();
            assert_eq!((asked.name.as_str(), &given[..]), (name, words), "{line}");
        }
        for line in ["xyzzy", "info --physical", "mem 3", "translate", "translate 1 --table", "read 1"] {
            assert!(asked(line).is_err(), "{line}");
        }
    }
}
