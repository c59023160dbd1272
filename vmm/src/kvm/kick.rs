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
//! no kick (`attention.rs`).
//!
//! Source: KVM API, "5. The kvm_run structure", `immediate_exit`.

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    // A constant initialiser and no destructor: the handler may touch it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
    static KICKED: Cell<bool> = const { Cell::new(false) };
}

/// The signal that kicks a vCPU thread.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn handle_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    KICKED.set(true);
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Target` keeps the pointer non-null only while the vCPU, whose mapping it
        // points into, is alive on this thread. The kernel reads the byte at any time; a
        // volatile store is one byte.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler for the whole process. Calling it again changes nothing.
///
/// # Errors
/// What `sigaction` says.
pub fn install_handler() -> std::io::Result<()> {
    register_signal_handler(signal(), handle_kick)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
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

/// While it lives, kicks of this thread reach the vCPU that it was made for.
#[derive(Debug)]
pub struct Target<'a>(PhantomData<&'a mut u8>);

impl<'a> Target<'a> {
    /// Makes `immediate_exit` the byte that kicks of this thread set.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid for writes as long as the target lives.
    pub unsafe fn new(immediate_exit: *mut u8) -> Target<'a> {
        IMMEDIATE_EXIT.set(immediate_exit);
        Target(PhantomData)
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
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
    fn a_kick_sets_the_flag_of_this_thread_only() {
        install_handler().unwrap();
        let mut flag = 0u8;
        {
            // SAFETY: `flag` outlives the target.
            let _target = unsafe { Target::new(&raw mut flag) };
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
