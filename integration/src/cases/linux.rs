//! Debian kernels to a userspace of busybox.

use crate::context::{Check, Context, Finished, check};
use crate::process::Wiring;
use crate::rsp::Client;
use arch::Isa;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Boots a kernel and checks what its userspace sees of the machine.
pub(super) fn boot(
    c: &mut Context,
    series: &str,
    options: &str,
    cpus: u64,
    memory_mib: u64,
) -> Result<Finished, String> {
    let (kernel, initrd, limit) = (c.kernel(series), c.initrd(), c.limit(60));
    let arguments = format!("--kernel {{}} --initrd {{}} --memory {memory_mib}M --cpus {cpus} {options}");
    let run = c.run(&arguments, &[&kernel, &initrd], limit)?;
    run.expect_output(&format!("guest: up kernel={series}"))?;
    let seen = run.number("cpus")?;
    check(seen == cpus, || format!("the guest sees {seen} CPUs instead of {cpus}"))?;
    let seen = run.number("memory_kib")? >> 10;
    // The kernel keeps some for itself, and 16 MiB for each GiB of page descriptors.
    let least = memory_mib - memory_mib / 32 - 80;
    check((least..=memory_mib).contains(&seen), || format!("the guest sees {seen} MiB of {memory_mib}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?.as_secs();
    let guest = run.number("time")?;
    check(now.abs_diff(guest) <= 60, || format!("the guest's clock shows {guest}, ours {now}"))?;
    Ok(run)
}

pub fn debian_6_1(c: &mut Context) -> Check {
    boot(c, "6.1", "", 1, 256)?.expect_code(0)
}

pub fn debian_6_12(c: &mut Context) -> Check {
    let run = boot(c, "6.12", "--cmdline loglevel=7", 1, 256)?;
    run.expect_code(0)?;
    run.expect_output("Linux version 6.12")?;
    run.expect_output("console=ttyS0 loglevel=7")?;
    check(!run.output.contains("PCI: Fatal"), || "the kernel finds no way to PCI's configuration".into())
}

pub fn on_8_vcpus(c: &mut Context) -> Check {
    boot(c, "6.1", "--cmdline quiet", 8, 512)?.expect_code(0)
}

pub fn with_6_gib(c: &mut Context) -> Check {
    boot(c, "6.12", "--cmdline quiet", 1, 6144)?.expect_code(0)
}

pub fn reboot(c: &mut Context) -> Check {
    boot(c, "6.12", "--cmdline quiet~vmm.run=reboot", 1, 256)?.expect_code(10)
}

pub fn shell(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let arguments = "--kernel {} --initrd {} --cmdline quiet~vmm.run=shell";
    let mut vmm = c.start(Wiring::Terminal, arguments, &[&kernel, &initrd])?;
    let mut talk = || -> Check {
        vmm.expect("# ", limit)?;
        vmm.send("echo $((6 * 7)) is the answer\r")?;
        vmm.expect("42 is the answer", limit)?;
        vmm.expect("# ", limit)?;
        // Ctrl-C is the guest's: it gives the prompt back whether the shell has started the
        // program already or not.
        vmm.send("echo $((40 + 3)); sleep 1000\r")?;
        vmm.expect("43", limit)?;
        vmm.send("\x03")?;
        vmm.expect("# ", limit)?;
        vmm.send("poweroff -f\r")?;
        Ok(())
    };
    let talked = talk();
    let code = if talked.is_ok() { vmm.wait(limit) } else { Ok(0) };
    c.keep("vmm", &vmm);
    talked?;
    check(code? == 0, || "poweroff has another exit code".into())
}

/// A shell on `hvc0`: what the kernel prints before the driver is there is on the serial port, the terminal's size is the
/// host's, and a large output is whole, also with a debugger that stops in the middle of it.
pub fn virtio_console(c: &mut Context) -> Check {
    // A driver that is a module: the kernel has no console to begin with.
    on_virtio(c, "6.1", 1_000)?;
    on_virtio(c, "6.12", 1_500)
}

fn on_virtio(c: &mut Context, series: &str, lines: usize) -> Check {
    let (kernel, initrd, limit) = (c.kernel(series), c.initrd(), c.limit(60));
    let socket = c.work.join(format!("gdb-{series}"));
    let arguments = "--kernel {} --initrd {} --console-device virtio --gdb unix:{} --gdb-no-wait \
                     --cmdline loglevel=6~vmm.run=shell";
    let mut vmm = c.start(Wiring::Terminal, arguments, &[&kernel, &initrd, &socket])?;
    let mut talk = || -> Check {
        vmm.expect("Linux version", limit)?;
        vmm.expect("# ", limit)?;
        // What the kernel has to say of a nest's clocks is not to be in the middle of the large output.
        vmm.send("b=/bin/busybox; $b dmesg -n 1; $b stty size; cat /sys/class/tty/console/active\r")?;
        vmm.expect("24 100", limit)?;
        vmm.expect("hvc0", limit)?;
        vmm.expect("# ", limit)?;
        vmm.resize(31, 97)?;
        vmm.send("until $b stty size | $b grep '31 97'; do sleep 0.1; done\r")?;
        vmm.expect("\n31 97", limit)?;
        vmm.expect("# ", limit)?;
        vmm.send(&format!("$b seq {lines}; echo $((40 + 2)) is all\r"))?;
        vmm.expect("\n100\r", limit)?;
        let mut gdb = Client::attach(&socket, limit)?;
        for _ in 0..3 {
            gdb.run()?;
            gdb.interrupt()?;
        }
        gdb.expect("D;1", "OK")?;
        vmm.expect("42 is all", limit)?;
        vmm.expect("# ", limit)?;
        vmm.send("\x01h")?;
        vmm.expect("Ctrl-A x", limit)?;
        // What is printed last is not lost with the guest.
        vmm.send("echo $((50 + 1)) is last; poweroff -f\r")
    };
    let talked = talk();
    let code = if talked.is_ok() { vmm.wait(limit) } else { Ok(0) };
    c.keep(&format!("vmm-{series}"), &vmm);
    talked?;
    check(code? == 0, || "poweroff has another exit code".into())?;
    // The host's terminal adds carriage returns to the guest's.
    let output = vmm.output.text().replace('\r', "");
    check(output.contains("51 is last"), || "the last line is missing".into())?;
    let printed: String = (1..=lines).map(|line| format!("{line}\n")).collect();
    check(output.contains(&printed), || format!("{series}: a line of the large output is missing"))
}

pub fn clock(c: &mut Context) -> Check {
    let run = boot(c, "6.12", "--cmdline quiet~vmm.run=clock", 1, 256)?;
    run.expect_code(0)?;
    // Two seconds of sleep, by the guest's clock; a busy host adds to it.
    let slept = run.number("centiseconds")?;
    check((195..2000).contains(&slept), || format!("two seconds took {slept} centiseconds"))?;
    run.expect_output(match c.isa {
        Isa::X86_64 => "clocksource=kvm-clock",
        Isa::Aarch64 => "clocksource=arch_sys_counter",
    })
}

/// Without a processor's random numbers the kernel has what the monitor gives it, before it does anything else.
pub fn seed(c: &mut Context) -> Check {
    let without = match c.isa {
        Isa::X86_64 => "--cpu-features -rdrand,-rdseed",
        Isa::Aarch64 => "--cpu-features -rng",
    };
    let run = boot(c, "6.12", &format!("--cmdline loglevel=7 {without}"), 1, 256)?;
    run.expect_code(0)?;
    let at = |text: &str| {
        let found = run.output.find(text).ok_or(format!("no {text:?}:\n{}", run.output))?;
        Ok::<usize, String>(found)
    };
    check(at("crng init done")? < at("Memory: ")?, || format!("it waits for a seed:\n{}", run.output))
}

/// The ACPI timer is a clock of Linux's, and goes as it should. (Nests are too slow for Linux to measure the
/// time-stamp counter by it: a read that takes more than 50,000 cycles does not count, `tsc_read_refs`.)
pub fn acpi_timer(c: &mut Context) -> Check {
    let options = format!(
        "--cmdline quiet~no-kvmclock~tsc_early_khz={}~clocksource=acpi_pm~vmm.run=clock",
        super::held::tsc_khz()?
    );
    let run = boot(c, "6.12", &options, 1, 256)?;
    run.expect_code(0)?;
    run.expect_output("clocksource=acpi_pm")?;
    let slept = run.number("centiseconds")?;
    check((195..2000).contains(&slept), || format!("two seconds took {slept} centiseconds"))
}

pub fn cpu_features(c: &mut Context) -> Check {
    let (options, gone, there) = match c.isa {
        Isa::X86_64 => ("--cpu-features -rdrand,-sse4_2", [" rdrand ", " sse4_2 "], " ssse3 "),
        Isa::Aarch64 => ("--cpu-features -sve,-paca", [" sve ", " paca "], " asimd "),
    };
    let plain = boot(c, "6.12", "--cmdline quiet~vmm.run=cpuinfo", 1, 256)?;
    let without = boot(c, "6.12", &format!("--cmdline quiet~vmm.run=cpuinfo {options}"), 1, 256)?;
    for word in gone {
        plain.expect_output(word)?;
        check(!without.output.contains(word), || format!("{word:?} is there with {options}"))?;
    }
    without.expect_output(there)?;
    if c.isa == Isa::X86_64 {
        let level = boot(c, "6.12", "--cmdline quiet~vmm.run=cpuinfo --cpu-template x86-64-v1", 1, 256)?;
        for word in [" ssse3 ", " avx ", " rdrand ", " svm "] {
            check(!level.output.contains(word), || format!("{word:?} is there at level 1"))?;
        }
        level.expect_output(" sse2 ")?;
    }
    Ok(())
}

pub fn panic(c: &mut Context) -> Check {
    // A kernel that is told to reboot on a panic resets the machine.
    boot(c, "6.1", "--cmdline quiet~panic=-1~vmm.run=panic", 1, 256)?.expect_code(10)
}

pub fn exit_device(c: &mut Context) -> Check {
    boot(c, "6.12", "--cmdline quiet~vmm.run=exit~iomem=relaxed", 1, 256)?.expect_code(0x21)
}

pub fn compressed_image(c: &mut Context) -> Check {
    let image = std::fs::read(c.kernel("6.12")).map_err(|e| e.to_string())?;
    let (initrd, limit) = (c.initrd(), c.limit(90));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let gzip = encoder.write_all(&image).and_then(|()| encoder.finish()).map_err(|e| e.to_string())?;
    let zstd = ruzstd::encoding::compress_to_vec(&image[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut zboot = vec![0u8; 64];
    zboot[..2].copy_from_slice(b"MZ");
    zboot[4..8].copy_from_slice(b"zimg");
    zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
    zboot[12..16].copy_from_slice(&u32::try_from(gzip.len()).map_err(|e| e.to_string())?.to_le_bytes());
    zboot[24..28].copy_from_slice(b"gzip");
    zboot.extend(&gzip);
    // Each is another boot, and the first has what the second has.
    let count = usize::try_from(c.length().of(1, 3)).unwrap_or(usize::MAX);
    for (name, bytes) in [("zboot", zboot), ("gzip", gzip), ("zstd", zstd)].into_iter().take(count) {
        let path = c.work.join(name);
        c.write(&path, &bytes)?;
        drop(bytes);
        let run = c.run("--cmdline quiet --kernel {} --initrd {}", &[&path, &initrd], limit)?;
        run.expect_code(0).map_err(|error| format!("{name}: {error}"))?;
        run.expect_output("guest: up")?;
    }
    Ok(())
}

/// The `vmlinux` inside Debian's bzImage.
pub fn unpacked(c: &Context) -> Result<Vec<u8>, String> {
    let image = std::fs::read(c.kernel("6.12")).map_err(|e| e.to_string())?;
    // Linux boot protocol: the payload's place is in the setup header.
    let word = |offset: usize| u32::from_le_bytes(image[offset..offset + 4].try_into().expect("four bytes"));
    let setup = (usize::from(image[0x1f1].max(1)) + 1) * 512;
    let (start, length) = (setup + word(0x248) as usize, word(0x24c) as usize);
    let mut vmlinux = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(&image[start..start + length])
        .map_err(|error| format!("the payload is not zstd: {error}"))?;
    std::io::copy(&mut decoder, &mut vmlinux).map_err(|e| e.to_string())?;
    Ok(vmlinux)
}

/// It, booted as ELF by its 64-bit or PVH entry.
pub fn vmlinux(c: &mut Context) -> Check {
    let path = c.work.join("vmlinux");
    c.write(&path, &unpacked(c)?)?;
    let (initrd, limit) = (c.initrd(), c.limit(60));
    let run = c.run("-v --cmdline quiet --kernel {} --initrd {}", &[&path, &initrd], limit)?;
    run.expect_code(0)?;
    run.expect_output("guest: up")?;
    check(run.errors.contains("vmm: ELF"), || format!("not booted as ELF: {}", run.errors))
}
