//! What the user can do wrong: one line each, with the cause and the remedy, and the exit
//! code that `--help` names.

use crate::context::{Check, Context, check};
use arch::Isa;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub fn options(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let foreign = if c.isa == Isa::X86_64 { "armv8.0" } else { "x86-64-v2" };
    let template = c.work.join("template.json");
    c.write(&template, b"{\"isa\": \"vax\"}")?;
    let damaged = c.work.join("damaged.json");
    c.write(&damaged, b"{\"isa\": ")?;
    for (arguments, code, words) in [
        ("--memory 0", 2, "at least"),
        ("--memory 12X", 2, "512M or 4G"),
        ("--memory 1000000G", 2, "addressed"),
        ("--cpus 0", 2, "at least one"),
        ("-kernel bzImage -m 512", 2, "vmm has no -kernel: write --kernel PATH"),
        ("-s -S", 2, "vmm has no -s: write --gdb :1234"),
        ("bzImage", 2, "a kernel is given as --kernel bzImage"),
        ("--cpus 100000", 2, "too many"),
        ("--timeout 0", 2, "zero"),
        ("--console /tmp/x", 2, "file:PATH"),
        ("--frobnicate", 2, "--frobnicate"),
        ("--cpu-features -nonsense", 2, "unknown"),
        ("--cpu-features sse", 2, "no sign"),
        ("--console file:/no/such/place", 8, "/no/such/place"),
        ("--log /no/such/place", 8, "/no/such/place"),
        ("--dump-on panic=/no/such/place/core", 8, "/no/such/place/core"),
        ("--dump-on panic=/proc/core", 8, "/proc/core"),
        ("--dump-on panic=/dev/null", 8, "no regular file"),
        ("--dump-on panic=core.xz", 2, ".gz and .zst compress"),
        ("--gdb :0 --dump-dir /dev/null", 8, "--dump-dir"),
        ("dump nobody core.LZ4", 2, ".gz and .zst compress"),
        ("--cpu-template /no/such/place.json", 8, "/no/such/place.json"),
    ] {
        let run = c.run(arguments, &[], limit)?;
        run.expect_code(code).map_err(|error| format!("{arguments}: {error}"))?;
        check(run.errors.contains(words), || format!("{arguments}: no {words:?} in {}", run.errors))?;
        check(run.output.is_empty(), || format!("{arguments}: printed {}", run.output))?;
        if code != 2 || run.errors.starts_with("vmm:") {
            run.expect_one_line(words).map_err(|error| format!("{arguments}: {error}"))?;
        }
    }
    let run = c.run(&format!("--cpu-template {foreign}"), &[], limit)?;
    run.expect_code(2)?;
    run.expect_one_line("built-in")?;
    run.expect_one_line(&format!("CPU template '{foreign}' is for"))?;
    let run = c.run("--cpu-template {}", &[&template], limit)?;
    run.expect_code(2)?;
    run.expect_one_line("vax")?;
    let run = c.run("--cpu-template {}", &[&damaged], limit)?;
    run.expect_code(8)?;
    run.expect_one_line("damaged.json")
}

pub fn kernels(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let exit = c.guest("exit", false)?;
    let elf = std::fs::read(&exit).map_err(|error| error.to_string())?;
    let mut foreign = elf.clone();
    foreign[18] = if c.isa == Isa::X86_64 { 183 } else { 62 };
    let mut far = elf.clone();
    far[64 + 24..64 + 32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    for (name, bytes, words) in [
        ("truncated", &elf[..0x1002], "truncated"),
        ("headless", &elf[..40], "truncated"),
        ("foreign", &foreign[..], "runs"),
        ("far", &far[..], "memory"),
        ("empty", b"", "truncated"),
        ("text", b"#!/bin/sh\necho hello\n", "--load-address"),
        ("initrd", b"070701000002D1000081A4", "as an --initrd is"),
        ("gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3], "damaged"),
        ("xz", b"\xfd7zXZ\0\0\0\0\0", "xz -dc"),
        ("lz4", b"\x02\x21\x4c\x18\0\0\0\0\0\0\0\0\0", "lz4 -dc"),
        ("many", &many_segments(&elf), "together, and there are"),
    ] {
        let path = c.work.join(name);
        c.write(&path, bytes)?;
        let run = c.run("--kernel {}", &[&path], limit)?;
        run.expect_code(6).map_err(|error| format!("{name}: {error}"))?;
        run.expect_one_line(words).map_err(|error| format!("{name}: {error}"))?;
        run.expect_one_line(&path.display().to_string())?;
    }
    for path in ["/no/such/kernel", "/", "/dev/null"] {
        let run = c.run(&format!("--kernel {path}"), &[], limit)?;
        run.expect_code(6)?;
        run.expect_one_line(path)?;
    }
    let run = c.run("--load-address 0x50000000 --kernel {}", &[&exit], limit)?;
    run.expect_code(2)?;
    run.expect_one_line("--load-address")
}

/// A kernel of 60000 segments, each of all that there is room for, which overlap.
fn many_segments(elf: &[u8]) -> Vec<u8> {
    const COUNT: u16 = 60_000;
    const HEADER: usize = 56;
    let mut bytes = elf[..64].to_vec();
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[56..58].copy_from_slice(&COUNT.to_le_bytes());
    // A PT_LOAD of the file's own, with 400 MiB of memory.
    let first = elf[64..].chunks_exact(HEADER).find(|entry| entry[..4] == [1, 0, 0, 0]);
    let mut entry = first.unwrap_or(&[0; HEADER]).to_vec();
    entry[8..16].fill(0);
    entry[32..40].copy_from_slice(&64u64.to_le_bytes());
    entry[40..48].copy_from_slice(&(400u64 << 20).to_le_bytes());
    (0..COUNT).for_each(|_| bytes.extend(&entry));
    bytes
}

pub fn initrds(c: &mut Context) -> Check {
    let (kernel, limit) = (c.guest("exit", false)?, c.limit(10));
    let large = c.work.join("large");
    let file = std::fs::File::create(&large).map_err(|error| error.to_string())?;
    file.set_len(64 << 20).map_err(|error| error.to_string())?;
    let run = c.run("--memory 16M --kernel {} --initrd {}", &[&kernel, &large], limit)?;
    run.expect_code(6)?;
    run.expect_one_line("more --memory")?;
    let run = c.run("--memory 128M --kernel {} --initrd {}", &[&kernel, &large], limit)?;
    run.expect_code(0x21)?;
    let empty = c.work.join("empty");
    c.write(&empty, b"")?;
    for path in [&empty, std::path::Path::new("/no/such/initrd")] {
        let run = c.run("--kernel {} --initrd {}", &[&kernel, path], limit)?;
        run.expect_code(6)?;
        run.expect_one_line(&path.display().to_string())?;
    }
    let run = c.run("--initrd /no/such/initrd", &[], limit)?;
    run.expect_code(2)
}

/// A real kernel that is cut short, to half at most: what follows the last section of a file
/// that its header describes is not missed. Or it does
/// not fit.
pub fn debian_kernels(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(10));
    let run = c.run("--kernel {} --initrd {}", &[&kernel, &kernel], limit)?;
    run.expect_code(6)?;
    run.expect_one_line("give it as --kernel")?;
    let bytes = std::fs::read(&kernel).map_err(|error| error.to_string())?;
    for length in [100, 1000, 10_000, bytes.len() / 2] {
        let path = c.work.join(format!("first-{length}"));
        c.write(&path, &bytes[..length])?;
        let run = c.run("--kernel {}", &[&path], limit)?;
        run.expect_code(6).map_err(|error| format!("{length} bytes: {error}"))?;
        let path = path.display().to_string();
        run.expect_one_line(&path)?;
        std::fs::remove_file(path).map_err(|error| error.to_string())?;
    }
    let run = c.run("--memory 16M --kernel {}", &[&kernel], limit)?;
    run.expect_code(6)?;
    run.expect_one_line("more --memory")?;
    let arguments = format!("--kernel {{}} --initrd {{}} --cmdline-exact --cmdline {}", "x".repeat(5000));
    let run = c.run(&arguments, &[&kernel, &initrd], limit)?;
    run.expect_code(6)?;
    run.expect_one_line("5000 bytes are too many, this kernel takes 2047")
}

/// Without `/dev/kvm`, and without the right to open it.
pub fn kvm_absent(c: &mut Context) -> Check {
    let limit = c.limit(10);
    // A mount namespace of its own has another /dev.
    let with_dev = |prepare: fn() -> std::io::Result<()>, user: u32| -> Result<(i32, String), String> {
        let mut command = Command::new(&c.vmm);
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                prepare()?;
                if user != 0 && libc::setuid(user) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut process = crate::process::Process::start("vmm", command, crate::process::Wiring::Pipes)
            .map_err(|error| error.to_string())?;
        let code = process.wait(limit)?;
        Ok((code, process.errors.text()))
    };
    let (code, errors) = with_dev(hide_dev, 0)?;
    check(code == 4 && errors.contains("/dev/kvm") && errors.contains("module"), || {
        format!("absent: {code}, {errors}")
    })?;
    check(errors.trim_end().lines().count() == 1, || format!("more than a line: {errors}"))?;
    let (of_root, of_group): (fn() -> _, fn() -> _) = (|| forbid_kvm(0o600), || forbid_kvm(0o660));
    for (prepare, remedy) in [(of_root, "a group would not help"), (of_group, "usermod -aG kvm")] {
        let (code, errors) = with_dev(prepare, 65_534)?;
        check(code == 4 && errors.contains("/dev/kvm") && errors.contains(remedy), || {
            format!("forbidden, not {remedy}: {code}, {errors}")
        })?;
    }
    Ok(())
}

fn own_mounts() -> std::io::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS)?;
    // The root of an initramfs cannot be made private, and needs it not.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).ok();
    Ok(())
}

fn hide_dev() -> std::io::Result<()> {
    use nix::mount::{MsFlags, mount};
    own_mounts()?;
    mount(Some("none"), "/dev", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    Ok(())
}

fn forbid_kvm(mode: u32) -> std::io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    hide_dev()?;
    mknod("/dev/kvm", SFlag::S_IFCHR, Mode::S_IRUSR, makedev(10, 232))?;
    // Of a group that the process is not in, though it keeps root's.
    std::os::unix::fs::chown("/dev/kvm", None, Some(1234))?;
    // The mask of the process may not matter.
    std::fs::set_permissions("/dev/kvm", std::os::unix::fs::PermissionsExt::from_mode(mode))
}
