//! A debugger that is started for a guest, and the guest served as long as it is there.

use super::modules::ModuleSymbols;
use super::{Args, quoted, serve};
use crate::control::client::ask;
use crate::control::names::{debugger_socket, is_left_by_debugger};
use crate::control::protocol::{Answer, Info, MonitorLine, Request, Response};
use crate::outcome;
use crate::symbols::search::{self, Folders};
use debug::gdb::endpoint::Endpoint;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use serde_json::Value;
use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

/// Starts it, and waits for its end; the exit code.
pub fn start(args: &Args, symbols: Option<&Path>) -> u8 {
    let info = match args.guest.ask_of(|guest| ask(guest, &Request::Info {})) {
        Ok(Response::Info(info)) => info,
        answer => return args.guest.tell(answer),
    };
    if let Some(file) = symbols.filter(|file| !file.is_file()) {
        log::error!("{} is no file", file.display());
        return outcome::FILE;
    }
    if info.is_debugged {
        let name = args.guest.name();
        log::error!("a debugger is attached to it already (vmm release {name} lets it go)");
        return outcome::FILE;
    }
    // What may take a while comes first: the guest serves nobody yet where this is ended meanwhile.
    let kernel = Kernel::ask(args.guest.name());
    let symbols = symbols.map(PathBuf::from).or_else(|| kernel.symbols(&info));
    // From here on there may be something to be cleared away.
    let program = args.program.clone().or_else(|| program(args.lldb));
    handle_signals();
    let modules = match symbols.as_deref().filter(|_| !args.lldb) {
        Some(file) => modules(args.guest.name(), &kernel, file),
        None => None,
    };
    if is_to_end() {
        return ended_by();
    }
    // One that it serves already stays.
    let (address, is_ours) = match info.gdb.as_deref().map(Endpoint::parse) {
        // But for one of whoever was killed before its debugger had ended.
        Some(Ok(address)) => {
            let is_left = matches!(&address, Endpoint::Unix(path) if is_left_by_debugger(path));
            (address, is_left)
        }
        _ => match socket(args) {
            Ok(address) => (address, true),
            Err(answer) => return args.guest.tell(answer),
        },
    };
    let code = debug(args, &kernel, symbols.as_deref(), modules.as_ref(), program, &address);
    if is_ours {
        if let Ok(Response::Error(why)) = args.guest.ask_of(|guest| ask(guest, &Request::Leave {})) {
            log::warn!("{why}");
        }
        if let Endpoint::Unix(path) = &address
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!("{} is left over: {error}", path.display());
        }
    }
    code
}

/// Has the guest serve a socket that only this user can reach; what it says where it does not.
fn socket(args: &Args) -> Result<Endpoint, io::Result<Response>> {
    let address = Endpoint::Unix(debugger_socket().map_err(Err)?);
    match serve(args, address.clone()) {
        Ok(Response::Done(_)) => Ok(address),
        other => Err(other),
    }
}

/// The symbols of the kernel's modules, as far as they are here; without them the kernel alone is debugged.
fn modules(guest: &str, kernel: &Kernel, vmlinux: &Path) -> Option<ModuleSymbols> {
    let modules = match ModuleSymbols::of_guest(guest, kernel.release.as_deref(), vmlinux, &is_to_end) {
        Ok(modules) => modules?,
        Err(error) => {
            log::warn!("gdb is not told of the kernel's modules: {error}");
            return None;
        }
    };
    match &modules.missing[..] {
        [] => log::info!("symbols of {} modules", modules.found),
        missing => log::warn!(
            "no file of {} of the kernel's {} modules is found here: gdb knows no names of {}",
            missing.len(),
            missing.len() + modules.found,
            match missing {
                [a, b, c, _, ..] => format!("{a}, {b}, {c} and others"),
                few => few.join(", "),
            }
        ),
    }
    Some(modules)
}

fn debug(
    args: &Args,
    kernel: &Kernel,
    symbols: Option<&Path>,
    modules: Option<&ModuleSymbols>,
    program: Option<PathBuf>,
    address: &Endpoint,
) -> u8 {
    match symbols {
        Some(file) => log::info!("symbols of {}", file.display()),
        None => log::warn!(
            "no vmlinux of the guest's kernel{} is found here: name one, or gdb knows no names",
            kernel
                .release
                .as_deref()
                .filter(|it| search::is_name(it))
                .map(|it| format!(" ({it})"))
                .unwrap_or_default()
        ),
    }
    if args.lldb {
        log::warn!(
            "lldb's quit ends the guest, as lldb says: `process detach` before it lets the guest run on"
        );
    }
    let words = match args.lldb {
        true => of_lldb(address, symbols, kernel),
        false => of_gdb(address, symbols, kernel, modules.map(ModuleSymbols::script)),
    };
    let Some(program) = program else {
        let wanted = if args.lldb { "lldb" } else { "gdb or gdb-multiarch" };
        log::error!("there is no {wanted} in PATH: install it, or name one with --program");
        return outcome::FILE;
    };
    run(Command::new(&program).args(words).args(&args.arguments), &program)
}

/// The debugger that runs, or 0.
static DEBUGGER: AtomicI32 = AtomicI32::new(0);
/// The signal that ends this, or 0.
static ENDED_BY: AtomicI32 = AtomicI32::new(0);

/// A terminal sends it to the debugger as well; before that runs it ends this.
extern "C" fn is_its_own(signal: libc::c_int) {
    if DEBUGGER.load(Ordering::SeqCst) == 0 {
        ENDED_BY.store(signal, Ordering::SeqCst);
    }
}

/// It ends the debugger, and this behind it: the guest is to serve it no more.
extern "C" fn passes_on(signal: libc::c_int) {
    let errno = Errno::last_raw();
    ENDED_BY.store(signal, Ordering::SeqCst);
    end_debugger();
    Errno::set_raw(errno);
}

/// Ends the debugger, if one runs and this is to end. It does only what a signal's handler may (signal-safety(7)).
fn end_debugger() {
    let (debugger, signal) = (DEBUGGER.load(Ordering::SeqCst), ENDED_BY.load(Ordering::SeqCst));
    if let (1.., Ok(signal)) = (debugger, Signal::try_from(signal)) {
        // One that has ended needs none.
        kill(Pid::from_raw(debugger), signal).ok();
    }
}

/// Whether a signal has come that ends this.
fn is_to_end() -> bool {
    ENDED_BY.load(Ordering::SeqCst) != 0
}

/// The exit code where one has.
fn ended_by() -> u8 {
    128 + u8::try_from(ENDED_BY.load(Ordering::SeqCst)).unwrap_or(0)
}

/// From now on signals end the debugger, if one runs, and then this in order.
fn handle_signals() {
    let handlers: [(_, extern "C" fn(libc::c_int)); 4] = [
        (Signal::SIGINT, is_its_own),
        (Signal::SIGQUIT, is_its_own),
        (Signal::SIGHUP, passes_on),
        (Signal::SIGTERM, passes_on),
    ];
    for (signal, handler) in handlers {
        // A handler, unlike a signal that is ignored, is not the child's as well.
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: it does nothing, or what a handler may.
        let result = unsafe { sigaction(signal, &action) }.and_then(|before| match before.handler() {
            // As nohup(1) has it.
            // SAFETY: it is what was there.
            SigHandler::SigIgn => unsafe { sigaction(signal, &before) }.map(|_| ()),
            _ => Ok(()),
        });
        if let Err(error) = result {
            log::warn!("{signal} ends this and not only the debugger: {error}");
        }
    }
}

/// Waits for the debugger, which Ctrl-C is for, and which ends where this is ended; its exit code.
fn run(command: &mut Command, program: &Path) -> u8 {
    let status = command.spawn().and_then(|mut debugger| {
        DEBUGGER.store(i32::try_from(debugger.id()).unwrap_or_default(), Ordering::SeqCst);
        // It may have come before.
        end_debugger();
        let status = debugger.wait();
        DEBUGGER.store(0, Ordering::SeqCst);
        status
    });
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(outcome::FILE),
            (None, signal) => 128 + u8::try_from(signal.unwrap_or(0)).unwrap_or(0),
        },
        Err(error) => {
            log::error!("{}: {error}", program.display());
            outcome::FILE
        }
    }
}

/// The first debugger in PATH.
fn program(lldb: bool) -> Option<PathBuf> {
    let names: &[&str] = if lldb { &["lldb"] } else { &["gdb", "gdb-multiarch"] };
    let path = env::var_os("PATH")?;
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// What the guest's kernel says of itself.
#[derive(Debug, Default)]
struct Kernel {
    release: Option<String>,
    build_id: Option<String>,
    slide: Option<u64>,
    /// It has moved, and its per-CPU variables have not.
    left_per_cpu: bool,
}

impl Kernel {
    /// One that says nothing (yet) has no symbols here either.
    fn ask(guest: &str) -> Kernel {
        let line = MonitorLine { line: "linux".into(), json: true };
        match ask(guest, &Request::Monitor(line)) {
            Ok(Response::Answer(Answer { text, .. })) => Kernel::parse(&text),
            _ => Kernel::default(),
        }
    }

    fn parse(text: &str) -> Kernel {
        let said: Value = serde_json::from_str(text).unwrap_or_default();
        let word = |name: &str| said[name].as_str().map(str::to_string);
        let slide = word("slide").and_then(|slide| u64::from_str_radix(slide.strip_prefix("0x")?, 16).ok());
        Kernel {
            release: word("release"),
            build_id: word("build_id"),
            slide,
            left_per_cpu: said["left_per_cpu"].as_bool().unwrap_or(false),
        }
    }

    fn symbols(&self, info: &Info) -> Option<PathBuf> {
        let kernel = search::Kernel {
            release: self.release.as_deref(),
            build_id: self.build_id.as_deref(),
            file: info.kernel.as_deref(),
        };
        // What the monitor itself has names from is of this kernel, as far as somebody has said so.
        info.symbols.clone().or_else(|| search::find(&kernel, &Folders::of_user()))
    }
}

/// Python for gdb.
const KEEP_SLIDE: &str = include_str!("keep_slide.py");

/// Has gdb keep in mind where the kernel is.
fn keeps_slide(vmlinux: &Path) -> [OsString; 2] {
    // A string of JSON is one of Python's.
    let path = std::path::absolute(vmlinux).unwrap_or_else(|_| vmlinux.to_path_buf());
    let script = Value::from(format!("vmm_vmlinux = {}\n{KEEP_SLIDE}", Value::from(path.to_string_lossy())));
    ["-ex".into(), format!("python exec({script})").into()]
}

fn of_gdb(
    address: &Endpoint,
    symbols: Option<&Path>,
    kernel: &Kernel,
    modules: Option<PathBuf>,
) -> Vec<OsString> {
    let place = match address {
        Endpoint::Unix(path) => path.display().to_string(),
        address => address.to_string(),
    };
    let mut words: Vec<OsString> = vec!["-q".into()];
    let connect = ["-ex".into(), format!("target remote {place}").into()];
    match (symbols, kernel.slide) {
        // gdb moves all sections alike.
        (Some(file), Some(slide)) if kernel.left_per_cpu => {
            let file = quoted(file);
            words.extend(connect);
            let load = format!("add-symbol-file {file} -o {slide:#x} -s .data..percpu 0");
            // It asks a person whether they are sure.
            words.extend(["-ex".into(), "set confirm off".into(), "-ex".into(), load.into()]);
            words.extend(["-ex".into(), "set confirm on".into()]);
        }
        (symbols, _) => {
            words.extend(symbols.map(|file| file.as_os_str().to_os_string()));
            words.extend(connect);
        }
    }
    words.extend(symbols.filter(|_| kernel.slide.is_some()).map(keeps_slide).into_iter().flatten());
    words.extend(modules.into_iter().flat_map(|script| ["-x".into(), script.into_os_string()]));
    words
}

fn of_lldb(address: &Endpoint, symbols: Option<&Path>, kernel: &Kernel) -> Vec<OsString> {
    let place = match address {
        Endpoint::Unix(path) => format!("unix-connect://{}", path.display()),
        address => format!("connect://{address}"),
    };
    let mut words: Vec<OsString> = symbols.map(|file| file.as_os_str().to_os_string()).into_iter().collect();
    words.extend(["-o".into(), format!("process connect --plugin gdb-remote {place}").into()]);
    if let (Some(file), Some(slide)) = (symbols, kernel.slide.filter(|slide| *slide != 0)) {
        let slide = format!("target modules load --file {} --slide {slide:#x}", quoted(file));
        words.extend(["-o".into(), slide.into()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: Vec<OsString>) -> String {
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_debugger_is_told_where_the_guest_is_and_its_kernel() {
        let socket = Endpoint::Unix("/run/x/s".into());
        let file = Path::new("/t/a \"tree\"/vmlinux");
        let plain = Kernel::parse(r#"{"release":"6.12","build_id":"ab","slide":"0x1000"}"#);
        assert_eq!((plain.release.as_deref(), plain.slide), (Some("6.12"), Some(0x1000)));
        let words = text(of_gdb(&socket, Some(file), &plain, Some("/t/m.gdb".into())));
        let (begin, end) = words.split_once("|-ex|python exec(").unwrap();
        assert_eq!(begin, r#"-q|/t/a "tree"/vmlinux|-ex|target remote /run/x/s"#);
        // What gdb reads as one line of Python.
        assert!(end.starts_with(r#""vmm_vmlinux = \"/t/a \\\"tree\\\"/vmlinux\"\n# "#), "{end}");
        assert!(end.ends_with(r#"\nend')\n")|-x|/t/m.gdb"#) && !end.contains('\n'), "{end}");
        let still = Kernel { slide: None, ..Kernel::parse("{}") };
        assert_eq!(
            text(of_gdb(&socket, Some(file), &still, None)),
            r#"-q|/t/a "tree"/vmlinux|-ex|target remote /run/x/s"#
        );
        let moved = Kernel { left_per_cpu: true, ..plain };
        let words = text(of_gdb(&socket, Some(file), &moved, None));
        assert_eq!(
            words.split_once("|-ex|python").unwrap().0,
            r#"-q|-ex|target remote /run/x/s|-ex|set confirm off|-ex|add-symbol-file "/t/a \"tree\"/vmlinux" -o 0x1000 -s .data..percpu 0|-ex|set confirm on"#
        );
        assert_eq!(
            text(of_lldb(&socket, Some(file), &moved)),
            r#"/t/a "tree"/vmlinux|-o|process connect --plugin gdb-remote unix-connect:///run/x/s|-o|target modules load --file "/t/a \"tree\"/vmlinux" --slide 0x1000"#
        );
        let port = Endpoint::parse(":1234").unwrap();
        assert_eq!(
            text(of_gdb(&port, None, &Kernel::default(), None)),
            "-q|-ex|target remote 127.0.0.1:1234"
        );
        assert_eq!(Kernel::parse("no json").release, None);
    }
}
