//! A guest that has a name (`--name`) can be spoken to by it: `vmm dump NAME PATH`.
//!
//! A socket in a folder that only its user can enter takes a request, a line of JSON, and gives lines of
//! JSON until the last, which has `done` or `error`. A client that goes away breaks off what it asked for.

use crate::error::Error;
use crate::logging;
use crate::machine::Guest;
use crate::machine::config::GdbConfig;
use crate::machine::debugger::{Attachment, listen};
use crate::machine::dumper::{Dumper, Moment, Reporter};
use crate::outcome;
use crate::stdout;
use debug::dump::write::Progress;
use debug::gdb::accept::Pause;
use debug::gdb::listener::Address;
use debug::socket::{self, Access, BindError, Served};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What a guest is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
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
enum Reply {
    /// How far it is.
    Percent(u64),
    /// It is done; in words.
    Done(String),
    /// It is not; in words.
    Error(String),
}

/// The longest request, bytes.
const LONGEST: usize = 64 << 10;
/// Clients that are served at a time.
const MOST_CLIENTS: usize = 8;
/// How long a client may take to ask, however slowly it does.
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

/// Names of this user's guests, in order.
pub fn names() -> Vec<String> {
    let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_string());
    let entries = folder().and_then(fs::read_dir).into_iter().flatten();
    let mut names: Vec<String> = entries.flatten().filter_map(name).collect();
    names.sort();
    names
}

/// A guest's socket, which goes with its value.
#[derive(Debug)]
pub struct Control {
    socket: Served,
    /// A clone for each client that is served.
    clients: Arc<()>,
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
            Ok(socket) => Ok(Control { socket, clients: Arc::default() }),
            Err(BindError::Served(_)) => Err(failed(io::Error::other("a guest that runs has this name"))),
            Err(BindError::Io { source, .. }) => Err(failed(source)),
            Err(error) => Err(failed(io::Error::other(error))),
        }
    }

    /// The socket, for whoever polls.
    pub fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }

    /// Serves whoever has connected, each on a thread of its own, eight at a time.
    ///
    /// # Errors
    /// Why nobody can be accepted now: the listener is to be left alone for a while.
    pub fn serve(&self, guest: &Guest, pause: &mut Pause) -> Result<(), io::Error> {
        // Whoever polls comes back for more, when it has looked at everything else.
        for _ in 0..2 * MOST_CLIENTS {
            match self.socket.listener().accept() {
                Ok((stream, _)) => self.start(stream, guest),
                Err(error) if pause.after(&error, Instant::now()) => return Err(error),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn start(&self, stream: UnixStream, guest: &Guest) {
        if Arc::strong_count(&self.clients) > MOST_CLIENTS {
            // One that does not read this at once does not get it.
            let reply = Reply::Error(format!("{MOST_CLIENTS} others are served already: try again later"));
            if let Err(error) = stream.set_nonblocking(true).and_then(|()| send(&stream, &reply)) {
                log::info!("a client of the control socket is not told that there are others: {error}");
            }
            return;
        }
        let (dumper, attachment) = (guest.dumper().clone(), guest.attachment().clone());
        let counted = Arc::clone(&self.clients);
        let serve = move || {
            if let Err(error) = answer(&stream, &dumper, &attachment) {
                log::info!("a client of the control socket is let go: {error}");
            }
            drop(counted);
        };
        if let Err(error) = thread::Builder::new().name("control".into()).spawn(serve) {
            log::warn!("a client of the control socket cannot be served: {error}");
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

/// Reads a line that comes within a time.
fn read_request(mut stream: &UnixStream, patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let (mut line, mut piece) = (Vec::new(), [0; 4096]);
    while line.len() < LONGEST && !line.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => line.extend(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

fn answer(stream: &UnixStream, dumper: &Dumper, attachment: &Attachment) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request: Request = match serde_json::from_slice(&read_request(stream, PATIENCE)?) {
        Ok(request) => request,
        Err(error) => return send(stream, &Reply::Error(format!("not a request: {error}"))),
    };
    let path = match request {
        Request::Dump { path } => path,
        Request::Release {} => return send(stream, &release(attachment)),
        Request::Gdb { address } => return send(stream, &serve_gdb(attachment, &address)),
        Request::Leave {} => return send(stream, &leave(attachment)),
    };
    let mut reporter = Reporter::new();
    let mut watch = |progress: Progress| match reporter.percent(progress) {
        Some(percent) if send(stream, &Reply::Percent(percent)).is_err() => ControlFlow::Break(()),
        _ if is_gone(stream) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let reply = match dumper.dump(&path, Moment::Running, &mut watch) {
        Ok(summary) => Reply::Done(format!("{}: {summary}", path.display())),
        Err(error) => Reply::Error(error.to_string()),
    };
    send(stream, &reply)
}

const NOT_SERVED: &str = "it serves no gdb";

fn release(attachment: &Attachment) -> Reply {
    match attachment.debugger() {
        Some(debugger) => {
            debugger.release();
            Reply::Done("its debugger, if one was attached, is let go".into())
        }
        None => Reply::Error(NOT_SERVED.into()),
    }
}

fn serve_gdb(attachment: &Attachment, address: &str) -> Reply {
    if attachment.debugger().is_some() {
        return Reply::Error("it has a gdb server already".into());
    }
    let served = Address::parse(address).map_err(Error::Usage).and_then(|address| {
        let config = GdbConfig::new(address);
        let listener = listen(&config)?;
        let address = listener.address().to_string();
        attachment.attach(listener, &config).map(|()| address)
    });
    match served {
        Ok(address) => Reply::Done(format!("waiting for gdb at {address}")),
        Err(error) => Reply::Error(error.to_string()),
    }
}

fn leave(attachment: &Attachment) -> Reply {
    match attachment.leave() {
        true => Reply::Done("it serves gdb no more, and runs".into()),
        false => Reply::Error(NOT_SERVED.into()),
    }
}

/// `vmm gdb`: has a guest serve gdb at an address, or no more where there is none; the exit code.
pub fn gdb(guest: &str, address: Option<Address>) -> u8 {
    let request = match address {
        // The guest's process is in a folder of its own.
        Some(Address::Unix(path)) => {
            std::path::absolute(path).map(|path| Request::Gdb { address: Address::Unix(path).to_string() })
        }
        Some(address) => Ok(Request::Gdb { address: address.to_string() }),
        None => Ok(Request::Leave {}),
    };
    tell(guest, request.and_then(|request| ask(guest, &request)))
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
        Ok(Reply::Done(text)) => stdout::print(&format!("{text}\n"), 0),
        Ok(Reply::Error(text)) => {
            log::error!("{text}");
            outcome::FILE
        }
        Ok(Reply::Percent(_)) => {
            log::error!("the guest {guest} ended before it had answered");
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
    let request = serde_json::to_string(request)? + "\n";
    match stream.write_all(request.as_bytes()) {
        // One that is not served may have been told so already.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut last = Reply::Percent(0);
    for line in BufReader::new(stream).lines() {
        last = serde_json::from_str(&line?)?;
        match &last {
            Reply::Percent(percent) => logging::print(&format!("{percent} %\n")),
            Reply::Done(_) | Reply::Error(_) => break,
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_asks_byte_by_byte_has_no_more_time_than_others() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let drip = thread::spawn(move || {
            // Ends when the other side is closed.
            while theirs.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(read_request(&ours, Duration::from_millis(100)).is_err());
        drop(ours);
        drip.join().unwrap();
    }

    #[test]
    fn a_request_is_a_line() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"dump\":").unwrap();
        theirs.write_all(b"{\"path\":\"p\"}}\n").unwrap();
        let line = read_request(&ours, PATIENCE).unwrap();
        let Request::Dump { path } = serde_json::from_slice(&line).unwrap() else {
            panic!("no dump is asked for")
        };
        assert_eq!(path, Path::new("p"));
        // As long as it likes is too long.
        let flood = thread::spawn(move || theirs.write_all(&vec![b'x'; 1 << 20]).is_err());
        assert!(read_request(&ours, PATIENCE).unwrap().len() < LONGEST + 4096);
        drop(ours);
        assert!(flood.join().unwrap());
    }
}
