//! Guests with names, found and asked from a shell.

use super::gdb_port::first_packet;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use arch::Isa;
use debug::gdb::packet::frame;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// They are listed, stopped, looked at, let go on and ended, by their names.
pub fn guests(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("loop", false)?, c.limit(20));
    c.run("ls", &[], limit)?.expect_output("no guest runs")?;
    let count = c.length().of(6, 50);
    let mut guests: Vec<Process> = Vec::new();
    for number in 0..count {
        let line = format!("--name guest-{number} --memory 32M --kernel {{}}");
        guests.push(c.start(Wiring::Pipes, &line, &[&guest])?);
    }
    let begin = Instant::now();
    while listed(c)?.len() < guests.len() {
        check(begin.elapsed() < limit, || "not all guests are listed".into())?;
    }
    let begin = Instant::now();
    c.run("ls", &[], limit)?.expect_output("guest-0")?;
    let listed_in = begin.elapsed();
    for info in listed(c)? {
        check(info["state"] == "running" && info["memory"] == 32u64 << 20, || info.to_string())?;
    }
    // One stands still, and is looked at meanwhile; the others run.
    let begin = Instant::now();
    for number in 0..count {
        c.run(&format!("stop guest-{number}"), &[], limit)?.expect_code(0)?;
    }
    let figures = format!("{count} guests: listed in {listed_in:?}, stopped in {:?}\n", begin.elapsed());
    c.kept.push(("figures".into(), figures.into_bytes()));
    check(listed(c)?.iter().all(|info| info["state"] == "stopped"), || "not all are stopped".into())?;
    let counter = if c.isa == Isa::X86_64 { "rax" } else { "x0" };
    let looks = |c: &mut Context| -> Result<String, String> {
        let looked = c.run("monitor guest-0 --json regs", &[], limit)?;
        looked.expect_code(0)?;
        let registers: Value = serde_json::from_str(&looked.output).map_err(|error| error.to_string())?;
        Ok(registers[counter].to_string())
    };
    let before = looks(c)?;
    check(before.contains("0x") && looks(c)? == before, || format!("it does not stand still: {before}"))?;
    c.run("cont guest-0", &[], limit)?.expect_code(0)?;
    let again = c.run("cont guest-0", &[], limit)?;
    again.expect_code(8)?;
    again.expect_one_line("nobody has stopped it")?;
    let begin = Instant::now();
    while looks(c)? == before {
        check(begin.elapsed() < limit, || format!("it does not go on: {before}"))?;
    }
    // One ends while it stands still, too.
    for (number, process) in guests.iter_mut().enumerate() {
        c.run(&format!("quit guest-{number}"), &[], limit)?.expect_output("it ends")?;
        process.wait(limit)?;
    }
    c.run("ls", &[], limit)?.expect_output("no guest runs")?;
    let nobody = c.run("monitor guest-0 regs", &[], limit)?;
    nobody.expect_code(8)?;
    nobody.expect_one_line("no guest of the name guest-0 runs")
}

/// What `vmm ls` says of each.
fn listed(c: &mut Context) -> Result<Vec<Value>, String> {
    let limit = c.limit(20);
    let listed = c.run("ls --json", &[], limit)?;
    listed.expect_code(0)?;
    serde_json::from_str(&listed.output).map_err(|error| format!("{error}: {}", listed.output))
}

/// What a debugger is called that is this program.
pub const DEBUGGER: &str = "target remote ";
/// What it ends with.
const ENDS: i32 = 7;

/// Is the debugger that `vmm gdb` starts: asks why the guest stands still, and says what it was told.
///
/// # Errors
/// When it cannot connect.
pub fn debug(socket: &str) -> std::io::Result<i32> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(&frame(b"?"))?;
    println!("told {}", first_packet(stream));
    Ok(ENDS)
}

/// A guest that was given no name is found, followed, typed to, begun again and debugged.
pub fn followed(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("echo", false)?, c.limit(20));
    let mut vmm = c.start(Wiring::Pipes, "-v --memory 32M --kernel {}", &[&guest])?;
    vmm.expect("ready", limit)?;
    let name = format!("guest-{}", vmm.id());
    vmm.expect_error(&format!("the guest's name is {name}"), limit)?;
    let info = listed(c)?;
    check(info.len() == 1 && info[0]["name"] == name.as_str(), || format!("{info:?}"))?;
    check(info[0]["kernel"].as_str().is_some_and(|path| path.contains("echo")), || format!("{info:?}"))?;
    let events = c.start(Wiring::Pipes, &format!("events {name} --console"), &[])?;
    console(c, &name, limit)?;
    c.run(&format!("stop {name}"), &[], limit)?.expect_code(0)?;
    c.run(&format!("cont {name}"), &[], limit)?.expect_code(0)?;
    debugged(c, &name, limit)?;
    script(c, &name, limit)?;
    c.run(&format!("reset {name}"), &[], limit)?.expect_output("it begins again")?;
    vmm.expect("ready", limit)?;
    strangers(c, &name)?;
    c.run(&format!("quit {name}"), &[], limit)?.expect_code(0)?;
    check(vmm.wait(limit)? == 22, || "it does not end as it was told".into())?;
    told(c, events, limit)?;
    swept(c, &guest, limit)
}

/// Two are at the console; one of them types.
fn console(c: &mut Context, name: &str, limit: Duration) -> Check {
    let mut types = c.start(Wiring::Terminal, &format!("attach {name}"), &[])?;
    types.expect("Ctrl-A x leaves the console", limit)?;
    let mut watches = c.start(Wiring::Pipes, &format!("attach {name}"), &[])?;
    watches.expect_error("somebody else types: this only watches", limit)?;
    watches.send("nothing")?;
    types.send("hello\n")?;
    types.expect("hello", limit)?;
    watches.expect("hello", limit)?;
    types.send("\x01x")?;
    check(types.wait(limit)? == 0, || "the console cannot be left".into())?;
    check(!watches.output.text().contains("nothing"), || "whoever only watches has typed".into())?;
    // Now there is nobody else.
    let mut next = c.start(Wiring::Pipes, &format!("attach {name}"), &[])?;
    next.send("again\n")?;
    next.expect("again", limit)?;
    watches.expect("again", limit)?;
    for (which, process) in [("types", &types), ("watches", &watches), ("next", &next)] {
        c.keep(which, process);
    }
    // Both end with the guest; these are ended before.
    for mut process in [watches, next] {
        process.signal(Signal::SIGTERM)?;
        process.wait(limit)?;
    }
    Ok(())
}

/// A debugger is started, connected to the guest, and the guest served no more when it has ended.
fn debugged(c: &mut Context, name: &str, limit: Duration) -> Check {
    let debugger = c.work.join("debugger");
    symlink(std::env::current_exe().map_err(|error| error.to_string())?, &debugger)
        .map_err(|error| error.to_string())?;
    let run = c.run(&format!("gdb {name} --program {{}}"), &[&debugger], limit)?;
    run.expect_code(ENDS)?;
    run.expect_output("told +$T")?;
    check(listed(c)?[0]["serves_gdb"] == false, || "it is served still".into())?;
    // One that is served stays so.
    c.run(&format!("gdb {name} :0"), &[], limit)?.expect_output("waiting for gdb at 127.0.0.1:")?;
    check(listed(c)?[0]["gdb"].as_str().is_some_and(|at| at.starts_with("127.")), || {
        "where is not told".into()
    })?;
    c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_code(0)?;
    let none = c.run(&format!("gdb {name} /nonexistent/vmlinux"), &[], limit)?;
    none.expect_code(8)?;
    none.expect_one_line("/nonexistent/vmlinux is no file")?;
    let both = c.run(&format!("gdb {name} :0 --lldb"), &[], limit)?;
    both.expect_code(2)
}

/// The lines of a script are carried out, up to the first that is refused.
fn script(c: &mut Context, name: &str, limit: Duration) -> Check {
    let mut process = c.start(Wiring::Pipes, &format!("monitor {name}"), &[])?;
    process.send("# What is mapped.\n\nmap\nno-such\nhost\n")?;
    process.close_input();
    let code = process.wait(limit)?;
    c.keep("script", &process);
    let (output, errors) = (process.output.text(), process.errors.text());
    check(code == 2 && errors.contains("there is no command 'no-such'"), || format!("{code}: {errors}"))?;
    check(!output.is_empty() && !output.contains("single steps"), || output)
}

/// Another user finds nobody, and is let in nowhere.
fn strangers(c: &mut Context, name: &str) -> Check {
    const USER: u32 = 65534;
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => Path::new(&folder).join("vmm"),
        None => Path::new("/tmp").join(format!("vmm-{}", nix::unistd::geteuid())),
    };
    let mode = |path: &Path| fs::metadata(path).map(|it| it.permissions().mode() & 0o777);
    let socket = folder.join(format!("{name}.sock"));
    let modes = (mode(&folder).ok(), mode(&socket).ok());
    check(modes == (Some(0o700), Some(0o600)), || format!("{}: {modes:?}", socket.display()))?;
    // Also where the folder is named: by its path there is a guest, and for others there is none.
    let mut command = Command::new(&c.vmm);
    command.args(["monitor".as_ref(), socket.as_os_str(), "regs".as_ref()]).env_remove("RUST_LOG");
    let output = command.uid(USER).gid(USER).current_dir("/").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("nobody cannot run it: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(8) && errors.contains("Permission denied"), || errors.clone())
}

/// What was told of it, in its order.
fn told(c: &mut Context, mut events: Process, limit: Duration) -> Check {
    let code = events.wait(limit)?;
    c.keep("events", &events);
    let lines: Result<Vec<Value>, _> =
        events.output.text().lines().map(serde_json::from_str::<Value>).collect();
    let lines = lines.map_err(|error| format!("no lines of JSON: {error}"))?;
    let is = |line: &Value, what: &str, by: &str| line["event"] == what && line["by"] == by;
    let wanted: [&dyn Fn(&Value) -> bool; 7] = [
        &|line| line["event"] == "console" && line["line"] == "hello",
        &|line| is(line, "stopped", "control"),
        &|line| is(line, "running", "control"),
        &|line| is(line, "stopped", "debugger"),
        &|line| is(line, "running", "debugger"),
        &|line| line["event"] == "restarted",
        &|line| line["event"] == "ended" && line["code"] == 22,
    ];
    let mut rest = lines.iter();
    for (number, wanted) in wanted.iter().enumerate() {
        check(rest.any(wanted), || format!("number {number} is not told: {lines:#?}"))?;
    }
    check(code == 0 && rest.next().is_none(), || format!("{code}: {lines:#?}"))
}

/// A guest that was killed is not listed, and its socket goes.
fn swept(c: &mut Context, guest: &Path, limit: Duration) -> Check {
    let mut vmm = c.start(Wiring::Pipes, "--memory 32M --name killed --kernel {}", &[guest])?;
    vmm.expect("ready", limit)?;
    vmm.signal(Signal::SIGKILL)?;
    vmm.wait_status(limit)?;
    c.run("ls", &[], limit)?.expect_output("no guest runs")?;
    let nobody = c.run("stop killed", &[], limit)?;
    nobody.expect_code(8)?;
    nobody.expect_one_line("no guest of the name killed runs")
}
