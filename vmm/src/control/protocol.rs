//! What is said over a guest's control socket.

use debug::gdb::server::OnLost;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::PathBuf;

/// What a guest is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Write a core to this file.
    Dump { path: PathBuf },
    /// Let the debugger go that is attached.
    Release {},
    /// Serve gdb.
    Gdb(ServeGdb),
    /// Serve gdb no more.
    Leave {},
    /// Say what it is, and how it is.
    Info {},
    /// Stand still until [`Request::Cont`].
    Stop {},
    /// Go on.
    Cont {},
    /// End.
    Quit {},
    /// Raise a non-maskable interrupt on each vCPU.
    Nmi {},
    /// Press a key of the kernel's (SysRq).
    Sysrq { key: char },
    /// Carry out a command of gdb's `monitor` that looks at the guest.
    Monitor(MonitorLine),
    /// Run a command: behind [`Response::Done`] the connection is a session's frames.
    Exec {},
}

/// A command of `monitor`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MonitorLine {
    /// As it is typed.
    pub line: String,
    /// The answer is to be JSON.
    #[serde(default)]
    pub json: bool,
}

/// How gdb is to be served, as `--gdb` and the options beside it have it; what is left out is as without them.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServeGdb {
    /// Where.
    pub address: String,
    /// To every user of this machine.
    #[serde(default)]
    pub any_user: bool,
    /// What becomes of the guest when a debugger has vanished.
    #[serde(default)]
    pub lost: Lost,
    /// A second debugger takes the place of the first.
    #[serde(default)]
    pub takeover: bool,
    /// The folder that `monitor dump` writes below.
    #[serde(default)]
    pub dump_folder: Option<PathBuf>,
}

/// [`OnLost`], as it is said.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    #[default]
    Continue,
    Hold,
    Quit,
}

impl From<OnLost> for Lost {
    fn from(lost: OnLost) -> Lost {
        match lost {
            OnLost::Continue => Lost::Continue,
            OnLost::Hold => Lost::Hold,
            OnLost::Quit => Lost::Quit,
        }
    }
}

impl From<Lost> for OnLost {
    fn from(lost: Lost) -> OnLost {
        match lost {
            Lost::Continue => OnLost::Continue,
            Lost::Hold => OnLost::Hold,
            Lost::Quit => OnLost::Quit,
        }
    }
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// How far it is.
    Percent(u64),
    /// It is done; in words.
    Done(String),
    /// It is not; in words.
    Error(String),
    /// What a command of `monitor` answers.
    Answer(Answer),
    /// What it is, and how it is.
    Info(Info),
}

/// What a guest is, and how it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Info {
    /// The process that runs it.
    pub pid: u32,
    /// Number of its vCPUs.
    pub vcpus: u32,
    /// Its RAM, bytes.
    pub memory: u64,
    /// Whether it runs.
    pub state: RunState,
    /// Since it was started, seconds.
    pub seconds: u64,
    /// It serves gdb...
    pub serves_gdb: bool,
    /// ...and a debugger is attached.
    pub is_debugged: bool,
    /// The release of its Linux kernel, if one has described itself.
    pub release: Option<String>,
}

/// Whether a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    /// `vmm stop` keeps it.
    Stopped,
    /// Somebody else does: a debugger, a dump.
    Held,
}

impl RunState {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Stopped => "stopped",
            RunState::Held => "held",
        }
    }
}

/// An answer: what is to be printed, what to be said of it, and the exit code.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Lines with their ends, or JSON.
    pub text: String,
    /// Why there is none, or not all of it; empty where there is.
    pub why: String,
    /// The exit code.
    pub code: u8,
}

/// The longest request, bytes.
pub const LONGEST: usize = 64 << 10;

/// Says something, in a line.
///
/// # Errors
/// What the stream says.
pub fn send(mut stream: impl Write, said: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(said)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}
