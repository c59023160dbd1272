//! The first process of a job's guest on aarch64: how it begins, and how it calls the kernel.
#![no_std]
#![no_main]

extern crate alloc;

#[path = "common.rs"]
mod common;
#[path = "session.rs"]
mod session;
#[path = "setup.rs"]
mod setup;
#[path = "sys.rs"]
mod sys;

use core::arch::{asm, global_asm};

// The stack pointer is at the argument count, and aligned to 16 (AAPCS64, 6.2.2).
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "bl {main}",
    "brk 1",
    main = sym common::main,
);

/// A system call.
///
/// # Safety
/// As the call has it.
pub unsafe fn call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the convention of syscall(2); the rest is up to the caller.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
             in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Numbers (include/uapi/asm-generic/unistd.h).
pub mod number {
    pub const DUP3: usize = 24;
    pub const IOCTL: usize = 29;
    pub const MKNODAT: usize = 33;
    pub const FACCESSAT: usize = 48;
    pub const MKDIRAT: usize = 34;
    pub const UNLINKAT: usize = 35;
    pub const SYMLINKAT: usize = 36;
    pub const UMOUNT2: usize = 39;
    pub const MOUNT: usize = 40;
    pub const CHDIR: usize = 49;
    pub const CHROOT: usize = 51;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const PIPE2: usize = 59;
    pub const GETDENTS64: usize = 61;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const SYNC: usize = 81;
    pub const EXIT_GROUP: usize = 94;
    pub const NANOSLEEP: usize = 101;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const REBOOT: usize = 142;
    pub const SETSID: usize = 157;
    pub const UNAME: usize = 160;
    pub const SETHOSTNAME: usize = 161;
    pub const SOCKET: usize = 198;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const MMAP: usize = 222;
    pub const WAIT4: usize = 260;
    pub const FINIT_MODULE: usize = 273;
}
