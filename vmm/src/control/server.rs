//! Answering what a guest is asked for.

use super::descriptor;
use super::door::{Comer, Door};
use super::feed::{Feed, Follows, Presence};
use super::follow;
use super::names::{self, socket_of};
use super::protocol::{
    Answer, Event, Info, LONGEST, MonitorLine, Request, Response, RunState, ServeGdb, Stopper, VERSION, send,
};
use crate::cell;
use crate::error::Error;
use crate::logging;
use crate::logging::progress::Reporter;
use crate::machine::Guest;
use crate::machine::config::{Config, GdbConfig};
use crate::machine::debugger::{Attachment, OVER, listen};
use crate::machine::dumper::Dumper;
use crate::outcome::{self, NOT_THERE};
use crate::peer;
use arch::plain::plain;
use debug::dump::write::Progress;
use debug::gdb::accept::Pause;
use debug::gdb::endpoint::{Endpoint, ListeningSocket};
use debug::socket::{self, Audience, BindError, Served};
use debug::threads;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Clients that are served at a time.
const MOST_CLIENTS: usize = 8;
/// How long a client may take to ask, however slowly it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Characters of a kernel's release that are told, at most.
const LONGEST_RELEASE: usize = 200;

/// How long whoever runs the guest may take to have it begin again: longer than a kernel takes to be read and unpacked.
const LONGEST_RESET: Duration = Duration::from_secs(60);

/// How long a guest stands still for one command, at most.
const LONGEST_COMMAND: Duration = Duration::from_secs(60);

/// A guest's socket, which goes with its value.
#[derive(Debug)]
pub struct ControlSocket {
    name: String,
    socket: Served,
    /// A clone for each client that is served.
    clients: Arc<()>,
    about: Arc<About>,
    /// What followers are told.
    feed: Arc<Feed>,
}

/// What is known of a guest before it is there.
#[derive(Debug, Default)]
pub struct About {
    /// Who has commands run in it, if it is a job's.
    pub door: Option<Door>,
    /// Where debuggers have dumps written that are not told where.
    pub dump_folder: Option<PathBuf>,
    /// Its kernel's file.
    pub kernel: Option<PathBuf>,
    /// The file that names are read from.
    pub symbols: Option<PathBuf>,
    /// Somebody is to reach the guest when something has come of it.
    pub is_awaited: bool,
}

impl ControlSocket {
    /// Takes a name, or makes one up where none is given; then there is none where none can be had, which is said: also where
    /// no person may be reading, if somebody is to reach the guest.
    ///
    /// # Errors
    /// [`Error::Open`], also when another guest has the name.
    pub fn take(name: Option<&str>, about: About) -> Result<Option<ControlSocket>, Error> {
        let why = |error: BindError| match error {
            BindError::Served(_) => io::Error::other("a guest that runs has this name"),
            BindError::Io { source, .. } => source,
            error => io::Error::other(error),
        };
        let failed = |name: &str, error: BindError| Error::Open {
            option: "--name",
            path: name.into(),
            source: why(error),
        };
        let is_awaited = about.is_awaited;
        let of_name = |name: String, socket| {
            let (clients, about, feed) = (Arc::default(), Arc::new(about), Feed::new());
            Some(ControlSocket { name, socket, clients, about, feed })
        };
        if let Some(name) = name {
            return Ok(of_name(name.into(), bind(name).map_err(|error| failed(name, error))?));
        }
        for name in names::made_up() {
            match bind(&name) {
                Ok(socket) => {
                    tell_a_person(&format!("the guest's name is {name} (vmm ls, vmm monitor {name} why)"));
                    return Ok(of_name(name, socket));
                }
                // Of a process with the same number in another container.
                Err(BindError::Served(_)) => {}
                Err(error) => {
                    return Ok(ControlSocket::without(is_awaited, &why(error)));
                }
            }
        }
        Ok(ControlSocket::without(is_awaited, &"others have all of the names"))
    }

    /// None, which is said.
    fn without(is_awaited: bool, why: &dyn std::fmt::Display) -> Option<ControlSocket> {
        match is_awaited {
            true => log::warn!("the guest has no name, and nobody can reach it when it is kept: {why}"),
            false => tell_a_person(&format!("the guest has no name, and vmm ls does not find it: {why}")),
        }
        None
    }

    /// What the guest is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is to be told of the guest.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.socket.path()
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
        let is_crowded = Arc::strong_count(&self.clients) > MOST_CLIENTS;
        let crowd = || format!("{MOST_CLIENTS} others are served already: try again later");
        let refused = peer::may_ask(&stream).err().or_else(|| is_crowded.then(crowd));
        if let Some(why) = refused {
            // One that does not read this at once does not get it.
            let told = stream.set_nonblocking(true).and_then(|()| send(&stream, &Response::Error(why)));
            if let Err(error) = told {
                log::info!("a client of the control socket is not told why it is not served: {error}");
            }
            return;
        }
        let (dumper, attachment) = (guest.dumper().clone(), guest.attachment().clone());
        let counted = Arc::clone(&self.clients);
        let (about, feed) = (Arc::clone(&self.about), Arc::clone(&self.feed));
        // Those of this machine, whatever comes.
        let restarts = feed.restarts();
        let serve = move || {
            let asked =
                Asked { dumper: &dumper, attachment: &attachment, about: &about, feed: &feed, restarts };
            let answered = answer(&stream, &asked);
            // Whoever follows is counted among those who do, and keeps nothing of this machine.
            drop((counted, dumper, attachment));
            let followed = answered.and_then(|follow| match follow {
                Some(follow) => follow(&stream, &feed),
                None => Ok(()),
            });
            if let Err(error) = followed {
                log::info!("a client of the control socket is let go: {error}");
            }
        };
        if let Err(error) = threads::start("control", Builder::new().name("control".into()), serve) {
            log::warn!("a client of the control socket cannot be served: {error}");
        }
    }
}

/// Whether the other end has gone: not where it has only nothing more to say, nor whatever it has said.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    polled.is_ok() && fds[0].revents().is_some_and(|events| events.intersects(gone))
}

/// Reads a line that comes within a time, and the descriptor that may come with it.
fn read_request(stream: &UnixStream, patience: Duration) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let deadline = Instant::now() + patience;
    let (mut line, mut piece, mut given) = (Vec::new(), [0; 4096], None);
    while line.len() < LONGEST && !line.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match descriptor::receive(stream, &mut piece) {
            Ok((0, _)) => break,
            Ok((count, came)) => {
                line.extend(&piece[..count]);
                given = came.or(given);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((line, given))
}

/// Of whom something is asked.
struct Asked<'a> {
    dumper: &'a Dumper,
    attachment: &'a Attachment,
    about: &'a About,
    feed: &'a Arc<Feed>,
    /// How often the guest has begun again before it was this machine.
    restarts: u64,
}

impl Asked<'_> {
    /// Keeps the guest from running.
    fn stop(&self) -> Response {
        match self.attachment.stop() {
            true => {
                self.feed.tell(&Event::Stopped {
                    by: Stopper::Control,
                    reason: None,
                    detail: None,
                    vcpu: None,
                });
                Response::Done("it stands still".into())
            }
            false => Response::Error(OVER.into()),
        }
    }

    /// Lets it run again.
    fn go_on(&self) -> Response {
        match self.attachment.go_on() {
            true => {
                self.feed.tell(&Event::Running { by: Stopper::Control });
                Response::Done("it goes on, unless a debugger has it".into())
            }
            false => Response::Error("nobody has stopped it by `vmm stop`".into()),
        }
    }

    /// Has it begin again.
    fn reset(&self) -> Response {
        if self.about.door.is_some() {
            return Response::Error(ONCE.into());
        }
        match self.attachment.reset(LONGEST_RESET) {
            Ok(()) => Response::Done("it begins again".into()),
            Err(why) => Response::Error(format!("it does not begin again: {why}")),
        }
    }

    fn info(&self) -> Response {
        /// It is looked for while the guest stands still.
        const LOOK: Duration = Duration::from_millis(20);
        let Some(guest) = self.attachment.facts() else { return Response::Error(OVER.into()) };
        let state = match (guest.is_stopped, guest.is_held) {
            (true, _) => RunState::Stopped,
            (false, true) => RunState::Held,
            (false, false) => RunState::Running,
        };
        let Presence { typing, watching, following } = self.feed.presence();
        Response::Info(Box::new(Info {
            version: VERSION,
            pid: std::process::id(),
            vcpus: guest.vcpus,
            memory: guest.memory,
            state,
            seconds: self.feed.began().elapsed().as_secs(),
            serves_gdb: guest.serves_gdb,
            gdb: guest.address,
            is_debugged: guest.is_debugged,
            typing,
            watching,
            following,
            kernel: self.about.kernel.as_deref().map(speakable),
            symbols: self.about.symbols.as_deref().map(speakable),
            release: self
                .dumper
                .release(LOOK)
                .map(|release| plain(&release).chars().take(LONGEST_RELEASE).collect()),
        }))
    }
}

/// A path as JSON can have it.
fn speakable(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

const ONCE: &str = "a guest of `vmm run` does not begin again: its command is run once";

impl About {
    /// A guest as it was configured; files are told by whole paths, as whoever asks may be anywhere.
    pub fn new(config: &Config) -> About {
        // Where there is no current folder, nobody can be told.
        let whole = |path: Option<&PathBuf>| path.and_then(|path| absolute(path).ok());
        About {
            kernel: whole(config.kernel.as_ref()),
            symbols: whole(config.symbols.file()),
            ..About::default()
        }
    }
}

/// Listens at the socket of a name.
fn bind(name: &str) -> Result<Served, BindError> {
    let path = socket_of(name).map_err(|source| BindError::Io { path: name.into(), source })?;
    names::sweep_others();
    // Of two in two folders that begin at the same moment both have it, and `vmm ls` finds one.
    if names::has_elsewhere(name) {
        return Err(BindError::Served(path));
    }
    socket::bind(&path, Audience::Owner)
}

/// Says what has become of a name that nobody has asked for, to a person; programs find guests by `vmm ls`, and a container
/// may have no place for names.
fn tell_a_person(words: &str) {
    log::info!("{words}");
    if logging::is_terminal() && log::max_level() == log::LevelFilter::Warn {
        logging::print(&format!("vmm: {words}\n"));
    }
}

/// What is done on the thread of somebody who follows the guest.
type Follow = Box<dyn FnOnce(&UnixStream, &Arc<Feed>) -> io::Result<()>>;

/// Begins to tell what happens.
fn follow_events(stream: &UnixStream, guest: &Asked<'_>, console: bool) -> io::Result<Option<Follow>> {
    let follower = match guest.feed.follow(Follows::Events) {
        Ok(follower) => follower,
        Err(error) => return send(stream, &Response::Error(error.to_string())).map(|()| None),
    };
    send(stream, &guest.info())?;
    stream.set_write_timeout(None)?;
    Ok(Some(Box::new(move |stream, feed| follow::events(stream, feed, &follower, console))))
}

/// Begins to be the guest's console.
fn attach(stream: &UnixStream, guest: &Asked<'_>, watch: bool) -> io::Result<Option<Follow>> {
    let follower = match guest.feed.follow(Follows::Console) {
        Ok(follower) => follower,
        Err(error) => return send(stream, &Response::Error(error.to_string())).map(|()| None),
    };
    let typist = if watch { None } else { guest.feed.type_on() };
    let words = match (watch, &typist) {
        (true, _) => "",
        (false, Some(_)) => "types",
        (false, None) => "somebody else types",
    };
    send(stream, &Response::Done(words.into()))?;
    Ok(Some(Box::new(move |stream, feed| follow::attach(stream, feed, &follower, typist))))
}

/// Answers a request, and what is to follow.
fn answer(stream: &UnixStream, guest: &Asked<'_>) -> io::Result<Option<Follow>> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (line, given) = read_request(stream, PATIENCE)?;
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let why = format!("not a request of version {VERSION}: {error}");
            return send(stream, &Response::Error(why)).map(|()| None);
        }
    };
    match request {
        Request::Events { console } => follow_events(stream, guest, console),
        Request::Attach { watch } => attach(stream, guest, watch),
        request => answer_once(stream, guest, request, given).map(|()| None),
    }
}

fn answer_once(
    stream: &UnixStream,
    guest: &Asked<'_>,
    request: Request,
    given: Option<OwnedFd>,
) -> io::Result<()> {
    let (attachment, door) = (guest.attachment, guest.about.door.as_ref());
    let response = match request {
        Request::Dump { path } => return dump(stream, guest.dumper, &path, given),
        Request::Quit {} => return quit(stream, attachment),
        Request::Exec {} => return exec(stream, door),
        Request::Release {} => release_debugger(attachment),
        Request::Gdb(asked) => serve_gdb(guest, asked, given),
        Request::Info {} => guest.info(),
        Request::Stop {} => guest.stop(),
        Request::Cont {} => guest.go_on(),
        Request::Reset {} => guest.reset(),
        Request::Leave {} => leave(attachment),
        Request::Nmi {} => {
            attachment.raise_nmi().map_or_else(Response::Error, |()| Response::Done("raised".into()))
        }
        Request::Sysrq { key } => press(key, door),
        Request::Monitor(asked) => monitor(stream, guest, &asked)?,
        // They are followed.
        Request::Events { .. } | Request::Attach { .. } => Response::Error(OVER.into()),
    };
    send(stream, &response)
}

/// Writes a dump into the file that has come with the request.
fn dump(stream: &UnixStream, dumper: &Dumper, path: &Path, given: Option<OwnedFd>) -> io::Result<()> {
    let mut reporter = Reporter::new();
    let mut watch = |progress: Progress| match reporter.percent(progress) {
        Some(percent) if send(stream, &Response::Percent(percent)).is_err() => ControlFlow::Break(()),
        _ if is_gone(stream) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let Some(file) = given.map(File::from) else {
        return send(stream, &Response::Error("a file is to come with this: `vmm dump` sends one".into()));
    };
    let reply = match dumper.dump_to(&file, path, &mut watch) {
        Ok(summary) => Response::Done(format!("{}: {summary}", path.display())),
        Err(error) => Response::Error(error.to_string()),
    };
    send(stream, &reply)
}

/// Ends the guest. That is said before, as nobody may be there to say it behind.
fn quit(stream: &UnixStream, attachment: &Attachment) -> io::Result<()> {
    if attachment.facts().is_none() {
        return send(stream, &Response::Error(OVER.into()));
    }
    let said = send(stream, &Response::Done("it ends".into()));
    attachment.quit();
    said
}

/// Has a command of `monitor` carried out that looks at the guest.
fn monitor(stream: &UnixStream, guest: &Asked<'_>, asked: &MonitorLine) -> io::Result<Response> {
    let (theirs, until) = (stream.try_clone()?, Instant::now() + LONGEST_COMMAND);
    let wanted = move || Instant::now() < until && !is_gone(&theirs);
    let reply = guest.dumper.command(guest.attachment.symbols(), &asked.line, wanted);
    Ok(Response::Answer(match reply {
        Ok(reply) => {
            let text = if asked.json { format!("{}\n", reply.json()) } else { reply.to_string() };
            let why = reply.shortfall().unwrap_or_default();
            Answer { text, code: if why.is_empty() { 0 } else { NOT_THERE }, why, restarts: guest.restarts }
        }
        Err(refused) => Answer {
            text: String::new(),
            code: outcome::of_refusal(&refused.why),
            why: refused.to_string().trim_end().into(),
            restarts: guest.restarts,
        },
    }))
}

/// What it says who is asked for what only a job's guest can.
const NO_JOB: &str = "it is no guest of `vmm run`, which has somebody in the guest to ask";

/// Has a key pressed.
fn press(key: char, door: Option<&Door>) -> Response {
    match (door, u8::try_from(key)) {
        (None, _) => Response::Error(NO_JOB.into()),
        (Some(door), Ok(key)) if key.is_ascii_alphanumeric() && door.enter(Comer::Key(key)) => {
            Response::Done("pressed".into())
        }
        _ => Response::Error("a key is a letter or a digit, and the guest has to be there".into()),
    }
}

/// Hands a client over to the job's loop.
fn exec(stream: &UnixStream, door: Option<&Door>) -> io::Result<()> {
    let Some(door) = door else {
        return send(stream, &Response::Error(NO_JOB.into()));
    };
    let Some(place) = door.place() else {
        return send(stream, &Response::Error("too many wait already for the guest to be there".into()));
    };
    let handed = stream.try_clone()?;
    send(stream, &Response::Done(String::new()))?;
    match place.enter(Comer::Session(handed)) {
        true => Ok(()),
        // Its end tells them.
        false => Err(io::Error::other("the job is over")),
    }
}

const NOT_SERVED: &str = "it serves no gdb";

fn release_debugger(attachment: &Attachment) -> Response {
    match attachment.debugger() {
        Some(debugger) => {
            debugger.release();
            Response::Done("its debugger, if one was attached, is let go".into())
        }
        None => Response::Error(NOT_SERVED.into()),
    }
}

fn serve_gdb(guest: &Asked<'_>, asked: ServeGdb, given: Option<OwnedFd>) -> Response {
    let attachment = guest.attachment;
    if attachment.debugger().is_some() {
        return Response::Error("it has a gdb server already".into());
    }
    let served = Endpoint::parse(&asked.address).map_err(Error::Usage).and_then(|address| {
        let config = GdbConfig {
            any_user: asked.any_user,
            on_lost: asked.lost.into(),
            takeover: asked.takeover,
            dump_folder: asked.dump_folder.or_else(|| guest.about.dump_folder.clone()),
            ..GdbConfig::new(address)
        };
        if let Some(folder) = config.dump_folder.as_ref().filter(|folder| !cell::may_write_below(folder)) {
            return Err(Error::Usage(format!(
                "--dump-dir {}: the guest's monitor may not write there: start it with that --dump-dir, or have `vmm dump \
                 NAME PATH` write the dump, which may write anywhere",
                folder.display()
            )));
        }
        let listener = match (&config.address, given) {
            (Endpoint::Unix(path), Some(socket)) => given_listener(path, socket)?,
            _ => listen(&config)?,
        };
        let address = listener.address().to_string();
        attachment.attach(listener, &config).map(|()| address)
    });
    match served {
        Ok(address) => Response::Done(format!("waiting for gdb at {address}")),
        Err(error) => Response::Error(error.to_string()),
    }
}

/// Of a socket that whoever asks has made, where they may.
fn given_listener(path: &Path, socket: OwnedFd) -> Result<ListeningSocket, Error> {
    let failed = |source: io::Error| Error::Listen { address: path.display().to_string(), source };
    match getsockopt(&socket, sockopt::AcceptConn) {
        Ok(true) => Ok(ListeningSocket::Unix(Served::adopt(UnixListener::from(socket), path))),
        Ok(false) => Err(failed(io::Error::other("what was given is no socket that listens"))),
        Err(error) => Err(failed(error.into())),
    }
}

fn leave(attachment: &Attachment) -> Response {
    match attachment.leave() {
        true => Response::Done("it serves gdb no more, and runs".into()),
        false => Response::Error(NOT_SERVED.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::thread;

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

    /// A guest whose kernel's file has a name that is no text can be asked what it is.
    #[test]
    fn a_path_that_is_no_text_is_told_as_far_as_it_is() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(OsStr::from_bytes(b"/boot/vm\xfflinux"));
        assert!(serde_json::to_string(path).is_err());
        assert_eq!(serde_json::to_string(&speakable(path)).unwrap(), "\"/boot/vm\u{fffd}linux\"");
    }

    #[test]
    fn one_that_says_nothing_more_is_not_gone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0; 1000]).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_gone(&ours));
        drop(theirs);
        assert!(is_gone(&ours));
    }

    #[test]
    fn one_that_is_too_many_at_the_door_is_told_so() {
        let (door, _comers) = Door::new().unwrap();
        while door.enter(Comer::Key(b'h')) {}
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        exec(&ours, Some(&door)).unwrap();
        drop(ours);
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).unwrap();
        let answer: Response = serde_json::from_slice(&answer).unwrap();
        assert!(matches!(&answer, Response::Error(why) if why.starts_with("too many wait")), "{answer:?}");
    }

    #[test]
    fn a_request_is_a_line() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"dump\":").unwrap();
        theirs.write_all(b"{\"path\":\"p\"}}\n").unwrap();
        let (line, given) = read_request(&ours, PATIENCE).unwrap();
        assert!(given.is_none());
        let Request::Dump { path } = serde_json::from_slice(&line).unwrap() else {
            panic!("no dump is asked for")
        };
        assert_eq!(path, Path::new("p"));
        // As long as it likes is too long.
        let flood = thread::spawn(move || theirs.write_all(&vec![b'x'; 1 << 20]).is_err());
        assert!(read_request(&ours, PATIENCE).unwrap().0.len() < LONGEST + 4096);
        drop(ours);
        assert!(flood.join().unwrap());
    }
}
