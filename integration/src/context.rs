//! What a case has at hand where it runs.

use crate::guests;
use crate::port;
use crate::process::{Process, Wiring};
use crate::sparse;
use arch::Isa;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A case's surroundings.
#[derive(Debug)]
pub struct Context {
    /// The case's name.
    pub name: String,
    /// The architecture of the machine the case runs on.
    pub isa: Isa,
    /// The `vmm` under test.
    pub vmm: PathBuf,
    /// Kernels as `SERIES`, the guest userspace as `initrd`.
    pub files: PathBuf,
    /// A folder of the case's own.
    pub work: PathBuf,
    /// Processes' output, by name, for the report.
    pub kept: Vec<(String, Vec<u8>)>,
    /// Whether the machine is a nest.
    pub in_nest: bool,
    /// How much slower than hardware the place is: limits of time are multiplied by it.
    pub slowness: u32,
    /// How much of a long run is made.
    pub length: Length,
}

/// How much of the long runs is made, and what their chance is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// A part that takes less than a minute, always the same: `make test`.
    Sample,
    /// All of it: `make soak SEED=...`.
    Full {
        /// What chance is drawn from.
        seed: u64,
    },
}

impl Length {
    /// What `VMM_TEST_SOAK` says, or the word `soak` of a nest's command line.
    pub fn parse(text: Option<&str>) -> Length {
        match text.and_then(|seed| seed.parse().ok()) {
            Some(seed) => Length::Full { seed },
            None => Length::Sample,
        }
    }

    /// On the machine that runs the tests.
    pub fn of_environment() -> Length {
        Length::parse(std::env::var("VMM_TEST_SOAK").ok().as_deref())
    }

    /// One of two numbers.
    pub fn of(self, sample: u64, full: u64) -> u64 {
        match self {
            Length::Sample => sample,
            Length::Full { .. } => full,
        }
    }

    /// Chance.
    pub fn chance(self) -> Chance {
        let seed = match self {
            Length::Sample => 1,
            Length::Full { seed } => seed,
        };
        Chance::new(seed)
    }
}

/// Pseudo-random numbers that are the same for the same seed (Vigna, "splitmix64").
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// What is drawn from a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ value >> 31) % limit
    }
}

/// The result of a check.
pub type Check = Result<(), String>;

/// Fails with a message unless a condition holds.
///
/// # Errors
/// The message.
pub fn check(holds: bool, message: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(message()) }
}

impl Context {
    /// How much of a long run is made.
    ///
    /// # Panics
    /// In a case that `make soak` does not choose by its name: its full length would never be run.
    pub fn length(&self) -> Length {
        assert!(self.name.starts_with("long_"), "{} is a long run: its name begins with long_", self.name);
        self.length
    }

    /// What is drawn anew in each run of `make soak`.
    pub fn chance(&self) -> Chance {
        self.length.chance()
    }

    /// A limit of `seconds` on hardware.
    pub fn limit(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.slowness
    }

    /// The path of a Debian kernel of a series.
    pub fn kernel(&self, series: &str) -> PathBuf {
        self.files.join(series)
    }

    /// The folder with the kernel's modules that the case has asked for.
    pub fn modules(&self) -> PathBuf {
        self.files.join("modules")
    }

    /// One of them, by its name without what it may be compressed by.
    ///
    /// # Errors
    /// When it is not there, or cannot be unpacked.
    pub fn module(&self, name: &OsStr) -> Result<Vec<u8>, String> {
        let path = self.modules().join(name);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        if path.exists() {
            return fs::read(&path).map_err(failed);
        }
        let packed = path.with_extension("ko.xz");
        let unpacked =
            Command::new("/bin/busybox").args(["xz", "-dc"]).arg(packed).output().map_err(failed)?;
        check(unpacked.status.success(), || unpacked.stderr.escape_ascii().to_string())?;
        Ok(unpacked.stdout)
    }

    /// Has this nest's own kernel load one of them.
    ///
    /// # Errors
    /// Likewise, and when the kernel refuses it.
    pub fn load_module(&self, name: &OsStr) -> Check {
        let module = self.module(name)?;
        nix::kmod::init_module(&module, c"")
            .map_err(|error| format!("cannot load {}: {error}", name.display()))
    }

    /// Makes a root for a guest, with busybox and nothing else; the one that it has made already, if it has.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn root(&self) -> Result<PathBuf, String> {
        let root = self.work.join("root");
        if root.exists() {
            return Ok(root);
        }
        let make = || -> std::io::Result<()> {
            for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
                fs::create_dir_all(root.join(folder))?;
            }
            fs::copy("/bin/busybox", root.join("bin/busybox"))?;
            for applet in [
                "sh", "uname", "cat", "echo", "seq", "true", "ls", "tty", "stty", "dmesg", "kill", "wc",
                "printf", "sleep", "ps", "grep", "id", "pwd", "env", "chmod",
            ] {
                symlink("busybox", root.join("bin").join(applet))?;
            }
            Ok(())
        };
        make().map_err(|error| format!("cannot make a root: {error}"))?;
        Ok(root)
    }

    /// The path of the guest userspace.
    pub fn initrd(&self) -> PathBuf {
        self.files.join("initrd")
    }

    /// Writes a test guest to a file and answers with its path.
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn guest(&self, name: &str, flat: bool) -> Result<PathBuf, String> {
        let guest = guests::find(self.isa.name(), name, flat)
            .ok_or_else(|| format!("there is no guest {name} for {}", self.isa))?;
        let path = self.work.join(if flat { format!("{name}.bin") } else { name.to_string() });
        self.write(&path, guest.bytes)?;
        Ok(path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Check {
        fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Starts `vmm` with arguments that are separated by spaces; `{}` stands for each of
    /// `paths` in turn.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, wiring: Wiring, arguments: &str, paths: &[&Path]) -> Result<Process, String> {
        self.start_program(&self.vmm, wiring, arguments, paths)
    }

    /// The other monitor, `vmm/kvm/examples/monitor.rs`.
    pub fn monitor(&self) -> PathBuf {
        let beside = self.vmm.with_file_name("monitor");
        if beside.exists() { beside } else { self.vmm.with_file_name("examples/monitor") }
    }

    /// As [`Self::start`], with another program.
    ///
    /// # Errors
    /// Likewise.
    pub fn start_program(
        &self,
        program: &Path,
        wiring: Wiring,
        arguments: &str,
        paths: &[&Path],
    ) -> Result<Process, String> {
        let mut paths = paths.iter();
        let mut command = Command::new(program);
        for word in arguments.split_whitespace() {
            match word.split_once("{}") {
                Some((before, after)) => {
                    let path = paths.next().ok_or("an argument lacks its path")?;
                    command.arg(format!("{before}{}{}", path.display(), after.replace('~', " ")));
                }
                // A tilde is a space within an argument, but for those of paths.
                None => {
                    command.arg(word.replace('~', " "));
                }
            }
        }
        command.env_remove("RUST_LOG");
        Process::start("vmm", command, wiring)
            .map_err(|error: io::Error| format!("cannot start {}: {error}", program.display()))
    }

    /// Runs `vmm` to its end with no input; answers with exit code, output and errors.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn run(&mut self, arguments: &str, paths: &[&Path], limit: Duration) -> Result<Finished, String> {
        let mut process = self.start(Wiring::Pipes, arguments, paths)?;
        process.close_input();
        let code = process.wait(limit);
        self.keep("vmm", &process);
        let finished = Finished { code: code?, output: process.output.text(), errors: process.errors.text() };
        Ok(finished)
    }

    /// Hands a file to what is done afterwards, on the machine that runs the tests.
    ///
    /// # Errors
    /// When it cannot be read or sent.
    pub fn export(&self, path: &Path) -> Check {
        let send = || -> io::Result<()> {
            let mut port = fs::OpenOptions::new().write(true).open(port::find(port::EXPORT)?)?;
            sparse::send(path, &mut port)
        };
        send().map_err(|error| format!("cannot export {}: {error}", path.display()))
    }

    /// Keeps a process's output for the report.
    pub fn keep(&mut self, name: &str, process: &Process) {
        let number = self.kept.len() / 2 + 1;
        self.kept.push((format!("{number}-{name}-console.log"), process.output.bytes()));
        self.kept.push((format!("{number}-{name}-stderr.log"), process.errors.bytes()));
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Finished {
    /// Checks the exit code.
    ///
    /// # Errors
    /// What was printed, when it is another.
    pub fn expect_code(&self, code: i32) -> Check {
        check(self.code == code, || {
            format!("exit code {} instead of {code}\n{}\n{}", self.code, self.output, self.errors)
        })
    }

    /// Checks that the output has a text.
    ///
    /// # Errors
    /// What was printed instead.
    pub fn expect_output(&self, text: &str) -> Check {
        check(self.output.contains(text), || {
            format!("no {text:?} in the output:\n{}\n{}", self.output, self.errors)
        })
    }

    /// Checks that the messages are one line that has a text.
    ///
    /// # Errors
    /// What was printed instead.
    pub fn expect_one_line(&self, text: &str) -> Check {
        let is_one_line = self.errors.trim_end().lines().count() == 1;
        check(is_one_line && self.errors.contains(text), || {
            format!("not one line with {text:?}:\n{}", self.errors)
        })
    }

    /// The number behind `name=` in the output.
    ///
    /// # Errors
    /// When there is none.
    pub fn number(&self, name: &str) -> Result<u64, String> {
        self.output
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            .ok_or_else(|| format!("no number {name}= in the output:\n{}\n{}", self.output, self.errors))
    }
}
