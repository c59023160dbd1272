//! What is told of a guest's kernel from outside, beside what the guest itself says of it at the same moment.

use crate::artifacts::WEDGE;
use crate::cases::wedged;
use crate::context::{Check, Context, check};
use crate::process::Wiring;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Has tasks in many states, and says what its kernel tells user space.
const SAYS: &str = r#"
b=/bin/busybox
$b mkdir -p '/tmp/a b'
$b mount -t tmpfs -o nosuid,nodev,noatime 'a scratch' '/tmp/a b'
$b mount -o remount,ro '/tmp/a b'
$b insmod /bin/wedge.ko how=sleep,rwsem
$b sleep 10000 &
$b kill -STOP $!
# One that nobody waits for, and one that has some memory.
$b sh -c '$0 true & exec $0 sleep 10000' $b &
$b sh -c 'x=$($0 dd if=/dev/zero bs=1M count=3 2>/dev/null | $0 tr "\0" x); echo > /tmp/large; $0 sleep 10000; :' $b &
until [ -e /tmp/large ]; do $b sleep 0.2; done
$b sleep 2
for task in /proc/[0-9]*/task/[0-9]*; do
  read -r stat < $task/stat && echo "guest: stat ${task#/proc/} $stat"
  read -r statm < $task/statm && echo "guest: statm ${task##*/} $statm"
done 2>/dev/null
while read -r line; do echo "guest: mount $line"; done < /proc/1/mounts
while read -r line; do echo "guest: module $line"; done < /proc/modules
$b timeout 3 $b cat /dev/kmsg | $b sed 's/^/guest: kmsg /'
echo "guest: told."
read -r line
echo on > /proc/sys/kernel/printk_devkmsg
i=0
while [ $i -lt 300 ]; do echo "<5>guest: mark $i" > /dev/kmsg; i=$((i+1)); done
echo "guest: marked."
cat > /dev/null
"#;

/// Tasks with their memory, modules, what is mounted, and the log, which is followed to its end.
pub fn with_its_own(c: &mut Context) -> Check {
    let (root, limit) = (wedged::root_with(c, SAYS)?, c.limit(60));
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 256M --cpus 2 --name asked -- sh /bin/run.sh",
        c.slowness
    );
    let paths = [&c.kernel("6.12"), &c.modules(), &root];
    let mut job = c.start(Wiring::Pipes, &line, &paths.map(PathBuf::as_path))?;
    let talked = (|| -> Check {
        job.expect("guest: told.", limit)?;
        c.run("stop asked", &[], limit)?.expect_code(0)?;
        let said = job.output.text();
        tasks(&said, &ask(c, "ps --memory")?)?;
        modules(&said, &ask(c, "lsmod")?)?;
        mounts(&said, &ask(c, "mounts")?)?;
        log(&said, &ask(c, "dmesg")?)?;
        let mut follower = c.start(Wiring::Pipes, "monitor asked --json dmesg --follow", &[] as &[&Path])?;
        let followed = (|| -> Check {
            follower.expect("Linux version", limit)?;
            c.run("cont asked", &[], limit)?.expect_code(0)?;
            job.send("\n")?;
            job.expect("guest: marked.", limit)?;
            follower.expect("guest: mark 299", limit)?;
            follows(&follower.output.text())
        })();
        c.keep("follower", &follower);
        followed?;
        job.close_input();
        // It ends with its guest.
        let code = follower.wait(limit)?;
        check(code == 0, || format!("who follows ends with {code}: {}", follower.errors.text()))
    })();
    job.close_input();
    let ended = job.wait(limit);
    c.keep("job", &job);
    talked?;
    check(ended? == 0, || job.errors.text())
}

fn ask(c: &mut Context, what: &str) -> Result<Value, String> {
    let told = c.run(&format!("monitor asked --json {what}"), &[], c.limit(20))?;
    told.expect_code(0)?;
    c.write(&c.work.join(what.replace(' ', "")), told.output.as_bytes())?;
    let told: Value = serde_json::from_str(&told.output).map_err(|error| error.to_string())?;
    let remarks = &told["remarks"];
    check(remarks.as_array().is_none_or(Vec::is_empty), || format!("{what} lacks something: {remarks}"))?;
    Ok(told)
}

/// What the guest has said behind a word, a line each.
fn lines<'a>(said: &'a str, word: &str) -> Vec<&'a str> {
    let begin = format!("guest: {word} ");
    said.lines().filter_map(|line| line.strip_prefix(&begin)).collect()
}

fn array<'a>(told: &'a Value, name: &str) -> Result<&'a Vec<Value>, String> {
    told[name].as_array().ok_or_else(|| format!("no {name}: {told}"))
}

/// A task of either side.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    process: u64,
    parent: u64,
    name: String,
    state: String,
    cpu: u64,
    /// KiB that are mapped, and in RAM.
    memory: Option<[u64; 2]>,
}

/// `/proc/PID/task/TID/stat` (proc_pid_stat(5)), and `statm`.
fn by_the_guest(said: &str) -> BTreeMap<u64, Seen> {
    let memory: BTreeMap<u64, [u64; 2]> = lines(said, "statm")
        .iter()
        .filter_map(|line| {
            let mut numbers = line.split(' ').map_while(|word| word.parse().ok());
            let [pid, mapped, resident]: [u64; 3] = [numbers.next()?, numbers.next()?, numbers.next()?];
            Some((pid, [mapped * 4, resident * 4]))
        })
        .collect();
    let task = |line: &&str| {
        let (place, stat) = line.split_once(' ')?;
        let process = place.split('/').next()?.parse().ok()?;
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let (pid, rest): (u64, Vec<&str>) = (pid.parse().ok()?, rest.split(' ').collect());
        let number = |index: usize| rest.get(index)?.parse::<u64>().ok();
        let seen = Seen {
            process,
            parent: number(1)?,
            name: name.into(),
            state: rest.first()?.to_string(),
            cpu: number(36)?,
            memory: memory.get(&pid).copied().filter(|[mapped, _]| *mapped != 0),
        };
        Some((pid, seen))
    };
    lines(said, "stat").iter().filter_map(task).collect()
}

fn tasks(said: &str, told: &Value) -> Check {
    let theirs = by_the_guest(said);
    let ours: BTreeMap<u64, Seen> = array(told, "tasks")?
        .iter()
        .filter_map(|task| {
            let number = |name: &str| task[name].as_u64();
            let text = |name: &str| task[name].as_str().map(str::to_string);
            let memory = &task["memory"];
            let seen = Seen {
                process: number("process")?,
                parent: number("parent")?,
                name: text("name")?,
                state: text("state")?,
                cpu: number("cpu")?,
                memory: memory["mapped_kib"]
                    .as_u64()
                    .zip(memory["resident_kib"].as_u64())
                    .map(<[u64; 2]>::from),
            };
            Some((number("pid")?, seen))
        })
        .collect();
    let listed = array(told, "tasks")?.len();
    check(ours.len() == listed, || {
        format!("of {listed} tasks some lack something, or are there twice: {told}")
    })?;
    let both: Vec<_> = theirs.iter().filter_map(|(pid, seen)| Some((pid, seen, ours.get(pid)?))).collect();
    // Some come and go; the idle task is not in /proc.
    let (gone, new) = (theirs.len() - both.len(), ours.len() - both.len());
    check(both.len() > 40 && gone <= 4 && new <= 5, || {
        format!("{gone} of {} tasks are gone, {new} are new: {ours:?}", theirs.len())
    })?;
    let states: BTreeSet<&str> = both.iter().map(|(_, _, ours)| ours.state.as_str()).collect();
    for state in ["S", "D", "T", "Z", "I"] {
        check(states.contains(state), || format!("no task is in state {state}: {states:?}"))?;
    }
    let mut moved = 0;
    for (pid, theirs, ours) in &both {
        // What a worker works at is behind its name, and of the kernel's own the rest of longer ones (`full_name` of
        // `struct kthread`), where a task has 15 characters.
        let is_named_so = theirs.name.strip_prefix(&ours.name).is_some_and(|rest| {
            rest.is_empty()
                || ours.name.len() == 15
                || ours.name.starts_with("kworker/") && rest.starts_with(['-', '+'])
        });
        let is_it = (ours.process, ours.parent) == (theirs.process, theirs.parent);
        check(is_named_so && is_it, || format!("task {pid} is {ours:?}, and says {theirs:?}"))?;
        // Whoever has run since may be elsewhere, and do something else.
        moved += usize::from((&ours.state, ours.cpu) != (&theirs.state, theirs.cpu));
        let is_named = |state: &str| matches!(state, "D" | "T" | "Z");
        check(ours.state == theirs.state || !is_named(&theirs.state), || {
            format!("task {pid} is in state {}, and says {theirs:?}", ours.state)
        })?;
        let (Some([mapped, resident]), Some([its_mapped, its_resident])) = (ours.memory, theirs.memory)
        else {
            check(ours.memory.is_none() && theirs.memory.is_none(), || {
                format!("task {pid} has {:?}, and says {theirs:?}", ours.memory)
            })?;
            continue;
        };
        // What processors have counted for themselves is not in what the guest says: 64 pages of each kind and processor.
        let is_near = resident.abs_diff(its_resident) <= 64 * 4 * 3 * 2;
        check(mapped == its_mapped && is_near, || format!("task {pid} has {ours:?}, and says {theirs:?}"))?;
    }
    check(moved * 10 <= both.len(), || format!("{moved} of {} are not as they say: {both:?}", both.len()))?;
    let large = both.iter().filter_map(|(_, _, ours)| ours.memory).any(|[_, resident]| resident > 4 << 10);
    check(large, || format!("nobody has 4 MiB: {both:?}"))
}

fn modules(said: &str, told: &Value) -> Check {
    let theirs: BTreeSet<String> = lines(said, "module")
        .iter()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, size, used, users, "Live", code, ..] => {
                Some(format!("{name} {size} {used} {} {code}", users.trim_end_matches([',', '-']),))
            }
            _ => None,
        })
        .collect();
    let ours: BTreeSet<String> = array(told, "modules")?
        .iter()
        .map(|module| {
            let users = module["users"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let users: Vec<&str> = users.collect();
            let text = |name: &str| module[name].as_str().unwrap_or_default();
            format!(
                "{} {} {} {} {}",
                text("name"),
                module["size"],
                module["used"],
                users.join(","),
                text("code")
            )
        })
        .collect();
    check(ours == theirs && ours.len() > 1, || format!("modules {ours:?}, and the guest says {theirs:?}"))
}

/// `/proc/PID/mounts`, of which file systems' own options are not known.
fn mounts(said: &str, told: &Value) -> Check {
    const KNOWN: [&str; 13] = [
        "ro",
        "rw",
        "sync",
        "dirsync",
        "mand",
        "lazytime",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "relatime",
        "nosymfollow",
    ];
    let theirs: Option<Vec<String>> = lines(said, "mount")
        .iter()
        .map(|line| {
            let [device, path, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
                return None;
            };
            let known: Vec<&str> = options.split(',').filter(|word| KNOWN.contains(word)).collect();
            Some(format!("{device} {path} {kind} {}", known.join(",")))
        })
        .collect();
    let mut theirs = theirs.ok_or_else(|| format!("a mount of another form: {said}"))?;
    let ours = array(told, "mounts")?.iter().map(|mount| {
        let word = |name: &str| mount[name].as_str().unwrap_or_default().replace(' ', "\\040");
        let options = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let options: Vec<&str> = options.collect();
        format!("{} {} {} {}", word("device"), word("path"), word("type"), options.join(","))
    });
    let mut ours: Vec<String> = ours.collect();
    ours.sort();
    theirs.sort();
    check(ours == theirs && ours.len() > 4, || {
        format!("{ours:?} are mounted, and the guest says {theirs:?}")
    })?;
    let own = "a\\040scratch /tmp/a\\040b tmpfs ro,nosuid,nodev,noatime";
    check(ours.iter().any(|line| line == own), || format!("{own}: {ours:?}"))
}

/// `/dev/kmsg`: priority, number and microseconds of each record, and its text.
fn log(said: &str, told: &Value) -> Check {
    const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"];
    let theirs: Vec<(u64, u64, u64, &str)> = lines(said, "kmsg")
        .iter()
        .filter_map(|line| {
            let (head, text) = line.split_once(';')?;
            let mut numbers = head.split(',').map_while(|word| word.parse().ok());
            Some((numbers.next()?, numbers.next()?, numbers.next()?, text))
        })
        .collect();
    let ours = array(told, "records")?;
    check(theirs.len() > 150, || format!("a log of {} records", theirs.len()))?;
    for (priority, sequence, microseconds, text) in theirs {
        // What is no printable character is escaped there.
        let text = text.replace("\\x09", "\t").replace("\\x0a", "\n");
        let ours = ours
            .iter()
            .find(|record| record["sequence"].as_u64() == Some(sequence))
            .ok_or_else(|| format!("record {sequence} is not there: {text}"))?;
        let number = |name: &str| ours[name].as_u64().unwrap_or(u64::MAX);
        let level = ours["level"].as_str().and_then(|level| LEVELS.iter().position(|it| *it == level));
        let same = level == usize::try_from(priority % 8).ok()
            && number("facility") == priority / 8
            && number("seconds") * 1_000_000 + number("nanoseconds") / 1000 == microseconds
            && ours["text"] == text;
        check(same, || format!("{priority},{sequence},{microseconds};{text}: {ours}"))?;
    }
    Ok(())
}

/// Each record once, one behind the other.
fn follows(text: &str) -> Check {
    let (mut last, mut marks) = (None, 0);
    // The last line may be written still.
    for line in text.lines().filter(|line| line.ends_with('}')) {
        let record: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let sequence = record["sequence"].as_u64();
        check(sequence > last, || format!("{line} comes behind record {last:?}"))?;
        last = sequence;
        if let Some(mark) = record["text"].as_str().and_then(|text| text.strip_prefix("guest: mark ")) {
            check(mark == marks.to_string(), || format!("{line} instead of mark {marks}"))?;
            marks += 1;
        }
    }
    check(marks == 300, || format!("{marks} marks of 300"))
}

/// What the case needs in its nest.
pub const MODULES: &[&str] = &["fs/overlayfs/overlay.ko", WEDGE];
