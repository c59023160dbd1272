//! `vmm run`: commands in guests that are booted for them.

use super::shares::{USER, give};
use super::terminal::{jobs_of, unread};
use crate::context::{Check, Context, Finished, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use arch::Isa;
use disk::sample::Sample;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What Debian's 6.12 has as modules of what a job needs.
pub const MODULES: &[&str] =
    &["fs/overlayfs/overlay.ko", "drivers/virtio/virtio_mmio.ko", "drivers/block/virtio_blk.ko"];

/// Starts a command in a guest.
pub fn start(c: &Context, root: &Path, wiring: Wiring, command: &str) -> Result<Process, String> {
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M -- {command}",
        c.slowness
    );
    c.start(wiring, &line, &[&c.kernel("6.12"), &c.modules(), root])
}

/// Runs one to its end.
pub fn run(c: &mut Context, root: &Path, options: &str, command: &str) -> Result<Finished, String> {
    run_in(c, "6.12", root, options, command)
}

/// Runs one in a kernel of this series.
pub fn run_in(
    c: &mut Context,
    series: &str,
    root: &Path,
    options: &str,
    command: &str,
) -> Result<Finished, String> {
    let (kernel, modules, limit) = (c.kernel(series), c.modules(), c.limit(60));
    let slow = c.slowness;
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {slow} --memory 256M {options} -- {command}"
    );
    c.run(&line, &[&kernel, &modules, root], limit)
}

/// A command's output, errors and code are the run's.
pub fn commands(c: &mut Context) -> Check {
    let root = c.root()?;
    // With all that the monitor's cell has.
    let release = run(c, &root, "--sandbox require", "uname -r")?;
    release.expect_code(0)?;
    check(release.output.starts_with("6.12"), || format!("no release: {}", release.output))?;
    check(release.errors.is_empty(), || format!("there is more to say: {}", release.errors))?;
    let apart = run(c, &root, "", "sh -c echo~out;echo~err>&2;exit~7")?;
    apart.expect_code(7)?;
    check(apart.output == "out\n" && apart.errors == "err\n", || format!("{apart:?}"))?;
    // One whose child goes on writing for ever.
    run(c, &root, "", "sh -c /bin/busybox~yes&exit~3")?.expect_code(3)?;
    // What is written is gone with the guest, and the host's is as it was.
    let written = run(c, &root, "--env GREETING=hello", "sh -c echo~$GREETING>/etc/new;cat~/etc/new;pwd")?;
    written.expect_code(0)?;
    check(written.output == "hello\n/\n", || format!("{written:?}"))?;
    check(!root.join("etc/new").exists(), || "the host's root has been written to".into())?;
    let mmio =
        run(c, &root, "--virtio mmio", "sh -c ls~/sys/bus/virtio/devices|wc~-l;ls~/sys/bus/pci/devices")?;
    mmio.expect_code(0)?;
    check(mmio.output.starts_with("3\n"), || format!("its devices are not found: {mmio:?}"))?;
    // A boot takes most of the time, and nothing of the architecture's is in this one.
    // And the host's root is a nest's there, which goes.
    if c.isa == Isa::X86_64 && c.in_nest {
        private(c)?;
    }
    // 10,000 lines on each stream.
    let long = "sh -c seq~10000&seq~10001~20000~>&2;wait";
    let long = run(c, &root, "", long)?;
    long.expect_code(0)?;
    let lines = |first: u32, last: u32| (first..=last).map(|line| format!("{line}\n")).collect::<String>();
    check(long.output == lines(1, 10_000), || "output is not as it was written".into())?;
    check(long.errors == lines(10_001, 20_000), || "errors are not as they were written".into())
}

/// What is private of the host's own root is not there, also below what is mounted over it in the guest.
fn private(c: &mut Context) -> Check {
    let make = || {
        fs::create_dir_all("/home/who")?;
        fs::write("/home/who/secret", "secret")
    };
    make().map_err(|error| format!("no home: {error}"))?;
    let line = format!(
        "run --kernel {{}} --modules {{}} --cwd / --slow {} --memory 256M -- /bin/busybox sh -c {}",
        c.slowness,
        "b=/bin/busybox;$b~mkdir~/home/new&&$b~ls~/home;$b~umount~/home&&$b~umount~/tmp&&$b~ls~/home~/tmp"
    );
    let (kernel, modules, limit) = (c.kernel("6.12"), c.modules(), c.limit(60));
    let looked = c.run(&line, &[&kernel, &modules], limit)?;
    looked.expect_code(0)?;
    check(looked.output == "new\n/home:\n\n/tmp:\n", || format!("{looked:?}"))
}

/// Each way of going wrong has its code, and the last line on standard error says which it was.
pub fn wrong_ways(c: &mut Context) -> Check {
    let oops = say_to_the_log("Oops:~0000~[#1]");
    ends_as_they_should(
        c,
        &[
            ("", "nothing", 127, "the command could not be executed: nothing: not found (exit code 127)"),
            ("", "/etc", 126, "could not be executed: /etc: no permission"),
            ("", "sh -c echo~c>/proc/sysrq-trigger;sleep~30", 120, "the guest's kernel panicked"),
            ("--append rdinit=/none~init=/none", "true", 120, "Unable to mount root fs"),
            ("", "sh -c echo~o>/proc/sysrq-trigger;sleep~30", 119, "switched itself off"),
            ("", &oops, 118, "the log has oops: "),
            ("--init /none", "true", 123, "the first process /none cannot be executed: not found"),
            ("--boot-timeout 10ms", "true", 122, "did not come so far"),
            ("--rw /work-that-is-not-there", "true", 125, "--rw /work-that-is-not-there: "),
            ("--wrong", "true", 125, "unexpected argument '--wrong'"),
        ],
    )
}

/// The same of what only the host decides.
pub fn judged_by_the_host(c: &mut Context) -> Check {
    let hang = say_to_the_log("<0>watchdog:~BUG:~soft~lockup~-~CPU#0");
    ends_as_they_should(
        c,
        &[
            ("", "sh -c exit~120", 120, "the command ended with code 120"),
            ("", &hang, 121, "the guest hangs: "),
            // One that comes last.
            ("", "sh -c echo~'Oops:~0'>/dev/kmsg", 118, "the log has oops: "),
            ("--allow Oo+ps:.*[0-9]", "sh -c echo~'Oops:~0'>/dev/kmsg", 0, ""),
            ("--timeout 1s", "sleep 1000", 124, "--timeout is over"),
            ("--fail-on none", "sh -c echo~'Oops:~0'>/dev/kmsg", 0, ""),
        ],
    )
}

/// A command that says something in the kernel's log, and goes on.
fn say_to_the_log(words: &str) -> String {
    format!("sh -c echo~'{words}'>/dev/kmsg;sleep~30")
}

/// Runs each with its options; it ends with a code, and the last line says why.
fn ends_as_they_should(c: &mut Context, runs: &[(&str, &str, i32, &str)]) -> Check {
    let root = c.root()?;
    for &(options, command, code, says) in runs {
        let run = run(c, &root, options, command)?;
        run.expect_code(code).map_err(|error| format!("{options} -- {command}: {error}"))?;
        let last = run.errors.lines().last().unwrap_or_default();
        check(last.contains(says), || format!("{options} -- {command}: the last line is '{last}'"))?;
    }
    Ok(())
}

/// A kernel that stays where it is with interrupts off says nothing; one that waits hangs no more than a command does
/// that sleeps.
pub fn stuck(c: &mut Context) -> Check {
    let (root, spin, limit) = (c.root()?, c.guest("spin", false)?, c.limit(60));
    let stuck = c.run("run --kernel {} --root {} --memory 256M -- true", &[&spin, &root], limit)?;
    stuck.expect_code(121)?;
    let last = stuck.errors.lines().last().unwrap_or_default();
    check(last.contains("with interrupts off (exit code 121)"), || format!("the last line is '{last}'"))?;
    let idle = run(c, &root, "--cpus 2", "sleep 18")?;
    idle.expect_code(0)
}

/// Puts the kernel and its modules where a distribution has them: a nest runs the same one.
fn install_kernel(c: &Context) -> std::io::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    let modules = Path::new("/lib/modules").join(release);
    fs::create_dir_all("/boot")?;
    fs::create_dir_all(&modules)?;
    fs::copy(c.kernel("6.12"), format!("/boot/vmlinuz-{release}"))?;
    for entry in fs::read_dir(c.modules())? {
        let entry = entry?;
        fs::copy(entry.path(), modules.join(entry.file_name()))?;
    }
    Ok(())
}

/// For a user who may do no more than use KVM, with this machine's own kernel and root.
pub fn of_a_user(c: &mut Context) -> Check {
    let work = c.work.join("of-a-user");
    let made = fs::create_dir(&work)
        .and_then(|()| give(&work, USER))
        .and_then(|()| give(Path::new("/dev/kvm"), USER))
        .and_then(|()| install_kernel(c));
    made.map_err(|error| format!("cannot make a folder for a user, or install the kernel: {error}"))?;
    let mut command = Command::new(&c.vmm);
    command
        .args(["run", "--slow", &c.slowness.to_string(), "--memory", "256M", "--rw"])
        .arg(&work)
        .arg("--cwd")
        .arg(&work);
    let script = "id -u; echo mine > mine; echo no > /etc-is-not-there; [ -e /proc/1 ] && echo proc; pwd";
    command.args(["--", "/bin/busybox", "sh", "-c", script]).env_remove("RUST_LOG").uid(USER).gid(USER);
    let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    process.close_input();
    let code = process.wait(c.limit(60));
    c.keep("vmm", &process);
    check(code? == 0, || process.errors.text())?;
    let wanted = format!("0\nproc\n{}\n", work.display());
    check(process.output.text() == wanted, || format!("{:?} instead of {wanted:?}", process.output.text()))?;
    let mine = fs::metadata(work.join("mine")).map_err(|error| error.to_string())?;
    check(mine.uid() == USER, || format!("what the guest has made is of {}", mine.uid()))?;
    check(!Path::new("/etc-is-not-there").exists(), || "the guest has written to the host's root".into())
}

/// Many runs, and what came of them.
pub fn many(c: &mut Context) -> Check {
    let (root, limit) = (c.root()?, c.limit(120));
    let (kernel, modules) = (c.kernel("6.12"), c.modules());
    let common = format!(
        "--kernel {} --modules {} --root {} --slow {} --memory 256M",
        kernel.display(),
        modules.display(),
        root.display(),
        c.slowness
    );
    let tap = "printf 'TAP version 13\\nok 1 - one\\nnot ok 2 - two\\n'";
    let list = c.work.join("list");
    // As it comes from another program.
    let text = format!(
        "# four\n{common} -- true\n\n{common} -- sh -c 'exit 3'\n{common} -- sh -c \"{tap}\"\n{common} -- nothing\n"
    );
    let junit = c.work.join("junit.xml");
    let mut process = c.start(Wiring::Pipes, "run --matrix - --jobs 2 --junit {}", &[&junit])?;
    process.send(&text)?;
    process.close_input();
    let code = process.wait(limit);
    c.keep("vmm", &process);
    let many = Finished { code: code?, output: process.output.text(), errors: process.errors.text() };
    many.expect_code(1)?;
    for line in
        ["-- true  (passed)", "(the command ended with code 3)", "(1 test failed; ", "1 of 4 runs passed"]
    {
        many.expect_output(line)?;
    }
    let xml = fs::read_to_string(&junit).map_err(|error| error.to_string())?;
    for part in ["<testcase name=\"one\"", "<failure", "could not be executed"] {
        check(xml.contains(part), || format!("no {part} in:\n{xml}"))?;
    }
    // For programs: of runs that come to nothing, which is told of each.
    c.write(&list, b"--kernel /none -- true\n--kernel /none -- true\n")?;
    let tap = c.run("run --matrix {} --tap", &[&list], limit)?;
    tap.expect_code(1)?;
    check(tap.output.contains("1..2\n") && tap.output.matches("\nnot ok ").count() == 2, || {
        tap.output.clone()
    })?;
    let json = c.run("run --matrix {} --json", &[&list], limit)?;
    json.expect_code(1)?;
    let lines: Vec<serde_json::Value> =
        json.output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_told = lines.len() == 2 && lines.iter().all(|line| line["code"] == 125);
    check(is_told, || format!("{json:?}"))?;
    // Wrong lists: one line each, and nothing is run.
    for (text, says) in [
        ("", "there are no lines"),
        ("-- true\n-- sh -c 'true\n", "line 2: a quotation has no end"),
        ("--kernle x -- true\n", "line 1: unexpected argument '--kernle'"),
        ("--memory 1 -- true\n", "line 1: "),
        ("--matrix x\n", "line 1: a run of many"),
    ] {
        c.write(&list, text.as_bytes())?;
        let wrong = c.run("run --matrix {}", &[&list], limit)?;
        wrong.expect_code(125)?;
        wrong.expect_one_line(says)?;
    }
    Ok(())
}

/// More commands in a guest that runs one.
pub fn exec(c: &mut Context) -> Check {
    let (root, limit) = (c.root()?, c.limit(60));
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --name job --slow {} --memory 256M -- sh -c echo~up;cat",
        c.slowness
    );
    let mut job = c.start(Wiring::Pipes, &line, &[&c.kernel("6.12"), &c.modules(), &root])?;
    let mut talk = || -> Check {
        job.expect("up", limit)?;
        let both = c.run("exec job -- sh -c echo~out;echo~err>&2;exit~9", &[], limit)?;
        both.expect_code(9)?;
        check(both.output == "out\n" && both.errors == "err\n", || format!("{both:?}"))?;
        // The codes of a run's command.
        let codes = [
            ("nothing", 127),
            ("/bin/busybox/no-folder", 127),
            ("/etc", 126),
            ("sh -c kill~-9~$$", 128 + 9),
            ("sh -c exit~120", 120),
            ("sh -c echo~'exit~$1'>/tmp/script;chmod~755~/tmp/script", 0),
            // A shell's, though it does not say so.
            ("/tmp/script 9", 9),
        ];
        for (command, code) in codes {
            c.run(&format!("exec job -- {command}"), &[], limit)?.expect_code(code)?;
        }
        c.run("exec job --env PATH=:/bin --cwd /tmp -- script 8", &[], limit)?.expect_code(8)?;
        // One that is killed leaves its command a signal, and does not keep the others.
        let mut gone = c.start(Wiring::Pipes, "exec job -- sh -c echo~here;exec~sleep~1000", &[])?;
        gone.expect("here", limit)?;
        gone.signal(Signal::SIGKILL)?;
        gone.wait_status(limit)?;
        let mut typed = c.start(Wiring::Pipes, "exec job --env A=b -- sh -c cat;echo~$A;kill~-15~$$", &[])?;
        typed.send("typed\n")?;
        typed.close_input();
        let code = typed.wait(limit)?;
        check(code == 128 + 15 && typed.output.text() == "typed\nb\n", || {
            format!("code {code}: {}", typed.output.text())
        })?;
        let rest = c.run("exec job -- sh -c ps|grep~'[s]leep~1000'", &[], limit)?;
        rest.expect_code(1)?;
        // A key of the kernel's is told of in its log.
        let key = c.run("sysrq job h", &[], limit)?;
        key.expect_code(0)?;
        let told = "exec job -- sh -c until~dmesg|grep~'sysrq:~HELP';do~sleep~1;done";
        c.run(told, &[], limit)?.expect_code(0)?;
        let nmi = c.run("nmi job", &[], limit)?;
        nmi.expect_code(if c.isa == Isa::X86_64 { 0 } else { 8 })?;
        job.close_input();
        Ok(())
    };
    let talked = talk();
    if talked.is_err() {
        job.signal(Signal::SIGKILL)?;
    }
    let code = job.wait(limit);
    c.keep("job", &job);
    talked?;
    check(code? == 0, || "the job's code is another".into())?;
    let late = c.run("exec job -- true", &[], limit)?;
    late.expect_code(125)?;
    late.expect_one_line("no guest of this name runs")
}

/// A root in a disk image, as four guests at once have it; a partition of one; and what a command leaves behind.
pub fn images(c: &mut Context) -> Check {
    const SIZE: u64 = 16 << 20;
    const START: usize = 1 << 20;
    let (root, limit) = (c.root()?, c.limit(120));
    let (image, over, parted) =
        (c.work.join("root.img"), c.work.join("over.qcow2"), c.work.join("parted.img"));
    let made = fs::File::create(&image).and_then(|file| file.set_len(SIZE));
    made.map_err(|error| error.to_string())?;
    // A guest makes it.
    let script = "sh -c mke2fs~/dev/vda>/dev/null&&mkdir~/i&&mount~-t~ext4~/dev/vda~/i&&\
                  cp~-a~/bin~/etc~/i&&cd~/i&&mkdir~proc~root~run~sys~tmp~dev&&cd~/&&umount~/i";
    let make = format!("--disk {}", image.display());
    for applet in ["mke2fs", "mkdir", "mount", "umount", "cp"] {
        symlink("busybox", root.join("bin").join(applet)).map_err(|error| error.to_string())?;
    }
    run(c, &root, &make, script)?.expect_code(0)?;
    let before = fs::read(&image).map_err(|error| error.to_string())?;
    let backing = Sample { backing: Some(("root.img", Some("raw"))), ..Sample::new(SIZE) };
    c.write(&over, &backing.build().map_err(|error| error.to_string())?)?;
    let mut table = vec![0; START];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&u32::try_from(SIZE / 512).unwrap_or(0).to_le_bytes());
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    c.write(&parted, &[&table[..], &before].concat())?;

    let script = "sh -c echo~kept>/out/kept-$N;echo~gone>/etc/gone;grep~'~/~'~/proc/mounts;cat~/etc/gone";
    let mut guests = Vec::new();
    for number in 0..4 {
        let line = format!(
            "run --kernel {{}} --modules {{}} --root {{}} --out {{}} --env N={number} --slow {} --memory 128M \
             --cpus 1 -- {script}",
            4 * c.slowness
        );
        let out = c.work.join("left/behind");
        guests.push(c.start(Wiring::Pipes, &line, &[&c.kernel("6.12"), &c.modules(), &over, &out])?);
    }
    let mut codes = Vec::new();
    for (number, guest) in guests.iter_mut().enumerate() {
        guest.close_input();
        codes.push((guest.wait(limit), guest.output.text()));
        c.keep(&format!("guest-{number}"), guest);
    }
    for (code, output) in codes {
        check(code? == 0 && output.contains(" / ext4 rw") && output.ends_with("gone\n"), || output)?;
    }
    let kept = (0..4).filter(|number| c.work.join(format!("left/behind/kept-{number}")).is_file()).count();
    check(kept == 4, || format!("{kept} have left something behind"))?;
    check(fs::read(&image).is_ok_and(|now| now == before), || "the image has been written to".into())?;
    let found = run(c, &parted, "", "grep ~/~ /proc/mounts")?;
    found.expect_code(0)?;
    check(found.output.contains(" / ext4 rw"), || format!("{found:?}"))?;
    for (root, says) in [(":2", "there is no partition 2: it has 1 (16 MiB)"), (":x", "No such file")] {
        let root = PathBuf::from(format!("{}{root}", parted.display()));
        let wrong = run(c, &root, "", "true")?;
        wrong.expect_code(125)?;
        wrong.expect_one_line(says)?;
    }
    // It has the magic number of ext4 and nothing else of it: only the guest finds that out.
    let damaged = c.work.join("damaged.img");
    let mut bytes = vec![0; START];
    bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    c.write(&damaged, &bytes)?;
    let none = run(c, &damaged, "", "true")?;
    none.expect_code(123)?;
    let last = none.errors.lines().last().unwrap_or_default();
    check(last.contains("the guest could not be made ready: "), || format!("the last line is '{last}'"))
}

/// A guest of which something bad came is kept: stopped for a debugger, or running for more commands.
pub fn kept(c: &mut Context) -> Check {
    let (root, limit) = (c.root()?, c.limit(60));
    let line = |hold: &str, command: &str| {
        format!(
            "run --kernel {{}} --modules {{}} --root {{}} --name job --slow {} --memory 256M --hold-on {hold} -- {command}",
            c.slowness
        )
    };
    let core = c.work.join("core");
    // The log is where it does not come by the serial port.
    let dumped = format!("oops,panic --append console=hvc0 --dump-on hang,panic={}", core.display());
    let (panics, fails) = (
        line(&dumped, "sh -c echo~c>/proc/sysrq-trigger;sleep~1000"),
        line("fail=40s", "sh -c echo~left>/run/left;exit~3"),
    );
    let (kernel, modules, socket) = (c.kernel("6.12"), c.modules(), c.work.join("gdb"));
    let mut job = c.start(Wiring::Pipes, &panics, &[&kernel, &modules, &root])?;
    let mut talk = || -> Check {
        job.expect_error("dumped to ", limit)?;
        job.expect_error("the guest is kept until Ctrl-C: the guest's kernel panicked", limit)?;
        job.expect_error("vmm gdb job :1234", limit)?;
        let log = c.run("core {} dmesg", &[&core], limit)?;
        log.expect_output("Kernel panic - not syncing: sysrq triggered crash")?;
        c.run("gdb job unix:{}", &[&socket], limit)?.expect_code(0)?;
        let mut client = Client::attach(&socket, limit)?;
        client.expect("?", "T0*")?;
        // It stands where the kernel panicked, and goes on.
        client.expect("vCont;s:p1.1", "T05*")?;
        client.expect("D;1", "OK")?;
        c.run("gdb job --leave", &[], limit)?.expect_code(0)?;
        job.signal(Signal::SIGINT)
    };
    let talked = talk();
    if talked.is_err() {
        job.signal(Signal::SIGKILL)?;
    }
    let code = job.wait(limit);
    c.keep("panic", &job);
    talked?;
    check(code? == 120, || "the code is another".into())?;

    let mut job = c.start(Wiring::Pipes, &fails, &[&kernel, &modules, &root])?;
    let mut talk = || -> Check {
        job.expect_error("the guest is kept for 40s: the command ended with code 3", limit)?;
        let more = c.run("exec job -- cat /run/left", &[], limit)?;
        more.expect_code(0)?;
        check(more.output == "left\n", || format!("{more:?}"))?;
        job.signal(Signal::SIGTERM)
    };
    let talked = talk();
    if talked.is_err() {
        job.signal(Signal::SIGKILL)?;
    }
    let code = job.wait(limit);
    c.keep("fail", &job);
    talked?;
    check(code? == 3, || "the code is another".into())?;
    // By itself, and not for what is not named.
    let over = run(c, &root, "--hold-on fail=1s", "sh -c exit~4")?;
    over.expect_code(4)?;
    let never = c.work.join("never");
    let options = format!("--hold-on hang --dump-on hang={}", never.display());
    let other = run(c, &root, &options, "sh -c exit~5")?;
    other.expect_code(5)?;
    check(!other.errors.contains("kept") && !never.exists(), || other.errors.clone())
}

/// In the background, in the foreground, and stopped: as other programs are.
pub fn in_a_shell(c: &mut Context) -> Check {
    let root = c.root()?;
    let words = format!(
        "run --kernel {} --modules {} --root {} --slow {} --memory 256M -- sh -c 'echo ready; cat'",
        c.kernel("6.12").display(),
        c.modules().display(),
        root.display(),
        c.slowness
    );
    jobs_of(c, &words, 130, c.limit(60))
}

/// Whoever reads the output, the log, or the guest itself does nothing: each run ends when it is told to, or in time.
pub fn nobody_answers(c: &mut Context) -> Check {
    let root = c.root()?;
    let log = c.work.join("log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).map_err(|error| error.to_string())?;
    let alone = run(c, &root, &format!("--kernel-log {}", log.display()), "echo done")?;
    alone.expect_code(0)?;
    nobody_reads(c, &root, true)?;
    nobody_reads(c, &root, false)?;
    nobody_begins(c, &root)?;
    let long = run(c, &root, "", &format!("echo {}", "x".repeat(40_000)))?;
    long.expect_code(125)?;
    long.expect_one_line("the command and its environment are too long")
}

/// A kernel's source tree as its build leaves it: image, modules, and on x86_64 the kernel that does not unpack itself,
/// which is what is booted unless its place is to be left to chance.
pub fn of_a_tree(c: &mut Context) -> Check {
    let (root, tree) = (c.root()?, c.work.join("tree"));
    let (image, kind, unpacked) = match c.isa {
        Isa::X86_64 => ("arch/x86/boot/bzImage", "bzImage", Some(super::linux::unpacked(c)?)),
        Isa::Aarch64 => ("arch/arm64/boot/Image", "arm64 Image", None),
    };
    let make = || -> std::io::Result<()> {
        fs::create_dir_all(tree.join(image).with_file_name(""))?;
        fs::copy(c.kernel("6.12"), tree.join(image))?;
        for path in MODULES {
            let place = tree.join(path);
            fs::create_dir_all(place.with_file_name(""))?;
            let name = place.file_name().unwrap_or_default();
            fs::write(&place, c.module(name).map_err(std::io::Error::other)?)?;
        }
        fs::write(tree.join("modules.order"), MODULES.join("\n").replace(".ko", ".o"))?;
        unpacked.iter().try_for_each(|kernel| fs::write(tree.join("vmlinux"), kernel))
    };
    make().map_err(|error| format!("cannot make a tree: {error}"))?;
    let limit = c.limit(60);
    for (append, is_unpacked) in [("x", c.isa == Isa::X86_64), ("kaslr", false)] {
        let line = format!(
            "run -v --build {{}} --root {{}} --append {append} --slow {} --memory 256M -- true",
            c.slowness
        );
        let run = c.run(&line, &[&tree, &root], limit)?;
        run.expect_code(0)?;
        let place = if is_unpacked { tree.join("vmlinux") } else { tree.join(image) };
        let wanted = format!("{} {}", if is_unpacked { "ELF" } else { kind }, place.display());
        check(run.errors.contains(&wanted), || format!("no '{wanted}' in:\n{}", run.errors))?;
        if c.isa == Isa::Aarch64 {
            break;
        }
    }
    Ok(())
}

/// Nobody reads the output: the first signal ends the command, another one the wait. Of one that has ended the first does.
fn nobody_reads(c: &mut Context, root: &Path, is_endless: bool) -> Check {
    let limit = c.limit(60);
    let until = |what: &str, is_so: &mut dyn FnMut() -> Result<bool, String>| -> Check {
        let deadline = Instant::now() + limit;
        while !is_so()? {
            check(Instant::now() < deadline, || what.to_string())?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    };
    let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let mut command = Command::new(&c.vmm);
    command.arg("run").arg("--kernel").arg(c.kernel("6.12")).arg("--modules").arg(c.modules());
    command.arg("--root").arg(root).args(["--slow", &c.slowness.to_string(), "--memory", "256M"]);
    match is_endless {
        true => command.args(["--", "seq", "10000000"]),
        // More than a pipe holds, and less than is on its way besides.
        false => command.args(["--name", "late", "--", "seq", "20000"]),
    };
    command.env_remove("RUST_LOG").stdin(std::process::Stdio::null()).stdout(writer);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    drop(command);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    let mut status = None;
    let talked = (|| -> Check {
        until("the pipe does not become full", &mut || Ok(unread(&reader)? >= 60_000))?;
        if !is_endless {
            // It has ended by itself: its guest stands still, and who asks of it is answered.
            until("the command does not end", &mut || {
                let list = c.run("ls", &[], limit)?;
                list.expect_code(0)?;
                Ok(list.output.lines().any(|line| line.contains("late") && line.contains("held")))
            })?;
            let asked = c.run("monitor late ps", &[], limit)?;
            asked.expect_code(0)?;
            check(asked.output.contains("kthreadd"), || asked.output.clone())?;
            nix::sys::signal::kill(pid, Signal::SIGTERM).map_err(|error| error.to_string())?;
        }
        until("it does not end", &mut || {
            // One that comes while another waits to be heard is the same.
            if is_endless {
                nix::sys::signal::kill(pid, Signal::SIGTERM).map_err(|error| error.to_string())?;
            }
            status = child.try_wait().map_err(|error| error.to_string())?;
            Ok(status.is_some())
        })
    })();
    if talked.is_err() {
        child.kill().map_err(|error| error.to_string())?;
    }
    talked?;
    let code = status.and_then(|status| status.code());
    check(code == Some(143), || format!("the code is {code:?}"))
}

/// A guest that a debugger holds, and one whose monitor says nothing.
fn nobody_begins(c: &mut Context, root: &Path) -> Check {
    let (limit, socket, mute) = (c.limit(60), c.work.join("gdb"), c.work.join("mute"));
    let line = "run --kernel {} --modules {} --root {} --name held --gdb unix:{} --memory 256M -- true";
    let mut held = c.start(Wiring::Pipes, line, &[&c.kernel("6.12"), &c.modules(), root, &socket])?;
    let mut talk = || -> Check {
        held.expect_error("waiting for gdb", limit)?;
        let asked = c.run("exec --wait 1s held -- true", &[], limit)?;
        asked.expect_code(125)?;
        asked.expect_one_line("the guest has not begun the command in time")?;
        let _listener = std::os::unix::net::UnixListener::bind(&mute).map_err(|error| error.to_string())?;
        let asked = c.run("exec {} -- true", &[&mute], limit)?;
        asked.expect_code(125)?;
        asked.expect_one_line("its monitor does not answer")?;
        held.signal(Signal::SIGTERM)
    };
    let talked = talk();
    if talked.is_err() {
        held.signal(Signal::SIGKILL)?;
    }
    let code = held.wait(limit);
    c.keep("held", &held);
    talked?;
    check(code? == 143, || "the code is another".into())
}
