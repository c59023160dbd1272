//! Dumps of live guests, which are looked at where the tests run ([`crate::tools`]).

use super::gdb::{self, Program, Script, Tool};
use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::tools::LOOKED_AT;
use arch::Isa;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Has a Debian guest of two vCPUs, with KASLR, write a dump while it runs; it goes on.
fn debian(c: &mut Context, series: &str) -> Check {
    let (kernel, initrd, limit) = (c.kernel(series), c.initrd(), c.limit(60));
    let words = "--name dumped --kernel {} --initrd {} --memory 256M --cpus 2 --cmdline vmm.run=idle";
    let mut vmm = c.start(Wiring::Pipes, words, &[&kernel, &initrd])?;
    let up = vmm.expect("guest: up", limit);
    c.keep("vmm", &vmm);
    up?;
    let core = c.work.join("core");
    // Tools are to find it idle: both vCPUs at the same instruction.
    let deadline = Instant::now() + limit;
    loop {
        dump(c, "dumped", &core)?;
        let threads = c.run("core {} threads", &[&core], limit)?;
        threads.expect_code(0)?;
        let place =
            |line: &str| line.split_once("pc ").map(|(_, rest)| rest.split(',').next().map(String::from));
        let places: Vec<_> = threads.output.lines().filter_map(place).collect();
        if places.len() == 2 && places[0] == places[1] {
            break;
        }
        check(Instant::now() < deadline, || format!("it does not come to rest:\n{}", threads.output))?;
    }
    let info = c.run("core {} info", &[&core], limit)?;
    info.expect_code(0)?;
    info.expect_output("format: ELF core of vmm")?;
    info.expect_output(&format!("release: {series}"))?;
    c.export(&core)
}

/// `vmm dump`.
fn dump(c: &mut Context, name: &str, path: &Path) -> Check {
    let mut command = Command::new(&c.vmm);
    command.args(["dump", name]).arg(path);
    let mut process = Process::start("dump", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let code = process.wait(c.limit(60));
    c.keep("dump", &process);
    check(code? == 0, || format!("no dump: {}", process.errors.text()))
}

pub fn debian_6_12(c: &mut Context) -> Check {
    debian(c, "6.12")
}

pub fn debian_6_1(c: &mut Context) -> Check {
    debian(c, "6.1")
}

/// Stops a guest in a system call of its first process, looks at it, and dumps it.
pub const LIVE: Script = Script {
    tool: Tool::Gdb,
    options: "--cpus 2 --memory 256M --cmdline vmm.run=naps --dump-dir /tmp",
    program: Program::Debian("6.12"),
    commands: |_| {
        format!(
            "hbreak start_kernel\ncontinue\ndelete\n\
             break hrtimer_nanosleep\ncontinue\n\
             {LOOKED_AT}\
             monitor dump core\n\
             kill\n"
        )
    },
    prints: |_| ["the beginning", "linux_banner", "the end", "256 MiB of memory"].map(String::from).to_vec(),
    code: Some(22),
};

/// Serves gdb for that, and hands the dump out.
pub fn live(c: &mut Context) -> Check {
    gdb::serve(c)?;
    c.export(&c.work.join("core"))
}

/// A kernel that panics and resets, one that stays there, and one that says so nowhere. Each leaves a dump.
pub fn at_the_end(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let core = c.work.join("core");
    let on = |when: &str| format!("--dump-on {when}={{}} --kernel {{}} --initrd {{}} --memory 256M --cpus 2");
    // The last words of the log are in the dump.
    let words = format!("{} --cmdline vmm.run=panic~panic=-1~loglevel=7", on("panic,timeout"));
    let run = c.run(&words, &[&core, &kernel, &initrd], limit)?;
    run.expect_code(10)?;
    check(run.errors.contains("dumped to"), || format!("no dump:\n{}", run.errors))?;
    let log = c.run("core {} dmesg", &[&core], limit)?;
    log.expect_output("Kernel panic - not syncing: sysrq triggered crash")?;
    let remove = |path: &Path| std::fs::remove_file(path).map_err(|error| format!("no dump: {error}"));
    remove(&core)?;
    // A kernel that stays where it panics, and says so on the console.
    let words = format!("{} --cmdline vmm.run=panic~panic=0", on("panic"));
    let begin = Instant::now();
    let run = c.run(&words, &[&core, &kernel, &initrd], limit)?;
    let took = begin.elapsed().as_secs();
    run.expect_code(14)?;
    c.run("core {} dmesg", &[&core], limit)?.expect_output("Kernel panic - not syncing")?;
    remove(&core)?;
    // One that has none, until its time is over: on a busy machine it takes longer to its panic.
    let time = (2 * took).clamp(20, 100);
    let words = format!("{} --timeout {time}s --cmdline vmm.run=panic~panic=0~console=hvc9", on("panic"));
    let run = c.run(&words, &[&core, &kernel, &initrd], limit)?;
    run.expect_code(20)?;
    c.run("core {} dmesg", &[&core], limit)?.expect_output("Kernel panic - not syncing")?;
    // What ends well is no panic to whoever looks for one. A boot takes most of this case's time, and nothing of the
    // architecture's is in this one.
    if c.isa == Isa::X86_64 {
        remove(&core)?;
        let words = format!("{} --cmdline vmm.run=poweroff", on("panic,timeout,triple-fault"));
        c.run(&words, &[&core, &kernel, &initrd], limit)?.expect_code(0)?;
        check(!core.exists(), || "a guest that ends well has left a dump".into())?;
    }
    Ok(())
}

/// A kernel that panics and restarts at once, with nothing that tells but its log; and a file in its page cache
/// that begins like the kernel's description. The dump has both vCPUs as they were, and the kernel's own words.
pub fn panicked(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(90));
    let core = c.work.join("core");
    let words = "--dump-on panic={} --kernel {} --initrd {} --memory 256M --cpus 2 \
        --cmdline vmm.run=forge~panic=-1~loglevel=7";
    let run = c.run(words, &[&core, &kernel, &initrd], limit)?;
    run.expect_code(10)?;
    check(run.errors.contains("dumped to"), || format!("no dump:\n{}", run.errors))?;
    // Which comes first is up to the guest's kernel; on aarch64 it is not its own.
    let (is_first, forged) = forgeries(&core)?;
    check(forged > 1000 && (is_first || c.isa == Isa::X86_64), || {
        format!("{forged} pages, first: {is_first}")
    })?;
    for (words, texts) in [
        ("info", &["release: 6.12.", "moved by 0x", "mapped from 0xffff"][..]),
        ("dmesg", &["Kernel panic - not syncing: sysrq triggered crash"]),
        ("threads", &["vCPU 0 ", "pc 0xffff", "vCPU 1 ", "pc 0xffff"]),
    ] {
        let run = c.run(&format!("core {{}} {words}"), &[&core], limit)?;
        run.expect_code(0)?;
        for text in texts {
            run.expect_output(text)?;
        }
    }
    // Without the note, the kernel is found in memory, and what else is there is told.
    let bare = c.work.join("bare");
    without_description(&core, &bare)?;
    let run = c.run("core {} info", &[&bare], limit)?;
    run.expect_code(0)?;
    run.expect_output("release: 6.12.")?;
    run.expect_output("like a kernel's description fit no kernel here")?;
    let run = c.run("core {} dmesg", &[&bare], limit)?;
    run.expect_output("Kernel panic - not syncing: sysrq triggered crash")?;
    std::fs::remove_file(&bare).map_err(|error| error.to_string())?;
    c.export(&core)
}

/// A guest whose kernel says that it hangs ends, says why, and is dumped; who says so on the console alone runs on.
pub fn hung(c: &mut Context) -> Check {
    let (kernel, initrd, core, limit) = (c.kernel("6.12"), c.initrd(), c.work.join("core"), c.limit(60));
    let arguments = "--kernel {} --initrd {} --memory 256M --cmdline vmm.run=hang --dump-on panic,hang={}";
    let run = c.run(arguments, &[&kernel, &initrd, &core], limit)?;
    run.expect_code(28)?;
    run.expect_output("guest: runs on.")?;
    for words in ["its log tells of trouble", "watchdog: BUG: soft lockup", "vCPU 0: ", "the guest hangs: "] {
        check(run.errors.contains(words), || format!("no '{words}': {}", run.errors))?;
    }
    c.run("core {} why", &[&core], limit)?.expect_output("watchdog: BUG: soft lockup")
}

/// A kernel that panics and restarts by a triple fault, which resets the vCPU on some processors.
pub fn triple_fault(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let core = c.work.join("core");
    let words = "--dump-on triple-fault={} --kernel {} --initrd {} --memory 256M --cpus 2 \
        --cmdline vmm.run=panic~panic=-1~reboot=triple";
    let run = c.run(words, &[&core, &kernel, &initrd], limit)?;
    run.expect_code(12)?;
    check(run.errors.contains("dumped to"), || format!("no dump:\n{}", run.errors))?;
    let run = c.run("core {} dmesg", &[&core], limit)?;
    run.expect_output("Kernel panic - not syncing: sysrq triggered crash")?;
    let run = c.run("core {} threads", &[&core], limit)?;
    run.expect_code(0)?;
    check(run.output.matches("pc 0xffff").count() == 2, || format!("{}\n{}", run.output, run.errors))
}

/// Whether the first page of a core that begins like a kernel's description is forged, and how many are.
fn forgeries(path: &Path) -> Result<(bool, u64), String> {
    let in_words = |error: io::Error| error.to_string();
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path).map_err(in_words)?);
    let (mut page, mut is_first, mut forged) = ([0; 4096], None, 0);
    loop {
        match file.read_exact(&mut page) {
            Ok(()) if page.starts_with(b"OSRELEASE=") => {
                let is_forged = page.starts_with(b"OSRELEASE=9.9-forged");
                is_first.get_or_insert(is_forged);
                forged += u64::from(is_forged);
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok((is_first.unwrap_or(false), forged));
            }
            Err(error) => return Err(in_words(error)),
        }
    }
}

/// Copies a core of ours, in which the note that has the kernel's description is of nobody's.
fn without_description(from: &Path, to: &Path) -> Check {
    /// Notes come first, before the first page.
    const HEAD: usize = 1 << 20;
    let in_words = |error: io::Error| error.to_string();
    std::fs::copy(from, to).map_err(in_words)?;
    let file = OpenOptions::new().read(true).write(true).open(to).map_err(in_words)?;
    let mut head = vec![0; HEAD];
    file.read_exact_at(&mut head, 0).map_err(in_words)?;
    let name = b"VMCOREINFO\0";
    let at = head.windows(name.len()).position(|window| window == name).ok_or("there is no note")?;
    file.write_all_at(b"SOMETHING_", at as u64).map_err(in_words)
}

/// Whom a dump's file belongs to, and what others have put in its way.
pub fn files(c: &mut Context) -> Check {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
    const OTHER: Option<u32> = Some(1234);
    let limit = c.limit(10);
    let in_words = |error: io::Error| error.to_string();
    let (shared, own) = (c.work.join("shared"), c.work.join("own"));
    for folder in [&shared, &own] {
        std::fs::create_dir(folder).map_err(in_words)?;
    }
    let ended = |c: &mut Context, path: &Path| {
        c.run("--dump-on timeout={} --memory 64M --console none --timeout 1ms", &[path], limit)
    };
    let core = own.join("core");
    ended(c, &core)?.expect_code(20)?;
    let is_like = |path: &Path, owner: u32, mode: u32| -> Check {
        let found = std::fs::metadata(path).map_err(in_words)?;
        let (uid, bits) = (found.uid(), found.mode() & 0o7777);
        check((uid, bits) == (owner, mode), || format!("{}: {uid}, {bits:o}", path.display()))
    };
    is_like(&core, 0, 0o600)?;
    // What is replaced is somebody's, who keeps it.
    chown(&core, OTHER, OTHER).map_err(in_words)?;
    std::fs::set_permissions(&core, PermissionsExt::from_mode(0o640)).map_err(in_words)?;
    symlink(&core, own.join("link")).map_err(in_words)?;
    ended(c, &own.join("link"))?.expect_code(20)?;
    is_like(&core, 1234, 0o640)?;
    // In a folder that everybody may write to, others' links and files are left alone, and it is said before
    // the guest runs.
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).map_err(in_words)?;
    symlink(own.join("precious"), shared.join("core")).map_err(in_words)?;
    symlink(&own, shared.join("sub")).map_err(in_words)?;
    c.write(&shared.join("theirs"), b"theirs")?;
    for name in ["core", "sub", "theirs"] {
        lchown(shared.join(name), OTHER, OTHER).map_err(in_words)?;
    }
    for name in ["core", "sub/precious", "theirs"] {
        let run = ended(c, &shared.join(name))?;
        run.expect_code(8)?;
        run.expect_one_line("another user's, in a folder that everybody may write to")?;
    }
    let left = std::fs::read(shared.join("theirs")).map_err(in_words)?;
    check(left == b"theirs" && !own.join("precious").exists(), || "something of others was written".into())?;
    is_like(&shared.join("theirs"), 1234, 0o644)
}

/// Linux's own driver of the device for panics.
pub fn by_linuxs_driver(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let core = c.work.join("core");
    // Nothing else tells: there is no console that the kernel writes to, and it stays where it panics.
    let words = "--dump-on panic={} --kernel {} --initrd {} --memory 256M \
        --cmdline vmm.run=panic~panic=0~console=hvc9";
    let run = c.run(words, &[&core, &kernel, &initrd], limit)?;
    run.expect_code(14)?;
    c.run("core {} dmesg", &[&core], limit)?
        .expect_output("Kernel panic - not syncing: sysrq triggered crash")
}

/// A kernel that crashes in a guest starts another one, which looks at /proc/vmcore with our program.
pub fn vmcore(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(120));
    let words =
        "--kernel {} --initrd {} --memory 768M --cpus 2 --cmdline crashkernel=224M~quiet~vmm.run=kdump";
    let run = c.run(words, &[&kernel, &initrd], limit)?;
    run.expect_code(0)?;
    // In this order.
    let output = run.output.replace('\r', "");
    let mut rest = output.as_str();
    for text in [
        "guest: vmm core info",
        "format: ELF core\n",
        "vCPUs: 2\n",
        "(by the kernel's description; registers do not tell)",
        "release: 6.12.",
        "mapped from 0xffff",
        "guest: vmm core threads",
        "vCPU 0 [dumped]: pc 0xffff",
        "vCPU 1 [dumped]: pc 0xffff",
        "guest: vmm core dmesg",
        "sysrq: Trigger a crash",
        "Kernel panic - not syncing: sysrq triggered crash",
        "guest: looked",
    ] {
        let at = rest.find(text).ok_or_else(|| format!("{text:?} is not where it should be:\n{output}"))?;
        rest = &rest[at + text.len()..];
    }
    Ok(())
}

/// The device for panics, a triple fault, and what goes wrong with the file.
pub fn of_small_guests(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let core = c.work.join("core");
    let panics = c.guest("pvpanic", false)?;
    let run = c.run("--dump-on panic={} --kernel {} --memory 64M", &[&core, &panics], limit)?;
    run.expect_code(14)?;
    c.run("core {} info", &[&core], limit)?.expect_output("memory: 64 MiB")?;
    // Without it there is no device, and a guest that ends well leaves nothing.
    let unused = c.work.join("unused");
    let words = "--dump-on timeout,triple-fault={} --kernel {} --memory 64M";
    c.run(words, &[&unused, &panics], limit)?.expect_code(0x21)?;
    check(!unused.exists(), || "a guest that ends well has left a dump".into())?;
    if c.isa == Isa::X86_64 {
        let faults = c.guest("triple_fault", false)?;
        let core = c.work.join("faulted");
        let run = c.run("--dump-on triple-fault={} --kernel {} --memory 64M", &[&core, &faults], limit)?;
        run.expect_code(12)?;
        c.run("core {} threads", &[&core], limit)?.expect_output("vCPU 0")?;
    }
    // A guest that runs, by its name; and everything that is wrong with a request.
    let spin = c.guest("spin", false)?;
    // One that is well is dumped when its time is over only if that is asked for.
    for (when, is_dumped) in [("panic,timeout", true), ("panic", false)] {
        let path = c.work.join(when);
        let words = format!("--dump-on {when}={{}} --kernel {{}} --memory 64M --console none --timeout 1s");
        c.run(&words, &[&path, &spin], limit)?.expect_code(20)?;
        check(path.exists() == is_dumped, || format!("--dump-on {when}, when the time is over"))?;
    }
    let mut vmm = c.start(Wiring::Pipes, "--name spins --kernel {} --memory 64M --console none", &[&spin])?;
    let deadline = Instant::now() + limit;
    let result = (|| {
        while dump(c, "spins", &core).is_err() {
            check(Instant::now() < deadline, || "no dump of a guest that runs".into())?;
        }
        for (name, path, text) in [
            ("nobody", "core", "no guest of the name nobody runs"),
            ("spins", "/no/such/folder/core", "No such file or directory"),
            ("spins", "/dev/full", "no regular file"),
            ("spins", "/proc/core", "cannot write /proc/core"),
        ] {
            let run = c.run(&format!("dump {name} {path}"), &[], limit)?;
            run.expect_code(8)?;
            run.expect_one_line(text)?;
        }
        let run = c.run("--name spins --kernel {} --memory 64M", &[&spin], limit)?;
        run.expect_code(8)?;
        run.expect_one_line("a guest that runs has this name")?;
        full_disk(c, limit)?;
        let left = unfinished(&c.work)?;
        check(left.is_none(), || format!("{left:?} is left over"))
    })();
    let ended = check(!vmm.has_ended(), || "the guest did not survive its dumps".into());
    vmm.signal(Signal::SIGTERM)?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    result?;
    ended?;
    check(code? == 22, || "the guest did not end as it was told".into())
}

/// A file that is being written, or left over.
fn unfinished(folder: &Path) -> Result<Option<OsString>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    let mut names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    Ok(names.find(|name| name.to_string_lossy().contains("partial")))
}

/// Ctrl-C for whoever asked for a dump, and for the machine that is dumped. Compressed by what takes longest.
pub fn broken_off(c: &mut Context) -> Check {
    let limit = c.limit(20);
    let (guest, core) = (c.guest("fill", false)?, c.work.join("core.zst"));
    let mut vmm = c.start(Wiring::Pipes, "--name fills --kernel {} --memory 512M", &[&guest])?;
    vmm.expect("b", limit)?;
    let result = (|| -> Check {
        // On a busy machine some are whole before they are broken off; not all.
        let mut tries = 0..60;
        while !is_broken_off(c, &core, None)? {
            check(tries.next().is_some(), || "a dump that is broken off is there, whole, each time".into())?;
        }
        // The guest runs on, and can be dumped.
        let other = c.work.join("other");
        dump(c, "fills", &other)?;
        c.run("core {} info", &[&other], limit)?.expect_output("memory: 512 MiB")?;
        is_broken_off(c, &core, Some(&vmm)).map(drop)
    })();
    if result.is_err() {
        vmm.signal(Signal::SIGTERM)?;
    }
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    result?;
    check(code.as_ref() == Ok(&22), || format!("the machine ends with {code:?}"))
}

/// Asks for a dump of the machine, and interrupts that machine or the one who asks: no part of a dump is left.
/// Whether there is none either that was whole before.
fn is_broken_off(c: &mut Context, core: &Path, interrupted: Option<&Process>) -> Result<bool, String> {
    let limit = c.limit(20);
    let mut command = Command::new(&c.vmm);
    command.args(["dump", "fills"]).arg(core);
    let mut asks = Process::start("dump", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    while unfinished(&c.work)?.is_none() {
        check(!asks.has_ended(), || format!("no dump: {}", asks.errors.text()))?;
    }
    interrupted.unwrap_or(&asks).signal(Signal::SIGINT)?;
    asks.wait_status(limit)?;
    let deadline = Instant::now() + limit;
    while unfinished(&c.work)?.is_some() {
        check(Instant::now() < deadline, || "what was written of it is left".into())?;
    }
    if !core.exists() {
        return Ok(true);
    }
    c.run("core {} info", &[core], limit)?.expect_output("memory: 512 MiB")?;
    std::fs::remove_file(core).map_err(|error| error.to_string())?;
    Ok(false)
}

/// A dump that does not fit.
fn full_disk(c: &mut Context, limit: Duration) -> Check {
    use nix::mount::{MsFlags, mount, umount};
    if !c.in_nest {
        return Ok(());
    }
    let small = c.work.join("small");
    std::fs::create_dir_all(&small).map_err(|error| error.to_string())?;
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=12k"))
        .map_err(|error| error.to_string())?;
    let run = c.run("dump spins {}", &[&small.join("core")], limit);
    let left = std::fs::read_dir(&small).map_or(1, |entries| entries.count());
    umount(&small).map_err(|error| error.to_string())?;
    let run = run?;
    run.expect_code(8)?;
    run.expect_one_line("No space left on device")?;
    check(left == 0, || "something of it is left".into())
}

/// Plain memory of both architectures, with registers or with a kernel's description given.
pub fn of_plain_memory(c: &mut Context) -> Check {
    const AT: u64 = 0xffff_8000_8000_0000;
    let limit = c.limit(10);
    let (memory, info) = (c.work.join("memory"), c.work.join("vmcoreinfo"));
    for (isa, base, registers, description) in [
        (
            Isa::X86_64,
            0x10_0000,
            "--register cr0=0x80000011 --register cr3=0x101000 --register cr4=0x20 --register efer=0x500",
            "SYMBOL(init_top_pgt)=ffffffff81001000\nNUMBER(phys_base)=-15728640\n",
        ),
        (
            Isa::Aarch64,
            0x4000_0000,
            "--register SCTLR_EL1=1 --register TCR_EL1=0x80100010 --register TTBR1_EL1=0x40001000 \
             --register TTBR0_EL1=0",
            "SYMBOL(swapper_pg_dir)=ffff800080001000\nNUMBER(kimage_voffset)=0xffff800040000000\n\
             NUMBER(TCR_EL1_T1SZ)=0x10\n",
        ),
    ] {
        // Four tables, one behind another, and a page.
        let mut bytes = vec![0; 0x6000];
        for (level, shift) in (1u64..).zip([39u32, 30, 21, 12]) {
            let is_last = level == 4;
            let flags = if isa == Isa::X86_64 || !is_last { 3 } else { 0x703 };
            let entry = (base + (level + 1) * 0x1000) | flags;
            let at = usize::try_from(level * 0x1000 + (AT >> shift & 511) * 8).unwrap_or(0);
            bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        bytes[0x5000..0x5005].copy_from_slice(b"hello");
        c.write(&memory, &bytes)?;
        c.write(&info, format!("OSRELEASE=6.12-made-up\nPAGESIZE=4096\n{description}").as_bytes())?;
        let plain = format!("core {{}} --raw --arch {isa} --base {base:#x}");
        for more in [registers, "--vmcoreinfo {}"] {
            let words = |command: &str| format!("{plain} {more} {command}");
            let run = c.run(&words(&format!("translate {:#x}", AT + 8)), &[&memory, &info], limit)?;
            run.expect_code(0)?;
            run.expect_output(&format!("{:#x}", base + 0x5008))?;
            let run = c.run(&words(&format!("read {AT:#x} 5")), &[&memory, &info], limit)?;
            run.expect_code(0)?;
            run.expect_output("hello")?;
            let run = c.run(&words("read 0x1000 5"), &[&memory, &info], limit)?;
            run.expect_code(24)?;
        }
        let run = c.run(&format!("{plain} --vmcoreinfo {{}} info"), &[&memory, &info], limit)?;
        run.expect_output("(by the kernel's description; registers do not tell)")?;
        run.expect_output("release: 6.12-made-up")?;
        // With neither.
        let run = c.run(&format!("{plain} read {AT:#x} 5"), &[&memory], limit)?;
        run.expect_code(24)?;
        for (more, code, message) in [
            ("--register nonsense=1 info", 2, "has no such register of up to 64 bits"),
            ("--register nonsense info", 2, "write NAME=VALUE"),
            ("--vmcoreinfo /dev/null info", 6, "no description of a kernel: OSRELEASE and PAGESIZE"),
            ("--vmcoreinfo 0x1000 info", 24, "no description of a kernel: OSRELEASE and PAGESIZE"),
            ("--vmcoreinfo /no/such info", 8, "cannot open /no/such"),
            ("--vcpu 1 info", 2, "the dump has one vCPU, 0"),
            ("nmi", 2, "'nmi' is for a guest that runs"),
            ("regs some", 2, "there is no group 'some'"),
            ("read 0x1000 all", 2, "'all' is not a number"),
            ("translate 0x1000 --table here", 2, "'here' is not a number"),
            ("diff /no/such", 8, "cannot open /no/such"),
        ] {
            let run = c.run(&format!("{plain} {more}"), &[&memory], limit)?;
            run.expect_code(code)?;
            check(run.errors.contains(message), || format!("{more}: it says {}", run.errors))?;
        }
    }
    let run = c.run("core {} --raw info", &[&memory], limit)?;
    run.expect_code(2)?;
    // A file that is called like a command, in the current folder.
    let raw = format!("--raw --arch {}", c.isa);
    c.run(&format!("core {{}} {raw} dump {{}}"), &[&memory, &c.work.join("map")], limit)?.expect_code(0)?;
    let mut command = Command::new(&c.vmm);
    command.args(["core", "map", "mem"]).current_dir(&c.work);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    check(output.status.success() && text.contains("24 KiB"), || format!("{output:?}"))
}
