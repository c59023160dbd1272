//! What is said over a guest's control socket; `docs/control.md` describes it for other programs.

use debug::gdb::server::OnLost;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::PathBuf;

/// What a guest is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Write a core to this file.
    Dump {
        /// What it is called in messages; the file itself comes with the request.
        path: PathBuf,
    },
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
    /// Begin again, as after power-on.
    Reset {},
    /// End.
    Quit {},
    /// Tell what happens from now on: behind [`Response::Info`] each line is a [`Response::Event`].
    Events {
        /// What the guest prints on its console, too.
        #[serde(default)]
        console: bool,
    },
    /// Be the guest's console: behind [`Response::Done`] the connection is what it prints, and what is typed.
    Attach {
        /// Nothing is typed.
        #[serde(default)]
        watch: bool,
    },
    /// Raise a non-maskable interrupt on each vCPU.
    Nmi {},
    /// Press a key of the kernel's (SysRq).
    Sysrq {
        /// A letter or a digit.
        key: char,
    },
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
#[non_exhaustive]
pub enum Lost {
    /// It runs on.
    #[default]
    Continue,
    /// It waits for the next one.
    Hold,
    /// It ends.
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
#[non_exhaustive]
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
    Info(Box<Info>),
    /// Something has happened.
    Event(Happened),
    /// What this program does not know, to be passed over ([`Response::read`]).
    #[serde(skip)]
    Unknown,
}

impl Response {
    const NAMES: [&str; 6] = ["percent", "done", "error", "answer", "info", "event"];

    /// Reads a line of an answer.
    ///
    /// # Errors
    /// When it is no JSON, or is not as one of its name is to be. One of another name is [`Response::Unknown`].
    pub fn read(line: &str) -> serde_json::Result<Response> {
        serde_json::from_str(line).or_else(|error| {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
            let is_other = |name: &String| !Response::NAMES.contains(&name.as_str());
            if object.keys().any(is_other) { Ok(Response::Unknown) } else { Err(error) }
        })
    }
}

/// The version of all this: a program that knows another one's requests is answered in words. Requests, fields and events
/// may be added within a version, and what is not known is passed over.
pub const VERSION: u32 = 1;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// Since the guest was started, milliseconds.
    pub milliseconds: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// It stands still.
    Stopped {
        /// Who has it so.
        by: Stopper,
        /// Why, in a debugger's words: `breakpoint`, `hardware breakpoint`, `watchpoint`, `step`, `interrupt`,
        /// `hypercall`, `fatal`, `refused`.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// More of that: the address that was accessed, what the guest cannot go on for.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// The vCPU that has stopped.
        #[serde(skip_serializing_if = "Option::is_none")]
        vcpu: Option<u32>,
    },
    /// It goes on, as far as the same one is concerned.
    Running {
        /// Who had it stand still.
        by: Stopper,
    },
    /// Its kernel says on the console that it has panicked.
    Panicked {
        /// What it says.
        line: String,
    },
    /// It has printed a line on its console.
    Console {
        /// Without its end; 4096 bytes at most.
        line: String,
    },
    /// It has begun again.
    Restarted {},
    /// So much has happened that is not told, as it was not read: events, or bytes of the console.
    Lost {
        /// How many.
        count: u64,
    },
    /// It is over.
    Ended {
        /// The exit code of its monitor.
        code: u8,
        /// In words.
        text: String,
    },
    /// What this program does not know.
    #[serde(other)]
    Unknown,
}

/// Who has a guest stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stopper {
    /// `vmm stop`.
    Control,
    /// One that is attached.
    Debugger,
    /// Somebody this program does not know.
    #[serde(other)]
    Unknown,
}

/// What a guest is, and how it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Info {
    /// [`VERSION`].
    #[serde(default)]
    pub version: u32,
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
    /// ...there...
    #[serde(default)]
    pub gdb: Option<String>,
    /// ...and a debugger is attached.
    pub is_debugged: bool,
    /// Somebody may type on its console, by `attach`...
    #[serde(default)]
    pub typing: bool,
    /// ...so many others have it...
    #[serde(default)]
    pub watching: usize,
    /// ...and so many are told its events.
    #[serde(default)]
    pub following: usize,
    /// The release of its Linux kernel, if one has described itself.
    pub release: Option<String>,
    /// The file of its kernel, with U+FFFD for what is no UTF-8 in a path...
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// ...and the one that its monitor has names from.
    #[serde(default)]
    pub symbols: Option<PathBuf>,
}

/// Whether a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunState {
    /// It does, as far as anybody here is concerned.
    Running,
    /// `vmm stop` keeps it.
    Stopped,
    /// Somebody else does: a debugger, a dump.
    Held,
    /// What this program does not know.
    #[serde(other)]
    Unknown,
}

impl RunState {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Stopped => "stopped",
            RunState::Held => "held",
            RunState::Unknown => "unknown",
        }
    }
}

/// An answer: what is to be printed, what to be said of it, and the exit code.
#[derive(Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Answer {
    /// Lines with their ends, or JSON.
    pub text: String,
    /// Why there is none, or not all of it; empty where there is.
    pub why: String,
    /// The exit code.
    pub code: u8,
    /// How often the guest had begun again: what was answered before that is of another kernel.
    #[serde(default)]
    pub restarts: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a later monitor of the same version may say is understood as far as it is known.
    #[test]
    fn what_is_not_known_is_no_failure() {
        let read = |text: &str| Response::read(text).unwrap();
        let event = read(r#"{"event":{"milliseconds":5,"event":"migrated","to":"there"}}"#);
        let Response::Event(Happened { milliseconds: 5, event: Event::Unknown }) = event else {
            panic!("{event:?}")
        };
        let event = read(r#"{"event":{"milliseconds":5,"event":"running","by":"migration","more":1}}"#);
        let Response::Event(Happened { event: Event::Running { by: Stopper::Unknown }, .. }) = event else {
            panic!("{event:?}")
        };
        assert!(matches!(read(r#"{"promise":{"of":"more"}}"#), Response::Unknown));
        // One that is known is as it is to be, or none.
        for wrong in [r#"{"percent":"x"}"#, r#"{"event":{}}"#, "{}", "[]", ""] {
            assert!(Response::read(wrong).is_err(), "{wrong}");
        }
        let info = r#"{"info":{"pid":1,"vcpus":1,"memory":1,"state":"migrating","seconds":1,"serves_gdb":false,
            "is_debugged":false,"release":null}}"#;
        let Response::Info(info) = read(info) else { panic!("{info}") };
        assert_eq!((info.state, info.state.word()), (RunState::Unknown, "unknown"));
        // An answer of one that does not count them.
        let answer = read(r#"{"answer":{"text":"","why":"","code":0}}"#);
        assert!(matches!(answer, Response::Answer(Answer { restarts: 0, .. })), "{answer:?}");
        assert!(serde_json::from_str::<Request>(r#"{"promise":{}}"#).is_err());
    }
}
