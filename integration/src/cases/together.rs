//! All devices of a guest at once, under load, while a debugger stops, steps and lets it go on, and dumps are written:
//! what was sent arrives, what was written is there, and no interrupt is lost, by which somebody would wait for ever.

use super::again::{SIZE as SMALL, free_port};
use super::vsock;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::random_files;
use crate::rsp::Client;
use crate::traffic;
use nix::sys::signal::Signal;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a round's writes to the disk.
const ROUND: u64 = 1 << 20;
/// The guest's name.
const NAME: &str = "together";

/// What the guest does, all of it at the same time.
const SCRIPT: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
cd /mnt
$b mount -t tmpfs tmpfs /tmp
$b ifconfig lo 127.0.0.1; $b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 && $b route add default gw 10.0.2.2
tell begins
( /mnt/case FILES /mnt/random /tmp/random SEED STEPS && tell files-same ) &
( /mnt/case TRAFFIC 10.0.2.2:PORT BYTES PACKETS 50 SEED ) &
( /mnt/case VSOCK SEED SOCKETBYTES ) &
( tell "random $($b dd if=/dev/hwrng bs=64 count=32 2>/dev/null | $b wc -c)" ) &
( n=0; same=yes
  while [ $n -lt ROUNDS ]; do
    $b head -c 1048576 /dev/urandom > /tmp/blob
    $b dd if=/tmp/blob of=/dev/vda bs=64k seek=$((n * 16)) conv=fsync,notrunc 2>/dev/null
    echo 1 > /proc/sys/vm/drop_caches
    $b dd if=/dev/vda of=/tmp/back bs=64k skip=$((n * 16)) count=16 2>/dev/null
    $b cmp /tmp/blob /tmp/back || same=no
    $b cat /tmp/blob >> /mnt/written
    $b dd if=/tmp/blob of=/dev/vdb bs=4k seek=$n count=1 conv=fsync,notrunc 2>/dev/null
    n=$((n + 1))
  done; tell "disk-same $same" ) &
wait
tell over
read -r word
"#;

/// Files for the guest, and its script.
fn prepare(c: &Context, rounds: u64, port: u16) -> Check {
    let seed = c.chance().below(1 << 30).to_string();
    let script = SCRIPT
        .replace("FILES", random_files::WORD)
        .replace("TRAFFIC", traffic::ASK)
        .replace("VSOCK", vsock::WORD)
        .replace("SOCKETBYTES", &c.length().of(256 << 10, 64 << 20).to_string())
        .replace("SEED", &seed)
        .replace("STEPS", &c.length().of(150, 8000).to_string())
        .replace("PORT", &port.to_string())
        .replace("PACKETS", &c.length().of(500, 100_000).to_string())
        .replace("BYTES", &c.length().of(1_000_000, 100_000_000).to_string())
        .replace("ROUNDS", &rounds.to_string());
    let shared = c.work.join("shared");
    let made = || -> io::Result<()> {
        fs::create_dir_all(&shared)?;
        fs::copy("/proc/self/exe", shared.join("case"))?;
        fs::set_permissions(shared.join("case"), Permissions::from_mode(0o755))?;
        File::create(c.work.join("disk.img"))?.set_len(rounds * ROUND)?;
        File::create(c.work.join("snapshot.img"))?.set_len(SMALL)
    };
    made().map_err(|error| format!("{}: {error}", c.work.display()))?;
    c.write(&shared.join("run.sh"), script.as_bytes())
}

pub fn under_load(c: &mut Context) -> Check {
    let rounds = c.length().of(4, 200);
    let place = traffic::serve((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| error.to_string())?;
    prepare(c, rounds, place.port())?;
    let (socket, work) = (c.work.join("gdb.sock"), c.work.display().to_string());
    let of_host = c.work.join(format!("vsock_{}", vsock::OF_HOST));
    let listener = UnixListener::bind(of_host).map_err(|error| error.to_string())?;
    // It says back what the guest says.
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(vsock::echo(&stream, &stream)))
    });
    let line = format!(
        "--name {NAME} --cpus 2 --memory 384M --cmdline loglevel=4~vmm.run=share~vmm.script=run.sh --gdb unix:{{}} \
         --entropy --disk {work}/disk.img --disk {work}/snapshot.img,snapshot --share {work}/shared,tag=shared \
         --vsock 42,path={work}/vsock --net user,stack=own,host-loopback,hostfwd=tcp::{}-:80 --kernel {{}} --initrd {{}}",
        free_port()?
    );
    let mut vmm = c.start(Wiring::Pipes, &line, &[&socket, &c.kernel("6.12"), &c.initrd()])?;
    let limit = c.limit(c.length().of(90, 3000));
    let told = debugged(c, &mut vmm, &socket, limit);
    if told.is_err() {
        vmm.signal(Signal::SIGTERM)?;
    }
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    let stops = told?;
    check(code? == 0, || vmm.errors.text())?;
    let text = vmm.output.text();
    println!("{}: {stops} stops", c.name);
    for line in ["files-same", "random 2048", "disk-same yes", "same", "refused", "complaints=0"] {
        check(text.contains(&format!("guest: {line}")), || format!("it does not say {line}:\n{text}"))?;
    }
    check(text.contains("guest: traffic same=yes") && text.contains(" corrupted=0 "), || text.clone())?;
    let same = fs::read(c.work.join("disk.img"))
        .and_then(|disk| Ok(disk == fs::read(c.work.join("shared/written"))?))
        .map_err(|error| error.to_string())?;
    check(same, || "the disk is not what was written to it".into())?;
    let snapshot = fs::read(c.work.join("snapshot.img")).map_err(|error| error.to_string())?;
    check(snapshot.iter().all(|byte| *byte == 0), || "an image that is only read has been written".into())
}

/// Stops the guest again and again until it has done all that it has to; how often.
fn debugged(c: &mut Context, vmm: &mut Process, socket: &Path, limit: Duration) -> Result<u32, String> {
    let mut client = Client::attach(socket, limit)?;
    client.run()?;
    vmm.expect("guest: begins.", limit)?;
    let (vsock, core) = (c.work.join("vsock"), c.work.join("core"));
    let (mut chance, deadline, mut stops) = (c.chance(), Instant::now() + limit, 0);
    let mut is_reached = false;
    while !vmm.output.text().contains("guest: over.") {
        check(Instant::now() < deadline, || format!("it has not done all after {stops} stops"))?;
        if !is_reached && vmm.output.text().contains("guest: ready") {
            is_reached = true;
            drop([vsock::reach(&vsock, vsock::OF_GUEST)?, vsock::reach(&vsock, vsock::OF_GUEST)?]);
        }
        // What the guest does between two stops is up to chance.
        thread::park_timeout(Duration::from_millis(50 + chance.below(400)));
        client.interrupt()?;
        for _ in 0..chance.below(4) {
            let vcpu = 1 + chance.below(2);
            client.expect(&format!("vCont;s:p1.{vcpu}"), "T05*")?;
        }
        if chance.below(6) == 0 {
            c.run(&format!("dump {NAME} {{}}"), &[&core], limit)?.expect_code(0)?;
            fs::remove_file(&core).map_err(|error| error.to_string())?;
        }
        client.run()?;
        stops += 1;
    }
    client.interrupt()?;
    client.expect("D;1", "OK")?;
    vmm.send("go\n")?;
    vmm.expect("guest: complaints=", limit)?;
    Ok(stops)
}
