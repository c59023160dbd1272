//! The tools that people open dumps with, on dumps that came out of nests, on the machine that runs the
//! tests.

mod kernel;

use crate::artifacts::{self, Kernel};
use crate::context::check;
use crate::process::{Process, Wiring};
use arch::{GuestPhys, Isa};
use debug::dump;
use debug::dump::core::Core;
use debug::machine::Machine;
use debug::source::OnDisk;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one tool may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What a tool printed, on both of its outputs, and its exit code.
#[derive(Debug)]
pub struct Said {
    code: i32,
    /// All of it.
    pub text: String,
}

impl Said {
    fn has(&self, texts: &[&str]) -> Result<(), String> {
        let mut rest = self.text.as_str();
        for text in texts {
            let at = rest
                .find(text)
                .ok_or_else(|| format!("it does not print {text:?}; all of it:\n{}", self.text))?;
            rest = &rest[at + text.len()..];
        }
        Ok(())
    }

    fn well(self) -> Result<Said, String> {
        check(self.code == 0, || format!("exit code {}:\n{}", self.code, self.text))?;
        Ok(self)
    }
}

/// Runs a command to its end, with some input.
fn run(command: Command, input: &str) -> Result<Said, String> {
    let words = format!("{command:?}");
    // One order for both outputs.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut process =
        Process::start("tool", shell, Wiring::Pipes).map_err(|error| format!("{words}: {error}"))?;
    process.send(input)?;
    process.close_input();
    let code = process.wait(LIMIT).map_err(|error| format!("{words}: {error}"))?;
    Ok(Said { code, text: process.output.text() })
}

fn command(program: impl AsRef<std::ffi::OsStr>, words: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(program);
    command.args(words).args(paths);
    command
}

/// What is typed on a live guest, and again on a dump of that moment.
pub const LOOKED_AT: &str = "\
    thread 1\necho the beginning\\n\n\
    info threads\nbt\nthread 2\nbt\nthread 1\n\
    p linux_banner\np init_task.comm\np *&init_task.thread\nx/8i $pc\nx/16xg $sp\n\
    info registers\n\
    monitor regs all\nmonitor linux\nmonitor dmesg 5\nmonitor ps\nmonitor bt\nmonitor bt 1\nmonitor mem\n\
    monitor threads\nmonitor read $sp 64\nmonitor map\n\
    echo the end\\n\n";

/// `vmm core` as this machine runs it, and the build for the other architecture under emulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Built {
    /// As it is.
    Here,
    /// For the other architecture.
    Elsewhere,
}

///
/// # Errors
/// When it cannot be started, or does not end.
pub fn core(built: Built, core: &Path, words: &[&str]) -> Result<Said, String> {
    let here = kvm::HOST_ISA;
    let command = match built {
        Built::Here => Command::new(artifacts::program(here, "vmm")),
        Built::Elsewhere => {
            let other = if here == Isa::X86_64 { Isa::Aarch64 } else { Isa::X86_64 };
            let mut command = Command::new(format!("qemu-{other}-static"));
            command.arg(artifacts::program(other, "vmm"));
            command
        }
    };
    let mut command = command;
    command.arg("core").arg(core).args(words);
    run(command, "")
}

/// A program of a newer Debian (`integration/setup/tools.sh`).
fn newer(program: &str, suite: &str, isa: Isa) -> Command {
    Command::new(artifacts::cache().join(format!("tools/{program}-{suite}-{isa}/run")))
}

/// Which gdb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gdb {
    /// 13, of Debian 12.
    Debians,
    /// 16, of Debian 13.
    Newer,
}

impl Gdb {
    /// Runs commands, with nothing loaded.
    ///
    /// # Errors
    /// When it cannot be started, or does not end.
    pub fn run(self, commands: &[&str]) -> Result<Said, String> {
        let mut command = match self {
            Gdb::Debians => {
                let mut command = Command::new("gdb-multiarch");
                command.env_remove("PYTHONHOME");
                command
            }
            Gdb::Newer => {
                let mut command = newer("gdb-multiarch", "trixie", Isa::X86_64);
                let data = PathBuf::from(command.get_program()).with_file_name("usr/share/gdb");
                command.arg("--data-directory").arg(data);
                command
            }
        };
        command.env_remove("PYTHONPATH");
        command.args(["-nx", "-batch", "-ex", "set pagination off", "-ex", "set width 0"]);
        for line in commands {
            command.args(["-ex", line]);
        }
        run(command, "")
    }
}

/// What one tool is asked.
type Look = fn(&Opened) -> Result<(), String>;

/// A dump of a Debian guest, in every tool.
#[derive(Debug)]
pub struct Opened {
    isa: Isa,
    series: &'static str,
    core: PathBuf,
    vmlinux: PathBuf,
    /// What `vmm core info --json` says.
    info: serde_json::Value,
}

/// A dump of a guest with Linux 6.12.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn debian_6_12(isa: Isa, core: &Path) -> Result<(), String> {
    debian(isa, "6.12", core, &[SOME, REST])
}

/// The same with Linux 6.1.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn debian_6_1(isa: Isa, core: &Path) -> Result<(), String> {
    debian(isa, "6.1", core, &[SOME])
}

/// One of a Debian 6.12 guest on a processor with fewer bits of addresses.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn debian_6_12_with_48_bits(isa: Isa, core: &Path) -> Result<(), String> {
    debian(isa, "6.12", core, &[SOME])
}

/// A dump of the moment that a live guest was looked at: the same commands print the same text.
///
/// # Errors
/// What is different.
pub fn live(isa: Isa, core: &Path) -> Result<(), String> {
    let log = core.with_file_name("debugger.log");
    let live = fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let opened = Opened::new(isa, "6.12", core)?;
    let settings = ["set confirm off", "set print frame-arguments none"];
    let commands: Vec<&str> = settings.into_iter().chain(LOOKED_AT.lines()).collect();
    let said = opened.served(Gdb::Debians, &commands)?;
    // A time-stamp counter does not stand still with its vCPU.
    let is_counter = |word: &str| word.starts_with("tsc=") || word.starts_with("CNTVCT_EL0=");
    let between = |text: &str| {
        let start = text.find("the beginning")?;
        let text = &text[start..start + text[start..].find("the end")?];
        let lines = text.lines().filter(|line| !line.starts_with("tsc ") && !line.starts_with("CNTVCT_EL0 "));
        // Whoever looks at the dump has the kernel's file, and so a stack's source lines: of inlined functions, one each.
        let lines = lines.filter(|line| !line.starts_with(&" ".repeat(25)));
        let words = |line: &str| {
            let line = if line.starts_with("  #") { line.split(" at ").next().unwrap_or(line) } else { line };
            let words: Vec<&str> = line.split(' ').filter(|word| !is_counter(word)).collect();
            words.join(" ")
        };
        Some(lines.map(words).collect::<Vec<_>>().join("\n"))
    };
    let (live, dumped) = (between(&live).unwrap_or_default(), between(&said.text).unwrap_or_default());
    let different = live.lines().zip(dumped.lines()).find(|(live, dumped)| live != dumped);
    check(live.len() > 4000 && live == dumped, || {
        format!("first they differ in {different:?}; live:\n{live}\nand on the dump:\n{dumped}")
    })
}

fn in_one_member(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).map_err(|error| error.to_string())
}

fn in_one_frame(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A dump, as programs open it.
fn open(path: &Path) -> Result<Core, String> {
    let in_words = |error: io::Error| error.to_string();
    let source = fs::File::open(path).and_then(OnDisk::new).map_err(in_words)?;
    let contents = dump::open(Arc::new(source)).map_err(|error| error.to_string())?;
    Core::new(contents, false).map_err(in_words)
}

/// A dump of a kernel that has panicked and restarted, which nobody was told of: it is as it was before the
/// restart, for gdb as well.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn panicked(isa: Isa, core: &Path) -> Result<(), String> {
    let opened = Opened::new(isa, "6.12", core)?;
    let banner = format!("{:#x}", opened.slid_symbol("linux_banner")?);
    for vcpu in ["0", "1"] {
        let said = self::core(Built::Here, core, &["--vcpu", vcpu, "translate", &banner])?.well()?;
        said.has(&[" is at 0x"])?;
        let said = self::core(Built::Here, core, &["--vcpu", vcpu, "read", &banner, "64"])?.well()?;
        said.has(&["Linux version"])?;
    }
    let commands = ["p linux_banner", "thread 2", "p linux_banner", "thread apply all bt 20"];
    let said = opened.served(Gdb::Newer, &commands)?;
    let banner = "Linux version 6.12";
    said.has(&[banner, banner])?;
    // The vCPU that panicked, in whichever order they are.
    for function in ["panic", "sysrq"] {
        check(said.text.contains(function), || format!("no {function} in a backtrace:\n{}", said.text))?;
    }
    Ok(())
}

/// What is looked at a dump with.
type Looks = &'static [(&'static str, Look)];

/// What differs with a kernel's age and with its addresses' size.
const SOME: Looks = &[
    ("vmm core", Opened::by_us),
    ("gdb", Opened::by_gdb),
    ("crash", Opened::by_crash),
    ("makedumpfile", Opened::by_makedumpfile),
];

/// What does not.
const REST: Looks = &[
    ("readelf", Opened::by_readelf),
    ("gdb over vmm core", Opened::by_gdb_over_us),
    ("gdb's threads as tasks", Opened::by_gdb_of_tasks),
    ("addr2line beside vmm core", Opened::by_addr2line),
    ("drgn", Opened::by_drgn),
    ("vmm core --diff", Opened::by_diff),
    ("gzip and zstd", Opened::by_packers),
];

fn debian(isa: Isa, series: &'static str, path: &Path, looks: &[Looks]) -> Result<(), String> {
    let opened = Opened::new(isa, series, path)?;
    for (name, look) in looks.iter().copied().flatten() {
        look(&opened).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

impl Opened {
    /// A dump, with the kernel that it is of.
    ///
    /// # Errors
    /// When `vmm core` does not open it.
    pub fn new(isa: Isa, series: &'static str, path: &Path) -> Result<Opened, String> {
        let said = core(Built::Here, path, &["info", "--json"])?.well()?;
        // What is odd about it is said in front.
        let json = said.text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        let info = serde_json::from_str(json).map_err(|error| format!("{error} in {}", said.text))?;
        Ok(Opened { isa, series, core: path.into(), vmlinux: Kernel::new(isa, series).vmlinux(), info })
    }

    /// How far its kernel has moved.
    ///
    /// # Errors
    /// When that is not told.
    pub fn slide(&self) -> Result<String, String> {
        self.info["slide"].as_str().map(String::from).ok_or_else(|| format!("no slide in {}", self.info))
    }

    /// All commands; and the build for the other architecture says the same, as far as it is asked.
    fn by_us(&self) -> Result<(), String> {
        let info = &self.info;
        let is_right = info["architecture"] == self.isa.name()
            && info["vcpus"] == 2
            && info["release"].as_str().is_some_and(|release| release.starts_with(self.series))
            && info["slide"].as_str().is_some_and(|slide| slide != "0x0")
            && info["remarks"].as_array().is_some_and(Vec::is_empty);
        check(is_right, || format!("it says {info}"))?;
        for (words, texts) in [
            (&["info"][..], &["format: ELF core of vmm", "release: ", "moved by 0x", "mapped from 0x"][..]),
            (&["threads"], &["vCPU 0 [", "vCPU 1 ["]),
            (&["regs", "all"], &["vCPU 0 at 0x"]),
            (&["dmesg"], &["Linux version", "Run /init as init process"]),
            (&["map"], &["-0xffff", " KiB"]),
            (&["mem"], &["256 MiB"]),
            (&["linux"], &["release: ", "mapped from 0x"]),
            (&["info", "registers", "-a"], &["CPU#0", "CPU#1"]),
        ] {
            let here = core(Built::Here, &self.core, words)?.well()?;
            here.has(texts)?;
            // Under emulation each takes seconds.
            if !["info", "threads", "dmesg"].contains(&words[0]) {
                continue;
            }
            let elsewhere = core(Built::Elsewhere, &self.core, words)?.well()?;
            check(here.text == elsewhere.text, || {
                format!("{words:?}: here it says\n{}\nand elsewhere\n{}", here.text, elsewhere.text)
            })?;
        }
        Ok(())
    }

    fn by_readelf(&self) -> Result<(), String> {
        let said = run(command("readelf", &["-a", "-W"], &[&self.core]), "")?.well()?;
        let complaint =
            ["readelf:", "Warning", "Error", "corrupt"].into_iter().find(|word| said.text.contains(word));
        check(complaint.is_none(), || format!("it complains:\n{}", said.text))?;
        said.has(&["CORE (Core file)", "NOTE", "LOAD", "NT_PRSTATUS", "VMCOREINFO"])
    }

    /// gdb on the file itself, with the kernel's symbols where the kernel was.
    fn by_gdb(&self) -> Result<(), String> {
        let symbols = format!("add-symbol-file {} -o {}", self.vmlinux.display(), self.slide()?);
        let core = format!("target core {}", self.core.display());
        let commands =
            [&symbols, &core, "info threads", "p linux_banner", "p init_task.comm", "bt", "thread 2", "bt"];
        for gdb in [Gdb::Debians, Gdb::Newer] {
            let said = gdb.run(&commands)?;
            said.has(&["2    LWP 2", &format!("Linux version {}", self.series), "swapper/0"])?;
            self.has_backtraces(gdb, &said).map_err(|error| format!("{gdb:?}: {error}"))?;
        }
        // Debian's 6.1 for aarch64 keeps no symbols of data.
        if (self.isa, self.series) == (Isa::Aarch64, "6.1") {
            return Ok(());
        }
        self.has_the_data_of_gdb().map_err(|error| format!("vmm core print: {error}"))
    }

    /// gdb's backtraces of two idle vCPUs.
    fn has_backtraces(&self, gdb: Gdb, said: &Said) -> Result<(), String> {
        match (self.isa, gdb) {
            (Isa::X86_64, _) => said.has(&["do_idle", "start_kernel", "do_idle", "start_secondary"]),
            // gdb 13 does not take the authentication codes out of a kernel's return addresses.
            (Isa::Aarch64, Gdb::Debians) => {
                said.has(&["swapper/0", "cpu_do_idle", "Switching to thread 2", "cpu_do_idle"])
            }
            (Isa::Aarch64, Gdb::Newer) => {
                said.has(&["do_idle", "[PAC] in rest_init", "do_idle", "[PAC] in secondary_start_kernel"])
            }
        }
    }

    /// gdb on `vmm core --gdb`: it finds out by itself where the kernel was.
    fn by_gdb_over_us(&self) -> Result<(), String> {
        let commands = [
            "info threads",
            "p linux_banner",
            "p init_task.comm",
            "bt",
            "thread 2",
            "bt",
            "monitor linux",
            "monitor dmesg 3",
            "stepi",
            "set var $pc = 0",
        ];
        for gdb in [Gdb::Debians, Gdb::Newer] {
            let said = self.served(gdb, &commands)?;
            said.has(&["CPU#1", &format!("Linux version {}", self.series), "swapper/0"])?;
            self.has_backtraces(gdb, &said).map_err(|error| format!("{gdb:?}: {error}"))?;
            said.has(&[
                &format!("release: {}", self.series),
                "TERM=linux",
                "it cannot run or step",
                "with --writable",
            ])?;
        }
        Ok(())
    }

    /// gdb on a task that sleeps, as a thread: it unwinds, by the kernel's own debug information, what the task has saved.
    fn by_gdb_of_tasks(&self) -> Result<(), String> {
        let commands = [
            "monitor threads tasks",
            "info threads",
            // kthreadd, which has pid 2.
            "python [t.switch() for t in gdb.selected_inferior().threads() if t.ptid[1] == 10000002]",
            "thread",
            "bt",
            "frame function kthreadd",
            "up",
            "stepi",
            "thread 1",
            "monitor threads cpus",
            "info threads",
        ];
        // gdb 13 does not take the authentication codes out of a kernel's return addresses.
        let gdbs: &[Gdb] = match self.isa {
            Isa::X86_64 => &[Gdb::Debians, Gdb::Newer],
            Isa::Aarch64 => &[Gdb::Newer],
        };
        for gdb in gdbs {
            let said = self.served(*gdb, &commands)?;
            let is_told = said.has(&[
                "threads are vCPUs and tasks that sleep (",
                "CPU#0",
                "[kthreadd], ",
                "Current thread is ",
                "schedule",
                "kthreadd",
                "ret_from_fork",
                "kthreadd (",
                "ret_from_fork",
                "task 2 [kthreadd] sleeps: it goes on when the kernel has it run",
                "threads are vCPUs\n",
                "CPU#0",
            ]);
            is_told.map_err(|error| format!("{gdb:?}: {error}"))?;
        }
        Ok(())
    }

    /// gdb's commands on `vmm core --gdb`, with the kernel's symbols, which it moves by itself.
    ///
    /// # Errors
    /// When it cannot be started, or does not end well.
    pub fn served(&self, gdb: Gdb, commands: &[&str]) -> Result<Said, String> {
        let socket = artifacts::socket("core");
        let mut command = Command::new(artifacts::program(kvm::HOST_ISA, "vmm"));
        command.arg("core").arg(&self.core).arg("--symbols").arg(&self.vmlinux);
        command.arg("--gdb").arg(format!("unix:{}", socket.display()));
        let mut server = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() && !server.has_ended() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let file = format!("file {}", self.vmlinux.display());
        let target = format!("target remote {}", socket.display());
        let all: Vec<&str> =
            [file.as_str(), &target].into_iter().chain(commands.iter().copied()).chain(["kill"]).collect();
        let said = gdb.run(&all);
        let code = server.wait(LIMIT);
        let said = said?;
        check(code? == 0, || format!("the server did not end well: {}", server.errors.text()))?;
        Ok(said)
    }

    /// Source lines, also of what was inlined, at places all over some functions of a kernel that has moved.
    fn by_addr2line(&self) -> Result<(), String> {
        const FUNCTIONS: [&str; 5] = ["vfs_read", "do_idle", "handle_mm_fault", "schedule", "do_sys_openat2"];
        let slide = self.slid_symbol("linux_banner")?.wrapping_sub(self.linked("linux_banner")?);
        let mut places = Vec::new();
        for name in FUNCTIONS {
            let linked = self.linked(name)?;
            // Instructions of x86 begin anywhere; a line is one of any byte.
            places.extend((0..8).map(|at| (name, linked + 16 + at * 12)));
        }
        let linked: Vec<String> = places.iter().map(|(_, at)| format!("{at:#x}")).collect();
        let mut theirs = command("addr2line", &["-i", "-e"], &[&self.vmlinux]);
        theirs.args(&linked);
        // One by one: what was inlined has as many lines as functions.
        let ours: Vec<String> =
            places.iter().map(|(_, at)| format!("monitor sym {:#x}", at.wrapping_add(slide))).collect();
        let said = self.served(Gdb::Newer, &ours.iter().map(String::as_str).collect::<Vec<_>>())?;
        let theirs = run(theirs, "")?.well()?;
        let lines = theirs.text.lines().map(|line| line.split(" (").next().unwrap_or(line));
        let known: Vec<&str> = lines.filter(|line| !line.contains('?')).collect();
        check(known.len() >= places.len(), || format!("addr2line knows little:\n{}", theirs.text))?;
        said.has(&known)?;
        for (name, at) in places {
            let place = format!("{:#x} is {name}+", at.wrapping_add(slide));
            check(said.text.contains(&place), || format!("no {place:?} in\n{}", said.text))?;
        }
        check(!said.text.contains("another build"), || format!("it doubts the file:\n{}", said.text))
    }

    fn by_drgn(&self) -> Result<(), String> {
        let script = artifacts::workspace().join("resources/drgn/check.py");
        let mut command = command("python3", &[], &[&script, &self.core, &self.vmlinux]);
        command.env("PYTHONPATH", artifacts::cache().join("tools/drgn"));
        let said = run(command, "")?.well()?;
        let banner = format!("banner: Linux version {}", self.series);
        said.has(&[&banner, "tasks: ", "init kthreadd", "do_wait", "do_idle", "start_kernel"])
    }

    /// What crash is asked.
    const CRASH: &'static str =
        "sys\nps\nforeach bt\nbt -a\nlog | tail -3\nsym linux_banner\nvtop $(sym)\nquit\n";

    fn crash(&self, program: Command) -> Result<Said, String> {
        let mut program = program;
        program.arg(&self.vmlinux).arg(&self.core);
        let banner = self.slid_symbol("linux_banner")?;
        run(program, &Opened::CRASH.replace("$(sym)", &format!("{banner:x}")))
    }

    /// Where a symbol of the kernel was linked to.
    fn linked(&self, name: &str) -> Result<u64, String> {
        let file = fs::File::open(&self.vmlinux).map_err(|error| error.to_string())?;
        let found = crate::guests::symbols_of(file, &[name]).ok_or("the kernel has no symbols")?;
        found.first().map(|(_, address, _)| *address).ok_or_else(|| format!("there is no symbol {name}"))
    }

    /// Where a symbol of the kernel was.
    fn slid_symbol(&self, name: &str) -> Result<u64, String> {
        let linked = self.linked(name)?;
        let slide = self.slide()?;
        let slide =
            u64::from_str_radix(slide.trim_start_matches("0x"), 16).map_err(|error| error.to_string())?;
        Ok(linked + slide)
    }

    /// What crash is to say.
    fn is_told_by_crash(&self, said: &Said) -> Result<(), String> {
        let release = format!("RELEASE: {}", self.series);
        let second = match self.isa {
            Isa::X86_64 => "start_secondary",
            Isa::Aarch64 => "secondary_start_kernel",
        };
        said.has(&["CPUS: 2", &release, "swapper/0", "init", "kthreadd"])?;
        let [first_cpu, second_cpu] = [0, 1].map(|cpu| format!("CPU: {cpu} "));
        said.has(&[&first_cpu, "do_idle", "start_kernel", &second_cpu, "do_idle", second])?;
        said.has(&["TERM=linux", "linux_banner", "PHYSICAL"])?;
        self.has_the_tasks_of(said).map_err(|error| format!("vmm core ps: {error}"))?;
        self.has_the_stacks_of(said).map_err(|error| format!("vmm core bt: {error}"))?;
        self.has_names_without_a_file().map_err(|error| format!("vmm core sym: {error}"))
    }

    /// crash: Debian 12's as far as it goes, and newer ones.
    fn by_crash(&self) -> Result<(), String> {
        match self.isa {
            Isa::X86_64 => {
                let said = self.crash(Command::new("crash"))?;
                if self.series == "6.12" {
                    // It does not know that this kernel moves itself, reads from where it was linked, and
                    // gives up.
                    check(said.code != 0 && !said.text.contains("RELEASE: "), || {
                        format!("Debian 12's opens it after all:\n{}", said.text)
                    })?;
                } else {
                    // It lists no tasks but the idle ones, whoever made the dump.
                    said.has(&["CPUS: 2", "swapper/0", "TERM=linux", "linux_banner", "PHYSICAL"])
                        .map_err(|error| format!("Debian 12's: {error}"))?;
                }
                self.is_told_by_crash(&self.crash(newer("crash", "forky", self.isa))?)
            }
            Isa::Aarch64 => {
                let mut command = Opened::crash_for_aarch64();
                match (self.series, self.address_bits()?) {
                    // It does not know 52-bit addresses with pages of 4 KiB.
                    ("6.12", 52) => {
                        return self.crash(command)?.has(&["invalid kernel virtual address: ffff8"]);
                    }
                    // Nor that a kernel for them says where memory begins as if it had them.
                    ("6.12", _) => {
                        let said = self.crash(Opened::crash_for_aarch64())?;
                        said.has(&["read error: kernel virtual address"])?;
                        let start = self.info["memory"][0]["start"].as_str().ok_or("no memory")?;
                        command.args(["-m", &format!("phys_offset={start}")]);
                    }
                    _ => {}
                }
                self.is_told_by_crash(&self.crash(command)?)
            }
        }
    }

    fn crash_for_aarch64() -> Command {
        Command::new(artifacts::cache().join("tools/crash-for-aarch64/crash"))
    }

    /// How many bits addresses have.
    fn address_bits(&self) -> Result<u32, String> {
        let said = core(Built::Here, &self.core, &["info"])?.well()?;
        Ok(if said.text.contains("(52 bits") { 52 } else { 48 })
    }

    /// makedumpfile, of the dump's architecture: the log, and a filtered dump that we read back.
    fn by_makedumpfile(&self) -> Result<(), String> {
        let newer = || newer("makedumpfile", "trixie", self.isa);
        let program: &dyn Fn() -> Command = match self.isa {
            Isa::X86_64 => &|| Command::new("makedumpfile"),
            Isa::Aarch64 => &newer,
        };
        let log = self.core.with_extension("log");
        let mut dmesg = program();
        dmesg.args(["--message-level", "31", "--dump-dmesg"]).arg(&self.core).arg(&log);
        let said = run(dmesg, "")?;
        if self.isa == Isa::Aarch64 && self.series == "6.12" {
            // The newest that Debian has does not know 52-bit addresses with pages of 4 KiB.
            return said.has(&["get_machdep_info_arm64: Can't determine platform config values"]);
        }
        said.well()?;
        let text = fs::read_to_string(&log).map_err(|error| format!("there is no log: {error}"))?;
        check(text.contains("TERM=linux"), || format!("the log is\n{text}"))?;
        // Its option for each way to compress, and for a core; Debian's own has no Snappy and no Zstandard.
        for (option, needs_newer) in [("-c", false), ("-l", false), ("-p", true), ("-z", true), ("-E", false)]
        {
            let filtered = self.core.with_extension("filtered");
            let mut filter = if needs_newer { newer() } else { program() };
            filter.args(["-d", "31", option]).arg(&self.core).arg(&filtered);
            run(filter, "")?.well().map_err(|error| format!("{option}: {error}"))?;
            let format = if option == "-E" {
                "format: ELF core of vmm"
            } else {
                "compressed kdump, version 6, dump level 31"
            };
            let result = self.read_back(&filtered, format);
            fs::remove_file(&filtered).ok();
            result.map_err(|error| format!("{option}: {error}"))?;
        }
        fs::remove_file(&log).map_err(|error| error.to_string())
    }

    fn read_back(&self, filtered: &Path, format: &str) -> Result<(), String> {
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        check(size(filtered) < size(&self.core) / 2, || format!("it has {} bytes", size(filtered)))?;
        core(Built::Here, filtered, &["info"])?.well()?.has(&[format])?;
        let banner = format!("{:#x}", self.slid_symbol("linux_banner")?);
        for words in [&["dmesg"][..], &["regs"], &["read", &banner, "64"]] {
            let (ours, theirs) = (core(Built::Here, &self.core, words)?, core(Built::Here, filtered, words)?);
            let ours = ours.well()?;
            // That something was left out is said of an ELF core, whatever is asked.
            let theirs: String =
                theirs.text.split_inclusive('\n').filter(|line| !line.starts_with("vmm: warn: ")).collect();
            check(theirs == ours.text, || format!("{words:?}: {theirs}\ninstead of\n{}", ours.text))?;
        }
        self.left_out(filtered, format.starts_with("format: ELF"))
    }

    /// Pages that were left out are no zeros: each page is as it was, or an error that says who left it out.
    fn left_out(&self, filtered: &Path, is_elf: bool) -> Result<(), String> {
        const PAGE: usize = 4096;
        let why = match is_elf {
            true => "the page was left out of the dump, as makedumpfile -E does",
            false => "the page was left out of the dump, by makedumpfile -d 31 (pages of zeros, page cache,",
        };
        let (ours, theirs) = (open(&self.core)?, open(filtered)?);
        let (mut absent, mut page, mut other) = (None, [0; PAGE], [0; PAGE]);
        for range in ours.memory().ranges() {
            for at in (range.start.0..range.end().0).step_by(PAGE).map(GuestPhys) {
                let read = ours.memory().read(at, &mut page);
                match theirs.memory().absence(at) {
                    Some(reason) => {
                        check(reason.to_string().starts_with(why), || format!("{at:#x}: {reason}"))?;
                        absent = Some(at);
                    }
                    None if theirs.memory().read(at, &mut other) == read && page == other => {}
                    None => return Err(format!("the page at {at:#x} is not as it was")),
                }
            }
        }
        let at = format!("{:#x}", absent.ok_or("nothing was left out")?);
        let said = core(Built::Here, filtered, &["read", "--physical", &at, "8"])?;
        check(said.code == 24 && said.text.contains(why), || format!("{at}: {}, {}", said.code, said.text))
    }

    /// What others have compressed, in one piece.
    fn by_packers(&self) -> Result<(), String> {
        let ours = core(Built::Here, &self.core, &["regs"])?.well()?;
        let packed = self.core.with_extension("packed");
        let plain = fs::read(&self.core).map_err(|error| error.to_string())?;
        let result = (|| {
            for (bytes, name) in [(in_one_member(&plain)?, "gzip"), (in_one_frame(&plain), "Zstandard")] {
                fs::write(&packed, bytes).map_err(|error| error.to_string())?;
                core(Built::Here, &packed, &["info"])?.well()?.has(&[&format!("unpacked from {name}")])?;
                let theirs = core(Built::Here, &packed, &["regs"])?.well()?;
                check(theirs.text == ours.text, || format!("{name}: {}", theirs.text))?;
            }
            Ok(())
        })();
        fs::remove_file(&packed).ok();
        result
    }

    /// A dump that differs in one byte, which is in the kernel's image.
    fn by_diff(&self) -> Result<(), String> {
        use std::os::unix::fs::FileExt;
        let banner = self.slid_symbol("linux_banner")?;
        let other = self.core.with_extension("other");
        fs::copy(&self.core, &other).map_err(|error| error.to_string())?;
        let result = (|| {
            let said =
                core(Built::Here, &self.core, &["translate", &format!("{banner:#x}"), "--json"])?.well()?;
            let json: serde_json::Value =
                serde_json::from_str(&said.text).map_err(|error| error.to_string())?;
            let physical = json["physical"].as_str().ok_or("it is not mapped")?;
            let physical = u64::from_str_radix(physical.trim_start_matches("0x"), 16)
                .map_err(|error| error.to_string())?;
            // Memory is the last segment, in one piece.
            let start = self.info["memory"][0]["start"].as_str().unwrap_or_default();
            let start =
                u64::from_str_radix(start.trim_start_matches("0x"), 16).map_err(|error| error.to_string())?;
            let size = self.info["memory"][0]["size"].as_u64().ok_or("no size")?;
            let length = fs::metadata(&other).map_err(|error| error.to_string())?.len();
            let file = fs::OpenOptions::new().write(true).open(&other).map_err(|error| error.to_string())?;
            file.write_all_at(b"?", length - size + (physical - start)).map_err(|error| error.to_string())?;
            let said = core(Built::Here, &self.core, &["--diff", &other.display().to_string()])?.well()?;
            let page = format!("{:#018x}-", banner & !0xfff);
            said.has(&[&page, "1 page differs"])
        })();
        fs::remove_file(&other).ok();
        result
    }
}
