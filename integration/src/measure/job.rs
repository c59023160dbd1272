//! `vmm run` beside QEMU as people script it: a command in a guest, from exec to exit, and what its devices do. QEMU has
//! the same kernel, modules, root and files; its root comes from virtiofsd, its block device from threads over the same
//! file, its network from its user mode (slirp).

use super::{GUEST_MEMORY, Monitor, milliseconds, qemu_command, rss_beyond_guest};
use crate::context::{Chance, Check, Context, check};
use crate::process::{Process, Wiring};
use crate::traffic;
use arch::Isa;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// `case --measure-devices DISK FOLDER HOST:PORT`, in a guest, prints a line of figures.
pub const WORD: &str = "--measure-devices";
/// What that line begins with.
const FIGURES: &str = "figures:";

/// What Debian's 6.12 has as modules: for our root, and of devices, in the order they are loaded.
pub const MODULES: &[&str] = &[
    "fs/overlayfs/overlay.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

const MIB: usize = 1 << 20;
/// Bytes of the disk, and of the large file.
const DISK: usize = 48 * MIB;
const LARGE: usize = 24 * MIB;
/// Small reads of the disk, small files, and turns of a byte over the network.
const READS: u64 = 300;
const FILES: usize = 200;
const TURNS: u64 = 200;

fn said(what: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", what.display())
}

/// What a guest says of its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    /// Written to the disk 1 MiB at a time, past the guest's cache, and flushed, MB/s.
    disk_write: f64,
    /// Read from the disk likewise, MB/s.
    disk_read: f64,
    /// A read of 4 KiB somewhere, µs.
    disk_turn: f64,
    /// A large file written and synchronized, MB/s.
    file_write: f64,
    /// The same read again, MB/s.
    file_read: f64,
    /// A small file opened, read and closed for the first time, µs.
    file_turn: f64,
    /// A byte to the host and back, µs.
    net_turn: f64,
    /// To the guest by one connection, MB/s.
    net_in: f64,
    /// From the guest, MB/s.
    net_out: f64,
}

impl Figures {
    fn line(&self) -> String {
        let Figures { disk_write, disk_read, disk_turn, file_write, file_read, file_turn, .. } = self;
        let Figures { net_turn, net_in, net_out, .. } = self;
        format!(
            "{disk_write:.2} {disk_read:.2} {disk_turn:.1} {file_write:.2} {file_read:.2} {file_turn:.1} \
             {net_turn:.1} {net_in:.2} {net_out:.2}"
        )
    }
}

/// MB/s.
fn rate(bytes: usize, begin: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = bytes as f64;
    bytes / 1e6 / begin.elapsed().as_secs_f64().max(1e-9)
}

/// µs for each.
fn each(count: u64, begin: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    begin.elapsed().as_secs_f64() * 1e6 / count
}

/// Memory whose place and size reads past the cache can take (open(2), `O_DIRECT`).
struct Aligned(Vec<u8>, usize);

impl Aligned {
    const ALIGNMENT: usize = 4096;

    fn new() -> Aligned {
        let bytes = vec![0x5a; MIB + Aligned::ALIGNMENT];
        let from = bytes.as_ptr().align_offset(Aligned::ALIGNMENT);
        Aligned(bytes, from)
    }

    fn bytes(&mut self, count: usize) -> &mut [u8] {
        &mut self.0[self.1..self.1 + count]
    }
}

/// The guest's part.
///
/// # Errors
/// What cannot be read, written or reached, and why.
pub fn carry_out(words: &[&str]) -> Result<(), String> {
    let [disk, folder, server] = words else { return Err("DISK FOLDER HOST:PORT".into()) };
    let (mut figures, mut memory) = (Figures::default(), Aligned::new());
    of_disk(disk, &mut figures, &mut memory).map_err(said(Path::new(disk)))?;
    of_folder(Path::new(folder), &mut figures, &mut memory).map_err(said(Path::new(folder)))?;
    of_network(server, &mut figures).map_err(said(Path::new(server)))?;
    println!("{FIGURES} {}", figures.line());
    Ok(())
}

fn of_disk(disk: &str, figures: &mut Figures, memory: &mut Aligned) -> io::Result<()> {
    let direct = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_DIRECT).open(disk)?;
    let begin = Instant::now();
    for at in (0..DISK).step_by(MIB) {
        direct.write_all_at(memory.bytes(MIB), at as u64)?;
    }
    direct.sync_all()?;
    figures.disk_write = rate(DISK, begin);
    let begin = Instant::now();
    for at in (0..DISK).step_by(MIB) {
        direct.read_exact_at(memory.bytes(MIB), at as u64)?;
    }
    figures.disk_read = rate(DISK, begin);
    let (mut chance, begin) = (Chance::new(7), Instant::now());
    for _ in 0..READS {
        direct.read_exact_at(memory.bytes(4096), chance.below(DISK as u64 / 4096) * 4096)?;
    }
    figures.disk_turn = each(READS, begin);
    Ok(())
}

fn of_folder(folder: &Path, figures: &mut Figures, memory: &mut Aligned) -> io::Result<()> {
    let large = folder.join("large");
    let begin = Instant::now();
    let mut file = File::create(&large)?;
    for _ in 0..LARGE / MIB {
        file.write_all(memory.bytes(MIB))?;
    }
    file.sync_all()?;
    figures.file_write = rate(LARGE, begin);
    drop(file);
    // What was written is not to be read from the guest's own memory.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let (begin, mut file) = (Instant::now(), File::open(&large)?);
    for _ in 0..LARGE / MIB {
        file.read_exact(memory.bytes(MIB))?;
    }
    figures.file_read = rate(LARGE, begin);
    let begin = Instant::now();
    for number in 0..FILES {
        fs::read(folder.join("small").join(number.to_string()))?;
    }
    figures.file_turn = each(FILES as u64, begin);
    Ok(())
}

fn of_network(server: &str, figures: &mut Figures) -> io::Result<()> {
    let server: SocketAddr = server.parse().map_err(io::Error::other)?;
    let turns = traffic::ask(server, 0, 0, TURNS, 1)?;
    figures.net_turn = turns.turn.as_secs_f64() * 1e6;
    let bulk = traffic::ask(server, LARGE as u64, 0, 0, 1)?;
    [figures.net_in, figures.net_out] =
        bulk.took.map(|took| LARGE as f64 / 1e6 / took.as_secs_f64().max(1e-9));
    Ok(())
}

/// Files for a monitor: a root, a folder to write to, a disk.
struct Files {
    root: PathBuf,
    data: PathBuf,
    disk: PathBuf,
}

/// The first process of QEMU's guest, which does what `vmm run` does by itself.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
MODULES
$b ip link set lo up
$b ip addr add 10.0.2.15/24 dev eth0 2>/dev/null && $b ip link set eth0 up && $b ip route add default via 10.0.2.2
COMMAND
$b sync
$b poweroff -f
"#;

impl Files {
    fn new(c: &Context) -> Result<Files, String> {
        let root = c.work.join("root");
        // QEMU's is below its root, the one folder that is shared.
        let files = Files { data: root.join("data"), disk: c.work.join("disk.img"), root };
        let made = || -> io::Result<()> {
            for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "modules", "data/small"] {
                fs::create_dir_all(files.root.join(folder))?;
            }
            fs::copy("/bin/busybox", files.root.join("bin/busybox"))?;
            fs::copy("/proc/self/exe", files.root.join("bin/case"))?;
            for applet in ["sh", "true", "cat", "head", "tr"] {
                symlink("busybox", files.root.join("bin").join(applet))?;
            }
            for path in MODULES {
                let name = Path::new(path).file_name().unwrap_or_default();
                let module = c.module(name).map_err(io::Error::other)?;
                fs::write(files.root.join("modules").join(name), module)?;
            }
            for number in 0..FILES {
                fs::write(files.data.join("small").join(number.to_string()), [0x33; 2000])?;
            }
            fs::write(&files.disk, vec![0x11; DISK])
        };
        made().map_err(said(&c.work))?;
        Ok(files)
    }

    /// Has QEMU's guest do a command; with the devices' modules where it has devices.
    fn init(&self, with_devices: bool, command: &str) -> Check {
        // Its root needs none.
        let names = MODULES[1..].iter().filter(|_| with_devices);
        let names = names.filter_map(|path| Path::new(path).file_name()?.to_str());
        let lines: Vec<String> = names.map(|name| format!("$b insmod /modules/{name}")).collect();
        let text = INIT.replace("MODULES", &lines.join("\n")).replace("COMMAND", command);
        let path = self.root.join("bin/start");
        let written = || {
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))
        };
        written().map_err(said(&path))
    }
}

/// A guest of `vmm run`.
fn run(c: &Context, files: &Files, options: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new(&c.vmm);
    run.args([
        "run",
        "--memory",
        &format!("{GUEST_MEMORY}M"),
        "--cpus",
        "1",
        "--slow",
        &c.slowness.to_string(),
    ]);
    run.arg("--kernel").arg(c.kernel("6.12")).arg("--modules").arg(c.modules());
    run.arg("--root").arg(&files.root).args(options).arg("--").args(command);
    run
}

/// All devices that a job can have.
fn all_devices(files: &Files) -> [String; 8] {
    [
        "--disk".into(),
        format!("{},format=raw", files.disk.display()),
        "--net".into(),
        "user,stack=own,host-loopback".into(),
        "--rw".into(),
        files.data.display().to_string(),
        "--out".into(),
        files.root.with_file_name("out").display().to_string(),
    ]
}

/// virtiofsd, once it can be spoken to; and the guest behind it.
fn qemu(c: &Context, files: &Files, with_devices: bool) -> Result<(Process, Process), String> {
    let peer = c.files.join("peer");
    let (socket, limit) = (c.work.join("fs.sock"), Duration::from_secs(20));
    let mut server = super::with_its_libraries(c, "virtiofsd");
    server.arg(format!("--socket-path={}", socket.display())).arg("-o");
    server.arg(format!("source={},sandbox=chroot,cache=auto", files.root.display()));
    let server = Process::start("virtiofsd", server, Wiring::Pipes).map_err(said(&peer.join("virtiofsd")))?;
    let begin = Instant::now();
    while !socket.exists() {
        check(begin.elapsed() < limit, || format!("virtiofsd does not serve: {}", server.errors.text()))?;
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let (machine, console) = match c.isa {
        Isa::X86_64 => ("microvm,pcie=on,pit=on,pic=on,rtc=on,isa-serial=on,memory-backend=memory", "ttyS0"),
        Isa::Aarch64 => ("virt,gic-version=3,memory-backend=memory", "ttyAMA0"),
    };
    let mut command = qemu_command(c, machine);
    command.args(["-object", &format!("memory-backend-memfd,id=memory,size={GUEST_MEMORY}M,share=on")]);
    command.args(["-chardev", &format!("socket,id=fs,path={}", socket.display())]);
    command.args(["-device", "vhost-user-fs-pci,chardev=fs,tag=root"]);
    if with_devices {
        let drive =
            format!("if=none,id=disk,format=raw,cache=writeback,aio=threads,file={}", files.disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    let line = format!("console={console} quiet rootfstype=virtiofs root=root rw init=/bin/start");
    command.args(["-append", &line]).arg("-kernel").arg(c.kernel("6.12"));
    let guest = Process::start("qemu", command, Wiring::Pipes).map_err(said(&peer.join("qemu")))?;
    Ok((server, guest))
}

/// How long a guest takes whose command is `true`, ms.
fn whole(c: &mut Context, monitor: Monitor, with_devices: bool) -> Check {
    let (files, limit) = (Files::new(c)?, Duration::from_secs(120));
    let (begin, mut guest, _server) = match monitor {
        Monitor::Vmm => {
            let devices = all_devices(&files);
            let devices: Vec<&str> = devices.iter().filter(|_| with_devices).map(String::as_str).collect();
            let (command, begin) = (run(c, &files, &devices, &["true"]), Instant::now());
            (begin, Process::start("vmm", command, Wiring::Pipes).map_err(said(&c.vmm))?, None)
        }
        Monitor::Qemu => {
            files.init(with_devices, "/bin/true")?;
            let begin = Instant::now();
            let (server, guest) = qemu(c, &files, with_devices)?;
            (begin, guest, Some(server))
        }
    };
    let code = guest.wait(limit);
    let took = milliseconds(begin);
    c.keep("guest", &guest);
    check(code? == 0, || format!("{}\n{}", guest.output.text(), guest.errors.text()))?;
    c.kept.push(("figures".into(), format!("{took:.1}").into_bytes()));
    Ok(())
}

/// Bytes that are printed on a console, and how many times on each: a byte on a serial port is an exit, and takes up to
/// 0.1 ms in a nest.
pub const PRINTED: usize = 50_000;
const PRINTINGS: usize = 3;

/// What the same guest takes to print on a serial port and on a virtio console, ms, in turn.
///
/// # Errors
/// When it does not do what it should.
pub fn consoles(c: &mut Context) -> Check {
    let (files, limit) = (Files::new(c)?, Duration::from_secs(120));
    let print = format!(
        "cat /proc/uptime; head -c {PRINTED} /dev/zero | tr '\\0' x > /dev/console; cat /proc/uptime"
    );
    let mut took: [Vec<f64>; 2] = Default::default();
    for _ in 0..PRINTINGS {
        for (device, took) in ["serial", "virtio"].into_iter().zip(&mut took) {
            let command = run(c, &files, &["--console-device", device], &["sh", "-c", &print]);
            let mut guest = Process::start(device, command, Wiring::Pipes).map_err(said(&c.vmm))?;
            let code = guest.wait(limit);
            c.keep(device, &guest);
            let text = guest.output.text();
            check(code? == 0, || format!("{text}\n{}", guest.errors.text()))?;
            let times = text.lines().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok());
            let [begin, end] = times.collect::<Vec<_>>()[..] else { return Err(format!("no times: {text}")) };
            took.push((end - begin) * 1e3);
        }
    }
    let least = took.map(|all| all.into_iter().fold(f64::INFINITY, f64::min));
    c.kept.push(("figures".into(), format!("{:.0} {:.0}", least[0], least[1]).into_bytes()));
    Ok(())
}

/// What devices do: [`Figures`], and resident memory beyond the guest's, KiB.
fn devices(c: &mut Context, monitor: Monitor) -> Check {
    let (files, limit) = (Files::new(c)?, Duration::from_secs(150));
    let place = traffic::serve((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| error.to_string())?;
    let server = format!("10.0.2.2:{}", place.port());
    let measure = |folder: &Path| {
        format!("/bin/case {WORD} /dev/vda {} {server}; echo measured; cat", folder.display())
    };
    let (mut guest, helper) = match monitor {
        Monitor::Vmm => {
            let devices = all_devices(&files);
            let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
            let command = run(c, &files, &devices, &["sh", "-c", &measure(&files.data)]);
            (Process::start("vmm", command, Wiring::Pipes).map_err(said(&c.vmm))?, None)
        }
        Monitor::Qemu => {
            files.init(true, &measure(Path::new("/data")))?;
            let (server, guest) = qemu(c, &files, true)?;
            (guest, Some(server))
        }
    };
    let measured = guest.expect("measured", limit);
    let mut rss = rss_beyond_guest(guest.id())?;
    if let Some(helper) = &helper {
        rss += rss_beyond_guest(helper.id())?;
    }
    c.keep("guest", &guest);
    measured?;
    let text = guest.output.text();
    let line = text.lines().find_map(|line| line.strip_prefix(FIGURES));
    let line = line.ok_or_else(|| format!("no figures:\n{text}"))?.trim();
    c.kept.push(("figures".into(), format!("{line} {rss:.0}").into_bytes()));
    Ok(())
}

/// The whole of `vmm run -- true`.
///
/// # Errors
/// When it does not do what it should.
pub fn vmm(c: &mut Context) -> Check {
    whole(c, Monitor::Vmm, false)
}

/// As [`vmm()`], with all devices that a job can have.
///
/// # Errors
/// Likewise.
pub fn vmm_with_devices(c: &mut Context) -> Check {
    whole(c, Monitor::Vmm, true)
}

/// As [`vmm()`], by QEMU and virtiofsd.
///
/// # Errors
/// Likewise.
pub fn qemu_and_virtiofsd(c: &mut Context) -> Check {
    whole(c, Monitor::Qemu, false)
}

/// What our devices do.
///
/// # Errors
/// Likewise.
pub fn vmm_devices(c: &mut Context) -> Check {
    devices(c, Monitor::Vmm)
}

/// What QEMU's do.
///
/// # Errors
/// Likewise.
pub fn qemu_devices(c: &mut Context) -> Check {
    devices(c, Monitor::Qemu)
}
