//! Networks of guests, with Debian's driver: of their own, and a tap.

use super::gdb_port::monitor;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use crate::traffic;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What Debian's 6.12 has as modules of what a job with a network needs, and the nest for a tap.
pub const MODULES: &[&str] = &[
    "fs/overlayfs/overlay.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
    "net/core/failover.ko",
    "drivers/net/tun.ko",
    "drivers/net/dummy.ko",
];

/// Where forwarded ports are.
const FORWARDED: u16 = 7001;
/// Where gdb is served.
const GDB: u16 = 7002;

/// A root with this program and a script.
fn root_with(c: &Context, script: &str) -> Result<PathBuf, String> {
    let root = c.root()?;
    let made = || -> std::io::Result<()> {
        fs::copy("/proc/self/exe", root.join("bin/case"))?;
        for (name, text) in [("run.sh", script), ("dhcp.sh", DHCP)] {
            fs::write(root.join("bin").join(name), text)?;
        }
        Command::new("/bin/busybox").args(["chmod", "755"]).arg(root.join("bin/dhcp.sh")).status()?;
        Ok(())
    };
    made().map_err(|error| format!("cannot make a root: {error}"))?;
    Ok(root)
}

/// What udhcpc has done with what it is told.
const DHCP: &str = r#"#!/bin/sh
[ "$1" = bound ] && echo "guest: dhcp $ip/$mask by $router names $dns."
exit 0
"#;

/// Starts a guest that does what the script says.
fn start(c: &Context, root: &Path, options: &str) -> Result<Process, String> {
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M {options} -- sh /bin/run.sh",
        c.slowness
    );
    c.start(Wiring::Pipes, &line, &[&c.kernel("6.12"), &c.modules(), root])
}

/// What the guest does whose network reaches the host: addresses, echoes, refusals, traffic both ways, and waiting for
/// who comes from outside.
const EVERYTHING: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
tell "names $(cat /etc/resolv.conf)"
$b ping -c 2 -W 5 10.0.2.2 | grep -q '2 packets received' && tell echoed
$b udhcpc -i eth0 -n -q -f -s /bin/dhcp.sh 2>/dev/null
refused=$($b nc -w 30 10.0.2.2 9 2>&1 </dev/null); tell "closed: $refused"
tell "gdb: $($b nc -w 30 10.0.2.2 GDB </dev/null >/dev/null 2>&1 && echo reached)"
/bin/case --traffic-serve 80 &
while read line; do tell "module $line"; done < /proc/modules
tell begins
/bin/case --traffic 10.0.2.2:PORT BYTES PACKETS 0 SEED
tell over
# Nobody holds it any more.
/bin/case --traffic 10.0.2.2:PORT 0 0 300 SEED
tell turned
cat > /dev/null
"#;

/// A network of the guest's own, made by this program, that reaches the host: all that goes through it, while gdb holds
/// the guest now and then.
pub fn of_its_own(c: &mut Context) -> Check {
    let place = traffic::serve((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| error.to_string())?;
    let (bytes, packets) = (c.length().of(8_000_000, 100_000_000), c.length().of(3000, 100_000));
    let seed = c.chance().below(1 << 30);
    let script = EVERYTHING
        .replace("PORT", &place.port().to_string())
        .replace("GDB", &GDB.to_string())
        .replace("BYTES", &bytes.to_string())
        .replace("PACKETS", &packets.to_string())
        .replace("SEED", &seed.to_string());
    let root = root_with(c, &script)?;
    let gdb = TcpListener::bind((Ipv4Addr::LOCALHOST, GDB)).map_err(|error| error.to_string())?;
    // Whoever is there answers by an end.
    std::thread::spawn(move || gdb.incoming().for_each(drop));
    let socket = c.work.join("gdb.sock");
    let options = format!(
        "--net user,stack=own,host-loopback,hostfwd=tcp::{FORWARDED}-:80,hostfwd=udp::{FORWARDED}-:80 --gdb unix:{}",
        socket.display()
    );
    let mut job = start(c, &root, &options)?;
    let limit = c.limit(c.length().of(60, 1200));
    let mut talk = || -> Check {
        let mut client = Client::attach(&socket, limit)?;
        // Its command is run once.
        monitor(&mut client, "reset", "does not begin again")?;
        client.run()?;
        for line in [
            "guest: names nameserver 10.0.2.3.",
            "guest: echoed.",
            "guest: dhcp 10.0.2.15/24 by 10.0.2.2 names 10.0.2.3.",
            "guest: closed: nc: can't connect to remote host (10.0.2.2): Connection refused.",
            "guest: gdb: reached.",
            "guest: begins.",
        ] {
            job.expect(line, limit)?;
        }
        for _ in 0..3 {
            client.interrupt()?;
            knows_the_modules(&mut client, &job.output.text())?;
            // As long as somebody looks: what is on its way waits with the host.
            std::thread::sleep(Duration::from_millis(700));
            client.run()?;
        }
        job.expect("guest: turned.", limit)?;
        // From outside.
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, FORWARDED));
        let came = traffic::ask(to, bytes / 4, u32::try_from(packets / 4).unwrap_or(0), 0, seed);
        let came = came.map_err(|error| format!("by a forwarded port: {error}"))?;
        println!("{}: from outside: {came}", c.name);
        compared(&came.to_string(), packets / 4)
    };
    let talked = talk();
    job.close_input();
    let ended = job.wait(c.limit(60));
    c.keep("job", &job);
    talked?;
    check(ended? == 0, || job.errors.text())?;
    let text = job.output.text();
    let mut all = text.lines().filter_map(|line| line.strip_prefix("guest: traffic "));
    let (traffic, turns) = all.next().zip(all.next()).ok_or_else(|| format!("no traffic:\n{text}"))?;
    println!("{}: in the guest: {traffic}, and not held: {turns}", c.name);
    compared(traffic, packets)
}

/// A debugger that has no symbols lists the modules that the kernel tells its user space of: a name, bytes, how often it
/// is used, by whom, its state, and where its code is.
fn knows_the_modules(client: &mut Client, said: &str) -> Check {
    let told = said.lines().filter_map(|line| line.strip_prefix("guest: module ")?.strip_suffix('.'));
    let lines: Vec<String> = told
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, size, used, users, "Live", code] => {
                let users = users.trim_end_matches([',', '-']);
                Ok(format!("{name:<24} {size:>10} {used:>5} {code} {users}\n"))
            }
            _ => Err(format!("a module that is not there: {line}")),
        })
        .collect::<Result<_, _>>()?;
    check(lines.iter().any(|line| line.ends_with(" virtio_net\n")), || {
        format!("nobody uses one: {lines:?}")
    })?;
    monitor(client, "lsmod", &lines.concat())
}

/// Nothing of it was wrong, and of datagrams no more lost than where somebody does not come to read.
fn compared(traffic: &str, packets: u64) -> Check {
    let number = |name: &str| -> Option<u64> {
        traffic
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.trim_end_matches('.').parse().ok())
    };
    let is_good = traffic.contains("same=yes")
        && number("corrupted=") == Some(0)
        && number("answered=").is_some_and(|answered| answered * 10 >= packets * 9);
    check(is_good, || format!("of {packets} datagrams: {traffic}"))
}

/// What a guest whose network does not reach the host tries.
const APART: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
for to in '10.0.2.2 GDB' '10.0.2.2 PORT' '127.0.0.1 PORT' 'OWN PORT' '10.0.2.3 PORT'; do
  if $b nc -w 10 $to </dev/null >/dev/null 2>&1; then tell "$to reached"; else tell "$to not"; fi
done
/bin/case --traffic 10.0.2.3:53 0 64 0 1
cat > /dev/null
"#;

/// An address of the host's own, beside its loopback.
const OWN: &str = "192.0.2.9";

/// Gives the host an interface with that address and a default route, and a name server at its loopback, which knows the
/// [traffic].
fn furnish_host(c: &Context) -> Check {
    let failed = |error: std::io::Error| error.to_string();
    c.load_module("dummy.ko".as_ref())?;
    for words in [
        &["link", "add", "host0", "type", "dummy"][..],
        &["addr", "add", &format!("{OWN}/24"), "dev", "host0"],
        &["link", "set", "host0", "up"],
        &["route", "add", "default", "via", "192.0.2.1"],
    ] {
        let status = Command::new("/bin/busybox").arg("ip").args(words).status().map_err(failed)?;
        check(status.success(), || format!("ip {words:?}: {status}"))?;
    }
    fs::create_dir_all("/etc")
        .and_then(|()| fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n"))
        .map_err(failed)?;
    traffic::serve((Ipv4Addr::LOCALHOST, 53).into()).map(drop).map_err(failed)
}

/// A network that does not reach the host: neither our own gdb port nor anything else of it, but its name server.
pub fn apart(c: &mut Context) -> Check {
    furnish_host(c)?;
    stays_apart(c, "own")
}

fn stays_apart(c: &mut Context, stack: &str) -> Check {
    let failed = |error: std::io::Error| error.to_string();
    let place = traffic::serve((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(failed)?;
    let port = place.port().to_string();
    let script = APART.replace("GDB", &GDB.to_string()).replace("PORT", &port).replace("OWN", OWN);
    let root = root_with(c, &script)?;
    let limit = c.limit(60);
    let mut job = start(c, &root, &format!("--net user,stack={stack} --gdb :{GDB} --gdb-no-wait"))?;
    let mut talk = || -> Check {
        for to in [
            format!("10.0.2.2 {GDB}"),
            format!("10.0.2.2 {port}"),
            format!("127.0.0.1 {port}"),
            format!("{OWN} {port}"),
            format!("10.0.2.3 {port}"),
        ] {
            job.expect(&format!("guest: {to} not."), limit)?;
        }
        job.expect("guest: traffic same=yes received=0.0MB/s sent=0.0MB/s datagrams=64 answered=", limit)
    };
    let talked = talk();
    job.close_input();
    let ended = job.wait(limit);
    c.keep("apart", &job);
    talked?;
    check(ended? == 0, || job.errors.text())?;
    check(!job.output.text().contains("reached"), || job.output.text())
}

/// What the guest does whose network passt makes, which reaches the host.
const BY_PASST: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
$b udhcpc -i eth0 -n -q -f -s /bin/dhcp.sh 2>/dev/null
/bin/case --traffic-serve 80 &
/bin/case --traffic 10.0.2.2:PORT BYTES PACKETS 0 5
tell over
cat > /dev/null
"#;

/// The root is to be one that can be changed, as passt(1) does to be alone with nothing: a nest's first one cannot
/// (pivot_root(2)). And the user `nobody`, whom it becomes.
fn furnish_for_passt() -> std::io::Result<()> {
    let none = None::<&str>;
    fs::create_dir_all("/etc")?;
    fs::write("/etc/passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
    fs::create_dir_all("/outer")?;
    mount(Some("/"), "/outer", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    chdir("/outer")?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    Ok(())
}

/// A network that passt makes: addresses, traffic both ways, a forwarded port; and another that does not reach the host.
pub fn by_passt(c: &mut Context) -> Check {
    furnish_host(c)?;
    furnish_for_passt().map_err(|error| format!("the nest is not fit for passt: {error}"))?;
    let place = traffic::serve((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| error.to_string())?;
    let (bytes, packets) = (4_000_000, 1000);
    let script = BY_PASST
        .replace("PORT", &place.port().to_string())
        .replace("BYTES", &bytes.to_string())
        .replace("PACKETS", &packets.to_string());
    let root = root_with(c, &script)?;
    let limit = c.limit(60);
    let options = format!("-v --net user,stack=passt,host-loopback,hostfwd=tcp::{FORWARDED}-:80");
    let mut job = start(c, &root, &options)?;
    let mut talk = || -> Check {
        job.expect("guest: dhcp 10.0.2.15/24 by 10.0.2.2 names 10.0.2.3.", limit)?;
        job.expect("guest: over.", limit)?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, FORWARDED));
        let came =
            traffic::ask(to, bytes / 4, 0, 0, 5).map_err(|error| format!("by a forwarded port: {error}"))?;
        check(came.to_string().contains("same=yes"), || came.to_string())
    };
    let talked = talk();
    job.close_input();
    let ended = job.wait(limit);
    c.keep("job", &job);
    talked?;
    check(ended? == 0, || job.errors.text())?;
    let said = job.errors.text();
    check(said.contains("the guest's network is made by passt"), || said.clone())?;
    let text = job.output.text();
    let traffic = text.lines().find_map(|line| line.strip_prefix("guest: traffic "));
    compared(traffic.ok_or_else(|| format!("no traffic:\n{text}"))?, packets)?;
    stays_apart(c, "passt")
}

/// What a guest on a tap does.
const ON_TAP: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
device=$(readlink /sys/class/net/eth0/device); device=${device##*/}
tell "features $(cat /sys/class/net/eth0/device/features)"
tell "address $(cat /sys/class/net/eth0/address)"
$b ifconfig eth0 192.0.2.2 netmask 255.255.255.0 up
until $b ping -c 1 -W 2 192.0.2.1 >/dev/null; do :; done
tell begins
/bin/case --traffic 192.0.2.1:PORT BYTES PACKETS 300 SEED
tell over
"#;

/// Has the nest make taps.
pub fn load_tun(c: &Context) -> Check {
    c.load_module("tun.ko".as_ref())?;
    fs::create_dir_all("/dev/net").map_err(|error| error.to_string())
}

/// A tap of the nest's, point to point, that leaves checksums and segments out.
pub fn tap(c: &mut Context) -> Check {
    let failed = |error: std::io::Error| error.to_string();
    load_tun(c)?;
    let place = traffic::serve((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(failed)?;
    let (bytes, packets) = (c.length().of(8_000_000, 100_000_000), c.length().of(1000, 100_000));
    let script = ON_TAP
        .replace("PORT", &place.port().to_string())
        .replace("BYTES", &bytes.to_string())
        .replace("PACKETS", &packets.to_string())
        .replace("SEED", "3");
    let root = root_with(c, &script)?;
    let limit = c.limit(c.length().of(60, 1200));
    let mut job = start(c, &root, "--net tap=tap0,mac=02:00:00:00:00:07")?;
    let mut talk = || -> Check {
        job.expect("guest: address 02:00:00:00:00:07.", limit)?;
        for words in [&["addr", "add", "192.0.2.1/24", "dev", "tap0"][..], &["link", "set", "tap0", "up"]] {
            let status = Command::new("/bin/busybox").arg("ip").args(words).status().map_err(failed)?;
            check(status.success(), || format!("ip {words:?}: {status}"))?;
        }
        job.expect("guest: over.", limit)
    };
    let talked = talk();
    job.close_input();
    let ended = job.wait(limit);
    c.keep("job", &job);
    talked?;
    check(ended? == 0, || job.errors.text())?;
    let text = job.output.text();
    let of = |what: &str| text.lines().find_map(|line| line.strip_prefix("guest: ")?.strip_prefix(what));
    // Checksums and long segments, each way (virtio 1.2, 5.1.3).
    let features = of("features ").unwrap_or_default();
    let has = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
    check([0, 1, 7, 8, 11, 12, 15].into_iter().all(has), || format!("features {features}"))?;
    let traffic = of("traffic ").ok_or_else(|| format!("no traffic:\n{text}"))?;
    println!("{}: in the guest: {traffic}", c.name);
    compared(traffic, packets)
}

/// What is no network, or cannot be had, is one line with what helps.
pub fn bad(c: &mut Context) -> Check {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    let port = taken.local_addr().map_err(|error| error.to_string())?.port();
    for (net, code, says) in [
        ("slirp", 2, "write none, user, or tap=NAME"),
        ("user,hostfwd=tcp:22", 2, "write tcp:2222-:22"),
        ("user,hostfwd=tcp:1-10.0.2.16:1", 2, "the guest is 10.0.2.15"),
        ("tap=none,host-loopback", 2, "write tap=tap0"),
        ("user,mac=01:00:00:00:00:00", 2, "no address of one interface"),
        (&format!("user,stack=own,hostfwd=tcp::{port}-:22"), 8, "choose another port"),
        ("user,stack=own,hostfwd=udp:198.51.100.1:5353-:53", 8, "cannot listen at 198.51.100.1:5353"),
    ] {
        let run = c.run(&format!("--net {net}"), &[], c.limit(20))?;
        run.expect_code(code).map_err(|error| format!("{net}: {error}"))?;
        check(run.errors.contains(says), || format!("{net}: {}", run.errors))?;
    }
    Ok(())
}
