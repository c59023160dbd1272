//! What a command is to those who offer one and those who give one: how it is described, what it is told, and
//! what it answers.
//!
//! Whoever offers commands describes each ([`Command`]) and answers with a [`Value`]: the words for a person and
//! the JSON for a program are printed from it, each in one place. The commands that every machine has are in
//! [`command`](crate::command); a [`Machine`](crate::machine::Machine) adds its own, as a table of [`Offer`]s.
//! Nothing here knows of machines, of gdb or of shells.

use crate::cancel::Cancelled;
use std::fmt;

/// JSON, as a [`Value`] makes it.
pub use serde_json::Value as Json;
/// Makes [`Json`] as it is written.
pub use serde_json::json;

/// Where a command makes sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Everywhere.
    #[default]
    Nothing,
    /// A guest that can run, which a dump cannot.
    Running,
}

/// A word that may stand anywhere among a command's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The word: `--physical`, `-a`.
    pub name: &'static str,
    /// A shorter word for the same: `-w`.
    pub short: Option<&'static str>,
    /// What the next word is, for one that takes one: `ADDRESS`.
    pub value: Option<&'static str>,
    /// What it does, without a full stop.
    pub what: &'static str,
}

/// A command, as help shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its name: one word.
    pub name: &'static str,
    /// Its arguments, without flags: in capitals what stands for something, in brackets what may be left out.
    pub usage: &'static str,
    /// What it does, a line without a full stop.
    pub what: &'static str,
    /// Where it makes sense.
    pub needs: Needs,
    /// Words that may stand anywhere among its arguments.
    pub flags: &'static [Flag],
    /// What its first argument may be, for shells that complete words; empty where that is not a few words.
    pub words: &'static [&'static str],
}

impl Command {
    /// One that makes sense everywhere, without flags.
    pub const fn new(name: &'static str, usage: &'static str, what: &'static str) -> Command {
        Command { name, usage, what, needs: Needs::Nothing, flags: &[], words: &[] }
    }

    /// The same for a guest that can run only.
    #[must_use]
    pub const fn running(self) -> Command {
        Command { needs: Needs::Running, ..self }
    }

    /// The same with flags.
    #[must_use]
    pub const fn flags(self, flags: &'static [Flag]) -> Command {
        Command { flags, ..self }
    }

    /// The same with what its first argument may be.
    #[must_use]
    pub const fn words(self, words: &'static [&'static str]) -> Command {
        Command { words, ..self }
    }
}

impl Command {
    /// How it is used, with its flags: `read ADDRESS LENGTH [--physical]`.
    pub fn synopsis(&self) -> String {
        let flag = |flag: &Flag| match flag.value {
            Some(value) => format!(" [{} {value}]", flag.name),
            None => format!(" [{}]", flag.name),
        };
        let flags: String = self.flags.iter().map(flag).collect();
        format!("{self}{flags}")
    }
}

impl fmt::Display for Command {
    /// Its name and its arguments: `read ADDRESS LENGTH`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if self.usage.is_empty() { Ok(()) } else { write!(f, " {}", self.usage) }
    }
}

/// What a command is told: words, flags sorted out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments<'a> {
    words: Vec<&'a str>,
    flags: Vec<(&'static str, &'a str)>,
}

impl<'a> Arguments<'a> {
    /// Sorts out what a command is told.
    ///
    /// # Errors
    /// [`Refusal::Usage`], for a flag that it does not know, and one whose value is not there.
    pub fn new(command: &Command, words: &[&'a str]) -> Result<Arguments<'a>, Refusal> {
        let mut sorted = Arguments::default();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) if word.starts_with("--") => (name, Some(value)),
                _ => (word, None),
            };
            match command.flags.iter().find(|flag| flag.name == name || flag.short == Some(name)) {
                Some(flag @ Flag { value: Some(what), .. }) => {
                    let value = inline.or_else(|| words.next());
                    let lacks = || Refusal::Usage(format!("{name} is followed by {what}"));
                    sorted.flags.push((flag.name, value.ok_or_else(lacks)?));
                }
                Some(flag) if inline.is_none() => sorted.flags.push((flag.name, "")),
                Some(_) => return Err(Refusal::Usage(format!("{name} takes no value"))),
                None if word.starts_with("--") => {
                    return Err(Refusal::Usage(format!("'{name}' is nothing that {} takes", command.name)));
                }
                None => sorted.words.push(word),
            }
        }
        Ok(sorted)
    }

    /// The words that are no flags.
    pub fn words(&self) -> &[&'a str] {
        &self.words
    }

    /// Whether a flag is there.
    pub fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    /// A flag's value, empty for one that takes none; the last one counts.
    pub fn value(&self, flag: &str) -> Option<&'a str> {
        self.flags.iter().rev().find(|(name, _)| *name == flag).map(|(_, value)| *value)
    }

    /// Makes sure that there are no words.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn none(&self) -> Result<(), Refusal> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Refusal::Usage(format!("'{word}' is too much: it takes no words"))),
        }
    }

    /// `on`, `off`, or nothing.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn switch(&self) -> Result<Option<bool>, Refusal> {
        match self.words[..] {
            [] => Ok(None),
            ["on"] => Ok(Some(true)),
            ["off"] => Ok(Some(false)),
            _ => Err(Refusal::Usage("write on or off".into())),
        }
    }
}

/// Parses a number as a person writes it: `0x1000` or `4096`.
///
/// # Errors
/// How it is written.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not a number: write 0x1000 or 4096"))
}

/// Why a command did not do what it was given for; in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is asked for in another way.
    #[error("{0}")]
    Usage(String),
    /// There is no such command.
    #[error("{0}")]
    Unknown(String),
    /// It makes no sense for this kind of machine.
    #[error("{0}")]
    Senseless(String),
    /// What was asked for is not in the guest.
    #[error("{0}")]
    NotThere(String),
    /// The host could not do it.
    #[error("{0}")]
    Failed(String),
    /// It was not wanted any more.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What a command answers. Its [`Display`](fmt::Display) is for a person: lines with their ends.
pub trait Value: fmt::Display + fmt::Debug {
    /// For a program. Addresses and contents of registers are strings in hexadecimal (`"0x1000"`), as many readers
    /// of JSON have no whole numbers of 64 bits; sizes and counts are numbers.
    fn json(&self) -> Json;

    /// The text for a person at a terminal, who is shown by colours what matters.
    fn in_colour(&self) -> String {
        self.to_string()
    }

    /// What was asked for and is not in the guest, in words, where a part of it is.
    fn shortfall(&self) -> Option<String> {
        None
    }
}

/// A value, whatever it is of.
pub type Reply = Box<dyn Value>;

/// The value of a command that has little to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    text: String,
    json: Json,
}

impl Said {
    /// Lines without the last one's end, and what a program is told instead.
    pub fn new(text: impl Into<String>, json: Json) -> Said {
        Said { text: text.into(), json }
    }

    /// Words that say all, for a program as well (`{"text": ...}`).
    pub fn words(text: impl Into<String>) -> Said {
        let text = text.into();
        let json = json!({ "text": text.trim_end() });
        Said { text, json }
    }

    /// As what a command answers.
    pub fn reply(self) -> Reply {
        Box::new(self)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.text.ends_with('\n') { Ok(()) } else { f.write_str("\n") }
    }
}

impl Value for Said {
    fn json(&self) -> Json {
        self.json.clone()
    }
}

/// A number of 64 bits as JSON has it.
pub fn hex(value: u64) -> Json {
    Json::String(format!("{value:#x}"))
}

/// A command that somebody adds to the table, with what carries it out.
pub struct Offer<T> {
    /// The command.
    pub command: Command,
    /// Carries it out.
    pub run: fn(&mut T, &Arguments<'_>) -> Result<Reply, Refusal>,
}

impl<T> fmt::Debug for Offer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Offer").field(&self.command.name).finish()
    }
}

/// The commands of a table of offers.
pub fn offered<T>(offers: &[Offer<T>]) -> Vec<Command> {
    offers.iter().map(|offer| offer.command).collect()
}

/// Carries out one of a table of offers.
///
/// # Errors
/// [`Refusal`]; [`Refusal::Unknown`] for one that is not in the table.
pub fn run_offered<T>(
    offers: &[Offer<T>],
    of: &mut T,
    name: &str,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    match offers.iter().find(|offer| offer.command.name == name) {
        Some(offer) => (offer.run)(of, arguments),
        None => Err(Refusal::Unknown(format!("there is no command '{name}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Command = Command::new("read", "ADDRESS", "reads").flags(&[
        Flag { name: "--physical", short: Some("-p"), value: None, what: "physical" },
        Flag { name: "--table", short: None, value: Some("ADDRESS"), what: "by a table" },
    ]);

    #[test]
    fn flags_stand_anywhere() {
        assert_eq!(READ.synopsis(), "read ADDRESS [--physical] [--table ADDRESS]");
        for (line, words, physical, table) in [
            ("0x1000", &["0x1000"][..], false, None),
            ("--physical 0x1000", &["0x1000"], true, None),
            ("0x1000 --physical", &["0x1000"], true, None),
            ("-p 0x1000", &["0x1000"], true, None),
            ("0x1000 --table 7 -3", &["0x1000", "-3"], false, Some("7")),
            ("--table=0x20 a --table 8", &["a"], false, Some("8")),
            ("a=b", &["a=b"], false, None),
            ("", &[], false, None),
        ] {
            let given: Vec<&str> = line.split_whitespace().collect();
            let arguments = Arguments::new(&READ, &given).unwrap();
            assert_eq!(arguments.words(), words, "{line}");
            assert_eq!(
                (arguments.has("--physical"), arguments.value("--table")),
                (physical, table),
                "{line}"
            );
        }
        for (line, why) in [
            ("--physik", "'--physik' is nothing that read takes"),
            ("0x1000 --table", "--table is followed by ADDRESS"),
            ("--physical=on", "--physical takes no value"),
        ] {
            let given: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(Arguments::new(&READ, &given), Err(Refusal::Usage(why.into())), "{line}");
        }
    }

    #[test]
    fn numbers_as_people_write_them() {
        for (text, value) in [("0x1000", 0x1000), ("0X1f", 0x1f), ("4096", 4096), ("0", 0)] {
            assert_eq!(number(text), Ok(value));
        }
        for text in ["", "0x", "-1", "1000h", "0x1_0", "99999999999999999999"] {
            assert!(number(text).is_err_and(|why| why.contains("write 0x1000 or 4096")), "{text}");
        }
    }

    #[test]
    fn a_table_of_offers_is_found_by_name() {
        const OFFERS: [Offer<u32>; 1] = [Offer {
            command: Command::new("count", "[on|off]", "counts"),
            run: |count, arguments| {
                *count += u32::from(arguments.switch()? == Some(true));
                Ok(Said::new(format!("it is {count}"), json!(*count)).reply())
            },
        }];
        let mut count = 3;
        let mut run = |name: &str, word: &str| {
            let arguments = Arguments::new(&OFFERS[0].command, &[word]).unwrap();
            let reply = run_offered(&OFFERS, &mut count, name, &arguments);
            reply.map(|value| (value.to_string(), value.json()))
        };
        assert_eq!(run("count", "on"), Ok(("it is 4\n".into(), json!(4))));
        assert_eq!(run("count", "maybe"), Err(Refusal::Usage("write on or off".into())));
        assert!(matches!(run("mount", "on"), Err(Refusal::Unknown(_))));
        assert_eq!(offered(&OFFERS)[0].to_string(), "count [on|off]");
    }
}
