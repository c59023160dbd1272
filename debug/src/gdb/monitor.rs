//! `monitor` commands (`qRcmd`): the [table](crate::command) of every machine's commands, given by a debugger's user,
//! with those that are about the session itself.

use super::description::Described;
use super::session::{Client, Session};
use crate::breakpoint::Kind;
use crate::command::{self, Operator, ThreadKind};
#[cfg(feature = "dump")]
use crate::dump::write::{WriteError, destination::Destination};
use crate::machine::{Control, Machine, MachineError};
use crate::reply::{self, Arguments, Command, Offer, Refusal, Reply, Said, json};
use crate::symbols::SymbolFile;
use crate::view::View;
use arch::Isa;
#[cfg(feature = "dump")]
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
        &mut self.debuggee.machine
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
    #[cfg(feature = "dump")]
    fn destination(&self, path: &Path) -> Result<Destination, WriteError> {
        Destination::below(&self.dump_folder, path)
    }

    fn symbols(&self) -> Option<&SymbolFile> {
        Some(&self.symbols)
    }

    fn refused(&self) -> Vec<(Kind, u64, String)> {
        self.debuggee.refused().map(|((kind, address, _), why)| (*kind, *address, why.to_string())).collect()
    }

    fn restart(&mut self) -> Result<String, MachineError> {
        Session::restart(self)?;
        let mut text = self.take_words().unwrap_or_default();
        if self.client == Client::Gdb {
            text.push_str(
                "gdb shows the registers that it knows: 'maintenance flush register-cache' has it ask\n",
            );
        }
        Ok(text)
    }

    fn end(&mut self) -> Result<&'static str, MachineError> {
        if self.debuggee.machine.can_run() {
            self.debuggee.machine.control(Control::Quit)?;
            return Ok("the guest ends");
        }
        self.is_done = true;
        Ok("the dump is closed")
    }

    fn threads(&mut self, wanted: Option<ThreadKind>) -> Result<Option<String>, Refusal> {
        self.threads_are(wanted).map(Some)
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
    session.debuggee.is_physical = arguments.switch()?.unwrap_or(session.debuggee.is_physical);
    let kind = if session.debuggee.is_physical { "physical" } else { "virtual" };
    Ok(Said::new(format!("addresses are guest-{kind}"), json!({ "physical": session.debuggee.is_physical }))
        .reply())
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
    let mut requests = session.debuggee.engine.requests();
    requests.step_interrupts = wanted.unwrap_or(requests.step_interrupts);
    let how = if requests.step_interrupts { "may fall" } else { "do not fall" };
    let json = json!({ "step_interrupts": requests.step_interrupts });
    Ok(Said::new(format!("steps {how} into interrupt handlers"), json).reply())
}

fn allow_load<M: Machine>(session: &mut Session<M>, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    session.allows_load = arguments.switch()?.unwrap_or(session.allows_load);
    let may = if session.allows_load { "may" } else { "may not" };
    let text = format!("gdb {may} write a program over the kernel that runs");
    Ok(Said::new(text, json!({ "allow_load": session.allows_load })).reply())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::fake::Still;
    use std::sync::Arc;

    fn session(isa: Isa) -> Session<Still> {
        let machine = Still::new(isa, 2, 1 << 20).unwrap();
        let engine = Engine::new(isa, machine.abilities().clone(), 2);
        Session::new(machine, Arc::new(engine))
    }

    #[test]
    fn what_is_of_the_session_is_in_the_same_table() {
        for (line, text, value) in [
            ("physical", "addresses are guest-virtual\n", json!({ "physical": false })),
            ("phys on", "addresses are guest-physical\n", json!({ "physical": true })),
            (
                "step-interrupts on",
                "steps may fall into interrupt handlers\n",
                json!({ "step_interrupts": true }),
            ),
            (
                "allow-load on",
                "gdb may write a program over the kernel that runs\n",
                json!({ "allow_load": true }),
            ),
            ("desc i386", "a debugger that attaches is told: i386\n", json!({ "description": "i386" })),
            (
                "description auto",
                "a debugger that attaches is told: i386:x86-64\n",
                json!({ "description": "i386:x86-64" }),
            ),
        ] {
            let mut session = session(Isa::X86_64);
            assert_eq!(command::run_line(&mut session, line).unwrap().json(), value, "{line}");
            assert_eq!(run(&mut session, line), text, "{line}");
        }
        let mut arm = session(Isa::Aarch64);
        assert_eq!(
            run(&mut arm, "description i386"),
            "'i386' is none that this target is\nusage: monitor description [auto|x86-64|i386|i8086]\n"
        );
        assert!(run(&mut arm, "help").contains("\n  physical [on|off] "));
        assert!(run(&mut arm, "help physical").starts_with("monitor physical [on|off]\n"));
        assert!(run(&mut arm, "phisical").contains("do you mean 'physical'?"));
    }

    #[test]
    fn one_answer_has_so_much_memory_and_says_what_is_lacking() {
        let mut session = session(Isa::X86_64);
        assert!(
            run(&mut session, "read 0 0x100001").starts_with("at most 1 MiB are read at a time\nusage: ")
        );
        let text = run(&mut session, "read 0xffff0 0x20");
        assert!(
            text.ends_with("\n16 of 32 bytes, up to 0x100000: there is no memory at 0x100000\n"),
            "{text}"
        );
        session.debuggee.is_physical = true;
        session.debuggee.current = 1;
        assert!(run(&mut session, "regs").starts_with("vCPU 1 at 0x0"));
        assert_eq!(run(&mut session, "quit"), "the guest ends\n");
    }

    #[cfg(feature = "dump")]
    #[test]
    fn a_dump_is_closed_and_does_not_step() {
        use crate::dump::core::Core;
        use crate::dump::read::raw;
        use arch::register::RegisterFile;
        let file = RegisterFile::new(Isa::Aarch64);
        let contents = raw::read(Arc::new(vec![0; 0x1000]), Isa::Aarch64, 0, file).unwrap();
        let core = Core::new(contents, false).unwrap();
        let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
        let mut session = Session::new(core, Arc::new(engine));
        assert!(run(&mut session, "step-interrupts on").contains("is for a guest that runs"));
        assert!(run(&mut session, "info").starts_with("format: plain memory\n"));
        assert_eq!((run(&mut session, "quit").as_str(), session.is_done), ("the dump is closed\n", true));
    }
}
