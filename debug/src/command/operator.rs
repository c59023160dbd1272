//! Who gives commands.

use super::thread_kind::ThreadKind;
use crate::breakpoint::Kind;
#[cfg(feature = "dump")]
use crate::dump::write::{WriteError, destination::Destination};
use crate::machine::{Control, Machine, MachineError};
use crate::reply::{Arguments, Command, Refusal, Reply};
use crate::symbols::SymbolFile;
use crate::view::View;
#[cfg(feature = "dump")]
use std::path::Path;

/// Whoever gives commands: what is seen of the machine, and what may be done with it. A gdb session, a shell on a
/// dump, a client of a control socket.
pub trait Operator {
    /// The machine, as it is looked at now. It stands still.
    fn view(&self) -> View<'_>;

    /// The machine, to have something done with it.
    fn machine(&mut self) -> &mut dyn Machine;

    /// What a person types in front of a command's name, for lines that say how it is used.
    fn prefix(&self) -> &'static str;

    /// Where an address is from that a person knows by a symbol, for the line that says that `jiffies` is no number.
    fn about_symbols(&self) -> &'static str;

    /// Bytes of memory that one answer may have.
    fn most_bytes(&self) -> u64;

    /// Where a file may be written that is asked for by a path: nowhere, if the operator does not say.
    ///
    /// # Errors
    /// [`WriteError`].
    #[cfg(feature = "dump")]
    fn destination(&self, path: &Path) -> Result<Destination, WriteError> {
        Err(WriteError::Name {
            path: path.into(),
            why: "whoever gives commands here may write no files".into(),
        })
    }

    /// The file that the guest's kernel was linked to, if somebody has named it or looks for it.
    fn symbols(&self) -> Option<&SymbolFile> {
        None
    }

    /// Breakpoints that were asked for and are not there: kind, address, and why.
    fn refused(&self) -> Vec<(Kind, u64, String)> {
        Vec::new()
    }

    /// Has the guest begin again, held at its first instruction; what else there is to say, lines with their ends.
    ///
    /// # Errors
    /// [`MachineError`]; then it is as it was.
    fn restart(&mut self) -> Result<String, MachineError> {
        self.machine().pause();
        self.machine().control(Control::Reset)?;
        Ok(String::new())
    }

    /// Ends the guest, or closes the dump; what was done, in words.
    ///
    /// # Errors
    /// [`MachineError`].
    fn end(&mut self) -> Result<&'static str, MachineError> {
        self.machine().control(Control::Quit)?;
        Ok("the guest ends")
    }

    /// What threads are to the debugger that is attached, in a line; with `wanted`, from its next stop on. `None` where none
    /// has threads.
    ///
    /// # Errors
    /// [`Refusal`].
    fn threads(&mut self, _wanted: Option<ThreadKind>) -> Result<Option<String>, Refusal> {
        Ok(None)
    }

    /// Whether it has a command of the table.
    fn offers(&self, _command: &Command) -> bool {
        true
    }

    /// Commands that it adds to the table.
    fn commands(&self) -> Vec<Command> {
        Vec::new()
    }

    /// Carries out one of them.
    ///
    /// # Errors
    /// [`Refusal`].
    fn run_command(&mut self, name: &str, _arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        Err(Refusal::Unknown(format!("there is no command '{name}'")))
    }
}
