//! Getting a vCPU thread out of `KVM_RUN`.
//!
//! A kick is a signal to the thread. Its handler runs on that thread and sets
//! `immediate_exit` in the thread's own `kvm_run`, through a pointer that the thread keeps
//! while it has a vCPU.
//!
//! # Why no kick is lost
//! The thread goes round: (1) clear `immediate_exit`, (2) look for messages, (3) `KVM_RUN`.
//! Whoever kicks has put the message in first. The signal is handled either
//! * before (1): the message was there before the signal, so (2) finds it;
//! * between (1) and (3): the handler sets `immediate_exit` after it was cleared, so (3)
//!   returns `EINTR` at once and the thread comes round to (2);
//! * during (3): the signal interrupts `KVM_RUN` with `EINTR`, and so on;
//! * while the thread serves an exit: the same as before (1).
//!
//! A thread that waits for messages outside the guest is woken by the message itself and gets
//! no kick (`debug::live::attention`).
//!
//! # Which signal
//! The first real-time signal that nobody in the process has taken when the first machine is made, or the one
//! that was chosen by [`use_signal`]. From then on it belongs to this module: whoever embeds the monitor
//! must not give it another handler or block it on the threads of vCPUs. The handler runs on a thread's
//! alternate stack where it has one (`SA_ONSTACK`, as runtimes with small stacks want it), interrupts
//! system calls (no `SA_RESTART`), and touches only its thread's own variables.
//!
//! Source: KVM API, "5. The kvm_run structure", `immediate_exit`.

use kvm_ioctls::KvmRunWrapper;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The signal, once there is a handler; 0 before.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Held while a signal is chosen.
static CHOICE: Mutex<()> = Mutex::new(());

thread_local! {
    // A constant initialiser and no destructor: the handler may touch it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
    static KICKED: Cell<bool> = const { Cell::new(false) };
}

/// The signal that kicks a vCPU thread; 0, which kicks nobody, before there is a handler.
pub fn signal() -> libc::c_int {
    SIGNAL.load(Ordering::Acquire)
}

extern "C" fn handle_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    KICKED.set(true);
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is non-null only while the mapping is there that it points into, which a
        // `KickGuard` of this thread keeps. The kernel reads the byte at any time; a
        // volatile store is one byte.
        unsafe { flag.write_volatile(1) };
    }
}

/// What a signal does now.
fn action(number: libc::c_int) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: no action is given, and there is room for the one that is told.
    let result = unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: the call has succeeded, so it has written the action.
    Ok(unsafe { action.assume_init() })
}

/// Gives a signal our handler.
fn install(number: libc::c_int) -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle_kick;
    // SAFETY: all zeros are a `sigaction` with an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the form that SA_SIGINFO asks for, and is async-signal-safe.
    let result = unsafe { libc::sigaction(number, &raw const action, ptr::null_mut()) };
    Errno::result(result)?;
    SIGNAL.store(number, Ordering::Release);
    Ok(())
}

/// Installs the handler for the whole process, at the first real-time signal that is at its default.
/// Calling it again changes nothing.
///
/// # Errors
/// What `sigaction` says, or that no real-time signal is free.
pub fn install_handler() -> io::Result<()> {
    let _choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    if signal() != 0 {
        return Ok(());
    }
    for number in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        if action(number)?.sa_sigaction == libc::SIG_DFL {
            return install(number);
        }
    }
    Err(io::Error::other(
        "every real-time signal has a handler already: free one, or choose it by use_signal",
    ))
}

/// Has vCPU threads kicked by this signal, whose handler is replaced. For programs that know which they do
/// not need; to be called before the first machine is made.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when another one is in use; what `sigaction` says.
pub fn use_signal(number: libc::c_int) -> io::Result<()> {
    let _choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    match signal() {
        0 => install(number),
        known if known == number => Ok(()),
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Lets kicks through on the calling thread, whatever the one that has made it blocks.
pub fn unblock() {
    if let Ok(mut set) = SigSet::thread_get_mask().map(|set| *set.as_ref()) {
        // SAFETY: the set is one that the system has filled in.
        unsafe {
            libc::sigdelset(&raw mut set, signal());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
        }
    }
}

/// Whether kicks of this thread reach a vCPU.
pub(crate) fn has_vcpu() -> bool {
    !IMMEDIATE_EXIT.get().is_null()
}

/// Whether this thread has been kicked since [`clear`]: a device that waits on this thread
/// asks it when its wait was interrupted.
pub fn is_pending() -> bool {
    KICKED.get()
}

/// Step (1) above.
pub fn clear() {
    KICKED.set(false);
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: as in the handler.
        unsafe { flag.write_volatile(0) };
    }
}

/// A thread that can be kicked. Its id is kept as a number: some C libraries make it a pointer.
#[derive(Clone, Copy, Debug)]
pub struct Thread(usize);

impl Thread {
    /// The calling thread.
    #[allow(clippy::cast_possible_truncation, reason = "it is as wide as a pointer everywhere")]
    pub fn current() -> Thread {
        // SAFETY: it has no preconditions.
        Thread(unsafe { libc::pthread_self() } as usize)
    }

    /// A thread that was started.
    #[allow(clippy::cast_possible_truncation, reason = "it is as wide as a pointer everywhere")]
    pub fn of<T>(handle: &JoinHandle<T>) -> Thread {
        Thread(handle.as_pthread_t() as usize)
    }

    /// Kicks it.
    ///
    /// # Safety
    /// Nobody must have joined the thread or let go of its handle; it may have ended.
    pub unsafe fn kick(&self) {
        // SAFETY: the id is still the thread's, as the caller says, and the signal has a handler.
        unsafe { libc::pthread_kill(self.0 as libc::pthread_t, signal()) };
    }
}

/// Kicks the thread that [accepts its kicks](crate::Vcpu::accept_kicks_by), as long as it does; before and behind that,
/// nobody. Its clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Kicker(Arc<Mutex<Option<Thread>>>);

impl Kicker {
    /// Kicks it.
    pub fn kick(&self) {
        if let Some(thread) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the thread takes itself out of here, under the same lock, before it ends.
            unsafe { thread.kick() };
        }
    }
}

/// While it lives, kicks of this thread reach the vCPU that it was made for. It stays on its thread. Whether the vCPU is
/// dropped before it, after it, or it is never dropped: the byte that a kick writes is there.
#[derive(Debug)]
pub struct KickGuard<'a> {
    kicker: Kicker,
    /// The byte.
    flag: *mut u8,
    /// What the byte is in, where that is the guard's own. Unmapped when nobody writes there any more.
    mapping: Option<KvmRunWrapper>,
    /// Of the byte, and bound to the thread.
    _bound: PhantomData<(&'a mut u8, *const ())>,
}

impl KickGuard<'static> {
    /// Has kicks of this thread reach the vCPU whose `kvm_run` this is, which the guard keeps.
    pub(crate) fn of(mut run: KvmRunWrapper) -> KickGuard<'static> {
        let flag = &raw mut run.as_mut_ref().immediate_exit;
        // SAFETY: the mapping lives as long as the guard: it is unmapped behind its end, or never.
        let mut guard = unsafe { KickGuard::new(flag) };
        guard.mapping = Some(run);
        guard
    }
}

impl<'a> KickGuard<'a> {
    /// Makes `immediate_exit` the byte that kicks of this thread set, and no longer that of a guard which it has.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid for writes as long as the guard lives.
    pub unsafe fn new(immediate_exit: *mut u8) -> KickGuard<'a> {
        IMMEDIATE_EXIT.set(immediate_exit);
        unblock();
        KickGuard { kicker: Kicker::default(), flag: immediate_exit, mapping: None, _bound: PhantomData }
    }

    /// Has `kicker` kick this thread.
    #[must_use]
    pub fn by(self, kicker: &Kicker) -> KickGuard<'a> {
        let mut guard = self;
        guard.kicker = kicker.clone();
        *kicker.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Thread::current());
        guard
    }
}

impl Drop for KickGuard<'_> {
    fn drop(&mut self) {
        // Another one's is that one's.
        if IMMEDIATE_EXIT.get() == self.flag {
            IMMEDIATE_EXIT.set(ptr::null_mut());
        }
        *self.kicker.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kick_this_thread() {
        // SAFETY: the signal has a handler; `raise` sends it to the calling thread and returns
        // after the handler has.
        unsafe { libc::raise(signal()) };
    }

    #[test]
    fn the_signal_is_one_that_nobody_had() {
        install_handler().unwrap();
        let number = signal();
        assert!((libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number));
        let ours = action(number).unwrap();
        assert_eq!(ours.sa_flags & libc::SA_ONSTACK, libc::SA_ONSTACK);
        assert_eq!(ours.sa_flags & libc::SA_RESTART, 0);
        assert_eq!(use_signal(number + 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(use_signal(number).is_ok());
    }

    #[test]
    fn a_kick_sets_the_flag_of_this_thread_only() {
        install_handler().unwrap();
        let mut flag = 0u8;
        {
            // SAFETY: `flag` outlives the target.
            let _target = unsafe { KickGuard::new(&raw mut flag) };
            clear();
            kick_this_thread();
            assert!(is_pending());
            // SAFETY: the handler has returned; nothing else writes `flag`.
            assert_eq!(unsafe { (&raw const flag).read_volatile() }, 1);
            clear();
            assert!(!is_pending());
        }
        kick_this_thread();
        assert_eq!(flag, 0);
    }
}
