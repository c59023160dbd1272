//! Sockets between a guest's programs and the host's, with Debian's driver.

use crate::context::{Chance, Check, Context, check};
use crate::process::{Process, Wiring};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// The word by which `case` is the guest's program: `case --vsock SEED BYTES`.
pub const WORD: &str = "--vsock";
/// The host's number (`VMADDR_CID_HOST`, vsock(7)), and any (`VMADDR_CID_ANY`).
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
/// The port of the host's program, and the guest's; one that nobody has.
pub const OF_HOST: u32 = 1234;
pub const OF_GUEST: u32 = 5000;
const OF_NOBODY: u32 = 77;

fn made(chance: &mut Chance, count: usize) -> Vec<u8> {
    (0..count / 8).flat_map(|_| chance.below(u64::MAX).to_le_bytes()).collect()
}

/// Sends bytes, and reads as many as come back until the other end has said all.
fn there_and_back(
    stream: &mut (impl Read + Write),
    other: impl Write + Send,
    bytes: &[u8],
) -> io::Result<Vec<u8>> {
    let mut back = Vec::new();
    thread::scope(|scope| {
        let mut other = other;
        let sends = scope.spawn(move || other.write_all(bytes));
        let mut piece = vec![0; 64 << 10];
        while back.len() < bytes.len() {
            match stream.read(&mut piece)? {
                0 => break,
                count => back.extend_from_slice(&piece[..count]),
            }
        }
        sends.join().map_err(|_| io::Error::other("the sender has panicked"))??;
        Ok(back)
    })
}

/// Says back whatever comes.
pub fn echo(mut stream: impl Read, mut back: impl Write) -> io::Result<u64> {
    io::copy(&mut stream, &mut back)
}

fn stream_to(cid: u32, port: u32) -> io::Result<File> {
    let own = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(own.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(File::from(own))
}

/// What the guest's program does: asks the host's and compares what it says back; is refused where nobody is; says back
/// what two of the host's programs say.
///
/// # Errors
/// What went wrong.
pub fn carry_out(words: &[&str]) -> Result<(), String> {
    let [seed, count] = words else { return Err("a seed and a count of bytes are missing".into()) };
    let number = |word: &str| word.parse::<u64>().map_err(|error| error.to_string());
    let bytes = made(&mut Chance::new(number(seed)?), usize::try_from(number(count)?).unwrap_or(0));
    let run = || -> io::Result<()> {
        let own = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(own.as_raw_fd(), &VsockAddr::new(ANY, OF_GUEST))?;
        listen(&own, Backlog::new(4)?)?;
        let mut stream = stream_to(HOST, OF_HOST)?;
        let other = stream.try_clone()?;
        let back = there_and_back(&mut stream, other, &bytes)?;
        println!("guest: {}", if back == bytes { "same" } else { "other" });
        drop(stream);
        match stream_to(HOST, OF_NOBODY) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ECONNRESET) => println!("guest: refused"),
            other => println!("guest: {other:?} of a port that nobody has"),
        }
        println!("guest: ready");
        let mut threads = Vec::new();
        for _ in 0..2 {
            let fd = accept(own.as_raw_fd())?;
            // SAFETY: nobody else has this descriptor yet.
            let stream = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
            let back = stream.try_clone()?;
            threads.push(thread::spawn(move || echo(stream, back)));
        }
        for thread in threads {
            let count = thread.join().map_err(|_| io::Error::other("an echo has panicked"))??;
            println!("guest: echo {count}");
        }
        Ok(())
    };
    run().map_err(|error| error.to_string())
}

/// A program of the host's that has a port of the guest's.
pub fn reach(socket: &Path, port: u32) -> Result<UnixStream, String> {
    let failed = |error: io::Error| format!("port {port}: {error}");
    let stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).map_err(failed)?;
    (&stream).write_all(format!("CONNECT {port}\n").as_bytes()).map_err(failed)?;
    // One byte at a time: what is behind the line is the guest's.
    let mut word = String::new();
    let mut reader = BufReader::with_capacity(1, stream.try_clone().map_err(failed)?);
    reader.read_line(&mut word).map_err(failed)?;
    check(word.starts_with("OK "), || format!("port {port}: {word:?} instead of OK"))?;
    Ok(stream)
}

/// What `vhost_vsock` is made of, in the order it is loaded.
pub const MODULES: &[&str] = &[
    "drivers/vhost/vhost_iotlb.ko",
    "drivers/vhost/vhost.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "drivers/vhost/vhost_vsock.ko",
];

/// A guest that runs the program, with that in a folder; the socket device is as `vsock` says. It ends by itself.
fn guest(c: &Context, vsock: &str, words: &str) -> Result<Process, String> {
    let shared = c.work.join("shared");
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(&shared)?;
        fs::copy("/proc/self/exe", shared.join("case"))?;
        fs::set_permissions(shared.join("case"), Permissions::from_mode(0o755))
    };
    prepare().map_err(|error| error.to_string())?;
    c.write(&shared.join("run.sh"), format!("/mnt/case {WORD} {words}\n").as_bytes())?;
    let mut command = Command::new(&c.vmm);
    let line = "loglevel=4 vmm.run=share vmm.script=run.sh";
    command.args(["-v", "--memory", "256M", "--cmdline", line, "--kernel"]);
    command.arg(c.kernel("6.12")).arg("--initrd").arg(c.initrd());
    command.arg("--share").arg(format!("{},tag=shared", shared.display()));
    command.args(["--vsock", vsock, "--name", "sockets"]).env_remove("RUST_LOG");
    Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())
}

/// The same by this host's kernel, and who else wants the guest's number; held in between.
pub fn by_the_kernel(c: &mut Context) -> Check {
    let none = c.run("--vsock 42", &[], c.limit(20))?;
    none.expect_code(8)?;
    none.expect_one_line("modprobe vhost_vsock")?;
    for path in MODULES {
        c.load_module(Path::new(path).file_name().unwrap_or_default())?;
    }
    let count = c.length().of(1 << 20, 64 << 20);
    let seed = c.chance().below(1 << 30);
    let failed = |error: io::Error| error.to_string();
    let listening = || -> io::Result<OwnedFd> {
        let own = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(own.as_raw_fd(), &VsockAddr::new(ANY, OF_HOST))?;
        listen(&own, Backlog::new(4)?)?;
        Ok(own)
    };
    let listener = listening().map_err(failed)?;
    let mut vmm = guest(c, "auto", &format!("{seed} {count}"))?;
    let limit = c.limit(60 + count / 100_000);
    let host = thread::spawn(move || {
        // SAFETY: nobody else has this descriptor yet.
        let stream = File::from(unsafe { OwnedFd::from_raw_fd(accept(listener.as_raw_fd())?) });
        echo(stream.try_clone()?, stream)
    });
    let mut talk = || -> Check {
        // The first number that is free.
        vmm.expect_error("vsock addresses is 3", limit)?;
        vmm.expect("guest: same", limit)?;
        vmm.expect("guest: refused", limit)?;
        vmm.expect("guest: ready", limit)?;
        let taken = c.run("--vsock 3", &[], limit)?;
        taken.expect_code(8)?;
        taken.expect_one_line("other guests of this host have the number 3")?;
        let bytes = made(&mut c.chance(), usize::try_from(count).unwrap_or(0));
        let mut one = stream_to(3, OF_GUEST).map_err(failed)?;
        let two = stream_to(3, OF_GUEST).map_err(failed)?;
        // Held, the guest's memory stays as it is, whatever is sent to it; and nothing is lost.
        c.run("stop sockets", &[], limit)?.expect_code(0)?;
        let dumps = ["before", "after"].map(|name| c.work.join(name));
        c.run("dump sockets {}", &[&dumps[0]], limit)?.expect_code(0)?;
        let back = thread::scope(|scope| {
            let other = one.try_clone();
            let works = scope.spawn(|| there_and_back(&mut one, other?, &bytes));
            thread::park_timeout(Duration::from_millis(300));
            c.run("dump sockets {}", &[&dumps[1]], limit)?.expect_code(0)?;
            for command in ["cont", "stop", "cont"] {
                c.run(&format!("{command} sockets"), &[], limit)?.expect_code(0)?;
            }
            works.join().map_err(|_| "it has panicked".to_string())?.map_err(failed)
        })?;
        check(back == bytes, || "what the guest says back is not what it was told".into())?;
        let [before, after] = dumps.map(|path| fs::read(path).map_err(failed));
        let (before, after) = (before?, after?);
        // Registers of the processor's, as its time, are in front.
        const REGISTERS: usize = 64 << 10;
        let differs = |at: &usize| before.get(*at) != after.get(*at);
        let other: Vec<usize> = (REGISTERS..before.len()).filter(differs).collect();
        check(other.is_empty() && before.len() == after.len(), || {
            let (first, last) = (other.first(), other.last());
            format!(
                "{} bytes of a dump change while the guest is held, from {first:x?} to {last:x?}",
                other.len()
            )
        })?;
        for stream in [&one, &two] {
            nix::sys::socket::shutdown(stream.as_raw_fd(), nix::sys::socket::Shutdown::Write)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    let talked = talk();
    if talked.is_err() {
        vmm.signal(nix::sys::signal::Signal::SIGTERM)?;
    }
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 0, || vmm.errors.text())?;
    let count_back = host.join().map_err(|_| "the host's program has panicked")?;
    check(count_back.is_ok_and(|it| it == count), || "the host's program has had another count".into())
}

/// Streams both ways at once, begun by either side, compared.
pub fn both_ways(c: &mut Context) -> Check {
    let count = c.length().of(2 << 20, 64 << 20);
    let seed = c.chance().below(1 << 30);
    let socket = c.work.join("vsock");
    let listener = UnixListener::bind(c.work.join(format!("vsock_{OF_HOST}")));
    let listener = listener.map_err(|error| error.to_string())?;
    let mut vmm = guest(c, &format!("42,path={}", socket.display()), &format!("{seed} {count}"))?;
    let limit = c.limit(60 + count / 100_000);
    let host = thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        echo(stream.try_clone()?, stream)
    });
    let mut talk = || -> Check {
        vmm.expect("guest: same", limit)?;
        vmm.expect("guest: refused", limit)?;
        vmm.expect("guest: ready", limit)?;
        let bytes = made(&mut c.chance(), usize::try_from(count).unwrap_or(0));
        let mut one = reach(&socket, OF_GUEST)?;
        let two = reach(&socket, OF_GUEST)?;
        let other = one.try_clone().map_err(|error| error.to_string())?;
        let back = there_and_back(&mut one, other, &bytes).map_err(|error| error.to_string())?;
        check(back == bytes, || "what the guest says back is not what it was told".into())?;
        // The end of what is said is the guest's end of the file, and the other way round.
        for stream in [one, two] {
            stream.shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
            let mut rest = Vec::new();
            (&stream).read_to_end(&mut rest).map_err(|error| error.to_string())?;
            check(rest.is_empty(), || "there is more than was told".into())?;
        }
        let nobody = UnixStream::connect(&socket).map_err(|error| error.to_string())?;
        nobody.set_read_timeout(Some(limit)).map_err(|error| error.to_string())?;
        (&nobody).write_all(b"CONNECT 78\n").map_err(|error| error.to_string())?;
        let mut byte = [0];
        check((&nobody).read(&mut byte).unwrap_or(0) == 0, || "a port that nobody has answers".into())
    };
    let talked = talk();
    if talked.is_err() {
        vmm.signal(nix::sys::signal::Signal::SIGTERM)?;
    }
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 0, || vmm.errors.text())?;
    check(!socket.exists(), || "its socket is left behind".into())?;
    let count_back = host.join().map_err(|_| "the host's program has panicked")?;
    check(count_back.is_ok_and(|it| it == count), || "the host's program has had another count".into())
}
