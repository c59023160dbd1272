//! What `vmm run` finds on its host: streams that are closed, a KVM that it may not use, devices of blocks; and what it leaves
//! there for programs.

use super::job::{run, run_in};
use super::shares::USER;
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What a job needs, and a device of blocks that is a file.
pub const MODULES: &[&str] =
    &["fs/overlayfs/overlay.ko", "drivers/block/virtio_blk.ko", "drivers/block/loop.ko"];

/// What comes of a command with its standard streams closed, of a user who may not use KVM, and what is left for programs.
pub fn of_all_kinds(c: &mut Context) -> Check {
    let root = c.root()?;
    closed(c, &root)?;
    forbidden(c, &root)?;
    for_programs(c, &root)?;
    devices_of_blocks(c, &root)
}

/// All three standard streams are closed.
fn closed(c: &mut Context, root: &Path) -> Check {
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(&c.vmm).arg("run");
    command.arg("--kernel").arg(c.kernel("6.12")).arg("--modules").arg(c.modules()).arg("--root").arg(root);
    command.args(["--slow", &c.slowness.to_string(), "--memory", "256M", "--rw"]).arg(&c.work);
    let left = c.work.join("left");
    let script = format!("echo out; echo err >&2; cat > {}; exit 7", left.display());
    command.args(["--", "sh", "-c", &script]).env_remove("RUST_LOG");
    let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let code = process.wait(c.limit(60));
    c.keep("closed", &process);
    check(code? == 7, || "the code is another".into())?;
    check(fs::read(&left).is_ok_and(|text| text.is_empty()), || "the command has not come to its end".into())
}

/// Whoever may not use KVM is told in one line.
fn forbidden(c: &mut Context, root: &Path) -> Check {
    let mut command = Command::new(&c.vmm);
    command.args(["run", "--kernel"]).arg(c.kernel("6.12")).arg("--root").arg(root).args(["--", "true"]);
    command.env_remove("RUST_LOG").uid(USER).gid(USER);
    let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let code = process.wait(c.limit(10))?;
    let said = process.errors.text();
    check(code == 125 && said.lines().count() == 1 && said.contains("/dev/kvm"), || format!("{code}: {said}"))
}

/// The kernel's log in a file, and the last line as JSON, of a kernel whose modules are compressed by zstd.
fn for_programs(c: &mut Context, root: &Path) -> Check {
    let (log, modules) = (c.work.join("log"), c.work.join("modules"));
    fs::create_dir(&modules).map_err(|error| error.to_string())?;
    for path in MODULES {
        let name = Path::new(path).file_name().unwrap_or_default();
        let packed = compress_to_vec(&c.module(name)?[..], CompressionLevel::Fastest);
        c.write(&modules.join(name).with_extension("ko.zst"), &packed)?;
    }
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M --json --kernel-log {{}} -- sh -c exit~9",
        c.slowness
    );
    let told = c.run(&line, &[&c.kernel("6.12"), &modules, root, &log], c.limit(60))?;
    told.expect_code(9)?;
    let last = told.errors.lines().last().unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(last).map_err(|error| format!("{error}: {last}"))?;
    check(json["code"] == 9 && json["verdict"] == "exit" && json["seconds"].is_number(), || {
        json.to_string()
    })?;
    let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
    check(text.contains("Linux version 6.12"), || format!("that is no kernel's log: {text}"))
}

/// A device of the host's as a disk, written, discarded and read, and as the root.
fn devices_of_blocks(c: &mut Context, root: &Path) -> Check {
    const SIZE: usize = 16 << 20;
    let (image, device) = (c.work.join("image"), Path::new("/dev/loop0"));
    c.write(&image, &vec![0x5a; SIZE])?;
    c.load_module("loop.ko".as_ref())?;
    let status = Command::new("/bin/busybox").arg("losetup").arg(device).arg(&image).status();
    let status = status.map_err(|error| error.to_string())?;
    check(status.success(), || format!("losetup: {status}"))?;
    for applet in ["dd", "blkdiscard", "mke2fs", "mkdir", "mount", "umount", "cp", "blockdev"] {
        match std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.to_string()),
            _ => {}
        }
    }
    let options = format!("--disk {},format=raw", device.display());
    let script = "sh -c blkdiscard~-o~1048576~-l~1048576~/dev/vda&&\
                  dd~if=/dev/zero~of=/dev/vda~bs=4096~seek=1~count=1~conv=fsync~2>/dev/null&&blockdev~--getsize64~/dev/vda";
    let written = run(c, root, &options, script)?;
    written.expect_code(0)?;
    check(written.output.trim() == SIZE.to_string(), || format!("{written:?}"))?;
    let now = fs::read(&image).map_err(|error| error.to_string())?;
    let is_clear = |range: std::ops::Range<usize>| now[range].iter().all(|byte| *byte == 0);
    let is_kept = |range: std::ops::Range<usize>| now[range].iter().all(|byte| *byte == 0x5a);
    check(is_clear(4096..8192) && is_clear(1 << 20..2 << 20), || "what was written is not there".into())?;
    check(is_kept(0..4096) && is_kept(8192..1 << 20) && is_kept(2 << 20..SIZE), || {
        "more was written".into()
    })?;
    let script = "sh -c mke2fs~/dev/vda>/dev/null&&mkdir~/i&&mount~-t~ext4~/dev/vda~/i&&\
                  cp~-a~/bin~/etc~/i&&cd~/i&&mkdir~proc~root~run~sys~tmp~dev&&cd~/&&umount~/i";
    run(c, root, &options, script)?.expect_code(0)?;
    let found = run_in(c, "6.12", device, "", "grep ~/~ /proc/mounts")?;
    found.expect_code(0)?;
    check(found.output.contains(" / ext4 rw"), || format!("{found:?}"))
}
