//! `monitor` commands (`qRcmd`): the [table](crate::command) of every machine's commands, given by a debugger's user,
//! with those that are about the session itself.

use super::description::Described;
use super::session::{Client, Session};
use crate::breakpoint::Kind;
use crate::command::{self, Operator};
use crate::dump::write::WriteError;
use crate::dump::write::destination::Destination;
use crate::reply::{self, Arguments, Command, Offer, Refusal, Reply, Said, json};
use crate::target::{Control, Machine, TargetError};
use crate::view::View;
use arch::Isa;
use std::path::Path;

/// Bytes of memory that one answer has at most: it is sent as four times as much text.
const MOST_BYTES: u64 = 1 << 20;

/// Runs a command; what the debugger's user is told, lines with their ends.
pub fn run<M: Machine>(session: &mut Session<M>, line: &str) -> String {
    match command::run_line(session, line) {
        Ok(value) => match value.shortfall() {
            Some(why) => format!("{value}{why}\n"),
            None => value.to_string(),
        },
        Err(refused) => refused.to_string(),
    }
}

impl<M: Machine> Operator for Session<M> {
    fn view(&self) -> View<'_> {
        Session::view(self)
    }

    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.machine
    }

    fn prefix(&self) -> &'static str {
        "monitor"
    }

    fn about_symbols(&self) -> &'static str {
        "of a symbol, gdb has the address: eval \"monitor translate %p\", &jiffies"
    }

    fn most_bytes(&self) -> u64 {
        MOST_BYTES
    }

    /// Whoever may debug the guest may not take away the host's files, nor put one anywhere.
    fn destination(&self, path: &Path) -> Result<Destination, WriteError> {
        Destination::below(&self.dump_folder, path)
    }

    fn refused(&self) -> Vec<(Kind, u64, String)> {
        Session::refused(self).map(|((kind, address, _), why)| (*kind, *address, why.to_string())).collect()
    }

    fn restart(&mut self) -> Result<String, TargetError> {
        Session::restart(self)?;
        let mut text = self.take_words().unwrap_or_default();
        if self.client == Client::Gdb {
            text.push_str(
                "gdb shows the registers that it knows: 'maintenance flush register-cache' has it ask\n",
            );
        }
        Ok(text)
    }

    fn end(&mut self) -> Result<&'static str, TargetError> {
        if self.machine.can_run() {
            self.machine.control(Control::Quit)?;
            return Ok("the guest ends");
        }
        self.is_done = true;
        Ok("the dump is closed")
    }

    fn commands(&self) -> Vec<Command> {
        reply::offered(&own::<M>())
    }

    fn run_command(&mut self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        reply::run_offered(&own::<M>(), self, name, arguments)
    }
}

/// Commands about the session.
fn own<M: Machine>() -> [Offer<Session<M>>; 4] {
    const PHYSICAL: Command = Command::new("physical", "[on|off]", "whether addresses are guest-physical");
    const DESCRIPTION: Command = Command::new(
        "description",
        "[auto|x86-64|i386|i8086]",
        "what a debugger that attaches next is told the processor is",
    );
    const STEP_INTERRUPTS: Command =
        Command::new("step-interrupts", "[on|off]", "whether a step may fall into an interrupt handler");
    const ALLOW_LOAD: Command =
        Command::new("allow-load", "[on|off]", "whether gdb may write a program over the kernel that runs");
    [
        Offer { command: PHYSICAL, run: physical },
        Offer { command: DESCRIPTION, run: description },
        Offer { command: STEP_INTERRUPTS.running(), run: step_interrupts },
        Offer { command: ALLOW_LOAD.running(), run: allow_load },
    ]
}

fn physical<M: Machine>(session: &mut Session<M>, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    session.is_physical = arguments.switch()?.unwrap_or(session.is_physical);
    let kind = if session.is_physical { "physical" } else { "virtual" };
    Ok(Said::new(format!("addresses are guest-{kind}"), json!({ "physical": session.is_physical })).reply())
}

fn description<M: Machine>(session: &mut Session<M>, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    match arguments.words()[..] {
        [] => {}
        ["auto"] => session.described = None,
        [name] => {
            let described = (session.isa() == Isa::X86_64).then(|| Described::from_name(name)).flatten();
            let wrong = || Refusal::Usage(format!("'{name}' is none that this target is"));
            session.described = Some(described.ok_or_else(wrong)?);
        }
        _ => return Err(Refusal::Usage("write one name".into())),
    }
    let name = session.describes().name(session.isa());
    Ok(Said::new(format!("a debugger that attaches is told: {name}"), json!({ "description": name })).reply())
}

fn step_interrupts<M: Machine>(
    session: &mut Session<M>,
    arguments: &Arguments<'_>,
) -> Result<Reply, Refusal> {
    let wanted = arguments.switch()?;
    let mut state = session.engine.state();
    state.step_interrupts = wanted.unwrap_or(state.step_interrupts);
    let how = if state.step_interrupts { "may fall" } else { "do not fall" };
    let json = json!({ "step_interrupts": state.step_interrupts });
    Ok(Said::new(format!("steps {how} into interrupt handlers"), json).reply())
}

fn allow_load<M: Machine>(session: &mut Session<M>, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    session.allows_load = arguments.switch()?.unwrap_or(session.allows_load);
    let may = if session.allows_load { "may" } else { "may not" };
    let text = format!("gdb {may} write a program over the kernel that runs");
    Ok(Said::new(text, json!({ "allow_load": session.allows_load })).reply())
}
