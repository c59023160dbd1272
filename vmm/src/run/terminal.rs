//! The terminal in raw mode, and its way back.
//!
//! A terminal is given back on every way out: when the [`RawMode`] is dropped, from the panic
//! hook, from `exit`, and from the handler of every signal that would end the process. The
//! saved settings are therefore in a static; giving back is one `tcsetattr`, which a signal
//! handler may call (POSIX, "2.4.3 Signal Actions").
//!
//! It is taken only in the foreground: a background job that changes its terminal is stopped (SIGTTOU), and
//! what is there is the shell's. Nothing tells a job that it has come to the foreground, unless it was
//! stopped before (SIGCONT), so whoever has a [`RawMode`] asks now and then.

use crate::logging;
use crate::machine::TerminalSize;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What a terminal was like before it was taken.
struct Saved {
    fd: RawFd,
    settings: libc::termios,
}

/// The last of these; one that was here may be looked at still, so none is freed. There is one for each
/// time that a terminal was taken and was not as it had been before.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Signals that would end the process without a chance to clean up. The ones that end a
/// guest in order (SIGINT and its like) arrive through the event loop instead.
const FATAL: [Signal; 13] = [
    Signal::SIGABRT,
    Signal::SIGALRM,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGPROF,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGVTALRM,
    Signal::SIGXCPU,
];

fn saved() -> Option<&'static Saved> {
    // SAFETY: what the pointer has pointed to is never freed or changed.
    unsafe { SAVED.load(Ordering::SeqCst).as_ref() }
}

/// Whether the process may change the terminal at `fd`: it is in the foreground there, or the terminal
/// knows no jobs of ours. Async-signal-safe (POSIX, "2.4.3 Signal Actions").
fn is_ours(fd: RawFd) -> bool {
    // SAFETY: neither has preconditions.
    let (owner, us) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    owner < 0 || owner == us
}

/// Gives the terminal back, if it was taken. May be called at any time, from anywhere. In the background
/// it is somebody else's already.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = saved()
        && is_ours(saved.fd)
    {
        // SAFETY: `settings` is what tcgetattr gave; a descriptor that is closed by now is an
        // error that nothing can be done about.
        unsafe { libc::tcsetattr(saved.fd, libc::TCSANOW, &raw const saved.settings) };
    }
}

extern "C" fn restore_and_die(number: libc::c_int) {
    restore();
    say_end(number);
    // SAFETY: both calls are async-signal-safe; the signal then ends the process as it would
    // have without us.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
}

/// Says by what signal the process ends, if that can be said without waiting. Async-signal-safe.
fn say_end(number: libc::c_int) {
    let mut text = *b"vmm: error: ended by signal 00; if nobody sent it, it is a defect of vmm itself\n";
    let digits = text.iter().position(|byte| *byte == b'0').unwrap_or(0);
    let number = u8::try_from(number.clamp(0, 99)).unwrap_or(0);
    (text[digits], text[digits + 1]) = (b'0' + number / 10, b'0' + number % 10);
    let mut poll = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one structure and `text` as long as is said. A pipe that has room has it for a
    // page (pipe(7), PIPE_BUF), so the write does not wait.
    unsafe {
        if libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLOUT != 0 {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        }
    }
}

/// Whether nobody has a handler for a signal.
fn has_default(signal: Signal) -> bool {
    // SAFETY: all zeros is a value of it, and the call only writes to it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut now) == 0;
        !known || now.sa_sigaction == libc::SIG_DFL
    }
}

/// Makes every signal that would end the process at once give the terminal back first, also one for a
/// stack that overflowed: handlers run on the stack that each thread of std has for them.
///
/// # Errors
/// What `sigaction` says.
pub fn install_handlers() -> io::Result<()> {
    let handler = SigHandler::Handler(restore_and_die);
    let action = SigAction::new(handler, SaFlags::SA_ONSTACK, SigSet::empty());
    for fatal in FATAL {
        // The cell has one of its own, which gives the terminal back as well.
        if fatal == Signal::SIGSYS && !has_default(fatal) {
            continue;
        }
        // SAFETY: the handler calls async-signal-safe functions only.
        unsafe { sigaction(fatal, &action) }?;
    }
    Ok(())
}

/// Makes a panic give the terminal back and end the process with `code`. What it says goes the way of all
/// messages, so that a process whose standard error nobody reads ends as well.
pub fn install_panic_hook(code: u8) {
    std::panic::set_hook(Box::new(move |info| {
        restore();
        let thread = std::thread::current();
        logging::print(&format!("vmm: error: thread '{}': {info}\n", thread.name().unwrap_or("?")));
        if std::env::var_os("RUST_BACKTRACE").is_some() && crate::cell::is_confined() {
            // To find names, it would open the program's file.
            logging::print("vmm: --sandbox off has it print where it was\n");
            logging::finish();
            std::process::exit(i32::from(code));
        }
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            logging::print(&format!("{trace}\n"));
        }
        logging::finish();
        std::process::exit(i32::from(code));
    }));
}

/// A terminal's size; `None` for what is none, or does not know.
pub fn size(terminal: RawFd) -> Option<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills in a structure of that kind (ioctl_tty(2)).
    let result = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// A terminal that is in raw mode as long as the process is in the foreground, until this is dropped.
#[derive(Debug)]
pub struct RawMode {
    fd: OwnedFd,
}

impl RawMode {
    /// Takes the terminal at `fd` if the process is in the foreground; else it is left alone until
    /// [`Self::take`] finds that the process has come there.
    ///
    /// # Errors
    /// What `tcgetattr`, `tcsetattr` or `sigaction` say.
    pub fn enter(fd: OwnedFd) -> io::Result<RawMode> {
        install_handlers()?;
        let raw = RawMode { fd };
        raw.take()?;
        Ok(raw)
    }

    /// Whether the process is in the foreground: only then does what is typed belong to it.
    pub fn is_ours(&self) -> bool {
        // A terminal that is not the process's own knows no jobs of it.
        tcgetpgrp(&self.fd).map_or(true, |owner| owner == getpgrp())
    }

    /// Its size, if it knows.
    pub fn size(&self) -> Option<TerminalSize> {
        size(self.fd.as_raw_fd())
    }

    /// Takes the terminal, if it is ours and is not raw already: whoever had it meanwhile, a shell, may
    /// have changed it. Whether it is ours.
    ///
    /// # Errors
    /// What `tcgetattr` or `tcsetattr` say.
    pub fn take(&self) -> io::Result<bool> {
        if !self.is_ours() {
            return Ok(false);
        }
        let now: libc::termios = tcgetattr(&self.fd)?.into();
        if let Some(saved) = saved().filter(|saved| saved.fd == self.fd.as_raw_fd()) {
            if IS_RAW.load(Ordering::SeqCst) && is_same(&now, &raw_settings(saved.settings)) {
                return Ok(true);
            }
            if !is_same(&now, &saved.settings) {
                self.save(now);
            }
        } else {
            self.save(now);
        }
        IS_RAW.store(true, Ordering::SeqCst);
        match tcsetattr(self.fd.as_fd(), SetArg::TCSANOW, &raw_settings(now).into()) {
            // A signal that stopped the process, which has come back since: it is tried again then.
            Err(Errno::EINTR) => Ok(false),
            result => result.map(|()| true).map_err(io::Error::from),
        }
    }

    fn save(&self, settings: libc::termios) {
        let saved = Box::new(Saved { fd: self.fd.as_raw_fd(), settings });
        SAVED.store(Box::into_raw(saved), Ordering::SeqCst);
    }
}

/// Whether two settings are the same, as far as the kernel has them: some C libraries have room for more
/// characters, in which there is anything.
fn is_same(one: &libc::termios, other: &libc::termios) -> bool {
    let parts = |it: &libc::termios| (it.c_iflag, it.c_oflag, it.c_cflag, it.c_lflag);
    let characters = ..=libc::VEOL2;
    parts(one) == parts(other) && one.c_cc[characters] == other.c_cc[characters]
}

/// Input as it is typed, without echo or signals. Output processing stays on: the guest sends
/// its own carriage returns, and our messages need theirs.
fn raw_settings(mut settings: libc::termios) -> libc::termios {
    settings.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    settings
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    fn settings(terminal: &OwnedFd) -> libc::termios {
        tcgetattr(terminal).unwrap().into()
    }

    #[test]
    fn the_terminal_is_raw_in_between_and_itself_again_afterwards() {
        let pty = openpty(None, None).unwrap();
        let before = settings(&pty.slave);
        {
            let raw = RawMode::enter(pty.slave.try_clone().unwrap()).unwrap();
            let during = tcgetattr(&pty.slave).unwrap();
            assert!(!during.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
            // A shell that had it meanwhile has changed it.
            tcsetattr(&pty.slave, SetArg::TCSANOW, &before.into()).unwrap();
            assert!(raw.take().unwrap());
            assert!(!tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON));
            // What is raw already is not what it is to become again.
            assert!(raw.take().unwrap());
            let kept = saved().unwrap().settings;
            assert!(is_same(&before, &kept));
        }
        assert!(is_same(&before, &settings(&pty.slave)));
    }

    /// What the next test runs in a process of its own.
    #[test]
    #[ignore = "a part of a_stack_that_overflows_gives_the_terminal_back"]
    fn overflow() {
        fn deeper(depth: u64) -> u64 {
            let room = std::hint::black_box([depth; 64]);
            if depth == u64::MAX { 0 } else { deeper(depth + 1) + room[0] }
        }
        let terminal = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let _raw = RawMode::enter(terminal).unwrap();
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(|| deeper(0)).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_stack_that_overflows_gives_the_terminal_back() {
        let pty = openpty(None, None).unwrap();
        let before = settings(&pty.slave);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run::terminal::tests::overflow", "--ignored", "--nocapture"])
            .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("ended by signal 11"), "{output:?}");
        assert!(is_same(&before, &settings(&pty.slave)));
    }
}
