//! The gdb server on the wire: what clients do that stock debuggers do not.

use crate::context::{Check, Context, check};
use crate::process::Wiring;
use crate::rsp::Client;
use debug::gdb::packet::{Item, LONGEST, frame, hex};
use std::path::Path;

/// Starts a test guest that waits for a debugger, has `test` speak to it, and ends the guest by
/// `k` over the connection that is left.
fn with_guest(
    c: &mut Context,
    guest: &str,
    options: &str,
    test: impl FnOnce(&Context, &Path) -> Result<Client, String>,
) -> Check {
    let (socket, kernel) = (c.work.join("gdb.sock"), c.guest(guest, false)?);
    let arguments = format!("-v --gdb unix:{{}} --kernel {{}} --memory 64M {options}");
    let mut vmm = c.start(Wiring::Pipes, &arguments, &[&socket, &kernel])?;
    let ended = test(c, &socket).and_then(|mut client| {
        client.send(&frame(b"k"))?;
        vmm.wait(c.limit(10))
    });
    c.keep("vmm", &vmm);
    let code = ended.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 22, || format!("vmm ended with {code}"))
}

/// Attach, detach, vanish, come back; a second client; interrupts.
pub fn connections(c: &mut Context) -> Check {
    // It spins with interrupts off.
    with_guest(c, "spin", "", connect_and_vanish)
}

fn connect_and_vanish(c: &Context, socket: &Path) -> Result<Client, String> {
    let limit = c.limit(10);
    let mut client = Client::attach(socket, limit)?;
    client.expect("?", "T05thread:p01.01;")?;
    for _ in 0..20 {
        client.run()?;
        let stop = client.interrupt()?;
        check(stop.starts_with("T02"), || format!("an interrupt stops with {stop}"))?;
    }
    let mut second = Client::connect(socket, limit)?;
    let words = second.ask("qSupported")?;
    let says_who = words.starts_with("E.another debugger is attached: process ") && words.contains(" ago)");
    check(says_who, || format!("a second client is told {words}"))?;
    check(second.item()?.is_none(), || "a second client is not let go".into())?;

    client.expect("D;1", "OK")?;
    drop(client);
    let mut client = Client::attach(socket, limit)?;
    client.expect("?", "T05*")?;
    client.run()?;
    // A client that vanishes while the guest runs, and one that vanishes in a packet.
    drop(client);
    let mut client = Client::attach(socket, limit)?;
    client.send(b"$m100000,")?;
    drop(client);
    Client::attach(socket, limit)
}

/// Interrupts reach a guest that is halted.
pub fn halted(c: &mut Context) -> Check {
    with_guest(c, "halt", "", |c, socket| {
        let mut client = Client::attach(socket, c.limit(10))?;
        for _ in 0..20 {
            client.run()?;
            let stop = client.interrupt()?;
            check(stop.starts_with("T02"), || format!("an interrupt stops with {stop}"))?;
        }
        Ok(client)
    })
}

/// Packets that are wrong: an error to the client, the guest unharmed.
pub fn bad_packets(c: &mut Context) -> Check {
    // It is still there when a broken connection has let it run on.
    with_guest(c, "spin", "", send_bad_packets)
}

fn send_bad_packets(c: &Context, socket: &Path) -> Result<Client, String> {
    let limit = c.limit(10);
    let mut client = Client::connect(socket, limit)?;
    client.send(b"$g#00")?;
    let item = client.item()?;
    check(item == Some(Item::Nack), || format!("a wrong checksum is answered with {item:?}"))?;
    drop(client);
    // What no debugger begins with, and what none sends between packets.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"\n", b"+\x80", b"+$qC#b4 "] {
        let mut client = Client::connect(socket, limit)?;
        client.send(bytes)?;
        while let Some(item) = client.item()? {
            check(item == Item::Ack, || format!("{bytes:02x?} is answered with {item:?}"))?;
        }
    }

    let mut client = Client::attach(socket, limit)?;
    let pc = client.ask("p10")?;
    for (packet, reply) in [
        ("nonsense", ""),
        ("", ""),
        ("mffffffffffffffff,10", "E*"),
        ("m0,", "E16"),
        ("mzz,4", "E16"),
        ("m,", "E16"),
        ("Z0", "E16"),
        ("Z9,0,1", "E16"),
        ("Z2,0,0", "E16"),
        ("Z0,100000,1;X", "E16"),
        ("Z0,100000,1;X2,27", "E16"),
        ("Z0,100000,1;X1,ff", "E16"),
        ("Z0,100000,1;Xffffffffffffffff,27", "E16"),
        ("z0,123456789,1", "OK"),
        ("X200000,4:ab", "E16"),
        ("X200000", "E16"),
        ("qCRC:0,", "E16"),
        ("qSearch:memory:0;10;", "E16"),
        ("qXfer:threads:read::0,10000", "l<?xml*"),
        ("qXfer:threads:read::fffffff,10", "l"),
        ("Hg-1", "OK"),
        ("Hgp1.1", "OK"),
        ("qRcmd,zz", "E16"),
        ("pffff", "E16"),
        ("P10", "E16"),
        ("vCont;r1:p1.1", "E16"),
        ("vCont;s:p1.9", "E03"),
        ("Hgzz", "E16"),
        ("M200000,4:zz", "E16"),
        ("T99", "E03"),
        ("vCont;s", "T05*"),
        ("vCont;s:0", "T05*"),
        ("S05", "T05*"),
    ] {
        client.expect(packet, reply)?;
    }
    let mut long = vec![b'$'];
    long.resize(LONGEST + 100, b'm');
    long.extend(b"#00");
    client.send(&long)?;
    client.expect("", "E16").or_else(|_| client.reply())?;
    drop(client);

    // More hardware breakpoints than there are.
    let mut client = Client::attach(socket, limit)?;
    let mut refused = 0;
    for index in 0..20 {
        let reply = client.ask(&format!("Z1,{:x},4", 0x4020_1000 + index * 4))?;
        check(reply == "OK" || reply == "E1c", || format!("Z1 is answered with {reply}"))?;
        refused += i32::from(reply == "E1c");
    }
    check(refused > 0, || "twenty hardware breakpoints are taken".into())?;
    for index in 0..20 {
        client.expect(&format!("z1,{:x},4", 0x4020_1000 + index * 4), "OK")?;
    }
    let now = client.ask("p10")?;
    check(now.len() == pc.len(), || format!("the registers are {now}"))?;
    Ok(client)
}

/// A breakpoint where the guest's own loader copies the code afterwards, over what was planted for it: it
/// stops, its conditions count, and what was copied runs.
pub fn loaded_code(c: &mut Context) -> Check {
    let (guest, socket) = (c.guest("loader", false)?, c.work.join("gdb.sock"));
    let (place, pc, kind) = match c.isa {
        arch::Isa::X86_64 => (0x20_0000u64, "10", 1),
        arch::Isa::Aarch64 => (0x4100_0000, "20", 4),
    };
    let little: String = place.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    // Never true, and none.
    for (condition, stops) in [(";X3,220027", false), ("", true)] {
        let mut vmm =
            c.start(Wiring::Pipes, "-v --gdb unix:{} --kernel {} --memory 64M", &[&socket, &guest])?;
        let driven = Client::attach(&socket, c.limit(10)).and_then(|mut client| {
            client.expect(&format!("Z0,{place:x},{kind}{condition}"), "OK")?;
            client.send(&frame(&[b"qRcmd,", &hex(b"breakpoints")[..]].concat()))?;
            let told = client.console_reply()?;
            check(told.contains("its code is still to come"), || format!("breakpoints: {told}"))?;
            client.run()?;
            let mut stop = client.reply()?;
            if stops {
                let is_there = stop.contains(&format!("{pc}:{little}")) && stop.contains("swbreak");
                check(is_there, || format!("it stops with {stop}"))?;
                // It is planted again, and hidden.
                let nop = if kind == 1 { "90" } else { "1f2003d5" };
                client.expect(&format!("m{place:x},{kind}"), nop)?;
                client.run()?;
                stop = client.reply()?;
            }
            check(stop.starts_with("W21"), || format!("the guest ends with {stop}"))?;
            vmm.wait(c.limit(10))
        });
        c.keep("vmm", &vmm);
        let code = driven.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
        check(code == 0x21, || format!("vmm ended with {code}"))?;
    }
    Ok(())
}

/// A thousand breakpoints, and vCPUs that the guest has not started.
pub fn many_breakpoints_and_vcpus(c: &mut Context) -> Check {
    with_guest(c, "count", "--cpus 3", insert_a_thousand)
}

fn insert_a_thousand(c: &Context, socket: &Path) -> Result<Client, String> {
    let mut client = Client::attach(socket, c.limit(10))?;
    let threads = client.ask("qXfer:threads:read::0,10000")?;
    check(threads.matches("not started").count() == 2, || format!("the threads are {threads}"))?;
    let base = match c.isa {
        arch::Isa::X86_64 => 0x20_0000,
        arch::Isa::Aarch64 => 0x4100_0000,
    };
    for index in 0..1000 {
        client.expect(&format!("Z0,{:x},4", base + index * 8), "OK")?;
    }
    let memory = client.ask(&format!("m{base:x},100"))?;
    check(memory.bytes().all(|digit| digit == b'0'), || format!("planted instructions are seen: {memory}"))?;
    client.expect(&format!("M{base:x},4:01020304"), "OK")?;
    client.expect("vCont;s:p1.1", "T05*")?;
    client.expect(&format!("m{base:x},4"), "01020304")?;
    for index in (0..1000).rev() {
        client.expect(&format!("z0,{:x},4", base + index * 8), "OK")?;
    }
    client.expect(&format!("m{base:x},8"), "0102030400000000")?;
    Ok(client)
}

/// One range step goes round a loop a thousand times: two packets.
pub fn range_step(c: &mut Context) -> Check {
    with_guest(c, "count", "", step_a_range)
}

fn step_a_range(c: &Context, socket: &Path) -> Result<Client, String> {
    let mut client = Client::attach(socket, c.limit(60))?;
    // The counter's register, its value, and a range that has all of the guest.
    let (register, value, range) = match c.isa {
        arch::Isa::X86_64 => ("1", 99_000u64, "100000,100400"),
        arch::Isa::Aarch64 => ("13", 99_000, "40200000,40200400"),
    };
    client.expect("vCont;s:p1.1", "T05*")?;
    for _ in 0..8 {
        client.expect("vCont;s:p1.1", "T05*")?;
    }
    let bytes: String = value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    client.expect(&format!("P{register}={bytes}"), "OK")?;
    // A breakpoint behind the loop ends the range step.
    let done = match c.isa {
        arch::Isa::X86_64 => "100021",
        arch::Isa::Aarch64 => "4020002c",
    };
    client.expect(&format!("Z0,{done},4"), "OK")?;
    let stop = client.ask(&format!("vCont;r{range}:p1.1"))?;
    check(stop.contains("swbreak"), || format!("the range step ends with {stop}"))?;
    let count = client.ask(&format!("p{register}"))?;
    check(count.starts_with("a086010000000000"), || format!("the counter is {count}"))?;
    // A range that the next instruction leaves.
    client.expect(&format!("z0,{done},4"), "OK")?;
    client.expect("vCont;r0,1:p1.1", "T05*")?;
    Ok(client)
}

/// A guest that uses breakpoint instructions, debug registers and steps of its own, in the kernel
/// and in user mode, sees the same without a debugger, with breakpoints and watchpoints of the
/// debugger beside its own, and stepped through from end to end.
pub fn own_traps_in_both_rings(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("traps", false)?, c.limit(10));
    let alone = c.run("--kernel {}", &[&guest], limit)?;
    alone.expect_code(0x41)?;
    let lines = alone.output.lines().count();
    let expected = if c.isa == arch::Isa::X86_64 { 11 } else { 13 };
    check(lines == expected, || format!("the guest prints {lines} lines:\n{}", alone.output))?;
    let symbols = Symbols::read(&guest)?;
    for (how, drive) in [
        ("with breakpoints", drive_with_breakpoints as fn(&Context, &mut Client, &Symbols) -> Check),
        ("stepped", drive_with_steps),
    ] {
        let socket = c.work.join("gdb.sock");
        let mut vmm =
            c.start(Wiring::Pipes, "-v --gdb unix:{} --kernel {} --memory 64M", &[&socket, &guest])?;
        let driven = Client::attach(&socket, c.limit(30)).and_then(|mut client| {
            drive(c, &mut client, &symbols)?;
            vmm.wait(c.limit(10))
        });
        c.keep("vmm", &vmm);
        let code = driven.map_err(|error| format!("{how}: {error}\n{}", vmm.output.text()))?;
        check(code == 0x41, || format!("{how}: vmm ended with {code}"))?;
        let seen = vmm.output.text();
        check(seen == alone.output, || {
            format!("{how}, the guest sees\n{seen}\ninstead of\n{}", alone.output)
        })?;
    }
    Ok(())
}

/// Breakpoints, a hardware breakpoint, a watchpoint and a false condition of the debugger's, at
/// and around places where the guest has its own.
fn drive_with_breakpoints(c: &Context, client: &mut Client, symbols: &Symbols) -> Check {
    let kind = if c.isa == arch::Isa::X86_64 { 1 } else { 4 };
    let (work, watched) = (symbols.get("work")?, symbols.get("watched")?);
    let insert = [
        format!("Z0,{work:x},{kind}"),
        format!("Z1,{:x},{kind}", symbols.get("user_part")?),
        format!("Z2,{watched:x},4"),
        // Never true.
        format!("Z0,{:x},{kind};X3,220027", symbols.get("kernel_part")?),
    ];
    for packet in &insert {
        client.expect(packet, "OK")?;
    }
    let mut stops = Vec::new();
    loop {
        client.run()?;
        let stop = client.reply()?;
        if stop.starts_with('W') {
            break;
        }
        let (is_end, is_watch) = (stop.contains("hwbreak"), stop.contains("watch"));
        stops.push(stop);
        if is_watch && c.isa == arch::Isa::Aarch64 {
            // The access is still to come, and debuggers step over it.
            client.expect(&format!("z2,{watched:x},4"), "OK")?;
            client.expect("vCont;s:p1.1", "T05*")?;
            client.expect(&format!("Z2,{watched:x},4"), "OK")?;
        }
        check(stops.len() < 20, || format!("it stops again and again: {stops:?}"))?;
        if is_end {
            // KVM takes a step of the guest's own on aarch64 while it debugs (README): before
            // those come, all of the debugger's goes.
            client.expect(&format!("z1,{:x},{kind}", symbols.get("user_part")?), "OK")?;
            client.expect(&format!("Z1,{:x},{kind}", symbols.get("own_steps")?), "OK")?;
        }
        if stops.iter().filter(|stop| stop.contains("hwbreak")).count() == 2 {
            client.expect(&format!("z0,{work:x},{kind}"), "OK")?;
            client.expect(&format!("z2,{watched:x},4"), "OK")?;
            client.expect(&format!("z0,{:x},{kind}", symbols.get("kernel_part")?), "OK")?;
            client.expect(&format!("z1,{:x},{kind}", symbols.get("own_steps")?), "OK")?;
        }
    }
    let count = |text: &str| stops.iter().filter(|stop| stop.contains(text)).count();
    let counts = (count("swbreak"), count("hwbreak"), count("watch"));
    check(counts == (2, 2, 2), || format!("the stops are {stops:?}"))
}

/// Steps through the guest up to the steps of its own.
fn drive_with_steps(c: &Context, client: &mut Client, symbols: &Symbols) -> Check {
    let pc = if c.isa == arch::Isa::X86_64 { "10:" } else { "20:" };
    // KVM takes a step of the guest's own on aarch64 while it debugs; before those come, the
    // debugger goes.
    let end = symbols.get(if c.isa == arch::Isa::X86_64 { "end" } else { "own_steps" })?;
    let end: String = end.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut count = 0;
    loop {
        let stop = client.expect("vCont;s:p1.1", "T05*").map_err(|error| format!("step {count}: {error}"))?;
        count += 1;
        if stop.contains(&format!(";{pc}{end}")) {
            break;
        }
        check(count < 50_000, || format!("it never comes to its end; it is at {stop}"))?;
    }
    client.run()?;
    let stop = client.reply()?;
    check(stop.starts_with('W'), || format!("it stops with {stop}"))
}

/// A breakpoint asked for before its page is mapped belongs to the page that is mapped first: not
/// to the one that takes the address later, and to every other name of the first.
pub fn remapped_page(c: &mut Context) -> Check {
    const ALIAS: u64 = 0x1_4000_0000;
    let (guest, socket) = (c.guest("remap", false)?, c.work.join("gdb.sock"));
    let mut vmm = c.start(Wiring::Pipes, "-v --gdb unix:{} --kernel {} --memory 64M", &[&socket, &guest])?;
    let (kind, pc) = if c.isa == arch::Isa::X86_64 { (1, "10") } else { (4, "20") };
    let driven = Client::attach(&socket, c.limit(10)).and_then(|mut client| {
        client.expect(&format!("Z0,{ALIAS:x},{kind}"), "OK")?;
        for address in [ALIAS, ALIAS + 0x1000, ALIAS] {
            client.run()?;
            let stop = client.reply()?;
            let place: String = address.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            check(stop.contains(&format!("{pc}:{place}")), || format!("not at {address:#x} but {stop}"))?;
        }
        client.run()?;
        let stop = client.reply()?;
        check(stop.starts_with("W27"), || format!("the guest ends with {stop}"))?;
        vmm.wait(c.limit(10))
    });
    c.keep("vmm", &vmm);
    let code = driven.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 0x27, || format!("vmm ended with {code}"))
}

/// Addresses of a guest's symbols.
struct Symbols(Vec<(String, u64)>);

impl Symbols {
    fn read(guest: &Path) -> Result<Symbols, String> {
        let bytes = std::fs::read(guest).map_err(|error| error.to_string())?;
        let symbols = crate::guests::symbols(&bytes).ok_or("the guest has no symbols")?;
        Ok(Symbols(symbols))
    }

    fn get(&self, name: &str) -> Result<u64, String> {
        let found = self.0.iter().find(|(symbol, _)| symbol == name);
        found.map(|(_, address)| *address).ok_or_else(|| format!("there is no symbol {name}"))
    }
}

/// Steps over every kind of instruction that is hard to step, with an interrupt pending all the
/// time: each lands where it should, and what the guest sees of it is right.
pub fn hard_steps(c: &mut Context) -> Check {
    let pairs: &[(&str, &str)] = match c.isa {
        arch::Isa::X86_64 => &[
            ("at_rep", "at_rep"),
            ("at_rep", "after_rep"),
            ("at_pushf", "after_pushf"),
            ("at_popf", "after_popf"),
            ("at_sti", "after_sti"),
            ("after_sti", "after_shadow"),
            ("after_shadow", "after_open"),
            ("after_open", "after_cli"),
            ("at_mov_ss", "behind_mov_ss"),
            ("at_fault", "after_fault"),
            ("after_fault", "in_fault"),
            ("at_int", "after_int"),
            ("at_iret", "after_iret"),
            ("at_syscall", "after_syscall"),
            ("at_sysret", "after_sysret"),
            ("at_refused", "after_refused"),
            ("at_absent", "after_absent"),
            ("at_sysretl", "after_sysretl"),
            ("after_sysretl", "at_int_32"),
            ("at_int_32", "after_int"),
            ("at_no_syscall", "after_no_syscall"),
            ("at_hlt", "after_hlt"),
        ],
        arch::Isa::Aarch64 => &[
            ("at_open", "after_open"),
            ("after_open", "at_read"),
            ("at_read", "after_read"),
            ("after_read", "after_close"),
            ("at_exclusive", "after_exclusive"),
            ("at_exclusive_fault", "after_fault"),
            ("at_wfi", "after_wfi"),
            ("at_fault", "after_fault"),
            ("at_eret", "after_eret"),
            ("at_svc", "after_svc"),
        ],
    };
    step_through(c, "steps", pairs)
}

/// The same of a 32-bit kernel.
pub fn hard_steps_of_32_bits(c: &mut Context) -> Check {
    step_through(
        c,
        "steps32",
        &[
            ("at_inc", "after_inc"),
            ("at_ud", "after_ud"),
            ("at_div", "after_div"),
            ("at_int", "after_int"),
            ("at_into", "after_into"),
            ("at_absent", "after_absent"),
            ("at_pushf", "after_pushf"),
        ],
    )
}

/// Steps through a guest that says by its exit code whether it was disturbed.
fn step_through(c: &mut Context, guest: &str, pairs: &[(&str, &str)]) -> Check {
    let (guest, socket) = (c.guest(guest, false)?, c.work.join("gdb.sock"));
    let mut vmm = c.start(Wiring::Pipes, "-v --gdb unix:{} --kernel {} --memory 64M", &[&socket, &guest])?;
    let stepped = step_from_label_to_label(c, &guest, &socket, pairs).and_then(|()| vmm.wait(c.limit(10)));
    c.keep("vmm", &vmm);
    let code = stepped?;
    check(code == 0x41, || format!("vmm ended with {code}: the guest's check {} failed", code / 2))
}

fn step_from_label_to_label(c: &Context, guest: &Path, socket: &Path, pairs: &[(&str, &str)]) -> Check {
    let mut client = Client::attach(socket, c.limit(5))?;
    let symbols = Symbols::read(guest)?;
    let kind = if c.isa == arch::Isa::X86_64 { 1 } else { 4 };
    let at = |address: u64| -> String {
        let bytes: String = address.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!(";{}:{bytes};", if c.isa == arch::Isa::X86_64 { "10" } else { "20" })
    };
    let mut place = String::new();
    for (from, to) in pairs {
        let (from_address, to_address) = (symbols.get(from)?, symbols.get(to)?);
        if !place.contains(&at(from_address)) {
            client.expect(&format!("Z1,{from_address:x},{kind}"), "OK")?;
            client.run()?;
            place = client.reply().map_err(|error| format!("on the way to {from}: {error}"))?;
            check(place.contains(&at(from_address)), || {
                format!("on the way to {from} it stops with {place}")
            })?;
            client.expect(&format!("z1,{from_address:x},{kind}"), "OK")?;
        }
        place = client.expect("vCont;s:p1.1", "T05*").map_err(|error| format!("{from}: {error}"))?;
        check(place.contains(&at(to_address)), || format!("a step from {from} ends with {place}"))?;
    }
    client.run()?;
    let stop = client.reply().map_err(|error| format!("at the end: {error}"))?;
    check(stop.starts_with('W'), || format!("it ends with {stop}"))
}

/// The program counter that a stop tells.
fn pc_of(isa: arch::Isa, stop: &str) -> Result<u64, String> {
    let field = if isa == arch::Isa::X86_64 { ";10:" } else { ";20:" };
    let hex = stop.split_once(field).and_then(|(_, rest)| rest.get(..16));
    let bytes = hex.and_then(|hex| debug::gdb::packet::from_hex(hex.as_bytes()));
    bytes
        .and_then(|bytes| arch::bytes::u64_at(&bytes, 0))
        .ok_or_else(|| format!("no program counter in {stop}"))
}

/// Whatever exit an instruction makes, a step is one instruction, and a row of them ends.
pub fn device_steps(c: &mut Context) -> Check {
    use debug::disassemble::{OperatingMode, disassemble};
    let (guest, socket) = (c.guest("device_steps", false)?, c.work.join("gdb.sock"));
    let mut vmm = c.start(Wiring::Pipes, "-v --gdb unix:{} --kernel {} --memory 64M", &[&socket, &guest])?;
    let step = || -> Check {
        let mut client = Client::attach(&socket, c.limit(10))?;
        let symbols = Symbols::read(&guest)?;
        let (mut pc, last) = (symbols.get("first")?, symbols.get("last")?);
        let kind = if c.isa == arch::Isa::X86_64 { 1 } else { 4 };
        client.expect(&format!("Z1,{pc:x},{kind}"), "OK")?;
        // It may be there already.
        client.run()?;
        let stop = client.reply()?;
        check(pc_of(c.isa, &stop)? == pc, || format!("it does not begin at {pc:x}: {stop}"))?;
        client.expect(&format!("z1,{pc:x},{kind}"), "OK")?;
        let mut repeated = 0;
        while pc != last {
            let code = client.ask(&format!("m{pc:x},f"))?;
            let code = debug::gdb::packet::from_hex(code.as_bytes()).unwrap_or_default();
            let known = disassemble(c.isa, OperatingMode::Bits64, &code)
                .ok_or_else(|| format!("no code at {pc:x}"))?;
            let now = pc_of(c.isa, &client.expect("vCont;s:p1.1", "T05*")?)?;
            let repeats = known.text.contains("rep") && now == pc;
            repeated = if repeats { repeated + 1 } else { 0 };
            check((repeats && repeated <= 4) || now == pc + known.length as u64, || {
                format!("a step of '{}' from {pc:x} ends at {now:x}", known.text)
            })?;
            pc = now;
        }
        client.run()?;
        let end = client.reply()?;
        check(end.starts_with('W'), || format!("it ends with {end}"))
    };
    let stepped = step().and_then(|()| vmm.wait(c.limit(10)));
    c.keep("vmm", &vmm);
    let code = stepped?;
    check(code == 3, || format!("vmm ended with {code}"))?;
    let written = match c.isa {
        arch::Isa::X86_64 => "aaabcd",
        arch::Isa::Aarch64 => "aaa",
    };
    check(vmm.output.text() == written, || format!("the serial port was written {}", vmm.output.text()))
}

/// A step of a vCPU that sits in a halt ends behind the next instruction, though no interrupt comes.
pub fn steps_from_a_halt(c: &mut Context) -> Check {
    with_guest(c, "halt", "", |c, socket| {
        let mut client = Client::attach(socket, c.limit(10))?;
        for _ in 0..10 {
            client.run()?;
            let stop = client.interrupt()?;
            check(stop.starts_with("T02"), || format!("an interrupt stops with {stop}"))?;
            for _ in 0..5 {
                client.expect("vCont;s:p1.1", "T05*")?;
            }
        }
        Ok(client)
    })
}

/// What passes a breakpoint without a step leaves the same registers as the processor does.
pub fn simulated_instructions(c: &mut Context) -> Check {
    with_guest(c, "count", "", |c, socket| {
        let mut client = Client::attach(socket, c.limit(20))?;
        // Out of the boot loader's state: the guest's first instruction has been executed.
        client.expect("vCont;s:p1.1", "T05*")?;
        for (number, code) in instructions(c.isa).into_iter().enumerate() {
            for seed in 0..4u64 {
                compare_with_processor(c.isa, &mut client, &code, seed)
                    .map_err(|error| format!("instruction {number}, {code:02x?}, seed {seed}: {error}"))?;
            }
        }
        Ok(client)
    })
}

fn instructions(isa: arch::Isa) -> Vec<Vec<u8>> {
    let x86: &[&[u8]] = &[
        &[0x90],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x83, 0xc0, 0x01],
        &[0x48, 0x83, 0xc0, 0xff],
        &[0x48, 0x83, 0xec, 0x28],
        &[0x83, 0xe8, 0x80],
        &[0x48, 0x81, 0xe1, 0x00, 0x00, 0x00, 0x80],
        &[0x83, 0xf1, 0x55],
        &[0x48, 0x83, 0xfa, 0x00],
        &[0x48, 0x29, 0xd8],
        &[0x01, 0xd8],
        &[0x4d, 0x01, 0xc1],
        &[0x31, 0xd2],
        &[0x48, 0x85, 0xc0],
        &[0x39, 0xc8],
        &[0x48, 0x89, 0xe5],
        &[0x41, 0x89, 0xf8],
        &[0xb9, 0xff, 0xff, 0xff, 0xff],
        &[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff],
        &[0x48, 0x8d, 0x05, 0x10, 0x00, 0x00, 0x00],
        &[0x48, 0x8d, 0x44, 0xb7, 0x08],
        &[0x8d, 0x44, 0x24, 0x20],
        &[0xff, 0xc1],
        &[0x49, 0xff, 0xc9],
        &[0xeb, 0x10],
        &[0x74, 0x10],
        &[0x72, 0x10],
        &[0x7c, 0x10],
        &[0x7f, 0x10],
        &[0x78, 0x10],
        &[0x7a, 0x10],
        &[0x70, 0x10],
        &[0x0f, 0x87, 0x00, 0x01, 0x00, 0x00],
    ];
    let arm: &[u32] = &[
        0xd503_201f,
        0x9100_0400,
        0xd101_03ff,
        0x9100_03fd,
        0x9140_0420,
        0xaa02_03e1,
        0x2a22_03e1,
        0x8b02_0c20,
        0x4b01_0040,
        0xca81_0820,
        0x0a82_0c20,
        0xd2a0_0020,
        0x1280_0000,
        0xf2c0_0021,
        0xf100_043f,
        0x3100_0400,
        0xea00_001f,
        0x6b02_003f,
        0xeb42_0c3f,
        0x2b82_0020,
        0x1000_0040,
        0x70ff_ffe0,
        0xb000_0000,
        0x1400_0004,
        0x9400_0002,
        0x5400_0040,
        0x5400_0041,
        0x5400_004b,
        0x5400_004c,
        0x5400_0048,
        0x5400_0046,
        0x5400_0044,
        0xb400_0041,
        0xb500_0041,
        0x3600_0041,
        0x3708_0041,
        0xb7f8_0041,
        0xd503_245f,
    ];
    match isa {
        arch::Isa::X86_64 => x86.iter().map(|code| code.to_vec()).collect(),
        arch::Isa::Aarch64 => arm.iter().map(|word| word.to_le_bytes().to_vec()).collect(),
    }
}

fn compare_with_processor(isa: arch::Isa, client: &mut Client, code: &[u8], seed: u64) -> Check {
    let (place, general, pc, flags, kind) = match isa {
        arch::Isa::X86_64 => (0x20_0000u64, 16u8, 0x10, 0x11, 1),
        arch::Isa::Aarch64 => (0x4100_0000, 32, 0x20, 0x21, 4),
    };
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    client.expect(&format!("M{place:x},{:x}:{}", code.len(), hex(code)), "OK")?;
    let prepare = |client: &mut Client| -> Check {
        for register in 0..general {
            let value = match seed {
                0 => 0,
                1 => u64::MAX,
                2 => 0x8000_0000_8000_0000 | u64::from(register),
                _ => 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(u64::from(register) + 1),
            };
            client.expect(&format!("P{register:x}={}", hex(&value.to_le_bytes())), "OK")?;
        }
        // All flags that arithmetic sets, or none; the rest as a kernel has it.
        let value: u32 = match (isa, seed & 1) {
            (arch::Isa::X86_64, 0) => 0x2,
            (arch::Isa::X86_64, _) => 0x8d7,
            (arch::Isa::Aarch64, 0) => 0x3c5,
            (arch::Isa::Aarch64, _) => 0xf000_03c5,
        };
        client.expect(&format!("P{flags:x}={}", hex(&value.to_le_bytes())), "OK")?;
        client.expect(&format!("P{pc:x}={}", hex(&place.to_le_bytes())), "OK")?;
        Ok(())
    };
    prepare(client)?;
    client.expect("vCont;s:p1.1", "T05*")?;
    let processor = client.ask("g")?;
    prepare(client)?;
    client.expect(&format!("Z0,{place:x},{kind};X3,220027"), "OK")?;
    client.expect("vCont;s:p1.1", "T05*")?;
    let simulated = client.ask("g")?;
    client.expect(&format!("z0,{place:x},{kind}"), "OK")?;
    check(processor == simulated, || format!("{simulated}\ninstead of\n{processor}"))
}

/// A range step over a loop of a million turns runs at the guest's speed; one with a breakpoint in
/// the loop, whose condition is false, goes over every turn, too.
pub fn range_run(c: &mut Context) -> Check {
    with_guest(c, "next", "", run_a_range)
}

fn run_a_range(c: &Context, socket: &Path) -> Result<Client, String> {
    let mut client = Client::attach(socket, c.limit(10))?;
    let symbols = Symbols::read(&c.work.join("next"))?;
    let (body, done) = (symbols.get("body")?, symbols.get("done")?);
    // The loop's counter, what it counts, and the second instruction.
    let (counter, result, second, kind) = match c.isa {
        arch::Isa::X86_64 => ("2", "0", body + 3, 1),
        arch::Isa::Aarch64 => ("2", "0", body + 4, 4),
    };
    let little =
        |value: u64| -> String { value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect() };
    client.expect(&format!("Z1,{body:x},{kind}"), "OK")?;
    client.run()?;
    client.reply()?;
    client.expect(&format!("z1,{body:x},{kind}"), "OK")?;
    for (turns, breakpoint) in [(1_000_000u64, false), (2000, true)] {
        client.expect(&format!("P{result}={}", little(0)), "OK")?;
        client.expect(&format!("P{counter}={}", little(turns)), "OK")?;
        client.expect(&format!("P{}={}", if kind == 1 { "10" } else { "20" }, little(body)), "OK")?;
        if breakpoint {
            client.expect(&format!("Z0,{second:x},{kind};X3,220027"), "OK")?;
        }
        let stop = client.ask(&format!("vCont;r{body:x},{done:x}:p1.1"))?;
        let place = format!("{}:{}", if kind == 1 { "10" } else { "20" }, little(done));
        check(stop.contains(&place), || format!("{turns} turns end with {stop}"))?;
        let count = client.ask(&format!("p{result}"))?;
        check(count == little(turns), || format!("{turns} turns count {count}"))?;
    }
    Ok(client)
}
