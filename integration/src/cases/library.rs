//! The monitor as a library: what it does to the process that embeds it.

use crate::context::{Check, Context, check};
use debug::gdb::endpoint::Endpoint;
use kvm::kick;
use std::fs;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vmm::machine::{Config, GdbConfig, Guest};

static SEEN: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    SEEN.fetch_add(1, Ordering::Relaxed);
}

/// A machine with a debugger is made beside a program that has the first real-time signal and blocks all
/// signals: the signal stays the program's, its program is not started again, and what hangs is given up.
pub fn in_a_process(c: &mut Context) -> Check {
    let theirs = libc::SIGRTMIN();
    // SAFETY: the handler touches an atomic only; the masks are this thread's.
    unsafe {
        libc::signal(theirs, count as extern "C" fn(libc::c_int) as *const () as libc::sighandler_t);
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
    }
    let limit = c.limit(10);
    for _ in 0..2 {
        let address = Endpoint::Unix(c.work.join("gdb.sock"));
        let gdb = GdbConfig { waits: false, ..GdbConfig::new(address) };
        let config =
            Config { kernel: Some(c.guest("spin", false)?), cpus: 2, gdb: Some(gdb), ..Config::default() };
        let guest = Guest::new(&config, Box::new(std::io::sink())).map_err(|error| error.to_string())?;
        guest.resume();
        // Comes back only if kicks get through.
        guest.pause();
        drop(guest);
    }
    check(kick::signal() != theirs, || "the signal of the embedding program was taken".into())?;
    // SAFETY: the signal has a handler, and is let through first.
    unsafe {
        let mut one = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(one.as_mut_ptr());
        libc::sigaddset(one.as_mut_ptr(), theirs);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, one.as_ptr(), ptr::null_mut());
        libc::raise(theirs);
    }
    check(SEEN.load(Ordering::Relaxed) == 1, || "the embedding program's handler is gone".into())?;
    no_children()?;
    gives_up(limit)
}

/// No process was started, waited for or not.
fn no_children() -> Check {
    // SAFETY: nothing is waited for, and the structure is large enough.
    let (child, usage) = unsafe {
        let child = libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG);
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        (child, usage.assume_init())
    };
    check(child == -1, || format!("there is a child {child}"))?;
    check(usage.ru_maxrss == 0, || "a program was started".into())
}

/// Threads of this process that try something.
fn attempts() -> Result<usize, String> {
    let tasks = fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?;
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Ok(names.filter(|name| name.trim() == "attempt").count())
}

/// A guest that never ends is not left running.
fn gives_up(limit: Duration) -> Check {
    let error = kvm::probe::endless(Duration::from_millis(200)).err().unwrap_or_default();
    check(error.contains("no answer within"), || format!("it says {error:?}"))?;
    let deadline = Instant::now() + limit;
    while attempts()? > 0 {
        check(Instant::now() < deadline, || "the thread that tried it is there still".into())?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}
