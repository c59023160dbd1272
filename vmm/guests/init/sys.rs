//! Calls of the kernel, and memory from it: what a process has without a library.

use crate::{call, number};
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

/// An error's number (errno(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

pub const ENOENT: Errno = Errno(2);
pub const ESRCH: Errno = Errno(3);
pub const EINTR: Errno = Errno(4);
pub const ENOEXEC: Errno = Errno(8);
pub const EAGAIN: Errno = Errno(11);
pub const EACCES: Errno = Errno(13);
pub const EEXIST: Errno = Errno(17);
pub const EBUSY: Errno = Errno(16);
pub const EKEYREJECTED: Errno = Errno(129);
pub const ENODEV: Errno = Errno(19);
pub const ENOTDIR: Errno = Errno(20);
pub const EPIPE: Errno = Errno(32);

pub type Result<T> = core::result::Result<T, Errno>;

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub i32);

impl Fd {
    fn argument(self) -> usize {
        self.0 as isize as usize
    }
}

/// Paths are relative to the current folder (openat(2)).
const HERE: Fd = Fd(-100);

fn checked(result: isize) -> Result<usize> {
    match result {
        -4095..0 => Err(Errno(-result as i32)),
        _ => Ok(result as usize),
    }
}

fn raw(number: usize, arguments: &[usize]) -> Result<usize> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: every caller here gives what its call wants: descriptors, numbers, and pointers to what lives during it.
    checked(unsafe { call(number, all) })
}

/// A string with its end, for the kernel.
pub fn text(bytes: &[u8]) -> Vec<u8> {
    let mut text = bytes.to_vec();
    text.push(0);
    text
}

fn pointer(text: &[u8]) -> usize {
    text.as_ptr() as usize
}

pub const READ_ONLY: usize = 0;
pub const WRITE_ONLY: usize = 1;
pub const READ_WRITE: usize = 2;
pub const NO_TERMINAL: usize = 0o400;
pub const NO_WAIT: usize = 0o4000;
pub const CLOSE_ON_EXEC: usize = 0o2000000;

pub fn open(path: &[u8], flags: usize) -> Result<Fd> {
    let path = text(path);
    raw(number::OPENAT, &[HERE.argument(), pointer(&path), flags, 0]).map(|fd| Fd(fd as i32))
}

pub fn close(fd: Fd) {
    // Nothing is kept by one that cannot be closed.
    raw(number::CLOSE, &[fd.argument()]).ok();
}

pub fn read(fd: Fd, bytes: &mut [u8]) -> Result<usize> {
    raw(number::READ, &[fd.argument(), bytes.as_mut_ptr() as usize, bytes.len()])
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    raw(number::WRITE, &[fd.argument(), pointer(bytes), bytes.len()])
}

/// A whole file.
pub fn contents(path: &[u8]) -> Result<Vec<u8>> {
    let fd = open(path, READ_ONLY | CLOSE_ON_EXEC)?;
    let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
    let result = loop {
        match read(fd, &mut bytes) {
            Ok(0) => break Ok(all),
            Ok(count) => all.extend_from_slice(&bytes[..count]),
            Err(EINTR) => {}
            Err(error) => break Err(error),
        }
    };
    close(fd);
    result
}

/// Makes a folder, and those that it is in; it may be there.
pub fn make_folders(path: &[u8]) -> Result<()> {
    let ends = (1..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]);
    let mut last = Ok(());
    for end in ends {
        let part = text(&path[..end]);
        last = match raw(number::MKDIRAT, &[HERE.argument(), pointer(&part), 0o755]) {
            Ok(_) | Err(EEXIST) => Ok(()),
            Err(error) => Err(error),
        };
    }
    last
}

/// Whether there is a file of this name.
pub fn is_there(path: &[u8]) -> bool {
    raw(number::FACCESSAT, &[HERE.argument(), pointer(&text(path)), 0]).is_ok()
}

/// Makes a file of a device of characters; it may be there.
pub fn make_device(path: &[u8], major: usize, minor: usize) -> Result<()> {
    const CHARACTERS: usize = 0o20_000;
    let path = text(path);
    let device = major << 8 | minor;
    match raw(number::MKNODAT, &[HERE.argument(), pointer(&path), CHARACTERS | 0o600, device]) {
        Ok(_) | Err(EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

pub fn link(target: &[u8], path: &[u8]) -> Result<()> {
    let (target, path) = (text(target), text(path));
    raw(number::SYMLINKAT, &[pointer(&target), HERE.argument(), pointer(&path)]).map(|_| ())
}

/// Names in a folder.
pub fn names(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let fd = open(path, READ_ONLY | CLOSE_ON_EXEC)?;
    let (mut names, mut bytes) = (Vec::new(), [0; 4096]);
    let result = loop {
        let count = raw(number::GETDENTS64, &[fd.argument(), bytes.as_mut_ptr() as usize, bytes.len()]);
        let mut rest = match count {
            Ok(0) => break Ok(names),
            Ok(count) => &bytes[..count],
            Err(error) => break Err(error),
        };
        // Inode (8), offset (8), length (2), type (1), and the name with its end (getdents64(2)).
        while rest.len() > 19 {
            let length = usize::from(u16::from_le_bytes([rest[16], rest[17]])).clamp(19, rest.len());
            let name = rest[19..length].split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            rest = &rest[length..];
        }
    };
    close(fd);
    result
}

pub fn change_folder(path: &[u8]) -> Result<()> {
    let path = text(path);
    raw(number::CHDIR, &[pointer(&path)]).map(|_| ())
}

pub fn change_root(path: &[u8]) -> Result<()> {
    let path = text(path);
    raw(number::CHROOT, &[pointer(&path)]).map(|_| ())
}

pub fn mount(source: &[u8], target: &[u8], kind: &[u8], flags: usize, data: &[u8]) -> Result<()> {
    let (source, target, kind, data) = (text(source), text(target), text(kind), text(data));
    raw(number::MOUNT, &[pointer(&source), pointer(&target), pointer(&kind), flags, pointer(&data)]).map(|_| ())
}

/// Loads a module from its file.
pub fn load_module(path: &[u8], options: &[u8]) -> Result<()> {
    let fd = open(path, READ_ONLY | CLOSE_ON_EXEC)?;
    let options = text(options);
    let result = raw(number::FINIT_MODULE, &[fd.argument(), pointer(&options), 0]);
    close(fd);
    match result {
        Ok(_) | Err(EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

pub fn set_host_name(name: &[u8]) -> Result<()> {
    raw(number::SETHOSTNAME, &[pointer(name), name.len()]).map(|_| ())
}

/// The kernel's release (uname(2): six fields of 65 bytes, of which it is the third).
pub fn release() -> Vec<u8> {
    const FIELD: usize = 65;
    let mut fields = [0u8; 6 * FIELD];
    if raw(number::UNAME, &[fields.as_mut_ptr() as usize]).is_err() {
        return Vec::new();
    }
    let release = &fields[2 * FIELD..3 * FIELD];
    release.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

pub fn sync() {
    // It cannot fail.
    raw(number::SYNC, &[]).ok();
}

/// Switches the machine off (reboot(2)).
pub fn power_off() -> ! {
    const MAGIC: [usize; 2] = [0xfee1_dead, 672_274_793];
    const OFF: usize = 0x4321_fedc;
    sync();
    loop {
        // Where it does not work there is nobody to be told.
        raw(number::REBOOT, &[MAGIC[0], MAGIC[1], OFF]).ok();
        sleep(1000);
    }
}

pub fn sleep(milliseconds: usize) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    // One that is cut short is a short one.
    raw(number::NANOSLEEP, &[time.as_ptr() as usize, 0]).ok();
}

pub fn ioctl(fd: Fd, request: usize, argument: usize) -> Result<usize> {
    raw(number::IOCTL, &[fd.argument(), request, argument])
}

/// Waits until a terminal has sent what was written to it (tcdrain(3)).
pub fn drain(terminal: Fd) -> Result<()> {
    const TCSBRK: usize = 0x5409;
    ioctl(terminal, TCSBRK, 1).map(|_| ())
}

/// The reading and the writing end of a new pipe, closed in programs that are executed.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    raw(number::PIPE2, &[ends.as_mut_ptr() as usize, CLOSE_ON_EXEC])?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

/// The error that a process writes to a pipe which cannot execute a program; `None` where that has begun, which closes
/// the pipe.
pub fn error_of_other(pipe: Fd) -> Option<Errno> {
    let mut number = [0; 4];
    loop {
        match read(pipe, &mut number) {
            Ok(4) => return Some(Errno(i32::from_le_bytes(number))),
            Err(EINTR) => {}
            _ => return None,
        }
    }
}

/// How many bytes there are to be read from a pipe (pipe(7)).
pub fn waiting(pipe: Fd) -> usize {
    const FIONREAD: usize = 0x541b;
    let mut count = 0i32;
    // It does not fail for a pipe.
    ioctl(pipe, FIONREAD, &raw mut count as usize).ok();
    count as usize
}

/// Has reads and writes not wait (ioctl_fionbio(2const)).
pub fn never_wait(fd: Fd) {
    const FIONBIO: usize = 0x5421;
    let yes = 1i32;
    ioctl(fd, FIONBIO, &raw const yes as usize).ok();
}

pub fn duplicate(fd: Fd, to: i32) -> Result<()> {
    match fd.0 == to {
        // It would be closed when a program is executed.
        true => Err(Errno(22)),
        false => raw(number::DUP3, &[fd.argument(), to as usize, 0]).map(|_| ()),
    }
}

/// 0 in the child.
pub fn fork() -> Result<usize> {
    const SIGCHLD: usize = 17;
    raw(number::CLONE, &[SIGCHLD, 0, 0, 0, 0])
}

pub fn new_session() {
    // A process that was just forked leads none.
    raw(number::SETSID, &[]).ok();
}

/// Becomes another program, or says why not.
pub fn execute(path: &[u8], words: &[Vec<u8>], environment: &[Vec<u8>]) -> Errno {
    let list = |items: &[Vec<u8>]| items.iter().map(|item| text(item)).collect::<Vec<_>>();
    let pointers =
        |items: &[Vec<u8>]| items.iter().map(|item| pointer(item)).chain([0]).collect::<Vec<usize>>();
    let (path, words, environment) = (text(path), list(words), list(environment));
    let (words, environment) = (pointers(&words), pointers(&environment));
    let result = raw(
        number::EXECVE,
        &[pointer(&path), words.as_ptr() as usize, environment.as_ptr() as usize],
    );
    result.err().unwrap_or(ENOENT)
}

pub fn exit(code: u8) -> ! {
    loop {
        // It cannot fail.
        raw(number::EXIT_GROUP, &[code.into()]).ok();
    }
}

/// How a process has ended (wait(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exit(u8),
    Signal(u8),
}

/// The next of the children that have ended, if there is one.
pub fn wait() -> Option<(usize, Ended)> {
    const NO_HANG: usize = 1;
    let mut status = 0i32;
    let all = usize::MAX;
    match raw(number::WAIT4, &[all, &raw mut status as usize, NO_HANG, 0]) {
        Ok(0) | Err(_) => None,
        Ok(pid) => {
            let [low, high, ..] = status.to_le_bytes();
            let ended = if low & 0x7f == 0 { Ended::Exit(high) } else { Ended::Signal(low & 0x7f) };
            Some((pid, ended))
        }
    }
}

/// Sends a signal to a process and its group. A child that was just forked leads no group yet: it gets the signal itself,
/// and has it when it unblocks signals.
pub fn kill_group(pid: usize, signal: u8) {
    let sent = raw(number::KILL, &[pid.wrapping_neg(), signal.into()]);
    if sent == Err(ESRCH) {
        // One that has ended meanwhile is none.
        raw(number::KILL, &[pid, signal.into()]).ok();
    }
}

/// Blocks or unblocks all signals of this process (rt_sigprocmask(2)).
pub fn block_signals(blocked: bool) {
    const SET: usize = 2;
    let set = if blocked { u64::MAX } else { 0 };
    raw(number::RT_SIGPROCMASK, &[SET, &raw const set as usize, 0, 8]).ok();
}

/// A descriptor that is readable when a child has ended.
pub fn children() -> Result<Fd> {
    let set: u64 = 1 << (17 - 1);
    let none = usize::MAX;
    raw(number::SIGNALFD4, &[none, &raw const set as usize, 8, CLOSE_ON_EXEC | NO_WAIT]).map(|fd| Fd(fd as i32))
}

/// What is waited for (poll(2)).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Poll {
    pub fd: i32,
    pub events: i16,
    pub came: i16,
}

pub const IN: i16 = 1;
pub const OUT: i16 = 4;

/// Waits until one has come, or so many milliseconds.
pub fn poll(polls: &mut [Poll], limit: Option<usize>) {
    // The kernel writes what is left of it there (ppoll(2)).
    let mut time = limit.map(|limit| [limit / 1000, limit % 1000 * 1_000_000]);
    let time = time.as_mut().map_or(0, |time| time.as_mut_ptr() as usize);
    // Signals are blocked, and there is room.
    raw(number::PPOLL, &[polls.as_mut_ptr() as usize, polls.len(), time, 0, 0]).ok();
}

/// A socket for what is asked of interfaces (netdevice(7)).
fn interfaces() -> Result<Fd> {
    const AF_INET: usize = 2;
    const DATAGRAM: usize = 2;
    raw(number::SOCKET, &[AF_INET, DATAGRAM | CLOSE_ON_EXEC, 0]).map(|fd| Fd(fd as i32))
}

/// Asks something of an interface: `struct ifreq`, its name and what `value` is.
fn ask_interface(socket: Fd, name: &[u8], what: usize, value: &[u8]) -> Result<usize> {
    const NAME: usize = 16;
    let mut request = [0u8; 40];
    let length = name.len().min(NAME - 1);
    request[..length].copy_from_slice(&name[..length]);
    request[NAME..NAME + value.len()].copy_from_slice(value);
    ioctl(socket, what, request.as_ptr() as usize)
}

const SIOCSIFFLAGS: usize = 0x8914;
const IFF_UP: u8 = 1;

/// Has the loopback interface up.
pub fn raise_loopback() -> Result<()> {
    let socket = interfaces()?;
    let result = ask_interface(socket, b"lo", SIOCSIFFLAGS, &[IFF_UP]);
    close(socket);
    result.map(|_| ())
}

/// `struct sockaddr_in` without a port.
fn place(address: [u8; 4]) -> [u8; 16] {
    const AF_INET: u8 = 2;
    let mut place = [0; 16];
    place[0] = AF_INET;
    place[4..8].copy_from_slice(&address);
    place
}

/// Has an interface up, with an address, its network's mask, and a gateway to everywhere.
pub fn raise_interface(name: &[u8], address: [u8; 4], mask: [u8; 4], gateway: [u8; 4]) -> Result<()> {
    const SIOCADDRT: usize = 0x890b;
    const SIOCSIFADDR: usize = 0x8916;
    const SIOCSIFNETMASK: usize = 0x891c;
    const RTF_UP_AND_GATEWAY: u8 = 3;
    let socket = interfaces()?;
    // `struct rtentry` (linux/route.h): to anywhere, by the gateway.
    let mut route = [0u8; 120];
    route[8..24].copy_from_slice(&place([0; 4]));
    route[24..40].copy_from_slice(&place(gateway));
    route[40..56].copy_from_slice(&place([0; 4]));
    route[56] = RTF_UP_AND_GATEWAY;
    let result = ask_interface(socket, name, SIOCSIFADDR, &place(address))
        .and_then(|_| ask_interface(socket, name, SIOCSIFNETMASK, &place(mask)))
        .and_then(|_| ask_interface(socket, name, SIOCSIFFLAGS, &[IFF_UP]))
        .and_then(|_| ioctl(socket, SIOCADDRT, route.as_ptr() as usize));
    close(socket);
    result.map(|_| ())
}

/// Makes a file anew, whatever there was.
pub fn make_file(path: &[u8], content: &[u8]) -> Result<()> {
    const CREATE_NEW: usize = 0o300;
    let name = text(path);
    match raw(number::UNLINKAT, &[HERE.argument(), pointer(&name), 0]) {
        Ok(_) | Err(ENOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = WRITE_ONLY | CREATE_NEW | CLOSE_ON_EXEC;
    let fd = raw(number::OPENAT, &[HERE.argument(), pointer(&name), flags, 0o644]).map(|fd| Fd(fd as i32))?;
    let result = write(fd, content);
    close(fd);
    result.map(|_| ())
}

/// Memory: sizes are powers of two, and what is freed is given again for the same size.
struct Heap(UnsafeCell<State>);

struct State {
    /// For each power of two, the first free piece, which has the address of the next.
    free: [*mut *mut u8; 64],
    /// What has not been given yet.
    next: usize,
    end: usize,
}

// SAFETY: the process has one thread.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State { free: [null_mut(); 64], next: 0, end: 0 }));

/// What is asked of the kernel at once, bytes.
const CHUNK: usize = 1 << 20;

// SAFETY: pieces are as large as they are aligned, and no two that are given meet: each is cut from fresh memory or was
// given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and nothing that is called here allocates.
        let state = unsafe { &mut *self.0.get() };
        let size = layout.size().max(layout.align()).max(16).next_power_of_two();
        let class = size.trailing_zeros() as usize;
        let first = state.free[class];
        if !first.is_null() {
            // SAFETY: a free piece holds the address of the next one.
            state.free[class] = unsafe { *first }.cast();
            return first.cast();
        }
        let start = state.next.next_multiple_of(size);
        if state.next == 0 || start + size > state.end {
            const READ_AND_WRITE: usize = 3;
            const PRIVATE_ANONYMOUS: usize = 0x22;
            let length = (2 * size).max(CHUNK);
            let none = usize::MAX;
            let Ok(chunk) = raw(number::MMAP, &[0, length, READ_AND_WRITE, PRIVATE_ANONYMOUS, none, 0]) else {
                return null_mut();
            };
            let start = chunk.next_multiple_of(size);
            (state.next, state.end) = (start + size, chunk + length);
            return start as *mut u8;
        }
        state.next = start + size;
        start as *mut u8
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let state = unsafe { &mut *self.0.get() };
        let size = layout.size().max(layout.align()).max(16).next_power_of_two();
        let class = size.trailing_zeros() as usize;
        let piece: *mut *mut u8 = piece.cast();
        // SAFETY: it is free, and at least 16 bytes.
        unsafe { *piece = state.free[class].cast() };
        state.free[class] = piece;
    }
}
