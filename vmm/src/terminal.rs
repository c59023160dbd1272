//! The terminal in raw mode, and its way back.
//!
//! A terminal is given back on every way out: when the [`RawMode`] is dropped, from the panic
//! hook, from `exit`, and from the handler of every signal that would end the process. The
//! saved settings are therefore in a static; giving back is one `tcsetattr`, which a signal
//! handler may call (POSIX, "2.4.3 Signal Actions").

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

struct Saved {
    fd: RawFd,
    settings: libc::termios,
}

static SAVED: OnceLock<Saved> = OnceLock::new();
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

/// Gives the terminal back, if it was taken. May be called at any time, from anywhere.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // SAFETY: `settings` is what tcgetattr gave; a descriptor that is closed by now is an
        // error that nothing can be done about.
        unsafe { libc::tcsetattr(saved.fd, libc::TCSANOW, &raw const saved.settings) };
    }
}

extern "C" fn restore_and_die(number: libc::c_int) {
    restore();
    // SAFETY: both calls are async-signal-safe; the signal then ends the process as it would
    // have without us.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
}

/// Makes a panic give the terminal back and end the process with `code`.
pub fn install_panic_hook(code: u8) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        default(info);
        std::process::exit(i32::from(code));
    }));
}

/// A terminal in raw mode until it is dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Takes the terminal at `fd`.
    ///
    /// # Errors
    /// What `tcgetattr`, `tcsetattr` or `sigaction` say.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<RawMode> {
        let settings = tcgetattr(fd)?;
        let saved = SAVED.get_or_init(|| Saved { fd: fd.as_raw_fd(), settings: settings.clone().into() });
        if saved.fd != fd.as_raw_fd() {
            return Err(io::Error::other("another terminal is in raw mode already"));
        }
        for fatal in FATAL {
            // SAFETY: the handler calls async-signal-safe functions only.
            unsafe { signal(fatal, SigHandler::Handler(restore_and_die)) }?;
        }
        IS_RAW.store(true, Ordering::SeqCst);
        tcsetattr(fd.as_fd(), SetArg::TCSANOW, &raw_settings(settings))?;
        Ok(RawMode(()))
    }
}

/// Input as it is typed, without echo or signals. Output processing stays on: the guest sends
/// its own carriage returns, and our messages need theirs.
fn raw_settings(mut settings: Termios) -> Termios {
    settings.input_flags.remove(
        InputFlags::IGNBRK
            | InputFlags::BRKINT
            | InputFlags::PARMRK
            | InputFlags::ISTRIP
            | InputFlags::INLCR
            | InputFlags::IGNCR
            | InputFlags::ICRNL
            | InputFlags::IXON,
    );
    settings.local_flags.remove(
        LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::IEXTEN,
    );
    settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
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

    #[test]
    fn the_terminal_is_raw_in_between_and_itself_again_afterwards() {
        let pty = openpty(None, None).unwrap();
        let before: libc::termios = tcgetattr(&pty.slave).unwrap().into();
        {
            let _raw = RawMode::enter(pty.slave.as_fd()).unwrap();
            let during = tcgetattr(&pty.slave).unwrap();
            assert!(!during.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        }
        let after: libc::termios = tcgetattr(&pty.slave).unwrap().into();
        assert_eq!((before.c_lflag, before.c_iflag, before.c_cc), (after.c_lflag, after.c_iflag, after.c_cc));
    }
}
