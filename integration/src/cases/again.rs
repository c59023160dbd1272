//! Guests that begin again with devices: what these have of the host outlives the guest's reset.

use super::{gdb_port, vsock};
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use disk::sample::Sample;
use disk::{Access, Image, Options};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each image.
pub(super) const SIZE: u64 = 4 << 20;

/// Something of the host's for a device of each kind, in the case's folder.
fn prepare(c: &Context) -> Result<(), String> {
    let made = || -> io::Result<()> {
        for folder in ["images", "shared", "temporary"] {
            fs::create_dir_all(c.work.join(folder))?;
        }
        for name in ["raw.img", "snapshot.img"] {
            File::create(c.work.join("images").join(name))?.set_len(SIZE)?;
        }
        let qcow2 = Sample::new(SIZE).build().map_err(io::Error::other)?;
        fs::write(c.work.join("images/grows.qcow2"), qcow2)
    };
    made().map_err(|error| format!("{}: {error}", c.work.display()))
}

/// A port that nobody has by now.
pub(super) fn free_port() -> Result<u16, String> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    taken.map(|address| address.port()).map_err(|error| error.to_string())
}

/// The options of all devices, with a port of the host's that leads to the guest's port 80.
fn devices(c: &Context, port: u16) -> String {
    let work = c.work.display();
    format!(
        "--entropy --disk {work}/images/raw.img --disk {work}/images/grows.qcow2 \
         --disk {work}/images/snapshot.img,snapshot --share {work}/shared,tag=shared \
         --vsock 42,path={work}/vsock --net user,stack=own,hostfwd=tcp::{port}-:80"
    )
}

/// A guest that resets itself all the time, with devices on either transport, and one that its debugger has begin again:
/// neither meets what it has itself. What it was given is free when it is over.
pub fn with_devices(c: &mut Context) -> Check {
    prepare(c)?;
    let (guest, limit) = (c.guest("reboot", false)?, c.limit(20));
    for transport in ["pci", "mmio"] {
        let line = format!(
            "-v --virtio {transport} --reboot restart --timeout 4s {} --kernel {{}}",
            devices(c, free_port()?)
        );
        let run = c.run(&line, &[&guest], limit)?;
        run.expect_code(20)?;
        let restarts = run.errors.matches("booted again").count();
        check(restarts >= 1, || format!("it does not begin again:\n{}", run.errors))?;
        check(!c.work.join("vsock").exists(), || "a socket is left behind".into())?;
    }
    let (guest, socket) = (c.guest("loop", false)?, c.work.join("gdb.sock"));
    let line = format!("--gdb unix:{{}} --memory 64M {} --kernel {{}}", devices(c, free_port()?));
    let mut vmm = c.start(Wiring::Pipes, &line, &[&socket, &guest])?;
    let tried = (|| -> Check {
        let mut client = Client::attach(&socket, limit)?;
        client.expect("!", "OK")?;
        for _ in 0..2 {
            client.expect("vRun;", "T05*")?;
            gdb_port::monitor(&mut client, "reset", "first instruction")?;
        }
        // It does not begin again, and has all that it had: it can still.
        let away = guest.with_extension("gone");
        fs::rename(&guest, &away).map_err(|error| error.to_string())?;
        let refused = client.ask("vRun;")?;
        fs::rename(&away, &guest).map_err(|error| error.to_string())?;
        check(refused.starts_with("E."), || format!("vRun: {refused}"))?;
        client.expect("vRun;", "T05*")?;
        client.expect("vKill;1", "OK").map(drop)
    })();
    let code = tried.and_then(|()| vmm.wait(limit));
    c.keep("vmm", &vmm);
    let code = code.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(code == 22, || format!("vmm ended with {code}"))
}

/// What a guest does with its devices at each of its starts: which one it is, its folder says.
const SCRIPT: &str = r#"
b=/bin/busybox
tell() { echo "guest: $*."; }
cd /mnt
start=first; [ -e first ] && start=second
$b touch $start
for disk in vda vdb vdc; do
  tell "$start $disk $($b head -c 5 /dev/$disk | $b tr -d '\000')"
  echo $start | $b dd of=/dev/$disk conv=notrunc,fsync 2>/dev/null || tell "$disk cannot be written"
done
tell "$start random $($b dd if=/dev/hwrng bs=16 count=1 2>/dev/null | $b wc -c)"
$b ifconfig lo 127.0.0.1; $b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 && $b route add default gw 10.0.2.2
/mnt/case VSOCK 7 4096
{ echo "$start"; $b sleep 1000; } | $b nc -l -p 80 &
tell "$start listens"
read -r word
[ $start = first ] && $b reboot -f
tell over
"#;

/// Who asks the guest by its forwarded port, and is answered with a line: as soon as somebody there listens.
fn ask(port: u16, limit: Duration) -> Result<(TcpStream, String), String> {
    let asked = || -> io::Result<(TcpStream, String)> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        BufReader::with_capacity(1, stream.try_clone()?).read_line(&mut line)?;
        Ok((stream, line))
    };
    let deadline = Instant::now() + limit;
    loop {
        match asked() {
            Ok((_, line)) if line.is_empty() && Instant::now() < deadline => {}
            // Its port is there before whoever listens at it.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && Instant::now() < deadline => {
                thread::park_timeout(Duration::from_millis(20));
            }
            asked => return asked.map_err(|error| format!("the guest's port: {error}")),
        }
    }
}

/// A Debian guest that resets itself uses all its devices again. Who was connected to it hears of its end.
pub fn uses_them_again(c: &mut Context) -> Check {
    prepare(c)?;
    let (shared, socket, port) = (c.work.join("shared"), c.work.join("vsock"), free_port()?);
    let program = || -> io::Result<()> {
        fs::copy("/proc/self/exe", shared.join("case"))?;
        fs::set_permissions(shared.join("case"), Permissions::from_mode(0o755))
    };
    program().map_err(|error| error.to_string())?;
    c.write(&shared.join("run.sh"), SCRIPT.replace("VSOCK", vsock::WORD).as_bytes())?;
    let of_host = c.work.join(format!("vsock_{}", vsock::OF_HOST));
    let listener = UnixListener::bind(of_host).map_err(|error| error.to_string())?;
    // It says back what each start of the guest says.
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(vsock::echo(&stream, &stream)))
    });
    let limit = c.limit(60);
    let line = format!(
        "--reboot restart --memory 256M --cmdline loglevel=4~vmm.run=share~vmm.script=run.sh {} --kernel {{}} --initrd {{}}",
        devices(c, port)
    );
    let mut vmm = c.start(Wiring::Pipes, &line, &[&c.kernel("6.1"), &c.initrd()])?;
    let talked = starts(&mut vmm, &socket, port, limit);
    if talked.is_err() {
        vmm.signal(nix::sys::signal::Signal::SIGTERM)?;
    }
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 0, || vmm.errors.text())?;
    check(vmm.output.text().contains("guest: complaints=0"), || "the guest complains".into())?;
    for (name, expected) in
        [("raw.img", &b"second"[..]), ("grows.qcow2", b"second"), ("snapshot.img", &[0; 6])]
    {
        let path = c.work.join("images").join(name);
        let image = Image::open(&Options { path, format: None, access: Access::ReadOnly });
        let mut bytes = [0; 6];
        let read = image.map_err(io::Error::other).and_then(|image| image.read(0, &mut bytes));
        read.map_err(|error| format!("{name}: {error}"))?;
        check(bytes == expected, || format!("{name} begins with {bytes:?}"))?;
    }
    on_a_tap(c)
}

/// Both starts of the guest, as far as the host's programs have to do with them.
fn starts(vmm: &mut Process, socket: &Path, port: u16, limit: Duration) -> Check {
    let mut former: Option<TcpStream> = None;
    for (start, found) in [("first", ""), ("second", "first")] {
        for disk in ["vda", "vdb", "vdc"] {
            vmm.expect(&format!("guest: {start} {disk} {found}."), limit)?;
        }
        vmm.expect(&format!("guest: {start} random 16."), limit)?;
        // Streams begun by either side.
        for line in ["guest: same", "guest: refused", "guest: ready"] {
            vmm.expect(line, limit)?;
        }
        drop([vsock::reach(socket, vsock::OF_GUEST)?, vsock::reach(socket, vsock::OF_GUEST)?]);
        for _ in 0..2 {
            vmm.expect("guest: echo 0", limit)?;
        }
        vmm.expect(&format!("guest: {start} listens."), limit)?;
        let (stream, line) = ask(port, limit)?;
        check(line == format!("{start}\n"), || format!("the guest's port answers {line:?}"))?;
        if let Some(mut former) = former.replace(stream) {
            // By its end or by a reset, and not in the end of this program's patience.
            let ended = former.read(&mut [0]);
            let is_over = matches!(&ended, Ok(0))
                || matches!(&ended, Err(error) if error.kind() == ErrorKind::ConnectionReset);
            check(is_over, || format!("a connection of the guest before: {ended:?}"))?;
        }
        vmm.send("go\n")?;
    }
    vmm.expect("guest: over.", limit)
}

/// A guest that resets itself all the time, on a tap of the nest's.
fn on_a_tap(c: &mut Context) -> Check {
    super::network::load_tun(c)?;
    let (guest, limit) = (c.guest("reboot", false)?, c.limit(20));
    let run = c.run("-v --reboot restart --timeout 4s --net tap=tap0 --kernel {}", &[&guest], limit)?;
    run.expect_code(20)?;
    let restarts = run.errors.matches("booted again").count();
    check(restarts >= 1, || format!("on a tap it does not begin again:\n{}", run.errors))
}
