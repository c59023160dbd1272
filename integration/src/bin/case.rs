//! Runs one case where KVM is: `case NAME VMM FILES WORK SLOWNESS` on a machine, or as the
//! first process of a nest, which finds its case in the kernel's command line. Where that names several, each
//! runs in a process of its own, `case NAME VMM FILES WORK SLOWNESS nest`.

use integration::bpf;
use integration::cases::{self, gdb_port, named, readme, vsock};
use integration::cells;
use integration::container;
use integration::context::{Context, Length};
use integration::measure::debugging::echo;
use integration::measure::job;
use integration::port;
use integration::random_files;
use integration::report::{Report, Shared, Verdict};
use integration::traffic;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{self, SigHandler, Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The word for a case that runs in a nest beside others.
const NEST: &str = "nest";

fn main() {
    if std::process::id() == 1 {
        if let Err(error) = nest() {
            eprintln!("case: {error}");
        }
        // The nest ends however its case did.
        nix::unistd::sync();
        let Err(error) = reboot(RebootMode::RB_POWER_OFF);
        eprintln!("case: cannot switch off: {error}");
        return;
    }
    let mut arguments = std::env::args();
    if arguments.next().is_some_and(|program| Path::new(&program).ends_with(bpf::NAME)) {
        std::process::exit(bpf::test());
    }
    let arguments: Vec<String> = arguments.collect();
    if let [random_files::WORD, words @ ..] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        if let Err(error) = random_files::carry_out(words) {
            eprintln!("case: {error}");
            std::process::exit(1);
        }
        return;
    }
    let talk = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [traffic::ASK, words @ ..] => Some(traffic::carry_out(words).map_err(|error| error.to_string())),
        [traffic::SERVE, port] => Some(traffic::carry_out_serving(port).map_err(|error| error.to_string())),
        [container::WORD, words @ ..] => Some(container::carry_out(words)),
        [vsock::WORD, words @ ..] => Some(vsock::carry_out(words)),
        [echo::WORD, path] => Some(echo::carry_out(Path::new(path))),
        [job::WORD, words @ ..] => Some(job::carry_out(words)),
        _ => None,
    };
    if let Some(result) = talk {
        if let Err(error) = result {
            eprintln!("case: {error}");
            std::process::exit(1);
        }
        return;
    }
    if let [cells::FORBIDDEN, words @ ..] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        std::process::exit(cells::forbidden(words));
    }
    if let [cells::PATHS, own, shared, other] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        if let Err(error) = cells::paths([own, shared, other].map(Path::new)) {
            eprintln!("case: {error}");
            std::process::exit(1);
        }
        return;
    }
    if let [gdb_port::SPEAK, address, bytes, rest @ ..] =
        &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        if let Err(error) = gdb_port::speak(address, bytes, !rest.is_empty()) {
            eprintln!("case: {error}");
            std::process::exit(1);
        }
        return;
    }
    if let Some(socket) = arguments.iter().find_map(|word| word.strip_prefix(named::DEBUGGER)) {
        match named::debug(socket) {
            Ok(code) => std::process::exit(code),
            Err(error) => {
                eprintln!("case: {error}");
                std::process::exit(1);
            }
        }
    }
    if let [which] = &arguments[..]
        && [readme::BOOT, readme::DEBUG].contains(&which.as_str())
    {
        let run = || if which == readme::BOOT { Ok(readme::boot()?) } else { readme::debug() };
        if let Err(error) = run() {
            eprintln!("case: {error}");
            std::process::exit(1);
        }
        return;
    }
    let [name, vmm, files, work, slowness, place @ ..] = &arguments[..] else {
        eprintln!("usage: case NAME VMM FILES WORK SLOWNESS [nest]");
        std::process::exit(2);
    };
    hear_signals();
    let context = Context {
        name: name.clone(),
        isa: kvm::HOST_ISA,
        vmm: PathBuf::from(vmm),
        files: PathBuf::from(files),
        work: PathBuf::from(work),
        kept: Vec::new(),
        in_nest: place == [NEST],
        slowness: slowness.parse().unwrap_or(1),
        length: Length::of_environment(),
    };
    let report = run(name, context);
    if let Err(error) = report.write(&mut io::stdout()) {
        eprintln!("case: cannot report: {error}");
        std::process::exit(1);
    }
}

/// Whoever runs the tests may have them ignore signals, as nohup(1) does: what a case starts is as a shell starts it.
fn hear_signals() {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: as by default, it runs no code of ours.
        unsafe { signal::signal(signal, SigHandler::SigDfl) }.expect("a signal that exists");
    }
}

/// Runs a case; a panic is a failure.
fn run(name: &str, mut context: Context) -> Report {
    let Some(case) = cases::find(name) else {
        return Report { verdict: Verdict::Fail(format!("there is no case {name}")), files: Vec::new() };
    };
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut context)));
    let verdict = match result {
        Ok(Ok(())) => Verdict::Pass,
        Ok(Err(message)) => Verdict::Fail(message),
        Err(_) => Verdict::Fail("the case panicked; see the nest's console".into()),
    };
    Report { verdict, files: context.kept }
}

/// Runs one of several cases in a process of its own, of which nothing is left for the next one.
fn run_apart(name: &str, slowness: &str, report: &mut dyn Write) -> io::Result<()> {
    /// Far more than a small one takes.
    const LIMIT: Duration = Duration::from_secs(200);
    let work = Path::new("/tmp").join(name);
    fs::create_dir_all(&work)?;
    let begin = Instant::now();
    let mut command = Command::new("/init");
    command.args([name, "/vmm", "/files"]).arg(&work).args([slowness, NEST]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let process = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (over, is_over) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if is_over.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            kill(process, Signal::SIGKILL).ok();
        }
    });
    let mut stream = Vec::new();
    child.stdout.take().map_or(Ok(0), |mut output| output.read_to_end(&mut stream))?;
    drop(over);
    child.wait()?;
    watch.join().ok();
    // All but this process.
    kill(Pid::from_raw(-1), Signal::SIGKILL).ok();
    fs::remove_dir_all(&work)?;
    Shared::write(report, name, begin.elapsed().as_secs_f64(), &stream)
}

/// The first process of a nest.
fn nest() -> io::Result<()> {
    let none = None::<&str>;
    for (kind, place) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("devpts", "/dev/pts"),
    ] {
        fs::create_dir_all(place)?;
        // A kernel may have mounted /dev itself.
        if let Err(error) = mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            && error != nix::errno::Errno::EBUSY
        {
            return Err(io::Error::other(format!("cannot mount {place}: {error}")));
        }
    }
    let mut modules: Vec<PathBuf> = match fs::read_dir("/modules") {
        Ok(folder) => folder.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?,
        Err(_) => Vec::new(),
    };
    modules.sort();
    for module in modules {
        nix::kmod::init_module(&fs::read(&module)?, c"")
            .map_err(|error| io::Error::other(format!("cannot load {}: {error}", module.display())))?;
    }
    // IFF_UP and IFF_LOOPBACK (netdevice(7)); it gets its address by that.
    fs::write("/sys/class/net/lo/flags", "0x9")?;
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let word = |key: &str| {
        cmdline
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .map(String::from)
    };
    if let Some(now) = word("now").and_then(|now| now.parse().ok()) {
        let time = nix::sys::time::TimeSpec::new(now, 0);
        nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)?;
    }
    let slowness = word("slowness").unwrap_or_default();
    let name = word("case").unwrap_or_default();
    let mut port = OpenOptions::new().write(true).open(port::find("report")?)?;
    if name.contains(',') {
        return name.split(',').try_for_each(|name| run_apart(name, &slowness, &mut port));
    }
    let context = Context {
        name: name.clone(),
        isa: kvm::HOST_ISA,
        vmm: PathBuf::from("/vmm"),
        files: PathBuf::from("/files"),
        work: PathBuf::from("/tmp"),
        kept: Vec::new(),
        in_nest: true,
        slowness: slowness.parse().unwrap_or(1),
        length: Length::parse(word("soak").as_deref()),
    };
    run(&name, context).write(&mut port)?;
    port.flush()
}
