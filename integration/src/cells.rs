//! What the cell forbids, tried by a process that begins one of its own: `case --forbidden THREAD CALL` and `case
//! --paths OWN SHARED OTHER`.

use rustix::fs::{CWD, Mode, OFlags};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::Builder;
use vmm::cell::{self, Ending, For, Grant, Rule, Sandbox};

/// `case --forbidden THREAD CALL`: a thread of that kind makes a call.
pub const FORBIDDEN: &str = "--forbidden";
/// `case --paths OWN SHARED OTHER`: threads open what they may and what they may not.
pub const PATHS: &str = "--paths";
/// How the process ends whose cell was left.
pub const CODE: u8 = 72;

/// Calls that are tried: what it is called, its number, and its second argument.
const CALLS: &[(&str, libc::c_long, u64)] = &[
    ("execve", libc::SYS_execve, 0),
    ("ptrace", libc::SYS_ptrace, 0),
    ("openat", libc::SYS_openat, 0),
    ("socket", libc::SYS_socket, 0),
    ("clone", libc::SYS_clone, 0),
    // TIOCSTI types into a terminal; KVM_CREATE_VM makes a machine.
    ("ioctl-tiocsti", libc::SYS_ioctl, 0x5412),
    ("ioctl-create-vm", libc::SYS_ioctl, 0xae01),
    ("prctl", libc::SYS_prctl, 0),
];

fn begin(sandbox: Sandbox, rules: Vec<Rule>) -> io::Result<()> {
    cell::begin(sandbox, rules, Ending { code: CODE, json: true, restore: || {} })
}

/// What is done by a thread of a kind.
fn on<T: Send + 'static>(kind: &'static str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, result) = channel();
    let work = move || drop(sender.send(work()));
    let thread = debug::threads::start(kind, Builder::new(), work)?;
    thread.join().map_err(|_| io::Error::other("the thread panicked"))?;
    result.recv().map_err(io::Error::other)
}

/// Makes the call; where that is not the process's end, its exit code.
pub fn forbidden(words: &[&str]) -> i32 {
    let [kind, call] = words else { return 2 };
    let Some((_, number, second)) = CALLS.iter().find(|(name, ..)| name == call) else { return 2 };
    let Some(kind) = cell::kinds().find(|its| its == kind) else { return 2 };
    if let Err(error) = begin(Sandbox::On, Vec::new()) {
        eprintln!("case: {error}");
        return 3;
    }
    // SAFETY: no argument is a pointer or a descriptor that is anything, so the kernel refuses the call, if a filter does
    // not.
    let work = move || unsafe { libc::syscall(*number, -1, *second, 0, 0, 0, 0) };
    match kind {
        "main" => {
            cell::settle();
            work();
        }
        kind => drop(on(kind, work)),
    }
    0
}

fn expect(what: &str, kind: Option<ErrorKind>, result: io::Result<File>) -> Result<(), String> {
    let found = result.err().map(|error| error.kind());
    if found == kind { Ok(()) } else { Err(format!("{what}: {found:?} instead of {kind:?}")) }
}

/// Opens what a debugger's thread may, and what one of a shared folder may.
///
/// # Errors
/// What was allowed, or forbidden, and is not to be.
pub fn paths([own, shared, other]: [&Path; 3]) -> Result<(), String> {
    let rules =
        vec![Rule::new(own, Grant::Own), Rule { path: shared.into(), grant: Grant::Read, by: For::Shares }];
    begin(Sandbox::Require, rules).map_err(|error| error.to_string())?;
    let [own, shared, other] = [own, shared, other].map(|folder| folder.join("file"));
    let denied = Some(ErrorKind::PermissionDenied);
    let made = own.with_file_name("made");
    let (its_own, its_shared) = (own.clone(), shared.clone());
    on("gdb", move || {
        expect("a new file below its folder", None, File::create(&made))?;
        expect("a file below its folder", None, File::open(&its_own))?;
        expect("a shared file", denied, File::open(&its_shared))?;
        expect("another file", denied, File::open(&other))?;
        expect("another new file", denied, File::create(other.with_file_name("made")))?;
        expect("KVM", None, File::open("/dev/kvm"))?;
        match std::os::unix::net::UnixListener::bind(own.with_file_name("socket")) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            result => Err(format!("a socket: {result:?}")),
        }
    })
    .map_err(|error| error.to_string())??;
    let own = made_below(&shared);
    on("virtio fs", move || {
        expect("a shared file", None, open(&shared, OFlags::RDONLY))?;
        expect("a shared file, written", denied, open(&shared, OFlags::WRONLY))?;
        expect("KVM", denied, open(Path::new("/dev/kvm"), OFlags::RDONLY))?;
        expect("a file of the debugger's", denied, open(&own, OFlags::RDONLY))
    })
    .map_err(|error| error.to_string())?
}

/// Opens it by the call that servers of folders have.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?.into())
}

/// The file of the folder beside a shared one that a debugger writes below.
fn made_below(shared: &Path) -> std::path::PathBuf {
    shared.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("own/file")
}
