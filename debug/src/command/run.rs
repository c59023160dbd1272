//! Finding a command by what somebody typed, and running it.

use super::nearest::nearest;
use super::operator::Operator;
use super::table::TABLE;
use crate::reply::{Arguments, Command, Flag, Json, Needs, Refusal, Reply, Value, json};
use std::fmt;

/// Help is about the table, and so stands beside it.
const HELP: Command = Command::new("help", "[COMMAND]", "this list, or what one command does");

/// Why a command was not carried out, and how it is used if that is why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// How it is used: a line without its end.
    pub usage: Option<String>,
}

impl fmt::Display for Refused {
    /// Lines with their ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.why)?;
        self.usage.as_ref().map_or(Ok(()), |usage| writeln!(f, "usage: {usage}"))
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Refused {
        Refused { why, usage: None }
    }
}

/// The commands that every machine has, but for help.
pub fn common() -> impl Iterator<Item = Command> {
    TABLE.iter().map(|entry| entry.command)
}

/// Every command that an operator has: those of every machine, its own, and those of its machine.
pub fn commands(operator: &dyn Operator) -> Vec<Command> {
    let own = operator.commands().into_iter();
    let common = common().filter(|command| operator.offers(command));
    std::iter::once(HELP).chain(common).chain(own).chain(operator.view().machine.commands()).collect()
}

/// Runs a command as it is typed: in a line of words, of which the first may be the beginning of a name that no other
/// name has. An empty line asks for help.
///
/// # Errors
/// [`Refused`].
pub fn run_line(operator: &mut dyn Operator, line: &str) -> Result<Reply, Refused> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or(HELP.name);
    let words: Vec<&str> = words.collect();
    let all = commands(operator);
    let command = resolve(&all, name, operator.prefix())?;
    run_command(operator, &all, &command, &words)
}

/// Runs a command by its whole name.
///
/// # Errors
/// [`Refused`].
pub fn run(operator: &mut dyn Operator, name: &str, words: &[&str]) -> Result<Reply, Refused> {
    let all = commands(operator);
    let command = named(&all, name)?;
    run_command(operator, &all, &command, words)
}

fn run_command(
    operator: &mut dyn Operator,
    all: &[Command],
    command: &Command,
    words: &[&str],
) -> Result<Reply, Refused> {
    let result = Arguments::new(command, words).and_then(|arguments| {
        check_sense(operator, command)?;
        serve(operator, all, command, &arguments)
    });
    result.map_err(|why| {
        let usage = || format!("{} {}", operator.prefix(), command.synopsis());
        let usage = matches!(why, Refusal::Usage(_)).then(usage);
        Refused { why, usage }
    })
}

/// Whether a command makes sense for a machine.
fn makes_sense(operator: &dyn Operator, command: &Command) -> bool {
    command.needs == Needs::Nothing || operator.view().machine.can_run()
}

fn check_sense(operator: &dyn Operator, command: &Command) -> Result<(), Refusal> {
    match makes_sense(operator, command) {
        true => Ok(()),
        false => Err(Refusal::Senseless(format!(
            "'{}' is for a guest that runs, and this is a dump of one that has stopped",
            command.name
        ))),
    }
}

fn serve(
    operator: &mut dyn Operator,
    all: &[Command],
    command: &Command,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    if command.name == HELP.name {
        return help(operator, all, arguments);
    }
    if let Some(entry) = TABLE.iter().find(|entry| entry.command.name == command.name) {
        return (entry.run)(operator, arguments);
    }
    match operator.commands().iter().any(|own| own.name == command.name) {
        true => operator.run_command(command.name, arguments),
        false => operator.machine().run_command(command.name, arguments),
    }
}

/// The command of a name, or of the beginning of one.
fn resolve(all: &[Command], name: &str, prefix: &str) -> Result<Command, Refusal> {
    if let Some(command) = all.iter().find(|command| command.name == name) {
        return Ok(*command);
    }
    let mut matching = all.iter().filter(|command| command.name.starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(command), None) => Ok(*command),
        (None, _) => {
            let hint = nearest(name, all.iter().map(|command| command.name));
            Err(Refusal::Unknown(format!("there is no command '{name}'{hint}; see '{prefix} help'")))
        }
        (Some(first), Some(second)) => {
            Err(Refusal::Unknown(format!("'{name}' may be {} or {}", first.name, second.name)))
        }
    }
}

fn named(all: &[Command], name: &str) -> Result<Command, Refusal> {
    all.iter().find(|command| command.name == name).copied().ok_or_else(|| {
        let hint = nearest(name, all.iter().map(|command| command.name));
        Refusal::Unknown(format!("there is no command '{name}'{hint}"))
    })
}

fn help(operator: &dyn Operator, all: &[Command], arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    match arguments.words()[..] {
        [] => {
            let here = all.iter().filter(|command| makes_sense(operator, command)).copied();
            Ok(Box::new(Help { commands: here.collect() }))
        }
        [name] => Ok(Box::new(OneHelp { command: named(all, name)?, prefix: operator.prefix() })),
        _ => Err(Refusal::Usage("help is for one command at a time".into())),
    }
}

/// What commands there are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Help {
    commands: Vec<Command>,
}

fn command_json(command: &Command) -> Json {
    let flag = |flag: &Flag| json!({ "name": flag.name, "short": flag.short, "value": flag.value, "what": flag.what });
    json!({
        "name": command.name, "usage": command.usage, "what": command.what,
        "flags": command.flags.iter().map(flag).collect::<Vec<_>>(),
    })
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.commands
            .iter()
            .try_for_each(|command| writeln!(f, "  {:36} {}", command.to_string(), command.what))
    }
}

impl Value for Help {
    fn json(&self) -> Json {
        self.commands.iter().map(command_json).collect()
    }
}

/// What one command does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OneHelp {
    command: Command,
    prefix: &'static str,
}

impl fmt::Display for OneHelp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OneHelp { command, prefix } = self;
        writeln!(f, "{prefix} {command}\n  {}", command.what)?;
        command.flags.iter().try_for_each(|flag| {
            let value = flag.value.map(|value| format!(" {value}")).unwrap_or_default();
            let short = flag.short.map(|short| format!("{short}, ")).unwrap_or_default();
            writeln!(f, "  {short}{}{value}: {}", flag.name, flag.what)
        })
    }
}

impl Value for OneHelp {
    fn json(&self) -> Json {
        command_json(&self.command)
    }
}
