//! `vmm run`: a command in a guest that is booted for it.

use super::candidates::words;
use super::refusal;
use super::stdout;
use super::values::{self, ConsoleDevice, NetChoice};
use crate::boot::BootError;
use crate::cell::Sandbox;
use crate::control::names;
use crate::error::Error;
use crate::job::desk::{self, Job};
use crate::job::dump_on::DumpOn;
use crate::job::ended::Ended;
use crate::job::free_memory::free_memory;
use crate::job::hold::HoldOn;
use crate::job::kernel_log::{LogTo, Watch};
use crate::job::matrix::{self, Runs};
use crate::job::plan::{Plan, Root, Wanted};
use crate::job::protocol::Command;
use crate::job::report_file::ReportFile;
use crate::job::root_image::RootImage;
use crate::job::session;
use crate::job::steps::Init;
use crate::job::stop::{self, Stop};
use crate::job::table;
use crate::job::verdict::{CANNOT, CODES};
use crate::logging;
use crate::machine::config::{Config, DiskConfig, GdbConfig, MemorySize, SymbolsConfig, VirtioTransport};
use arch::plain::plain;
use clap::Parser;
use clap::builder::{NonEmptyStringValueParser, ValueParser};
use clap::error::ErrorKind;
use debug::gdb::endpoint::Endpoint;
use debug::linux::trouble::Trouble;
use devices::platform::Extra;
use kvm::HOST_ISA;
use regex_lite::Regex;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, thread};

/// Boot a kernel, run a command in it, and end as the command does
///
/// The guest's root is this host's, another folder or a disk image, as it is: what the guest writes is gone with it.
/// The command's output and errors are this program's, and so is its exit code.
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// Kernel; this host's own where none is named
    #[arg(long, value_name = "PATH", conflicts_with = "build", help_heading = "Guest")]
    kernel: Option<PathBuf>,
    /// A kernel's source tree that has been built: its image and its modules
    #[arg(long, value_name = "DIR", help_heading = "Guest")]
    build: Option<PathBuf>,
    /// The folder with the kernel's modules; found beside the kernel and below /lib/modules where none is named
    #[arg(long, value_name = "DIR", conflicts_with = "build", help_heading = "Guest")]
    modules: Option<PathBuf>,
    /// Further words for the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, help_heading = "Guest")]
    append: Option<String>,
    /// What the command sees as its root: a folder; a disk image, or a partition of it; an archive (cpio, as for an
    /// initrd)
    #[arg(long, value_name = "DIR|IMAGE[:PARTITION]|ARCHIVE", default_value = "/", help_heading = "Guest")]
    root: PathBuf,
    /// A disk, behind the root's: /dev/vda, or /dev/vdb if the root is an image; as `vmm --disk`; may be given more than
    /// once
    #[arg(long, value_name = "PATH[,ro][,format=FORMAT][,serial=TEXT][,snapshot]", value_parser = ValueParser::new(values::disk), help_heading = "Guest")]
    disk: Vec<DiskConfig>,
    /// A folder that the guest writes through to; may be given more than once
    #[arg(long, value_name = "DIR", help_heading = "Guest")]
    rw: Vec<PathBuf>,
    /// A folder for what the command leaves behind: it is /out in the guest, written through, and made if it is not there
    #[arg(long, value_name = "DIR", help_heading = "Guest")]
    out: Option<PathBuf>,
    /// A variable of the command's environment: NAME as it is here, or NAME=VALUE; may be given more than once
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Guest")]
    env: Vec<OsString>,
    /// Where the command runs; here, if the root is this host's
    #[arg(long, value_name = "DIR", help_heading = "Guest")]
    cwd: Option<PathBuf>,
    /// Have this program as the first process, the system's own, beside which the command runs
    #[arg(long, value_name = "PROGRAM", value_parser = NonEmptyStringValueParser::new(), help_heading = "Guest")]
    init: Option<String>,
    /// Have the root's systemd as the first process
    #[arg(long, conflicts_with = "init", help_heading = "Guest")]
    systemd: bool,

    /// Number of vCPUs; as many as this host has, up to four
    #[arg(long, value_name = "N", value_parser = ValueParser::new(values::count), help_heading = "Machine")]
    cpus: Option<u32>,
    /// Memory: 512M, 4G; a bare number counts MiB
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = ValueParser::new(values::memory_size), help_heading = "Machine")]
    memory: MemorySize,

    /// Give the guest a network, which is there when the command runs: user, of its own, behind ordinary sockets of this
    /// host's; or the tap interface NAME, whose address is the command's business. What may stand behind commas:
    /// vmm --help
    #[arg(long, value_name = "none|user[,...]|tap=NAME[,mac=MAC]", default_value = "none", value_parser = ValueParser::new(values::net), help_heading = "Machine")]
    net: NetChoice,
    /// How the guest finds its devices: pci, or mmio for kernels without PCI
    #[arg(long, value_name = "pci|mmio", default_value = "pci", value_parser = ValueParser::new(values::transport), help_heading = "Machine")]
    virtio: VirtioTransport,

    /// What the kernel prints on: a serial port, or a virtio device, which needs a driver
    #[arg(long, value_name = "serial|virtio", default_value = "serial", value_parser = ValueParser::new(values::console_device),
          add = words(ConsoleDevice::NAMES), help_heading = "Machine")]
    console_device: ConsoleDevice,

    /// How long the guest may take until it runs a program
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = ValueParser::new(values::duration), help_heading = "Run")]
    boot_timeout: Duration,
    /// End the guest after this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(values::duration), help_heading = "Run")]
    timeout: Option<Duration>,
    /// All times are so many times as long: this host is slow, as nested ones are
    #[arg(long, value_name = "N", default_value = "1", value_parser = ValueParser::new(values::count), help_heading = "Run")]
    slow: u32,
    /// What in the kernel's log ends the run with code 118: oops, warn, kasan, ubsan, kcsan, lockdep, leak; none
    #[arg(long, value_name = "LIST", default_value = "oops", value_parser = ValueParser::new(troubles), help_heading = "Run")]
    fail_on: Troubles,
    /// Lines of the log that this regular expression finds something in are no reason; may be given more than once
    #[arg(long, value_name = "REGEX", value_parser = ValueParser::new(pattern), help_heading = "Run")]
    allow: Vec<Regex>,
    /// Keep the guest when this came of it, and say how to look at it: panic, oops (all that --fail-on names), hang, fail
    /// (all else but success); for this time, or until it is ended
    #[arg(long, value_name = "LIST[=TIME]", value_parser = ValueParser::new(hold_on), help_heading = "Run")]
    hold_on: Option<HoldOn>,
    /// Write a core of the guest when this came of it, named as for --hold-on, for `vmm core`, crash, drgn and gdb; packed
    /// where the path ends in .gz or .zst
    #[arg(long, value_name = "LIST=PATH", value_parser = ValueParser::new(dump_on), help_heading = "Run")]
    dump_on: Option<DumpOn>,
    /// Where the kernel's log goes: a file, or - for standard error; else its end is shown when something went wrong
    #[arg(long, value_name = "PATH|-", help_heading = "Run")]
    kernel_log: Option<PathBuf>,
    /// Write what came of it to standard error as one line of JSON, behind everything else
    #[arg(long, help_heading = "Run")]
    json: bool,
    /// A name to speak to the guest by: vmm ls, monitor NAME, stop NAME, dump NAME PATH
    #[arg(long, value_name = "NAME", value_parser = ValueParser::new(names::check), help_heading = "Run")]
    name: Option<String>,
    /// Whether the monitor keeps itself from what it does not need: on, as far as this host has it; off, for debugging vmm;
    /// require: a host that has not all of it is refused
    #[arg(long, value_name = "on|off|require", default_value = "on", value_parser = ValueParser::new(Sandbox::parse),
          add = words(Sandbox::NAMES), help_heading = "Run")]
    sandbox: Sandbox,
    /// Give the command no terminal, though there is one
    #[arg(long, help_heading = "Run")]
    no_tty: bool,

    /// Serve gdb or lldb: the guest waits at its first instruction until one attaches
    #[arg(long, value_name = "[HOST]:PORT|unix:PATH", value_parser = ValueParser::new(Endpoint::parse), help_heading = "Debugging")]
    gdb: Option<Endpoint>,
    /// Let the guest run before a debugger attaches
    #[arg(long, requires = "gdb", help_heading = "Debugging")]
    gdb_no_wait: bool,
    /// The file that the kernel was linked to (vmlinux), for source lines and names; without this, that of --build, or one
    /// of the kernel's build, where distributions and debuginfod keep those; none: only what the kernel keeps itself
    #[arg(long, value_name = "PATH|none", value_parser = ValueParser::new(values::symbols), help_heading = "Debugging")]
    symbols: Option<SymbolsConfig>,

    /// Run many: a file, or - for standard input, of which each line has the words of one `vmm run`; a table at the end
    #[arg(long, value_name = "FILE|-", help_heading = "Many",
          conflicts_with_all = ["kernel", "build", "modules", "append", "root", "disk", "rw", "out", "env", "cwd", "init", "systemd", "hold_on", "dump_on", "name", "gdb", "kernel_log", "cpus", "memory", "virtio", "console_device", "net", "boot_timeout", "timeout", "slow", "fail_on", "allow", "no_tty", "sandbox", "symbols", "command"])]
    matrix: Option<PathBuf>,
    /// How many at a time; as many as this host's processors and memory have room for where nothing is said
    #[arg(short, long, value_name = "N", value_parser = ValueParser::new(values::count), help_heading = "Many")]
    jobs: Option<u32>,
    /// Write what came of them as JUnit has it
    #[arg(long, value_name = "PATH", help_heading = "Many")]
    junit: Option<PathBuf>,
    /// Print what came of them by the Test Anything Protocol, with what their commands say by it, instead of the table
    #[arg(long, help_heading = "Many")]
    tap: bool,

    /// The command and its arguments; a shell where there is none
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What `--fail-on` names.
#[derive(Clone, Debug)]
struct Troubles(Vec<Trouble>);

fn troubles(list: &str) -> Result<Troubles, String> {
    if list == "none" {
        return Ok(Troubles(Vec::new()));
    }
    let one = |word: &str| {
        let found = Trouble::ALL.iter().find(|(its, _)| *its == word).map(|(_, trouble)| *trouble);
        found.ok_or_else(|| {
            let all: Vec<&str> = Trouble::ALL.iter().map(|(word, _)| *word).collect();
            format!("'{word}' is none of {}, none", all.join(", "))
        })
    };
    list.split(',').map(one).collect::<Result<_, _>>().map(Troubles)
}

fn hold_on(text: &str) -> Result<HoldOn, String> {
    HoldOn::parse(text, values::duration)
}

fn dump_on(text: &str) -> Result<DumpOn, String> {
    DumpOn::parse(text, values::dump_path)
}

fn after_help() -> String {
    let mut text = String::from("Exit codes: the command's own, 128 and the signal that ended it, and\n");
    for code in CODES {
        text.push_str(&format!("  {:>3}  {}\n", code.code, code.meaning));
    }
    text.push_str("The last line on standard error says which it was.");
    text
}

fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("it is no regular expression: {error}"))
}

/// The environment that every command has, besides what is asked for.
const ENVIRONMENT: [&str; 3] =
    ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root"];

impl Args {
    fn root(&self) -> Root {
        match RootImage::named(&self.root) {
            Some(file) if file.is_archive() => Root::Archives(vec![file.disk.path]),
            Some(image) => Root::Image(image),
            None => Root::Folder(self.root.clone()),
        }
    }

    fn vcpus(&self) -> u32 {
        let cpus = thread::available_parallelism().map_or(1, |count| count.get().min(4));
        self.cpus.unwrap_or(u32::try_from(cpus).unwrap_or(1))
    }

    /// How many of these this host has room for: a processor for each vCPU, and memory for each guest and its monitor.
    fn fits(&self) -> usize {
        const MONITOR: u64 = 64 << 20;
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let by_processors = processors / usize::try_from(self.vcpus()).unwrap_or(1).max(1);
        let free = free_memory().unwrap_or(0) / (self.memory.bytes() + MONITOR);
        by_processors.min(usize::try_from(free).unwrap_or(1)).max(1)
    }

    fn folder(&self) -> PathBuf {
        match &self.cwd {
            // Where the root is this host's, as it is meant here.
            Some(folder) if self.root == Path::new("/") => {
                std::path::absolute(folder).unwrap_or_else(|_| folder.clone())
            }
            Some(folder) => Path::new("/").join(folder),
            None if self.root == Path::new("/") => env::current_dir().unwrap_or_else(|_| "/".into()),
            None => "/".into(),
        }
    }

    /// Refuses an option of many runs beside a single one. That one requires `--matrix` is nothing that clap asks
    /// for beside what `--matrix` conflicts with, as a command does.
    fn check_is_many(&self) -> Result<(), String> {
        let options =
            [("--jobs", self.jobs.is_some()), ("--junit", self.junit.is_some()), ("--tap", self.tap)];
        match options.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) if self.matrix.is_none() => {
                Err(format!("{option} is for many runs: write it beside --matrix FILE"))
            }
            _ => Ok(()),
        }
    }

    fn keeps_panics(&self) -> bool {
        self.hold_on.as_ref().is_some_and(HoldOn::keeps_panics)
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            kernel: self.kernel.clone(),
            build: self.build.clone(),
            modules: self.modules.clone(),
            root: self.root(),
            disks: self.disk.clone(),
            writable: self.rw.clone(),
            out: self.out.clone(),
            folder: self.folder(),
            append: self.append.clone(),
            stays_when_panicked: self.keeps_panics(),
            has_virtio_console: self.console_device == ConsoleDevice::Virtio,
            transport: self.virtio,
            net: self.net.0.clone(),
            init: match &self.init {
                Some(program) => Some(Init { program: program.clone(), sign: None }),
                None => self.systemd.then(Init::systemd),
            },
        }
    }

    fn command(&self) -> Command {
        let terminal = (session::has_terminal() && !self.no_tty)
            .then(|| session::size_of_terminal().unwrap_or((24, 80)));
        Command {
            words: command_of(&self.command),
            environment: environment_of(&self.env, terminal.is_some()),
            folder: self.folder().into_os_string().into_vec(),
            terminal,
            // A shell would not take itself for one that somebody types at (POSIX.1-2024, sh, `-i`).
            errors_apart: terminal.is_some() && !self.command.is_empty() && session::has_errors_apart(),
        }
    }

    /// A time, as long as this host needs.
    fn slowed(&self, time: Duration) -> Duration {
        // With the longest that can be written clocks can be reckoned still.
        const LONGEST: Duration = Duration::from_millis(u64::MAX);
        time.saturating_mul(self.slow).min(LONGEST)
    }

    fn job(&self, plan: Plan, initramfs: PathBuf) -> Job {
        let built = plan.symbols.map(SymbolsConfig::Named);
        let guest = Config {
            kernel: Some(plan.kernel),
            initrds: [initramfs].into_iter().chain(plan.archives).collect(),
            cmdline: Some(plan.cmdline),
            cpus: self.vcpus(),
            memory: self.memory,
            // A guest that tells of its panic by a device has ended by then.
            extras: if self.keeps_panics() { vec![Extra::Exit] } else { vec![Extra::Exit, Extra::Pvpanic] },
            virtio: plan.devices,
            transport: self.virtio,
            gdb: self
                .gdb
                .clone()
                .map(|address| GdbConfig { waits: !self.gdb_no_wait, ..GdbConfig::new(address) }),
            symbols: self.symbols.clone().or(built).unwrap_or_default(),
            keeps_registers: true,
            ..Config::default()
        };
        Job {
            guest,
            command: self.command(),
            boot_timeout: self.slowed(self.boot_timeout),
            slow: self.slow,
            timeout: self.timeout.map(|limit| self.slowed(limit)),
            watch: Watch { troubles: self.fail_on.0.clone(), allowed: self.allow.clone() },
            log: match &self.kernel_log {
                None => LogTo::Nowhere,
                Some(path) if path.as_os_str() == "-" => LogTo::Errors,
                Some(path) => LogTo::File(path.clone()),
            },
            name: self.name.clone(),
            hold_on: self.hold_on.clone().unwrap_or_default(),
            dump_on: self.dump_on.clone(),
            sandbox: self.sandbox,
            json: self.json,
        }
    }
}

/// The words of a command: a shell's where none are given.
pub fn command_of(words: &[OsString]) -> Vec<Vec<u8>> {
    match words {
        [] => vec![b"/bin/sh".to_vec()],
        words => words.iter().map(|word| word.as_bytes().to_vec()).collect(),
    }
}

/// A command's environment: what every one has, and what `--env` names.
pub fn environment_of(given: &[OsString], has_terminal: bool) -> Vec<Vec<u8>> {
    let mut environment: Vec<Vec<u8>> = ENVIRONMENT.iter().map(|it| it.as_bytes().to_vec()).collect();
    let mut set = |name: &[u8], value: &[u8]| {
        environment.retain(|it| !it.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"=")));
        environment.push([name, b"=", value].concat());
    };
    if let Some(term) = env::var_os("TERM").filter(|_| has_terminal) {
        set(b"TERM", term.as_bytes());
    }
    for given in given {
        let bytes = given.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => set(&bytes[..at], &bytes[at + 1..]),
            None => {
                if let Some(value) = env::var_os(given) {
                    set(bytes, value.as_bytes());
                }
            }
        }
    }
    environment
}

/// Says which variables `--env` names that are not set here.
pub fn warn_of_unset(given: &[OsString]) {
    for given in
        given.iter().filter(|given| !given.as_bytes().contains(&b'=') && env::var_os(given).is_none())
    {
        log::warn!("--env {}: it is not set here", plain(&given.to_string_lossy()));
    }
}

/// Lines of the kernel's log that are shown when something went wrong.
const SHOWN: usize = 40;

/// A line of a list, as the words of a run.
#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    run: Args,
    /// They are that run's.
    #[command(flatten)]
    _messages: super::Messages,
}

/// A run's words, understood.
fn understood(words: &[String]) -> Result<Args, String> {
    let words = std::iter::once("run").chain(words.iter().map(String::as_str));
    let line = Line::try_parse_from(words).map_err(|error| {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return "it asks for help, and is no run: `vmm run --help` shows it".to_string();
        }
        refusal::in_a_line(&error)
    })?;
    line.run.check_is_many()?;
    match (&line.run.matrix, line.run.json) {
        (Some(_), _) => Err("a run of many cannot be one of many".into()),
        (None, true) => Err("--json is for all of them: write it beside --matrix".into()),
        (None, false) => Ok(line.run),
    }
}

/// Some of many have not passed.
const NOT_ALL_PASSED: u8 = 1;

/// Runs a list of them; the exit code.
fn carry_out_many(args: &Args, list: &Path) -> u8 {
    match many(args, list) {
        Ok(code) => code,
        Err(text) => refusal::cannot_run(&text, args.json),
    }
}

fn junit(told: &table::Told<'_>) -> Result<String, String> {
    table::junit(told).map_err(|error| error.to_string())
}

/// The report's file, in which none has ended yet.
fn open_junit<'a>(path: &Path, count: usize, stop: &'a Stop) -> Result<ReportFile<'a>, String> {
    let told = table::Told { ended: &[], count, stopped_by: None };
    ReportFile::open(path, &junit(&told)?, &stop.temporary)
        .map_err(|error| format!("cannot open --junit {}: {error}", path.display()))
}

/// The exit code.
fn many(args: &Args, list: &Path) -> Result<u8, String> {
    if args.tap && args.json {
        return Err("--tap and --json both say what came of all: write one of them".into());
    }
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let stop = Stop::by_signals().map_err(|error| format!("cannot listen to signals: {error}"))?;
    let entries = matrix::read(list, |words| understood(words).map(|_| ())).map_err(|error| words(&error))?;
    let count = entries.len();
    // Before hours have gone by.
    let junit_file = args.junit.as_deref().map(|path| open_junit(path, count, &stop));
    let mut junit_file = junit_file.transpose()?;
    let at_a_time = match args.jobs {
        Some(jobs) => jobs as usize,
        None => entries
            .iter()
            .filter_map(|entry| understood(&entry.words).ok())
            .map(|run| run.fits())
            .min()
            .unwrap_or(1),
    };
    let (mut done, mut unwritten) = (0, 0);
    let reports = junit_file.is_some();
    let shown = matrix::Shown { output: reports, tests: reports || args.tap };
    let tell = |one: &matrix::Finished| {
        done += 1;
        match args.json {
            true => unwritten |= stdout::print(&format!("{}\n", table::json(one)), 0),
            false => {
                let result = if one.is_passed() { "passed" } else { "failed" };
                logging::print(&format!("{done} of {count}: {result}: {}\n", one.entry.name));
            }
        }
    };
    // Whoever ends this in the middle has what has come so far.
    let so_far = |ended: &[matrix::Finished]| {
        let told = table::Told { ended, count, stopped_by: None };
        junit_file.as_mut().and_then(|file| file.keep(|| junit(&told)))
    };
    let program = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let program = [program.into_os_string(), "run".into(), "--json".into()].into();
    let finished = Runs { program, at_a_time, shown, stop: &stop }.carry_out(entries, tell, so_far);
    let finished = finished.map_err(|error| format!("cannot run them: {error}"))?;
    // One that comes behind the last run's end has stopped none.
    let stopped_by = stop.by().filter(|_| finished.len() < count);
    let told = table::Told { ended: &finished, count, stopped_by };
    if let Some(stopped) = told.stopped() {
        log::error!("{stopped}");
    }
    let text = match (args.tap, args.json) {
        (true, _) => table::tap(&told),
        (false, true) => String::new(),
        (false, false) => table::text(&told),
    };
    unwritten |= stdout::print(&text, 0);
    if let Some(file) = junit_file {
        let written = junit(&told).and_then(|text| file.finish(&text).map_err(|error| error.to_string()));
        written.map_err(|error| format!("cannot write --junit: {error}"))?;
    }
    if let Some(signal) = told.stopped_by {
        return Ok(stop::code_of(signal));
    }
    Ok(match finished.iter().all(matrix::Finished::is_passed) {
        // It is said already.
        _ if unwritten != 0 => CANNOT,
        true => 0,
        false => NOT_ALL_PASSED,
    })
}

/// Runs the command; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    if let Some(list) = &args.matrix {
        return carry_out_many(args, list);
    }
    if let Err(text) = args.check_is_many() {
        return refusal::cannot_run(&text, args.json);
    }
    warn_of_unset(&args.env);
    // Before anything is booted.
    if args.command().encoded().is_none() {
        return refusal::cannot_run(session::TOO_LONG, args.json);
    }
    let plan = match args.wanted().plan(HOST_ISA) {
        Ok(plan) => plan,
        Err(error) => return refusal::cannot_run(&error.to_string(), args.json),
    };
    match run(args, plan) {
        Ok(code) => code,
        Err(error) => refusal::cannot_run(&of_run(&error), args.json),
    }
}

/// Why a guest cannot be booted, without options that a run has not.
fn of_run(error: &Error) -> String {
    match error {
        Error::Boot(BootError::UnknownFormat { path }) => {
            format!("kernel {}: not a format that is known (bzImage, ELF, Multiboot, Image)", path.display())
        }
        error => error.to_string(),
    }
}

fn run(args: &Args, plan: Plan) -> Result<u8, Error> {
    let file = in_memory(&plan.initramfs).map_err(Error::system("cannot keep the initramfs in memory"))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let ended = desk::run(&args.job(plan, path), |ended| report(args, ended))?;
    if args.json {
        logging::print(&format!("{}\n", ended.as_json()));
    }
    Ok(ended.verdict.code())
}

/// Says what came of it, to people.
fn report(args: &Args, ended: &Ended) {
    let verdict = &ended.verdict;
    let says = args.json || !verdict.is_commands() || verdict.is_ambiguous() || args.hold_on.is_some();
    if ended.is_line_open && says {
        logging::print("\n");
    }
    if verdict.shows_log() {
        let tail: String = ended.log.last(SHOWN).map(|line| format!("{line}\n")).collect();
        if args.kernel_log.is_none() {
            logging::print(&tail);
        }
        ended.vcpus.iter().for_each(|vcpu| logging::print(&format!("{vcpu}\n")));
        if let Some(why) = &ended.why {
            logging::print(&format!("{}{}", why.without_log(), why.notes()));
        }
    }
    match args.json {
        // It says all of this behind it.
        true => {}
        false if !verdict.is_commands() => {
            refusal::say(&format!("{verdict} (exit code {})", verdict.code()));
        }
        // Whoever wants to hear little is not to take it for another's code either.
        false if verdict.is_ambiguous() => logging::print(&format!("vmm: {verdict}\n")),
        false => {}
    }
}

/// A file that has no name.
fn in_memory(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    let fd = nix::sys::memfd::memfd_create("initramfs", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Args, String> {
        understood(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_line_of_a_list_is_a_run() {
        words("-q --log f -v -- true").unwrap_err();
        words("-vv --log f -- true").unwrap();
        let run = words("--kernel k --cpus 3 --memory 64G --fail-on oops,warn -- sh -c true").unwrap();
        assert_eq!((run.vcpus(), run.fits()), (3, 1));
        assert_eq!(run.fail_on.0, [Trouble::Oops, Trouble::Warn]);
        assert_eq!(command_of(&run.command).len(), 3);
        assert_eq!(command_of(&words("").unwrap().command), [b"/bin/sh".to_vec()]);
        for (line, says) in [
            ("--kernel", "a value is required"),
            ("--wrong", "unexpected argument '--wrong'"),
            ("--init= -- true", "a value is required for '--init <PROGRAM>'"),
            ("--fail-on oops,heat", "'heat' is none of oops, warn"),
            ("--matrix other", "cannot be one of many"),
            ("--junit x", "--junit is for many runs: write it beside --matrix"),
            ("--junit x -- true", "--junit is for many runs"),
            ("--tap --kernel k", "--tap is for many runs"),
            ("-j 3 -- true", "--jobs is for many runs"),
            ("--json -- true", "beside --matrix"),
            ("--help", "is no run"),
            ("--kernel k -h", "is no run"),
        ] {
            let error = words(line).unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{line}: {error}");
        }
    }

    #[test]
    fn a_single_run_has_no_option_of_many() {
        for line in
            ["run --junit /nowhere/x -- true", "run --tap -- true", "run -j 2 -- true", "run --tap --json"]
        {
            let words = line.split(' ');
            let run = Line::try_parse_from(words).unwrap().run;
            assert_eq!(carry_out(&run), CANNOT, "{line}");
            assert!(run.check_is_many().is_err(), "{line}");
        }
        let many = Line::try_parse_from("run --matrix list --tap --junit x -j 2".split(' ')).unwrap().run;
        many.check_is_many().unwrap();
    }

    #[test]
    fn a_guest_that_is_kept_has_a_name_as_any_other() {
        let run = words("--hold-on fail -- true").unwrap();
        let kernel = "k".into();
        let (archives, devices) = (Vec::new(), Vec::new());
        let plan =
            Plan { kernel, initramfs: Vec::new(), archives, cmdline: String::new(), devices, symbols: None };
        let job = run.job(plan, "i".into());
        assert!(job.name.is_none() && job.hold_on.is_asked_for());
    }

    #[test]
    fn times_that_are_too_long_have_an_end() {
        let run = words(&format!("--slow {} --boot-timeout {}ms -- true", u32::MAX, u64::MAX)).unwrap();
        let time = run.slowed(run.boot_timeout);
        assert!(std::time::Instant::now().checked_add(time).is_some());
        assert_eq!(words("--slow 3 -- true").unwrap().slowed(Duration::from_secs(2)), Duration::from_secs(6));
    }

    #[test]
    fn a_commands_environment() {
        let given = ["A=b".into(), "HOME=/work".into(), "VMM_THAT_IS_NOT_SET".into(), "A=c=d".into()];
        let environment = environment_of(&given, false);
        let has = |text: &str| environment.iter().filter(|it| *it == text.as_bytes()).count();
        assert_eq!((has("A=b"), has("A=c=d"), has("HOME=/work"), has("USER=root")), (0, 1, 1, 1));
        assert!(!environment.iter().any(|it| it.starts_with(b"TERM=") || it.starts_with(b"VMM_THAT")));
    }
}
