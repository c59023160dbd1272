//! gdb's port: who is served there, what becomes of a guest whose debugger is lost, and what takes long.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use arch::Isa;
use debug::gdb::packet::{INTERRUPT, frame, hex};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

/// Debian's user nobody.
const NOBODY: u32 = 65534;
/// What the connections of another user are made by: this program, called so.
pub const SPEAK: &str = "--speak";

/// Connects to an address, sends bytes, and prints what it is told; with `go`, goes at once.
///
/// # Errors
/// When it cannot connect.
pub fn speak(address: &str, bytes: &str, go: bool) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(bytes.as_bytes())?;
    if go {
        return Ok(());
    }
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    print!("{}", first_packet(stream));
    Ok(())
}

/// What is told up to the end of a packet, or until whoever speaks lets go, by an end or a reset.
pub(super) fn first_packet(mut stream: impl Read) -> String {
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend(&buffer[..count]);
        if answer.contains(&b'#') {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn speak_as_nobody(address: &str, bytes: &[u8], go: bool) -> Result<String, String> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(SPEAK).arg(address).arg(String::from_utf8_lossy(bytes).as_ref());
    command.args(go.then_some("go")).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = command.output().map_err(|error| format!("nobody cannot speak: {error}"))?;
    check(output.status.success(), || {
        format!("nobody cannot speak: {}", String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a guest waits for gdb over TCP.
fn address(vmm: &Process, limit: Duration) -> Result<String, String> {
    const WORDS: &str = "waiting for gdb at ";
    let deadline = std::time::Instant::now() + limit;
    loop {
        let errors = vmm.errors.text();
        let found = errors.split_once(WORDS).and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((address, _)) = found {
            return Ok(address.trim().to_string());
        }
        check(std::time::Instant::now() < deadline, || format!("no {WORDS}in {errors}"))?;
        thread::park_timeout(Duration::from_millis(10));
    }
}

fn command(text: &str) -> Vec<u8> {
    frame(&[b"qRcmd,", &hex(text.as_bytes())[..]].concat())
}

/// Over TCP only the user's own processes are served, whatever they send first, and those that begin as
/// a debugger does; dumps are new files below one folder.
pub fn strangers(c: &mut Context) -> Check {
    let (guest, dumps) = (c.guest("spin", false)?, c.work.join("dumps"));
    fs::create_dir_all(&dumps).map_err(|error| error.to_string())?;
    fs::write(dumps.join("old"), "old").map_err(|error| error.to_string())?;
    symlink("/tmp", dumps.join("link")).map_err(|error| error.to_string())?;
    let arguments = "-v --gdb 127.0.0.1:0 --memory 64M --dump-dir {} --kernel {}";
    let mut vmm = c.start(Wiring::Pipes, arguments, &[&dumps, &guest])?;
    let tried = try_strangers(c, &vmm, &dumps).and_then(|mut client| {
        client.send(&frame(b"k"))?;
        vmm.wait(c.limit(10))
    });
    c.keep("vmm", &vmm);
    let code = tried.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 22, || format!("vmm ended with {code}"))?;

    let mut vmm = c.start(Wiring::Pipes, &format!("--gdb-any-user {arguments}"), &[&dumps, &guest])?;
    let told = address(&vmm, c.limit(10))
        .and_then(|address| speak_as_nobody(&address, &frame(b"qSupported"), false));
    vmm.signal(Signal::SIGTERM)?;
    vmm.wait(c.limit(10))?;
    c.keep("vmm", &vmm);
    check(told.as_ref().is_ok_and(|told| told.contains("PacketSize=")), || {
        format!("with --gdb-any-user, nobody is told {told:?}")
    })
}

fn try_strangers(c: &Context, vmm: &Process, dumps: &Path) -> Result<Client, String> {
    let address = address(vmm, c.limit(10))?;
    let told = speak_as_nobody(&address, &[b"+", &frame(b"qSupported")[..]].concat(), false)?;
    check(told.contains("E.it is a process of user 65534"), || format!("nobody is told {told}"))?;
    for _ in 0..20 {
        speak_as_nobody(&address, &command("dump stolen"), true)?;
    }
    // A web page has a browser of the user's own say this.
    let mut browser = TcpStream::connect(&address).map_err(|error| error.to_string())?;
    let request = [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", &command("dump stolen")[..]].concat();
    browser.write_all(&request).map_err(|error| error.to_string())?;
    let mut rest = Vec::new();
    // By an end or a reset.
    browser.read_to_end(&mut rest).ok();
    check(rest.is_empty(), || format!("the browser is told {}", String::from_utf8_lossy(&rest)))?;

    let mut client = Client::attach_tcp(&address, c.limit(10))?;
    check(!dumps.join("stolen").exists(), || "a stranger has had a file written".into())?;
    let count = || fs::read_dir(dumps).map(Iterator::count).map_err(|error| error.to_string());
    for path in ["/tmp/outside", "../outside", "link/outside", "old", "sub/none"] {
        client.send(&command(&format!("dump {path}")))?;
        let said = client.console_reply()?;
        check(said.contains("cannot write"), || format!("dump {path} is answered with {said}"))?;
    }
    check(count()? == 2, || "there is more below --dump-dir than before".into())?;
    client.send(&command("dump inside"))?;
    let said = client.console_reply()?;
    check(said.contains("inside: 64 MiB"), || format!("dump inside is answered with {said}"))?;
    check(count()? == 3 && !dumps.join("../outside").exists(), || "the dump is elsewhere".into())?;
    Ok(client)
}

/// A file, a link and a socket that is served are no places for a socket, whoever wants one.
pub fn sockets(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let (file, link, served) = (c.work.join("file"), c.work.join("link"), c.work.join("served"));
    fs::write(&file, "precious").map_err(|error| error.to_string())?;
    symlink(&file, &link).map_err(|error| error.to_string())?;
    for path in [&file, &link] {
        let run = c.run("--gdb unix:{}", &[path], limit)?;
        run.expect_code(8)?;
        run.expect_one_line("is no socket")?;
    }
    let text = fs::read_to_string(&link).map_err(|error| error.to_string())?;
    check(text == "precious", || "the file has changed".into())?;

    let guest = c.guest("spin", false)?;
    // One that was killed leaves its socket behind, for the next one to take.
    let mut killed = c.start(Wiring::Pipes, "--gdb unix:{} --kernel {} --memory 64M", &[&served, &guest])?;
    drop(Client::attach(&served, limit)?);
    killed.signal(Signal::SIGKILL)?;
    killed.wait_status(limit)?;
    check(served.exists(), || "a killed monitor has tidied up".into())?;
    // Of several that start at once one is served.
    let start =
        |c: &Context| c.start(Wiring::Pipes, "--gdb unix:{} --kernel {} --memory 64M", &[&served, &guest]);
    let mut all = [start(c)?, start(c)?, start(c)?];
    let mut client = Client::attach(&served, limit)?;
    let mut ended = 0;
    let deadline = std::time::Instant::now() + limit;
    while ended < all.len() - 1 && std::time::Instant::now() < deadline {
        ended = all.iter_mut().map(|vmm| usize::from(vmm.has_ended())).sum();
        thread::park_timeout(Duration::from_millis(10));
    }
    client.send(&frame(b"k"))?;
    let mut codes = Vec::new();
    for vmm in &mut all {
        codes.push(vmm.wait(limit)?);
        c.keep("vmm", vmm);
    }
    codes.sort_unstable();
    check(codes == [8, 8, 22], || format!("they end with {codes:?}"))
}

/// A debugger that vanishes leaves the guest as it was said.
pub fn lost(c: &mut Context) -> Check {
    let (guest, socket) = (c.guest("exit", false)?, c.work.join("gdb.sock"));
    let limit = c.limit(10);
    let without = c.run("--kernel {}", &[&guest], limit)?.code;
    for (what, code) in [("continue", without), ("quit", 22), ("hold", without)] {
        let arguments = format!("-v --gdb unix:{{}} --kernel {{}} --gdb-lost {what}");
        let mut vmm = c.start(Wiring::Pipes, &arguments, &[&socket, &guest])?;
        let mut client = Client::attach(&socket, limit)?;
        client.expect("vCont;s:p1.1", "T05*")?;
        let pc = client.ask("g")?;
        drop(client);
        let held = if what == "hold" { check_held(&socket, &pc, limit) } else { Ok(()) };
        let ended = held.and_then(|()| vmm.wait(limit));
        c.keep("vmm", &vmm);
        let ended = ended.map_err(|error| format!("{what}: {error}\n{}", vmm.errors.text()))?;
        check(ended == code, || format!("{what}: vmm ended with {ended} instead of {code}"))?;
    }
    Ok(())
}

/// The guest is where it was, also for the one after the next; then it runs to its end.
fn check_held(socket: &Path, registers: &str, limit: Duration) -> Check {
    for _ in 0..2 {
        let mut client = Client::attach(socket, limit)?;
        client.expect("g", registers)?;
    }
    let mut client = Client::attach(socket, limit)?;
    client.run()?;
    let stop = client.reply()?;
    check(stop.starts_with('W'), || format!("the guest stops with {stop}"))
}

/// A second debugger takes the place of the first, by an option or from the shell.
pub fn takeover(c: &mut Context) -> Check {
    let (guest, socket, limit) = (c.guest("spin", false)?, c.work.join("gdb.sock"), c.limit(10));
    let is_gone = |mut client: Client| -> Check {
        while client.item()?.is_some() {}
        Ok(())
    };
    let arguments = "-v --gdb unix:{} --kernel {} --memory 64M";
    let mut vmm = c.start(Wiring::Pipes, &format!("{arguments} --gdb-takeover"), &[&socket, &guest])?;
    let mut first = Client::attach(&socket, limit)?;
    let base = if c.isa == Isa::X86_64 { 0x20_0000 } else { 0x4100_0000 };
    first.expect(&format!("Z0,{base:x},4"), "OK")?;
    first.run()?;
    let mut second = Client::attach(&socket, limit)?;
    is_gone(first)?;
    second.expect("vCont;s:p1.1", "T05*")?;
    second.send(&frame(b"k"))?;
    let code = vmm.wait(limit)?;
    c.keep("vmm", &vmm);
    check(code == 22, || format!("vmm ended with {code}"))?;

    let name = "gdb-takeover";
    let mut vmm =
        c.start(Wiring::Pipes, &format!("{arguments} --name {name} --gdb-lost hold"), &[&socket, &guest])?;
    let first = Client::attach(&socket, limit)?;
    let mut refused = Client::connect(&socket, limit)?;
    let words = refused.ask("qSupported")?;
    check(words.contains("vmm release"), || format!("a second debugger is told {words}"))?;
    let run = c.run(&format!("release {name}"), &[], limit)?;
    run.expect_code(0)?;
    is_gone(first)?;
    let mut second = Client::attach(&socket, limit)?;
    second.expect("vCont;s:p1.1", "T05*")?;
    second.send(&frame(b"k"))?;
    let code = vmm.wait(limit)?;
    c.keep("vmm", &vmm);
    check(code == 22, || format!("vmm ended with {code}"))?;
    let run = c.run(&format!("release {name}"), &[], limit)?;
    run.expect_code(8)
}

/// A guest that was started without `--gdb` is debugged later; the debugger leaves, even while the guest stands at a
/// breakpoint, and another comes.
pub fn comes_and_leaves(c: &mut Context) -> Check {
    let (guest, socket, limit) = (c.guest("spin", false)?, c.work.join("gdb.sock"), c.limit(10));
    let name = "gdb-comes-and-leaves";
    let arguments = format!("-v --kernel {{}} --memory 64M --cpus 2 --name {name}");
    let mut vmm = c.start(Wiring::Pipes, &arguments, &[&guest])?;
    let gdb = format!("gdb {name} unix:{{}}");
    // It has its name once its machine is made.
    let begin = Instant::now();
    while c.run(&format!("release {name}"), &[], limit)?.expect_one_line("serves no gdb").is_err() {
        check(begin.elapsed() < limit, || "the guest has no name".into())?;
    }
    let number = if c.isa == Isa::X86_64 { "p10" } else { "p20" };
    let pc = |client: &mut Client| -> Result<u64, String> {
        let register = client.ask(number)?;
        let bytes =
            u64::from_str_radix(&register, 16).map_err(|_| format!("the program counter is {register}"))?;
        Ok(bytes.swap_bytes())
    };
    let mut planted: Option<(u64, String)> = None;
    for round in 0..3 {
        c.run(&gdb, &[&socket], limit)?.expect_code(0)?;
        c.run(&gdb, &[&socket], limit)?.expect_one_line("a gdb server already")?;
        let mut client = Client::attach(&socket, limit)?;
        if let Some((place, code)) = planted.take() {
            // Nothing of the last one is left, and the guest has run since.
            client.expect(&format!("m{place:x},4"), &code)?;
        }
        client.expect("vCont;s:p1.1", "T05*")?;
        let place = pc(&mut client)?;
        let code = client.ask(&format!("m{place:x},4"))?;
        client.expect(&format!("Z0,{place:x},4"), "OK")?;
        client.expect("vCont;c", "T05*")?;
        planted = Some((place, code));
        if round == 1 {
            // It may go by itself, too.
            client.expect("D;1", "OK")?;
        }
        c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_code(0)?;
        while client.item().is_ok_and(|item| item.is_some()) {}
    }
    c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_one_line("serves no gdb")?;
    c.run(&format!("release {name}"), &[], limit)?.expect_one_line("serves no gdb")?;
    vmm.signal(Signal::SIGTERM)?;
    vmm.wait(limit)?;
    c.keep("vmm", &vmm);

    // One that waits for a debugger runs when that leaves, whether anybody has connected or not.
    let guest = c.guest("work", false)?;
    for connects in [false, true] {
        let arguments = format!("-v --gdb unix:{{}} --kernel {{}} --memory 64M --name {name}");
        let mut vmm = c.start(Wiring::Pipes, &arguments, &[&socket, &guest])?;
        let client = connects.then(|| Client::attach(&socket, limit)).transpose()?;
        let begin = Instant::now();
        while c.run(&format!("gdb {name} --leave"), &[], limit)?.expect_code(0).is_err() {
            check(begin.elapsed() < limit, || "the guest cannot be left".into())?;
        }
        vmm.wait(limit)?;
        c.keep("vmm", &vmm);
        drop(client);
    }
    Ok(())
}

/// What goes through all of memory ends with Ctrl-C, with the client and with the process, and is
/// answered once.
pub fn long_commands(c: &mut Context) -> Check {
    let (guest, socket, limit) = (c.guest("spin", false)?, c.work.join("gdb.sock"), c.limit(20));
    let arguments = "-v --gdb unix:{} --kernel {} --memory 2G";
    let mut vmm = c.start(Wiring::Pipes, arguments, &[&socket, &guest])?;
    let base: u64 = if c.isa == Isa::X86_64 { 0 } else { 0x4000_0000 };
    let all = [format!("qSearch:memory:{base:x};80000000;no such text"), format!("qCRC:{base:x},80000000")];
    let mut client = Client::attach(&socket, limit)?;
    client.expect("Qqemu.PhyMemMode:1", "OK")?;
    for packet in &all {
        client.send(&[&frame(packet.as_bytes())[..], &[INTERRUPT]].concat())?;
        let reply = client.reply()?;
        check(reply == "E04", || format!("{packet}, interrupted, is answered with {reply}"))?;
        client.expect("qC", "QC*")?;
    }
    // One that goes meanwhile makes room for the next.
    for packet in &all {
        client.send(&frame(packet.as_bytes()))?;
        drop(client);
        client = Client::attach(&socket, limit)?;
        client.expect("Qqemu.PhyMemMode:1", "OK")?;
    }
    drop(client);
    // gdb's patience ends, and it asks for what it has not been sent yet.
    let mut client = Client::connect(&socket, limit)?;
    client.expect("Qqemu.PhyMemMode:1", "OK")?;
    let some = format!("qSearch:memory:{base:x};8000000;no such text");
    client.send(&[&frame(some.as_bytes())[..], b"---"].concat())?;
    let reply = client.reply()?;
    check(reply == "0", || format!("{some} is answered with {reply}"))?;
    client.expect("qC", "QC*")?;
    client.send(&frame(all[0].as_bytes()))?;
    vmm.signal(Signal::SIGTERM)?;
    let code = vmm.wait(limit)?;
    c.keep("vmm", &vmm);
    check(code == 22, || format!("vmm ended with {code}"))
}

/// Has a command of `monitor`'s carried out, which answers with these words among others.
pub fn monitor(client: &mut Client, command: &str, expected: &str) -> Check {
    let words = client.console(&format!("qRcmd,{}", String::from_utf8_lossy(&hex(command.as_bytes()))))?;
    check(words.contains(expected), || format!("monitor {command}: {words}"))
}

/// What a guest's reset and a debugger's wish to begin again leave of a session: all but the guest's memory.
pub fn begins_again(c: &mut Context) -> Check {
    let (socket, limit, kind) =
        (c.work.join("gdb.sock"), c.limit(20), if c.isa == Isa::X86_64 { 1 } else { 4 });
    let (pc, start, counter, again) = match c.isa {
        Isa::X86_64 => ("p10", 0x10_0000u64, "p0", 0x10_0002u64),
        Isa::Aarch64 => ("p20", 0x4020_0000, "p0", 0x4020_0004),
    };
    let little_endian = |value: u64| String::from_utf8_lossy(&hex(&value.to_le_bytes())).into_owned();
    let run = |client: &mut Client, expected: &str| -> Check {
        client.run()?;
        let stop = client.reply()?;
        check(stop.contains(expected), || format!("instead of {expected} it stops with {stop}"))
    };
    let guest = c.guest("loop", false)?;
    let mut vmm = c.start(Wiring::Pipes, "--gdb unix:{} --memory 64M --kernel {}", &[&socket, &guest])?;
    let tried = (|| -> Check {
        let mut client = Client::attach(&socket, limit)?;
        client.expect(&format!("Z0,{again:x},{kind}"), "OK")?;
        for _ in 0..3 {
            run(&mut client, "swbreak")?;
        }
        check(client.ask(counter)? != little_endian(0), || "it has not counted".into())?;
        monitor(&mut client, "reset", "first instruction")?;
        // Its first instruction, with the breakpoint in new memory.
        client.expect(pc, &little_endian(start))?;
        run(&mut client, "swbreak")?;
        client.expect(counter, &little_endian(0))?;
        // As `run` and `kill` have it in an extended session.
        client.expect("!", "OK")?;
        client.expect("vKill;1", "OK")?;
        client.expect("qfThreadInfo", "l")?;
        client.expect("m0,4", "E.there is no guest*")?;
        client.expect("vAttach;1", "E.there is no guest*")?;
        client.expect("vRun;", "T05*")?;
        client.expect(pc, &little_endian(start))?;
        // What was planted went with the debugger's process.
        client.expect(&format!("Z0,{again:x},{kind}"), "OK")?;
        run(&mut client, "swbreak")?;
        client.expect("D;1", "OK")?;
        client.expect("g", "E.there is no guest*")?;
        client.expect("vAttach;1", "T02*")?;
        client.expect(&format!("Z1,{again:x},{kind}"), "OK")?;
        run(&mut client, "hwbreak")?;
        // Without a kernel there is none to begin again, and all stays as it is.
        fs::rename(&guest, guest.with_extension("gone")).map_err(|error| error.to_string())?;
        let refused = client.ask("vRun;")?;
        fs::rename(guest.with_extension("gone"), &guest).map_err(|error| error.to_string())?;
        check(refused.starts_with("E.") && refused.contains("cannot"), || format!("vRun: {refused}"))?;
        run(&mut client, "hwbreak")?;
        client.expect("vKill;1", "OK").map(drop)
    })();
    // It has killed the guest, and goes.
    let code = tried.and_then(|()| vmm.wait(limit));
    c.keep("vmm", &vmm);
    let code = code.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 22, || format!("vmm ended with {code}"))?;
    resets_itself(c)
}

/// A guest that resets itself, again and again, under a debugger and without one.
fn resets_itself(c: &mut Context) -> Check {
    let (guest, socket, limit) = (c.guest("reboot", false)?, c.work.join("gdb.sock"), c.limit(20));
    let arguments = "-v --gdb unix:{} --memory 64M --reboot restart --kernel {}";
    let mut vmm = c.start(Wiring::Pipes, arguments, &[&socket, &guest])?;
    let tried = (|| -> Check {
        let mut client = Client::attach(&socket, limit)?;
        let (start, kind) = if c.isa == Isa::X86_64 { (0x10_0000, 1) } else { (0x4020_0000, 4) };
        client.expect(&format!("Z0,{start:x},{kind}"), "OK")?;
        for round in 0..3 {
            client.run()?;
            let stop = client.reply()?;
            check(stop.contains("swbreak"), || format!("round {round}: it stops with {stop}"))?;
        }
        client.expect("D;1", "OK")?;
        drop(client);
        // Without a debugger it goes on.
        let booted = || vmm.errors.text().matches("it is booted again").count();
        let (before, deadline) = (booted(), std::time::Instant::now() + limit);
        while booted() < before + 3 {
            check(std::time::Instant::now() < deadline, || "it does not reset itself any more".into())?;
            thread::park_timeout(Duration::from_millis(5));
        }
        let mut client = Client::attach(&socket, limit)?;
        client.run()?;
        client.interrupt()?;
        client.send(&frame(b"k"))
    })();
    let code = tried.and_then(|()| vmm.wait(limit));
    c.keep("vmm", &vmm);
    let code = code.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 22, || format!("vmm ended with {code}"))
}
