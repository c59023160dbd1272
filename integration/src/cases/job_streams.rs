//! The standard streams of `vmm run`, and its terminal.

use super::job::start;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Input goes in, signals and the terminal are the command's.
pub fn streams(c: &mut Context) -> Check {
    let (root, limit) = (c.root()?, c.limit(60));
    // More than any buffer on the way holds.
    let text: String = (0..60_000).map(|line| format!("line {line}\n")).collect();
    let mut cat = start(c, &root, Wiring::Pipes, "cat")?;
    cat.send(&text)?;
    cat.close_input();
    let code = cat.wait(limit);
    c.keep("cat", &cat);
    check(code? == 0 && cat.output.text() == text, || "what came out is not what went in".into())?;
    reader_goes(c, &root, false)?;
    reader_goes(c, &root, true)?;

    let script = "sh -c trap~'echo~got;exit~3'~INT;echo~ready;while~:;do~sleep~1;done";
    let mut trap = start(c, &root, Wiring::Pipes, script)?;
    let mut talk = || -> Check {
        trap.expect("ready", limit)?;
        trap.signal(Signal::SIGINT)?;
        trap.expect("got", limit)
    };
    let talked = talk();
    let code = trap.wait(limit);
    c.keep("trap", &trap);
    talked?;
    check(code? == 3, || "the signal did not reach the command".into())?;

    // A shell, where no command is given.
    let mut shell = start(c, &root, Wiring::Terminal, "")?;
    let mut talk = || -> Check {
        shell.expect("# ", limit)?;
        shell.send("tty; stty size\r")?;
        shell.expect("/dev/pts/0", limit)?;
        shell.expect("24 100", limit)?;
        shell.resize(33, 77)?;
        shell.send("while [ \"$(stty size)\" != '33 77' ]; do :; done; echo it has $((70+7))\r")?;
        shell.expect("it has 77", limit)?;
        // Said by what has the terminal by then: a shell that is just about to start something may not hear Ctrl-C.
        shell.send("sh -c 'echo go $((40+1)); exec sleep 1000'\r")?;
        shell.expect("go 41", limit)?;
        shell.send("\x03")?;
        shell.expect("# ", limit)?;
        shell.send("echo still $((40+2))\r")?;
        shell.expect("still 42", limit)?;
        // A key of the kernel's.
        shell.send("\x01bh")?;
        shell.send("until dmesg | grep 'sysrq: HELP'; do sleep 1; done; echo it is $((40+3))\r")?;
        shell.expect("it is 43", limit)?;
        shell.send("exit 5\r")
    };
    let talked = talk();
    if talked.is_err() {
        shell.send("\x01x")?;
    }
    let code = shell.wait(limit);
    c.keep("shell", &shell);
    talked?;
    check(code? == 5, || "the shell's code is another".into())?;
    errors_elsewhere(c, &root)
}

/// The command has a terminal, and its errors go to a file.
fn errors_elsewhere(c: &mut Context, root: &Path) -> Check {
    let errors = c.work.join("errors");
    let line = format!(
        "exec {} run --kernel {} --modules {} --root {} --slow {} --memory 256M -- sh -c 'tty; echo wrong >&2' 2> {}",
        c.vmm.display(),
        c.kernel("6.12").display(),
        c.modules().display(),
        root.display(),
        c.slowness,
        errors.display()
    );
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", &line]).env_remove("RUST_LOG");
    let mut process = Process::start("vmm", command, Wiring::Terminal).map_err(|error| error.to_string())?;
    let code = process.wait(c.limit(60));
    c.keep("errors", &process);
    let shown = process.output.text();
    check(code? == 0 && shown.contains("/dev/pts/0") && !shown.contains("wrong"), || shown.clone())?;
    let written = fs::read_to_string(&errors).map_err(|error| error.to_string())?;
    check(written == "wrong\n", || format!("the errors are {written:?}"))
}

/// Whoever reads the output, or the errors, goes (`| head -1`) while the command has more to write: it gets SIGPIPE.
fn reader_goes(c: &Context, root: &Path, of_errors: bool) -> Check {
    let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let mut command = Command::new(&c.vmm);
    command.arg("run").arg("--kernel").arg(c.kernel("6.12")).arg("--modules").arg(c.modules());
    command.arg("--root").arg(root).args(["--slow", &c.slowness.to_string(), "--memory", "256M"]);
    let script = if of_errors { "exec seq 10000000 >&2" } else { "exec seq 10000000" };
    command.args(["--", "sh", "-c", script]).env_remove("RUST_LOG").stdin(std::process::Stdio::null());
    match of_errors {
        true => command.stdout(std::process::Stdio::null()).stderr(writer),
        false => command.stdout(writer),
    };
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    drop(command);
    let mut line = String::new();
    // It goes with the line's end: `head -1`.
    let read = BufReader::new(reader).read_line(&mut line);
    let deadline = Instant::now() + c.limit(60);
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        status = child.try_wait().map_err(|error| error.to_string())?;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    if status.is_none() {
        child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
    }
    let code = status.and_then(|status| status.code());
    let wanted = 128 + Signal::SIGPIPE as i32;
    check(read.is_ok() && line == "1\n" && code == Some(wanted), || {
        format!("{line:?}, and the code is {code:?}")
    })
}
