//! Ends that come whatever the guest does, and whoever reads what is said: nobody, or not any more.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, PipeReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn in_words(error: io::Error) -> String {
    error.to_string()
}

/// `vmm` with words for arguments and a standard error of the case's own.
fn start(c: &Context, words: &[&str], paths: &[&Path], errors: impl Into<Stdio>) -> Result<Child, String> {
    let mut command = Command::new(&c.vmm);
    command.args(words).args(paths).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    command.spawn().map_err(in_words)
}

/// Waits for an end, and sees to it that there is one.
fn wait(child: &mut Child, limit: Duration) -> Result<i32, String> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(in_words)? {
            return status.code().ok_or_else(|| format!("it ended with {status}"));
        }
        if Instant::now() >= deadline {
            child.kill().map_err(in_words)?;
            child.wait().map_err(in_words)?;
            return Err(format!("it does not end within {limit:?}"));
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// As small a pipe as there is, which nobody reads.
fn unread() -> Result<(PipeReader, OwnedFd), String> {
    let (reader, writer) = io::pipe().map_err(in_words)?;
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).map_err(|error| error.to_string())?;
    Ok((reader, writer.into()))
}

/// Waits until something is in a pipe that nobody reads. (It may be full when it holds no more than a line: a
/// write that does not fit its one page waits for it to be empty.)
fn wait_until_unread(reader: &PipeReader, limit: Duration) -> Check {
    let deadline = Instant::now() + limit;
    while super::terminal::unread(reader)? == 0 {
        check(Instant::now() < deadline, || "there is nothing in the pipe".into())?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// A guest makes the monitor say more than anybody reads: it ends all the same, by its time, by a signal,
/// and by itself.
pub fn unread_messages(c: &mut Context) -> Check {
    let (nag, calls, limit) = (c.guest("nag", false)?, c.guest("calls", false)?, c.limit(20));
    for level in ["-v", "-vv"] {
        let (_reader, errors) = unread()?;
        let words = [level, "--memory", "64M", "--timeout", "1s", "--kernel"];
        let code = wait(&mut start(c, &words, &[&nag], errors)?, limit)?;
        check(code == 20, || format!("{level}, --timeout: exit code {code}"))?;
        let (reader, errors) = unread()?;
        let mut child = start(c, &[level, "--memory", "64M", "--kernel"], &[&nag], errors)?;
        // What it says first is said when it takes signals.
        let begun = wait_until_unread(&reader, limit);
        let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| error.to_string())?;
        let code = wait(&mut child, limit)?;
        begun?;
        check(code == 22, || format!("{level}, SIGTERM: exit code {code}"))?;
    }
    // Tens of thousands of calls, all shown, and counted at the end.
    let (reader, errors) = unread()?;
    let words = ["--memory", "64M", "--hypercalls", "xen,summary", "--kernel"];
    let code = wait(&mut start(c, &words, &[&calls], errors)?, limit)?;
    check(code == 0x41, || format!("a trace that nobody reads: exit code {code}"))?;
    wait_until_unread(&reader, limit)
}

/// What a guest causes to be said is limited, and what is left out is counted.
pub fn limited_messages(c: &mut Context) -> Check {
    let (nag, core, limit) = (c.guest("nag", false)?, c.work.join("core"), c.limit(20));
    let begun = Instant::now();
    let arguments = "-v --memory 64M --timeout 2500ms --dump-on panic={} --kernel {}";
    let run = c.run(arguments, &[&core, &nag], limit)?;
    run.expect_code(20)?;
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap_or(0) + 2;
    let lines = run.errors.lines().count();
    // 20 a second of each of two places, besides what is said of the run.
    check(lines <= 40 * seconds + 20, || format!("{lines} lines in {seconds} s"))?;
    for words in ["crash kernel takes over", "like it were not shown"] {
        check(run.errors.contains(words), || format!("no {words:?}:\n{}", run.errors))?;
    }
    Ok(())
}

/// Standard error that is closed, or full, changes no exit code.
pub fn lost_messages(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("calls", false)?, c.limit(60));
    let closed = || -> Result<Stdio, String> {
        let (reader, writer) = io::pipe().map_err(in_words)?;
        drop(reader);
        Ok(writer.into())
    };
    let full = || -> Result<Stdio, String> {
        Ok(File::options().write(true).open("/dev/full").map_err(in_words)?.into())
    };
    for (name, make) in [("closed", &closed as &dyn Fn() -> Result<Stdio, String>), ("full", &full)] {
        let words = ["-vv", "--memory", "64M", "--hypercalls", "xen,summary", "--kernel"];
        let code = wait(&mut start(c, &words, &[&guest], make()?)?, limit)?;
        check(code == 0x41, || format!("{name}: exit code {code}"))?;
        for (words, expected) in [
            (&["--kernel", "/no/such/kernel"][..], 6),
            (&["--log", "/no/such/place"], 8),
            (&["--frobnicate"], 2),
            (&["dump", "nobody-of-this-name", "core"], 8),
        ] {
            let code = wait(&mut start(c, words, &[], make()?)?, limit)?;
            check(code == expected, || format!("{name}, {words:?}: exit code {code}"))?;
        }
    }
    Ok(())
}

/// The largest size of a file of a process with a limit, bytes.
const LARGEST: u64 = 4 << 10;

/// `vmm` in a process whose files have a limit (`ulimit -f`).
fn start_limited(c: &Context, words: &str, guest: &Path) -> Result<Process, String> {
    let mut command = Command::new(&c.vmm);
    command.args(["--memory", "64M"]).args(words.split_whitespace()).arg("--kernel").arg(guest);
    command.env_remove("RUST_LOG");
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| {
            let size = libc::rlimit { rlim_cur: LARGEST, rlim_max: LARGEST };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const size) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    Process::start("vmm", command, Wiring::Pipes).map_err(in_words)
}

/// A limit of the size of files is an error of each file, and ends no guest.
pub fn file_size_limit(c: &mut Context) -> Check {
    limited_dump(c)?;
    dump_that_fails_at_the_end(c)?;
    let limit = c.limit(20);
    let file = c.work.join("file");
    for (guest, expected, words, name) in [
        ("calls", 0x41, "--hypercalls xen,trace=", "trace="),
        ("nag", 20, "--timeout 2s -vv --log ", "--log"),
        ("chatter", 0x41, "--console file:", "console output is lost"),
    ] {
        let guest = c.guest(guest, false)?;
        let mut vmm = start_limited(c, &format!("{words}{}", file.display()), &guest)?;
        let code = vmm.wait(limit)?;
        c.keep("vmm", &vmm);
        check(code == expected, || format!("{words}: exit code {code}"))?;
        let told = vmm.errors.text();
        let is_told = told.contains(name) && told.contains("File too large");
        check(is_told && told.lines().count() == 1, || format!("{words}: it says {told:?}"))?;
        let size = fs::metadata(&file).map_err(in_words)?.len();
        check(size == LARGEST, || format!("{words}: the file has {size} bytes"))?;
        fs::remove_file(&file).map_err(in_words)?;
    }
    Ok(())
}

fn limited_dump(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("fill", false)?, c.limit(20));
    let name = format!("small-files-{}", std::process::id());
    let mut vmm = start_limited(c, &format!("--name {name}"), &guest)?;
    vmm.expect("b", limit)?;
    for core in ["core", "core.gz"] {
        let core = c.work.join(core);
        let run = c.run(&format!("dump {name} {{}}"), &[&core], limit)?;
        run.expect_code(8)?;
        // How far it is may stand before it.
        let errors: Vec<&str> = run.errors.lines().filter(|line| line.starts_with("vmm:")).collect();
        let is_told = matches!(errors[..], [error] if error.contains("File too large"));
        check(is_told, || format!("it says {}", run.errors))?;
        check(!core.exists() && !has_partial(&c.work)?, || "a part of the dump is left".into())?;
    }
    vmm.signal(Signal::SIGTERM)?;
    let code = vmm.wait(limit)?;
    check(code == 22, || format!("a guest that was dumped: exit code {code}"))
}

/// What is not found out about a dump at the start has an exit code of its own at the end, and no part of it is left.
fn dump_that_fails_at_the_end(c: &mut Context) -> Check {
    let (guest, limit, folder) = (c.guest("fill", false)?, c.limit(20), c.work.join("folder"));
    fs::create_dir(&folder).map_err(in_words)?;
    // A plain core is as large as the memory; what a compressed one will be is not known before.
    let words = |core: &str| format!("--timeout 2s --dump-on timeout={}", folder.join(core).display());
    let mut vmm = start_limited(c, &words("core"), &guest)?;
    let code = vmm.wait(limit)?;
    c.keep("vmm", &vmm);
    let told = vmm.errors.text();
    check(
        code == 8 && told.contains("it would be 64 MiB large, and a file may be 4096 bytes (ulimit -f)"),
        || format!("a core that is too large: exit code {code}, {told:?}"),
    )?;
    for (goes, why) in [(false, "File too large"), (true, "No such file")] {
        let mut vmm = start_limited(c, &words("core.gz"), &guest)?;
        // The guest may not come to its own word within its time.
        while !vmm.errors.text().contains("may be too little for a core of 64 MiB") {
            check(!vmm.has_ended(), || format!("no warning: {}", vmm.errors.text()))?;
            std::thread::park_timeout(Duration::from_millis(10));
        }
        check(!has_partial(&folder)?, || "a part of a dump is there at the start".into())?;
        if goes {
            fs::remove_dir(&folder).map_err(in_words)?;
        }
        let code = vmm.wait(limit)?;
        c.keep("vmm", &vmm);
        let told = vmm.errors.text();
        let line = told.lines().find(|line| line.starts_with("vmm: error: --dump-on"));
        let is_told = line.is_some_and(|line| line.contains(why) && line.contains("the guest's own is 20"));
        check(code == 26 && is_told, || format!("{why}: exit code {code}, {told:?}"))?;
        check(goes || fs::read_dir(&folder).is_ok_and(|mut left| left.next().is_none()), || {
            "a part of the dump is left".into()
        })?;
    }
    Ok(())
}

/// Whether a dump that is not whole is in a folder.
fn has_partial(folder: &Path) -> Result<bool, String> {
    let mut names = fs::read_dir(folder).map_err(in_words)?.filter_map(Result::ok);
    Ok(names.any(|entry| entry.file_name().to_string_lossy().contains(".partial-")))
}

/// User and system time of a process so far, in ticks of the kernel's clock.
fn ticks(pid: u32) -> Result<u64, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(in_words)?;
    // Behind the name, which may have spaces: state is field 3, utime and stime are 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    field(14).zip(field(15)).map(|(user, system)| user + system).ok_or_else(|| format!("no times in {stat}"))
}

/// Leaves a process so many more descriptors than it has now.
fn leave_descriptors(pid: u32, more: u64) -> Check {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).map_err(in_words)?.count() as u64;
    let size = libc::rlimit { rlim_cur: open + more, rlim_max: 4096 };
    let pid = i32::try_from(pid).map_err(|error| error.to_string())?;
    // SAFETY: the limit is read, and no old one is asked for.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const size, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

/// Clients that cannot be accepted cost no time, and are served later; there is a bound for those that can.
pub fn too_many_clients(c: &mut Context) -> Check {
    let (guest, socket, limit) = (c.guest("halt", false)?, c.work.join("gdb.sock"), c.limit(20));
    let name = format!("crowded-{}", std::process::id());
    let runtime = c.work.join("run");
    fs::create_dir_all(&runtime).map_err(in_words)?;
    let mut command = Command::new(&c.vmm);
    command.args(["-v", "--memory", "64M", "--gdb-no-wait", "--name", &name, "--gdb"]);
    command.arg(format!("unix:{}", socket.display())).arg("--kernel").arg(&guest);
    command.env("XDG_RUNTIME_DIR", &runtime);
    let mut vmm = Process::start("vmm", command, Wiring::Pipes).map_err(in_words)?;
    let control = runtime.join("vmm").join(format!("{name}.sock"));
    let result = crowd(c, &vmm, &control, &socket, limit);
    vmm.signal(Signal::SIGTERM)?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    result?;
    check(code.as_ref() == Ok(&22), || format!("the machine ends with {code:?}"))
}

fn crowd(c: &mut Context, vmm: &Process, control: &PathBuf, socket: &PathBuf, limit: Duration) -> Check {
    let deadline = Instant::now() + limit;
    while !vmm.errors.text().contains("waiting for gdb") || !control.exists() {
        check(Instant::now() < deadline, || "it does not start".into())?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    let dump = |c: &mut Context| c.run("dump {} {}", &[control, &c.work.join("core")], limit);
    // Clients that say nothing.
    let idle =
        (0..8).map(|_| UnixStream::connect(control)).collect::<Result<Vec<_>, _>>().map_err(in_words)?;
    dump(c)?.expect_one_line("others are served already")?;
    drop(idle);
    while dump(c)?.code != 0 {
        check(Instant::now() < deadline, || "there is no room for a client when the others are gone".into())?;
    }
    // No descriptors are left.
    leave_descriptors(vmm.id(), 0)?;
    let waiting = UnixStream::connect(control).map_err(in_words)?;
    let mut debugger = UnixStream::connect(socket).map_err(in_words)?;
    let (before, begun) = (ticks(vmm.id())?, Instant::now());
    while begun.elapsed() < Duration::from_millis(1500) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let used = ticks(vmm.id())? - before;
    // SAFETY: it has no preconditions.
    let a_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    // Two loops that went round would use all of it, or what there is of one processor.
    check(used < a_second / 2, || format!("{used} of {a_second} ticks a second while clients wait"))?;
    leave_descriptors(vmm.id(), 16)?;
    debugger.set_read_timeout(Some(limit)).map_err(in_words)?;
    debugger.write_all(b"+$?#3f").map_err(in_words)?;
    io::Read::read_exact(&mut debugger, &mut [0]).map_err(|error| format!("gdb is not served: {error}"))?;
    drop(waiting);
    dump(c)?.expect_code(0)
}
