//! How a guest is run from the command line.

use super::console::ConsoleKind;
use crate::cell::Sandbox;
use crate::machine::Config;
use std::path::PathBuf;
use std::time::Duration;

/// A guest, and what becomes of it.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The guest.
    pub guest: Config,
    /// Where its console goes.
    pub console: ConsoleKind,
    /// When to end it.
    pub timeout: Option<Duration>,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// What it is called.
    pub name: Option<String>,
    /// When a core of it is written.
    pub dump_on: Option<DumpOn>,
    /// Where debuggers have dumps written; the current folder where none is given.
    pub dump_folder: Option<PathBuf>,
    /// Whether the monitor confines itself.
    pub sandbox: Sandbox,
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// Ends the run.
    #[default]
    Exit,
    /// Boots the guest again from its files.
    Restart,
}

/// When a core of the guest is written at its end, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOn {
    /// Its kernel has panicked.
    pub panic: bool,
    /// Its kernel says that it hangs, which ends it.
    pub hang: bool,
    /// A triple fault.
    pub triple_fault: bool,
    /// Its time is over.
    pub timeout: bool,
    /// The file.
    pub path: PathBuf,
}
