//! What is said when a thread asks for what its filter forbids, and the end.
//!
//! All of it runs in a signal handler, on whatever the thread was in the middle of: nothing is allocated, nothing is
//! locked, and nothing is called that a filter forbids.

use super::table::{Kind, TABLE, call_of, name_of};
use kvm::HOST_ISA;
use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

thread_local! {
    /// What the thread is, as an index of the table's.
    static KIND: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// How the process ends then.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// Its exit code.
    pub code: u8,
    /// Whether a line of JSON is wanted, as `vmm run --json` has it.
    pub json: bool,
    /// Gives the terminal back; async-signal-safe.
    pub restore: fn(),
}

static ENDING: OnceLock<Ending> = OnceLock::new();

/// `si_code` of a call that a filter has trapped (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

/// Has what filters forbid end the process so.
///
/// # Errors
/// What `sigaction` says.
pub fn install(ending: Ending) -> io::Result<()> {
    // Whoever comes second would end the same way.
    ENDING.get_or_init(|| ending);
    // SAFETY: all zeros is a value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler calls async-signal-safe functions only.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says what the calling thread is, and lets the signal through: blocked, it would end the process without a word.
pub fn expect(kind: Kind) {
    KIND.set(TABLE.iter().position(|row| row.kind == kind).unwrap_or(usize::MAX));
    // SAFETY: the set is initialized by sigemptyset, and both calls take pointers to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// The beginning of what the kernel tells of the signal (asm-generic/siginfo.h, `_sigsys`), which libc does not have.
#[repr(C)]
struct SigSys {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _pad: libc::c_int,
    _call_address: *mut libc::c_void,
    call: libc::c_int,
    _arch: libc::c_uint,
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a structure of 128 bytes, which for this signal begins so.
    let info = unsafe { &*info.cast::<SigSys>() };
    let ending = ENDING.get();
    if let Some(ending) = ending {
        (ending.restore)();
    }
    let mut line = Line::default();
    let is_ours = info.signo == libc::SIGSYS && info.code == SYS_SECCOMP;
    line.put("vmm: error: ");
    match is_ours {
        true => cause(&mut line, info.call),
        false => line.put("ended by SIGSYS, which somebody sent"),
    }
    line.put(" (--sandbox off does without it; please report this)\n");
    line.write();
    if let Some(ending) = ending.filter(|ending| ending.json) {
        let mut line = Line::default();
        line.put("{\"verdict\":\"cell\",\"code\":");
        line.number(u64::from(ending.code));
        line.put(",\"text\":\"");
        cause(&mut line, info.call);
        line.put("\",\"seconds\":null,\"boot_seconds\":null,\"dump\":null}\n");
        line.write();
    }
    // SAFETY: it ends the process, and may be called by a signal handler.
    unsafe { libc::_exit(ending.map_or(1, |ending| i32::from(ending.code))) }
}

fn cause(line: &mut Line, call: libc::c_int) {
    let thread = TABLE.get(KIND.get()).map_or("?", |row| name_of(row.kind));
    line.put("the cell of vmm's thread '");
    line.put(thread);
    line.put("' forbids the system call ");
    let number = usize::try_from(call).unwrap_or(usize::MAX);
    line.put(call_of(HOST_ISA, number).unwrap_or("number"));
    line.put(" (");
    line.number(number as u64);
    line.put(")");
}

/// A line on the stack. What does not fit is left out.
struct Line {
    bytes: [u8; 512],
    used: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 512], used: 0 }
    }
}

impl Line {
    fn put(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
    }

    fn number(&mut self, number: u64) {
        let (mut digits, mut at, mut rest) = ([b'0'; 20], 20, number);
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 || at == 0 {
                break;
            }
        }
        self.put(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
    }

    /// Writes it to standard error, if that does not wait.
    fn write(&self) {
        let mut poll = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll` is one structure, and as many bytes are written as are there. A pipe that has room has it for a
        // page (pipe(7), PIPE_BUF), so the write does not wait.
        unsafe {
            if libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLOUT != 0 {
                libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_words_and_numbers_and_an_end() {
        let mut line = Line::default();
        line.number(0);
        line.put(" ");
        line.number(u64::MAX);
        assert_eq!(&line.bytes[..line.used], b"0 18446744073709551615");
        line.put(&"x".repeat(600));
        assert_eq!(line.used, 512);
    }

    #[test]
    fn what_the_kernel_tells_is_where_it_is_looked_for() {
        assert_eq!(std::mem::offset_of!(SigSys, call), 24);
    }
}
