//! Disks in guests, with Debian's driver: what the guest reads and writes is compared with the image on the host.

use crate::context::{Chance, Check, Context, Finished, check};
use crate::process::{Process, Wiring};
use disk::sample::Sample;
use disk::{Access, Image, Options};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: usize = 1 << 20;
/// Bytes of each image.
const SIZE: usize = 24 * MIB;

fn said(what: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", what.display())
}

fn bytes(chance: &mut Chance, count: usize) -> Vec<u8> {
    (0..count / 8).flat_map(|_| chance.below(u64::MAX).to_le_bytes()).collect()
}

/// Images, and a folder by which the guest gets its script and gives back what it has read.
struct Images {
    work: PathBuf,
    /// What all images but the empty one begin with.
    base: Vec<u8>,
    /// What the guest writes.
    blob: Vec<u8>,
}

impl Images {
    fn new(c: &Context) -> Result<Images, String> {
        let (work, mut chance) = (c.work.clone(), c.chance());
        let (base, blob) = (bytes(&mut chance, SIZE), bytes(&mut chance, MIB));
        let backing = |name| Sample { backing: Some((name, Some("raw"))), ..Sample::new(SIZE as u64) };
        let qcow2 = backing("below/base.img").build().map_err(|error| error.to_string())?;
        let made = || -> io::Result<()> {
            fs::create_dir_all(work.join("shared"))?;
            fs::create_dir_all(work.join("images/below"))?;
            fs::create_dir_all(work.join("temporary"))?;
            fs::write(work.join("shared/blob"), &blob)?;
            fs::copy("/proc/self/exe", work.join("shared/case"))?;
            fs::set_permissions(work.join("shared/case"), Permissions::from_mode(0o755))?;
            fs::File::create(work.join("images/empty.img"))?.set_len(SIZE as u64)?;
            fs::File::create(work.join("images/spare.img"))?.set_len(SIZE as u64)?;
            fs::write(work.join("images/below/base.img"), &base)?;
            fs::write(work.join("images/shared.img"), &base)?;
            fs::write(work.join("images/over.qcow2"), &qcow2)
        };
        made().map_err(said(&c.work))?;
        Ok(Images { work, base, blob })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.join("images").join(name)
    }

    /// What an image has, as the guest would see it.
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.path(name);
        let image = Image::open(&Options { path, format: None, access: Access::ReadOnly });
        let image = image.map_err(|error| format!("{name}: {error}"))?;
        let mut bytes = vec![0; SIZE];
        image.read(0, &mut bytes).map_err(|error| format!("{name}: {error}"))?;
        Ok(bytes)
    }

    /// What the guest has given back.
    fn given(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.work.join("shared").join(name);
        fs::read(&path).map_err(said(&path))
    }

    /// Whether an image has its first bytes, and nothing else.
    fn is_untouched(&self, name: &str) -> Check {
        check(self.read(name)? == self.base, || format!("{name} is not what it was"))
    }
}

/// Starts a guest with disks, each by its words, that does what a script says.
fn start(c: &Context, script: (&str, &str), disks: &[&str], temporary: &Path) -> Result<Process, String> {
    let (name, text) = script;
    let folder = c.work.join("shared");
    c.write(&folder.join(name), text.as_bytes())?;
    let mut command = Command::new(&c.vmm);
    let words = format!("loglevel=4 vmm.run=share vmm.script={name}");
    command.args(["--memory", "384M", "--cpus", "2", "--cmdline", &words, "--kernel"]);
    command.arg(c.kernel("6.12")).arg("--initrd").arg(c.initrd());
    command.arg("--share").arg(format!("{},tag=shared", folder.display()));
    for disk in disks {
        command.arg("--disk").arg(format!("{}/{disk}", c.work.join("images").display()));
    }
    command.env_remove("RUST_LOG").env("TMPDIR", temporary);
    Process::start("vmm", command, Wiring::Pipes).map_err(said(&c.vmm))
}

/// Waits for its end.
fn finish(c: &mut Context, mut process: Process) -> Result<Finished, String> {
    process.close_input();
    let code = process.wait(c.limit(90));
    c.keep("vmm", &process);
    Ok(Finished { code: code?, output: process.output.text(), errors: process.errors.text() })
}

fn expect(run: &Finished, lines: &[&str]) -> Check {
    run.expect_code(0)?;
    lines.iter().try_for_each(|line| run.expect_output(&format!("guest: {line}")))
}

/// What the guest does: to an empty raw image a file system, to a qcow2 image over another, to one that it may not
/// write to, and to one whose writes are not kept.
const SCRIPT: &str = r#"
b=/bin/busybox
cd /mnt
tell() { echo "guest: $*"; }
tell "serial=$($b cat /sys/block/vda/serial)."
tell "queues=$($b ls /sys/block/vda/mq | $b wc -l)."
tell "read-only=$($b cat /sys/block/vda/ro)$($b cat /sys/block/vdb/ro)$($b cat /sys/block/vdc/ro)$($b cat /sys/block/vdd/ro)."
tell "cache=$($b cat /sys/block/vda/cache_type 2>/dev/null || $b cat /sys/block/vda/queue/write_cache)."
$b mkdir /disk /other
$b mke2fs /dev/vda > /dev/null && $b mount -t ext4 /dev/vda /disk && tell mounted
$b mke2fs /dev/vde > /dev/null && $b mount -t ext4 /dev/vde /other
$b cp blob /disk/blob
# What is known to be right is the same file system on the other kind of disk: either goes wrong in its own ways.
/mnt/case --random-files /disk/random /other/random SEED STEPS && tell random-same
$b sync; $b umount /disk && $b mount -t ext4 /dev/vda /disk && $b cmp blob /disk/blob && tell blob-same
$b umount /disk; $b cp /dev/vda raw
$b cp /dev/vdb before
$b dd if=blob of=/dev/vdb bs=4096 seek=1000 conv=fsync,notrunc 2>/dev/null && tell written
$b dd if=blob of=/dev/vdb bs=512 seek=40001 count=3 conv=fsync,notrunc 2>/dev/null
$b blkdiscard -o 1048576 -l 1048576 /dev/vdb 2>/dev/null || tell no-discard
$b cp /dev/vdb after
$b dd if=blob of=/dev/vdc bs=4096 count=1 conv=fsync 2>/dev/null || tell refused
$b cp /dev/vdc read
$b dd if=blob of=/dev/vdd bs=1000 seek=3 conv=fsync,notrunc 2>/dev/null && tell overlaid
$b cp /dev/vdd snapshot
$b sync; tell over
"#;

pub fn everything(c: &mut Context) -> Check {
    let images = Images::new(c)?;
    let steps = c.length().of(800, 20_000).to_string();
    let seed = c.chance().below(1 << 30).to_string();
    let script = SCRIPT.replace("SEED", &seed).replace("STEPS", &steps);
    let disks = [
        "empty.img,serial=RAW-1",
        "over.qcow2",
        "shared.img,ro",
        "shared.img,snapshot",
        "spare.img,snapshot",
    ];
    let process = start(c, ("run.sh", &script), &disks, &images.work.join("temporary"))?;
    let run = finish(c, process)?;
    let wanted = [
        "serial=RAW-1.",
        "queues=2.",
        "read-only=0010.",
        "cache=write back.",
        "mounted",
        "random-same",
        "blob-same",
        "written",
        "refused",
        "overlaid",
        "over",
        "complaints=0",
    ];
    expect(&run, &wanted)?;
    check(images.given("raw")? == images.read("empty.img")?, || {
        "the raw image is not what the guest saw".into()
    })?;
    check(images.given("before")? == images.base, || "what is below the qcow2 image was not read".into())?;
    let after = images.read("over.qcow2")?;
    check(images.given("after")? == after, || "the qcow2 image is not what the guest saw".into())?;
    let mut expected = images.base.clone();
    expected[1000 * 4096..1000 * 4096 + MIB].copy_from_slice(&images.blob);
    expected[40001 * 512..40004 * 512].copy_from_slice(&images.blob[..3 * 512]);
    expected[MIB..2 * MIB].copy_from_slice(&after[MIB..2 * MIB]);
    check(after == expected, || "the qcow2 image is not what was written".into())?;
    check(images.given("read")? == images.base, || "the read-only disk was not read".into())?;
    let mut expected = images.base.clone();
    expected[3000..3000 + MIB].copy_from_slice(&images.blob);
    check(images.given("snapshot")? == expected, || "a snapshot is not what was written".into())?;
    images.is_untouched("shared.img")?;
    images.is_untouched("below/base.img")?;
    let left = fs::read_dir(images.work.join("temporary")).map_err(said(&images.work))?.count();
    check(left == 0, || "a temporary file is left".into())
}

/// Blocks, each of which is on the disk before the guest says so.
const BLOCKS: &str = r#"
b=/bin/busybox
number=0
while :; do
  number=$((number + 1))
  { $b printf '%08d' $number; $b dd if=/mnt/blob bs=4088 count=1 2>/dev/null; } > /tmp/block
  for disk in vda vdb; do
    $b dd if=/tmp/block of=/dev/$disk bs=4096 count=1 seek=$((number * 17 % 6000)) conv=notrunc,fsync 2>/dev/null || exit
  done
  echo "guest: acknowledged $number."
done
"#;

/// Ended by force in the middle of synchronous writes, neither image has lost one that was acknowledged.
pub fn killed(c: &mut Context) -> Check {
    let images = Images::new(c)?;
    let least = 10 + c.chance().below(40);
    let disks = ["empty.img", "over.qcow2"];
    let mut process = start(c, ("run.sh", BLOCKS), &disks, &images.work.join("temporary"))?;
    let come = process.expect(&format!("guest: acknowledged {least}."), c.limit(90));
    let ended = process.signal(Signal::SIGKILL).and_then(|()| process.wait_status(c.limit(10)));
    c.keep("vmm", &process);
    come?;
    ended?;
    let text = process.output.text();
    let numbers = text.lines().filter_map(|line| {
        line.strip_prefix("guest: acknowledged ")?.trim_end().strip_suffix('.')?.parse().ok()
    });
    let last: usize = numbers.max().ok_or("nothing was acknowledged")?;
    for name in disks {
        let image = images.read(name)?;
        for number in last.saturating_sub(5999).max(1)..=last {
            let at = number * 17 % 6000 * 4096;
            let wanted = [format!("{number:08}").as_bytes(), &images.blob[..4088]].concat();
            check(image[at..at + 4096] == wanted, || {
                format!("{name}: block {number} of {last} that were acknowledged is not there")
            })?;
        }
    }
    images.is_untouched("below/base.img")
}

/// Two guests on one image at once, each of which sees what it has written, and the image does not.
pub fn two_guests(c: &mut Context) -> Check {
    const TWICE: &str = r#"
b=/bin/busybox
$b dd if=/mnt/blob of=/dev/vda bs=4096 seek=OWN conv=fsync,notrunc 2>/dev/null && $b dd if=/mnt/blob of=/dev/vdb bs=4096 seek=OWN conv=fsync,notrunc 2>/dev/null
echo "guest: ready"
while [ ! -e /mnt/both ]; do $b usleep 100000; done
$b cp /dev/vda /mnt/OWN-raw; $b cp /dev/vdb /mnt/OWN-qcow2; echo "guest: over"
"#;
    let images = Images::new(c)?;
    let disks = ["shared.img,snapshot", "over.qcow2,snapshot"];
    let temporary = images.work.join("temporary");
    let mut guests = Vec::new();
    for own in [100, 200] {
        let script = TWICE.replace("OWN", &own.to_string());
        guests.push((own, start(c, (&format!("{own}.sh"), &script), &disks, &temporary)?));
    }
    for (_, process) in &mut guests {
        process.expect("guest: ready", c.limit(90))?;
    }
    c.write(&images.work.join("shared/both"), b"")?;
    for (own, process) in guests {
        let run = finish(c, process)?;
        expect(&run, &["over"])?;
        let mut expected = images.base.clone();
        expected[own * 4096..own * 4096 + MIB].copy_from_slice(&images.blob);
        for kind in ["raw", "qcow2"] {
            let is_same = images.given(&format!("{own}-{kind}"))? == expected;
            check(is_same, || format!("the guest that writes at {own} sees another {kind} disk"))?;
        }
    }
    images.is_untouched("shared.img")?;
    images.is_untouched("over.qcow2")
}

/// No room for an overlay: the guest's writes fail, what it wrote before is there, a line or a few say so.
pub fn full(c: &mut Context) -> Check {
    const FILL: &str = r#"
b=/bin/busybox
$b dd if=/mnt/blob of=/dev/vda bs=4096 conv=fsync,notrunc 2>/dev/null && echo "guest: fits"
$b dd if=/dev/zero of=/dev/vda bs=64k seek=32 count=200 conv=fsync,notrunc 2>/dev/null || echo "guest: full"
echo 3 > /proc/sys/vm/drop_caches
$b dd if=/dev/vda of=/mnt/begin bs=1M count=1 2>/dev/null; $b dd if=/dev/vda of=/mnt/end bs=1M skip=20 2>/dev/null
echo "guest: over"
"#;
    let images = Images::new(c)?;
    let temporary = images.work.join("temporary");
    let size = Some("size=4m");
    mount(Some("tmpfs"), &temporary, Some("tmpfs"), MsFlags::empty(), size)
        .map_err(|error| error.to_string())?;
    let run = start(c, ("run.sh", FILL), &["shared.img,snapshot"], &temporary);
    let run = run.and_then(|process| finish(c, process));
    umount(&temporary).map_err(|error| error.to_string())?;
    let run = run?;
    expect(&run, &["fits", "full", "over"])?;
    let lines = run.errors.lines().filter(|line| line.contains("No space left")).count();
    check(lines == 1, || format!("{lines} lines of it:\n{}", run.errors))?;
    check(images.given("begin")? == images.blob, || "what was written before is lost".into())?;
    check(images.given("end")? == images.base[20 * MIB..], || "what was below is lost".into())?;
    images.is_untouched("shared.img")
}

/// What cannot be a disk is said in one line, with what helps.
pub fn bad(c: &mut Context) -> Check {
    let sample = Sample::new(MIB as u64).build().map_err(|error| error.to_string())?;
    let itself = Sample { backing: Some(("itself.qcow2", Some("qcow2"))), ..Sample::new(MIB as u64) };
    let itself = itself.build().map_err(|error| error.to_string())?;
    for (name, bytes) in [
        ("empty", &[][..]),
        ("raw.qcow2", &[0; 4096]),
        ("image.img", &sample),
        ("cut.qcow2", &sample[..70_000]),
        ("itself.qcow2", &itself),
        ("good", &[0; 4096]),
    ] {
        c.write(&c.work.join(name), bytes)?;
    }
    let at = |name: &str| c.work.join(name).display().to_string();
    let cases = [
        (vec![at("nothing")], 8, "No such file or directory"),
        (vec![at("")], 8, "it is a folder"),
        (vec!["/dev/zero".into()], 8, "it is a device of characters"),
        (vec![at("empty")], 8, "truncate -s"),
        (vec![at("raw.qcow2")], 8, "say format=raw"),
        (vec![at("image.img")], 8, "say format=qcow2"),
        (vec![at("cut.qcow2")], 8, "cut off"),
        (vec![at("itself.qcow2")], 8, "its own backing file"),
        (vec![format!("{},format=qcow2", at("good"))], 8, "say format=raw"),
        (vec![at("good"), at("good")], 8, "another process"),
        (vec![format!("{},ro,snapshot", at("good"))], 2, "write either"),
        (vec![format!("{},format=vmdk", at("good"))], 2, "format=raw or format=qcow2"),
        (vec![format!("{},serial={}", at("good"), "s".repeat(21))], 2, "may have 20"),
    ];
    for (disks, code, says) in cases {
        let words: String = disks.iter().map(|disk| format!("--disk {disk} ")).collect();
        let run = c.run(&words, &[], c.limit(20))?;
        run.expect_code(code)?;
        check(run.errors.contains(says), || format!("{words}: {}", run.errors))?;
    }
    Ok(())
}
