//! The terminal and signals.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub fn signals(c: &mut Context) -> Check {
    let limit = c.limit(10);
    for guest in ["spin", "halt", "echo"] {
        let path = c.guest(guest, false)?;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            let mut vmm = c.start(Wiring::Pipes, "-v --cpus 2 --kernel {}", &[&path])?;
            wait_for_start(&vmm, limit)?;
            vmm.signal(signal)?;
            let code = vmm.wait(limit);
            c.keep("vmm", &vmm);
            check(code? == 22, || format!("{guest}: {signal} has another exit code"))?;
        }
    }
    // As nohup(1) starts it: the signal does not come.
    let echo = c.guest("echo", false)?;
    set(Signal::SIGHUP, SigHandler::SigIgn)?;
    let started = c.start(Wiring::Pipes, "--kernel {}", &[&echo]);
    set(Signal::SIGHUP, SigHandler::SigDfl)?;
    let mut vmm = started?;
    let talked = (|| -> Check {
        vmm.expect("ready", limit)?;
        vmm.signal(Signal::SIGHUP)?;
        vmm.send("abc")?;
        vmm.expect("abc", limit)
    })();
    vmm.signal(Signal::SIGTERM)?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 22, || "SIGTERM has another exit code where SIGHUP is ignored".into())
}

/// What this process, and whoever it starts from now on, does at a signal.
fn set(signal: Signal, handler: SigHandler) -> Check {
    // SAFETY: ignored, or as by default, it runs no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }.map(drop).map_err(|error| error.to_string())
}

/// Waits until the monitor has said what it boots, which it does with `-v`.
fn wait_for_start(vmm: &Process, limit: Duration) -> Check {
    let deadline = Instant::now() + limit;
    while !vmm.errors.text().contains("command line") && !vmm.output.text().contains("command line") {
        check(Instant::now() < deadline, || "it does not start".into())?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether the terminal of a process is as a shell leaves it.
fn is_cooked(vmm: &Process) -> Result<bool, String> {
    let terminal = vmm.terminal().ok_or("no terminal")?;
    let settings = tcgetattr(terminal).map_err(|error| error.to_string())?;
    Ok(settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
}

pub fn keys(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("echo", false)?, c.limit(10));
    let mut vmm = c.start(Wiring::Terminal, "--kernel {}", &[&guest])?;
    let mut talk = || -> Check {
        vmm.expect("ready", limit)?;
        check(!is_cooked(&vmm)?, || "the terminal is not raw".into())?;
        vmm.send("abc")?;
        vmm.expect("abc", limit)?;
        vmm.send("\x01h")?;
        vmm.expect("Ctrl-A x", limit)?;
        // Ctrl-A twice sends one; Ctrl-C, Ctrl-Z and Ctrl-D are the guest's.
        vmm.send("\x01\x01\x03\x1a\x04.")?;
        vmm.expect("\x01\x03\x1a\x04.", limit)?;
        vmm.send("\x01x")
    };
    let talked = talk();
    let code = if talked.is_ok() { vmm.wait(limit) } else { Ok(0) };
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 22, || "Ctrl-A x has another exit code".into())?;
    check(is_cooked(&vmm)?, || "the terminal did not come back".into())
}

pub fn comes_back(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let echo = c.guest("echo", false)?;
    for signal in
        [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGUSR1, Signal::SIGBUS]
    {
        let mut vmm = c.start(Wiring::Terminal, "--kernel {}", &[&echo])?;
        vmm.expect("ready", limit)?;
        check(!is_cooked(&vmm)?, || "the terminal is not raw".into())?;
        vmm.signal(signal)?;
        vmm.wait_status(limit)?;
        check(is_cooked(&vmm)?, || format!("the terminal did not come back after {signal}"))?;
    }
    for (guest, code) in [("exit", 0x21), ("reboot", 10)] {
        let guest = c.guest(guest, false)?;
        let mut vmm = c.start(Wiring::Terminal, "--kernel {}", &[&guest])?;
        let ended = vmm.wait(limit);
        c.keep("vmm", &vmm);
        check(ended? == code, || "another exit code".into())?;
        check(is_cooked(&vmm)?, || "the terminal did not come back".into())?;
    }
    let missing = c.work.join("missing");
    let mut vmm = c.start(Wiring::Terminal, "--kernel {}", &[&missing])?;
    check(vmm.wait(limit)? == 6, || "another exit code".into())?;
    check(is_cooked(&vmm)?, || "the terminal did not come back after an error".into())
}

/// Nobody reads the console: the guest waits, the monitor still takes what is typed, a debugger stops the
/// guest and steps it, and everything ends when it is told to.
pub fn stuck_reader(c: &mut Context) -> Check {
    for is_debugged in [false, true] {
        stuck(c, is_debugged).map_err(|error| format!("with a debugger {is_debugged}: {error}"))?;
    }
    Ok(())
}

fn stuck(c: &Context, is_debugged: bool) -> Check {
    let failed = |error: io::Error| error.to_string();
    let (guest, socket, limit) = (c.guest("echo", false)?, c.work.join("gdb.sock"), c.limit(40));
    // As small a pipe as there is: the guest echoes a byte with each few exits, which takes its time where
    // exits are slow.
    let (reader, writer) = io::pipe().map_err(failed)?;
    let room = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).map_err(|error| error.to_string())?;
    let (input, mut keys) = io::pipe().map_err(failed)?;
    let typed = input.try_clone().map_err(failed)?;
    let mut command = Command::new(&c.vmm);
    command.arg("--kernel").arg(guest).stdin(input).stdout(writer).stderr(Stdio::null());
    if is_debugged {
        command.arg("--gdb").arg(format!("unix:{}", socket.display()));
    }
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    let deadline = Instant::now() + limit;
    let wait_until = |what: &str, is_so: &dyn Fn() -> Result<bool, String>| -> Check {
        while !is_so()? {
            check(Instant::now() < deadline, || what.to_string())?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    };
    let talked = (|| -> Check {
        let mut client = is_debugged.then(|| Client::attach(&socket, limit)).transpose()?;
        if let Some(client) = &mut client {
            client.run()?;
        }
        keys.write_all(&vec![b'x'; usize::try_from(room).unwrap_or(0) + 16]).map_err(failed)?;
        wait_until("the pipe does not become full", &|| Ok(unread(&reader)? == room))?;
        // The guest's echo is stuck in a write now, if not before all of this has been read.
        for key in b"more" {
            keys.write_all(&[*key]).map_err(failed)?;
            wait_until("what is typed is not read", &|| Ok(unread(&typed)? == 0))?;
        }
        if let Some(client) = &mut client {
            client.interrupt()?;
            for _ in 0..2 {
                client.expect("vCont;s:p1.1", "T05*")?;
            }
        }
        let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| error.to_string())
    })();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Ok(status);
        }
        if talked.is_err() || Instant::now() >= deadline {
            child.kill().ok();
            child.wait().ok();
            break Err("it does not end while its console is unread".to_string());
        }
        std::thread::park_timeout(Duration::from_millis(2));
    };
    talked?;
    let status = status?;
    check(status.code() == Some(22), || format!("it ended with {status}"))
}

/// Bytes that wait in a pipe.
pub fn unread(pipe: &io::PipeReader) -> Result<i32, String> {
    use std::os::fd::AsRawFd;
    let mut count = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result == 0 { Ok(count) } else { Err(io::Error::last_os_error().to_string()) }
}

/// A guest that reads nothing, and one that a debugger holds: the monitor's own keys are looked for whatever
/// was typed before, and what is dropped of that is told.
pub fn keys_of_a_hung_guest(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("spin", false)?, c.limit(20));
    let socket = c.work.join("gdb.sock");
    for words in ["-v", "--gdb"] {
        let mut command = Command::new(&c.vmm);
        command.arg("-v").arg("--kernel").arg(&guest);
        if words == "--gdb" {
            command.arg("--gdb").arg(format!("unix:{}", socket.display()));
        }
        let mut vmm = Process::start("vmm", command, Wiring::Terminal).map_err(|error| error.to_string())?;
        let mut talk = || -> Check {
            wait_for_start(&vmm, limit)?;
            wait_until_raw(&vmm, limit)?;
            vmm.send(&"x".repeat(200))?;
            // The first may have been read together with what stands before it.
            for _ in 0..2 {
                vmm.send("\x01h")?;
                vmm.expect("Ctrl-A x", limit)?;
            }
            vmm.send(&"x".repeat(100_000))?;
            vmm.expect("is dropped", limit)?;
            vmm.send("\x01x")
        };
        let talked = talk();
        let code = if talked.is_ok() { vmm.wait(limit) } else { Ok(0) };
        c.keep("vmm", &vmm);
        talked.map_err(|error| format!("{words}: {error}"))?;
        check(code? == 22, || format!("{words}: Ctrl-A x has another exit code"))?;
        check(is_cooked(&vmm)?, || "the terminal did not come back".into())?;
        let notes = vmm.output.text().matches("is dropped").count();
        check(notes == 1, || format!("{notes} notes of what is dropped"))?;
    }
    Ok(())
}

/// Whether lines and keys of a process's terminal are the terminal's own.
fn has_lines(vmm: &Process) -> Result<bool, String> {
    let settings = tcgetattr(terminal(vmm)?).map_err(|error| error.to_string())?;
    Ok(settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ISIG))
}

fn wait_until(vmm: &Process, limit: Duration, raw: bool) -> Check {
    let deadline = Instant::now() + limit;
    while has_lines(vmm)? == raw {
        let wanted = if raw { "raw" } else { "cooked" };
        check(Instant::now() < deadline, || format!("the terminal does not become {wanted}"))?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

fn wait_until_raw(vmm: &Process, limit: Duration) -> Check {
    wait_until(vmm, limit, true)
}

/// A shell with jobs: the monitor boots in the background and leaves the terminal alone, takes it in the
/// foreground, gives it back when it is stopped by SIGTSTP, and has it again when it comes back, also from
/// SIGSTOP, which no process sees coming.
pub fn jobs(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("echo", false)?, c.limit(20));
    jobs_of(c, &format!("--kernel {}", guest.display()), 22, limit)
}

/// The same of a monitor with these words, whose guest says that it is ready, and what is typed; `code` is what it ends
/// with when `Ctrl-A x` ends it.
pub(super) fn jobs_of(c: &mut Context, words: &str, code: u8, limit: Duration) -> Check {
    use std::os::unix::process::CommandExt;
    let mut command = match std::path::Path::new("/bin/sh").exists() {
        true => Command::new("/bin/sh"),
        false => {
            let mut command = Command::new("/bin/busybox");
            command.arg("sh");
            command
        }
    };
    command.args(["-i", "-m"]).env("PS1", "shell> ").env_remove("ENV").env_remove("RUST_LOG");
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY as _, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Without echo, busybox's shell reads lines as others do.
            let mut settings = tcgetattr(io::stdin())?;
            settings.local_flags.remove(LocalFlags::ECHO);
            Ok(tcsetattr(io::stdin(), SetArg::TCSANOW, &settings)?)
        })
    };
    let mut shell = Process::start("shell", command, Wiring::Terminal).map_err(|error| error.to_string())?;
    let talked = talk_to_shell(c, &mut shell, (words, code), limit);
    c.keep("shell", &shell);
    talked
}

fn terminal(shell: &Process) -> Result<&std::os::fd::OwnedFd, String> {
    shell.terminal().ok_or_else(|| "no terminal".into())
}

fn talk_to_shell(c: &Context, shell: &mut Process, (words, code): (&str, u8), limit: Duration) -> Check {
    shell.expect("shell> ", limit)?;
    let cooked = tcgetattr(terminal(shell)?).map_err(|error| error.to_string())?;
    shell.send(&format!("{} {words} &\n", c.vmm.display()))?;
    // It boots, though the terminal is not its own.
    shell.expect("ready", limit)?;
    shell.send("echo pid=$!.\n")?;
    shell.expect("pid=", limit)?;
    shell.expect(".", limit)?;
    let text = shell.output.text();
    let pid = text.rsplit_once("pid=").and_then(|(_, pid)| pid.split_once('.')).map(|(pid, _)| pid);
    let pid: i32 = pid.and_then(|pid| pid.parse().ok()).ok_or_else(|| format!("no process id in {text}"))?;
    let signal = |signal| kill(Pid::from_raw(pid), signal).map_err(|error| error.to_string());
    let talked = (|| -> Check {
        for stop in [None, Some(Signal::SIGSTOP), Some(Signal::SIGTSTP)] {
            if let Some(stop) = stop {
                signal(stop)?;
                // The shell has the terminal, and says so.
                shell.expect("shell> ", limit)?;
                if stop == Signal::SIGSTOP {
                    // As shells do that edit their lines.
                    tcsetattr(terminal(shell)?, SetArg::TCSANOW, &cooked)
                        .map_err(|error| error.to_string())?;
                }
            }
            wait_until(shell, limit, false)?;
            shell.send("echo m''ine\n")?;
            shell.expect("mine", limit)?;
            shell.send("fg\n")?;
            wait_until_raw(shell, limit)?;
            shell.send("to the guest.")?;
            shell.expect("to the guest.", limit)?;
        }
        shell.send("\x01x")?;
        shell.expect("shell> ", limit)?;
        wait_until(shell, limit, false)?;
        shell.send("echo code=$?\n")?;
        shell.expect(&format!("code={code}"), limit)
    })();
    if talked.is_err() {
        // It may be stopped; the terminal goes with the shell.
        signal(Signal::SIGKILL).ok();
    }
    talked
}
