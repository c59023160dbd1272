//! Guests whose kernel hangs or crashes, by a module of ours (docs/testing.md), and what is said of it: stacks, locks,
//! and why.

use crate::artifacts::WEDGE;
use crate::context::{Check, Context, Finished, check};
use crate::process::Wiring;
use crate::rsp::Client;
use debug::gdb::packet::hex;
use object::read::{File, Object};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What a job needs, and the module.
pub const MODULES: &[&str] = &["fs/overlayfs/overlay.ko", WEDGE];

/// A root with a script and the module.
pub fn root_with(c: &Context, script: &str) -> Result<PathBuf, String> {
    let root = c.root()?;
    let made = fs::copy(c.modules().join(WEDGE), root.join("bin").join(WEDGE))
        .and_then(|_| fs::write(root.join("bin/run.sh"), script));
    made.map(|()| root).map_err(|error| format!("cannot make a root: {error}"))
}

/// Has threads wait for ever, and tells of each what the kernel says of its stack.
const LOCKED: &str = r#"
b=/bin/busybox
$b insmod /bin/wedge.ko how=mutexes,rwsem,sleep
pid_of() {
  for comm in /proc/[0-9]*/comm; do
    read -r name < "$comm"
    [ "$name" = "$1" ] && { pid=${comm#/proc/}; pid=${pid%/comm}; return; }
  done
}
# What the kernel tells of stacks leaves the functions out in which one waits for a lock.
for task in ab:wedge_takes_ab ba:wedge_takes_ba reader:wedge_reads writer:wedge_sleeps sleep:wedge_sleeps; do
  until pid_of "wedge/${task%%:*}" && $b grep -q "${task#*:}" "/proc/$pid/stack"; do $b sleep 0.1; done
done
$b sleep 1
for task in ab ba reader writer sleep; do
  name=wedge/$task
  pid_of "$name"
  echo "guest: task $pid $name."
  $b sed "s/^.<0>. /guest: frame $pid /; s/\$/./" "/proc/$pid/stack"
done
echo "guest: text of wedge is at $(cat /sys/module/wedge/sections/.text)."
echo "guest: wedged."
cat > /dev/null
"#;

/// A debugger that says what it is told to do, and is connected to nothing.
const STAND_IN: &str = r#"#!/bin/busybox sh
echo "debugger: $*"
while [ $# -gt 0 ]; do
  [ "$1" = -x ] && busybox cat "$2"
  shift
done
exit 7
"#;

/// Who waits for whom, where, and why the guest does not go on, as a debugger and a shell on its dump are told.
pub fn locked(c: &mut Context) -> Check {
    let (root, socket, limit) = (root_with(c, LOCKED)?, c.work.join("gdb.sock"), c.limit(60));
    let cache = cache_with_the_module(c)?;
    let line = format!(
        "env DEBUGINFOD_CACHE_PATH={{}} {{}} run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M \
         --gdb unix:{{}} --name wedged -- sh /bin/run.sh",
        c.slowness
    );
    let paths = [&cache, &c.vmm, &c.kernel("6.12"), &c.modules(), &root, &socket];
    let mut job =
        c.start_program("/bin/busybox".as_ref(), Wiring::Pipes, &line, &paths.map(PathBuf::as_path))?;
    let talked = (|| -> Check {
        let mut client = Client::attach(&socket, limit)?;
        client.run()?;
        job.expect("guest: wedged.", limit)?;
        client.interrupt()?;
        let said = job.output.text();
        let tasks = tasks(&said);
        knows_the_stacks(&mut client, &tasks, &said)?;
        let pid = |name: &str| tasks.get(name).copied().ok_or_else(|| format!("no task {name}: {said}"));
        let (ab, ba, reader, writer) =
            (pid("wedge/ab")?, pid("wedge/ba")?, pid("wedge/reader")?, pid("wedge/writer")?);
        let all = [
            (
                vec![format!("task {ab} [wedge/ab] waits for the mutex at 0x")],
                format!(
                    " (wedge_b [wedge]), in wedge_takes_ab; task {ba} [wedge/ba] has it, and sleeps in wedge_takes_ba"
                ),
            ),
            (
                vec![format!("task {ba} [wedge/ba] waits for the mutex at 0x")],
                format!(
                    " (wedge_a [wedge]), in wedge_takes_ba; task {ab} [wedge/ab] has it, and sleeps in wedge_takes_ab"
                ),
            ),
            (
                vec![format!("task {reader} [wedge/reader] waits for the rw_semaphore, to read, at 0x")],
                format!(
                    " (wedge_sem [wedge]), in wedge_reads; task {writer} [wedge/writer] has it, and sleeps in wedge_sleeps"
                ),
            ),
            (
                vec!["deadlock: ".into()],
                format!(
                    "task {ab} [wedge/ab] waits for task {ba} [wedge/ba], which waits for task {ab} [wedge/ab]"
                ),
            ),
        ];
        let locks = client.console(&format!("qRcmd,{}", String::from_utf8_lossy(&hex(b"locks"))))?;
        for (begins, ends) in &all {
            let tells =
                |line: &str| begins.iter().all(|begin| line.starts_with(begin)) && line.ends_with(ends);
            check(locks.lines().any(tells), || format!("{begins:?} {ends}: {locks}"))?;
        }
        let why = client.console(&format!("qRcmd,{}", String::from_utf8_lossy(&hex(b"why"))))?;
        c.write(&c.work.join("why"), why.as_bytes())?;
        for words in
            ["asleep, and woken by no signal", "[wedge/sleep], ran last at", "wedge_sleeps+0x", "deadlock: "]
        {
            check(why.contains(words), || format!("{words}: {why}"))?;
        }
        let core = c.work.join("wedged.core");
        c.run("dump wedged {}", &[&core], limit)?.expect_code(0)?;
        let dumped = c.run("core {} locks", &[&core], limit)?;
        dumped.expect_code(0)?;
        check(dumped.output == locks, || format!("a dump tells {}, and the guest {locks}", dumped.output))?;
        // From a shell, while the debugger holds the guest, and when it runs again.
        let shell = c.run("monitor wedged locks", &[], limit)?;
        shell.expect_code(0)?;
        check(shell.output == locks, || format!("a shell is told {}, and gdb {locks}", shell.output))?;
        client.run()?;
        let json = c.run("monitor wedged --json why", &[], limit)?;
        json.expect_code(0)?;
        let json: serde_json::Value =
            serde_json::from_str(&json.output).map_err(|error| error.to_string())?;
        check(json["locks"]["deadlocks"][0][1]["pid"].as_u64() == Some(ba.into()), || json.to_string())?;
        let more = c.run("monitor wedged quit", &[], limit)?;
        more.expect_code(2)?;
        more.expect_one_line("this only looks at the guest")?;
        c.run("monitor wedged read 0x10 8", &[], limit)?.expect_code(24)?;
        c.run("monitor wedged help", &[], limit)?
            .expect_output("who waits for which of the kernel's locks")?;
        client.expect("D;1", "OK")?;
        drop(client);
        has_lines_in_the_module(c, ab)?;
        finds_names_in_the_module(c, &said)?;
        tells_gdb_of_modules(c, &said)
    })();
    job.close_input();
    let ended = job.wait(limit);
    c.keep("job", &job);
    talked?;
    check(ended? == 0, || job.errors.text())
}

/// Where the guest itself says that its module's code is.
fn text_of(said: &str) -> Result<&str, String> {
    let text = said.split_once("text of wedge is at ").and_then(|(_, rest)| rest.split_once('.'));
    text.map(|(text, _)| text).ok_or_else(|| format!("the guest does not say where its module is: {said}"))
}

/// What debuginfod's client would have fetched: the module's file, by its build id.
fn cache_with_the_module(c: &Context) -> Result<PathBuf, String> {
    let (module, cache) = (c.modules().join(WEDGE), c.work.join("debuginfod"));
    let bytes = fs::read(&module).map_err(|error| error.to_string())?;
    let file = File::parse(&bytes[..]).map_err(|error| error.to_string())?;
    let id = file.build_id().ok().flatten().ok_or("the module has no build id")?;
    let place = cache.join(id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let made = fs::create_dir_all(&place).and_then(|()| fs::write(place.join("debuginfo"), &bytes));
    made.map(|()| cache).map_err(|error| format!("cannot make a cache: {error}"))
}

/// Frames in the module have source lines, by a file that is found by the module's build id, from within the monitor's
/// cell.
fn has_lines_in_the_module(c: &mut Context, pid: u32) -> Check {
    let told = c.run(&format!("monitor wedged --json bt {pid}"), &[], c.limit(20))?;
    told.expect_code(0)?;
    let told: serde_json::Value = serde_json::from_str(&told.output).map_err(|error| error.to_string())?;
    let frames = told["stacks"][0]["frames"].as_array().into_iter().flatten();
    let of_module: Vec<_> = frames.filter(|frame| frame["module"] == "wedge").collect();
    let has_line = |frame: &&serde_json::Value| {
        let line = &frame["lines"][0];
        line["file"].as_str().is_some_and(|file| file.ends_with("wedge.c")) && line["line"].is_u64()
    };
    check(!of_module.is_empty() && of_module.iter().all(has_line), || told.to_string())
}

/// A function of the module's by its name, and the name by where it is; a name that the kernel and the module both have is
/// the kernel's.
fn finds_names_in_the_module(c: &mut Context, said: &str) -> Check {
    let limit = c.limit(20);
    let mut ask = |what: &str| -> Result<serde_json::Value, String> {
        let told = c.run(&format!("monitor wedged --json sym {what}"), &[], limit)?;
        told.expect_code(0)?;
        let told: serde_json::Value =
            serde_json::from_str(&told.output).map_err(|error| error.to_string())?;
        Ok(told["symbols"][0].clone())
    };
    let number = |value: &serde_json::Value| {
        let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
    };
    let function = ask("wedge_sleeps")?;
    let text = number(&serde_json::Value::from(text_of(said)?));
    let at = number(&function["address"]);
    check(function["module"] == "wedge" && (text..text + 0x1_0000).contains(&at), || {
        format!("{function}, and the module is at {text:#x}")
    })?;
    let place = ask(&format!("{:#x}", at + 4))?;
    check(place["name"] == "wedge_sleeps" && place["offset"] == 4 && place["module"] == "wedge", || {
        place.to_string()
    })?;
    let kernels = ask("schedule")?;
    check(kernels["module"].is_null() && number(&kernels["address"]) != 0, || kernels.to_string())
}

/// What `vmm gdb` tells a debugger of the module, by a tree of sources that has its file: where the guest itself says that
/// it is, and of those without a file that there is none.
fn tells_gdb_of_modules(c: &mut Context, said: &str) -> Check {
    let in_words = |error: std::io::Error| error.to_string();
    let (tree, program) = (c.work.join("tree"), c.work.join("debugger"));
    fs::create_dir(&tree).map_err(in_words)?;
    fs::copy(c.modules().join(WEDGE), tree.join(WEDGE)).map_err(in_words)?;
    c.write(&tree.join("modules.order"), WEDGE.replace(".ko", ".o\n").as_bytes())?;
    c.write(&tree.join("vmlinux"), b"")?;
    c.write(&program, STAND_IN.as_bytes())?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).map_err(in_words)?;
    let text = text_of(said)?;
    let told = c.run("gdb wedged {} --program {}", &[&tree.join("vmlinux"), &program], c.limit(20))?;
    told.expect_code(7)?;
    told.expect_output("target remote ")?;
    told.expect_output(&format!("wedge.ko\\\" {text} -s "))?;
    check(told.errors.contains("gdb knows no names of overlay"), || told.errors.clone())
}

/// The numbers of the guest's tasks, by their names.
fn tasks(said: &str) -> HashMap<&str, u32> {
    let lines = said.lines().filter_map(|line| line.strip_prefix("guest: task ")?.strip_suffix('.'));
    lines
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(pid, name)| Some((name, pid.parse().ok()?)))
        .collect()
}

/// The stacks of tasks are those that the kernel itself tells of, frame by frame, but for its scheduler's functions, which
/// it leaves out.
fn knows_the_stacks(client: &mut Client, tasks: &HashMap<&str, u32>, said: &str) -> Check {
    check(tasks.len() == 5, || format!("of five tasks: {tasks:?}"))?;
    for (name, pid) in tasks {
        let begin = format!("guest: frame {pid} ");
        let kernels: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix(&begin)?.split_once('/').map(|(place, _)| place))
            .collect();
        let command = format!("bt {pid}");
        let ours = client.console(&format!("qRcmd,{}", String::from_utf8_lossy(&hex(command.as_bytes()))))?;
        let places: Vec<&str> = ours
            .lines()
            .filter(|line| line.trim_start().starts_with('#'))
            .filter_map(|line| line.split_whitespace().nth(2))
            .collect();
        let is_same = kernels.len() > 2 && places.ends_with(&kernels);
        check(is_same, || format!("{name}: the kernel says {kernels:?}, and bt {ours}"))?;
    }
    Ok(())
}

/// A job whose kernel does not go on says why by itself: in words of its processors, and of who waits for whom; and so does
/// a dump of it.
pub fn hangs_and_crashes(c: &mut Context) -> Check {
    // A program that is on the CPU that spins stops, too.
    const SCRIPT: &str = "/bin/busybox taskset 1 /bin/busybox insmod /bin/wedge.ko how=$1; sleep 1000";
    let root = root_with(c, SCRIPT)?;
    let (kernel, modules, limit) = (c.kernel("6.12"), c.modules(), c.limit(90));
    let ways: &[(&str, &str, &[i32], &[&str])] = &[
        ("oops", "", &[118], &["the log has oops", "wedge_oopses+0x", "wedge/oops"]),
        (
            "spin",
            "--cpus 2",
            &[121],
            &["[wedge/spin] since ", ", interrupts OFF", "wedge_spins+0x", "wedge_masks+0x"],
        ),
        ("overflow", "", &[118, 120], &["wedge_recurses+0x", "more like it", "wedge_overflows+0x"]),
        (
            "interrupt",
            "--cpus 2",
            &[121],
            &["wedge_interrupts+0x", "interrupted at", "wedge_is_interrupted+0x"],
        ),
        (
            "spinlock",
            "--cpus 2",
            &[121],
            &["[wedge/waiter] spins for the spinlock at 0x", "(wedge_lock [wedge])"],
        ),
        ("mutexes", "--timeout 30s", &[124], &["deadlock: ", "--timeout"]),
    ];
    // Each is another boot: a sample has two of them, as chance has it.
    let count = usize::try_from(c.length().of(2, ways.len() as u64)).unwrap_or(usize::MAX);
    let (mut left, mut chance) = (ways.to_vec(), c.chance());
    for _ in 0..count {
        let index = usize::try_from(chance.below(left.len() as u64)).unwrap_or(0);
        let (how, options, codes, words) = left.swap_remove(index);
        println!("{}: {how}", c.name);
        let core = c.work.join(format!("{how}.core"));
        let line = format!(
            "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M --dump-on panic,oops,hang,fail={{}} {options} \
             -- sh /bin/run.sh {how}",
            c.slowness
        );
        let ended: Finished = c.run(&line, &[&kernel, &modules, &root, &core], limit)?;
        check(codes.iter().any(|code| ended.expect_code(*code).is_ok()), || format!("{how}: {ended:?}"))?;
        let of_dump = c.run("core {} why", &[&core], limit)?;
        of_dump.expect_code(0)?;
        for word in words {
            check(ended.errors.contains(word), || format!("{how}: no '{word}': {}", ended.errors))?;
            // But for what the runner says.
            let is_runners = ["--timeout", "the log has"].iter().any(|begin| word.starts_with(begin));
            let is_there = is_runners || of_dump.output.contains(word);
            check(is_there, || format!("{how}: no '{word}' of the dump: {}", of_dump.output))?;
        }
        // One dump at a time.
        fs::remove_file(&core).map_err(|error| format!("{how}: {error}"))?;
    }
    Ok(())
}
