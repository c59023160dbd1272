//! What is said over a guest's control socket.

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
    /// Serve gdb at this address, as `--gdb` has it.
    Gdb { address: String },
    /// Serve gdb no more.
    Leave {},
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How far it is.
    Percent(u64),
    /// It is done; in words.
    Done(String),
    /// It is not; in words.
    Error(String),
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
