//! Who gives commands to a dump in a shell.

use super::open::open;
use super::{Args, CoreError};
use debug::cancel::Cancel;
use debug::command::dump::Changes;
use debug::command::host::QUIT;
use debug::command::{self, Operator};
use debug::dump::core::Core;
use debug::dump::write::WriteError;
use debug::dump::write::destination::Destination;
use debug::engine::Engine;
use debug::machine::{Machine, MachineError};
use debug::reply::{Arguments, Command, Refusal, Reply};
use debug::symbols::SymbolFile;
use debug::view::View;
use std::path::Path;

/// Bytes of memory that one answer has at most: all of it is kept.
const MOST_BYTES: u64 = 256 << 20;

const DIFF: Command = Command::new("diff", "PATH", "pages that differ in another dump of the same guest");

/// A dump, and the options that it was opened with.
#[derive(Debug)]
pub(super) struct Shell<'a> {
    core: Core,
    engine: Engine,
    symbols: SymbolFile,
    args: &'a Args,
    cancel: Cancel,
    /// Why a command was refused, where the exit code goes by it.
    failed: Option<CoreError>,
}

/// Every command that there is for a dump in a shell, but for help, which clap gives, and for `quit`: nothing is open
/// when it is over.
pub(super) fn commands() -> Vec<Command> {
    command::common().filter(|command| *command != QUIT).chain([DIFF]).collect()
}

impl Shell<'_> {
    pub fn new(core: Core, symbols: SymbolFile, args: &Args) -> Shell<'_> {
        let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
        Shell { core, engine, symbols, args, cancel: Cancel::never(), failed: None }
    }

    /// Has a command carried out.
    pub fn run(&mut self, name: &str, words: &[&str]) -> Result<Reply, CoreError> {
        let result = command::run(self, name, words);
        result.map_err(|refused| self.failed.take().unwrap_or(CoreError::Command(refused)))
    }

    /// `diff PATH`, and `--diff PATH`.
    pub fn compare(&self, other: &Path) -> Result<Reply, CoreError> {
        let other = open(self.args, other)?;
        let changes = Changes::between(&self.view(), &other).map_err(|why| CoreError::Command(why.into()))?;
        Ok(Box::new(changes))
    }
}

impl Operator for Shell<'_> {
    fn view(&self) -> View<'_> {
        View {
            machine: &self.core,
            engine: &self.engine,
            vcpu: self.args.vcpu,
            is_physical: false,
            cancel: &self.cancel,
        }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.core
    }

    fn prefix(&self) -> &'static str {
        "vmm core PATH"
    }

    fn about_symbols(&self) -> &'static str {
        "of a symbol that the kernel has not itself, --symbols vmlinux has the address"
    }

    fn most_bytes(&self) -> u64 {
        MOST_BYTES
    }

    fn symbols(&self) -> Option<&SymbolFile> {
        Some(&self.symbols)
    }

    /// What the user of a shell may write is up to the system.
    fn destination(&self, path: &Path) -> Result<Destination, WriteError> {
        Destination::anywhere(path)
    }

    fn end(&mut self) -> Result<&'static str, MachineError> {
        Ok("nothing runs")
    }

    fn commands(&self) -> Vec<Command> {
        vec![DIFF]
    }

    fn run_command(&mut self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        match (name, arguments.words()) {
            ("diff", [other]) => self.compare(Path::new(other)).map_err(|error| {
                let refusal = Refusal::Failed(error.to_string());
                self.failed = Some(error);
                refusal
            }),
            ("diff", _) => Err(Refusal::Usage("write one path".into())),
            _ => Err(Refusal::Unknown(format!("there is no command '{name}'"))),
        }
    }
}
