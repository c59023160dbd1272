//! A guest that has a name (`--name`) can be spoken to by it: `vmm dump NAME PATH`.
//!
//! A socket in a folder that only its user can enter takes a request, a line of JSON, and gives lines of
//! JSON until the last, which has `done` or `error`. A client that goes away breaks off what it asked for.

use crate::debugger::DebugShared;
use crate::dump::{Dumper, Reporter};
use crate::error::Error;
use crate::outcome;
use debug::dump::write::Progress;
use debug::socket::{self, Access, BindError, Served};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What a guest is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    /// Write a core to this file.
    Dump { path: PathBuf },
    /// Let the debugger go that is attached.
    Release {},
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// How far it is.
    Percent(u64),
    /// It is done; in words.
    Done(String),
    /// It is not; in words.
    Error(String),
}

/// The longest request, bytes.
const LONGEST: u64 = 64 << 10;
/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the sockets of a user's guests are. Nobody else can make or reach one there.
///
/// # Errors
/// When there is no such folder and none can be made, or it is somebody else's.
fn folder() -> io::Result<PathBuf> {
    let user = nix::unistd::geteuid().as_raw();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("vmm"),
        _ => std::env::temp_dir().join(format!("vmm-{user}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        let text = format!("{} is not a folder that only this user can enter", folder.display());
        return Err(io::Error::other(text));
    }
    Ok(folder)
}

/// Whether a name can be a guest's.
///
/// # Errors
/// What is wrong with it.
pub fn name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(is_plain) {
        return Err("write up to 64 letters, digits, '-', '_' and '.'".into());
    }
    Ok(text.into())
}

fn socket_of(name: &str) -> io::Result<PathBuf> {
    Ok(folder()?.join(format!("{name}.sock")))
}

/// A guest's socket, which goes with its value.
#[derive(Debug)]
pub struct Control {
    socket: Served,
}

impl Control {
    /// Takes a name.
    ///
    /// # Errors
    /// [`Error::Open`], also when another guest has the name.
    pub fn new(name: &str) -> Result<Control, Error> {
        let failed = |source| Error::Open { option: "--name", path: name.into(), source };
        let path = socket_of(name).map_err(failed)?;
        match socket::bind(&path, Access::Owner) {
            Ok(socket) => Ok(Control { socket }),
            Err(BindError::Served(_)) => Err(failed(io::Error::other("a guest that runs has this name"))),
            Err(BindError::Io { source, .. }) => Err(failed(source)),
            Err(error) => Err(failed(io::Error::other(error))),
        }
    }

    /// The socket, for whoever polls.
    pub fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }

    /// Serves whoever has connected, each on a thread of its own.
    pub fn serve(&self, dumper: &Dumper) {
        while let Ok((stream, _)) = self.socket.listener().accept() {
            let dumper = dumper.clone();
            let serve = move || {
                if let Err(error) = answer(&stream, &dumper) {
                    log::info!("a client of the control socket is let go: {error}");
                }
            };
            if let Err(error) = thread::Builder::new().name("control".into()).spawn(serve) {
                log::warn!("a client of the control socket cannot be served: {error}");
            }
        }
    }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

/// Whether the other end has gone.
fn is_gone(stream: &UnixStream) -> bool {
    let peek = stream.set_nonblocking(true).map(|()| (&mut &*stream).read(&mut [0]));
    let blocks = stream.set_nonblocking(false).is_ok();
    !blocks || matches!(peek, Ok(Ok(0)))
}

fn answer(stream: &UnixStream, dumper: &Dumper) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).take(LONGEST).read_line(&mut line)?;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return send(stream, &Reply::Error(format!("not a request: {error}"))),
    };
    let path = match request {
        Request::Dump { path } => path,
        Request::Release {} => return send(stream, &release(dumper)),
    };
    let mut reporter = Reporter::new();
    let mut watch = |progress: Progress| match reporter.percent(progress) {
        Some(percent) if send(stream, &Reply::Percent(percent)).is_err() => ControlFlow::Break(()),
        _ if is_gone(stream) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let reply = match dumper.dump(&path, &mut watch) {
        Ok(summary) => Reply::Done(format!("{}: {summary}", path.display())),
        Err(error) => Reply::Error(error.to_string()),
    };
    send(stream, &reply)
}

fn release(dumper: &Dumper) -> Reply {
    match dumper.debugger().map(DebugShared::release) {
        Some(Ok(())) => Reply::Done("its debugger, if one was attached, is let go".into()),
        Some(Err(error)) => Reply::Error(format!("its debugger cannot be let go: {error}")),
        None => Reply::Error("it runs without --gdb".into()),
    }
}

/// `vmm release`: has a guest let its debugger go; the exit code.
pub fn release_debugger(guest: &str) -> u8 {
    tell(guest, ask(guest, &Request::Release {}))
}

/// `vmm dump`: has a guest write a core of itself; the exit code.
pub fn dump(guest: &str, path: &Path) -> u8 {
    // The guest's process is in a folder of its own.
    tell(guest, std::path::absolute(path).and_then(|path| ask(guest, &Request::Dump { path })))
}

/// Tells the last reply; the exit code.
fn tell(guest: &str, reply: io::Result<Reply>) -> u8 {
    match reply {
        Ok(Reply::Done(text)) => {
            println!("{text}");
            0
        }
        Ok(Reply::Error(text)) => {
            log::error!("{text}");
            outcome::FILE
        }
        Ok(Reply::Percent(_)) => {
            log::error!("the guest {guest} ended before its dump was whole");
            outcome::FILE
        }
        Err(error) => {
            log::error!("cannot reach a guest of the name {guest}: {error}");
            outcome::FILE
        }
    }
}

/// The last reply.
fn ask(guest: &str, request: &Request) -> io::Result<Reply> {
    let socket = if guest.contains('/') { PathBuf::from(guest) } else { socket_of(guest)? };
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut last = Reply::Percent(0);
    for line in BufReader::new(stream).lines() {
        last = serde_json::from_str(&line?)?;
        match &last {
            Reply::Percent(percent) => eprintln!("{percent} %"),
            Reply::Done(_) | Reply::Error(_) => break,
        }
    }
    Ok(last)
}
