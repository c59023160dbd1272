//! The cell: what a monitor's threads may not do, tried, and what a monitor may not open.

use crate::cells::{CODE, FORBIDDEN, PATHS};
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use arch::Isa;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

fn words(error: &impl std::fmt::Display) -> String {
    error.to_string()
}

/// A call that a thread makes in a process of its own: the end's code, and what was said.
fn tries(kind: &str, call: &str) -> Result<(Option<i32>, String), String> {
    let program = std::env::current_exe().map_err(|error| words(&error))?;
    let output =
        Command::new(program).args([FORBIDDEN, kind, call]).output().map_err(|error| words(&error))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Each kind of thread asks for what it may not; a few for what they may.
pub fn forbids(_: &mut Context) -> Check {
    // Who serves a guest, or only writes or reads what is open.
    let narrow =
        ["vcpu", "lines", "input", "output", "virtio block", "virtio entropy", "virtio console", "timers"];
    for kind in vmm::cell::kinds() {
        let mut calls = vec!["execve", "ptrace", "ioctl-tiocsti", "prctl"];
        if narrow.contains(&kind) {
            calls.extend(["openat", "socket", "clone", "ioctl-create-vm"]);
        }
        if kind == "virtio fs" {
            calls.extend(["socket", "clone", "ioctl-create-vm"]);
        }
        for call in calls {
            let (code, said) = tries(kind, call)?;
            let name = call.split('-').next().unwrap_or(call);
            check(code == Some(i32::from(CODE)), || {
                format!("{kind}: {call}: it ends with {code:?}: {said}")
            })?;
            let told =
                format!("vmm: error: the cell of vmm's thread '{kind}' forbids the system call {name} (");
            check(said.starts_with(&told), || format!("{kind}: {call}: {said}"))?;
            let json = said.lines().find(|line| line.starts_with('{')).unwrap_or_default();
            let json: serde_json::Value =
                serde_json::from_str(json).map_err(|error| format!("{error}: {said}"))?;
            check(json["verdict"] == "cell" && json["code"] == CODE, || format!("the JSON says {json}"))?;
        }
    }
    for (kind, call) in
        [("gdb", "openat"), ("control", "socket"), ("attempt", "ioctl-create-vm"), ("virtio fs", "openat")]
    {
        let (code, said) = tries(kind, call)?;
        check(code == Some(0), || format!("{kind} may {call}, and ends with {code:?}: {said}"))?;
    }
    Ok(())
}

/// Threads open what they may and nothing else.
pub fn bounds_paths(c: &mut Context) -> Check {
    let folders = ["own", "shared", "other"].map(|name| c.work.join(name));
    for folder in &folders {
        fs::create_dir_all(folder).map_err(|error| words(&error))?;
        fs::write(folder.join("file"), "text").map_err(|error| words(&error))?;
    }
    let program = std::env::current_exe().map_err(|error| words(&error))?;
    let output = Command::new(program).arg(PATHS).args(&folders).output().map_err(|error| words(&error))?;
    check(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What the text of a thread's `status` in `/proc` has behind a word.
fn behind(status: &str, word: &str) -> Result<String, String> {
    let line = status.lines().find_map(|line| line.strip_prefix(word));
    Ok(line.ok_or_else(|| format!("there is no {word} in {status}"))?.trim().to_string())
}

/// All threads of a monitor are confined, its guest's memory stays out of core files, and others write for it where it may
/// not.
pub fn of_a_monitor(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("spin", false)?, c.limit(10));
    let elsewhere = std::env::temp_dir().join(format!("vmm-elsewhere-{}", std::process::id()));
    let dumps = c.work.join("dumps");
    for folder in [&elsewhere, &dumps] {
        fs::create_dir_all(folder).map_err(|error| words(&error))?;
    }
    let name = "in-a-cell";
    let arguments = format!(
        "-v --kernel {{}} --memory 64M --cpus 2 --gdb :0 --gdb-no-wait --name {name} --dump-dir {{}}"
    );
    let mut vmm = c.start(Wiring::Pipes, &arguments, &[&guest, &dumps])?;
    let begin = Instant::now();
    while c.run(&format!("release {name}"), &[], limit)?.expect_code(0).is_err() {
        check(begin.elapsed() < limit, || "the guest has no name".into())?;
    }
    let looked = look(c, &vmm, name, &elsewhere);
    vmm.signal(Signal::SIGTERM)?;
    vmm.wait(limit)?;
    c.keep("vmm", &vmm);
    fs::remove_dir_all(elsewhere).map_err(|error| words(&error))?;
    looked
}

fn look(c: &mut Context, vmm: &Process, name: &str, elsewhere: &Path) -> Check {
    let limit = c.limit(20);
    let process = PathBuf::from(format!("/proc/{}", vmm.id()));
    let mut kinds = Vec::new();
    for task in fs::read_dir(process.join("task")).map_err(|error| words(&error))? {
        let task = task.map_err(|error| words(&error))?.path();
        // A thread that served the client of before may be over by now.
        let status = match fs::read_to_string(task.join("status")) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            status => status.map_err(|error| words(&error))?,
        };
        let thread = behind(&status, "Name:")?;
        for (word, wanted) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
            let found = behind(&status, word)?;
            check(found == wanted, || format!("{thread}: {word} {found}"))?;
        }
        kinds.push(thread);
    }
    for thread in ["vmm", "lines", "nursery", "vcpu0", "vcpu1", "gdb"] {
        check(kinds.iter().any(|its| its == thread), || format!("there is no {thread} among {kinds:?}"))?;
    }
    check(holds_guest_back(&process)?, || "guest memory is in core files".into())?;
    // Where the monitor may not write, whoever asks does.
    let core = elsewhere.join("core.gz");
    c.run(&format!("dump {name} {{}}"), &[&core], limit)?.expect_code(0)?;
    c.run("core {} info", &[&core], limit)?.expect_output("memory: 64 MiB")?;
    c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_code(0)?;
    let run = c.run(&format!("gdb {name} :0 --dump-dir {{}}"), &[elsewhere], limit)?;
    run.expect_one_line("start it with that --dump-dir")?;
    // So with a socket's place.
    let socket = elsewhere.join("gdb");
    c.run(&format!("gdb {name} unix:{{}}"), &[&socket], limit)?.expect_code(0)?;
    check(std::os::unix::net::UnixStream::connect(&socket).is_ok(), || "nobody serves the socket".into())?;
    c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_code(0)
}

/// Whether the mapping that is the guest's memory is left out of core files (proc_pid_smaps(5), `dd`).
fn holds_guest_back(process: &Path) -> Result<bool, String> {
    let text = fs::read_to_string(process.join("smaps")).map_err(|error| words(&error))?;
    let mut size = 0;
    for line in text.lines() {
        if let Some(kilobytes) = line.strip_prefix("Size:") {
            size = kilobytes.trim().trim_end_matches(" kB").parse().unwrap_or(0u64);
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else { continue };
        if size == 64 << 10 {
            return Ok(flags.split_whitespace().any(|flag| flag == "dd"));
        }
    }
    Err("there is no mapping of the guest's size".into())
}

/// A program on a host that takes no filters: as with the filter of a container.
fn refusing_filters(program: &Path) -> Result<Command, String> {
    let rules = [(libc::SYS_seccomp, Vec::new())].into_iter().collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let target = std::env::consts::ARCH.try_into().map_err(|error: BackendError| words(&error))?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, target).map_err(|error| words(&error))?;
    let filter: BpfProgram = filter.try_into().map_err(|error: BackendError| words(&error))?;
    let mut command = Command::new(program);
    let apply = move || seccompiler::apply_filter(&filter).map_err(|_| io::ErrorKind::Unsupported.into());
    // SAFETY: it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(apply) };
    Ok(command)
}

/// A host that has no filters runs guests all the same, unless that is not wanted.
pub fn is_refused(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("exit", false)?, c.limit(10));
    for (sandbox, code) in [("on", 33), ("off", 33), ("require", 4)] {
        let mut command = refusing_filters(&c.vmm)?;
        command.args(["-v", "--sandbox", sandbox, "--kernel"]).arg(&guest);
        let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| words(&error))?;
        let ended = process.wait(limit)?;
        let said = process.errors.text();
        check(ended == code, || format!("--sandbox {sandbox}: it ends with {ended}: {said}"))?;
        let tells = said.contains("filters of system calls");
        check(tells == (sandbox != "off"), || format!("--sandbox {sandbox}: {said}"))?;
    }
    c.run("--sandbox require --kernel {}", &[&guest], limit)?.expect_code(33)
}

/// Which of a stopped thread's registers are read or set (`ptrace(2)`, `PTRACE_GETREGSET`).
fn register_set(is_set: bool, pid: Pid, kind: libc::c_int, bytes: &mut [u8]) -> io::Result<usize> {
    let mut place = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let request = if is_set { libc::PTRACE_SETREGSET } else { libc::PTRACE_GETREGSET };
    // SAFETY: the kernel reads and writes `place`, and what it has the place and the length of.
    let result = unsafe { libc::ptrace(request, pid.as_raw(), kind, &raw mut place) };
    if result == 0 { Ok(place.iov_len) } else { Err(io::Error::last_os_error()) }
}

/// Sets the number of the system call that a thread is about to make.
fn set_call(isa: Isa, pid: Pid, call: libc::c_long) -> io::Result<()> {
    /// `NT_ARM_SYSTEM_CALL` (Linux, `include/uapi/linux/elf.h`).
    const ARM_SYSTEM_CALL: libc::c_int = 0x404;
    match isa {
        // `orig_rax` of `struct user_regs_struct` (`arch/x86/include/asm/user_64.h`).
        Isa::X86_64 => {
            let mut bytes = [0; 512];
            let length = register_set(false, pid, libc::NT_PRSTATUS, &mut bytes)?;
            bytes[15 * 8..16 * 8].copy_from_slice(&call.to_le_bytes());
            register_set(true, pid, libc::NT_PRSTATUS, &mut bytes[..length])?;
        }
        Isa::Aarch64 => {
            let call = i32::try_from(call).map_err(io::Error::other)?;
            register_set(true, pid, ARM_SYSTEM_CALL, &mut call.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Has a process's first thread make another call instead of its next one: what somebody does who has taken it over.
fn make_it_call(isa: Isa, process: u32, call: libc::c_long) -> io::Result<()> {
    let pid = Pid::from_raw(i32::try_from(process).map_err(io::Error::other)?);
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    // On to where it makes one; filters are asked behind that.
    ptrace::syscall(pid, None)?;
    waitpid(pid, None)?;
    set_call(isa, pid, call)?;
    Ok(ptrace::detach(pid, None)?)
}

/// A monitor that does what it may not has a code of its own, and says what it was: alone, and with a command.
pub fn is_left(c: &mut Context) -> Check {
    let (guest, root, limit) = (c.guest("spin", false)?, c.work.clone(), c.limit(10));
    let run = "run --kernel {} --root {} --memory 64M --name left -- true";
    let alone = "--kernel {} --initrd {} --memory 64M --name left";
    for (line, other, code) in [(alone, &guest, 72), (run, &root, 117)] {
        let mut vmm = c.start(Wiring::Pipes, line, &[&guest, other])?;
        let begin = Instant::now();
        while c.run("monitor left info", &[], limit)?.expect_code(0).is_err() && begin.elapsed() < limit {}
        let made = make_it_call(c.isa, vmm.id(), libc::SYS_ptrace);
        let ended = vmm.wait(limit);
        c.keep("vmm", &vmm);
        made.map_err(|error| format!("cannot have it make a call: {error}"))?;
        let said = vmm.errors.text();
        check(ended? == code, || format!("another code: {said}"))?;
        let told = "the cell of vmm's thread 'main' forbids the system call ptrace (";
        let last = said.lines().last().unwrap_or_default();
        check(last.contains(told), || format!("the last line is '{last}'"))?;
    }
    Ok(())
}
