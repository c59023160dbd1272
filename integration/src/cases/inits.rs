//! `vmm run` beside a system's own first process: busybox's, and Debian's systemd.

use super::job::{run, run_in};
use crate::context::{Check, Context, check};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// A command beside the system's own first process, in a root whose folders of programs are links, as Debian's are.
pub fn beside_an_init(c: &mut Context, root: &Path) -> Check {
    let make = || {
        fs::create_dir(root.join("usr"))?;
        fs::rename(root.join("bin"), root.join("usr/bin"))?;
        symlink("usr/bin", root.join("bin"))?;
        symlink("usr/bin", root.join("sbin"))?;
        symlink("busybox", root.join("bin/init"))?;
        fs::write(root.join("etc/inittab"), "::sysinit:/bin/sh -c 'echo begun > /run/begun'\n")
    };
    make().map_err(|error| format!("cannot make a root: {error}"))?;
    // What is set up at a first boot, which asks for much, and after an update (systemd.unit(5), `ConditionNeedsUpdate=`).
    fs::create_dir_all(root.join("var")).map_err(|error| error.to_string())?;
    c.write(&root.join("etc/.updated"), b"")?;
    c.write(&root.join("var/.updated"), b"")?;
    c.write(&root.join("etc/machine-id"), b"0123456789abcdef0123456789abcdef\n")?;
    c.write(&root.join("etc/passwd"), b"root:x:0:0::/root:/bin/sh\n")?;
    let command = "sh -c cat~/proc/1/comm;until~[~-e~/run/begun~];do~sleep~0.1;done;readlink~/bin;exit~6";
    let beside = run_in(c, "6.1", root, "--init /sbin/init", command)?;
    beside.expect_code(6)?;
    check(beside.output == "init\nusr/bin\n", || format!("{beside:?}"))
}

/// The same with Debian's systemd, which comes up all the way.
pub fn beside_systemd(c: &mut Context) -> Check {
    let root = c.root()?;
    let archive = c.files.join("root.tar");
    let unpacked =
        Command::new("/bin/busybox").args(["tar", "-x", "-f"]).arg(archive).arg("-C").arg(&root).status();
    let unpacked = unpacked.map_err(|error| error.to_string())?;
    check(unpacked.success(), || format!("cannot unpack systemd: {unpacked}"))?;
    // What is set up at a first boot, which asks for much, and after an update (systemd.unit(5), `ConditionNeedsUpdate=`).
    fs::create_dir_all(root.join("var")).map_err(|error| error.to_string())?;
    c.write(&root.join("etc/.updated"), b"")?;
    c.write(&root.join("var/.updated"), b"")?;
    c.write(&root.join("etc/machine-id"), b"0123456789abcdef0123456789abcdef\n")?;
    c.write(&root.join("etc/passwd"), b"root:x:0:0::/root:/bin/sh\n")?;
    // Debian has udev in a package of its own: without it no device is told of, for which that would wait 90 s.
    let options = "--systemd --cpus 1 --append systemd.mask=serial-getty@ttyS0.service";
    let command = "sh -c cat~/proc/1/comm;systemctl~is-system-running~--wait;systemctl~is-active~multi-user.target;\
                   systemctl~show~-p~Version;exit~6";
    let beside = run(c, &root, options, command)?;
    beside.expect_code(6)?;
    let lines: Vec<&str> = beside.output.lines().collect();
    let is_up = lines.len() == 4 && lines[0] == "systemd" && lines[1] == "running" && lines[2] == "active";
    check(is_up, || format!("{beside:?}"))
}
