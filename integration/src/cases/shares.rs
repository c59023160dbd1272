//! Folders of the host's in guests, with Debian's drivers.

use crate::context::{Check, Context, Finished, check};
use crate::process::{Process, Wiring};
use crate::random_files::compare;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;
use rustix::fs::XattrFlags;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whoever has the monitor of a user without rights.
pub(super) const USER: u32 = 1000;

fn said(what: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", what.display())
}

/// Files, folders and links, to be copied.
fn tree(folder: &Path, chance: &mut crate::context::Chance) -> io::Result<()> {
    fs::create_dir_all(folder.join("a/b/c"))?;
    fs::create_dir(folder.join("empty"))?;
    for (number, place) in ["", "a", "a/b", "a/b/c"].iter().cycle().take(60).enumerate() {
        let size = chance.below(if number % 10 == 0 { 300_000 } else { 9000 });
        let bytes: Vec<u8> = (0..size).map(|_| chance.below(256).to_le_bytes()[0]).collect();
        let path = folder.join(place).join(format!("file{number}"));
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, Permissions::from_mode([0o644, 0o600, 0o755][number % 3]))?;
    }
    symlink("a/file1", folder.join("link"))?;
    symlink("../../nowhere", folder.join("a/up"))
}

/// What is shared: a tree to be copied, this program, and what guests must not get through.
struct Shared {
    work: PathBuf,
    folder: PathBuf,
    /// The reading end of a pipe of the host's that has a name in the folder.
    pipe: File,
}

impl Shared {
    fn new(c: &Context) -> Result<Shared, String> {
        let (work, folder) = (c.work.clone(), c.work.join("shared"));
        let made = || -> io::Result<File> {
            tree(&folder.join("tree"), &mut c.chance())?;
            fs::copy("/proc/self/exe", folder.join("case"))?;
            fs::set_permissions(folder.join("case"), Permissions::from_mode(0o755))?;
            fs::write(work.join("secret"), "the host's secret")?;
            symlink("../secret", folder.join("up"))?;
            symlink(work.join("secret"), folder.join("far"))?;
            fs::write(folder.join("plain"), "1")?;
            fs::write(folder.join("suid"), "1")?;
            fs::create_dir(folder.join("covered"))?;
            fs::create_dir(work.join("ro"))?;
            fs::write(work.join("ro/f"), "read")?;
            mkfifo(&folder.join("fifo"), Mode::from_bits_truncate(0o666))?;
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(folder.join("fifo"))
        };
        let pipe = made().map_err(said(&folder))?;
        Ok(Shared { work, folder, pipe })
    }

    fn run(&self, c: &mut Context, script: &str, user: Option<u32>) -> Result<Finished, String> {
        c.write(&self.folder.join("run.sh"), script.as_bytes())?;
        let mut process = start(c, &self.work, user)?;
        process.close_input();
        let code = process.wait(c.limit(90));
        c.keep("vmm", &process);
        Ok(Finished { code: code?, output: process.output.text(), errors: process.errors.text() })
    }
}

/// Starts a guest that does what `run.sh` in the shared folder says.
fn start(c: &Context, work: &Path, user: Option<u32>) -> Result<Process, String> {
    let series = if c.name.ends_with("6_1") { "6.1" } else { "6.12" };
    let mut command = Command::new(&c.vmm);
    command.args(["--memory", "512M", "--cpus", "2", "--cmdline", "loglevel=4 vmm.run=share", "--kernel"]);
    command.arg(c.kernel(series)).arg("--initrd").arg(c.initrd());
    command.arg("--share").arg(work.join("shared"));
    command.arg("--share").arg(format!("{},tag=readable,ro", work.join("ro").display()));
    command.env_remove("RUST_LOG");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    Process::start("vmm", command, Wiring::Pipes).map_err(said(&c.vmm))
}

/// What the guest tries, whoever runs the monitor.
const SCRIPT: &str = r#"
b=/bin/busybox
cd /mnt
$b mkdir /readable /tmp/in; $b mount -t virtiofs readable /readable; $b mount -t tmpfs tmpfs /tmp
tell() { echo "guest: $*"; }
refused() { what=$1; shift; if why=$("$@" 2>&1); then tell "$what=done"; else tell "$what=refused: $why"; fi; }
$b cp -a tree /tmp/in; $b diff -r tree /tmp/in >/dev/null && tell copied-in
$b cp -a /tmp/in out && $b diff -r tree out > /dev/null && tell copied-out
tell "up=$($b cat up 2>/dev/null)" "far=$($b cat far 2>/dev/null)."
refused device $b mknod device c 1 3
refused disk $b mknod disk b 254 0
refused pipe $b mknod pipe p
(echo stray > fifo) & writer=$!; $b usleep 300000; $b kill $writer 2>/dev/null
$b chmod 6777 plain; tell "chmod=$($b stat -c %a plain)."
tell "suid=$($b stat -c %a suid)."; echo 2 >> suid; tell "written=$($b stat -c %a suid)."
tell "covered=$($b ls -a covered | $b tr '\n' ' ')"
refused cover $b touch covered/x
$b mount -t proc proc covered && [ -e covered/self ] && tell mounted-over; $b umount covered
tell "read=$($b cat /readable/f)."
for try in 'echo x > /readable/f' 'touch /readable/f' 'rm /readable/f' 'mkdir /readable/d' 'chmod 777 /readable/f' 'mv /readable/f /readable/g'; do
  refused "${try%% *}" $b sh -c "$try"
done
tell "entries=$($b find tree | $b wc -l) owner=$($b stat -c %u:%g plain)."
refused chown $b chown 7:8 plain
echo mine > mine; tell "mine=$($b stat -c %u:%g mine)."
$b ln plain hard; tell "links=$($b stat -c %h hard)."
echo gone > gone; exec 5< gone; $b rm gone; tell "unlinked=$($b cat <&5)."; exec 5<&-
/mnt/case --random-files /mnt/random /tmp/random 1 1500 && tell random-same
$b sync; tell over
"#;

/// What a guest tries to do to the folder, and what is there of it afterwards; `is_root`: the monitor's user.
fn all_of_it(c: &mut Context, user: Option<u32>) -> Check {
    let mut shared = Shared::new(c)?;
    let folder = shared.folder.clone();
    let set_id = || -> io::Result<()> {
        if let Some(user) = user {
            give(&shared.work, user)?;
            give(Path::new("/dev/kvm"), user)?;
        } else {
            mknod(
                &folder.join("null"),
                SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                nix::sys::stat::makedev(1, 3),
            )?;
            rustix::fs::setxattr(folder.join("plain"), "trusted.secret", b"x", XattrFlags::empty())?;
        }
        fs::set_permissions(folder.join("suid"), Permissions::from_mode(0o4755))?;
        mount(Some("tmpfs"), &folder.join("covered"), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        fs::write(folder.join("covered/hidden"), "hidden")
    };
    set_id().map_err(said(&folder))?;
    let run = shared.run(c, SCRIPT, user)?;
    umount(&folder.join("covered")).map_err(|error| error.to_string())?;
    run.expect_code(0)?;
    let not_permitted = "refused.*Operation not permitted";
    let read_only = "refused.*Read-only file system";
    let chown = if user.is_some() { not_permitted } else { "done" };
    let wanted = [
        "copied-in".into(),
        "copied-out".into(),
        "up= far=.".into(),
        format!("device={not_permitted}"),
        format!("disk={not_permitted}"),
        format!("pipe={not_permitted}"),
        "chmod=777.".into(),
        "suid=4755.".into(),
        "written=755.".into(),
        "covered=. .. ".into(),
        format!("cover={read_only}"),
        "mounted-over".into(),
        "read=read.".into(),
        format!("echo={read_only}"),
        format!("touch={read_only}"),
        format!("rm={read_only}"),
        format!("mkdir={read_only}"),
        format!("chmod={read_only}"),
        format!("mv={read_only}"),
        "owner=0:0.".into(),
        format!("chown={chown}"),
        "mine=0:0.".into(),
        "links=2.".into(),
        "unlinked=gone.".into(),
        "random-same".into(),
        "over".into(),
        "complaints=0".into(),
    ];
    for line in &wanted {
        // What stands before what there may be, and what behind it.
        let (what, end) = line.split_once(".*").unwrap_or((line, ""));
        let says =
            |it: &str| it.strip_prefix("guest: ").is_some_and(|it| it.contains(what) && it.contains(end));
        let is_there = run.output.lines().any(says);
        check(is_there, || format!("no {line:?} in what the guest says:\n{}\n{}", run.output, run.errors))?;
    }
    compare(&folder.join("tree"), &folder.join("out"))?;
    let mut stray = String::new();
    // Nobody has opened the pipe: its end is there at once.
    shared.pipe.read_to_string(&mut stray).map_err(said(&folder))?;
    check(stray.is_empty(), || format!("the guest has written {stray:?} to a pipe of the host's"))?;
    let mode = |name: &str| fs::symlink_metadata(folder.join(name)).map_err(said(&folder));
    check(mode("plain")?.mode() & 0o7777 == 0o777 && mode("suid")?.mode() & 0o7777 == 0o755, || {
        "set-id bits are there".into()
    })?;
    let mine = mode("mine")?.uid();
    check(mine == user.unwrap_or(0), || format!("what the guest has made is of {mine}"))?;
    check(fs::read(shared.work.join("secret")).is_ok_and(|text| text == b"the host's secret"), || {
        "what is beside the folder has changed".into()
    })?;
    let names = fs::read_dir(&shared.work).map_err(said(&folder))?.count();
    check(names >= 3 && !folder.join("device").exists(), || "there is something that may not be".into())
}

/// Gives a folder and all in it to a user.
pub(super) fn give(path: &Path, user: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_symlink() {
        chown(path, Some(user), Some(user))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}

pub fn everything(c: &mut Context) -> Check {
    all_of_it(c, None)
}

/// The same for a user who may do no more than use KVM.
pub fn of_a_user(c: &mut Context) -> Check {
    all_of_it(c, Some(USER))
}

/// Random work without end, in rounds of 1000 steps that each say so, and what the kernel waits for when one takes long.
const ROUNDS: &str = r#"
b=/bin/busybox
$b mount -t tmpfs tmpfs /tmp
seed=SEED
while :; do
  ($b sleep 60; echo w > /proc/sysrq-trigger) & watch=$!
  /mnt/case --random-files /mnt/random /tmp/random $seed 1000 || break
  $b kill $watch
  $b rm -rf /mnt/random /tmp/random
  echo "guest: seed $seed is the same."
  seed=$((seed + 1))
done
"#;

/// Random work on a shared folder comes to what it comes to on the guest's own, and goes on all the time.
pub fn random(c: &mut Context) -> Check {
    let shared = Shared::new(c)?;
    let seed = c.chance().below(1 << 30);
    c.write(&shared.folder.join("run.sh"), ROUNDS.replace("SEED", &seed.to_string()).as_bytes())?;
    let mut process = start(c, &shared.work, None)?;
    let mut rounds = || -> Check {
        for round in 0..c.length().of(2, 50) {
            process.expect(&format!("guest: seed {} is the same.", seed + round), c.limit(60))?;
        }
        Ok(())
    };
    let all = rounds();
    let ended = process.signal(Signal::SIGTERM).and_then(|()| process.wait(c.limit(20)));
    c.keep("vmm", &process);
    all?;
    ended.map(drop)
}

/// Records of 512 bytes, each of which is on the disk before the guest says so.
const RECORDS: &str = r#"
b=/bin/busybox
record=$($b printf '%0512d' 0)
number=0
exec 6> /mnt/records
while :; do
  number=$((number + 1))
  $b printf '%0511d\n' $number | $b dd bs=512 count=1 oflag=append conv=notrunc,fsync of=/mnt/records 2>/dev/null && echo "guest: acknowledged $number."
done
"#;

/// Ended by force in the middle of synchronous writes, it has lost none that it has acknowledged.
pub fn killed(c: &mut Context) -> Check {
    let shared = Shared::new(c)?;
    let least = 10 + c.chance().below(40);
    c.write(&shared.folder.join("run.sh"), RECORDS.as_bytes())?;
    let mut process = start(c, &shared.work, None)?;
    let come = process.expect(&format!("guest: acknowledged {least}."), c.limit(60));
    let ended = process.signal(Signal::SIGKILL).and_then(|()| process.wait_status(c.limit(10)));
    c.keep("vmm", &process);
    come?;
    ended?;
    let text = process.output.text();
    let last = text
        .lines()
        .filter_map(|line| line.strip_prefix("guest: acknowledged ")?.trim_end().strip_suffix('.'));
    let last: u64 = last.filter_map(|number| number.parse().ok()).max().ok_or("nothing was acknowledged")?;
    let records = fs::read(shared.folder.join("records")).map_err(said(&shared.folder))?;
    for number in 1..=last {
        let at = usize::try_from(number - 1).unwrap_or(0) * 512;
        let record = records.get(at..at + 512).map(String::from_utf8_lossy);
        let is_whole = record.as_ref().is_some_and(|it| it.trim_end().parse() == Ok(number));
        check(is_whole, || {
            format!("of {last} records that were acknowledged number {number} is {record:?}")
        })?;
    }
    check(last >= least, || format!("{last} of {least}"))
}

/// What cannot be shared is said in one line, with what helps.
pub fn bad(c: &mut Context) -> Check {
    let file = c.work.join("file");
    c.write(&file, b"")?;
    let (file, work) = (file.display().to_string(), c.work.display().to_string());
    for (shares, code, says) in [
        (vec![format!("{work}/nothing")], 8, "No such file or directory"),
        (vec![file.clone()], 8, "--share gives the guest a folder"),
        (vec![format!("{work},tag={}", "t".repeat(37))], 2, "may have 1 to 36"),
        (vec![format!("{work},tag=")], 2, "may have 1 to 36"),
        (vec!["/".into()], 2, "write /,tag=NAME"),
        (vec![format!("{work},tag=a"), format!("{work},tag=a,ro")], 2, "two folders have the tag 'a'"),
    ] {
        let words: String = shares.iter().map(|share| format!("--share {share} ")).collect();
        let run = c.run(&words, &[], c.limit(20))?;
        run.expect_code(code)?;
        check(run.errors.contains(says), || format!("{words}: {}", run.errors))?;
    }
    Ok(())
}
