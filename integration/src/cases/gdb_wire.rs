//! The gdb server on the wire: what clients do that stock debuggers do not.

use crate::context::{Check, Context, check};
use crate::process::Wiring;
use crate::rsp::Client;
use debug::gdb::packet::{Item, LONGEST, frame};
use std::path::Path;
use std::time::Duration;

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

/// Attaches anew when the old connection has gone.
fn again(client: Client, socket: &Path, limit: Duration) -> Result<Client, String> {
    drop(client);
    Client::attach(socket, limit)
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
    let words = second.reply()?;
    check(words.contains("another debugger"), || format!("a second client is told {words}"))?;
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
    client.send(b"\xff\x00noise")?;
    client.send(b"$g#00")?;
    let item = client.item()?;
    check(item == Some(Item::Nack), || format!("a wrong checksum is answered with {item:?}"))?;
    drop(client);

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
        ("qRcmd,zz", "E*"),
    ] {
        // What gdbstub itself cannot parse ends the connection, and nothing more.
        match client.expect(packet, reply) {
            Ok(_) => {}
            Err(error) if error.contains("closed") => client = again(client, socket, limit)?,
            Err(error) => return Err(error),
        }
    }
    for packet in ["pffff", "P10", "vCont;r1:p1.1", "Hgzz", "M200000,4:zz", "T99"] {
        match client.ask(packet) {
            Ok(_) => {}
            Err(error) if error.contains("closed") || error.contains("send") => {
                client = again(client, socket, limit)?;
            }
            Err(error) => return Err(error),
        }
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
