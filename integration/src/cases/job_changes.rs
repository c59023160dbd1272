//! `vmm run` on a host that changes under it: a folder that is removed, an image that is cut, and a file system that does not
//! answer.

use super::job::MODULES;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

/// What a job needs, and a device of blocks that is a file.
pub const WITH_LOOPS: &[&str] = &[MODULES[0], MODULES[2], "drivers/block/loop.ko"];

/// Starts a command that says `ready`, waits for a line, and goes on.
fn begin(c: &Context, root: &Path, options: &str, command: &str) -> Result<Process, String> {
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M {options} -- sh -c \
         echo~ready;read~x;{command}",
        c.slowness
    );
    let mut job = c.start(Wiring::Pipes, &line, &[&c.kernel("6.12"), &c.modules(), root])?;
    match job.expect("ready", c.limit(60)) {
        Ok(()) => Ok(job),
        Err(error) => {
            job.signal(Signal::SIGKILL)?;
            Err(error)
        }
    }
}

/// The command goes on, and ends with this code and last line of output.
fn goes_on(c: &mut Context, name: &str, mut job: Process, code: i32, last: &str) -> Result<String, String> {
    let sent = job.send("\n");
    let ended = job.wait(c.limit(60));
    c.keep(name, &job);
    sent?;
    let (output, errors) = (job.output.text(), job.errors.text());
    check(ended? == code && output.lines().last() == Some(last), || format!("{name}: {output}\n{errors}"))?;
    Ok(errors)
}

/// A folder that is written to and an image go under a guest: it hears of that, and goes on.
pub fn vanish(c: &mut Context) -> Check {
    let root = c.root()?;
    let (folder, image) = (c.work.join("folder"), c.work.join("image"));
    let make = || -> io::Result<()> {
        fs::create_dir(&folder)?;
        fs::write(folder.join("file"), "text")?;
        File::create(&image)?.set_len(16 << 20)
    };
    make().map_err(|error| error.to_string())?;
    let place = folder.display();
    let script = format!("touch~{place}/new;cat~{place}/file;echo~still~$?");
    std::os::unix::fs::symlink("busybox", root.join("bin/touch")).map_err(|error| error.to_string())?;
    std::os::unix::fs::symlink("busybox", root.join("bin/dd")).map_err(|error| error.to_string())?;
    let job = begin(c, &root, &format!("--rw {place}"), &script)?;
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    let said = goes_on(c, "folder", job, 0, "still 1")?;
    check(said.contains("No such file or directory"), || said)?;
    check(!folder.exists(), || "the folder is there again".into())?;

    // It had been read to its end by nobody.
    let script = "dd~if=/dev/vda~of=/dev/null~bs=1M~skip=8~count=1;echo~$?;\
                  dd~if=/bin/busybox~of=/dev/vda~bs=4096~count=1~seek=3000~conv=fsync;echo~still~$?";
    let job = begin(c, &root, &format!("--disk {},format=raw", image.display()), script)?;
    let cut = File::options().write(true).open(&image).and_then(|file| file.set_len(4 << 20));
    cut.map_err(|error| error.to_string())?;
    let said = goes_on(c, "image", job, 0, "still 1")?;
    let told = said.lines().filter(|line| line.starts_with("vmm: ")).count();
    check((1..=2).contains(&told), || format!("{told} lines: {said}"))?;
    let length = fs::metadata(&image).map_err(|error| error.to_string())?.len();
    check(length == 4 << 20, || format!("the image has {length} bytes"))
}

/// A file system of the host's whose writers wait until it is thawed.
struct Frozen(File);

impl Frozen {
    /// `FIFREEZE` and `FITHAW` (Linux, `include/uapi/linux/fs.h`).
    const FREEZE: u32 = 0xc004_5877;
    const THAW: u32 = 0xc004_5878;

    fn new(place: &Path) -> io::Result<Frozen> {
        let frozen = Frozen(File::open(place)?);
        frozen.ask(Frozen::FREEZE)?;
        Ok(frozen)
    }

    fn ask(&self, request: u32) -> io::Result<()> {
        // SAFETY: neither has an argument that is a pointer.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.ask(Frozen::THAW) {
            eprintln!("cannot thaw: {error}");
        }
    }
}

/// The host does not answer: a time that is over ends the run all the same, and says so.
pub fn frozen(c: &mut Context) -> Check {
    let (root, place) = (c.root()?, c.work.join("frozen"));
    let (device, image) = (Path::new("/dev/loop0"), c.work.join("image"));
    c.load_module("loop.ko".as_ref())?;
    let make = || -> io::Result<()> {
        fs::create_dir(&place)?;
        File::create(&image)?.set_len(64 << 20)?;
        for words in [&["mke2fs", "-F"][..], &["losetup", "/dev/loop0"]] {
            let status =
                Command::new("/bin/busybox").args(words).arg(&image).stdout(io::stderr()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{words:?}: {status}")));
            }
        }
        mount(Some(device), &place, Some("ext4"), MsFlags::empty(), None::<&str>)?;
        fs::create_dir(place.join("folder"))?;
        File::create(place.join("disk"))?.set_len(16 << 20)
    };
    make().map_err(|error| format!("cannot make a file system: {error}"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/dd")).map_err(|error| error.to_string())?;
    let folder = place.join("folder");
    let at = |to: String| format!("dd~if=/bin/busybox~of={to}~bs=4096~count=100~conv=fsync;echo~no");
    for (option, command) in [
        (format!("--disk {},format=raw", place.join("disk").display()), at("/dev/vda".into())),
        (format!("--rw {}", folder.display()), at(folder.join("file").display().to_string())),
    ] {
        let mut job = begin(c, &root, &format!("--timeout 8s {option}"), &command)?;
        let still = Frozen::new(&place).map_err(|error| format!("cannot freeze: {error}"))?;
        let talked = job.send("\n").and_then(|()| job.expect_error("--timeout is over", c.limit(40)));
        // A thread that waits for such a file system does not end before.
        drop(still);
        let code = job.wait(c.limit(20));
        c.keep("frozen", &job);
        talked?;
        check(code? == 124 && !job.output.text().contains("no"), || job.errors.text())?;
    }
    umount(&place).map_err(|error| error.to_string())
}
